"""Match quality: a planted alignment scores 1, a random one what chance makes, and neither is said to be the other."""

from __future__ import annotations

import itertools
import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from contracts.test_aligners import make_pair
from families import CASES, FAMILIES, UNLIKE, canonical_tensors, inputs, joined, written_name
from families_more import CASES as UNUSUAL
from quick import quick_on
from random_transforms import random_transform

from merge.alignment.evidence import similarity
from merge.alignment.evidence.chance import (
    DRAWS,
    MAX_EXACT,
    RandomElements,
    random_elements,
    random_scores,
    shuffled_score,
)
from merge.alignment.evidence.distance import distance
from merge.alignment.evidence.quality import AxisQuality, Quality, match_quality
from merge.alignment.matchers import aligner
from merge.alignment.pair import Alignment, Pair
from merge.alignment.solvers.moments import unit_correlations
from merge.checkpoints.structure import structure_of
from merge.errors import AlignmentError
from merge.publish.alignment_plot import kind_of, save_alignment_plot
from merge.symmetry.architectures import spec_for
from merge.symmetry.notation import contiguous
from merge.symmetry.permutation import apply, identity, inverse, random, restrict
from merge.symmetry.transform import Transform, apply_transform

LLAMA = UNUSUAL["LlamaForSequenceClassification"]


def planted(seed: int | None = 1, noise: float = 0.0, other: int = 0, text: bool = True) -> tuple[Pair, Any]:
    pair, wanted = make_pair("BertForSequenceClassification", seed, noise, other)
    few = [{name: tensor[:5] for name, tensor in batch.items()} for batch in pair.batches]  # all are read
    return replace(pair, batches=joined(few, 3) if text else ()), wanted


def as_alignment(pair: Pair, permutation: Any, **maps: Any) -> Alignment:
    return Alignment(permutation, pair.kinds(), (), **maps)


@pytest.mark.parametrize("text", [True, False])
def test_a_planted_alignment_scores_one_and_no_random_element_comes_near(text: bool) -> None:
    """Every unit meets its own twin: p is as small as so many draws can say. Unaligned, the same pair claims nothing."""
    pair, wanted = planted(text=text)
    found = match_quality(pair, as_alignment(pair, wanted))
    assert {one.axis for one in found.axes} == {
        "residual", "pooler", *(f"heads{i} {x}{i}" for i in (0, 1) for x in ("qk", "v")), "ffn0", "ffn1",
    }  # fmt: skip
    for one in found.axes:
        assert one.score == pytest.approx(1, abs=1e-4)
        assert one.p == 1 / (DRAWS + 1)
        assert one.shuffled < 0.85
        assert one.claims
    assert found.notes == ()
    assert found.distance[1] < 1e-6 < 0.5 < found.distance[0]
    nothing = match_quality(pair, as_alignment(pair, identity(pair.spec, pair.shapes)))
    assert not any(one.claims for one in nothing.kinds())
    assert "residual" in nothing.notes[0]
    assert "no more alike than random" in nothing.notes[0]
    assert nothing.distance[0] == nothing.distance[1] == found.distance[0]


@pytest.mark.slow
@pytest.mark.parametrize("text", [True, False])
def test_the_p_of_random_alignments_is_that_of_chance(text: bool) -> None:
    """Eight random elements: p is spread over (0, 1], so that it is small about as often as it should be."""
    pair, _ = planted(text=text)
    pair = replace(pair, batches=pair.batches[:3])
    values = []
    for seed in range(8):
        drawn = random(pair.spec, pair.shapes, torch.Generator().manual_seed(100 + seed))
        found = match_quality(pair, as_alignment(pair, drawn))
        values += [one.p for one in found.axes if one.axis in ("residual", "ffn0")]
    assert 0.3 < np.mean(values) < 0.7
    assert np.mean(np.array(values) <= 0.05) < 0.3


