"""Circuits: by hand as whole matrices, invariant to every basis inside heads, and what rows cannot tell."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from contracts.test_aligners import make_pair
from torch import Tensor

from merge.alignment.matchers.weights import match_weights
from merge.alignment.pair import Pair
from merge.alignment.solvers.circuits import circuit_gains
from merge.alignment.solvers.objective import Objective, weights_of
from merge.errors import AlignmentError
from merge.symmetry.permutation import apply, identity, inverse


def gains_of_heads(pair: Pair) -> Tensor:
    objective = Objective(pair, weights_of(pair), pair.movable)
    return circuit_gains(objective, "heads0", identity(pair.spec, pair.shapes))["heads0",]


def whole_circuits(tensors: Mapping[str, Tensor]) -> list[np.ndarray]:
    """Return what the heads of the first layer attend to and write, as d x d matrices, one row a head; in numpy."""

    def rows(name: str) -> np.ndarray:
        tensor = tensors[f"bert.encoder.layer.0.attention.{name}"].numpy().astype(np.float64)
        tensor = tensor.T if name == "output.dense.weight" else tensor
        tensor = tensor - tensor.mean() if tensor.ndim == 1 else tensor
        return (tensor / np.sqrt((tensor**2).mean())).reshape(4, 6, -1)

    def circuit(out: str, into: str) -> np.ndarray:
        left = np.concatenate([rows(f"{out}.weight"), rows(f"{out}.bias")], axis=2)
        return np.stack([x.T @ y for x, y in zip(left, rows(into), strict=True)]).reshape(4, -1)

    return [circuit("self.query", "self.key.weight"), circuit("self.value", "output.dense.weight")]


def test_cosines_are_those_of_the_whole_circuits() -> None:
    """Against d x d matrices in numpy, which the product of heads' sizes never makes."""
    pair, _ = make_pair("BertForSequenceClassification", planted_seed=None, other_seed=4)
    expected = np.zeros((4, 4))
    for a, b in zip(whole_circuits(pair.a), whole_circuits(pair.b), strict=True):
        expected += a @ b.T / np.outer(np.linalg.norm(a, axis=1), np.linalg.norm(b, axis=1))
    gains = gains_of_heads(pair).numpy()
    assert np.abs(gains - expected).max() < 1e-5
    assert np.abs(gains).max() > 0.01


def test_no_basis_inside_heads_changes_a_circuit() -> None:
    """A random invertible map of every head, its inverse transpose on the other side; a one-sided map does change it."""
    pair, _ = make_pair("BertForSequenceClassification", planted_seed=None)
    flat = {n: torch.zeros_like(t) if "attention.self" in n and t.ndim == 1 else t for n, t in pair.a.items()}
    pair = replace(pair, a=flat, b=flat)
    moved = in_other_bases(pair, general=True, seed=0)
    assert torch.allclose(gains_of_heads(moved).diagonal(), torch.full((4,), 2.0).double(), atol=1e-5)
    name = "bert.encoder.layer.0.attention.self.query.weight"
    assert gains_of_heads(replace(pair, b={**pair.b, name: moved.b[name]})).diagonal().max() < 1.99


def in_other_bases(pair: Pair, general: bool, seed: int) -> Pair:
    """Return the pair with every head of b in a random basis: queries and values by G, keys and outputs by G^-T."""
    b, generator = dict(pair.b), torch.Generator().manual_seed(seed)
    for layer in range(pair.config["num_hidden_layers"]):
        path = f"bert.encoder.layer.{layer}.attention."
        for outs, ins in (("self.query", "self.key"), ("self.value", "output.dense")):
            g = torch.randn(4, 6, 6, generator=generator, dtype=torch.float64)
            g = g if general else torch.linalg.qr(g).Q
            for name, maps in ((outs, g), (ins, torch.linalg.inv(g).mT)):
                whole = torch.block_diag(*maps).float()
                key = f"{path}{name}.weight"
                b[key] = b[key] @ whole.T if ins == name == "output.dense" else whole @ b[key]
                if name != "output.dense":
                    b[f"{path}{name}.bias"] = whole @ b[f"{path}{name}.bias"]
    return replace(pair, b=b)


