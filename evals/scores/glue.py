"""Task scores by scikit-learn and scipy, with the names that the official GLUE metric gives them.

Where a score is undefined these give a value instead of a warning: 0 for the F1 of a class that is neither gold nor
predicted and for the Matthews correlation of constant classes (as scikit-learn), nan for Pearson's and Spearman's
correlation of a constant or of fewer than two rows (as scipy), and of numbers that are not finite.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import numpy as np
from scipy.stats import ConstantInputWarning, NearConstantInputWarning, pearsonr, spearmanr
from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef

from evals.scores.weighted import score_names


def task_scores(metric: str, predictions: Sequence[float], references: Sequence[float]) -> dict[str, float]:
    """Return the scores of a metric, such as "mrpc".

    Args:
        predictions, references: class indices; numbers for stsb, which are compared in float64 (the official metric rounds
            them to float32 first).
    Raises:
        TaskError: there is no metric of that name.
    """
    return {name: SCORES[name](references, predictions) for name in score_names(metric)}


def _accuracy(gold: Any, predicted: Any) -> float:
    return float(accuracy_score(gold, predicted))


def _f1(gold: Any, predicted: Any) -> float:
    return float(f1_score(gold, predicted, zero_division=0))


def _matthews_correlation(gold: Any, predicted: Any) -> float:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "A single label was found", UserWarning)
        return float(matthews_corrcoef(gold, predicted))


def _pearson(gold: Any, predicted: Any) -> float:
    return _correlation(pearsonr, gold, predicted)


def _spearmanr(gold: Any, predicted: Any) -> float:
    return _correlation(spearmanr, gold, predicted)


def _correlation(measure: Any, gold: Any, predicted: Any) -> float:
    if len(gold) < 2 or not np.isfinite([gold, predicted]).all():
        return float("nan")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConstantInputWarning)
        warnings.simplefilter("ignore", NearConstantInputWarning)
        return float(measure(gold, predicted).statistic)


SCORES: Mapping[str, Callable[[Any, Any], float]] = MappingProxyType(
    {
        "accuracy": _accuracy,
        "f1": _f1,
        "matthews_correlation": _matthews_correlation,
        "pearson": _pearson,
        "spearmanr": _spearmanr,
    }
)
