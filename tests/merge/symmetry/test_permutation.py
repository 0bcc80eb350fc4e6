"""The laws of the group, on the wreath product of heads and what is inside them too."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from tiny import bert_config, random_tensors

from merge.errors import SpecError
from merge.symmetry.architectures.bert import bert
from merge.symmetry.permutation import Permutation, apply, compose, identity, inverse, random, restrict
from merge.symmetry.spec import PermutationSpec

CONFIG = bert_config()
SPEC = bert(CONFIG)
TENSORS = random_tensors(CONFIG, 0)
SHAPES = {name: tuple(tensor.shape) for name, tensor in TENSORS.items()}


def drawn(seed: int) -> Permutation:
    return random(SPEC, SHAPES, torch.Generator().manual_seed(seed))


def equal(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> bool:
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


def test_place_i_takes_unit_p_i_of_the_old_axis() -> None:
    """The one convention, on a plain axis, written out by hand."""
    index = torch.tensor([2, 0, 1, *range(3, 24)])
    p = identity(SPEC, SHAPES)
    p = Permutation({**p.indices, "residual": index}, p.outer)
    name = "bert.embeddings.LayerNorm.weight"
    assert torch.equal(apply(SPEC, p, TENSORS)[name][:3], TENSORS[name][[2, 0, 1]])


def test_new_block_j_takes_units_of_old_block_outer_j() -> None:
    """The convention on a split axis, written out by hand: head 0 takes head 3, its unit 0 that head's unit 5."""
    p = identity(SPEC, SHAPES)
    inner = p.indices["qk0"].clone()
    inner[0] = torch.tensor([5, 0, 1, 2, 3, 4])
    p = Permutation({**p.indices, "heads0": torch.tensor([3, 1, 2, 0]), "qk0": inner}, p.outer)
    name = "bert.encoder.layer.0.attention.self.query.bias"
    old, new = TENSORS[name], apply(SPEC, p, TENSORS)[name]
    assert torch.equal(new[:6], old[[18 + 5, 18, 19, 20, 21, 22]])
    assert torch.equal(new[18:], old[:6])


def test_identity_moves_nothing_and_says_so() -> None:
    still = identity(SPEC, SHAPES)
    assert still.is_identity
    assert equal(apply(SPEC, still, TENSORS), TENSORS)
    assert not drawn(0).is_identity


def test_inverse_undoes_in_either_order() -> None:
    p = drawn(1)
    assert equal(apply(SPEC, inverse(p), apply(SPEC, p, TENSORS)), TENSORS)
    assert equal(apply(SPEC, p, apply(SPEC, inverse(p), TENSORS)), TENSORS)
    assert not equal(apply(SPEC, p, TENSORS), TENSORS)


def test_compose_applies_the_second_argument_first() -> None:
    """(p after q) as one permutation equals q, then p; the other order does not, heads do not commute."""
    p, q = drawn(2), drawn(3)
    chained = apply(SPEC, p, apply(SPEC, q, TENSORS))
    assert equal(apply(SPEC, compose(p, q), TENSORS), chained)
    assert not equal(apply(SPEC, compose(q, p), TENSORS), chained)


def test_compose_is_associative_and_inverse_reverses_it() -> None:
    p, q, r = drawn(4), drawn(5), drawn(6)
    left, right = compose(compose(p, q), r), compose(p, compose(q, r))
    assert all(torch.equal(left.indices[a], right.indices[a]) for a in left.indices)
    turned, direct = inverse(compose(p, q)), compose(inverse(q), inverse(p))
    assert all(torch.equal(turned.indices[a], direct.indices[a]) for a in turned.indices)


def test_restrict_keeps_some_axes_and_stills_the_rest() -> None:
    p = restrict(drawn(7), ["ffn0"])
    assert {axis for axis, (moved, _) in p.moved().items() if moved} == {"ffn0"}


