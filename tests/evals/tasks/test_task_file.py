"""A user's own task: read as it says, and every fault of the file on a line with its place."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from evals.tasks import TASKS, find_task
from evals.tasks.label_names import column_of
from merge.errors import TaskError, UsageError

REVIEWS = """\
name: reviews
data: reviews.csv
columns: [text]
label_column: stars
labels: [bad, good]
metric: f1
aliases: {negative: bad, positive: good}
coarse: {awful: bad}
"""


def task_file(folder: Path, text: str = REVIEWS, name: str = "task.yaml") -> str:
    (folder / name).write_text(text, encoding="utf-8")
    return str(folder / name)


def reviews(folder: Path) -> None:
    text = 'text,stars\nfine,good\n"dull, slow",0\nnever again,Negative\nhelp,awful\n'
    (folder / "reviews.csv").write_text(text, encoding="utf-8")


def fails(path: str, *parts: str) -> None:
    """Assert one line that holds the parts."""
    with pytest.raises(UsageError) as caught:
        find_task(path)
    assert str(caught.value).count("\n") == 0
    for part in parts:
        assert part in str(caught.value)


def test_a_task_file_is_a_task(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Names, integers, aliases and finer classes of the label column; the data's path is seen from the task file."""
    reviews(tmp_path)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    task = find_task(task_file(tmp_path))
    assert (task.name, task.labels, task.metric) == ("reviews", ("bad", "good"), "mrpc")
    rows = task.read(None, 0)
    assert rows.texts == (("fine",), ("dull, slow",), ("never again",), ("help",))
    assert rows.gold == (1, 0, 0, 0)
    assert rows.data == "reviews.csv, 4 rows; 1 gold label folded into bad"
    assert rows.split == "reviews"
    assert column_of(task, ("positive", "negative"), "m/") == (1, 0)
    assert column_of(task, ("awful", "bad", "good"), "m/") == (0, 0, 1)


@pytest.mark.parametrize("name", ["task.yaml", "task.yml", "TASK.YAML"])
def test_either_ending_will_do(tmp_path: Path, name: str) -> None:
    assert find_task(task_file(tmp_path, name=name)).name == "reviews"


@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".parquet", ".csv"])
def test_every_format_gives_the_same_rows(tmp_path: Path, suffix: str) -> None:
    """A pair and a number: the hash of the rows does not depend on how they are stored."""
    import datasets

    pairs = [{"a": f"one {k}", "b": f"two {k}", "score": k / 2} for k in range(5)]
    text = f"name: likeness\ndata: rows{suffix}\ncolumns: [a, b]\nlabel_column: score\nregression: true\n"
    made = datasets.Dataset.from_list(pairs)
    if suffix == ".parquet":
        made.to_parquet(tmp_path / "rows.parquet")
    elif suffix == ".csv":
        made.to_csv(tmp_path / "rows.csv")
    else:
        lines = "".join(json.dumps(pair) + "\n" for pair in pairs)
        (tmp_path / f"rows{suffix}").write_text(lines if suffix == ".jsonl" else json.dumps(pairs), encoding="utf-8")
    task = find_task(task_file(tmp_path, text))
    rows = task.read(None, 0)
    assert task.regression
    assert task.metric == "stsb"
    assert rows.texts == tuple((pair["a"], pair["b"]) for pair in pairs)
    assert rows.gold == (0.0, 0.5, 1.0, 1.5, 2.0)


def test_other_data_may_be_given_to_a_task_file(tmp_path: Path) -> None:
    """--data takes the place of the file's own, as with any task; a folder has no file of the task's name."""
    reviews(tmp_path)
    (tmp_path / "more.csv").write_text("text,stars\nx,good\n", encoding="utf-8")
    task = find_task(task_file(tmp_path))
    assert task.read(tmp_path / "more.csv", 0).texts == (("x",),)
    with pytest.raises(TaskError, match="found a folder; name one file in it"):
        task.read(tmp_path, 0)


def test_classes_named_by_digits_are_names_and_not_places(tmp_path: Path) -> None:
    """Stars 1 to 3: the integer 1 is the class 1, which stands first, and there is no class 0."""
    text = REVIEWS.split("labels:")[0] + 'labels: ["1", "2", "3"]\n'
    (tmp_path / "reviews.csv").write_text("text,stars\na,1\nb,3\n", encoding="utf-8")
    task = find_task(task_file(tmp_path, text))
    assert task.read(None, 0).gold == (0, 2)
    for wrong in ("0", "-1"):
        (tmp_path / "reviews.csv").write_text(f"text,stars\na,{wrong}\n", encoding="utf-8")
        with pytest.raises(TaskError, match=f"line 2, column stars: expected 1, 2, 3, found '{wrong}'"):
            task.read(None, 0)


