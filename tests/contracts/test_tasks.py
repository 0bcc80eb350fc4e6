"""The battery every evaluation task faces."""

from __future__ import annotations

import gzip
import json
import random
from collections import Counter
from itertools import permutations
from pathlib import Path
from typing import Any

import pytest
from scipy.stats import pearsonr, spearmanr
from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef

from evals.heuristics.grammar import generate
from evals.scores.glue import task_scores
from evals.tasks import GLUE, TASKS, find_task
from evals.tasks.label_names import column_of
from evals.tasks.table import TaskTable
from evals.tasks.task import METRICS, EvalTask, Rows
from merge.errors import TaskError, UsageError

LENGTH = 90
CLASSES = [name for name, task in TASKS.items() if not task.regression]
ORACLES = {
    "accuracy": lambda said, gold: accuracy_score(gold, said),
    "f1": lambda said, gold: f1_score(gold, said),
    "matthews_correlation": lambda said, gold: matthews_corrcoef(gold, said),
    "pearson": lambda said, gold: pearsonr(gold, said)[0],
    "spearmanr": lambda said, gold: spearmanr(gold, said)[0],
}
# A constant prediction has no correlation with anything.
CONSTANT_IS_ZERO = ("matthews_correlation",)


def json_rows(task: EvalTask, names: bool = True) -> list[dict[str, Any]]:
    """Return rows in a task's own columns, classes in turn but unevenly many; labels as names, or as integers."""
    gold: list[Any] = [round((7 * k % 51) / 10, 1) for k in range(LENGTH)]
    if task.labels:
        gold = [min(k % 4, len(task.labels) - 1) for k in range(LENGTH)]
        gold = [task.labels[k] for k in gold] if names else gold
    if isinstance(task.read, TaskTable):
        columns, label = task.read.columns, task.read.label_columns[-1]
        return [
            {"idx": k, label: gold[k], **{known[0]: f"text {at} of {k}" for at, known in enumerate(columns)}}
            for k in range(LENGTH)
        ]
    where = {"heuristic": "lexical_overlap", "subcase": "ln_passive", "template": "temp1"}
    return [
        {"pairID": f"ex{k}", "premise": f"p {k}", "hypothesis": f"h {k}", "label": gold[k], **where}
        for k in range(LENGTH)
    ]


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture(params=TASKS)
def task(request: pytest.FixtureRequest) -> EvalTask:
    return TASKS[request.param]


@pytest.fixture
def rows(task: EvalTask, tmp_path: Path) -> Rows:
    return task.read(write(tmp_path / "rows.jsonl", json_rows(task)), 0)


def one_line(task: EvalTask, path: Path | None, *parts: str) -> None:
    """Assert that reading is one line that holds the parts."""
    with pytest.raises(TaskError) as caught:
        task.read(path, 0)
    message = str(caught.value)
    assert "\n" not in message
    for part in parts:
        assert part in message


# ---- the table of tasks ----


def test_the_table_names_its_tasks() -> None:
    """A task is found by the name it carries, and a wrong name says the nearest."""
    assert list(TASKS) == [task.name for task in TASKS.values()]
    assert len(TASKS) == 27
    assert all(find_task(name) is TASKS[name] for name in TASKS)
    assert set(GLUE) == {"cola", "sst2", "mrpc", "qqp", "stsb", "mnli", "mnli_mismatched", "qnli", "rte", "wnli"}
    with pytest.raises(UsageError, match="unknown task 'mnly'. Did you mean 'mnli'"):
        find_task("mnly")