def test_inputs_are_not_written_to() -> None:
    before = {name: tensor.clone() for name, tensor in TENSORS.items()}
    apply(SPEC, drawn(8), TENSORS)
    assert equal(before, TENSORS)


def test_a_permutation_of_another_architecture_is_an_error() -> None:
    with pytest.raises(SpecError, match="no axis 'residual'"):
        apply(SPEC, Permutation({}, {}), {"bert.embeddings.LayerNorm.weight": torch.ones(24)})


# Every bracket of the notation, on tensors that hold the number of their own place.
FORMS = PermutationSpec(
    "forms",
    {
        "plain": "residual -",
        "fused": "[(heads qk) | (heads -) | (heads v)] residual'",
        "within": "(heads [qk | qk' | v])",
        "apart": "residual {heads v}'",
        "grouped": "(kv queries w) residual",
        "rotary": "(kv queries -)",
        "values": "(kv w)",
        "count": "- heads",
        "scalar": "",
    },
    {"heads": 4, "kv": 3, "queries": 2},
)
FORM_SHAPES = {
    "plain": (5, 2),
    "fused": (36, 5),
    "within": (36,),
    "apart": (5, 4, 3),
    "grouped": (24, 5),
    "rotary": (30,),
    "values": (12,),
    "count": (7, 4),
    "scalar": (),
}
NUMBERED = {name: torch.arange(math.prod(shape)).reshape(shape) for name, shape in FORM_SHAPES.items()}


def form(seed: int) -> Permutation:
    return random(FORMS, FORM_SHAPES, torch.Generator().manual_seed(seed))


def by_loops(name: str, p: Permutation) -> np.ndarray:
    """Return a numbered tensor permuted by loops over named places: the convention, with no strides and no flat index."""
    index = {axis: array.tolist() for axis, array in p.indices.items()}
    old = NUMBERED[name].numpy()
    if name == "plain":
        return np.stack([old[r] for r in index["residual"]])
    if name == "fused":
        parts = old.reshape(3, 4, 3, 5)[..., index["residual"]]
        new = np.empty_like(parts)
        for part, inner in enumerate((index["qk"], [[0, 1, 2]] * 4, index["v"])):
            for j in range(4):
                for i in range(3):
                    new[part, j, i] = parts[part, index["heads"][j], inner[j][i]]
        return new.reshape(36, 5)
    if name == "within":
        blocks = old.reshape(4, 3, 3)
        orders = (index["qk"], index["qk"], index["v"])
        new = [
            [[blocks[index["heads"][j], part, orders[part][j][i]] for i in range(3)] for part in range(3)]
            for j in range(4)
        ]
        return np.array(new).reshape(36)
    if name == "apart":
        return np.array(
            [
                [[old[r, index["heads"][j], index["v"][j][i]] for i in range(3)] for j in range(4)]
                for r in index["residual"]
            ]
        )
    kv, queries, w = index["kv"], index["queries"], index["w"]
    if name == "grouped":
        cells = old.reshape(3, 2, 4, 5)[..., index["residual"]]
        new = [[[cells[kv[k], queries[k][q], w[k][i]] for i in range(4)] for q in range(2)] for k in range(3)]
        return np.array(new).reshape(24, 5)
    if name == "rotary":
        cells = old.reshape(3, 2, 5)
        return np.array([[cells[kv[k], queries[k][q]] for q in range(2)] for k in range(3)]).reshape(30)
    if name == "values":
        return np.array([[old.reshape(3, 4)[kv[k], w[k][i]] for i in range(4)] for k in range(3)]).reshape(12)
    return old[:, index["heads"]] if name == "count" else old


@pytest.mark.parametrize("name", FORM_SHAPES)
def test_every_bracket_moves_units_as_loops_over_their_names_do(name: str) -> None:
    for seed in range(3):
        p = form(seed)
        assert np.array_equal(apply(FORMS, p, NUMBERED)[name].numpy(), by_loops(name, p))
    assert name == "scalar" or not np.array_equal(NUMBERED[name].numpy(), by_loops(name, form(0)))


