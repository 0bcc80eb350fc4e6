"""Transforms: the convention written out on one small network, and every way in which one can be wrong."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from random_transforms import random_map, random_transform
from safetensors.torch import load_file, save_file
from tiny import bert_config, random_tensors

from merge.errors import SpecError
from merge.symmetry.architectures.bert import bert
from merge.symmetry.permutation import Permutation, apply, identity, random
from merge.symmetry.spec import PermutationSpec, parse
from merge.symmetry.transform import (
    Transform,
    apply_transform,
    apply_transform_axes,
    axis_sizes,
    check_transform,
    compose,
    folded_spec,
    identity_transform,
    inverse,
    restrict_transform,
)
from merge.symmetry.transform_files import load_transform, save_transform

CONFIG = bert_config()
SPEC = bert(CONFIG)
TENSORS = random_tensors(CONFIG, 0)
SHAPES = {name: tuple(tensor.shape) for name, tensor in TENSORS.items()}

# y = W2 (u * act(g)), u = Wu x, g = Wg x: a gated layer, its hidden units under real scales.
GATED = PermutationSpec(
    "gated",
    {"up": "ffn x'", "gate": "ffn= x'", "down": "y ffn'"},
    groups={"ffn": "real", "x": "linear", "y": "linear"},
)


def drawn(seed: int, spec: PermutationSpec = SPEC) -> Transform:
    return random_transform(spec, SHAPES, torch.Generator().manual_seed(seed))


def gated() -> dict[str, torch.Tensor]:
    rng = np.random.default_rng(0)
    shapes = {"up": (5, 3), "gate": (5, 3), "down": (4, 5)}
    return {name: torch.from_numpy(rng.standard_normal(shape)) for name, shape in shapes.items()}


def run(tensors: dict[str, torch.Tensor], x: np.ndarray) -> np.ndarray:
    up, gate, down = (tensors[name].numpy() for name in ("up", "gate", "down"))
    return down @ (up @ x * np.tanh(gate @ x))


def test_the_permutation_acts_first_then_the_map_in_the_new_order() -> None:
    """One unit by hand: place 0 takes old unit 2, then the scale of place 0."""
    p = Permutation({"ffn": torch.tensor([2, 0, 1, 3, 4]), "x": torch.arange(3), "y": torch.arange(4)}, {})
    scale = torch.tensor([8.0, -1, 1, 1, 1], dtype=torch.float64)
    old = gated()
    new = apply_transform(GATED, Transform(p, {"ffn": scale}), old)
    assert torch.equal(new["up"][0], 8 * old["up"][2])
    assert torch.equal(new["up"][1], -old["up"][0])
    assert torch.equal(new["gate"][0], old["gate"][2])
    assert torch.equal(new["down"][:, 0], old["down"][:, 2] / 8)
    assert torch.equal(new["down"][:, 3], old["down"][:, 3])


def test_a_gated_layer_says_in_the_new_bases_what_it_said_in_the_old() -> None:
    """Function of the re-based layer on re-based inputs = re-based outputs, by a numpy run of the layer."""
    old = gated()
    shapes = {name: tuple(tensor.shape) for name, tensor in old.items()}
    t = random_transform(GATED, shapes, torch.Generator().manual_seed(1))
    new = apply_transform(GATED, t, old)
    x = np.random.default_rng(2).standard_normal(3)
    moved_x = apply_transform_axes(parse("x"), t, torch.from_numpy(x)).numpy()
    moved_y = apply_transform_axes(parse("y"), t, torch.from_numpy(run(old, x))).numpy()
    assert np.allclose(run(new, moved_x), moved_y, atol=1e-12)
    assert not np.allclose(run(new, x), run(old, x), atol=1e-3)


def test_without_maps_a_transform_is_its_permutation() -> None:
    """Bit for bit, on tensors of any dtype."""
    p = random(SPEC, SHAPES, torch.Generator().manual_seed(3))
    half = {name: tensor.bfloat16() for name, tensor in TENSORS.items()}
    moved, wanted = apply_transform(SPEC, Transform(p, {}), half), apply(SPEC, p, half)
    assert all(torch.equal(moved[name], wanted[name]) for name in half)


def test_the_identity_does_nothing_and_says_so() -> None:
    still = identity_transform(SPEC, SHAPES)
    assert still.is_identity
    assert all(new is TENSORS[name] for name, new in apply_transform(SPEC, still, TENSORS).items())
    assert not drawn(0).is_identity
    assert not Transform(still.permutation, {"ffn0": torch.ones(40, dtype=torch.float64)}).is_identity


def test_tensors_keep_their_dtype_and_what_no_map_acts_on_keeps_its_bits() -> None:
    """Computed in float64, cast back once: float32 results are the float64 ones rounded."""
    t = restrict_transform(drawn(4), ["v0", "heads0"])
    t = Transform(identity(SPEC, SHAPES), t.maps)
    single = {name: tensor.float() for name, tensor in TENSORS.items()}
    moved = apply_transform(SPEC, t, single)
    exact = apply_transform(SPEC, t, {name: tensor.double() for name, tensor in single.items()})
    touched = {name for name, line in SPEC.lines.items() if "v0" in line} & TENSORS.keys()
    assert len(touched) == 3
    for name, tensor in single.items():
        assert moved[name].dtype == torch.float32
        assert torch.equal(moved[name], exact[name].float() if name in touched else tensor)
        assert torch.equal(moved[name], tensor) != (name in touched)


def test_inputs_are_not_written_to() -> None:
    before = {name: tensor.clone() for name, tensor in TENSORS.items()}
    apply_transform(SPEC, drawn(5), TENSORS)
    assert all(torch.equal(before[name], tensor) for name, tensor in TENSORS.items())


def test_composition_is_associative_and_inverse_reverses_it() -> None:
    """On maps and index arrays both; the other order is another element."""
    t, u, w = drawn(6), drawn(7), drawn(8)
    assert same(compose(compose(t, u), w), compose(t, compose(u, w)))
    assert same(inverse(compose(t, u)), compose(inverse(u), inverse(t)))
    assert not same(compose(t, u), compose(u, t))
    assert same(compose(t, identity_transform(SPEC, SHAPES)), t)


def same(t: Transform, u: Transform) -> bool:
    assert t.maps.keys() == u.maps.keys()
    assert len(t.maps) >= 4
    indices = all(torch.equal(t.permutation.indices[a], u.permutation.indices[a]) for a in t.permutation.indices)
    return indices and all(torch.allclose(t.maps[a], u.maps[a], atol=1e-10) for a in t.maps)


def test_the_map_of_one_element_alone_is_carried_along() -> None:
    """Only the first has a map: the composition still is one after the other."""
    t = Transform(random(SPEC, SHAPES, torch.Generator().manual_seed(9)), {})
    u = drawn(10)
    for first, then in ((t, u), (u, t)):
        wanted = apply_transform(SPEC, then, apply_transform(SPEC, first, TENSORS))
        found = apply_transform(SPEC, compose(then, first), TENSORS)
        assert all(torch.allclose(found[name].double(), wanted[name].double(), atol=1e-5) for name in TENSORS)


def test_restrict_keeps_the_maps_and_orders_of_some_axes() -> None:
    t = restrict_transform(drawn(11), ["qk0", "ffn1"])
    assert set(t.maps) == {"qk0"}
    assert {axis for axis, (moved, _) in t.permutation.moved().items() if moved} == {"qk0", "ffn1"}


def test_sizes_are_those_of_axes_that_take_maps_alone_too() -> None:
    spec = PermutationSpec("rotary", {"q": "(h q -turn)", "k": "(h -turn')", "n": "-turn"}, {"h": 2, "q": 3})
    assert axis_sizes(spec, {"q": (24,), "k": (8,)}) == {"h": (2,), "q": (2, 3), "turn": (2, 4)}
    with pytest.raises(SpecError, match=r'k has shape \(12,\), but axis "turn" already has size \(2, 4\)'):
        axis_sizes(spec, {"q": (24,), "k": (12,)})


@pytest.mark.parametrize(
    ("axis", "mapped", "said"),
    [
        ("ffn0", torch.full((40,), 2.0, dtype=torch.float64), "is not in its group 'permutation'"),
        ("pooler", torch.full((24,), 2.0, dtype=torch.float64), "is not in its group 'signed'"),
        ("qk0", torch.zeros(4, 6, 6, dtype=torch.float64), "is not in its group 'linear'"),
        ("qk0", torch.eye(6, dtype=torch.float64), r"\(6, 6\) on \(4, 6\) units, is not in its group"),
        ("residual", torch.ones(23, dtype=torch.float64), r"float64 \(23,\) on \(24,\) units, is not in"),
        ("residual", torch.ones(24), r"float32 \(24,\) on \(24,\) units, is not in"),
        ("resid", torch.ones(24, dtype=torch.float64), "map on axis 'resid'; bert has none. Did you mean 'residual'"),
    ],
)
def test_a_map_outside_its_group_is_refused(axis: str, mapped: torch.Tensor, said: str) -> None:
    still = identity_transform(SPEC, SHAPES)
    check_transform(SPEC, still)
    with pytest.raises(SpecError, match=said) as caught:
        check_transform(SPEC, Transform(still.permutation, {axis: mapped}))
    assert "\n" not in str(caught.value)


def test_an_axis_of_group_none_is_left_alone() -> None:
    spec = PermutationSpec("fixed", {"w": "a b'"}, groups={"a": "none"})
    t = random_transform(spec, {"w": (9, 7)}, torch.Generator().manual_seed(0))
    check_transform(spec, t)
    assert {axis for axis, (moved, _) in t.permutation.moved().items() if moved} == {"b"}
    moved = Permutation({**t.permutation.indices, "a": torch.arange(9).flip(0)}, {})
    with pytest.raises(SpecError, match="permutes axis 'a', whose group is 'none'"):
        check_transform(spec, Transform(moved, {}))


def test_blocks_of_a_fixed_order_are_counted() -> None:
    spec = PermutationSpec("rotary", {"q": "(h -turn)"}, {"h": 2}, groups={"turn": "rotary"})
    t = random_transform(spec, {"q": (8,)}, torch.Generator().manual_seed(0))
    check_transform(spec, t)
    with pytest.raises(SpecError, match="the map of axis 'turn' has 3 blocks, 'h' has 2"):
        check_transform(spec, Transform(t.permutation, {"turn": t.maps["turn"][[0, 1, 1]]}))


def test_a_group_that_does_not_exist_is_said_with_the_nearest() -> None:
    spec = PermutationSpec("odd", {"w": "a"}, groups={"a": "sined"})
    with pytest.raises(SpecError, match="odd table gives axis 'a' the group 'sined'. Did you mean 'signed'"):
        check_transform(spec, Transform(identity(spec, {"w": (3,)}), {"a": torch.ones(3, dtype=torch.float64)}))


def test_an_error_names_the_tensor() -> None:
    wide = Transform(identity(SPEC, SHAPES), {"pooler": torch.ones(9, dtype=torch.float64)})
    with pytest.raises(SpecError, match=r"^bert\.pooler\.dense\.weight: the map of axis 'pooler' has shape \(9,\)"):
        apply_transform(SPEC, wide, TENSORS)


def test_a_map_on_blocks_is_not_left_out_in_silence() -> None:
    """Heads change places; a scale of a whole head is a map of what is inside it."""
    scaled = Transform(identity(SPEC, SHAPES), {"heads0": torch.full((4,), 2.0, dtype=torch.float64)})
    with pytest.raises(SpecError, match=r"query\.weight: axis 'heads0' counts blocks"):
        apply_transform(SPEC, scaled, {n: t for n, t in TENSORS.items() if "layer.0.attention.self.query" in n})
    with pytest.raises(SpecError, match="not in its group 'permutation'"):
        check_transform(SPEC, scaled)


def test_a_folded_table_rotates_the_stream_and_nothing_else_changes() -> None:
    spec = PermutationSpec("pre", {"w": "a"}, groups={"a": "sign", "b": "linear"}, folded={"a": "orthogonal_one"})
    assert folded_spec(spec).groups == {"a": "orthogonal_one", "b": "linear"}
    assert spec.groups["a"] == "sign"
    with pytest.raises(SpecError, match="residual stream of bert with this head cannot be rotated"):
        folded_spec(SPEC)


def test_a_saved_transform_is_the_one_that_is_loaded(tmp_path: Path) -> None:
    """Maps and index arrays bit for bit, and the same bytes every time."""
    t = drawn(12)
    for k in range(6):
        save_transform(SPEC, t, tmp_path / f"{k}.safetensors")
    assert len({(tmp_path / f"{k}.safetensors").read_bytes() for k in range(6)}) == 1
    again = load_transform(SPEC, tmp_path / "0.safetensors")
    assert again.permutation.outer == dict(t.permutation.outer)
    assert all(torch.equal(again.maps[axis], mapped) for axis, mapped in t.maps.items())
    assert same(again, t)
    assert len(list(tmp_path.iterdir())) == 6


def rewritten(path: Path, **changes: object) -> Path:
    """Write the file again with other facts in its metadata."""
    facts = {"format": 1, "family": "bert", "outer": dict(drawn(12).permutation.outer), **changes}
    other = path.with_name("other.safetensors")
    save_file(load_file(path), other, metadata={"transform": json.dumps(facts)})
    return other


def test_a_saved_transform_of_three_levels_is_the_one_that_is_loaded(tmp_path: Path) -> None:
    """Grouped queries: the arrays of the middle and the inner level have a row for each key/value head."""
    spec = PermutationSpec("grouped", {"q": "(kv queries v)"}, {"kv": 3, "queries": 2}, groups={"v": "linear"})
    t = random_transform(spec, {"q": (24,)}, torch.Generator().manual_seed(2))
    save_transform(spec, t, tmp_path / "t.safetensors")
    x = torch.arange(24, dtype=torch.float64)
    once, again = (
        apply_transform(spec, u, {"q": x})["q"] for u in (t, load_transform(spec, tmp_path / "t.safetensors"))
    )
    assert torch.equal(once, again)
    assert not torch.allclose(once, x)


def test_a_file_that_is_not_this_family_s_transform_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "t.safetensors"
    save_transform(SPEC, drawn(12), path)
    assert load_transform(SPEC, rewritten(path)).maps
    with pytest.raises(SpecError, match="is a transform of format 2; this version reads 1"):
        load_transform(SPEC, rewritten(path, format=2))
    with pytest.raises(SpecError, match="is a transform of gpt2, not of bert"):
        load_transform(SPEC, rewritten(path, family="gpt2"))
    save_file({"x": torch.ones(1)}, path)
    with pytest.raises(SpecError, match="is no transform: its metadata has no entry 'transform'"):
        load_transform(SPEC, path)
    path.write_bytes(b"nonsense")
    with pytest.raises(SpecError, match="cannot be read as a transform"):
        load_transform(SPEC, path)
    with pytest.raises(SpecError, match="cannot be read as a transform"):
        load_transform(SPEC, tmp_path / "absent")


def test_what_is_outside_its_group_is_neither_written_nor_read(tmp_path: Path) -> None:
    path, still = tmp_path / "t.safetensors", identity_transform(SPEC, SHAPES)
    wrong = Transform(still.permutation, {"ffn0": random_map("real", (40,), torch.Generator())})
    with pytest.raises(SpecError, match="not in its group 'permutation'"):
        save_transform(SPEC, wrong, path)
    assert not path.exists()
    loose = PermutationSpec(SPEC.family, SPEC.lines, SPEC.sizes, groups={**SPEC.groups, "ffn": "real"})
    save_transform(loose, wrong, path)
    with pytest.raises(SpecError, match="not in its group 'permutation'"):
        load_transform(SPEC, path)