def right_heads(pair: Pair, wanted: Any, circuits: bool) -> list[bool]:
    found = match_weights(pair, circuits=circuits)(frozenset(pair.kinds())).permutation
    return [bool(found.indices[axis][k] == wanted.indices[axis][k]) for axis in ("heads0", "heads1") for k in range(4)]


def of_one_subspace(tensors: Mapping[str, Tensor], seed: int) -> dict[str, Tensor]:
    """Return the tensors with all heads of a layer reading and writing the same directions, each turned its own way."""
    out, generator = dict(tensors), torch.Generator().manual_seed(seed)
    for layer in range(2):
        for name in ("self.query", "self.key", "self.value", "output.dense"):
            shared = torch.linalg.qr(torch.randn(24, 6, generator=generator)).Q.T
            mixed = torch.cat([torch.linalg.qr(torch.randn(6, 6, generator=generator)).Q @ shared for _ in range(4)])
            path = f"bert.encoder.layer.{layer}.attention.{name}.weight"
            out[path] = mixed.T.contiguous() if name == "output.dense" else mixed
    return out


def test_circuits_find_heads_whose_bases_differ_where_rows_cannot() -> None:
    """Heads that share their directions are told apart by how they pair them, which no basis hides.

    Rows of queries and keys move alike under an orthogonal basis, so that their sum still says something; under a general
    one they move apart, and rows find hardly more heads than chance.
    """
    found: dict[tuple[bool, bool], list[bool]] = {}
    for seed in range(3):
        pair, wanted = make_pair("BertForSequenceClassification", planted_seed=seed)
        a = of_one_subspace(pair.a, seed)
        planted = replace(pair, a=a, b=apply(pair.spec, inverse(wanted), a))
        for general, circuits in ((False, True), (True, True), (True, False)):
            moved = in_other_bases(planted, general, seed)
            found.setdefault((general, circuits), []).extend(right_heads(moved, wanted, circuits))
    assert all(found[False, True] + found[True, True])
    assert len(found[True, True]) == 24
    assert sum(found[True, False]) <= 18


def test_where_bases_agree_circuits_find_what_rows_find() -> None:
    pair, wanted = make_pair("BertForSequenceClassification", planted_seed=1, noise=0.3)
    found = match_weights(pair, circuits=True)(frozenset(pair.kinds()))
    assert all(torch.equal(found.permutation.indices[axis], index) for axis, index in wanted.indices.items())
    assert not wanted.is_identity


def test_the_key_bias_says_nothing_and_the_query_bias_does() -> None:
    """Softmax cancels what a key bias adds; a query bias is part of what a head attends to."""
    pair, _ = make_pair("BertForSequenceClassification", planted_seed=None, other_seed=4)

    def gains(name: str | None) -> Tensor:
        path = f"bert.encoder.layer.0.attention.self.{name}.bias"
        b = pair.b if name is None else {**pair.b, path: 100 * torch.arange(24).float()}
        changed = replace(pair, b=b)
        objective = Objective(changed, weights_of(changed), pair.movable)
        return circuit_gains(objective, "heads0", identity(pair.spec, pair.shapes))["heads0",]

    assert torch.equal(gains("key"), gains(None))
    assert not torch.allclose(gains("query"), gains(None), atol=1e-3)


def test_a_spec_without_roles_has_no_circuits() -> None:
    """An axis whose tensors do not say which side they stand on cannot be read as a circuit; rows still can."""
    pair, _ = make_pair("BertForSequenceClassification", planted_seed=1)
    bare = replace(
        pair, spec=replace(pair.spec, lines={n: line.replace("'", "") for n, line in pair.spec.lines.items()})
    )
    with pytest.raises(AlignmentError, match='no circuit runs through axis "heads0".*Match heads by rows'):
        match_weights(bare, circuits=True)(frozenset(pair.kinds()))
    assert match_weights(bare)(frozenset(pair.kinds())).objective[-1] == pytest.approx(1.0, abs=1e-5)
