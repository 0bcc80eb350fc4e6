"""GLUE rows from every layout they come in, and one line that says where a malformed one is."""

from __future__ import annotations

import csv
import gzip
import json
import os
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest

from evals.tasks import TASKS
from evals.tasks.glue import MNLI, SST2
from evals.tasks.task import Rows
from merge.errors import TaskError

DATA = Path(os.environ.get("MERGE_MODELS_DATA") or Path(__file__).parents[4] / "shared" / "data")
PAIRS = [
    ("The new rights are nice", "Everyone likes them", "neutral"),
    ('He said "no', "She said nothing", "contradiction"),
    ("A list, of winners", "A list", "entailment"),
]
LABELS = ("entailment", "neutral", "contradiction")
# The header of GLUE's own MNLI development files.
SIXTEEN = [
    "index", "promptID", "pairID", "genre", "sentence1_binary_parse", "sentence2_binary_parse", "sentence1_parse",
    "sentence2_parse", "sentence1", "sentence2", "label1", "label2", "label3", "label4", "label5", "gold_label",
]  # fmt: skip


def write(path: Path, lines: Iterable[str]) -> Path:
    """Write the lines, compressed if the name says so."""
    data = "".join(f"{line}\n" for line in lines).encode()
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return path


def json_lines(label: Callable[[str], Any] = str) -> list[str]:
    return [json.dumps({"premise": p, "hypothesis": h, "label": label(name)}) for p, h, name in PAIRS]


def sixteen_columns() -> list[str]:
    """Return PAIRS in GLUE's layout; the five annotators all say something else than the gold label."""
    rows = [
        [str(100 + k), "1", "1n", "slate", "( p )", "( h )", "(R p)", "(R h)", p, h, *["entailment"] * 5, label]
        for k, (p, h, label) in enumerate(PAIRS)
    ]
    return ["\t".join(row) for row in [SIXTEEN, *rows]]


def fails(path: Path | None, *parts: str, task: str = "mnli") -> str:
    """Assert that reading is one TaskError of one line that holds every part, and return its message."""
    with pytest.raises(TaskError) as caught:
        TASKS[task].read(path, 0)
    message = str(caught.value)
    assert "\n" not in message
    for part in (f"{task} data", *([str(path)] if path else []), *parts):
        assert part in message
    return message


def assert_pairs(rows: Rows) -> None:
    """Assert that these are PAIRS."""
    assert rows.texts == tuple((p, h) for p, h, _ in PAIRS)
    assert tuple(rows.labels[k] for k in rows.gold) == tuple(label for *_, label in PAIRS)
    assert rows.labels == LABELS


# ---- layouts ----


@pytest.mark.parametrize("suffix", ["jsonl", "jsonl.gz"])
@pytest.mark.parametrize(
    "label", [str, LABELS.index, lambda name: str(LABELS.index(name))], ids=["name", "int", "digit"]
)
def test_json_lines_hold_labels_as_names_or_integers(tmp_path: Path, suffix: str, label: Callable[[str], Any]) -> None:
    """The Hub writes GLUE's integers, people write names; plain and compressed are the same rows."""
    rows = MNLI.read(write(tmp_path / f"rows.{suffix}", json_lines(label)), 0)
    assert_pairs(rows)
    assert rows.ids == ("0", "1", "2")
    assert rows.data == f"rows.{suffix}, 3 rows"


def test_every_layout_gives_the_same_rows(tmp_path: Path) -> None:
    """The hash of the rows, under which results are stored, does not depend on how they were written."""
    with (tmp_path / "rows.csv").open("w", newline="", encoding="utf-8") as stream:
        csv.writer(stream).writerows([("label", "hypothesis", "premise"), *((n, h, p) for p, h, n in PAIRS)])
    files = [
        write(tmp_path / "rows.jsonl", json_lines()),
        write(tmp_path / "dev_matched.tsv", sixteen_columns()),
        write(tmp_path / "short.tsv", ["sentence1\tsentence2\tlabel", *("\t".join(pair) for pair in PAIRS)]),
        tmp_path / "rows.csv",
    ]
    read = [MNLI.read(file, 0) for file in files]
    for rows in read:
        assert_pairs(rows)
    assert len({rows.hash for rows in read}) == 1


def test_glues_mnli_layout_is_read_by_its_header(tmp_path: Path) -> None:
    """Sentences stand in columns 9 and 10 of 16 and the gold label last, after five annotators' labels."""
    rows = MNLI.read(write(tmp_path / "dev_matched.tsv", sixteen_columns()), 0)
    assert_pairs(rows)
    assert rows.ids == ("100", "101", "102")
    assert rows.split == "validation_matched"


def test_glues_sst2_layout_is_read(tmp_path: Path) -> None:
    path = write(tmp_path / "dev.tsv", ["sentence\tlabel", "it 's a \" charming journey \t1", "bleak\t0"])
    rows = SST2.read(path, 0)
    assert rows.texts == (("it 's a \" charming journey ",), ("bleak",))
    assert rows.gold == (1, 0)
    assert (rows.split, rows.labels) == ("validation", ("negative", "positive"))


