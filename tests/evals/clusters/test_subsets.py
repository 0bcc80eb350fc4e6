"""Predicted losses of averages: equal to the formula and to what is measured on quadratic losses; all subsets, and greedily."""

from __future__ import annotations

import time
from dataclasses import replace
from itertools import combinations

import numpy as np
import pytest
from planted_basins import bowl_losses, planted, planted_weights

from evals.clusters.pair_losses import PairLosses
from evals.clusters.subset_search import all_predictions, greedy_subsets, lowest_subsets
from evals.clusters.subsets import middle_rows, midpoint_means, parabola_departures, predicted_rows, rank_subsets
from evals.clusters.verification import verify
from evals.paths.averages import average_loss
from merge.errors import UsageError


def _random(models: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Return losses, midpoints, bends and weights."""
    draw = np.random.default_rng(seed)
    single, middles = draw.random(models), draw.random((models, models))
    middles = (middles + middles.T) / 2
    return single, middles, 8 * ((single[:, None] + single) / 2 - middles), draw.uniform(0.5, 2, models)


def _members(number: int, models: int) -> list[int]:
    return [k for k in range(models) if number >> k & 1]


def test_every_subset_has_the_loss_of_the_formula_with_unequal_weights() -> None:
    single, middles, bends, weights = _random(7)
    predicted = all_predictions(single, bends, weights)
    assert len(predicted) == 2**7
    assert np.isnan(predicted[0])
    for number in range(1, 2**7):
        chosen = _members(number, 7)
        expected = average_loss(single[chosen], middles[np.ix_(chosen, chosen)], weights[chosen])
        assert predicted[number] == pytest.approx(expected, abs=1e-12)


def test_every_subset_of_a_quadratic_loss_is_predicted_exactly() -> None:
    """The average is evaluated directly, at weights, of a loss with a random Hessian: to 1e-10."""
    draw = np.random.default_rng(2)
    root, models, weights = draw.normal(size=(9, 9)), draw.normal(size=(8, 9)), draw.uniform(0.2, 3, 8)

    def loss(at: np.ndarray) -> np.ndarray:
        return ((at @ root) ** 2).sum(-1) / 2 + at @ root[0] + 3

    single = loss(models)
    bends = 8 * ((single[:, None] + single) / 2 - loss((models[:, None] + models) / 2))
    predicted = all_predictions(single, bends, weights)
    for number in range(1, 2**8):
        chosen = _members(number, 8)
        average = weights[chosen] @ models[chosen] / weights[chosen].sum()
        assert predicted[number] == pytest.approx(float(loss(average)), abs=1e-10)


def test_the_subsets_of_20_models_are_ranked_in_seconds() -> None:
    single, _, bends, weights = _random(20)
    begun = time.process_time()
    best, count = lowest_subsets(single, bends, weights, 5)
    assert time.process_time() - begun < 5
    assert count == 2**20 - 21
    assert len(best) == 5


def test_the_best_subsets_are_the_lowest_of_two_models_or_more() -> None:
    single, middles, bends, weights = _random(8, 3)
    best, count = lowest_subsets(single, bends, weights, 6)
    every = [models for size in range(2, 9) for models in combinations(range(8), size)]
    expected = sorted(every, key=lambda s: average_loss(single[list(s)], middles[np.ix_(s, s)], weights[list(s)]))[:6]
    assert (best, count) == (expected, len(every))
    assert lowest_subsets(single[:2], bends[:2, :2], weights[:2], 6)[0] == [(0, 1)]


def test_greedy_steps_are_those_of_a_search_by_hand() -> None:
    """From every model on, the model is added with which the formula gives the lowest loss."""
    single, middles, bends, weights = _random(6, 4)
    met = {}
    for start in range(6):
        soup = [start]
        while len(soup) < 6:
            tries = {}
            for k in set(range(6)) - set(soup):
                chosen = sorted([*soup, k])
                tries[k] = average_loss(single[chosen], middles[np.ix_(chosen, chosen)], weights[chosen])
            added = min(tries, key=tries.__getitem__)
            soup.append(added)
            met[tuple(sorted(soup))] = tries[added]
    best, count = greedy_subsets(single, bends, weights, 4)
    assert count == len(met)
    assert best == sorted(met, key=met.__getitem__)[:4]


def test_subsets_with_a_pair_that_was_not_measured_are_left_out() -> None:
    single, _, bends, weights = _random(5, 5)
    bends[1, 3] = bends[3, 1] = np.nan
    every, count = lowest_subsets(single, bends, weights, 99)
    assert count == len(every) == 26 - 8
    assert not any({1, 3} <= set(models) for models in every)
    greedy, _ = greedy_subsets(single, bends, weights, 99)
    assert greedy
    assert set(greedy) <= set(every)


def test_a_ranking_states_the_gain_and_its_error_from_the_rows() -> None:
    losses = planted((5,), rows=40)
    distances = np.zeros((5, 5))
    ranking = rank_subsets(losses, distances, 3)
    weights, minima = planted_weights((5,))
    exact = {
        models: bowl_losses(weights[list(models)].mean(0), minima, 40)
        for size in range(1, 6)
        for models in combinations(range(5), size)
    }
    best = min((models for models in exact if len(models) > 1), key=lambda models: exact[models].mean())
    alone = min(((k,) for k in range(5)), key=lambda models: exact[models].mean())
    first = ranking.subsets[0]
    assert (ranking.how, ranking.considered) == ("exhaustive", 26)
    assert (first.models, ranking.best_model.models) == (best, alone)
    assert first.loss == pytest.approx(exact[best].mean(), abs=1e-6)
    gains = exact[alone] - exact[best]
    assert first.gain == pytest.approx(gains.mean(), abs=1e-6)
    assert first.gain_error == pytest.approx(gains.std(ddof=1) / np.sqrt(40), rel=1e-4)
    assert first.low is not None
    assert first.low == pytest.approx(first.loss - 1.959964 * exact[best].std(ddof=1) / np.sqrt(40), abs=1e-5)
    assert ranking.everything is not None
    assert ranking.everything.models == (0, 1, 2, 3, 4)
    assert first.departure == pytest.approx(0, abs=1e-6)


def test_beyond_20_models_the_ranking_is_greedy() -> None:
    draw = np.random.default_rng(6)
    pairs = list(combinations(range(21), 2))
    losses = PairLosses(
        models=tuple(map(str, range(21))),
        lam=(0.0, 0.5, 1.0),
        ends=draw.random((21, 4), dtype=np.float32),
        inside={pair: draw.random((1, 4), dtype=np.float32) for pair in pairs},
        distance=dict.fromkeys(pairs, 1.0),
    )
    assert rank_subsets(losses, np.zeros((21, 21)), 2).how == "greedy"


def test_without_a_point_half_way_the_midpoint_is_that_of_a_parabola() -> None:
    """Exact for quadratic losses; the ranking says that it was done."""
    even, odd = planted((4,), points=10), planted((4,), points=11)
    for pair in even.pairs:
        assert middle_rows(even, pair) == pytest.approx(middle_rows(odd, pair), abs=1e-5)
    assert "none half way" in rank_subsets(even, np.zeros((4, 4)), 1).notes[0]
    assert rank_subsets(odd, np.zeros((4, 4)), 1).notes == ()


def test_curves_that_are_no_parabolas_are_known_by_their_departure() -> None:
    """Between two bowls the loss has a kink half way; inside one it is a parabola."""
    departures = parabola_departures(planted((2, 2)))
    assert departures[0, 1] == pytest.approx(0, abs=1e-6)
    assert departures[1, 2] > 0.1


def test_predicted_against_measured_finds_the_prediction_that_fails() -> None:
    """Inside a basin the prediction is exact; over two basins it is not, and the departure from parabolas tells where."""
    losses = planted((3, 3))
    weights, minima = planted_weights((3, 3))
    subsets = [(0, 1), (0, 1, 2), (3, 4, 5), (0, 3), (0, 1, 3), (0, 1, 2, 3, 4, 5)]
    measured = {models: bowl_losses(weights[list(models)].mean(0), minima, 60) for models in subsets}
    found = verify(losses, measured)
    errors = {each.models: abs(each.error) for each in found.subsets}
    assert max(errors[models] for models in subsets[:3]) < 1e-6
    assert errors[found.largest] == max(errors.values()) > 0.01
    assert {0, 3} <= set(found.largest)
    assert found.departure_correlation is not None
    assert found.departure_correlation > 0.5
    assert found.best == min(measured, key=lambda models: measured[models].mean())
    predicted = [predicted_rows(losses, models).mean() for models in subsets]
    assert [each.predicted for each in found.subsets] == pytest.approx(predicted)


@pytest.mark.parametrize(
    ("measured", "message"),
    [
        ({}, "no average was measured"),
        ({(0, 1): np.zeros(3)}, r"expected losses of \(60,\) rows, found \(3,\)"),
        ({(0, 2): np.zeros(60)}, r"the line between \(0, 2\) was not measured"),
    ],
)
def test_measured_losses_that_do_not_fit_are_one_line(measured: dict, message: str) -> None:
    losses = planted((3,))
    few = replace(losses, inside={pair: rows for pair, rows in losses.inside.items() if pair != (0, 2)})
    with pytest.raises(UsageError, match=message):
        verify(few, measured)


def test_midpoints_are_the_mean_losses_half_way() -> None:
    losses = planted((3,))
    middles = midpoint_means(losses)
    assert np.isnan(np.diag(middles)).all()
    assert middles[2, 0] == pytest.approx(losses.curve(0, 2)[5].mean(dtype=float))
