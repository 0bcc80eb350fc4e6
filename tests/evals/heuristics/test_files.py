"""HANS files are read whole or refused in one line that says where and why."""

from __future__ import annotations

import csv
import dataclasses
import gzip
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from evals.heuristics.files import ENDINGS, read_pairs, read_predictions
from evals.heuristics.grammar import HansPair, generate
from evals.tasks.hans import fold
from merge.errors import TaskError

DATA = Path(os.environ.get("MERGE_MODELS_DATA") or Path(__file__).parents[4] / "shared" / "data") / "hans"
needs_data = pytest.mark.skipif(not DATA.is_dir(), reason="needs the evaluation data in ../shared/data")

# The published table, in its order.
COLUMNS = (
    *("gold_label", "sentence1_binary_parse", "sentence2_binary_parse", "sentence1_parse", "sentence2_parse"),
    *("sentence1", "sentence2", "pairID", "heuristic", "subcase", "template"),
)
FIELDS = f"expected 11 fields ({', '.join(COLUMNS)}), found "
ADVICE = "a .tsv file is read without quoting, one row a line."
LINE = "expected an id, a comma and a label, such as 'ex0,neutral', found "
AGAIN = "expected a new id, found 'ex0' again."
LABEL = "expected entailment or non-entailment (or 0 or 1), found "
ROW = {
    "pairID": "ex0",
    "premise": "The judge saw the actor .",
    "hypothesis": "The actor saw the judge .",
    "label": "non-entailment",
    "heuristic": "lexical_overlap",
    "subcase": "ln_subject/object_swap",
    "template": "temp1",
}
PAIR = HansPair("ex0", *[value for key, value in ROW.items() if key != "pairID"])


def written(path: Path, text: str | bytes) -> Path:
    """A file of that text, compressed if its name ends in .gz."""
    data = text.encode() if isinstance(text, str) else text
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return path


def table(**changes: str) -> str:
    """The published table with two rows, the second changed."""
    first = dict.fromkeys(COLUMNS, "") | {
        "gold_label": ROW["label"],
        "sentence1": ROW["premise"],
        "sentence2": ROW["hypothesis"],
        **{key: ROW[key] for key in ("pairID", "heuristic", "subcase", "template")},
    }
    second = first | {"pairID": "ex1"} | changes
    return "\n".join("\t".join(row) for row in (COLUMNS, first.values(), second.values())) + "\n"


def refused(read: Callable[[Path], Any], path: Path) -> str:
    """The one line with which a file is refused, without its folder."""
    with pytest.raises(TaskError) as error:
        read(path)
    message = str(error.value)
    assert "\n" not in message
    assert message.startswith(str(path))
    return message.removeprefix(str(path))


def published(pair: HansPair) -> list[str]:
    """Return the row of the published table that holds a pair, without its parses."""
    tail = (pair.premise, pair.hypothesis, pair.pair_id, pair.heuristic, pair.subcase, pair.template)
    return [pair.label, "", "", "", "", *tail]


@pytest.mark.parametrize("name", ["pairs.txt", "pairs.tsv", "pairs.txt.gz"])
def test_pairs_in_the_published_layout_are_read(name: str, tmp_path: Path) -> None:
    """So a generated set and its file give the same scores."""
    pairs = generate(3)
    rows = [list(COLUMNS), *map(published, pairs)]
    path = written(tmp_path / name, "".join("\t".join(row) + "\n" for row in rows))
    assert read_pairs(path) == pairs
    rows[1][-1] = "temp99"
    path = written(tmp_path / name, "".join("\t".join(row) + "\n" for row in rows))
    assert read_pairs(path) != pairs  # negative control


@pytest.mark.parametrize("name", ["pairs.jsonl", "pairs.jsonl.gz"])
def test_json_lines_are_read_by_their_keys(name: str, tmp_path: Path) -> None:
    """The order of keys in a JSON object says nothing, and keys that make no pair are left alone."""
    backwards = dict(reversed(ROW.items())) | {"pairID": "ex1", "parse_premise": "(ROOT)"}
    path = written(tmp_path / name, f"{json.dumps(ROW)}\n{json.dumps(backwards)}\n")
    assert read_pairs(path) == [PAIR, dataclasses.replace(PAIR, pair_id="ex1")]


def test_the_columns_of_the_table_are_found_by_name(tmp_path: Path) -> None:
    """The authors' scripts look columns up in the header, so the order of the columns says nothing."""
    rows = [line.split("\t") for line in table().splitlines()]
    turned = "\n".join("\t".join(reversed(row)) for row in rows)
    assert read_pairs(written(tmp_path / "turned.txt", turned)) == read_pairs(written(tmp_path / "plain.txt", table()))


