"""Every task from its own published format, against rows written by hand; and from the real files, where at hand.

The files in golden/ hold sentences made up for these tests, in the layout that each set is published in; what they must
give stands beside them, once for all tasks of a kind.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from evals.tasks import TASKS
from evals.tasks.task import Rows
from merge.errors import TaskError

GOLDEN = Path(__file__).parents[1] / "golden"
DATA = Path(os.environ.get("MERGE_MODELS_DATA") or Path(__file__).parents[4] / "shared" / "data")

NLI = ("entailment", "neutral", "contradiction")
PARAPHRASE = {"mrpc": "equivalent", "qqp": "duplicate", "advglue_qqp": "duplicate"}
# Task -> its file in its published format, and the kind of rows that it holds.
PUBLISHED = {
    "cola": ("cola/dev.tsv", "acceptability"),
    "cola_in_domain": ("cola_in_domain/in_domain_dev.tsv", "acceptability"),
    "cola_out_of_domain": ("cola_out_of_domain/out_of_domain_dev.tsv", "acceptability"),
    "sst2": ("sst2/dev.tsv", "sentiment"),
    "mrpc": ("mrpc/dev.tsv", "paraphrase"),
    "qqp": ("qqp/dev.tsv", "paraphrase"),
    "stsb": ("stsb/dev.tsv", "sts"),
    "mnli": ("mnli/dev_matched.tsv", "nli"),
    "mnli_mismatched": ("mnli_mismatched/dev_mismatched.tsv", "nli"),
    "qnli": ("qnli/dev.tsv", "qnli"),
    "rte": ("rte/dev.tsv", "nli"),
    "wnli": ("wnli/dev.tsv", "nli"),
    "hans": ("hans/heuristics_evaluation_set.txt", "nli"),
    "paws_qqp": ("paws_qqp/dev_and_test.tsv", "paraphrase"),
    "paws_wiki": ("paws_wiki/test.tsv", "paraphrase"),
    "snli": ("snli/snli_1.0_test.jsonl", "nli"),
    "sick": ("sick/SICK_test_annotated.txt", "nli"),
    "xnli": ("xnli/xnli.test.tsv", "nli"),
    "breaking_nli": ("breaking_nli/data.jsonl", "nli"),
    "lingnli": ("lingnli/validation.jsonl", "nli"),
    "taxinli": ("taxinli/taxinli10k.tsv", "nli"),
    "advglue_sst2": ("advglue/dev.json", "sentiment"),
    "advglue_qqp": ("advglue/dev.json", "paraphrase"),
    "advglue_mnli": ("advglue/dev.json", "nli"),
    "advglue_mnli_mm": ("advglue/dev.json", "nli"),
    "advglue_qnli": ("advglue/dev.json", "qnli"),
    "advglue_rte": ("advglue/dev.json", "nli"),
}


def expected(name: str) -> tuple[list[tuple[str, ...]], list[Any]]:
    """Return the texts and the gold labels, by the task's own names, that a task's file must give."""
    kind = PUBLISHED[name][1]
    rows = json.loads((GOLDEN / f"expected_{kind}.json").read_text(encoding="utf-8"))
    texts, gold = [tuple(row[:-1]) for row in rows], [row[-1] for row in rows]
    if name == "advglue_mnli_mm":  # its pairs stand the other way round, so that mnli's are not taken for them
        texts = [text[::-1] for text in texts]
    if name == "sst2":  # each sentence of its published files ends in a blank, which is part of the text
        texts = [(f"{text} ",) for (text,) in texts]
    word = PARAPHRASE.get(name, "paraphrase")
    other = "non-entailment" if name == "hans" else "not_entailment"
    names = {
        "acceptability": {"negative": "unacceptable", "positive": "acceptable"},
        "paraphrase": {"negative": f"not_{word}", "positive": word},
        "nli": {} if TASKS[name].labels == NLI else {"neutral": other, "contradiction": other},
    }.get(kind, {})
    return texts, [names.get(label, label) for label in gold]


def gold_names(rows: Rows) -> list[Any]:
    """Return the gold labels by name, or the numbers of a regression task."""
    return [rows.labels[int(k)] for k in rows.gold] if rows.labels else list(rows.gold)


def test_every_task_has_a_golden_file() -> None:
    assert set(PUBLISHED) == set(TASKS)


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_published_format_gives_the_rows_written_in_it(name: str) -> None:
    """Texts, labels and count, read from the file and from the folder that holds it."""
    path = GOLDEN / PUBLISHED[name][0]
    rows = TASKS[name].read(path, 0)
    texts, gold = expected(name)
    assert len(rows) == 20
    assert list(rows.texts) == texts
    assert gold_names(rows) == gold
    assert len(set(rows.ids)) == 20
    if name != "hans":  # whose --data is a file
        assert TASKS[name].read(path.parent, 0) == rows


def test_rows_that_are_left_out_are_counted_and_said() -> None:
    """SNLI's pairs without a majority, and XNLI's other languages: 1 of 21 and 3 of 23."""
    snli = TASKS["snli"].read(GOLDEN / "snli", 0)
    assert snli.data == "snli_1.0_test.jsonl, 20 rows; 1 row without a gold label left out"
    xnli = TASKS["xnli"].read(GOLDEN / "xnli", 0)
    assert xnli.data == "xnli.test.tsv, 20 rows; 3 rows whose language is not en left out"


def test_rows_without_a_label_are_left_out_where_the_set_has_them_and_nowhere_else(tmp_path: Path) -> None:
    """The Hub's SNLI says -1 for a pair without a majority; in MNLI it is the sign of a test split, and refused."""
    pair = {"premise": "a", "hypothesis": "b"}
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps({**pair, "label": k}) + "\n" for k in (-1, 2, -1)), encoding="utf-8")
    rows = TASKS["snli"].read(path, 0)
    assert rows.gold == (2,)
    assert rows.data.endswith("1 row; 2 rows without a gold label left out")
    with pytest.raises(TaskError, match=r"line 1, column label: expected .* found -1"):
        TASKS["mnli"].read(path, 0)
    path.write_text(json.dumps({**pair, "label": -1}) + "\n", encoding="utf-8")
    with pytest.raises(TaskError, match="expected rows, found none with a label"):
        TASKS["snli"].read(path, 0)


