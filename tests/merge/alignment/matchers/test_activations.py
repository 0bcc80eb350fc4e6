"""Activation matching: streamed correlations, and what does not count."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from contracts.test_aligners import make_pair
from families import CASES, canonical_tensors, written_name
from families_more import CASES as UNUSUAL
from quick import quick_on

from merge.alignment.matchers import activations, aligner
from merge.alignment.matchers.activations import match_activations
from merge.alignment.pair import Pair, Settings
from merge.alignment.solvers import moments as moments_module
from merge.alignment.solvers.assignment import match_axis
from merge.alignment.solvers.cross_moments import CrossMoments
from merge.alignment.solvers.moments import collect
from merge.alignment.solvers.silent import _silent
from merge.checkpoints.inputs import random_inputs
from merge.checkpoints.structure import structure_of
from merge.errors import AlignmentError
from merge.symmetry.architectures import spec_for
from merge.symmetry.permutation import apply, inverse, random, restrict


def test_streamed_moments_give_pearson_correlations() -> None:
    """Against numpy on all rows at once, in uneven batches, far from the origin where sums of squares cancel."""
    generator = torch.Generator().manual_seed(0)
    a = 50 + torch.randn(1000, 5, generator=generator)
    b = a @ torch.randn(5, 7, generator=generator) - 30 + torch.randn(1000, 7, generator=generator)
    sums = CrossMoments()
    for start, end in ((0, 3), (3, 400), (400, 401), (401, 1000)):
        sums.add(a[start:end], b[start:end])
    expected = np.corrcoef(a.double().numpy().T, b.double().numpy().T)[:5, 5:]
    assert np.abs(sums.correlation().numpy() - expected).max() < 1e-5


def test_a_unit_that_never_varies_correlates_with_nothing() -> None:
    """Not NaN, and not noise divided by almost nothing."""
    generator = torch.Generator().manual_seed(1)
    a, b = torch.randn(200, 3, generator=generator), torch.randn(200, 3, generator=generator)
    a[:, 1] = 4.0
    sums = CrossMoments()
    sums.add(a, b)
    correlation = sums.correlation()
    assert correlation[1].abs().max() == 0
    assert correlation[0].abs().min() > 0


def test_padding_is_masked_out() -> None:
    """What stands on padded places changes nothing; what stands on real places does (the negative control)."""
    pair, _ = make_pair("BertForSequenceClassification", planted_seed=2)
    batches = pair.batches[:3]

    def correlations(place: slice) -> torch.Tensor:
        changed = []
        for batch in batches:
            ids = batch["input_ids"].clone()
            ids[::2, place] = (ids[::2, place] + 1) % 18
            changed.append({**batch, "input_ids": ids})
        return collect(replace(pair, batches=tuple(changed)))["ffn0"][0].correlation()

    plain = collect(replace(pair, batches=batches))["ffn0"][0].correlation()
    assert batches[0]["attention_mask"][0, -6:].sum() == 0
    assert torch.allclose(correlations(slice(-6, None)), plain, atol=1e-5)
    assert not torch.allclose(correlations(slice(0, 6)), plain, atol=1e-2)


@pytest.mark.slow
def test_the_order_of_batches_hardly_matters_and_a_rerun_is_identical() -> None:
    """Sums are in float64: another order of the same rows gives the same correlations to rounding."""
    pair, _ = make_pair("BertForSequenceClassification", planted_seed=2)
    one, again = (collect(pair)["residual"][2].correlation() for _ in range(2))
    turned = collect(replace(pair, batches=pair.batches[::-1]))["residual"][2].correlation()
    assert torch.equal(one, again)
    assert torch.allclose(one, turned, atol=1e-6)


def test_without_text_there_is_nothing_to_compare() -> None:
    pair, _ = make_pair("BertForSequenceClassification", planted_seed=2)
    with pytest.raises(AlignmentError, match="needs calibration text"):
        match_activations(replace(pair, batches=()))


def test_gains_of_an_axis_reach_the_assignment_as_they_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """In float32: a copy would take twice their memory, and the assignment itself adds in float64."""
    pair, back = make_pair("BertForSequenceClassification", planted_seed=2)
    seen: list[torch.dtype] = []

    def watched(gain: torch.Tensor) -> torch.Tensor:
        seen.append(gain.dtype)
        return match_axis(gain)

    monkeypatch.setattr(activations, "match_axis", watched)
    found = match_activations(pair)(frozenset(pair.kinds()))
    assert all(torch.equal(found.permutation.indices[axis], back.indices[axis]) for axis in back.indices)
    assert len(seen) > 2
    assert set(seen) == {torch.float32}


def test_what_a_model_later_does_to_an_activation_in_place_is_not_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    """Both models wipe what the feed-forward output has read, once it has: correlations are those of what it read."""
    pair, _ = make_pair("BertForSequenceClassification", planted_seed=2)
    pair = replace(pair, batches=pair.batches[:6])
    plain = collect(pair)["ffn0"][0].correlation()
    made = Pair.model

    def wipe(_module: torch.nn.Module, inputs: tuple[torch.Tensor, ...], _output: torch.Tensor) -> None:
        inputs[0].zero_()

    def wiping(*args: object, **kwargs: object) -> torch.nn.Module:
        model = made(*args, **kwargs)  # type: ignore[arg-type]
        dense = model.get_submodule("bert.encoder.layer.0.output.dense")
        dense.register_forward_hook(wipe)
        return model

    monkeypatch.setattr(Pair, "model", wiping)
    assert torch.equal(collect(pair)["ffn0"][0].correlation(), plain)


def test_batches_are_run_in_parts_that_leave_no_text_out() -> None:
    """Forty-one texts of thirty tokens by eight; where a batch holds something else too, it is run as it is."""
    ids = torch.arange(1230).reshape(41, 30)
    parts = list(moments_module._parts({"input_ids": ids, "attention_mask": torch.ones_like(ids)}))
    assert [len(part["input_ids"]) for part in parts] == [8, 8, 8, 8, 8, 1]
    assert all(part["attention_mask"].shape == part["input_ids"].shape for part in parts)
    assert torch.equal(torch.cat([part["input_ids"] for part in parts]), ids)
    images = {"input_ids": ids, "pixel_values": torch.zeros(3, 3, 8, 8)}
    assert list(moments_module._parts(images)) == [images]


@pytest.mark.parametrize(("name", "passes"), [("AlbertForSequenceClassification", 2), ("albert in one group", 3)])
def test_layers_that_share_weights_are_heard_every_time(name: str, passes: int) -> None:
    """Four layers of two groups run each twice, three layers of one group three times: as many tokens count."""
    config = CASES[name]
    found, tokens = moments(config)
    own = {line: sites for line, sites in found.items() if line not in ("embedding", "pooler")}
    assert {"heads0 qk0", "heads0 v0", "residual", "ffn0"} <= set(own)
    assert {site.count for sites in own.values() for site in sites} == {passes * tokens}
    assert [site.count for site in found["embedding"]] == [tokens]


def test_positions_that_pass_the_same_projection_are_not_tokens() -> None:
    """DeBERTa's queries and keys read the tokens first and relative positions then, which belong to no text."""
    found, tokens = moments(UNUSUAL["DebertaV2ForSequenceClassification"])
    assert {site.count for line in ("heads0 qk0", "heads1 qk1", "ffn0") for site in found[line]} == {tokens}