def test_quotes_in_a_tsv_are_plain_characters(tmp_path: Path) -> None:
    """GLUE's files hold lone quotes; read as quoting, the first would swallow the rows up to the next."""
    lines = ["sentence\tlabel", '"lone\t1', "between\t0", 'the next"\t1']
    assert [text for (text,) in SST2.read(write(tmp_path / "dev.tsv", lines), 0).texts] == [
        '"lone',
        "between",
        'the next"',
    ]
    assert len(list(csv.reader([f"{line}\n" for line in lines], delimiter="\t"))) == 2


@pytest.mark.parametrize(
    "name", ["validation_matched.jsonl", "validation_matched.jsonl.gz", "dev_matched.tsv", "dev_matched.tsv.gz"]
)
def test_a_folder_is_read_by_the_file_of_the_split(tmp_path: Path, name: str) -> None:
    """GLUE's folders and the Hub's exports have their own names for the same split; other files are passed by."""
    write(tmp_path / "train.tsv", ["nothing"])
    write(tmp_path / name, sixteen_columns() if ".tsv" in name else json_lines())
    rows = MNLI.read(tmp_path, 0)
    assert_pairs(rows)
    assert (rows.data, rows.split) == (f"{name}, 3 rows", "validation_matched")


def test_another_file_is_not_said_to_be_the_validation_split(tmp_path: Path) -> None:
    """A result must not claim a split it was not measured on."""
    assert (
        MNLI.read(write(tmp_path / "validation_mismatched.jsonl.gz", json_lines()), 0).split == "validation_mismatched"
    )
    assert MNLI.read(write(tmp_path / "dev_matched.1k.tsv", sixteen_columns()), 0).split == "dev_matched.1k"
    assert MNLI.read(write(tmp_path / "validation_matched.jsonl", json_lines()), 0).split == "validation_matched"


def test_blank_lines_are_no_rows(tmp_path: Path) -> None:
    lines = json_lines()
    assert_pairs(MNLI.read(write(tmp_path / "a.jsonl", ["", lines[0], "  ", *lines[1:], ""]), 0))


def test_the_hub_is_asked_for_the_tasks_own_split(monkeypatch: pytest.MonkeyPatch) -> None:
    """A stand-in for the Hub answers with GLUE's columns and integers."""
    import datasets

    asked = []

    def answer(name: str, config: str, *, split: str) -> datasets.Dataset:
        asked.append((name, config, split))
        premises, hypotheses, names = zip(*PAIRS, strict=True)
        labels = [LABELS.index(name) for name in names]
        columns = {"premise": premises, "hypothesis": hypotheses, "label": labels, "idx": [7, 8, 9]}
        return datasets.Dataset.from_dict({key: list(values) for key, values in columns.items()})

    monkeypatch.setattr(datasets, "load_dataset", answer)
    rows = MNLI.read(None, 0)
    assert_pairs(rows)
    assert asked == [("nyu-mll/glue", "mnli", "validation_matched")]
    assert rows.ids == ("7", "8", "9")
    assert (rows.data, rows.split) == ("nyu-mll/glue:mnli/validation_matched, 3 rows", "validation_matched")


# ---- faults ----


@pytest.mark.parametrize(
    ("line", "parts"),
    [
        ('{"premise": "a", "hypothesis": "b"', ("line 2", "expected one JSON object", '"hypothesis": "b"')),
        ("[1, 2]", ("line 2", "expected a JSON object", "[1, 2]")),
        ('{"premise": "a", "label": 0}', ("line 2", "expected a column hypothesis or sentence2", "found premise, label")),
        ('{"premise": "a", "hypothesis": "b"}', ("line 2", "expected a column gold_label or label", "found premise, hypothesis")),
        ('{"premise": "a", "hypothesis": null, "label": 0}', ("line 2, column hypothesis", "expected text", "found None")),
        ('{"premise": 5, "hypothesis": "b", "label": 0}', ("line 2, column premise", "expected text", "found 5")),
        ('{"premise": " ", "hypothesis": "b", "label": 0}', ("line 2, column premise", "expected text", "found ' '")),
        (r'{"premise": "\ud800", "hypothesis": "b", "label": 0}', ("line 2", "half of a surrogate pair")),
        ('{"premise": "a", "hypothesis": "b", "label": 3}', ("line 2, column label", "or 0 to 2", "found 3")),
        ('{"premise": "a", "hypothesis": "b", "label": 1.0}', ("line 2, column label", "found 1.0", "A float is no class")),
        ('{"premise": "a", "hypothesis": "b", "label": true}', ("line 2, column label", "found True", "A bool is no class")),
        ('{"premise": "a", "hypothesis": "b", "label": "None"}', ("line 2, column label", "found 'None'", "has no label")),
        ('{"premise": "a", "hypothesis": "b", "label": "maybe"}', ("line 2, column label", "found 'maybe'", "aliases")),
        ('{"premise": "a", "hypothesis": "b", "label": -1}', ("line 2, column label", "found -1", "Test splits have no labels")),
    ],
)  # fmt: skip
def test_a_malformed_row_is_one_line_with_its_place(tmp_path: Path, line: str, parts: tuple[str, ...]) -> None:
    """File, line, column, expected and found; the good row before it is read, so the fault is this line's."""
    good = json_lines()[0]
    fails(write(tmp_path / "a.jsonl", [good, line]), *parts)
    assert len(MNLI.read(write(tmp_path / "a.jsonl", [good]), 0)) == 1