def test_on_three_levels_place_kqi_takes_unit_outer_k_middle_kq_inner_ki() -> None:
    """The convention written out by hand: key/value head 0 takes head 2, its query head 0 that head's query head 1."""
    p = identity(FORMS, FORM_SHAPES)
    queries, w = p.indices["queries"].clone(), p.indices["w"].clone()
    queries[0], w[0] = torch.tensor([1, 0]), torch.tensor([3, 0, 1, 2])
    p = Permutation({**p.indices, "kv": torch.tensor([2, 1, 0]), "queries": queries, "w": w}, p.outer)
    moved = apply(FORMS, p, NUMBERED)
    assert moved["grouped"][:8, 0].tolist() == [5 * row for row in (23, 20, 21, 22, 19, 16, 17, 18)]
    assert moved["rotary"][:10].tolist() == [25, 26, 27, 28, 29, 20, 21, 22, 23, 24]
    assert moved["values"].tolist() == [11, 8, 9, 10, 4, 5, 6, 7, 0, 1, 2, 3]


def test_the_laws_of_the_group_hold_on_every_bracket() -> None:
    """Inverse, the order of composition, and that one is not the other."""
    p, q = form(4), form(5)
    assert equal(apply(FORMS, inverse(p), apply(FORMS, p, NUMBERED)), NUMBERED)
    assert equal(apply(FORMS, compose(p, q), NUMBERED), apply(FORMS, p, apply(FORMS, q, NUMBERED)))
    assert not equal(apply(FORMS, compose(q, p), NUMBERED), apply(FORMS, p, apply(FORMS, q, NUMBERED)))
    turned, direct = inverse(compose(p, q)), compose(inverse(q), inverse(p))
    assert all(torch.equal(turned.indices[a], direct.indices[a]) for a in turned.indices)


@pytest.mark.parametrize("size", [4, 6])
def test_a_permutation_of_another_size_is_an_error_not_a_crop(size: int) -> None:
    """Too short an index would drop units in silence, too long a one fail with an index."""
    spec = PermutationSpec("one", {"t": "residual"})
    with pytest.raises(SpecError, match=rf"'residual' has shape \({size},\), the tensor's \(5,\)"):
        apply(spec, Permutation({"residual": torch.arange(size)}, {}), {"t": torch.ones(5)})


def test_a_permutation_of_another_number_of_heads_is_an_error() -> None:
    spec = PermutationSpec("one", {"t": "(heads qk)"}, {"heads": 4})
    p = random(spec, {"t": (24,)}, torch.Generator().manual_seed(0))
    assert apply(spec, p, {"t": torch.arange(24)})["t"].sort().values.tolist() == list(range(24))
    for wrong in (12, 48, 26):
        with pytest.raises(SpecError, match="another size|does not split"):
            apply(spec, p, {"t": torch.ones(wrong)})


def test_a_named_fixed_order_is_fixed_and_an_axis_permuted_only_is_permuted() -> None:
    """Names of fixed orders and the role `=` are for maps: to a permutation the tables are those without them."""
    named = PermutationSpec("named", {"q": "(h -turn') r'", "g": "r=", "w": "[f= | f]"}, {"h": 2})
    plain = PermutationSpec("plain", {"q": "(h -) r", "g": "r", "w": "[f | f]"}, {"h": 2})
    tensors = {"q": torch.randn(8, 5), "g": torch.randn(5), "w": torch.randn(6)}
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    p = random(named, shapes, torch.Generator().manual_seed(1))
    assert p.indices.keys() == {"h", "r", "f"}
    assert p.outer == {"turn": "h"}
    assert equal(apply(named, p, tensors), apply(plain, p, tensors))
    assert not equal(apply(named, p, tensors), tensors)