def test_three_way_gold_labels_fold_into_two_and_it_is_said(tmp_path: Path) -> None:
    """RTE asks for entailment alone; a three-way release of it is read, and the report says what was done."""
    path = tmp_path / "rte.jsonl"
    labels = ("entailment", "contradiction", "Neutral", "not_entailment")
    lines = [json.dumps({"sentence1": "a", "sentence2": "b", "label": label}) + "\n" for label in labels]
    path.write_text("".join(lines), encoding="utf-8")
    rows = TASKS["rte"].read(path, 0)
    assert rows.gold == (0, 1, 1, 1)
    assert rows.data.endswith("4 rows; 2 gold labels folded into entailment, not_entailment")
    with pytest.raises(TaskError, match="column label: expected entailment, not_entailment or 0 to 1, found"):
        TASKS["advglue_qnli"].read(write_pairs(tmp_path / "qnli.jsonl", "question", "sentence", "neutral"), 0)


def write_pairs(path: Path, first: str, second: str, label: object) -> Path:
    path.write_text(json.dumps({first: "a", second: "b", "label": label}) + "\n", encoding="utf-8")
    return path


def test_a_repeated_id_is_no_id(tmp_path: Path) -> None:
    """Prediction files name each row once, so rows are numbered where the file's names will not do."""
    path = tmp_path / "rows.jsonl"
    lines = [json.dumps({"id": 7, "sentence": f"s {k}", "label": 1}) + "\n" for k in range(3)]
    path.write_text("".join(lines), encoding="utf-8")
    assert TASKS["sst2"].read(path, 0).ids == ("0", "1", "2")
    path.write_text(lines[0], encoding="utf-8")
    assert TASKS["sst2"].read(path, 0).ids == ("7",)


def test_bytes_that_python_printed_are_no_text(tmp_path: Path) -> None:
    """The script that makes PAWS-QQP writes b'...' when a later Python runs it; a model would read the b."""
    with pytest.raises(TaskError, match=r"line 1, column sentence1: .* bytes as Python prints them"):
        TASKS["paws_qqp"].read(write_row(tmp_path / "b.jsonl", "b'How?'"), 0)
    assert TASKS["paws_qqp"].read(write_row(tmp_path / "c.jsonl", "b' is a letter"), 0).texts[0][0] == "b' is a letter"


def write_row(path: Path, text: str) -> Path:
    path.write_text(json.dumps({"sentence1": text, "sentence2": "b", "label": 1}) + "\n", encoding="utf-8")
    return path


@pytest.mark.parametrize("name", [name for name, task in TASKS.items() if task.source.startswith("--data")])
def test_a_task_that_is_on_no_hub_says_which_file_it_wants(name: str) -> None:
    with pytest.raises(
        TaskError, match=f"{name} data: the Hub has no edition .* give a file such as .*, or its folder, as --data"
    ):
        TASKS[name].read(None, 0)


