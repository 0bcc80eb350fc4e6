"""The model-index is what huggingface_hub reads back, and nothing in it is made up."""

from __future__ import annotations

from typing import Any

from huggingface_hub import EvalResult, ModelCardData
from huggingface_hub.repocard_data import eval_results_to_model_index, model_index_to_eval_results

from merge.publish.model_index import model_index


def scores(task: str, values: dict[str, float | None]) -> dict[str, Any]:
    return {"kind": "scores", "task": task, "data": "dev.jsonl, 9 rows", "split": "validation", "scores": values}


def result(
    task: str, kind: str, value: float, name: str | None = None, task_type: str = "text-classification"
) -> EvalResult:
    return EvalResult(
        task_type=task_type,
        dataset_type=task,
        dataset_name=f"{task} (dev.jsonl, 9 rows)",
        dataset_split="validation",
        metric_type=kind,
        metric_name=name,
        metric_value=value,
    )


def test_the_hub_reads_back_every_score_under_its_own_metric_ids() -> None:
    """huggingface_hub parses the index to its own records: one a score, pearson as the Hub's id, HANS-LO as an accuracy."""
    records = [
        scores("mrpc", {"accuracy": 0.75, "f1": 0.5, "loss": 0.25}),
        scores("stsb", {"pearson": 0.875, "spearmanr": -0.5}),
        scores("hans", {"accuracy": 0.625, "hans_lo": 0.125}),
    ]
    name, found = model_index_to_eval_results(model_index("me/merged", records))
    assert name == "me/merged"
    expected = [
        result("mrpc", "accuracy", 0.75),
        result("mrpc", "f1", 0.5),
        result("mrpc", "loss", 0.25),
        result("stsb", "pearsonr", 0.875, "Pearson"),
        result("stsb", "spearmanr", -0.5, "Spearman"),
        result("hans", "accuracy", 0.625),
        result("hans", "accuracy", 0.125, "HANS-LO accuracy"),
    ]
    assert found == expected
    assert found != [*expected[:-1], result("hans", "accuracy", 0.625, "HANS-LO accuracy")]


def test_numbers_for_pairs_of_texts_are_sentence_similarity() -> None:
    """As `evaluate-models score stsb` marks them; the control: a number for one text stays what the Hub files it under."""
    pairs, texts = scores("stsb", {"pearson": 0.875}) | {"similarity": True}, scores("stars", {"pearson": 0.5})
    _, read = model_index_to_eval_results(model_index("m", [pairs, texts]))
    assert read == [
        result("stsb", "pearsonr", 0.875, "Pearson", "sentence-similarity"),
        result("stars", "pearsonr", 0.5, "Pearson"),
    ]


def test_the_index_is_the_one_the_hub_s_own_library_would_write() -> None:
    """The same results through huggingface_hub's writer, by way of a card's data, are the same dicts."""
    ours = model_index(
        "m", [scores("mrpc", {"accuracy": 0.75, "f1": 0.5}), scores("cola", {"matthews_correlation": 0.0})]
    )
    results = [result("mrpc", "accuracy", 0.75), result("mrpc", "f1", 0.5), result("cola", "matthews_correlation", 0.0)]
    data = ModelCardData(model_name="m", eval_results=results)
    assert data.to_dict()["model-index"] == eval_results_to_model_index("m", results) == ours


def test_what_is_undefined_or_no_score_is_left_out() -> None:
    """null has no place in an index, and neither has a barrier; zero is a value."""
    broken = scores("mrpc", {"accuracy": 0.0, "loss": None})
    assert [m["type"] for m in model_index("m", [broken])[0]["results"][0]["metrics"]] == ["accuracy"]
    assert model_index("m", [scores("stsb", {"pearson": None, "spearmanr": None}), {"kind": "barrier"}]) == []
