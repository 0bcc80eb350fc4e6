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
from merge.alignment.solvers.circuits import circuit_cosines, circuit_gains
from merge.alignment.solvers.objective import Objective, weights_of
from merge.errors import AlignmentError, UsageError
from merge.symmetry.permutation import apply, identity, inverse

HEADS, SIZE, WIDTH = 5, 4, 30


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_cosines_are_those_of_the_whole_circuits() -> None:
    """Against d x e matrices in numpy, which the product of heads' sizes never makes."""
    out_a, in_a = drawn(HEADS, SIZE, WIDTH), drawn(HEADS, SIZE, WIDTH + 2, seed=1)
    out_b, in_b = drawn(HEADS, SIZE, WIDTH, seed=2), drawn(HEADS, SIZE, WIDTH + 2, seed=3)
    whole_a, whole_b = ((out.mT @ into).numpy().reshape(HEADS, -1) for out, into in ((out_a, in_a), (out_b, in_b)))
    norms = np.outer(np.linalg.norm(whole_a, axis=1), np.linalg.norm(whole_b, axis=1))
    found = circuit_cosines(out_a, in_a, out_b, in_b).numpy()
    assert np.abs(found - whole_a @ whole_b.T / norms).max() < 1e-10
    assert np.abs(found).max() > 0.01


def test_no_basis_inside_heads_changes_a_circuit() -> None:
    """A random invertible map of every head, its inverse transpose on the other side; a one-sided map does change it."""
    out, into, basis = drawn(HEADS, SIZE, WIDTH), drawn(HEADS, SIZE, WIDTH, seed=1), drawn(HEADS, SIZE, SIZE, seed=2)
    other = basis @ out, torch.linalg.inv(basis).mT @ into
    assert torch.allclose(circuit_cosines(out, into, *other).diagonal(), torch.ones(HEADS).double(), atol=1e-9)
    assert circuit_cosines(out, into, basis @ out, into).diagonal().abs().max() < 0.99


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


def right_heads(pair: Pair, wanted: Any, by: str) -> list[bool]:
    found = match_weights(pair, heads=by)(frozenset(pair.kinds())).permutation
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
    found: dict[tuple[bool, str], list[bool]] = {}
    for seed in range(3):
        pair, wanted = make_pair("BertForSequenceClassification", planted_seed=seed)
        a = of_one_subspace(pair.a, seed)
        planted = replace(pair, a=a, b=apply(pair.spec, inverse(wanted), a))
        for general, by in ((False, "circuits"), (True, "circuits"), (True, "rows")):
            moved = in_other_bases(planted, general, seed)
            found.setdefault((general, by), []).extend(right_heads(moved, wanted, by))
    assert all(found[False, "circuits"] + found[True, "circuits"])
    assert len(found[True, "circuits"]) == 24
    assert sum(found[True, "rows"]) <= 18


def test_where_bases_agree_circuits_find_what_rows_find() -> None:
    pair, wanted = make_pair("BertForSequenceClassification", planted_seed=1, noise=0.3)
    found = match_weights(pair, heads="circuits")(frozenset(pair.kinds()))
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
        match_weights(bare, heads="circuits")(frozenset(pair.kinds()))
    assert match_weights(bare)(frozenset(pair.kinds())).objective[-1] == pytest.approx(1.0, abs=1e-5)


def test_an_unknown_way_to_match_heads_is_an_error() -> None:
    pair, _ = make_pair("BertForSequenceClassification", planted_seed=1)
    with pytest.raises(UsageError, match="not by 'circuit'. Did you mean 'circuits'"):
        match_weights(pair, heads="circuit")