def moments(config: Mapping[str, Any]) -> tuple[dict[str, list[CrossMoments]], int]:
    """Return what a batch of four texts makes a model say beside itself, and how many tokens it has."""
    structure, a = structure_of(config), canonical_tensors(config, 0, torch.float32)
    batch = random_inputs(config)[0]
    pair = Pair(spec_for(config), a, a, config, lambda name: written_name(structure, name), (batch,))
    return collect(pair), int(batch["attention_mask"].sum())


@pytest.mark.parametrize("basis", ["permutation", "orthogonal"])
@pytest.mark.parametrize("silent", quick_on(("both",), ("never fire", "are constant", "both")))
def test_units_that_never_vary_are_told_apart_by_their_weights(silent: str, basis: str) -> None:
    """Under ReLU: units that never fire, and constant ones; all correlate with nothing, and were matched at random."""
    config = {**CASES["BertForSequenceClassification"], "hidden_act": "relu"}
    structure, spec, a = structure_of(config), spec_for(config), canonical_tensors(config, 0, torch.float32)
    bias, weight = (a[f"bert.encoder.layer.0.intermediate.dense.{end}"] for end in ("bias", "weight"))
    if silent != "are constant":
        bias[:7] = -100.0 - torch.arange(7)
    if silent != "never fire":
        weight[9:15], bias[9:15] = 0.0, 1.0 + torch.arange(6)
    wanted = restrict(
        random(spec, {n: tuple(t.shape) for n, t in a.items()}, torch.Generator().manual_seed(1)), ["ffn0"]
    )
    text = tuple(batch for seed in range(6) for batch in random_inputs(config, seed))
    settings = Settings(basis=basis)
    b = apply(spec, inverse(wanted), a)
    pair = Pair(spec, a, b, config, lambda name: written_name(structure, name), text, settings)
    found = aligner("activations")(pair)(frozenset({"ffn"}))
    assert torch.equal(found.permutation.indices["ffn0"], wanted.indices["ffn0"])
    count = {"never fire": 7, "are constant": 6, "both": 13}[silent]
    assert int(found.notes[0].split()[0]) >= count  # some others happen to be off on all of the text
    assert "units (ffn) never vary on the text in either model" in found.notes[0]
    moved = apply(spec, found.permutation, pair.b)
    assert all(torch.equal(moved[name], tensor) for name, tensor in a.items())


def test_units_that_vary_are_left_to_their_activations() -> None:
    """The negative control: no note where every unit fires; and without their weights silent units are mixed up."""
    silent = torch.zeros(4, 4)
    index = torch.tensor([2, 0, 3, 1])
    assert _silent(silent, index).tolist() == [0, 1, 2, 3]
    assert _silent(torch.eye(4), index).tolist() == []
    assert match_axis(silent.double()).tolist() != index.tolist()
    pair, _ = make_pair("BertForSequenceClassification", planted_seed=2)
    assert match_activations(pair)(frozenset({"ffn"})).notes == ()
