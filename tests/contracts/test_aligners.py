"""The battery every aligner faces: a planted element is found again, and what it finds keeps the function."""

from __future__ import annotations

from collections.abc import Container, Sequence
from dataclasses import replace
from functools import cache
from importlib import import_module
from itertools import pairwise, product
from typing import Any

import pytest
import torch
from families import CASES, FAMILIES, canonical_tensors, inputs, joined, written_name
from families_more import CASES as UNUSUAL_CASES
from quick import quick_on
from tiny import bert_config, random_tensors

from merge.alignment.evidence.proof import prove
from merge.alignment.matchers import ALIGNERS, OPTIONS, PAIRWISE, aligner
from merge.alignment.pair import Alignment, Matcher, Pair, Settings
from merge.checkpoints.inputs import random_inputs
from merge.checkpoints.structure import structure_of
from merge.errors import AlignmentError, UsageError
from merge.symmetry.architectures import spec_for
from merge.symmetry.permutation import apply, identity, inverse, random, restrict

UNUSUAL = tuple(dict.fromkeys(str(config["model_type"]) for config in UNUSUAL_CASES.values()))
# In standard deviations of each tensor: half of one leaves the weights alike, but not what the model computes; 0.1 by default.
# What annealing looks for is the best midpoint, and of jittered models that need not be where the units were.
NOISE = {"weights": 0.5, "annealing": 0.0}
# Of those that descend or swap: enough here, and quick.
STEPS = 10
HEADS = ["BertForSequenceClassification", "BertModel", "BertForMaskedLM", "BertForTokenClassification"]


def make_pair(
    architecture: str, planted_seed: int | None, noise: float = 0.0, other_seed: int = 0, **changes: Any
) -> tuple[Pair, Any]:
    """Return a pair whose b is a, re-based by a random element and jittered; and the element that brings it back."""
    config = bert_config(architecture, **changes)
    base_model = architecture == "BertModel"

    def tensors(seed: int) -> dict[str, torch.Tensor]:
        drawn = random_tensors(config, seed, torch.float32)
        return {f"bert.{name}": t for name, t in drawn.items()} if base_model else drawn

    a, b, spec = tensors(0), tensors(other_seed), spec_for(config)
    shapes = {name: tuple(t.shape) for name, t in a.items()}
    generator = torch.Generator().manual_seed(11)
    b = {
        name: t + noise * t.std() * torch.randn(t.shape, generator=generator) if t.numel() > 1 else t
        for name, t in b.items()
    }
    planted = identity(spec, shapes)
    if planted_seed is not None:
        drawn = random(spec, shapes, torch.Generator().manual_seed(planted_seed))
        planted = restrict(drawn, set(drawn.indices) - spec.named)
    batches = joined([batch for seed in range(16) for batch in random_inputs(config, seed)], 8)

    def written(name: str) -> str:
        return name.removeprefix("bert.") if base_model else name

    pair = Pair(spec, a, apply(spec, planted, b), config, written, batches, settings=Settings(steps=STEPS))
    return pair, inverse(planted)


@cache
def matcher(
    by: str, architecture: str, planted_seed: int | None, noise: float, other_seed: int
) -> tuple[Pair, Matcher]:
    """Return a pair and the aligner on it, which measures activations once for all that is asked of it."""
    pair, _ = make_pair(architecture, planted_seed, noise, other_seed)
    pair = replace(pair, batches=joined(pair.batches))
    return pair, aligner(by)(pair)


@cache
def aligned(
    by: str, planted_seed: int | None, other_seed: int = 0, architecture: str = HEADS[0], noise: float = 0.0
) -> tuple[Pair, Alignment]:
    """Return a pair and what an aligner finds over all its axes, once for all tests that look at it."""
    pair, match = matcher(by, architecture, planted_seed, noise, other_seed)
    return pair, match(frozenset(pair.kinds()))


# These search longer than they match; what they find is quick on one head.
SEARCHES = ("annealing", "frank-wolfe", "activations+weights")
# What these find costs half a second and more: one head, and in `make check` all.
COSTLY = ("annealing", "activations", "activations+weights")


def quick(cases: Sequence[tuple[str, ...]], costly: Container[str], few: Container[str]) -> list[Any]:
    """Return (aligner, case, ...) as parameters: a costly aligner is quick on few of the cases alone."""
    return [pytest.param(*c, marks=pytest.mark.slow if c[0] in costly and c[1] not in few else ()) for c in cases]


