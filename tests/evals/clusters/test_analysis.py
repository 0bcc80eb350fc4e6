"""Planted basins are recovered from their losses alone, and the record holds what a page draws."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from planted_basins import bowl_losses, planted, planted_weights
from quick import quick_on

from evals.clusters.analysis import AnalysisSettings, analyse, verified
from evals.clusters.labels import ordered_labels
from evals.clusters.methods import METHODS
from merge.errors import UsageError


@pytest.mark.parametrize("noise", [0.0, 0.02])
@pytest.mark.parametrize("sizes", quick_on(((8,), (4, 3, 3)), ((8,), (5, 3), (9, 3), (4, 3, 3), (3, 3, 3))), ids=str)
def test_planted_basins_are_the_clusters_and_so_is_their_number(sizes: tuple[int, ...], noise: float) -> None:
    """Each row's loss is a bowl about the nearest of so many minima; nothing else is known of the models."""
    analysis = analyse(planted(sizes, noise=noise))
    truth = ordered_labels(np.repeat(np.arange(len(sizes)), sizes)).tolist()
    assert list(analysis.labels) == truth
    assert analysis.number.rule == "auto"
    assert analysis.number.chosen == len(sizes)
    assert all(basin.shared for basin in analysis.basins)
    if len(sizes) > 1:
        assert all(list(analysis.clusterings[name]) == truth for name in METHODS)
        assert analysis.stability.same == 1
        assert ((analysis.stability.together == 1) == np.equal.outer(truth, truth)).all()


def test_models_far_from_one_another_are_no_basin() -> None:
    """The negative control: four minima with a model each are one cluster, since nothing groups them, but no basin."""
    analysis = analyse(planted((1, 1, 1, 1)))
    assert analysis.number.chosen == 1
    assert analysis.basins[0].shared is False
    assert analysis.groups == ((0,), (1,), (2,), (3,))
    assert "do not all share a basin" in analysis.verdict[0]
    assert "each is a basin of its own" in analysis.verdict[1]


def test_the_verdict_names_basins_their_scores_and_the_best_average() -> None:
    scores = [0.3, 0.31, 0.29, 0.3, 0.32, 0.28, 0.3, 0.29, 0.31, 0.1, 0.09, 0.11]
    analysis = analyse(planted((9, 3)), {"hans:hans_lo": scores})
    assert analysis.verdict[0].startswith("These 9 (m0, m1, m2, m3, m4, m5, m6, m7 and 1 more) share a basin (largest")
    assert analysis.verdict[1].startswith("These 3 (m9, m10, m11) form another (largest convexity gap 0")
    assert "which scores .10 against .30 on hans:hans_lo (p = .009)" in analysis.verdict[1]
    assert any(line.startswith("Best to average: ") for line in analysis.verdict)


def test_too_few_rows_is_a_verdict() -> None:
    """Noise on 40 rows that could be a barrier, or none; on one row nothing is certain."""
    noisy = analyse(planted((8,), rows=40, noise=0.3))
    assert noisy.basins[0].shared is None
    assert "40 rows are too few to tell" in noisy.verdict[0]
    single = analyse(planted((8,), rows=1))
    assert (single.basins[0].shared, single.basins[0].high) == (None, None)
    assert "1 row is too few to tell" in single.verdict[0]


def test_too_few_models_is_a_verdict() -> None:
    """Two and two can be divided in 6 ways, so that no p is under 1/3; and by chance two of four pairs are near often enough."""
    scores = {"hans": [0.3, 0.3, 0.1, 0.1]}
    given = analyse(planted((2, 2)), scores, AnalysisSettings(number=2))
    assert any("with 2 and 2 no p is under .33" in line for line in given.verdict)
    chosen = analyse(planted((2, 2)), scores)
    assert chosen.number.chance > 0.05
    assert any("The number of clusters is uncertain: 2 by the silhouette" in line for line in chosen.verdict)


