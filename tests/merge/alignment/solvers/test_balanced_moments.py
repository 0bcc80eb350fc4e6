"""Matchers of one pair run its text once: what balanced models show follows from a run of them as they are."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from contracts.test_aligners import make_pair
from families import canonical_tensors, inputs, written_name
from families_more import CASES
from random_transforms import random_transform

from merge.alignment.matchers import aligner, rotations
from merge.alignment.matchers.rotations import match_balanced
from merge.alignment.pair import Pair, Settings, Shared, in_canonical_form
from merge.alignment.solvers import moments
from merge.checkpoints.structure import structure_of
from merge.symmetry.architectures import spec_for
from merge.symmetry.permutation import identity
from merge.symmetry.transform import Transform, apply_transform


def bert() -> Pair:
    pair, _ = make_pair("BertForSequenceClassification", None, other_seed=5)
    return replace(pair, batches=pair.batches[:2])


def family(name: str) -> Pair:
    config, structure = CASES[name], structure_of(CASES[name])
    a, b = (canonical_tensors(config, seed, torch.float32) for seed in (0, 1))
    batches = tuple(inputs(config, 0))
    return Pair(spec_for(config), a, b, config, lambda n: written_name(structure, n), batches)


def stretched(pair: Pair) -> Pair:
    """Return the pair with b in another basis in every head and other scales, and with maps asked for."""
    drawn = random_transform(pair.spec, pair.shapes, torch.Generator().manual_seed(3))
    moved = apply_transform(pair.spec, Transform(identity(pair.spec, pair.shapes), drawn.maps), pair.b)
    return in_canonical_form(replace(pair, b=moved, settings=Settings(basis="orthogonal")))


CASES_TRIED = ["bert", pytest.param("LlamaForCausalLM", marks=pytest.mark.slow), "gpt2 untied"]


@pytest.mark.parametrize("name", CASES_TRIED)
def test_a_shared_run_gives_what_a_run_of_the_balanced_models_gives(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Maps inside heads agree to the rounding of float32 models, whether a site takes a map or its inverse transpose."""
    pair = stretched(bert() if name == "bert" else family(name))
    kinds = frozenset(pair.kinds())
    alone, values, _ = match_balanced(pair, kinds)
    shared = replace(pair, shared=Shared())
    aligner("activations")(replace(shared, settings=Settings()))  # runs the text
    for module in (moments, rotations):  # a second run is an error
        monkeypatch.setattr(module, "collect", None)
    together, shared_values, _ = match_balanced(shared, kinds)
    assert shared_values == pytest.approx(values, abs=1e-5)
    assert alone.maps.keys() == together.maps.keys() != set()
    for axis, index in alone.permutation.indices.items():
        assert torch.equal(index, together.permutation.indices[axis]), axis
    for axis, mapped in alone.maps.items():
        scale = float(mapped.abs().max())
        assert float((mapped - together.maps[axis]).abs().max()) < 1e-2 * scale, axis


@pytest.mark.parametrize(("shared", "runs"), [(Shared(), 1), pytest.param(None, 4, marks=pytest.mark.slow)])
def test_matchers_that_share_a_pair_run_the_text_once(
    shared: Shared | None, runs: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both models go over the text once, and not once for each of four matchers."""
    pair, seen, plain = replace(in_canonical_form(bert()), shared=shared), [], moments.collect

    def counted(*args: Any, **kwargs: Any) -> Any:
        seen.append(1)
        return plain(*args, **kwargs)

    for module in (moments, rotations):
        monkeypatch.setattr(module, "collect", counted)
    for by in ("activations", "activations+weights"):
        for basis in ("permutation", "orthogonal"):
            aligner(by)(replace(pair, settings=Settings(basis=basis)))(frozenset(pair.kinds()))
    assert len(seen) == runs


def test_what_is_computed_from_other_tensors_is_not_shared() -> None:
    pair = replace(bert(), shared=Shared())
    assert pair.once("key", lambda: 1) == 1
    assert pair.once("key", lambda: 2) == 1
    assert replace(pair, b=dict(pair.b)).once("key", lambda: 2) == 2
    assert replace(pair, batches=pair.batches[:1]).once("key", lambda: 3) == 3
