"""The evaluate.Metric modules give the scores that the commands print, in whole columns, in batches and combined."""

from __future__ import annotations

from pathlib import Path

import evaluate
import numpy as np
import pytest
from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef

from evals.scores.evaluate_metrics import GlueScores, HansScores
from evals.scores.glue import task_scores
from evals.tasks.task import METRICS


def drawn(classes: int, seed: int, count: int = 300) -> tuple[list[int], list[int]]:
    """Return (gold, predicted) that agree on most rows."""
    rng = np.random.default_rng(seed)
    gold = rng.integers(0, classes, count)
    return gold.tolist(), np.where(rng.random(count) < 0.6, gold, rng.integers(0, classes, count)).tolist()


@pytest.mark.parametrize("metric", METRICS)
def test_a_module_gives_the_scores_of_its_task(metric: str, tmp_path: Path) -> None:
    gold, predicted = drawn(2, 3)
    scores = GlueScores(metric, cache_dir=str(tmp_path)).compute(predictions=predicted, references=gold)
    assert scores == task_scores(metric, predicted, gold)
    assert tuple(scores) == METRICS[metric]


def test_numbers_keep_their_digits(tmp_path: Path) -> None:
    """The official module rounds to float32, where these predictions are equal and have no correlation."""
    predicted = [1.0, 1.0 + 1e-9, 1.0 + 3e-9]
    module = GlueScores("stsb", cache_dir=str(tmp_path))
    assert module.compute(predictions=predicted, references=[0.0, 1.0, 3.0])["pearson"] == pytest.approx(1.0, abs=1e-6)


def test_an_unknown_task_is_refused() -> None:
    with pytest.raises(KeyError, match="no GLUE scores for 'mrcp'"):
        GlueScores(config_name="mrcp")


def test_the_modules_combine(tmp_path: Path) -> None:
    """evaluate.combine hands every module every column and prefixes what two modules call alike."""
    gold, predicted = drawn(2, 1)
    names = ["lexical_overlap" if k % 3 else "constituent" for k in range(len(gold))]
    cache = {"cache_dir": str(tmp_path)}
    modules = [
        GlueScores("hans", **cache),
        HansScores(**cache),
        GlueScores("cola", **cache),
        GlueScores("qqp", **cache),
    ]
    combined = evaluate.combine(modules)
    found = combined.compute(predictions=predicted, references=gold, heuristics=names)
    assert found.pop("glue_scores_0_accuracy") == found.pop("glue_scores_2_accuracy") == accuracy_score(gold, predicted)
    assert found.pop("f1") == f1_score(gold, predicted)
    assert found.pop("matthews_correlation") == matthews_corrcoef(gold, predicted)
    cells: dict[str, list[bool]] = {}
    for name, g, p in zip(names, gold, predicted, strict=True):
        cells.setdefault(f"{name}_{'non-entailment' if g else 'entailment'}", []).append(g == p)
    assert found == {name: sum(hits) / len(hits) for name, hits in cells.items()}
    assert len(found) == 4


def test_batches_add_up_to_the_whole(tmp_path: Path) -> None:
    """As a training loop feeds them, through add_batch; F1 is not a mean of batches."""
    gold, predicted = drawn(2, 2)
    module = GlueScores("mrpc", cache_dir=str(tmp_path))
    for start in range(0, len(gold), 70):
        module.add_batch(predictions=predicted[start : start + 70], references=gold[start : start + 70])
    assert module.compute() == task_scores("mrpc", predicted, gold)
    means = np.mean([f1_score(gold[s : s + 70], predicted[s : s + 70]) for s in range(0, len(gold), 70)])
    assert abs(means - task_scores("mrpc", predicted, gold)["f1"]) > 1e-6


def test_three_classes_are_no_hans(tmp_path: Path) -> None:
    """Folding is left to whoever knows what the classes are called; a 2 would count as wrong in silence."""
    module = HansScores(cache_dir=str(tmp_path))
    with pytest.raises(ValueError, match="HANS has two classes.*found 2"):
        module.compute(predictions=[0, 2], references=[0, 1], heuristics=["a", "b"])