@pytest.mark.parametrize(
    ("name", "lines", "parts"),
    [
        ("a.tsv", ["sentence\tlabel", "good\t1", "one\ttwo\t0"], ("line 3", "expected 2 fields (sentence, label)", "found 3")),
        ("a.tsv", ["sentence\tlabel", "good\t1", "one\t"], ("line 3, column label", "negative, positive or 0 to 1", "found ''")),
        ("a.tsv", ["good\t1", "bad\t0"], ("line 2", "expected a column sentence", "found good, 1")),
        ("a.csv", ["sentence,label", "good,1", "a, b,0"], ("line 3", "expected 2 fields", "found 3")),
        ("a.csv", ["sentence,label", "good,1", '"open,0'], ("line 3", "unexpected end of data")),
        ("a.tsv", ["sentence\tlabel"], ("expected rows, found none",)),
        ("a.jsonl", [], ("expected rows, found none",)),
        ("a.txt", ["one"], ("line 1", "expected a column sentence", "found a line of text", "Name a file with columns .tsv")),
        ("a.parquet", ["x"], ("a.parquet", "row 1", "cannot be read", "is parquet")),
        ("a.docx", ["x"], ("a.docx", ".jsonl, .csv, .tsv")),
    ],
)  # fmt: skip
def test_a_malformed_table_is_one_line_with_its_place(
    tmp_path: Path, name: str, lines: list[str], parts: tuple[str, ...]
) -> None:
    fails(write(tmp_path / name, lines), *parts, task="sst2")


def test_a_test_split_without_labels_is_refused(tmp_path: Path) -> None:
    """GLUE's test rows carry -1: scored, every model would have accuracy 0."""
    fails(write(tmp_path / "test.jsonl", ['{"sentence": "a", "label": -1}']), "found -1", "use validation", task="sst2")


def test_a_folder_without_the_file_names_what_it_looked_for(tmp_path: Path) -> None:
    write(tmp_path / "train.tsv", sixteen_columns())
    fails(tmp_path, "expected one of validation_matched.jsonl, dev_matched.tsv (or .gz) in the folder")


@pytest.mark.parametrize("name", ["missing.jsonl", "missing", "org/name"])
def test_a_path_that_is_not_there_is_not_looked_for_on_the_hub(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """--data takes a file or folder; org/name would be read from the Hub, and from its train split at that."""
    monkeypatch.chdir(tmp_path)
    fails(Path(name), "there is no such file or folder")


@pytest.mark.parametrize("task", ["mnli", "sst2"])
def test_the_hub_out_of_reach_is_one_line(task: str) -> None:
    """Tests run with the network forbidden, so the true library fails in its own way."""
    fails(None, f"nyu-mll/glue:{task}/", "check the id and the network, or give a file", task=task)


# ---- the real data, where it is at hand ----


def real(name: str) -> Path:
    """Return a real data file, or skip."""
    if not (DATA / name).is_file():
        pytest.skip(f"{name} is not at hand")
    return DATA / name


def test_mnli_validation_has_its_published_label_counts() -> None:
    rows = MNLI.read(real("mnli/validation_matched.jsonl.gz"), 0)
    assert Counter(rows.labels[k] for k in rows.gold) == {"entailment": 3479, "neutral": 3123, "contradiction": 3213}
    assert rows.split == "validation_matched"


def test_glues_own_file_agrees_with_the_json_lines() -> None:
    """1,000 rows of GLUE's dev_matched.tsv against the rows of the same index in the other file."""
    whole = MNLI.read(real("mnli/validation_matched.jsonl.gz"), 0)
    part = MNLI.read(real("mnli/glue_layout/dev_matched.1k.tsv.gz"), 0)
    by_id = {name: (text, gold) for name, text, gold in zip(whole.ids, whole.texts, whole.gold, strict=True)}

    def plain(text: tuple[str, ...]) -> list[list[str]]:
        return [one.split() for one in text]

    assert len(part) == 1000
    for name, text, gold in zip(part.ids, part.texts, part.gold, strict=True):
        assert plain(by_id[name][0]) == plain(text)
        assert by_id[name][1] == gold


def test_sst2_validation_has_its_published_label_counts() -> None:
    rows = SST2.read(real("sst2/validation.jsonl.gz"), 0)
    assert Counter(rows.labels[k] for k in rows.gold) == {"negative": 428, "positive": 444}
