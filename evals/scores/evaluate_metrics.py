"""The scores as `evaluate.Metric` modules, for training loops and `evaluate.combine`; no command imports this module.

from evals.scores.evaluate_metrics import GlueScores, HansScores

metric = GlueScores("mrpc")
metric.add_batch(predictions=[1, 0], references=[1, 1])
metric.compute()  # {"accuracy": 0.5, "f1": 0.6667}
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import datasets
import evaluate

from evals.heuristics.grammar import LABELS
from evals.scores.glue import task_scores
from evals.tasks.task import METRICS

CITATION = "Wang et al. 2019, GLUE, arXiv:1804.07461"
HANS_CITATION = "McCoy, Pavlick and Linzen 2019, HANS, arXiv:1902.01007"


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
        """Return the scores; evaluate.combine passes the columns of every module to all, so `heuristics` is ignored."""
        return task_scores(self.config_name, predictions, references)


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
        cells = [(name, LABELS[gold]) for name, gold in zip(heuristics, references, strict=True)]
        hits = Counter(cell for cell, p, g in zip(cells, predictions, references, strict=True) if p == g)
        return {f"{name}_{gold}": hits[name, gold] / count for (name, gold), count in Counter(cells).items()}
