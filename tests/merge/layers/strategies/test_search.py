"""Searches for layers, against every choice tried by hand, and the measures of one pass against their formulas."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import combinations

import numpy as np
import pytest
import torch
from layered import checkpoint_of, original_model

from merge.errors import CheckpointError, MergeError, UsageError
from merge.layers.activations import live_layers
from merge.layers.plans.plan import LayerPlan
from merge.layers.strategies.agreement import Outputs, agreement, representational_similarity
from merge.layers.strategies.choose import DropSettings, drop_plan
from merge.layers.strategies.measures import measure_layers
from merge.layers.strategies.search import search_layers
from merge.layers.strategies.table import AFTER, STRATEGIES, regime_note


def scored(kept: tuple[int, ...]) -> float:
    """Return a score under which layers 1 and 2 are cheap alone and dear together, and 3 and 4 cheap together."""
    gone = set(range(6)) - set(kept)
    return -sum((2, 0.1, 0.2, 0.5, 0.5, 3)[layer] for layer in gone) - 5 * ({1, 2} <= gone) + 0.9 * ({3, 4} <= gone)


def test_exhaustive_finds_the_best_of_all_choices() -> None:
    for count in range(1, 6):
        best = max(combinations(range(6), count), key=lambda d: scored(tuple(k for k in range(6) if k not in d)))
        found = search_layers("exhaustive", scored, 6, count)
        assert set(range(6)) - set(found.kept) == set(best)
        assert len(found.scores) == math.comb(6, count)


def test_one_shot_greedy_and_beam_find_what_they_should() -> None:
    """One-shot drops 1 and 2, blind to their pair; greedy avoids it; a wide beam finds the best pair."""
    assert search_layers("one-shot", scored, 6, 2).kept == (0, 3, 4, 5)
    assert search_layers("greedy", scored, 6, 2).kept == (0, 2, 4, 5)
    assert search_layers("beam", scored, 6, 2, beam=4).kept == (0, 1, 2, 5)
    assert search_layers("beam", scored, 6, 2, beam=1).kept == search_layers("greedy", scored, 6, 2).kept


@pytest.mark.parametrize("how", ["one-shot", "greedy", "beam", "exhaustive"])
def test_protected_layers_stay(how: str) -> None:
    assert {1, 3} <= set(search_layers(how, scored, 6, 3, protected=(1, 3)).kept)


@pytest.mark.parametrize("how", ["one-shot", "greedy", "beam", "exhaustive"])
def test_a_plan_of_a_search_keeps_protected_layers(how: str) -> None:
    """Of four layers 0 and 1 are the cheapest by far; where 1 is protected the next one goes."""

    def score(plan: LayerPlan) -> float:
        return float(sum(10**layer for ((_, layer),) in plan.layers))

    settings = DropSettings(how, 2, score=score)
    free, held = (drop_plan(checkpoint_of("bert"), each)[0] for each in (settings, replace(settings, protected=(1,))))
    assert free == LayerPlan.keep((2, 3))
    assert held == LayerPlan.keep((1, 3))


def test_what_cannot_be_searched_is_refused() -> None:
    with pytest.raises(UsageError, match="cannot drop 2 of 6 layers, 5 of them protected"):
        search_layers("greedy", scored, 6, 2, protected=range(5))
    with pytest.raises(UsageError, match="would score 155,117,520 choices of 15 of 30"):
        search_layers("exhaustive", scored, 30, 15)
    with pytest.raises(MergeError, match="without layers \\(0,\\) is nan"):
        search_layers("greedy", lambda _: math.nan, 6, 1)


def test_measures_are_those_of_the_hidden_states() -> None:
    """By numpy, from the states that transformers reports; R2 by least squares on the rows."""
    model = original_model(checkpoint_of("bert"))
    generator = torch.Generator().manual_seed(0)
    batches = [
        {"input_ids": torch.randint(0, 18, (6, 20), generator=generator), "attention_mask": torch.ones(6, 20).long()}
        for _ in range(3)
    ]
    batches[0]["attention_mask"][:, -4:] = 0
    measures = measure_layers(live_layers(model), batches, block=2)
    states: list[list[np.ndarray]] = [[] for _ in range(5)]
    for batch in batches:
        with torch.inference_mode():
            hidden = model(**batch, output_hidden_states=True).hidden_states
        for state, rows in zip(states, hidden, strict=True):
            state.append(rows[batch["attention_mask"].bool()].double().numpy())
    h = [np.concatenate(state) for state in states]
    cosine = lambda x, y: (x * y).sum(1) / np.linalg.norm(x, axis=1) / np.linalg.norm(y, axis=1)  # noqa: E731
    for layer in range(4):
        change = np.linalg.norm(h[layer + 1] - h[layer], axis=1) / np.linalg.norm(h[layer], axis=1)
        assert measures.block_influence[layer] == pytest.approx(np.mean(1 - cosine(h[layer], h[layer + 1])), abs=1e-6)
        assert measures.relative_norm[layer] == pytest.approx(np.mean(change), abs=1e-6)
    for start in range(3):
        angle = np.arccos(cosine(h[start], h[start + 2])) / np.pi
        assert measures.angular[start] == pytest.approx(np.mean(angle), abs=1e-6)
        x = np.concatenate([h[start], np.ones((len(h[start]), 1))], 1)
        left = h[start + 2] - x @ np.linalg.lstsq(x, h[start + 2], rcond=None)[0]
        due = 1 - (left**2).sum() / ((h[start + 2] - h[start + 2].mean(0)) ** 2).sum()
        assert measures.linear_fit[start] == pytest.approx(due, abs=1e-3)
    assert measures.tokens == len(h[0]) == 3 * 120 - 24


def test_agreement_is_by_its_formulas() -> None:
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(7, 5, generator=generator, dtype=torch.float64) for _ in range(2))
    logits = [torch.randn(7, 3, generator=generator, dtype=torch.float64).log_softmax(-1) for _ in range(2)]
    full, edited = Outputs(a, logits[0], 1.0), Outputs(b, logits[1], 1.0)
    assert agreement(full, edited, "cosine") == pytest.approx(
        float(np.mean([x @ y / np.sqrt((x @ x) * (y @ y)) for x, y in zip(a.numpy(), b.numpy(), strict=True)]))
    )
    due = (logits[0].exp() * (logits[0] - logits[1])).sum(1).mean()
    assert agreement(full, edited, "kl") == pytest.approx(-float(due))
    assert agreement(full, full, "kl") == 0.0
    turned = a @ torch.linalg.qr(torch.randn(5, 5, generator=generator, dtype=torch.float64))[0]
    assert representational_similarity(a, turned) == pytest.approx(1.0)  # a rotation keeps all cosines
    assert representational_similarity(a, b) < 0.9
    with pytest.raises(UsageError, match="kl compares the logits"):
        agreement(Outputs(a, None, 1.0), edited, "kl")
    broken = Outputs(a.clone().fill_(float("inf")), None, 1.0)
    for measure in ("cosine", "rsa"):
        with pytest.raises(CheckpointError, match="the whole model's outputs are NaN or infinite"):
            agreement(broken, edited, measure)


def test_strategies_of_position_go_past_protected_layers() -> None:
    checkpoint = checkpoint_of("bert", num_hidden_layers=6)
    for strategy, kept in (("top", [0, 1, 2, 5]), ("bottom", [2, 3, 4, 5])):
        plan, _ = drop_plan(checkpoint, DropSettings(strategy, 2, protected=(5,)))
        assert [layer for ((_, layer),) in plan.layers] == kept
    with pytest.raises(UsageError, match="protected layer 6"):
        drop_plan(checkpoint, DropSettings("top", 1, protected=(6,)))


def test_every_strategy_names_its_regime() -> None:
    assert {each.regime for each in STRATEGIES.values()} == {AFTER, "no training"}
    for each in STRATEGIES.values():
        assert ("trained after" in regime_note(each)) == (each.regime == AFTER)


def test_texts_with_one_embedding_but_for_rounding_have_no_pairs_to_rank() -> None:
    """Both copies hold the same noise, which would agree; noise of a thousandth is what a model makes of texts (control)."""
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(12, 8, generator=generator)
    for size, due in ((1e-7, 0.0), (1e-3, 1.0)):
        embeddings = 1 + size * noise
        assert representational_similarity(embeddings, embeddings.clone()) == pytest.approx(due)
