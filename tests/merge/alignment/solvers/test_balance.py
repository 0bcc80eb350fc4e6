"""Balanced models: one function, one scale, whatever shares the factors had before."""

from __future__ import annotations

import pytest
import torch
from families import canonical_tensors
from families_more import CASES
from random_transforms import random_transform
from tiny import bert_config, random_tensors
from torch import Tensor

from merge.alignment.solvers.balance import MIN_SINGULAR_RATIO, balance
from merge.symmetry.architectures import spec_for
from merge.symmetry.permutation import identity
from merge.symmetry.spec import PermutationSpec
from merge.symmetry.transform import Transform, apply_transform, axis_sizes, check_transform

BERT = bert_config()


def model(name: str) -> tuple[PermutationSpec, dict[str, Tensor]]:
    config = BERT if name == "bert" else CASES[name]
    return spec_for(config), random_tensors(BERT, 0) if name == "bert" else canonical_tensors(config, 0)


def balancing(spec: PermutationSpec, tensors: dict[str, Tensor]) -> Transform:
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    groups = {axis: spec.group(axis) for axis in axis_sizes(spec, shapes)}
    return balance(spec, tensors, groups, identity(spec, shapes))


def stretched(spec: PermutationSpec, tensors: dict[str, Tensor], seed: int) -> dict[str, Tensor]:
    """Return the tensors in another basis, no unit in another place."""
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    maps = random_transform(spec, shapes, torch.Generator().manual_seed(seed)).maps
    return apply_transform(spec, Transform(identity(spec, shapes), maps), tensors)


@pytest.mark.parametrize("name", ["bert", "LlamaForCausalLM", "RoFormerForMaskedLM", "ModernBertForMaskedLM"])
def test_balanced_models_weigh_the_same_however_they_were_stretched(name: str) -> None:
    """What is left of the groups is rotations, phases and signs, which leave the size of every matrix."""
    spec, a = model(name)
    other = stretched(spec, a, 1)
    to_a, to_other = balancing(spec, a), balancing(spec, other)
    check_transform(spec, to_a)
    one, two = (apply_transform(spec, t, x) for t, x in ((to_a, a), (to_other, other)))
    heads = [n for n in a if any(word in n for word in ("query", "key", "value", "q_proj", "k_proj", "v_proj", "Wqkv"))]
    heads = [n for n in heads if n.endswith("weight") and a[n].ndim == 2]
    assert heads
    for n in heads:
        assert float(one[n].norm()) == pytest.approx(float(two[n].norm()), rel=1e-6)
    assert max(abs(float(a[n].norm() / other[n].norm()) - 1) for n in heads) > 0.05


def test_both_factors_of_a_head_have_the_singular_values_of_their_product_by_root() -> None:
    """out^T into = U S V^T, from numpy's decomposition of what a head shows; both factors' squares are S."""
    spec, a = model("bert")
    new = apply_transform(spec, balancing(spec, a), a)
    stem, head = "bert.encoder.layer.1.attention", slice(6, 12)
    value = torch.cat([a[f"{stem}.self.value.weight"], a[f"{stem}.self.value.bias"][:, None]], 1)[head]
    shown = torch.linalg.svdvals(value.T @ a[f"{stem}.output.dense.weight"][:, head].T)[:6]
    moved = torch.cat([new[f"{stem}.self.value.weight"], new[f"{stem}.self.value.bias"][:, None]], 1)[head]
    assert torch.allclose(moved @ moved.T, shown.diag(), atol=1e-9)
    reader = new[f"{stem}.output.dense.weight"][:, head]
    assert torch.allclose(reader.T @ reader, shown.diag(), atol=1e-9)
    assert not torch.allclose(value @ value.T, shown.diag(), atol=1e-1)


def test_a_head_that_shows_less_than_it_could_is_left_alone() -> None:
    """A map that made up for a direction that is hardly shown would cost its digits; other heads are balanced."""
    spec, a = model("bert")
    name = "bert.encoder.layer.0.attention.self.value.weight"
    faint = a[name].clone()
    faint[0] *= MIN_SINGULAR_RATIO / 100
    bias = a[name.replace("weight", "bias")].clone()
    bias[0] = 0
    maps = balancing(spec, {**a, name: faint, name.replace("weight", "bias"): bias}).maps["v0"]
    assert torch.equal(maps[0], torch.eye(6, dtype=torch.float64))
    assert not torch.allclose(maps[1], torch.eye(6, dtype=torch.float64), atol=1e-2)


def test_the_last_direction_of_a_head_is_made_up_for_down_to_a_ten_thousandth() -> None:
    """One that shows a millionth is left to its factors, though not zero; one that shows a hundredth is balanced."""
    spec, a = model("bert")
    stem, found = "bert.encoder.layer.0.attention.self.value", {}
    for share in (1e-6, 1e-2):
        weight, bias = a[f"{stem}.weight"].clone(), a[f"{stem}.bias"].clone()
        weight[0] *= share
        bias[0] *= share
        found[share] = balancing(spec, {**a, f"{stem}.weight": weight, f"{stem}.bias": bias}).maps["v0"][0]
    assert torch.equal(found[1e-6], torch.eye(6, dtype=torch.float64))
    assert float(found[1e-2].abs().max()) > 5


def test_a_unit_whose_factor_is_next_to_nothing_is_left_alone() -> None:
    """Balanced, 1e-18 of a row would become 1e9 of a column; ten times too large a column is balanced as any other."""
    spec, a = model("LlamaForCausalLM")
    up, down = (f"model.layers.0.mlp.{name}_proj" for name in ("up", "down"))
    out = torch.cat([a[f"{up}.weight"], a[f"{up}.bias"][:, None]], 1)
    plain = (a[f"{down}.weight"].norm(dim=0) / out.norm(dim=1)).sqrt()
    for factor, other in ((1e-18, 1.0), (1.0, 1e-18)):
        changed = {n: a[n].clone() for n in (f"{up}.weight", f"{up}.bias", f"{down}.weight")}
        changed[f"{up}.weight"][3] *= factor
        changed[f"{up}.bias"][3] *= factor
        changed[f"{down}.weight"][:, 3] *= other
        changed[f"{down}.weight"][:, 4] *= 10
        maps = balancing(spec, {**a, **changed}).maps["ffn0"]
        assert float(maps[3]) == 1
        assert float(maps[4]) == pytest.approx(float(plain[4]) * 10**0.5, rel=1e-9)
        assert float(maps[5]) == pytest.approx(float(plain[5]), rel=1e-9)
    assert abs(float(plain[3]) - 1) > 0.01