# ---- regression ----


@pytest.mark.parametrize("value", ["5.1", "-1", "nan", "inf", "high", None, True, ""])
def test_a_score_out_of_its_scale_is_refused(tmp_path: Path, value: object) -> None:
    """Test splits carry -1; STS-B's scale ends at 5."""
    path = write_pairs(tmp_path / "a.jsonl", "sentence1", "sentence2", value)
    with pytest.raises(TaskError, match="line 1, column label: expected a number from 0 to 5, found"):
        TASKS["stsb"].read(path, 0)


@pytest.mark.parametrize(("value", "number"), [("0", 0.0), ("3.250", 3.25), (5, 5.0), (4.8, 4.8)])
def test_a_score_is_read_as_the_number_it_says(tmp_path: Path, value: object, number: float) -> None:
    path = write_pairs(tmp_path / "a.jsonl", "sentence1", "sentence2", value)
    assert TASKS["stsb"].read(path, 0).gold == (number,)


# ---- CoLA's two halves ----


def whole_cola(path: Path, count: int = 1043) -> Path:
    """Write rows that know their place, in GLUE's layout without a header."""
    lines = [f"gj04\t{k % 2}\t\tsentence {k}\n" for k in range(count)]
    path.write_text("".join(lines), encoding="utf-8")
    return path


def test_colas_halves_are_the_two_parts_of_glues_split(tmp_path: Path) -> None:
    """The first 527 rows and the other 516: together, in order, the whole."""
    folder = tmp_path / "CoLA"
    folder.mkdir()
    whole = TASKS["cola"].read(whole_cola(folder / "dev.tsv"), 0)
    inside, outside = (TASKS[f"cola_{part}"].read(tmp_path, 0) for part in ("in_domain", "out_of_domain"))
    assert (len(inside), len(outside)) == (527, 516)
    assert inside.texts + outside.texts == whole.texts
    assert inside.gold + outside.gold == whole.gold
    assert inside.ids + outside.ids == whole.ids
    assert inside.data == "dev.tsv, 527 rows; rows 0 to 526 of 1,043"


def test_a_split_of_another_size_has_no_halves(tmp_path: Path) -> None:
    """Where the domains part is known for GLUE's split alone; a file of one half is taken whole, under its own name."""
    with pytest.raises(TaskError, match="expected the whole split of 1,043 rows, .* found 1,042"):
        TASKS["cola_in_domain"].read(whole_cola(tmp_path / "dev.tsv", 1042), 0)
    assert len(TASKS["cola_in_domain"].read(whole_cola(tmp_path / "in_domain_dev.tsv", 9), 0)) == 9
    assert TASKS["cola_in_domain"].read(whole_cola(tmp_path / "mine.tsv", 9), 0).split == "mine"


def test_a_cola_file_with_a_header_is_read_by_it(tmp_path: Path) -> None:
    """GLUE's file has none, people's files do; without one the first line is a row, the control."""
    path = tmp_path / "mine.tsv"
    path.write_text("sentence\tlabel\nA cat sat.\t1\n", encoding="utf-8")
    assert TASKS["cola"].read(path, 0).texts == (("A cat sat.",),)
    path.write_text("gj04\t1\t\tA dog sat.\ngj04\t0\t*\tSat dog a.\n", encoding="utf-8")
    assert TASKS["cola"].read(path, 0).texts == (("A dog sat.",), ("Sat dog a.",))


# ---- folders ----


def test_a_folder_of_all_of_glue_is_searched_by_the_tasks_own_folder(tmp_path: Path) -> None:
    """As the GLUE download lays them out; dev.tsv of another task is never taken."""
    for name, folder in (("sst2", "SST-2"), ("mrpc", "MRPC"), ("stsb", "STS-B")):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "dev.tsv").write_bytes((GOLDEN / name / "dev.tsv").read_bytes())
    for name in ("sst2", "mrpc", "stsb"):
        assert TASKS[name].read(tmp_path, 0) == TASKS[name].read(GOLDEN / name, 0)
    with pytest.raises(TaskError, match=r"qqp data .*: expected one of validation.jsonl, dev.tsv \(or .gz\)"):
        TASKS["qqp"].read(tmp_path, 0)


# ---- the real data, where it is at hand ----