# `learned` puts maps behind what another one found and moves no unit itself: tests/merge/alignment/matchers/test_learned.py.
MATCHERS = [name for name in PAIRWISE if name != "learned"]


@pytest.fixture(params=quick_on([name for name in MATCHERS if name not in SEARCHES], MATCHERS))
def by(request: pytest.FixtureRequest) -> str:
    return str(request.param)


# A head brings its tensors and its taps, which these two read; the others match the same gains in other ways.
ON_HEADS = [*product(MATCHERS, HEADS[:1]), *product(("weights", "activations"), HEADS[1:])]


def same(left: Any, right: Any) -> bool:
    return all(torch.equal(left.indices[axis], right.indices[axis]) for axis in right.indices)


@pytest.mark.parametrize("jittered", [False, True])
@pytest.mark.parametrize(("by", "architecture"), quick(ON_HEADS, COSTLY, HEADS[:1]))
def test_a_planted_element_is_recovered_heads_included(by: str, architecture: str, jittered: bool) -> None:
    """The answer is known: the inverse of what was planted, on every axis, also when b was jittered."""
    noise = NOISE.get(by, 0.1) if jittered else 0.0
    _, wanted = make_pair(architecture, planted_seed=1, noise=noise)
    _, found = aligned(by, 1, architecture=architecture, noise=noise)
    assert same(found.permutation, wanted)
    assert not wanted.is_identity


@pytest.mark.parametrize("model_type", [*FAMILIES, *UNUSUAL])
def test_weights_find_a_planted_element_of_every_family_in_noise(model_type: str) -> None:
    """Every unit of every axis, though half a standard deviation of noise lies on every tensor of b."""
    usual = model_type in FAMILIES
    config = next(c for c in (CASES if usual else UNUSUAL_CASES).values() if c["model_type"] == model_type)
    spec, a = spec_for(config), canonical_tensors(config, 0, torch.float32)
    drawn = random(spec, {name: tuple(t.shape) for name, t in a.items()}, torch.Generator().manual_seed(1))
    planted = restrict(drawn, set(drawn.indices) - spec.named)
    generator = torch.Generator().manual_seed(2)
    noisy = {
        n: t + 0.5 * t.std() * torch.randn(t.shape, generator=generator) if t.numel() > 1 else t for n, t in a.items()
    }
    pair = Pair(spec, a, apply(spec, planted, noisy), config, str)
    found = aligner("weights")(pair)(frozenset(pair.kinds()))
    wrong = {x: int((found.permutation.indices[x] != i).sum()) for x, i in inverse(planted).indices.items()}
    assert not any(wrong.values()), wrong
    assert not planted.is_identity
    assert found.objective[0] < 0.5 < found.objective[-1] < 0.95


# A family brings its table and its taps. Weights meet them on every family in the test above, activations on every one in
# test_planted_transforms.py, and both are proved on every family in test_family_table.py. What a matcher makes of gains
# does not depend on the family: each meets families of three kinds here, and each other family one of them in turn.
UNLIKE = ("bert", "albert", "mpnet")
REST = [family for family in FAMILIES if family not in UNLIKE]
IN_TURN = [(MATCHERS[k % len(MATCHERS)], family) for k, family in enumerate(REST)]
MET = [*product(MATCHERS, UNLIKE), *IN_TURN]


@pytest.mark.parametrize(("by", "model_type"), quick(MET, [n for n in MATCHERS if n != "weights"], UNLIKE[:1]))
def test_a_planted_element_is_recovered_in_families_of_each_kind(by: str, model_type: str) -> None:
    """Every axis of a family is seen by an aligner; what it finds is proved on the model itself."""
    config = next(config for config in CASES.values() if config["model_type"] == model_type)
    structure, spec, a = structure_of(config), spec_for(config), canonical_tensors(config, 0, torch.float32)
    drawn = random(spec, {name: tuple(t.shape) for name, t in a.items()}, torch.Generator().manual_seed(1))
    planted = restrict(drawn, set(drawn.indices) - spec.named)
    batches = joined([batch for seed in range(10) for batch in inputs(config, seed)])
    pair = Pair(spec, a, apply(spec, planted, a), config, lambda name: written_name(structure, name), batches)
    found = aligner(by)(pair)(frozenset(pair.kinds()))
    assert found.objective[-1] == pytest.approx(1.0, abs=1e-4)
    assert found.objective[0] < 0.5
    assert same(found.permutation, inverse(planted))
    assert all(moved for axis, (moved, _) in planted.moved().items() if axis not in spec.named)
    assert prove(pair, apply(spec, found.permutation, pair.b), found.permutation, batches).error < 1e-9


