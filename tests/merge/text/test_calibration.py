"""Calibration text: a uniform sample of the whole source, and one clear line when there is none to be had."""

from __future__ import annotations

import csv
import gzip
import importlib.resources
import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from merge.errors import CalibrationError
from merge.text import calibration
from merge.text.calibration import CalibrationText
from merge.text.source import TextSource


def write_lines(path: Path, lines: Iterable[str]) -> str:
    """Write the lines as UTF-8, compressed if the name says so, and return the path as text."""
    data = "".join(f"{line}\n" for line in lines).encode()
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return str(path)


def write_rows(path: Path, rows: Iterable[dict[str, Any]]) -> str:
    """Write one JSON object a line."""
    return write_lines(path, map(json.dumps, rows))


def numbered(count: int) -> list[str]:
    """Return distinct texts that know their place."""
    return [f"text {index}" for index in range(count)]


def read_calibration(
    source: str | None, columns: tuple[str, ...] | None = None, samples: int = 1024, seed: int = 0
) -> CalibrationText:
    return calibration.read_calibration(TextSource(source, columns, samples, seed))


def places(read: CalibrationText) -> list[int]:
    """Return the places of a sample of numbered texts."""
    return [int(texts[0].removeprefix("text ")) for texts in read.samples]


def fails(source: str | None, *parts: str, **settings: Any) -> str:
    """Assert that reading is one CalibrationError of one line that holds every part, and return its message."""
    with pytest.raises(CalibrationError) as caught:
        read_calibration(source, **settings)
    message = str(caught.value)
    assert "\n" not in message
    for part in (source or "", *parts):
        assert part in message
    return message


# ---- the sample ----