TWO_WAY = ("entailment", "not_entailment")
# Task, file or folder, rows, and how many of each class, in the order of the integers; from the sets' own descriptions.
REAL = [
    ("cola", "cola", 1043, (322, 721)),
    ("cola", "cola/glue_layout", 1043, (322, 721)),
    ("cola_in_domain", "cola", 527, (162, 365)),
    ("cola_out_of_domain", "cola", 516, (162, 354)),
    ("sst2", "sst2", 872, (428, 444)),
    ("mrpc", "mrpc", 408, (129, 279)),
    ("mrpc", "mrpc/glue_layout", 408, (129, 279)),
    ("qqp", "qqp/validation.10k.jsonl.gz", 10_000, (5000, 5000)),
    ("qqp", "qqp/glue_layout/dev.1k.tsv.gz", 1000, None),
    ("stsb", "stsb", 1500, None),
    ("stsb", "stsb/glue_layout/dev.1k.tsv.gz", 1000, None),
    ("mnli", "mnli", 9815, (3479, 3123, 3213)),
    ("mnli_mismatched", "mnli/validation_mismatched.partial.jsonl.gz", 4526, None),
    ("mnli_mismatched", "mnli/glue_layout/dev_mismatched.1k.tsv.gz", 1000, None),
    ("qnli", "qnli", 5463, (2702, 2761)),
    ("qnli", "qnli/glue_layout", 5463, (2702, 2761)),
    ("rte", "rte", 277, (146, 131)),
    ("rte", "rte/glue_layout", 277, (146, 131)),
    ("wnli", "wnli", 71, (40, 31)),
    ("hans", "hans/validation.regenerated.jsonl.gz", 30_000, (15_000, 15_000)),
    ("paws_qqp", "paws_qqp", 677, (486, 191)),
    ("paws_wiki", "paws_wiki_en/validation.2k.jsonl.gz", 2000, None),
    ("snli", "snli/validation.1k.jsonl.gz", 996, (346, 309, 341)),
    ("sick", "sick", 4927, (1414, 2793, 720)),
    ("xnli", "xnli_en/validation.jsonl.gz", 2490, (830, 830, 830)),
    ("breaking_nli", "breaking_nli", 8193, (982, 47, 7164)),
    ("lingnli", "lingnli", 7371, (2560, 2443, 2368)),
    ("taxinli", "taxinli", 10_071, None),
    ("advglue_sst2", "advglue", 148, (72, 76)),
    ("advglue_qqp", "advglue", 78, (46, 32)),
    ("advglue_mnli", "advglue", 121, (32, 39, 50)),
    ("advglue_mnli_mm", "advglue", 162, (60, 45, 57)),
    ("advglue_qnli", "advglue", 148, (74, 74)),
    ("advglue_rte", "advglue", 81, (35, 46)),
]


# Files of more rows cost over a second to read.
MOST_QUICK_ROWS = 9_999


def test_every_task_is_read_from_real_data() -> None:
    assert {name for name, *_ in REAL} == set(TASKS)


@pytest.mark.parametrize(
    ("name", "where", "count", "classes"),
    [
        pytest.param(*row, id=f"{row[0]}-{row[1]}", marks=pytest.mark.slow if row[2] > MOST_QUICK_ROWS else ())
        for row in REAL
    ],
)
def test_real_files_have_their_published_counts(
    name: str, where: str, count: int, classes: tuple[int, ...] | None
) -> None:
    """Rows and classes as the sets' authors count them: a label order that is wrong, or quotes that swallow rows, show."""
    if not (DATA / where).exists():
        pytest.skip(f"the real {name} data is not at hand")
    rows = TASKS[name].read(DATA / where, 0)
    assert len(rows) == count
    found = Counter(rows.gold)
    if classes is not None:
        assert tuple(found[k] for k in range(len(rows.labels))) == classes
    assert set(found) == set(range(len(rows.labels))) or TASKS[name].regression


def test_two_layouts_of_the_same_real_rows_agree() -> None:
    """GLUE's tab-separated files against JSON lines, text by text (spaces aside) and label by label."""
    pairs = [
        ("cola", "cola", "cola/glue_layout"),
        ("mrpc", "mrpc", "mrpc/glue_layout"),
        ("rte", "rte", "rte/glue_layout"),
        ("qnli", "qnli", "qnli/glue_layout"),
    ]
    if not all((DATA / where).exists() for _, *both in pairs for where in both):
        pytest.skip("the real GLUE data is not at hand")
    for name, *both in pairs:
        first, second = (TASKS[name].read(DATA / where, 0) for where in both)
        same = [
            [" ".join(part.split()) for part in a] == [" ".join(part.split()) for part in b]
            for a, b in zip(first.texts, second.texts, strict=True)
        ]
        assert sum(same) >= len(first) - 9  # CoLA was mended between its two releases
        assert sum(a == b for a, b in zip(first.gold, second.gold, strict=True)) >= len(first) - 2
