"""The model-index of a model card's YAML header, from which the Hub reads scores.

Source: huggingface_hub.EvalResult and eval_results_to_model_index, whose output a test compares with ours; its import
costs half a second.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

# Score of results.json -> (metric id on the Hub, display name).
METRICS = {
    "pearson": ("pearsonr", "Pearson"),
    "spearmanr": ("spearmanr", "Spearman"),
    "hans_lo": ("accuracy", "HANS-LO accuracy"),
}


def model_index(name: str, records: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return the model-index of a model: one result per scores record, with one metric per score.

    The Hub requires a value for every metric, so undefined scores (null in results.json) and records without any other
    are left out. Returns [] if nothing is left.

    Args:
        name: the model's name.
        records: records of results.json; only those of kind "scores" count.
    """
    results = [_result(record) for record in records if record["kind"] == "scores"]
    results = [result for result in results if result["metrics"]]
    return [{"name": name, "results": results}] if results else []


def _result(record: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "task": {"type": "sentence-similarity" if record.get("similarity") else "text-classification"},
        "dataset": {"name": f"{record['task']} ({record['data']})", "type": record["task"], "split": record["split"]},
        "metrics": [_metric(score, value) for score, value in record["scores"].items() if value is not None],
    }


def _metric(score: str, value: float) -> dict[str, Any]:
    kind, name = METRICS.get(score, (score, None))
    return {"type": kind, "value": value} if name is None else {"type": kind, "name": name, "value": value}