def test_the_sample_is_drawn_over_the_whole_file(tmp_path: Path) -> None:
    """With one label in the first half and another in the second, a uniform sample of 300 misses neither.

    The count of first-half rows is hypergeometric with mean 150 and deviation under sqrt(300) / 2 = 8.7; six of these
    is 52. The control is the sample that a reader of the first rows would take: it holds one label only.
    """
    rows = [{"text": f"text {index}", "label": index // 2000} for index in range(4000)]
    read = read_calibration(write_rows(tmp_path / "halves.jsonl", rows), samples=300)
    first_half = sum(place < 2000 for place in places(read))
    assert len(read.samples) == 300
    assert abs(first_half - 150) <= 52
    assert not any("one-sided" in note for note in read.notes)
    assert {row["label"] for row in rows[:300]} == {0}


def test_the_head_of_a_sorted_file_is_reported_as_one_sided(tmp_path: Path) -> None:
    """The head-of-file sample of the test above is what the one-sided note exists for, so it must bring the note."""
    rows = [{"text": f"text {index}", "label": 0} for index in range(300)]
    read = read_calibration(write_rows(tmp_path / "head.jsonl", rows))
    assert [note for note in read.notes if 'one-sided: label is "0"' in note]


def test_every_row_is_drawn_equally_often(tmp_path: Path) -> None:
    """Drawing 10 of 50 rows with 1,000 seeds, each row's count is binomial(1000, 1/5): mean 200, variance 160.

    So the sum of (count - 200)^2 / 160 over the rows has mean 50 and deviation about sqrt(2 * 50) = 10; 100 is five of
    these away. A sampler that takes the first rows scores 10 * 800^2 / 160 + 40 * 200^2 / 160 = 50,000.
    """
    source = write_lines(tmp_path / "fifty.txt", numbered(50))
    counts = Counter(place for seed in range(1000) for place in places(read_calibration(source, samples=10, seed=seed)))
    chi_square = sum((counts[place] - 200) ** 2 / 160 for place in range(50))
    assert sum(counts.values()) == 10_000
    assert chi_square < 100


def test_any_first_part_of_a_sample_is_a_uniform_sample_too(tmp_path: Path) -> None:
    """Over 1,000 seeds each of 10 rows comes first about 100 times (deviation 9.5; six of these is 57)."""
    source = write_lines(tmp_path / "ten.txt", numbered(10))
    counts = Counter(places(read_calibration(source, seed=seed))[0] for seed in range(1000))
    assert all(abs(counts[place] - 100) <= 57 for place in range(10))


def test_no_row_is_drawn_twice(tmp_path: Path) -> None:
    """The rows are distinct, so sampling without replacement gives distinct texts."""
    read = read_calibration(write_lines(tmp_path / "many.txt", numbered(3000)), samples=2000)
    assert len(set(read.samples)) == 2000


def test_the_same_seed_gives_the_same_sample_and_another_seed_another(tmp_path: Path) -> None:
    """The draw depends on the seed alone; two draws of 100 from 3,000 agree with probability below 1e-190."""
    source = write_lines(tmp_path / "many.txt", numbered(3000))
    first = read_calibration(source, samples=100, seed=1)
    assert read_calibration(source, samples=100, seed=1) == first
    assert set(read_calibration(source, samples=100, seed=2).samples) != set(first.samples)


@pytest.mark.parametrize("rows", [299, 300])
def test_a_source_no_larger_than_the_sample_is_used_whole(tmp_path: Path, rows: int) -> None:
    """Without replacement, a sample as large as the source is the source."""
    read = read_calibration(write_lines(tmp_path / "few.txt", numbered(rows)), samples=300)
    assert sorted(places(read)) == list(range(rows))
    assert read.source == f"few.txt: {rows} of {rows} lines, seed 0"


def test_the_source_phrase_counts_rows_and_names_columns(tmp_path: Path) -> None:
    """Reports quote the phrase: the file without its folder, sample and rows with text, columns, seed."""
    rows = [{"premise": f"p {index}", "hypothesis": f"h {index}"} for index in range(2001)]
    source = write_rows(tmp_path / "train.jsonl", rows)
    phrase = "train.jsonl: 1,024 of 2,001 rows, columns premise + hypothesis, seed 7"
    assert read_calibration(source, seed=7).source == phrase
    assert (
        read_calibration(source, ("premise",), samples=5).source
        == "train.jsonl: 5 of 2,001 rows, column premise, seed 0"
    )


# ---- formats and columns ----


def test_pairs_stay_pairs_in_the_order_asked_for(tmp_path: Path) -> None:
    """Text i belongs to pair i in every sample, and the first column named is the first text."""
    rows = [{"premise": f"p {index}", "hypothesis": f"h {index}", "label": index % 3} for index in range(500)]
    source = write_rows(tmp_path / "pairs.jsonl", rows)
    read = read_calibration(source, samples=250)
    assert all(len(pair) == 2 and pair == (f"p {pair[0][2:]}", f"h {pair[0][2:]}") for pair in read.samples)
    swapped = read_calibration(source, ("hypothesis", "premise"), samples=250)
    assert swapped.samples == tuple((hypothesis, premise) for premise, hypothesis in read.samples)


@pytest.mark.parametrize("suffix", [".txt", ".jsonl", ".csv", ".tsv"])
def test_every_format_plain_and_compressed_reads_the_same_texts(tmp_path: Path, suffix: str) -> None:
    """The sample depends on the rows and the seed, so neither the format nor gzip may change it."""
    texts = [f"text {index}: “naïve” café" for index in range(400)]
    lines = {
        ".txt": texts,
        ".jsonl": [json.dumps({"text": text}) for text in texts],
        ".csv": ["text,n", *(f"{text},0" for text in texts)],
        ".tsv": ["text\tn", *(f"{text}\t0" for text in texts)],
    }[suffix]
    plain = read_calibration(write_lines(tmp_path / f"a{suffix}", lines), samples=210)
    packed = read_calibration(write_lines(tmp_path / f"a{suffix}.gz", lines), samples=210)
    reference = read_calibration(write_lines(tmp_path / "reference.txt", texts), samples=210)
    assert plain.samples == packed.samples == reference.samples


def test_csv_quotes_are_read_and_tsv_quotes_are_text(tmp_path: Path) -> None:
    """A csv field may hold commas, quotes and line ends; GLUE's tsv files hold stray quotes that mean nothing."""
    texts = ['He said "no", twice.', "two\nlines", "plain"]
    with (tmp_path / "a.csv").open("w", newline="", encoding="utf-8") as stream:
        csv.writer(stream).writerows([["text", "label"], *([text, 0] for text in texts)])
    assert {text for (text,) in read_calibration(str(tmp_path / "a.csv")).samples} == set(texts)
    source = write_lines(tmp_path / "a.tsv", ["sentence\tlabel", 'He said "no\t1', 'yes" she said\t0'])
    assert set(read_calibration(source).samples) == {('He said "no',), ('yes" she said',)}


def test_a_byte_order_mark_is_not_part_of_the_first_column(tmp_path: Path) -> None:
    """Spreadsheets write UTF-8 with a mark in front; kept, it would hide the column behind it."""
    (tmp_path / "a.csv").write_bytes("text,label\r\nhello,1\r\n".encode("utf-8-sig"))
    assert read_calibration(str(tmp_path / "a.csv")).samples == (("hello",),)


@pytest.mark.parametrize(
    ("header", "chosen"),
    [
        (("text", "label"), ("text",)),
        (("idx", "sentence"), ("sentence",)),
        (("content",), ("content",)),
        (("idx", "premise", "hypothesis", "label"), ("premise", "hypothesis")),
        (("sentence2", "sentence1"), ("sentence1", "sentence2")),
        (("question1", "question2"), ("question1", "question2")),
        (("question", "sentence", "label"), ("question", "sentence")),
        (("text_a", "text_b"), ("text_a", "text_b")),
    ],
)
def test_the_only_well_known_choice_is_taken_and_said(
    tmp_path: Path, header: tuple[str, ...], chosen: tuple[str, ...]
) -> None:
    """QNLI's sentence is half of a pair and no choice of its own; a choice made for the user is in the notes."""
    source = write_rows(tmp_path / "a.jsonl", [{name: f"the {name}" for name in header}])
    read = read_calibration(source)
    assert read.samples == (tuple(f"the {name}" for name in chosen),)
    assert [note for note in read.notes if "no columns were named" in note and " + ".join(chosen) in note]
    assert not [note for note in read_calibration(source, chosen).notes if "no columns were named" in note]


@pytest.mark.parametrize(
    ("header", "found"),
    [
        (("title", "body"), "found none"),
        (("premise", "label"), "found none"),
        (("text", "sentence"), "found more than one (text, sentence)"),
        (("premise", "hypothesis", "text"), "found more than one (premise + hypothesis, text)"),
    ],
)
def test_columns_are_never_guessed(tmp_path: Path, header: tuple[str, ...], found: str) -> None:
    """With no well-known choice, or several, the error lists the columns that there are."""
    source = write_rows(tmp_path / "a.jsonl", [dict.fromkeys(header, "words")])
    fails(source, found, f"Its columns: {', '.join(header)}.")


def test_an_unknown_column_lists_the_columns_and_the_nearest(tmp_path: Path) -> None:
    """Every unknown name is in the one message."""
    source = write_lines(tmp_path / "a.csv", ["premise,hypothesis,label", "a,b,0"])
    unknown = fails(source, "Did you mean 'premise'?", "Known: hypothesis, label, premise.", columns=("premiss", "zzz"))
    assert 'no column "premiss"' in unknown
    assert 'no column "zzz"' in unknown


@pytest.mark.parametrize("columns", [(), ("a", "b", "c"), ("a", "a")])
def test_columns_are_one_or_two_different_ones(tmp_path: Path, columns: tuple[str, ...]) -> None:
    """One column is a text, two are a pair, and nothing else is anything."""
    source = write_rows(tmp_path / "a.jsonl", [{"a": "x", "b": "y", "c": "z"}])
    fails(source, "expected one column (text) or two different ones", f"found {len(columns)}", columns=columns)


def test_a_plain_text_has_no_columns(tmp_path: Path) -> None:
    """Columns asked of lines of text, the package's own included, cannot be honoured."""
    fails(write_lines(tmp_path / "a.txt", ["x"]), "has no columns", columns=("text",))
    fails(None, "has no columns", columns=("text",))


# ---- notes ----


def test_blank_rows_are_not_text_and_are_counted(tmp_path: Path) -> None:
    """White space, null and half a pair are no text: they are neither drawn nor counted as rows, but they are said."""
    lines = read_calibration(write_lines(tmp_path / "a.txt", ["one", "", "  \t", "two"]))
    assert set(lines.samples) == {("one",), ("two",)}
    assert lines.source.startswith("a.txt: 2 of 2 lines")
    assert "2 lines of a.txt have no text and were left out" in lines.notes
    table = read_calibration(write_lines(tmp_path / "a.csv", ["", "text,label", "one,0", "", ",", ",1"]))
    assert table.samples == (("one",),)
    assert "3 rows of a.csv have no text and were left out" in table.notes
    pairs = read_calibration(
        write_rows(tmp_path / "a.jsonl", [{"text_a": a, "text_b": b} for a, b in (("a", None), ("a", "b"), ("", "b"))])
    )
    assert pairs.samples == (("a", "b"),)
    assert "2 rows of a.jsonl have no text and were left out" in pairs.notes


def test_a_small_sample_is_noted_and_a_large_one_is_not(tmp_path: Path) -> None:
    """The bound is 200 texts, whether the file or the number asked for is small."""
    source = write_lines(tmp_path / "a.txt", numbered(250))
    assert read_calibration(source, samples=200).notes == ()
    small = read_calibration(source, samples=199).notes
    assert len(small) == 1
    assert "199 texts" in small[0]


@pytest.mark.parametrize("column", ["label", "gold_label", "labels", "class", "subcase", "heuristic"])
def test_one_label_throughout_the_sample_is_noted(tmp_path: Path, column: str) -> None:
    """A second label silences the note, and so does an unlabelled test set, whose labels are all -1."""

    def one_sided(labels: list[Any]) -> list[str]:
        rows = [{"text": f"text {index}", column: label} for index, label in enumerate(labels)]
        notes = read_calibration(write_rows(tmp_path / "a.jsonl", rows)).notes
        return [note for note in notes if "one-sided" in note]

    assert f'{column} is "yes" in every sampled row;' in one_sided(["yes"] * 220)[0]
    assert one_sided(["yes"] * 219 + ["no"]) == []
    assert one_sided([-1] * 220) == []
    assert one_sided([None] * 220) == []


def test_a_one_sided_sample_of_a_file_with_other_labels_says_so(tmp_path: Path) -> None:
    """Two rows of 2,000 where one is rare hold one label but for luck of one in a thousand; the seed is fixed."""
    rows = [{"text": f"text {index}", "label": int(index == 0)} for index in range(2000)]
    read = read_calibration(write_rows(tmp_path / "a.jsonl", rows), samples=2)
    assert [note for note in read.notes if "although a.jsonl holds others" in note]


def test_more_than_half_repeats_are_noted(tmp_path: Path) -> None:
    """Of 400 texts 201 repeats are more than half, and 200 are not."""
    many = read_calibration(write_lines(tmp_path / "many.txt", [f"text {index % 199}" for index in range(400)]))
    half = read_calibration(write_lines(tmp_path / "half.txt", [f"text {index % 200}" for index in range(400)]))
    assert len(many.notes) == 1
    assert "201 of 400 sampled texts repeat another one" in many.notes[0]
    assert half.notes == ()


def test_a_table_named_txt_is_noted(tmp_path: Path) -> None:
    """HANS ships its tables as .txt; read as lines they would be used with labels, parses and all."""
    source = write_lines(tmp_path / "a.txt", [f"entailment\ttext {index}" for index in range(250)])
    notes = read_calibration(source).notes
    assert len(notes) == 1
    assert "rename it .tsv" in notes[0]


# ---- the embedded text ----


def test_the_embedded_text_ships_and_is_varied() -> None:
    """It lies in the package, about 400 distinct lines, each a text as it stands."""
    lines = (importlib.resources.files("merge.text") / "calibration.txt").read_text(encoding="utf-8").splitlines()
    assert 380 <= len(lines) <= 450
    assert len(set(lines)) == len(lines)
    assert all(line and line == line.strip() for line in lines)
    words = sorted(len(line.split()) for line in lines)
    assert words[0] <= 2
    assert words[-1] >= 30


def test_the_embedded_text_is_the_default_and_says_so() -> None:
    """All of it is used, and the note names the better choice."""
    lines = (importlib.resources.files("merge.text") / "calibration.txt").read_text(encoding="utf-8").splitlines()
    read = read_calibration(None)
    assert sorted(read.samples) == sorted((line,) for line in lines)
    assert read.source == f"the package's own generic text: {len(lines)} of {len(lines)} lines, seed 0"
    assert len(read.notes) == 1
    assert "package's own generic text was used" in read.notes[0]
    assert "--text FILE" in read.notes[0]


# ---- errors ----


@pytest.mark.parametrize(
    ("name", "lines", "parts"),
    [
        ("a.jsonl", ['{"text": "a"}', '{"text": "b"'], ("line 2", "expected one JSON object", '{"text": "b"')),
        ("a.jsonl", ['{"text": "a"}', "", "[1]"], ("line 3", "expected a JSON object", "[1]")),
        ("a.jsonl", ["[" * 100_000], ("line 1", "expected one JSON object")),
        ("a.jsonl", ['{"text": "a"}', '{"n": 1}'], ("line 2", 'expected a column "text"', "found n")),
        ("a.jsonl", ['{"text": "a"}', "{}"], ("line 2", 'expected a column "text"', "found nothing")),
        ("a.jsonl", ['{"text": "a"}', '{"text": 3}'], ("line 2", 'expected text in column "text"', "found int 3")),
        ("a.jsonl", [r'{"text": "\ud800"}'], ("line 1", "half of a surrogate pair")),
        ("a.csv", ["text,label", "one,0", "two"], ("line 3", "expected 2 fields (text, label)", "found 1")),
        ("a.csv", ["text,label", '"a', 'b",0', "x,y,0"], ("line 4", "expected 2 fields", "found 3")),
        ("a.csv", ["text,label", "one,0", '"two,0', "three,0"], ("line 3", "unexpected end of data")),
        ("a.csv", ["text,text", "one,two"], ("line 1", "found twice: text")),
        ("a.tsv", ["text\tlabel", "one\ttwo\t0"], ("line 2", "expected 2 fields (text, label)", "found 3")),
    ],
)
def test_a_faulty_row_names_file_line_expected_and_found(
    tmp_path: Path, name: str, lines: list[str], parts: tuple[str, ...]
) -> None:
    """A row that cannot be read is never skipped, and the same file with good rows is read (the tests above)."""
    fails(write_lines(tmp_path / name, lines), *parts)


@pytest.mark.parametrize("name", ["a.txt", "a.jsonl", "a.csv", "a.tsv", "a.txt.gz", "a.csv.gz"])
def test_bytes_that_are_not_utf8_name_the_line(tmp_path: Path, name: str) -> None:
    """Decoding is line by line, because a block of bytes would not know its line."""
    prefix = b'{"text": "a"}\n' if "jsonl" in name else b"text\n"
    data = prefix + "café\n".encode("latin-1")
    (tmp_path / name).write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
    fails(str(tmp_path / name), "line 2", "expected UTF-8 text, found byte 0xe9")


@pytest.mark.parametrize("name", ["a.txt", "a.txt.gz", "a.jsonl", "a.csv", "a.tsv"])
@pytest.mark.parametrize("lines", [[], ["", " ", ""]])
def test_a_source_without_text_is_empty(tmp_path: Path, name: str, lines: list[str]) -> None:
    """No line and only blank lines are the same thing: nothing to compare models on."""
    fails(write_lines(tmp_path / name, lines), "is empty")


def test_a_header_or_a_column_of_nothing_is_empty(tmp_path: Path) -> None:
    """A table with names but no text holds no text."""
    fails(write_lines(tmp_path / "a.csv", ["text,label"]), "is empty")
    fails(write_lines(tmp_path / "b.csv", ["text,label", ",0", ",1"]), "is empty (all of its 2 rows are blank)")


@pytest.mark.parametrize(
    "name", ["missing.txt", "data/train.jsonl", "data/train.csv.gz", "data/train.json", "glue", "a/b/c"]
)
def test_a_missing_file_is_said_to_be_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """data/train.jsonl looks like org/name, but nobody meant a Hub dataset of that name."""
    monkeypatch.chdir(tmp_path)
    fails(name, "there is no such file")


def test_an_empty_name_is_not_the_working_folder() -> None:
    """The path of an empty name is the folder one is in, and a report on a folder would puzzle."""
    fails("", "the name is empty")


def test_a_name_too_long_for_a_file_is_one_clear_error() -> None:
    """A sentence given where a file is expected reaches the file system, which refuses it."""
    fails("word " * 1000, "cannot be read")


def test_a_folder_is_not_a_file_even_where_a_hub_id_would_fit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A path that exists wins over a Hub id, so the folder org/name is an error and not a download."""
    monkeypatch.chdir(tmp_path)
    Path("org/name").mkdir(parents=True)
    fails("org/name", "found a folder")


def test_an_unknown_format_lists_the_known_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file called org/name exists, so it wins over the Hub id, but its name says nothing of its format."""
    fails(write_lines(tmp_path / "a.docx", ["x"]), 'found "a.docx"', ".txt, .jsonl, .csv, .tsv")
    monkeypatch.chdir(tmp_path)
    Path("org").mkdir()
    write_lines(Path("org/name"), ["x"])
    fails("org/name", 'found "name"', ".txt, .jsonl, .csv, .tsv")


def test_a_broken_or_false_gzip_file_is_one_clear_error(tmp_path: Path) -> None:
    """Cut short, or not gzip at all, or gzip under a plain name: each says what to check."""
    whole = gzip.compress("".join(f"{text}\n" for text in numbered(5000)).encode())
    (tmp_path / "cut.txt.gz").write_bytes(whole[: len(whole) // 2])
    fails(str(tmp_path / "cut.txt.gz"), "cannot be read", "check that the file is whole")
    (tmp_path / "false.txt.gz").write_bytes(b"plain\n")
    fails(str(tmp_path / "false.txt.gz"), "line 1", "cannot be read")
    (tmp_path / "packed.txt").write_bytes(whole)
    fails(str(tmp_path / "packed.txt"), "line 1", "a compressed one must end in .gz")


@pytest.mark.parametrize("samples", [0, -1])
def test_no_sample_is_not_a_sample(samples: int) -> None:
    """Nothing asked for is a mistake of the caller, not an empty result."""
    with pytest.raises(CalibrationError, match=f"{samples} samples were asked for"):
        read_calibration(None, samples=samples)


# ---- the Hub ----


@pytest.mark.parametrize(
    ("source", "asked"),
    [
        ("org/name", ("org/name", None, "train")),
        ("org/name:mnli", ("org/name", "mnli", "train")),
        ("org/name:mnli/validation_matched", ("org/name", "mnli", "validation_matched")),
        ("org/name:/test", ("org/name", None, "test")),
    ],
)
def test_a_hub_id_asks_for_its_config_and_split(
    monkeypatch: pytest.MonkeyPatch, source: str, asked: tuple[str, str | None, str]
) -> None:
    """A stand-in for the Hub answers with 2,500 pairs, several batches, of which a sample is drawn as from a file."""
    import datasets

    calls: list[tuple[str, str | None, str]] = []

    def answer(name: str, config: str | None, *, split: str) -> datasets.Dataset:
        calls.append((name, config, split))
        texts = numbered(2500)
        return datasets.Dataset.from_dict(
            {"premise": texts, "hypothesis": texts, "label": [i % 3 for i in range(2500)]}
        )

    monkeypatch.setattr(datasets, "load_dataset", answer)
    read = read_calibration(source, samples=300, seed=3)
    assert calls == [asked]
    assert len(set(read.samples)) == 300
    assert all(first == second for first, second in read.samples)
    assert max(places(read)) >= 1000
    assert read.source == f"{source}: 300 of 2,500 rows, columns premise + hypothesis, seed 3"


def test_a_row_of_the_hub_that_is_not_text_is_named_by_its_number(monkeypatch: pytest.MonkeyPatch) -> None:
    """A dataset has rows and no lines; the error of our own check is not wrapped as a failure of the Hub."""
    import datasets

    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: datasets.Dataset.from_dict({"text": [3, 4]}))
    message = fails("org/name", "row 1", "found int 3")
    assert "network" not in message


@pytest.mark.slow
def test_the_hub_out_of_reach_is_one_clear_error(tmp_path: Path) -> None:
    """The true library, forbidden the network, fails in its own way, and the user reads one line."""
    program = """
from merge.text.calibration import read_calibration
from merge.text.source import TextSource
from merge.errors import CalibrationError
try:
    read_calibration(TextSource("no-such-org/no-such-name:mnli/test"))
except CalibrationError as error:
    print(error)
"""
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", program], env=environment, cwd=Path(__file__).parents[3], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("\n") == 1
    assert "no-such-org/no-such-name (config mnli, split test) cannot be read" in done.stdout
    assert "check the id and the network, or give a file" in done.stdout


def test_reading_a_file_imports_nothing_heavy() -> None:
    """The command line answers quickly because datasets is imported for Hub ids only."""
    program = """
import sys
from merge.text.calibration import read_calibration
from merge.text.source import TextSource
read_calibration(TextSource())
print([name for name in ("datasets", "pyarrow", "pandas", "torch") if name in sys.modules])
"""
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=Path(__file__).parents[3], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"


def test_where_nothing_is_matched_no_note_speaks_of_a_matching(tmp_path: Path) -> None:
    """Statistics of a model, importance of its layers, an alignment that is applied: the facts stay, the advice goes."""
    source = write_rows(tmp_path / "few.jsonl", [{"text": f"text {k}", "label": "one"} for k in range(20)])
    for name in (source, None):
        matched, other = (
            calibration.read_calibration(TextSource(name, None, 20, 0), matching=matching) for matching in (True, False)
        )
        assert matched.samples == other.samples
        assert len(matched.notes) == len(other.notes) > 0
        words = ("match", "align")
        assert any(word in note for note in matched.notes for word in words)  # the control
        assert not any(word in note for note in other.notes for word in words)


def test_the_shares_of_classes_are_those_of_the_sample(tmp_path: Path) -> None:
    """Counted by hand; none without a column of classes, or where a row has no class."""
    rows = [{"text": f"text {k}", "label": "yes" if k % 4 else "no", "heuristic": "x"} for k in range(40)]
    read = read_calibration(write_rows(tmp_path / "rows.jsonl", rows))
    assert read.shares == {"no": 0.25, "yes": 0.75}
    for change in ({"label": ""}, {"label": None}):
        source = write_rows(tmp_path / "other.jsonl", [rows[0] | change, *rows[1:]])
        assert read_calibration(source).shares == {}
    bare = [{"text": row["text"], "heuristic": "x"} for row in rows]
    assert read_calibration(write_rows(tmp_path / "bare.jsonl", bare)).shares == {}
