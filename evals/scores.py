"""Task scores as local evaluate.Metric modules, on scikit-learn; named and keyed as the official GLUE metric's."""

from __future__ import annotations

from typing import Any

import datasets
import evaluate
from sklearn.metrics import accuracy_score

CITATION = "Wang et al. 2019, GLUE, arXiv:1804.07461"


class GlueScores(evaluate.Metric):
    """Scores of one GLUE task; `config_name` is mnli, sst2 or hans, as in the official module."""

    def _info(self) -> Any:
        if self.config_name not in ("mnli", "sst2", "hans"):
            raise KeyError(f"no GLUE scores for {self.config_name!r}")
        return evaluate.MetricInfo(
            description="Accuracy of a GLUE task.",
            citation=CITATION,
            inputs_description="predictions and references: class indices",
            features=datasets.Features({"predictions": datasets.Value("int64"), "references": datasets.Value("int64")}),
        )

    def _compute(self, predictions: list[int], references: list[int]) -> dict[str, float]:
        return {"accuracy": float(accuracy_score(references, predictions))}