def test_a_hub_dataset_is_read_by_its_split(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stand-in answers; classes that the Hub stores as integers count by the names it gives them."""
    import datasets

    asked = []

    def answer(name: str, config: str, *, split: str) -> datasets.Dataset:
        asked.append((name, config, split))
        features = datasets.Features(
            {"text": datasets.Value("string"), "stars": datasets.ClassLabel(names=["good", "bad"])}
        )
        return datasets.Dataset.from_dict({"text": ["a", "b"], "stars": [0, 1]}, features=features)

    monkeypatch.setattr(datasets, "load_dataset", answer)
    task = find_task(task_file(tmp_path, REVIEWS.replace("reviews.csv", "org/reviews:small/test")))
    rows = task.read(None, 0)
    assert asked == [("org/reviews", "small", "test")]
    assert rows.gold == (1, 0)
    assert (rows.split, rows.data) == ("test", "org/reviews:small/test, 2 rows")


@pytest.mark.parametrize("data", ["none.csv", "org/reviews", "org/reviews:small", "/none/rows.csv"])
def test_data_that_is_not_there_is_one_line(tmp_path: Path, data: str) -> None:
    """A Hub dataset without a split would be its training set, so it is no Hub dataset here."""
    task = find_task(task_file(tmp_path, REVIEWS.replace("reviews.csv", data)))
    with pytest.raises(TaskError, match="there is no such file. Paths in .* named with its split") as caught:
        task.read(None, 0)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("old", "new", "parts"),
    [
        ("metric: f1", "metrics: f1", (":6:1: metrics: unknown key. Did you mean 'metric'?",)),
        ("metric: f1", "metric: f2", (":6:1: metric: unknown metric 'f2'. Did you mean 'f1'?",)),
        ("metric: f1", "metric: pearson", ("metric pearson does not fit classes",)),
        ("labels: [bad, good]", "labels: [bad]", (":5:1: labels: expected at least two classes",)),
        ("labels: [bad, good]", "labels: [not bad, non-bad]", ("labels: expected at least two classes of different names",)),
        ("labels: [bad, good]", "labels: [no, good]", ("expected text; put it in quotes",)),
        ("labels: [bad, good]", "labels: [bad, good, fair]", ("the second of two classes; found 3 classes",)),
        ("labels: [bad, good]", "regression: true", ("aliases and coarse name classes",)),
        ("labels: [bad, good]\n", "", ("a task has either labels (its class names) or regression: true",)),
        ("columns: [text]", "columns: [a, b, c]", (":3:1: columns: ", "at most 2")),
        ("columns: [text]\n", "", ("columns: is required",)),
        ("positive: good", "positive: god", (":7:1: aliases: 'positive' is mapped to 'god', which is not a class. Did",)),
        ("name: reviews", "name: re views", (":1:1: name: ",)),
        ("name: reviews", "name: mnli", (":1:1: name: 'mnli' is the name of a built-in task",)),
        ("name: reviews", "name: reviews\nname: again", (":2:1: key 'name' is given twice",)),
        (REVIEWS, "", ("a task file is a mapping of keys (name, data, columns, ...), found an empty file",)),
    ],
)  # fmt: skip
def test_a_fault_of_the_file_is_one_line_with_its_place(
    tmp_path: Path, old: str, new: str, parts: tuple[str, ...]
) -> None:
    """The file before the change is read, so the fault is the change's."""
    assert old in REVIEWS
    assert find_task(task_file(tmp_path)).name == "reviews"
    path = task_file(tmp_path, REVIEWS.replace(old, new))
    fails(path, path, *parts)


def test_a_task_file_that_is_not_there_is_one_line(tmp_path: Path) -> None:
    fails(str(tmp_path / "none.yaml"), "task file", "none.yaml cannot be read")


def test_the_gold_labels_of_a_three_way_set_can_be_folded_for_a_two_way_model(tmp_path: Path) -> None:
    """What a built-in task refuses to do unasked, a task file asks for."""
    two = ("entailment", "not_entailment")
    with pytest.raises(TaskError, match="gold labels are not folded.* in a task file of your own"):
        column_of(TASKS["mnli"], two, "m/")
    text = (
        "name: mnli_two\ndata: rows.jsonl\ncolumns: [premise, hypothesis]\nlabel_column: label\n"
        "labels: [entailment, not_entailment]\ncoarse: {neutral: not_entailment, contradiction: not_entailment}\n"
    )
    rows = [{"premise": "a", "hypothesis": "b", "label": label} for label in TASKS["mnli"].labels]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    task = find_task(task_file(tmp_path, text))
    assert task.read(None, 0).gold == (0, 1, 1)
    assert column_of(task, two, "m/") == (0, 1)
