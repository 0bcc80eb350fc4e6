"""Diagnostic scores against clusters: the published runs, and cases that are known by hand."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from evals.clusters.strategies import Strategy, separation, strategies
from evals.results.score_table import ScoreTable, read_score_table
from merge.errors import UsageError

DATA = Path(os.environ.get("MERGE_MODELS_DATA") or Path(__file__).parents[4] / "shared" / "data") / "hans"
RUNS = DATA / "berts_of_a_feather_accuracies_by_run.csv"
published = pytest.mark.skipif(not RUNS.exists(), reason=f"{RUNS} is not here: the published accuracies of 100 runs")

# The runs that clustering by the convexity gap puts into the smaller cluster (Juneja et al. 2023).
SMALL_CLUSTER = (15, 25, 26, 42, 44, 46, 56, 61, 63, 70, 73, 89)
# Column -> mean in the small cluster, mean of the others, and in how many of the 12 x 88 pairs the other run scores higher, an
# equal pair being half: counted by awk, pair by pair.
FIGURES = {
    "MNLI dev acc.": (0.8393, 0.8440, 1016),
    "Lexical (entailed)": (0.9626, 0.9578, 380.5),
    "Subseq (entailed)": (0.9940, 0.9933, 464),
    "Constituent (entailed)": (0.9859, 0.9911, 703),
    "Lexical (nonent)": (0.0964, 0.3011, 1031),
    "Subseq (nonent)": (0.0300, 0.0548, 858.5),
    "Constituent (nonent)": (0.1693, 0.1252, 180),
    "Overall accuracy": (0.5397, 0.5706, 967.5),
    "ln_subject/object_swap": (0.0008, 0.2160, 1037),
    "ln_relative_clause": (0.1395, 0.3543, 1022),
    "le_relative_clause": (0.9804, 0.9749, 405.5),
    "le_conjunction": (0.8560, 0.8271, 333.5),
}


@pytest.fixture(scope="module")
def table() -> ScoreTable:
    return read_score_table(RUNS)


@pytest.fixture(scope="module")
def rows(table: ScoreTable) -> dict[str, Strategy]:
    labels = [int(int(run.removeprefix("Run ")) in SMALL_CLUSTER) for run in table.runs]
    chosen = {name: table.scores[name] for name in FIGURES}
    return {row.diagnostic: row for row in strategies(chosen, labels, None)}


@published
@pytest.mark.parametrize("column", FIGURES)
def test_the_published_small_cluster_scores_as_its_runs_do(rows: dict[str, Strategy], column: str) -> None:
    inside, outside, higher = FIGURES[column]
    (membership,) = rows[column].memberships
    assert membership.models == (12, 88)
    assert membership.inside == pytest.approx(inside, abs=6e-5)
    assert membership.outside == pytest.approx(outside, abs=6e-5)
    assert membership.auc == pytest.approx(higher / (12 * 88), abs=1e-12)


@published
def test_the_small_cluster_is_a_bag_of_words(rows: dict[str, Strategy]) -> None:
    """It cannot tell subject from object, which is beyond chance; on entailed pairs the clusters do not differ so."""
    swap, entailed = (rows[name].memberships[0] for name in ("ln_subject/object_swap", "Subseq (entailed)"))
    assert swap.inside < 0.001
    assert swap.test is not None
    assert swap.test.p < 1e-3
    assert swap.high is not None
    assert swap.high < -0.15
    assert entailed.test is not None
    assert entailed.test.p > 0.05


@published
def test_the_aggregates_of_the_published_table_are_those_of_its_runs(table: ScoreTable) -> None:
    assert len(table.runs) == 100
    assert set(table.aggregates) == {"minimum", "maximum", "mean", "standard deviation"}
    for name, scores in table.scores.items():
        values = np.array(scores)
        found = [values.min(), values.max(), values.mean(), values.std(ddof=1)]
        stated = [table.aggregates[line][name] for line in ("minimum", "maximum", "mean", "standard deviation")]
        assert found == pytest.approx(stated, rel=1e-4, abs=1e-4), name


def test_perfect_separation_is_1_and_equal_scores_count_half() -> None:
    assert separation([0.1, 0.2], [0.3, 0.4]) == 1
    assert separation([0.3, 0.4], [0.1, 0.2]) == 0
    assert separation([0.2, 0.2], [0.2, 0.2, 0.2]) == 0.5
    assert separation([0.1, 0.3], [0.2, 0.3]) == pytest.approx((2 + 0.5) / 4)


def test_a_difference_has_welchs_interval_and_an_exact_p_value() -> None:
    scores = [0.30, 0.35, 0.32, 0.29, 0.31, 0.10, 0.12, 0.05]
    (row,) = strategies({"hans": scores}, [0] * 5 + [1] * 3, None)
    (membership,) = row.memberships
    reference = stats.ttest_ind(scores[5:], scores[:5], equal_var=False).confidence_interval()
    assert (membership.low, membership.high) == pytest.approx((reference.low, reference.high))
    assert membership.auc == 1
    assert membership.test is not None
    assert membership.test.p == pytest.approx(2 / 56)
    assert (row.pearson, row.spearman) == (None, None)


def test_each_of_three_clusters_is_compared_with_the_others_and_p_is_adjusted() -> None:
    """Holm's p, from the definition: the smallest times the number of tests, and so on, never falling."""
    scores = {"first": [0.5, 0.6, 0.5, 0.1, 0.2, 0.9], "second": [1.0, 2, 3, 4, 5, 6]}
    table = strategies(scores, [0, 0, 0, 1, 1, 2], np.arange(6.0))
    memberships = [each for row in table for each in row.memberships]
    assert [each.cluster for each in memberships] == [0, 1, 2, 0, 1, 2]
    ps = [each.test.p for each in memberships if each.test]
    expected, floor = {}, 0.0
    for rank, at in enumerate(sorted(range(6), key=lambda k: ps[k])):
        floor = max(floor, min(1, ps[at] * (6 - rank)))
        expected[at] = floor
    assert [each.adjusted for each in memberships] == [expected[at] for at in range(6)]
    assert table[1].pearson is not None
    assert table[1].pearson.value == pytest.approx(1)
    assert memberships[2].low is None  # a cluster of one model has no interval


def test_one_cluster_has_correlations_only_and_missing_scores_are_counted() -> None:
    nan = float("nan")
    (row,) = strategies({"hans": [0.1, 0.2, nan, 0.4]}, [0] * 4, np.arange(4.0))
    assert row.memberships == ()
    assert row.models == 3
    assert row.pearson is not None
    (alone,) = strategies({"hans": [0.1, 0.2, nan, nan]}, [0, 0, 1, 1], None)
    assert alone.memberships == ()


def test_a_score_of_too_few_models_is_refused() -> None:
    with pytest.raises(UsageError, match="expected a score of each of 3 models"):
        strategies({"hans": [0.1]}, [0, 0, 1], None)
