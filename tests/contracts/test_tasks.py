"""The battery every evaluation task faces."""

from __future__ import annotations

import gzip
import json
import random
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from sklearn.metrics import accuracy_score

from evals.hans_grammar import generate
from evals.measure import task_scores
from evals.scores import GlueScores
from evals.task import EvalTask, Rows, column_of
from evals.tasks import TASKS, find_task
from merge.errors import TaskError, UsageError

LENGTH = 90


def golden_file(task: EvalTask, folder: Path) -> Path:
    """Write rows of a task in its own format, classes in turn but unevenly many."""
    labels = [task.labels[min(k % 4, len(task.labels) - 1)] for k in range(LENGTH)]
    path = folder / "rows.jsonl"
    rows: list[dict[str, Any]] = [
        {"idx": k, "sentence": f"s {k}", "premise": f"p {k}", "hypothesis": f"h {k}", "label": label}
        for k, label in enumerate(labels)
    ]
    if task.name == "hans":
        where = {"heuristic": "lexical_overlap", "subcase": "ln_passive", "template": "temp1"}
        rows = [{"pairID": f"ex{k}", **row, **where} for k, row in enumerate(rows)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture(params=TASKS)
def task(request: pytest.FixtureRequest) -> EvalTask:
    return TASKS[request.param]


@pytest.fixture
def rows(task: EvalTask, tmp_path: Path) -> Rows:
    return task.read(golden_file(task, tmp_path), 0)


def test_the_table_names_its_tasks() -> None:
    """A task is found by the name it carries, and a wrong name says the nearest."""
    assert list(TASKS) == [task.name for task in TASKS.values()]
    assert all(find_task(name) is TASKS[name] for name in TASKS)
    with pytest.raises(UsageError, match="unknown task 'mnly'. Did you mean 'mnli'"):
        find_task("mnly")


def test_labels_are_unique_and_fold_onto_labels(task: EvalTask) -> None:
    """No two classes share a name however it is spelt, and what folds, folds onto a class of the task."""
    assert len({name.casefold() for name in task.labels}) == len(task.labels) >= 2
    assert set(task.coarse.values()) <= set(task.labels)
    assert column_of(task, task.labels, "m/") == tuple(range(len(task.labels)))
    if task.coarse:
        assert set(task.coarse.values()) == set(task.labels)


def test_rows_are_whole(task: EvalTask, rows: Rows) -> None:
    """Every row has text, a gold class and an id of its own."""
    assert len(rows) == LENGTH
    assert len(rows.gold) == len(rows.ids) == len(set(rows.ids)) == LENGTH
    assert rows.labels == task.labels
    assert set(rows.gold) == set(range(len(task.labels)))
    assert len({len(text) for text in rows.texts}) == 1
    assert all(part.strip() for text in rows.texts for part in text)
    assert rows.split
    assert "90" in rows.data


def test_reading_twice_gives_the_same_rows(task: EvalTask, tmp_path: Path) -> None:
    path = golden_file(task, tmp_path)
    assert task.read(path, 0) == task.read(path, 0)


def test_a_perfect_predictor_scores_one(task: EvalTask, rows: Rows) -> None:
    """And one that is wrong on every row scores zero."""
    assert task_scores(task, rows.gold, rows.gold) == {"accuracy": 1.0}
    wrong = [(k + 1) % len(task.labels) for k in rows.gold]
    assert task_scores(task, wrong, rows.gold) == {"accuracy": 0.0}


def test_a_constant_predictor_scores_the_base_rate(task: EvalTask, rows: Rows) -> None:
    """For every class: the share of rows that have it as gold; the shares add up to one."""
    counts, total = Counter(rows.gold), 0.0
    for k in range(len(task.labels)):
        accuracy = task_scores(task, [k] * len(rows), rows.gold)["accuracy"]
        assert abs(accuracy - counts[k] / len(rows)) < 1e-12
        total += accuracy
    assert abs(total - 1) < 1e-12
    assert len(set(counts.values())) > 1


def test_scores_equal_scikit_learns(task: EvalTask, rows: Rows) -> None:
    """Computed by scikit-learn and by counting, on 20 random predictions; scores stand under the official names."""
    generator = random.Random(3)
    for _ in range(20):
        predicted = [generator.randrange(len(task.labels)) for _ in rows.gold]
        scores = task_scores(task, predicted, rows.gold)
        assert set(scores) == {"accuracy"}
        assert scores["accuracy"] == accuracy_score(rows.gold, predicted)
        assert abs(scores["accuracy"] - sum(map(int.__eq__, predicted, rows.gold)) / len(rows)) < 1e-12


def test_scores_leave_nothing_behind(
    task: EvalTask, rows: Rows, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """evaluate keeps its comparisons in files; ours are temporary, so that a home that is read-only will do."""
    import evaluate

    monkeypatch.setattr(evaluate.config, "HF_METRICS_CACHE", str(tmp_path / "cache"))
    before = set(tmp_path.rglob("*"))
    task_scores(task, rows.gold, rows.gold)
    assert set(tmp_path.rglob("*")) == before


def test_a_metric_of_another_task_is_an_error(tmp_path: Path) -> None:
    """Accuracy is not CoLA's score; a task brings its own."""
    with pytest.raises(KeyError, match="cola"):
        GlueScores(config_name="cola", cache_dir=str(tmp_path))


def test_a_missing_file_is_one_line(task: EvalTask, tmp_path: Path) -> None:
    with pytest.raises(TaskError) as caught:
        task.read(tmp_path / "missing.jsonl", 0)
    assert "missing.jsonl" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_hans_generates_what_it_is_not_given() -> None:
    """Without a file HANS has 30,000 rows, half of either class, decided by the seed."""
    rows = TASKS["hans"].read(None, 0)
    assert Counter(rows.gold) == {0: 15_000, 1: 15_000}
    assert rows.texts[:3] == tuple((pair.premise, pair.hypothesis) for pair in generate(seed=0)[:3])
    assert len(set(rows.ids)) == 30_000


def test_hans_reads_the_published_layout(tmp_path: Path) -> None:
    """Tab-separated with a header, plain or compressed, as JSON lines: the same rows."""
    task = TASKS["hans"]
    columns = ["gold_label", "sentence1", "sentence2", "pairID", "heuristic", "subcase", "template"]
    source = [json.loads(line) for line in golden_file(task, tmp_path).read_text(encoding="utf-8").splitlines()]
    keys = ["label", "premise", "hypothesis", "pairID", "heuristic", "subcase", "template"]
    lines = ["\t".join(columns), *("\t".join(row[key] for key in keys) for row in source)]
    (tmp_path / "set.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    (tmp_path / "set.txt.gz").write_bytes(gzip.compress(("\n".join(lines) + "\n").encode()))
    hashes = {task.read(tmp_path / name, 0).hash for name in ("rows.jsonl", "set.txt", "set.txt.gz")}
    assert len(hashes) == 1