def test_a_model_aligned_to_itself_does_not_move(by: str) -> None:
    assert aligned(by, None)[1].permutation.is_identity


def test_the_objective_never_decreases_and_is_one_on_a_planted_copy(by: str) -> None:
    """It is normalised: 1 says that every unit found its own twin."""
    objective = aligned(by, 1)[1].objective
    assert all(later >= earlier for earlier, later in pairwise(objective))
    assert all(later > earlier for earlier, later in pairwise(objective[1:]))
    assert objective[-1] == pytest.approx(1.0, abs=1e-5)


def test_two_unrelated_models_match_better_than_chance_and_b_stays_itself(by: str) -> None:
    """Independent weights correlate with nothing until they are matched; whatever is found keeps b's function."""
    pair, found = aligned(by, None, other_seed=5)
    assert found.objective[-1] > 0.08
    assert prove(pair, apply(pair.spec, found.permutation, pair.b), found.permutation, pair.batches).error < 1e-9


def test_only_the_kinds_asked_for_move(by: str) -> None:
    pair, match = matcher(by, HEADS[0], None, 0.0, 5)
    found = match(frozenset({"ffn"}))
    moved = {pair.spec.kind(axis) for axis, (count, _) in found.permutation.moved().items() if count}
    assert moved == {"ffn"}
    assert found.kinds == ("ffn",)


def test_labels_never_move_by_matching(by: str) -> None:
    """Their order is given by names."""
    pair, found = aligned(by, 1)
    assert found.permutation.indices["labels"].tolist() == [0, 1, 2]
    assert "labels" not in pair.kinds()


def test_an_unknown_kind_is_an_error_that_lists_those_there_are(by: str) -> None:
    _, match = matcher(by, HEADS[0], 1, 0.0, 0)
    with pytest.raises(UsageError, match="no axes 'ffnn'. Did you mean 'ffn'.* Known: ffn, heads, pooler, residual"):
        match(frozenset({"ffnn"}))


def test_the_same_pair_gives_the_same_permutation(by: str) -> None:
    pair, first = aligned(by, None, other_seed=5)
    second = aligner(by)(pair)(frozenset(pair.kinds()))
    assert same(first.permutation, second.permutation)
    assert first.objective == second.objective


def test_axes_come_in_the_order_of_the_table() -> None:
    """Floating-point sums over them end up in the manifest, and the order of a set changes from process to process."""
    pair, _ = make_pair("BertForSequenceClassification", planted_seed=None)
    assert pair.axes_of(frozenset({"pooler", "ffn", "residual"})) == ("residual", "ffn0", "ffn1", "pooler")
    assert pair.axes_of(frozenset(pair.kinds())) == pair.movable


def test_an_unknown_aligner_is_an_error_that_names_the_nearest() -> None:
    with pytest.raises(UsageError, match="Did you mean 'activations'"):
        aligner("activatons")


def test_every_function_of_the_table_is_there() -> None:
    """They are named by strings, which no type checker reads; every aligner aligns pairs or many models, not both."""
    for entry in ALIGNERS.values():
        assert (entry.function is None) != (entry.joint is None)
        for path in filter(None, (entry.function, entry.with_maps, entry.joint)):
            module, function = path.split(":")
            assert callable(getattr(import_module(f"merge.alignment.matchers.{module}"), function))
        assert set(entry.options) <= set(OPTIONS)
    assert set(ALIGNERS) - set(PAIRWISE) == {"universe"}


def test_an_aligner_of_many_models_takes_no_single_pair_and_the_other_way_round() -> None:
    pair, _ = make_pair("BertForSequenceClassification", planted_seed=None)
    with pytest.raises(UsageError, match="universe aligns many models at once"):
        aligner("universe")(pair)
    with pytest.raises(UsageError, match="weights aligns one pair at a time"):
        aligner("weights").align_jointly([pair], frozenset(pair.kinds()))


def test_the_proof_fails_when_one_axis_of_one_tensor_is_left_behind() -> None:
    """The negative control of the proof: a table with one wrong line must not pass."""
    pair, back = make_pair("BertForSequenceClassification", planted_seed=7)
    aligned = apply(pair.spec, back, pair.b)
    assert prove(pair, aligned, back, pair.batches).error < 1e-9
    name = "bert.encoder.layer.1.attention.output.dense.weight"
    with pytest.raises(AlignmentError, match="is not the model it was"):
        prove(pair, aligned | {name: pair.b[name]}, back, pair.batches)