def test_quotes_are_plain_characters(tmp_path: Path) -> None:
    """A reader that honours quotes would swallow rows after a stray one; the published layout quotes nothing."""
    text = table(sentence1='The " judge saw the actor .')
    first, second = read_pairs(written(tmp_path / "pairs.txt", text))
    assert (first, second.premise) == (PAIR, 'The " judge saw the actor .')
    swallowed = table(sentence1='"The judge saw the actor .')
    assert len(list(csv.reader(swallowed.splitlines(keepends=True), delimiter="\t"))[-1]) < len(COLUMNS)  # the control
    assert len(read_pairs(written(tmp_path / "pairs.txt", swallowed))) == 2


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.xml", "", f": expected a HANS file in {', '.join(ENDINGS)} (or one of these in .gz), found 'a.xml'."),
        ("a.xml.gz", "", f": expected a HANS file in {', '.join(ENDINGS)} (or one of these in .gz), found 'a.xml.gz'."),
        ("a.jsonl", "", ": expected HANS pairs, found no row."),
        ("a.txt", "\t".join(COLUMNS), ": expected HANS pairs, found no row."),
        ("a.txt", table(gold_label="neutral"), ", line 3: column gold_label: " + LABEL + "'neutral'."),
        ("a.txt", table(sentence2=""), ", line 3: column sentence2: expected text, found ''."),
        ("a.txt", table(subcase=" "), ", line 3: column subcase: expected text, found ' '."),
        ("a.txt", table(pairID="ex0"), ", line 3: column pairID: " + AGAIN),
        ("a.txt", table(template="temp1\tx"), f", line 3: {FIELDS}12; {ADVICE}"),
        ("a.txt", table() + "entailment\t\n", f", line 4: {FIELDS}2; {ADVICE}"),
        ("a.txt", table() + "\n", ", line 4: expected a HANS pair, found a blank line."),
        ("a.jsonl", json.dumps(ROW | {"label": 2}), ", line 1: column label: " + LABEL + "2."),
        ("a.jsonl", json.dumps(ROW | {"label": True}), ", line 1: column label: " + LABEL + "True."),
        ("a.jsonl", json.dumps(ROW | {"label": "-1"}), ", line 1: column label: " + LABEL + "'-1'."),
        ("a.jsonl", json.dumps(ROW | {"heuristic": None}), ", line 1: column heuristic: expected text, found None."),
        ("a.jsonl", f"{json.dumps(ROW)}\n{json.dumps(ROW)}", ", line 2: column pairID: " + AGAIN),
        ("a.jsonl", f"{json.dumps(ROW)}\n\n", ", line 2: expected a HANS pair, found a blank line."),
    ],
)  # fmt: skip
def test_malformed_pairs_are_refused_with_row_and_column(name: str, text: str, message: str, tmp_path: Path) -> None:
    """A row that is guessed or left out would change the score without a word."""
    assert refused(read_pairs, written(tmp_path / name, text)) == message


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("[1]", 'expected a JSON object such as {"text": "..."}, found \'[1]\''),
        (
            '{"pairID" "ex0"}',
            "expected one JSON object a line, found '{\"pairID\" \"ex0\"}' (Expecting ':' delimiter: line 1 column 11 (char 10))",
        ),
        ('{"pairID": "ex0"}', "found pairID: no premise, hypothesis, label, heuristic, subcase, template."),
    ],
)
def test_lines_that_are_no_pairs_are_refused_with_their_number(text: str, part: str, tmp_path: Path) -> None:
    message = refused(read_pairs, written(tmp_path / "a.jsonl", f"{json.dumps(ROW)}\n{text}"))
    assert message.startswith(", line 2: expected ")
    assert part in message


def test_a_header_without_the_columns_is_refused_by_naming_them(tmp_path: Path) -> None:
    """The usual mistake is a headerless or another task's table: the message lists what is wanted and what is there."""
    message = refused(read_pairs, written(tmp_path / "a.txt", table().replace("subcase", "case", 1)))
    assert "line 2: expected columns pairID, sentence1, sentence2, gold_label, heuristic, subcase, template" in message
    assert "found gold_label, sentence1_binary_parse," in message
    assert message.endswith(": no subcase.")
    message = refused(read_pairs, written(tmp_path / "a.txt", table().replace("pairID", "sentence1", 1)))
    assert "line 1: expected different column names, found twice: sentence1" in message


def test_a_file_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    """Missing, not packed though so named, cut short, damaged, a folder, not UTF-8: each is one line, no traceback."""
    assert refused(read_pairs, tmp_path / "none.txt") == ": expected a file, found none."
    (tmp_path / "plain.txt.gz").write_text("gold_label")
    assert "cannot be read: Not a gzipped file" in refused(read_pairs, tmp_path / "plain.txt.gz")
    whole = gzip.compress(table().encode())
    (tmp_path / "cut.txt.gz").write_bytes(whole[:-12])
    assert "cannot be read: " in refused(read_pairs, tmp_path / "cut.txt.gz")
    (tmp_path / "damaged.txt.gz").write_bytes(whole[:20] + b"\xff\xff\xff\xff" + whole[24:])
    assert "cannot be read: " in refused(read_pairs, tmp_path / "damaged.txt.gz")
    (tmp_path / "folder.txt").mkdir()
    assert "cannot be read: " in refused(read_pairs, tmp_path / "folder.txt")
    latin = table(sentence1="Ther\xe9 is the judge .").encode("latin-1")
    assert "expected UTF-8 text, found byte 0xe9" in refused(read_pairs, written(tmp_path / "latin.txt", latin))