def every_order(names: tuple[str, ...], shape: tuple[int, ...]) -> list[list[int]]:
    """Return the place that every unit takes, in every element: blocks move whole, units inside their block."""
    blocks = list(itertools.permutations(range(shape[0])))
    if len(shape) == 1:
        return [list(order) for order in blocks]
    inner = list(itertools.permutations(range(shape[1]))) if names[1] != "-" else [tuple(range(shape[1]))]
    return [
        [shape[1] * block + place for block, inside in zip(order, insides, strict=True) for place in inside]
        for order in blocks
        for insides in itertools.product(inner, repeat=shape[0])
    ]


SMALL_GROUPS = [
    (("heads0",), (1,)),
    (("heads0",), (2,)),
    (("heads0",), (3,)),
    (("heads0",), (4,)),
    (("ffn0",), (6,)),
    (("heads0", "-"), (3, 4)),
    (("heads0", "-"), (4, 2)),
    (("heads0", "qk0"), (2, 2)),
    (("heads0", "qk0"), (3, 2)),
    (("heads0", "qk0"), (2, 3)),
]


@pytest.mark.parametrize(("names", "shape"), SMALL_GROUPS)
def test_of_few_orders_all_are_counted(names: tuple[str, ...], shape: tuple[int, ...]) -> None:
    """Written out by itertools: the p of an order is then its exact share, not that of so many draws."""
    units = int(np.prod(shape))
    scores = torch.rand(units, units, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    elements, exact = random_elements(contiguous(names, shape), torch.Generator())
    found = random_scores(scores, elements)
    table = scores.numpy()
    expected = [np.mean([table[i, j] for i, j in enumerate(order)]) for order in every_order(names, shape)]
    assert exact
    assert len(found) == len(expected) <= MAX_EXACT
    assert np.allclose(np.sort(found.numpy()), np.sort(expected), rtol=0, atol=1e-12)


def test_of_many_orders_some_are_drawn() -> None:
    for names, shape in ((("ffn0",), (7,)), (("heads0", "qk0"), (3, 4)), (("heads0", "-"), (7, 2))):
        drawn, exact = random_elements(contiguous(names, shape), torch.Generator().manual_seed(0))
        assert (len(drawn), exact) == (DRAWS, False)
        assert drawn.sort(1).values.equal(torch.arange(int(np.prod(shape))).repeat(DRAWS, 1))


def test_layers_of_one_shape_share_their_random_elements() -> None:
    random = RandomElements(torch.Generator().manual_seed(0))
    first, second = (random.of(contiguous((f"heads{k}", f"qk{k}"), (3, 4)))[0] for k in (0, 1))
    blocks, other = (random.of(contiguous(*args))[0] for args in ((("heads0", "-"), (3, 4)), (("ffn0",), (12,))))
    assert first is second
    assert not any(first.shape == x.shape and first.equal(x) for x in (blocks, other))


@pytest.mark.parametrize("heads", [1, 2, 3, 4, 5, 6])
def test_exactly_found_units_are_never_called_random(heads: int) -> None:
    """Three units or fewer cannot show it: the best of six orders comes up by chance once in six."""
    scores = torch.eye(heads, dtype=torch.float64)
    elements, exact = random_elements(contiguous(("heads0",), (heads,)), torch.Generator())
    drawn = random_scores(scores, elements)
    assert exact
    p = float((drawn >= 1).double().mean())
    assert p == pytest.approx(1 / math.factorial(heads), abs=1e-12)
    axis = AxisQuality("heads0", "heads", 0, heads, 1.0, 1 / heads, p, 0.5, 0.0, smallest_p=1 / len(drawn))
    (note,) = Quality("cosine of weights", (axis,), {"heads": "permutation"}, (1.0, 0.0)).notes or ("",)
    assert "no more alike than random" not in note
    assert ("too few units to tell" in note) == (heads <= 3)
    assert axis.claims == (heads > 3)
    if heads == 3:
        assert "heads (p is at least 0.17)" in note
    wrong = replace(axis, p=0.5, score=0.1, smallest_p=1 / 720)
    (note,) = Quality("cosine of weights", (wrong,), {"heads": "permutation"}, (1.0, 0.0)).notes
    assert "no more alike than random" in note


def test_matching_alone_is_no_correspondence() -> None:
    """Two unrelated models, matched: far above random units, as any maximum is, but not above that of shuffled scores."""
    pair, _ = planted(seed=None, other=5)
    found = match_quality(pair, aligner("activations")(pair)(frozenset(pair.kinds())))
    for one in found.kinds():
        assert one.p == 1 / (DRAWS + 1)
        assert one.score > one.random + 0.05
        assert not one.claims
    assert ["same scores in random order" in note for note in found.notes] == [True]


def test_scores_are_correlations_of_matched_units_and_shares_those_that_stay() -> None:
    """By numpy from the correlations of a with b as it was, read through the permutation."""
    pair, wanted = planted(noise=0.3)
    found = {one.axis: one for one in match_quality(pair, as_alignment(pair, wanted)).axes}
    views = {view.names: correlation.numpy() for view, correlation in unit_correlations(pair).items()}
    index = wanted.indices["ffn1"].numpy()
    expected = views["ffn1",][np.arange(40), index].mean()
    assert found["ffn1"].score == pytest.approx(expected, abs=1e-5)
    assert found["ffn1"].in_place == np.mean(index == np.arange(40))
    blocks, inner = wanted.indices["heads0"].numpy(), wanted.indices["v0"].numpy()
    units = (6 * blocks[:, None] + inner).reshape(-1)
    assert found["heads0 v0"].score == pytest.approx(views["heads0", "v0"][np.arange(24), units].mean(), abs=1e-5)
    assert found["heads0 v0"].in_place == np.mean(units == np.arange(24))
    assert found["ffn1"].score < 0.99


@pytest.mark.parametrize("chunk", [200, 1 << 17])
def test_weights_are_compared_by_the_cosine_of_all_weights_of_a_unit(
    chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a feed-forward unit: its row, its bias and its column, each tensor scaled to a root mean square of one.

    However few entries of the columns are taken at a time.
    """
    monkeypatch.setattr(similarity, "CHUNK", chunk)
    pair, _ = planted(seed=None, other=5, text=False)
    found = {one.axis: one for one in match_quality(pair, as_alignment(pair, identity(pair.spec, pair.shapes))).axes}
    sides = []
    for tensors in (pair.a, pair.b):
        parts = []
        for name, columns in (
            ("intermediate.dense.weight", False),
            ("intermediate.dense.bias", False),
            ("output.dense.weight", True),
        ):
            tensor = tensors[f"bert.encoder.layer.1.{name}"].double().numpy()
            tensor = tensor - tensor.mean() if tensor.ndim == 1 else tensor
            tensor = tensor / np.sqrt((tensor**2).mean())
            parts.append(tensor.T if columns else tensor.reshape(len(tensor), -1))
        sides.append(np.concatenate(parts, 1))
    a, b = (side / np.linalg.norm(side, axis=1, keepdims=True) for side in sides)
    assert found["ffn1"].score == pytest.approx((a * b).sum(1).mean(), abs=1e-6)


def apart(pair: Pair, b: Any) -> tuple[float, float]:
    """Return the distance of a and b, and that of their weights as they stand, in numpy."""
    names = [name for name, tensor in pair.a.items() if tensor.is_floating_point()]
    one, other = (np.concatenate([side[n].double().numpy().reshape(-1) for n in names]) for side in (pair.a, b))
    return distance(pair, pair.a, b), float(np.linalg.norm(one - other) / np.linalg.norm(one))


def test_what_no_output_shows_is_no_distance() -> None:
    """Key biases: softmax cancels them. A value bias is read behind the heads, and counts; so does a query bias."""
    pair, _ = planted(seed=None, text=False)
    found = {}
    for word in ("key", "value", "query"):
        name = f"bert.encoder.layer.0.attention.self.{word}.bias"
        found[word] = apart(pair, {**pair.a, name: pair.a[name] + 1})
    assert found["key"][0] < 1e-6
    assert min(found["value"][0], found["query"][0]) > 0.05
    assert min(raw for _, raw in found.values()) > 0.05


@pytest.mark.parametrize("seed", range(3))
def test_bases_inside_heads_are_no_distance(seed: int) -> None:
    """b is a behind a random invertible map in every head, which moves its weights far."""
    pair, _ = planted(seed=None, text=False)
    drawn = random_transform(pair.spec, pair.shapes, torch.Generator().manual_seed(seed))
    inside = {axis: mapped for axis, mapped in drawn.maps.items() if axis.startswith(("qk", "v"))}
    assert len(inside) == 4
    found, raw = apart(pair, apply_transform(pair.spec, Transform(identity(pair.spec, pair.shapes), inside), pair.a))
    assert found < 1e-5
    assert raw > 0.1


def test_scales_that_two_factors_share_otherwise_are_no_distance() -> None:
    """Three times the queries and a third of the keys; of a gated unit, any factor of what it reads over what it writes."""
    structure = structure_of(LLAMA)
    a = canonical_tensors(LLAMA, 0, torch.float32)
    pair = Pair(spec_for(LLAMA), a, a, LLAMA, lambda name: written_name(structure, name))
    generator = torch.Generator().manual_seed(0)
    scales = {f"ffn{i}": torch.randn(40, generator=generator, dtype=torch.float64).exp() for i in range(2)}
    bert, _ = planted(seed=None, text=False)
    for one, queries, keys in ((pair, "q_proj", "k_proj"), (bert, "self.query", "self.key")):
        found, raw = apart(one, {n: t * (3 if queries in n else 1 / 3 if keys in n else 1) for n, t in one.a.items()})
        assert found < 1e-5
        assert raw > 0.1
        assert apart(one, {n: t * (3 if queries in n else 1) for n, t in one.a.items()})[0] > 0.1
    found, raw = apart(pair, apply_transform(pair.spec, Transform(identity(pair.spec, pair.shapes), scales), a))
    assert found < 1e-5
    assert raw > 0.1
    turned = {axis: torch.where(torch.arange(40) % 2 == 0, scale, -scale) for axis, scale in scales.items()}
    signed = apply_transform(pair.spec, Transform(identity(pair.spec, pair.shapes), turned), a)
    assert apart(pair, signed)[0] > 0.1


def test_another_order_is_a_distance() -> None:
    """It is what an alignment finds: of feed-forward units as far as their weights as they stand, and undone nothing."""
    pair, _ = planted(seed=None, text=False)
    drawn = random(pair.spec, pair.shapes, torch.Generator().manual_seed(0))
    moved = restrict(drawn, {"ffn0", "ffn1"})
    b = apply(pair.spec, moved, pair.a)
    found, raw = apart(pair, b)
    assert found == pytest.approx(raw, rel=0.1)
    assert raw > 0.5
    assert apart(pair, apply(pair.spec, inverse(moved), b))[0] < 1e-6


def test_a_reference_of_zeros_is_refused() -> None:
    """There is nothing to measure a distance in; one weight is enough."""
    pair, _ = planted(seed=None, text=False)
    nothing = {name: torch.zeros_like(tensor) for name, tensor in pair.a.items()}
    still = as_alignment(pair, identity(pair.spec, pair.shapes))
    with pytest.raises(AlignmentError, match="every weight of the reference is zero"):
        match_quality(replace(pair, a=nothing), still)
    one = {**nothing, "classifier.weight": torch.ones_like(pair.a["classifier.weight"])}
    assert match_quality(replace(pair, a=one), still).distance[0] > 1


def test_where_maps_act_chance_may_turn_too() -> None:
    """The best rotation of numbers without meaning: their singular values' mean, by numpy over other shuffles.

    More than the best order makes of them, which is one rotation among all.
    """
    scores = torch.randn(24, 24, generator=torch.Generator().manual_seed(0))
    view, generator = contiguous(("ffn0",), (24,)), np.random.default_rng(1)
    shuffles = [generator.permutation(scores.double().numpy().reshape(-1)).reshape(24, 24) for _ in range(200)]
    expected = np.mean([np.linalg.svd(one, compute_uv=False).mean() for one in shuffles])
    found = {}
    for turned in (True, False):
        draws = [shuffled_score(view, scores, turned, torch.Generator().manual_seed(seed)) for seed in range(100)]
        found[turned] = np.mean(draws)
    assert found[True] == pytest.approx(expected, rel=0.01)
    assert found[True] > 1.5 * found[False]


def test_maps_are_taken_along() -> None:
    """b is a behind signs and maps inside heads: with them every unit correlates with itself again, without them not."""
    pair, _ = planted(seed=None)
    drawn = random_transform(pair.spec, pair.shapes, torch.Generator().manual_seed(4))
    still = identity(pair.spec, pair.shapes)
    maps = {axis: mapped for axis, mapped in drawn.maps.items() if axis in ("qk0", "v1", "pooler")}
    pair = replace(pair, a=apply_transform(pair.spec, Transform(still, maps), pair.b))
    found = match_quality(pair, as_alignment(pair, still, maps=maps))
    assert all(one.score == pytest.approx(1, abs=1e-3) for one in found.axes)
    assert found.groups["heads"] == "linear maps"
    assert found.groups["pooler"] == "signs"
    assert found.groups["ffn"] == "nothing"
    without = {one.axis: one.score for one in match_quality(pair, as_alignment(pair, still)).axes}
    assert max(without["heads0 qk0"], without["pooler"]) < 0.9
    assert without["ffn0"] == pytest.approx(1, abs=1e-3)
    both = match_quality(replace(pair, a=pair.b, b=pair.a), as_alignment(pair, still, reference_maps=maps))
    assert all(one.score == pytest.approx(1, abs=1e-3) for one in both.axes)


@pytest.mark.parametrize("text", [True, False])
@pytest.mark.parametrize("model_type", quick_on(UNLIKE, FAMILIES))
def test_every_family_is_measured(model_type: str, text: bool) -> None:
    """A planted element of each scores 1 on every axis that is seen, with text and without."""
    config = next(config for config in CASES.values() if config["model_type"] == model_type)
    structure, spec, a = structure_of(config), spec_for(config), canonical_tensors(config, 0, torch.float32)
    batches = joined([batch for seed in range(4) for batch in inputs(config, seed)]) if text else ()
    pair = Pair(spec, a, a, config, lambda name: written_name(structure, name), batches)
    drawn = random(spec, pair.shapes, torch.Generator().manual_seed(1))
    pair = replace(pair, a=apply(spec, drawn, a))
    found = match_quality(pair, as_alignment(pair, drawn))
    assert {one.kind for one in found.axes} == set(pair.kinds())
    assert all(one.score == pytest.approx(1, abs=1e-3) for one in found.axes)
    assert json.loads(json.dumps(found.to_json(), allow_nan=False)) == found.to_json()


def test_a_rerun_says_the_same_and_another_seed_draws_other_elements() -> None:
    pair, wanted = planted(noise=0.3)
    one, again = (match_quality(pair, as_alignment(pair, wanted)).to_json() for _ in range(2))
    assert one == again
    other = replace(pair, settings=replace(pair.settings, seed=1))
    assert match_quality(other, as_alignment(other, wanted)).to_json() != one


def test_the_table_has_a_row_for_each_kind() -> None:
    pair, wanted = planted()
    lines = match_quality(pair, as_alignment(pair, wanted)).table()
    assert [line.split()[0] for line in lines[1:-1]] == list(pair.kinds())
    assert "activation correlation" in lines[0]
    assert all(" 1.000 " in line and "permutation" in line for line in lines[1:-1])


@pytest.mark.slow
def test_the_plot_is_the_same_for_the_same_figures(tmp_path: Path) -> None:
    """Deterministic bytes, so that a repeated run has the same hashes; other figures make another picture."""
    pair, wanted = planted()
    quality = match_quality(pair, as_alignment(pair, wanted)).to_json()
    record = {"model": "b$", "reference": "a", "by": "weights", "quality": quality}
    drawn = []
    for name, records in (("one", [record]), ("again", [record]), ("two", [record, record])):
        (tmp_path / name).mkdir()
        save_alignment_plot(tmp_path / name, records)
        drawn.append((tmp_path / name / "alignment.png").read_bytes())
    assert drawn[0] == drawn[1] != drawn[2]
    assert drawn[0].startswith(b"\x89PNG")
    assert b"Software" not in drawn[0]
    assert [kind_of(axis) for axis in ("heads10 qk10", "ffn3", "residual")] == ["heads qk", "ffn", "residual"]
