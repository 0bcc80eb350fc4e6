"""The laws of the group, on the wreath product of heads and what is inside them too."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tiny import bert_config, random_tensors

from merge.architectures.bert import bert
from merge.errors import SpecError
from merge.permutation import Permutation, apply, compose, identity, inverse, load, random, restrict, save

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


def test_a_saved_permutation_is_the_one_that_is_loaded(tmp_path: Path) -> None:
    """It is published with a merge, so that the alignment can be repeated."""
    p = drawn(9)
    save(p, tmp_path / "p.safetensors")
    q = load(tmp_path / "p.safetensors")
    assert q.outer == dict(p.outer)
    assert all(torch.equal(q.indices[a], p.indices[a]) for a in p.indices)


def test_a_permutation_of_another_architecture_is_an_error() -> None:
    with pytest.raises(SpecError, match="no axis 'residual'"):
        apply(SPEC, Permutation({}, {}), {"bert.embeddings.LayerNorm.weight": torch.ones(24)})


def test_saving_twice_gives_the_same_bytes(tmp_path: Path) -> None:
    """A merge is repeated to the byte; safetensors alone shuffles the entries of a file's metadata."""
    p = drawn(10)
    for k in range(8):
        save(p, tmp_path / f"{k}.safetensors")
    assert len({(tmp_path / f"{k}.safetensors").read_bytes() for k in range(8)}) == 1