def test_classes_stand_in_the_order_of_the_published_integers() -> None:
    """GLUE's and the Hub's: RTE and QNLI put entailment first, WNLI last. A mix-up would score 1 minus the accuracy."""
    three = ("entailment", "neutral", "contradiction")
    two = ("entailment", "not_entailment")
    orders = {
        ("unacceptable", "acceptable"): ("cola", "cola_in_domain", "cola_out_of_domain"),
        ("negative", "positive"): ("sst2", "advglue_sst2"),
        ("not_equivalent", "equivalent"): ("mrpc",),
        ("not_duplicate", "duplicate"): ("qqp", "advglue_qqp"),
        ("not_paraphrase", "paraphrase"): ("paws_qqp", "paws_wiki"),
        three: (
            *("mnli", "mnli_mismatched", "snli", "sick", "xnli", "breaking_nli", "lingnli", "taxinli"),
            *("advglue_mnli", "advglue_mnli_mm"),
        ),
        two: ("qnli", "rte", "advglue_qnli", "advglue_rte"),
        ("not_entailment", "entailment"): ("wnli",),
        ("entailment", "non-entailment"): ("hans",),
        (): ("stsb",),
    }
    assert {name: labels for labels, names in orders.items() for name in names} == {
        name: task.labels for name, task in TASKS.items()
    }


# ---- labels ----


def test_a_task_without_classes_is_a_regression(task: EvalTask) -> None:
    assert task.regression == (task.labels == ())


@pytest.mark.parametrize("task", [name for name in TASKS if name not in CLASSES], indirect=True)
def test_the_column_of_a_regression_is_the_only_one(task: EvalTask) -> None:
    assert column_of(task, ("LABEL_0",), "m/") == (0,)


@pytest.mark.parametrize("task", CLASSES, indirect=True)
def test_labels_are_unique_and_fold_onto_labels(task: EvalTask) -> None:
    """No two classes share a name however it is spelt, and what folds, folds onto a class of the task."""
    assert len({name.casefold() for name in task.labels}) == len(task.labels) >= 2
    assert set(task.coarse.values()) <= set(task.labels)
    for order in permutations(range(len(task.labels))):
        assert column_of(task, tuple(task.labels[k] for k in order), "m/") == order
    if task.coarse:
        assert set(column_of(task, tuple(task.coarse), "m/")) == set(range(len(task.labels)))


def test_aliases_mean_one_class_each(task: EvalTask) -> None:
    """In place of the class's own name an alias counts the same; beside it, it is the class a second time."""
    for alias, name in task.aliases.items():
        labels = task.labels if name in task.labels else tuple(task.coarse)
        assert name in labels
        other = tuple(alias if label == name else label for label in labels)
        assert column_of(task, other, "m/") == column_of(task, labels, "m/")
        with pytest.raises(TaskError):
            column_of(task, (*labels, alias), "m/")


def test_models_with_other_classes_are_refused(task: EvalTask) -> None:
    """Placeholders, a class too few or too many, and a number where classes are asked for: one line each."""
    count = len(task.labels)
    wrong = [tuple(f"LABEL_{k}" for k in range(max(count, 2))), ("apple", "pear", "plum"), ("LABEL_0", "LABEL_1")]
    wrong += [(*task.labels, "other")] if count else []
    wrong += [task.labels[:-1]] if count else []
    for labels in wrong:
        with pytest.raises(TaskError) as caught:
            column_of(task, labels, "m/")
        assert str(caught.value).startswith("m/: ")
        assert "\n" not in str(caught.value)


# ---- rows ----


def test_rows_are_whole(task: EvalTask, rows: Rows) -> None:
    """Every row has text, a gold class and an id of its own."""
    assert len(rows) == LENGTH
    assert len(rows.gold) == len(rows.ids) == len(set(rows.ids)) == LENGTH
    assert rows.labels == task.labels
    assert set(rows.gold) == set(range(len(task.labels))) or task.regression
    assert len({len(text) for text in rows.texts}) == 1
    assert all(part.strip() for text in rows.texts for part in text)
    assert rows.split
    assert "90" in rows.data


def test_reading_twice_gives_the_same_rows(task: EvalTask, tmp_path: Path) -> None:
    path = write(tmp_path / "rows.jsonl", json_rows(task))
    assert task.read(path, 0) == task.read(path, 0)


@pytest.mark.parametrize("task", [name for name in CLASSES if name != "hans"], indirect=True)
def test_integers_mean_the_classes_in_their_order(task: EvalTask, rows: Rows, tmp_path: Path) -> None:
    """The Hub writes integers; turned round, the control, they are other rows. HANS is published with names only."""
    numbered = json_rows(task, names=False)
    path = tmp_path / "numbered.jsonl"
    assert task.read(write(path, numbered), 0).hash == rows.hash
    label = next(key for key, value in numbered[1].items() if value == 1 and key != "idx")
    turned = [{**row, label: len(task.labels) - 1 - row[label]} for row in numbered]
    assert task.read(write(path, turned), 0).hash != rows.hash


