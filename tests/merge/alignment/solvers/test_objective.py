"""The objective and its gains: by numpy on whole tensors, and what is remembered is what would be computed again."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from contracts.test_aligners import make_pair
from torch import Tensor

from merge.alignment.pair import Pair
from merge.alignment.solvers import objective as module
from merge.alignment.solvers.objective import Objective, inner, weights_of
from merge.symmetry.permutation import Permutation, apply, identity, random, restrict
from merge.symmetry.spec import PermutationSpec


def case(architecture: str = "BertForSequenceClassification") -> tuple[Pair, Objective, Permutation]:
    pair, _ = make_pair(architecture, planted_seed=None, other_seed=3)
    anything = restrict(random(pair.spec, pair.shapes, torch.Generator().manual_seed(0)), set(pair.movable))
    return pair, Objective(pair, weights_of(pair), pair.movable), anything


def product_of(pair: Pair, p: Permutation, names: list[str]) -> float:
    """Sum of normalised products of some tensors, in numpy."""
    moved, total = apply(pair.spec, p, pair.b), 0.0
    for name in names:
        left, right = (t.numpy().astype(np.float64) for t in (pair.a[name], moved[name]))
        if left.ndim == 1:
            left, right = left - left.mean(), right - right.mean()
        total += (left * right).sum() / np.sqrt((left**2).mean() * (right**2).mean())
    return float(total)


def swapped(p: Permutation, axis: str, i: int, j: int) -> Permutation:
    index = p.indices[axis].clone()
    index[[i, j]] = index[[j, i]]
    return Permutation({**p.indices, axis: index}, p.outer)


@pytest.mark.parametrize("chunk", [7, 1 << 17])
def test_shares_are_products_of_whole_tensors(monkeypatch: pytest.MonkeyPatch, chunk: int) -> None:
    """However few entries are taken at a time; and another permutation has another product."""
    monkeypatch.setattr(module, "CHUNK", chunk)
    pair, objective, p = case()
    found = objective.terms(objective.tensor_names, p)
    assert len(found) == len(objective.tensor_names) > 30
    for name, share in found.items():
        assert share == pytest.approx(product_of(pair, p, [name]), abs=1e-4)
    name = "bert.encoder.layer.0.output.dense.weight"
    assert abs(found[name] - product_of(pair, swapped(p, "ffn0", 0, 1), [name])) > 1e-3


def test_inner_permutes_axes_that_span_two_dimensions() -> None:
    """Weights with an axis for heads: the order is over both laid flat."""
    from merge.symmetry.notation import parse

    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(3, 4, 5, generator=generator) for _ in range(2))
    indices: dict[str, Tensor] = {"heads": torch.tensor([2, 0, 1]), "residual": torch.tensor([4, 0, 1, 3, 2])}
    indices["qk"] = torch.stack([torch.randperm(4, generator=generator) for _ in range(3)])
    p = Permutation(indices, {"qk": "heads"})
    moved = np.stack([b[indices["heads"][h]][indices["qk"][h]].numpy() for h in range(3)])[
        :, :, indices["residual"].numpy()
    ]
    value = inner(parse("{heads qk} residual"), p, a, b)
    assert value == pytest.approx(float((a.numpy().astype(np.float64) * moved).sum()), abs=1e-10)
    assert abs(value - float((a * b).sum())) > 0.1


@pytest.mark.parametrize("axis", ["residual", "ffn1", "pooler"])
def test_a_gain_is_what_the_objective_becomes(axis: str) -> None:
    """Two units change places: the difference of the gains is the difference of J, computed on whole tensors."""
    pair, objective, p = case()
    gain = objective.gains(axis, p)[axis,]
    names = list(objective.tensor_names)
    before, (i, j) = product_of(pair, p, names), (0, 3)
    u, v = (int(p.indices[axis][k]) for k in (i, j))
    expected = float(gain[i, v] + gain[j, u] - gain[i, u] - gain[j, v])
    assert product_of(pair, swapped(p, axis, i, j), names) - before == pytest.approx(expected, abs=1e-4)
    assert abs(expected) > 0.05


@pytest.mark.parametrize("bound", [0, 1 << 30])
def test_blocks_may_hold_more_units_in_one_tensor_than_in_another(bound: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """As in grouped convolutions, remembered or not: the gain of two blocks is what the objective becomes."""
    monkeypatch.setattr(module, "MAX_CACHED_BYTES", bound)
    lines = {
        "narrow": "(groups -) one",
        "wide": "(groups -) two",
        "alone": "groups",
        "first": "one -",
        "second": "two -",
    }
    shapes = {"narrow": (6, 4), "wide": (15, 5), "alone": (3,), "first": (4, 2), "second": (5, 2)}
    generator = torch.Generator().manual_seed(0)
    a, b = ({n: torch.randn(s, generator=generator) for n, s in shapes.items()} for _ in "ab")
    spec = PermutationSpec("grouped", lines, {"groups": 3})
    pair = Pair(spec, a, b, {"architectures": ["Grouped"]}, str, ())
    objective = Objective(pair, weights_of(pair), ("groups", "one", "two"))
    p = random(spec, shapes, torch.Generator().manual_seed(1))
    gains, names = objective.gains("groups", p), list(shapes)
    assert list(gains) == [("groups",)]
    gain, before = gains["groups",], product_of(pair, p, names)
    u, v = (int(p.indices["groups"][k]) for k in (0, 2))
    expected = float(gain[0, v] + gain[2, u] - gain[0, u] - gain[2, v])
    assert product_of(pair, swapped(p, "groups", 0, 2), names) - before == pytest.approx(expected, abs=1e-4)
    assert abs(expected) > 0.05


def test_what_is_remembered_is_what_is_computed_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    """After one layer's units move, its share of the residual's gain is computed again, and no other."""
    pair, objective, p = case()
    objective.gains("residual", p)
    computed: list[str] = []
    product = Objective._product

    def counted(self: Objective, units: int, found: list, p: Permutation) -> Tensor:
        computed.extend(occurrence.tensor for occurrence in found)
        return product(self, units, found, p)

    monkeypatch.setattr(Objective, "_product", counted)
    moved = swapped(p, "ffn1", 0, 1)
    remembered = objective.gains("residual", moved)["residual",]
    path = "bert.encoder.layer.1."
    assert sorted(computed) == [f"{path}intermediate.dense.weight", f"{path}output.dense.weight"]
    fresh = Objective(pair, weights_of(pair), pair.movable).gains("residual", moved)["residual",]
    assert torch.equal(remembered, fresh)
    assert not torch.allclose(remembered, objective.gains("residual", identity(pair.spec, pair.shapes))["residual",])


def test_only_what_is_matched_counts_in_the_first_pass() -> None:
    """With nothing matched the residual hears the embeddings alone; with everything, all tensors."""
    pair, objective, p = case()
    alone = objective.gains("residual", p, frozenset())["residual",]
    everything = objective.gains("residual", p, frozenset(pair.movable))["residual",]
    fixed = [
        n for n in pair.a if set(pair.spec.lines[n].replace("'", " ").replace("=", " ").split()) <= {"-", "residual"}
    ]
    assert float(alone.diagonal().sum()) == pytest.approx(
        product_of(pair, identity(pair.spec, pair.shapes), fixed), abs=1e-3
    )
    assert torch.equal(everything, objective.gains("residual", p)["residual",])
    assert not torch.allclose(alone, everything, atol=0.1)
