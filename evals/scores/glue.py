"""Task scores as local evaluate.Metric modules, on scikit-learn and scipy; named and keyed as the official GLUE metric's.

Where a score is undefined these give a value instead of a warning: 0 for the F1 of a class that is neither gold nor
predicted and for the Matthews correlation of constant classes (as scikit-learn), nan for Pearson's and Spearman's
correlation of a constant or of fewer than two rows (as scipy), and of numbers that are not finite.
"""

from __future__ import annotations

import tempfile
import warnings
from collections import Counter
from collections.abc import Sequence
from typing import Any

import datasets
import evaluate
import numpy as np
from scipy.stats import ConstantInputWarning, NearConstantInputWarning, pearsonr, spearmanr
from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef

from evals.scores.weighted import score_names
from evals.tasks.task import METRICS

CITATION = "Wang et al. 2019, GLUE, arXiv:1804.07461"
HANS_CITATION = "McCoy, Pavlick and Linzen 2019, HANS, arXiv:1902.01007"
HANS_LABELS = ("entailment", "non-entailment")


class GlueScores(evaluate.Metric):
    """Scores of one GLUE task or of HANS; `config_name` is the task's, as in the official module.

    STS-B is read as float64; the official module rounds it to float32 first.
    """

    def _info(self) -> Any:
        if self.config_name not in METRICS:
            raise KeyError(f"no GLUE scores for {self.config_name!r}; known: {', '.join(METRICS)}")
        value = datasets.Value("float64" if self.config_name == "stsb" else "int64")
        return evaluate.MetricInfo(
            description=f"The scores of {self.config_name}: {', '.join(METRICS[self.config_name])}.",
            citation=CITATION,
            inputs_description="predictions and references: class indices; numbers for stsb",
            features=datasets.Features({"predictions": value, "references": value}),
        )

    def _compute(self, predictions: Any, references: Any, heuristics: Any = None) -> dict[str, float]:
        """Return the scores; `heuristics` is another module's column, which evaluate.combine hands to all."""
        return {name: _SCORES[name](references, predictions) for name in METRICS[self.config_name]}


class HansScores(evaluate.Metric):
    """Accuracy of every heuristic and gold label of HANS, keyed such as `lexical_overlap_non-entailment`."""

    def _info(self) -> Any:
        label, text = datasets.Value("int64"), datasets.Value("string")
        return evaluate.MetricInfo(
            description="Accuracy of each heuristic and gold label.",
            citation=HANS_CITATION,
            inputs_description="predictions and references: 0 entailment, 1 non-entailment; heuristics: their names",
            features=datasets.Features({"predictions": label, "references": label, "heuristics": text}),
        )

    def _compute(self, predictions: Any, references: Any, heuristics: Any) -> dict[str, float]:
        if unknown := {int(label) for label in (*predictions, *references)} - {0, 1}:
            raise ValueError(
                f"HANS has two classes, 0 entailment and 1 non-entailment; found {min(unknown)}. Fold three-way "
                "predictions first: whatever is not entailment is non-entailment."
            )
        cells = [(name, HANS_LABELS[gold]) for name, gold in zip(heuristics, references, strict=True)]
        hits = Counter(cell for cell, p, g in zip(cells, predictions, references, strict=True) if p == g)
        return {f"{name}_{gold}": hits[name, gold] / count for (name, gold), count in Counter(cells).items()}


def task_scores(metric: str, predictions: Sequence[float], references: Sequence[float]) -> dict[str, float]:
    """Return the scores of a metric, such as "mrpc"; predictions and references are class indices, or numbers for stsb.

    Raises:
        TaskError: there is no metric of that name.
    """
    score_names(metric)
    # evaluate keeps what it compares in files: of its own cache folder, shared and perhaps read-only, unless told otherwise.
    with tempfile.TemporaryDirectory() as folder:
        module = GlueScores(config_name=metric, cache_dir=folder, keep_in_memory=True)
        return dict(module.compute(predictions=predictions, references=references))


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


_SCORES = {
    "accuracy": _accuracy,
    "f1": _f1,
    "matthews_correlation": _matthews_correlation,
    "pearson": _pearson,
    "spearmanr": _spearmanr,
}
