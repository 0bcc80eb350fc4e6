"""Every score equals scikit-learn's or scipy's, and what is worked out by hand; where undefined, it is as stated."""

from __future__ import annotations

import math
import random
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
import scipy.stats
import sklearn.metrics

from evals.scores.glue import task_scores
from evals.tasks.task import METRICS
from merge.errors import TaskError

# What each official configuration returns, and how many classes its task has.
OFFICIAL = {
    "cola": ({"matthews_correlation"}, 2),
    "sst2": ({"accuracy"}, 2),
    "mrpc": ({"accuracy", "f1"}, 2),
    "qqp": ({"accuracy", "f1"}, 2),
    "stsb": ({"pearson", "spearmanr"}, 0),
    "mnli": ({"accuracy"}, 3),
    "mnli_matched": ({"accuracy"}, 3),
    "mnli_mismatched": ({"accuracy"}, 3),
    "qnli": ({"accuracy"}, 2),
    "rte": ({"accuracy"}, 2),
    "wnli": ({"accuracy"}, 2),
    "hans": ({"accuracy"}, 2),
}
ORACLES: dict[str, Any] = {
    "accuracy": sklearn.metrics.accuracy_score,
    "f1": sklearn.metrics.f1_score,
    "matthews_correlation": sklearn.metrics.matthews_corrcoef,
    "pearson": lambda gold, predicted: scipy.stats.pearsonr(gold, predicted)[0],
    "spearmanr": lambda gold, predicted: scipy.stats.spearmanr(gold, predicted)[0],
}


def drawn(classes: int, seed: int, count: int = 300) -> tuple[list[Any], list[Any]]:
    """Return (gold, predicted) that agree on some rows; classes unevenly many, numbers with ties."""
    rng = random.Random(seed)
    if not classes:
        gold = [rng.randrange(26) / 5 for _ in range(count)]
        return gold, [value + rng.gauss(0, 1) for value in gold]
    gold = [min(rng.randrange(classes + 1), classes - 1) for _ in range(count)]
    return gold, [value if rng.random() < 0.6 else rng.randrange(classes) for value in gold]


def test_the_metrics_are_those_of_the_official_module() -> None:
    """Names of configurations and of results, so that figures can be compared with published ones."""
    assert {name: set(scores) for name, scores in METRICS.items()} == {n: keys for n, (keys, _) in OFFICIAL.items()}


@pytest.mark.parametrize("metric", OFFICIAL)
def test_scores_equal_scikit_learn_s_and_scipy_s(metric: str) -> None:
    """Exactly, on random predictions; turning the labels round changes every score."""
    names, classes = OFFICIAL[metric]
    for seed in range(5):
        gold, predicted = drawn(classes, seed)
        scores = task_scores(metric, predicted, gold)
        assert scores == {name: ORACLES[name](gold, predicted) for name in names}
        other = task_scores(metric, [-p if not classes else (p + 1) % classes for p in predicted], gold)
        assert all(abs(other[name] - scores[name]) > 1e-3 for name in names)


def test_small_cases_by_hand() -> None:
    """Two of four right; 2 TP / (2 TP + FP + FN) = 2 / (2 + 1 + 1); (1·1 - 1·1) / 4 = 0; ranks 1 3 2 against 1 2 3."""
    gold, predicted = [1, 1, 0, 0], [1, 0, 1, 0]
    assert task_scores("mrpc", predicted, gold) == {"accuracy": 0.5, "f1": 0.5}
    assert task_scores("cola", predicted, gold) == {"matthews_correlation": 0.0}
    assert task_scores("cola", [1, 1, 1, 0], gold) == {
        "matthews_correlation": pytest.approx(2 / math.sqrt(12), abs=1e-12)
    }
    found = task_scores("stsb", [1.0, 5.0, 2.0], [1.0, 2.0, 3.0])
    assert found["spearmanr"] == pytest.approx(1 - 6 * 2 / (3 * 8), abs=1e-12)
    # Deviations -1 0 1 and -5/3 7/3 -2/3: sum of products 1, of squares 2 and 26/3.
    assert found["pearson"] == pytest.approx(1 / math.sqrt(2 * 26 / 3), abs=1e-12)


def test_constant_predictions_have_a_stated_value_and_no_warning() -> None:
    """A broken merge says one class throughout: F1 and Matthews are 0, correlations nan; warnings would be errors here."""
    assert task_scores("mrpc", [0, 0, 0], [0, 0, 0]) == {"accuracy": 1.0, "f1": 0.0}
    assert task_scores("mrpc", [0, 0, 0], [1, 0, 1]) == {"accuracy": 1 / 3, "f1": 0.0}
    for gold, predicted in ([[0, 1, 1], [1, 1, 1]], [[1, 1], [1, 1]], [[0, 0], [1, 1]]):
        assert task_scores("cola", predicted, gold) == {"matthews_correlation": 0.0}
    for gold, predicted in (
        [[1.0, 2.0, 3.0], [2.5] * 3],
        [[1.0, 2.0], [1.0, math.nan]],
        [[1.0, 2.0], [1.0, math.inf]],
        [[1.0], [2.0]],
    ):
        assert all(math.isnan(value) for value in task_scores("stsb", predicted, gold).values())
    assert task_scores("stsb", [2.5, 2.5, 2.6], [1.0, 2.0, 3.0])["pearson"] == pytest.approx(math.sqrt(3) / 2)


def test_numbers_keep_their_digits() -> None:
    """The official module rounds to float32, where these two predictions are one; a correlation must see the difference."""
    predicted = [1.0, 1.0 + 1e-9, 1.0 + 3e-9]
    assert len(set(np.float32(predicted))) == 1
    assert task_scores("stsb", predicted, [0.0, 1.0, 3.0])["pearson"] == pytest.approx(1.0, abs=1e-6)


def test_an_unknown_metric_names_the_nearest() -> None:
    with pytest.raises(TaskError, match="there is no metric 'mrcp'. Did you mean 'mrpc'"):
        task_scores("mrcp", [0], [0])


@pytest.mark.slow
def test_scoring_does_not_import_evaluate() -> None:
    """It takes seconds to import, reads a cache folder in the user's home, and computes nothing that scikit-learn does not."""
    code = "import sys, evals.scores.glue as g; g.task_scores('mrpc', [1, 0], [1, 1]); print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert "evaluate" not in loaded
    assert "sklearn.metrics" in loaded