def test_a_wrong_label_or_text_is_one_line_with_file_row_and_column(task: EvalTask, tmp_path: Path) -> None:
    """And so is a missing column; the file, the row counted from 1, the column, what was found."""
    first, second, *rest = json_rows(task)
    label = "label" if "label" in second else next(key for key in second if key in ("score", "entailment_label"))
    text = next(key for key, value in second.items() if isinstance(value, str) and key not in (label, "pairID"))
    path = tmp_path / "bad.jsonl"
    for change, parts in (
        ({label: "sideways"}, (f"column {label}", "'sideways'")),
        ({label: None}, (f"column {label}", "None")),
        ({text: " "}, (f"column {text}", "expected text")),
    ):
        one_line(task, write(path, [first, {**second, **change}, *rest]), str(path), " 2", *parts)
    for column in (label, text):
        without = {key: value for key, value in second.items() if key != column}
        one_line(task, write(path, [first, without, *rest]), str(path), " 2", column)


def test_a_missing_file_is_one_line(task: EvalTask, tmp_path: Path) -> None:
    one_line(task, tmp_path / "missing.jsonl", "missing.jsonl")


def test_an_empty_file_is_one_line(task: EvalTask, tmp_path: Path) -> None:
    one_line(task, write(tmp_path / "empty.jsonl", []), "empty.jsonl", "found no")


# ---- scores ----


def test_a_perfect_predictor_scores_one(task: EvalTask, rows: Rows) -> None:
    """And one that is wrong on every row has accuracy zero."""
    assert task_scores(task.metric, rows.gold, rows.gold) == pytest.approx(dict.fromkeys(METRICS[task.metric], 1.0))
    if "accuracy" in METRICS[task.metric]:
        wrong = [(int(k) + 1) % len(task.labels) for k in rows.gold]
        assert task_scores(task.metric, wrong, rows.gold)["accuracy"] == 0.0


@pytest.mark.parametrize("task", CLASSES, indirect=True)
def test_a_constant_predictor_scores_the_base_rate(task: EvalTask, rows: Rows) -> None:
    """For every class: the share of rows that have it as gold; the shares add up to one. Correlations are zero."""
    counts, total = Counter(rows.gold), 0.0
    for k in range(len(task.labels)):
        scores = task_scores(task.metric, [k] * len(rows), rows.gold)
        assert all(scores[name] == 0 for name in CONSTANT_IS_ZERO if name in scores)
        if "accuracy" in scores:
            assert abs(scores["accuracy"] - counts[k] / len(rows)) < 1e-12
            total += scores["accuracy"]
    assert abs(total - ("accuracy" in METRICS[task.metric])) < 1e-12
    assert len(set(counts.values())) > 1


def test_scores_equal_scikit_learns_and_scipys(task: EvalTask, rows: Rows) -> None:
    """On 2 random predictions, under the names of the official metric."""
    generator = random.Random(3)
    for _ in range(2):
        said = [generator.random() if task.regression else generator.randrange(len(task.labels)) for _ in rows.gold]
        scores = task_scores(task.metric, said, rows.gold)
        assert set(scores) == set(METRICS[task.metric])
        for name, score in scores.items():
            assert abs(score - ORACLES[name](said, rows.gold)) < 1e-12


# ---- HANS ----


@pytest.mark.slow
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
    source = json_rows(task)
    write(tmp_path / "rows.jsonl", source)
    keys = ["label", "premise", "hypothesis", "pairID", "heuristic", "subcase", "template"]
    lines = ["\t".join(columns), *("\t".join(row[key] for key in keys) for row in source)]
    (tmp_path / "set.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    (tmp_path / "set.txt.gz").write_bytes(gzip.compress(("\n".join(lines) + "\n").encode()))
    hashes = {task.read(tmp_path / name, 0).hash for name in ("rows.jsonl", "set.txt", "set.txt.gz")}
    assert len(hashes) == 1