def test_models_against_references_are_compared_by_their_rows() -> None:
    """Only lines from models 0 and 5 are measured: the clusters are there, pairwise figures are not."""
    losses = planted((5, 3))
    few = replace(losses, inside={pair: rows for pair, rows in losses.inside.items() if pair[0] == 0 or 5 in pair})
    analysis = analyse(few)
    assert list(analysis.labels) == [0] * 5 + [1] * 3
    assert any("compared by their convexity gap to 2 references" in note for note in analysis.notes)
    assert analysis.references == ()
    assert analysis.groups == ()
    assert np.isnan(analysis.distances[1, 2])
    assert all(0 in subset.models or 5 in subset.models for subset in analysis.ranking.subsets)
    only_one_line = replace(losses, inside={(0, 1): losses.inside[0, 1]})
    with pytest.raises(UsageError, match="no model has a line to all the others"):
        analyse(only_one_line)


def test_the_record_is_json_without_nan() -> None:
    losses = planted((3, 3), correct=True)
    diagnostics = {"hans": [0.1, 0.2, float("nan"), 0.5, 0.6, 0.7]}
    analysis = analyse(losses, diagnostics, AnalysisSettings(number=2))
    analysis = verified(analysis, losses, {(0, 1): losses.ends[0]})
    document = json.loads(json.dumps(analysis.to_json(), allow_nan=False))
    assert document["diagnostics"]["hans"][2] is None
    assert document["strategies"][0]["models"] == 5
    assert set(document["matrices"]) == set(analysis.matrices)
    assert len(document["linkage"]) == 5
    assert sorted(document["order"]) == list(range(6))
    assert len(document["embedding"]["points"]) == len(document["embedding"]["coordinate"]) == 6
    assert {each["where"] for each in document["extremes"]} == {"inside", "between"}
    assert len(document["verification"]["subsets"]) == 1


def test_measured_averages_change_the_verdict() -> None:
    """The mean of a bowl's models is measured: the prediction is exact, and the verdict says so."""
    losses = planted((4,))
    weights, minima = planted_weights((4,))
    subsets = [(0, 1), (0, 1, 2), (0, 1, 2, 3), (1, 3)]
    measured = {models: bowl_losses(weights[list(models)].mean(0), minima, 60) for models in subsets}
    analysis = verified(analyse(losses), losses, measured)
    assert analysis.verification is not None
    assert abs(analysis.verification.largest_error) < 1e-6
    assert analysis.verification.rank_correlation == pytest.approx(1)
    assert "4 averages were measured" in analysis.verdict[-1]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"summary": "convexity"}, "unknown summary 'convexity'. Did you mean 'convexity gap'"),
        ({"summary": "mean loss"}, "unknown summary 'mean loss'"),
        ({"summary": "error barrier"}, "the task asks for a number"),
        ({"method": "spectrall"}, "unknown cluster method 'spectrall'. Did you mean 'spectral'"),
        ({"number": "silhouete"}, "unknown number of clusters 'silhouete'. Did you mean 'silhouette'"),
        ({"number": 5}, "4 models form 1 to 4 clusters; asked for 5"),
        ({"draws": 0}, "draws and best must be at least 1"),
        ({"tolerance": -1.0}, "tolerance must be at least 0"),
        ({"weights": (1.0, 2.0)}, "expected 4 weights over 0"),
    ],
)
def test_settings_that_do_not_fit_are_one_line(settings: dict, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        analyse(planted((4,), rows=3), settings=AnalysisSettings(**settings))


def test_losses_that_are_not_finite_and_scores_of_other_models_are_refused() -> None:
    losses = planted((4,), rows=3)
    broken = dict(losses.inside)
    broken[0, 2] = np.full_like(broken[0, 2], np.nan)
    with pytest.raises(UsageError, match="a loss is not finite: the line m0 - m2"):
        analyse(replace(losses, inside=broken))
    with pytest.raises(UsageError, match=r"diagnostic hans: expected a score of each of 4 models, found shape \(2,\)"):
        analyse(losses, {"hans": [1.0, 2.0]})