@pytest.mark.parametrize("name", ["preds.txt", "preds.txt.gz"])
def test_predictions_are_read_as_they_stand(name: str, tmp_path: Path) -> None:
    """Published files keep three labels and no order of ids; folding them is the scorer's business."""
    path = written(tmp_path / name, "pairID,gold_label\nex7,contradiction\nex0,entailment\r\nex3,non-entailment\n")
    assert list(read_predictions(path).items()) == [
        ("ex7", "contradiction"),
        ("ex0", "entailment"),
        ("ex3", "non-entailment"),
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", ", line 1: expected the header 'pairID,gold_label', found ''."),
        ("ex0,entailment\n", ", line 1: expected the header 'pairID,gold_label', found 'ex0,entailment'."),
        ("pairID,gold_label\nex0,entailment\nex0,neutral\n", ", line 3: expected each id once, found 'ex0' again."),
        ("pairID,gold_label\nex0\n", ", line 2: " + LINE + "'ex0'."),
        ("pairID,gold_label\nex0,\n", ", line 2: " + LINE + "'ex0,'."),
        ("pairID,gold_label\n,neutral\n", ", line 2: " + LINE + "',neutral'."),
        ("pairID,gold_label\nex0,a,b\n", ", line 2: " + LINE + "'ex0,a,b'."),
        ("pairID,gold_label\nex0, neutral\n", ", line 2: " + LINE + "'ex0, neutral'."),
        ("pairID,gold_label\nex0,neutral\n\n", ", line 3: " + LINE + "''."),
    ],
)  # fmt: skip
def test_malformed_predictions_are_refused_with_their_line(text: str, message: str, tmp_path: Path) -> None:
    """The authors' script skips the first line unseen and lets the last of two predictions win; both hide a mistake."""
    assert refused(read_predictions, written(tmp_path / "preds.txt", text)) == message


def test_a_missing_prediction_file_is_refused(tmp_path: Path) -> None:
    """The same line as for pairs."""
    assert refused(read_predictions, tmp_path / "none.txt.gz") == ": expected a file, found none."


@pytest.mark.parametrize("label", ["non-entailment", "contradiction", "neutral", "Not_Entailment", "Contradictory"])
def test_the_names_of_the_other_classes_fold_to_non_entailment(label: str) -> None:
    """As the authors fold them; entailment itself may be written with a capital."""
    assert fold("entailment") == fold("Entailment ") == "entailment"
    assert fold(label) == "non-entailment"


@pytest.mark.parametrize("label", ["0", "LABEL_1", "yes", "x-entailment", ""])
def test_a_label_that_names_no_class_is_not_folded(label: str) -> None:
    """The authors' script counts it as non-entailment, and gives a constant where a model is right."""
    with pytest.raises(TaskError, match="name no class of HANS"):
        fold(label)


@pytest.mark.slow
@needs_data
def test_the_regenerated_set_reads_the_same_from_both_layouts() -> None:
    """Its table carries parse trees, its JSON lines do not; the pairs are one set, and the csv module agrees."""
    pairs = read_pairs(DATA / "heuristics_evaluation_set.regenerated.txt.gz")
    assert pairs == read_pairs(DATA / "validation.regenerated.jsonl.gz")
    with gzip.open(DATA / "heuristics_evaluation_set.regenerated.txt.gz", "rt", encoding="utf-8", newline="") as lines:
        rows = list(csv.DictReader(lines, delimiter="\t", quoting=csv.QUOTE_NONE))
    assert len(pairs) == len(rows) == 30_000
    for pair, row in zip(pairs, rows, strict=True):
        assert (pair.pair_id, pair.premise, pair.hypothesis) == (row["pairID"], row["sentence1"], row["sentence2"])
        assert (pair.label, pair.heuristic, pair.subcase, pair.template) == (
            row["gold_label"], row["heuristic"], row["subcase"], row["template"]
        )  # fmt: skip


@needs_data
def test_published_predictions_read_as_one_label_a_pair() -> None:
    """Four files of 30,000 lines, in whatever order; BERT's hold the label counts that grep finds."""
    files = sorted((DATA / "published_predictions").glob("*.txt.gz"))
    assert len(files) == 4
    for path in files:
        assert set(read_predictions(path)) == {f"ex{k}" for k in range(30_000)}
    labels = list(read_predictions(DATA / "published_predictions" / "bert_preds.txt.gz").values())
    counts = [labels.count(label) for label in ("entailment", "contradiction", "neutral")]
    assert counts == [27_801, 2_018, 181]
