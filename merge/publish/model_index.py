"""Scores as the Hub reads them from a model card: the model-index of its YAML.

Source: huggingface_hub.EvalResult and model_index_to_eval_results, which read what is written here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

# Score of results.json -> (metric id on the Hub, what it is called where the id does not say it).
METRICS = {
    "pearson": ("pearsonr", "Pearson"),
    "spearmanr": ("spearmanr", "Spearman"),
    "hans_lo": ("accuracy", "HANS-LO accuracy"),
}


def model_index(name: str, records: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return the model-index of a model: one result for each scores record, with a metric for each of its scores.

    A score that is undefined (null in results.json) has no metric, and a record without one no result: the Hub asks for
    a value. [] where nothing is left.

    Args:
        name: of the model.
        records: of results.json; other kinds than scores are no results.
    """
    results = [_result(record) for record in records if record["kind"] == "scores"]
    results = [result for result in results if result["metrics"]]
    return [{"name": name, "results": results}] if results else []


def _result(record: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "task": {"type": "text-classification"},
        "dataset": {"name": f"{record['task']} ({record['data']})", "type": record["task"], "split": record["split"]},
        "metrics": [_metric(score, value) for score, value in record["scores"].items() if value is not None],
    }


def _metric(score: str, value: float) -> dict[str, Any]:
    kind, name = METRICS.get(score, (score, None))
    return {"type": kind, "value": value} if name is None else {"type": kind, "name": name, "value": value}
