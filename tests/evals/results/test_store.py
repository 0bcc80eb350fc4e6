"""The results store loses nothing, and the page shows all of it and asks for nothing else."""

from __future__ import annotations

import contextlib
import csv
import html
import io
import json
import math
import multiprocessing
import os
import random
import re
import subprocess
import sys
import threading
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from evals.report import table_text, tables
from evals.report.page import write_page
from evals.results import store as report
from evals.results.store import add_result, find, load_results
from merge.errors import TaskError

pytestmark = pytest.mark.usefixtures("all_drawn")

SUBCASES = {"ln_passive": 0.03, "le_conjunction": 0.84, "sn_NP/S": 0.02, "se_adjective": 1.0, "cn_adverb": 0.06}


INTERVAL = {"low": 0.8358, "high": 0.8502, "standard_error": 0.0037, "level": 0.95, "method": "Wilson"}


def scores(name: str = "a/", **changes: Any) -> dict[str, Any]:
    record = {
        "kind": "scores",
        "key": f"mnli {name}",
        "task": "mnli",
        "split": "validation_matched",
        "data": "GLUE, validation file",
        "n": 9815,
        "model": {"name": name, "hash": "3f" * 32},
        "labels": ["entailment", "neutral", "contradiction"],
        "scores": {"accuracy": 0.8431, "loss": 0.4512},
        "intervals": {"accuracy": INTERVAL},
        "notes": ["labels matched by name"],
        "seconds": 31.25,
        "versions": {"torch": "2.13.0"},
    }
    return {**record, **changes}


def hans(name: str = "a/", **changes: Any) -> dict[str, Any]:
    table = {
        "accuracy": 0.5783,
        "heuristics": {
            "lexical_overlap": {"entailment": 0.9614, "non-entailment": 0.39},
            "subsequence": {"entailment": 0.9946, "non-entailment": 0.049},
            "constituent": {"entailment": 0.9932, "non-entailment": 0.0814},
        },
        "subcases": SUBCASES,
        "templates": {"temp1": 0.41, "temp2": 0.55},
        "counts": {"ln_passive": 1000},
    }
    fields = {"key": f"hans {name}", "task": "hans", "split": "validation", "data": "HANS", "n": 30000, "hans": table}
    return scores(name, **{**fields, **changes})


def curve(name: str, height: float) -> dict[str, Any]:
    lam = [0.0, 0.25, 0.5, 0.75, 1.0]
    return {
        "name": name,
        "lam": lam,
        "loss": [0.48 + height * math.sin(math.pi * x) for x in lam],
        "accuracy": [0.84 - 0.3 * height * math.sin(math.pi * x) for x in lam],
        "barrier": height,
        "barrier_lam": 0.5,
        "epsilon": height,
        "convexity_gap": height,
        "convexity_interval": [0.0, 0.5, 1.0],
        "standard_error": 0.012,
        "temperature": [1.1 + height * x * (1 - x) for x in lam],
        "calibrated": [0.47 + 0.7 * height * math.sin(math.pi * x) for x in lam],
        "calibrated_barrier": 0.7 * height,
    }


def barrier(a: str = "a/", b: str = "b/", **changes: Any) -> dict[str, Any]:
    record = {
        "kind": "barrier",
        "key": f"barrier {a} {b}",
        "task": "mnli",
        "split": "validation_matched",
        "data": "GLUE, validation file",
        "n": 9815,
        "a": {"name": a, "hash": "3f" * 32},
        "b": {"name": b, "hash": "4e" * 32},
        "curves": [curve("naive", 1.1), curve("aligned (activations; heads, ffn)", 0.21)],
        "alignment": {"by": "activations", "axes": ["heads", "ffn"]},
        "notes": ["b was aligned to a"],
        "seconds": 120.5,
        "versions": {"torch": "2.13.0"},
    }
    return {**record, **changes}


def store_text(folder: Path) -> str:
    return (folder / "results.json").read_text(encoding="utf-8")


# The store


def test_a_folder_without_results_is_empty(tmp_path: Path) -> None:
    """The first evaluation into a folder finds no file; that is a start, not a fault."""
    assert load_results(tmp_path) == []


def test_what_was_added_comes_back(tmp_path: Path) -> None:
    """JSON writes the shortest digits that name a float, so records survive the file exactly."""
    records = [scores(), hans(), barrier()]
    for record in records:
        add_result(tmp_path, record)
    assert load_results(tmp_path) == records


def test_the_same_key_replaces_in_place_and_another_appends(tmp_path: Path) -> None:
    """A key names one measurement: doing it again is a correction, and the order of the others must not move."""
    for name in ("a/", "b/", "c/"):
        add_result(tmp_path, scores(name))
    add_result(tmp_path, scores("b/", scores={"accuracy": 0.5}))
    results = load_results(tmp_path)
    assert [record["key"] for record in results] == ["mnli a/", "mnli b/", "mnli c/"]
    assert [record["scores"].get("accuracy") for record in results] == [0.8431, 0.5, 0.8431]
    found = find(results, "mnli b/")
    assert found is not None
    assert found["scores"] == {"accuracy": 0.5}
    assert find(results, "mnli d/") is None


def test_adding_leaves_the_other_records_bytes(tmp_path: Path) -> None:
    """A file under version control shows only what changed: the old text is a prefix, and a repeat changes nothing."""
    add_result(tmp_path, scores("ä/", scores={"accuracy": 0.1 + 0.2, "loss": 1e-17}))
    before = store_text(tmp_path)
    add_result(tmp_path, barrier())
    after = store_text(tmp_path)
    closing = "\n ]\n}\n"
    assert before.endswith(closing)
    assert after.startswith(before.removesuffix(closing) + ",\n")
    add_result(tmp_path, barrier())
    assert store_text(tmp_path) == after


def test_the_argument_is_not_changed(tmp_path: Path) -> None:
    """A record is stored as plain JSON, which must not reach back into the caller's own."""
    record = scores(scores={"accuracy": math.nan})
    add_result(tmp_path, record)
    assert math.isnan(record["scores"]["accuracy"])


def test_a_number_that_is_not_finite_is_stored_as_null(tmp_path: Path) -> None:
    """NaN is no JSON: a strict reader must be able to read the store of a model whose loss overflowed."""

    def refuse(word: str) -> None:
        raise AssertionError(f"{word} is not JSON")

    add_result(tmp_path, scores(scores={"accuracy": 0.33, "loss": math.inf, "pearson": math.nan}))
    store = json.loads(store_text(tmp_path), parse_constant=refuse)
    assert store["results"][0]["scores"] == {"accuracy": 0.33, "loss": None, "pearson": None}
    with pytest.raises(AssertionError, match="NaN is not JSON"):
        json.loads(json.dumps(math.nan), parse_constant=refuse)


def test_a_value_that_json_cannot_hold_is_named(tmp_path: Path) -> None:
    """A numpy scalar or a path in a record is a slip of the caller; the message leads to it and nothing is written."""
    with pytest.raises(TaskError, match=r"record 'mnli a/', scores, accuracy is a complex"):
        add_result(tmp_path, scores(scores={"accuracy": 1j}))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "cannot be read"),
        ("\xff", "cannot be read"),
        ("[]", "is not a results store"),
        ('{"format": 2, "results": []}', "has format 2; this version reads format 1"),
        ('{"format": 1, "results": {}}', "is not a results store"),
        ('{"format": 1, "results": [3]}', r"results\[0\] is not an object"),
        ('{"format": 1, "results": [null]}', r"results\[0\] is not an object"),
        ('{"format": 1, "results": [{"kind": "scores"}]}', r"results\[0\] has no key"),
        ('{"format": 1, "results": [{"kind": "scores", "key": "k", "n": "9"}]}', "n should be int, found str"),
    ],
)
def test_a_malformed_store_is_one_line_that_names_the_file(tmp_path: Path, text: str, message: str) -> None:
    """Whatever is wrong with the file, the user learns which file and what, not a traceback."""
    (tmp_path / "results.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(TaskError, match=message) as caught:
        load_results(tmp_path)
    assert str(tmp_path / "results.json") in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_malformed_record_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    """All faults come in one message, and a store once written stays loadable."""
    uneven = {**curve("naive", 1.0), "loss": [0.1, 0.2]}
    uneven.pop("epsilon")
    with pytest.raises(TaskError) as caught:
        add_result(tmp_path, barrier(curves=[uneven], a={"hash": "3f"}, task=7))
    for fault in ("task should be str", "a has no name", "found [5, 2, 5, 5, 5]", "curve has no epsilon"):
        assert fault in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_a_malformed_store_is_never_overwritten(tmp_path: Path) -> None:
    """A file that this version cannot read may hold days of work; adding to it must fail and leave it."""
    (tmp_path / "results.json").write_text('{"format": 2, "results": []}')
    with pytest.raises(TaskError, match="format 2"):
        add_result(tmp_path, scores())
    assert store_text(tmp_path) == '{"format": 2, "results": []}'
    assert [path.name for path in tmp_path.iterdir()] == ["results.json"]


# Several writers, and writers that die


def add_many(folder: str, writer: int, count: int) -> None:
    for at in range(count):
        add_result(folder, scores(f"{writer}-{at}/"))


def die_while_writing(folder: str) -> None:
    os.replace = lambda *_: os._exit(9)
    add_result(folder, scores("late/"))


@pytest.mark.slow
def test_concurrent_writers_lose_nothing(tmp_path: Path) -> None:
    """Each addition reads, changes and replaces the file; the lock makes that one step for processes too."""
    spawn = multiprocessing.get_context("spawn")
    writers = [spawn.Process(target=add_many, args=(str(tmp_path), writer, 20)) for writer in range(3)]
    for process in writers:
        process.start()
    for process in writers:
        process.join()
    assert [process.exitcode for process in writers] == [0, 0, 0]
    keys = {record["key"] for record in load_results(tmp_path)}
    assert keys == {f"mnli {writer}-{at}/" for writer in range(3) for at in range(20)}
    assert [path.name for path in tmp_path.iterdir()] == ["results.json"]


def test_without_the_lock_a_record_is_lost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The control of the test above: two writers that both read before either writes keep one record of two."""
    both_have_read, turns = threading.Barrier(2), threading.Lock()
    replace = report.write_atomic

    def replace_late(path: Path, text: str) -> None:
        both_have_read.wait(timeout=10)
        with turns:
            replace(path, text)

    monkeypatch.setattr(report, "write_atomic", replace_late)
    monkeypatch.setattr(report, "locked", lambda _: contextlib.nullcontext())
    writers = [threading.Thread(target=add_result, args=(tmp_path, scores(name))) for name in ("a/", "b/")]
    for thread in writers:
        thread.start()
    for thread in writers:
        thread.join()
    assert len(load_results(tmp_path)) == 1


def test_a_failed_write_leaves_the_old_file_and_no_litter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A full disk shows up before the file is replaced: the old one stays, the lock and the new one go."""

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    add_result(tmp_path, scores())
    before = store_text(tmp_path)
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(TaskError, match=r"results\.json cannot be written: .*No space left"):
        add_result(tmp_path, scores("b/"))
    assert store_text(tmp_path) == before
    assert [path.name for path in tmp_path.iterdir()] == ["results.json"]


def test_a_killed_writer_leaves_the_old_file_whole(tmp_path: Path) -> None:
    """A killed process cannot tidy up: the next writer is not kept waiting by its lock, and clears what it left."""
    add_result(tmp_path, scores())
    before = store_text(tmp_path)
    process = multiprocessing.get_context("spawn").Process(target=die_while_writing, args=(str(tmp_path),))
    process.start()
    process.join()
    assert process.exitcode == 9
    assert store_text(tmp_path) == before
    assert len(list(tmp_path.iterdir())) == 3  # with its lock and the new text
    add_result(tmp_path, scores("b/"))
    assert len(load_results(tmp_path)) == 2
    assert [path.name for path in tmp_path.iterdir()] == ["results.json"]


def test_a_lock_that_is_held_is_waited_for_and_then_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The control of the test above: while its holder lives, nobody else writes."""
    add_result(tmp_path, scores())
    before = store_text(tmp_path)
    monkeypatch.setattr(report, "LOCK_SECONDS", 0.05)
    with (
        report.locked(tmp_path),
        pytest.raises(TaskError, match=r"results\.json\.lock has been held for 0\.05 s"),
    ):
        add_result(tmp_path, scores("b/"))
    assert store_text(tmp_path) == before


# The page


class Page(HTMLParser):
    """What a browser would find: tags, attributes, exact values, and the text of every cell."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.values: list[str] = []
        self.cells: list[str] = []
        self.text = ""
        self.in_cell = False
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]
        self.values += [value or "" for name, value in attrs if (tag, name) == ("data", "value")]
        if tag in ("td", "th"):
            self.in_cell = True
            self.cells.append("")

    def handle_endtag(self, tag: str) -> None:
        self.in_cell = self.in_cell and tag not in ("td", "th")

    def handle_data(self, data: str) -> None:
        self.text += data
        if self.in_cell:
            self.cells[-1] += data


def page_of(folder: Path, *records: dict[str, Any]) -> str:
    for record in records:
        add_result(folder, record)
    return write_page(folder).read_text(encoding="utf-8")


def distinct(value: Any, rng: random.Random) -> Any:
    """Return the record with another random number at every leaf, so that none can stand in for another."""
    if isinstance(value, dict):
        return {name: distinct(child, rng) for name, child in value.items()}
    if isinstance(value, list):
        return [distinct(child, rng) for child in value]
    if isinstance(value, float):
        return rng.random()
    return rng.randrange(10**6) if isinstance(value, int) else value


def numbers(value: Any) -> list[float]:
    if isinstance(value, dict):
        return [leaf for child in value.values() for leaf in numbers(child)]
    if isinstance(value, list):
        return [leaf for child in value for leaf in numbers(child)]
    return [value] if isinstance(value, int | float) else []


def test_every_number_of_every_record_is_on_the_page(tmp_path: Path) -> None:
    """The page is the report: exact values stand in <data value>, coefficients λ as the text of a cell."""
    records = distinct(
        [scores(), hans("b/"), barrier(), scores(key="extra", flips=[0.5, {"top": 3}])], random.Random(7)
    )
    coefficients = []
    for one in records[2]["curves"]:
        one["lam"] = sorted(one["lam"])
        one["barrier_lam"], one["convexity_interval"] = one["lam"][2], one["lam"][1:4]
        coefficients += [f"{lam:g}" for lam in one["lam"]]
    page = Page(page_of(tmp_path, *records))
    for lam in coefficients:
        assert lam in page.cells
    for one in records[2]["curves"]:
        low, worst, high = one.pop("convexity_interval")
        assert f"{low:g} – {high:g}, worst at {worst:g}" in page.cells
        assert f"{one['barrier_lam']:g}" in page.cells
        del one["lam"], one["barrier_lam"]
    wanted = numbers(records)
    assert len(set(wanted)) == len(wanted) > 50
    assert {str(number) for number in wanted} <= set(page.values)
    assert str(random.Random(8).random()) not in page.values


def test_a_number_shows_four_decimals_and_never_a_false_zero() -> None:
    """A standard error of 0.00002 that showed as 0.0000 would be a claim; zero itself is one that holds."""
    assert [table_text.show(cell) for cell in (0.84312, 0.0, 2e-5, -0.25, 9815, None, "naive")] == [
        "0.8431",
        "0.0000",
        "2.0e-05",
        "-0.2500",
        "9,815",
        "–",
        "naive",
    ]


@pytest.mark.slow
def test_names_are_escaped_wherever_they_appear(tmp_path: Path) -> None:
    """A model folder may be called anything, and a report is opened in a browser."""
    name = "<script>alert('x')</script>--><b>&amp;"
    records = [scores(name), hans(name), barrier(name, name + "2"), {"kind": "volume", "key": name, name: name}]
    text = page_of(tmp_path, *records)
    page = Page(text)
    assert "script" not in page.tags
    assert "b" not in page.tags
    assert page.text.count(name) >= 6
    # The control: the same parser sees the tag once the escapes are undone.
    assert "script" in Page(html.unescape(text)).tags


def test_the_page_asks_for_nothing_else(tmp_path: Path) -> None:
    """One file, readable offline and years later: no address, no script, no style sheet, no image."""
    page_text = page_of(tmp_path, scores(), hans(), barrier())
    page = Page(page_text)
    assert "://" not in page_text
    assert "@import" not in page_text
    assert not {"script", "link", "img", "iframe", "object"} & set(page.tags)
    links = [value for name, value in page.attributes if name in ("src", "href", "xlink:href")]
    assert len(links) > 100
    assert all(link.startswith("#") for link in links)
    assert all(url.startswith("#") for url in re.findall(r"url\(([^)]*)\)", page_text))


@pytest.mark.slow
def test_ids_are_unique_and_every_reference_has_its_target(tmp_path: Path) -> None:
    """Figures from one program use the same ids; on one page the second would borrow the first one's shapes."""
    page = Page(page_of(tmp_path, hans(), barrier(), barrier("a/", "c/")))
    ids = [value for name, value in page.attributes if name == "id"]
    assert page.tags.count("svg") == 3
    assert len(ids) == len(set(ids)) > 50
    assert {value[1:] for name, value in page.attributes if name == "href"} <= set(ids)
    assert {one for _, value in page.attributes for one in re.findall(r"url\(#([^)]*)\)", value)} <= set(ids)


def test_tags_are_closed_in_order(tmp_path: Path) -> None:
    """A browser forgives a stray tag by moving tables about; this does not."""
    open_tags: list[str] = []

    class Nesting(HTMLParser):
        def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
            if tag not in ("meta", "br"):
                open_tags.append(tag)

        def handle_endtag(self, tag: str) -> None:
            assert open_tags.pop() == tag

    Nesting().feed(page_of(tmp_path, scores(), hans(), barrier(), {"kind": "volume", "key": "p"}))
    assert open_tags == []
    with pytest.raises(AssertionError):
        Nesting().feed("<p><b></p></b>")


@pytest.mark.slow
def test_the_same_store_gives_the_same_page(tmp_path: Path) -> None:
    """No date, no random id: a page that differs has different results."""
    first = page_of(tmp_path, scores(), hans(), barrier())
    assert write_page(tmp_path).read_text(encoding="utf-8") == first
    assert page_of(tmp_path, scores(scores={"accuracy": 0.8432, "loss": 0.4512})) != first


def test_only_results_on_the_same_rows_share_a_table(tmp_path: Path) -> None:
    """Two accuracies in one table invite comparison, which 512 rows and 9,815 rows do not allow."""
    text = page_of(tmp_path, scores("a/"), scores("b/"))
    assert text.count("<h3>mnli</h3>") == 1
    text = page_of(tmp_path, scores("c/", n=512))
    assert text.count("<h3>mnli</h3>") == 2


def test_a_note_that_all_models_share_is_said_once(tmp_path: Path) -> None:
    """Ten models evaluated alike should not say so ten times; a note of one names it."""
    text = page_of(tmp_path, scores("a/"), scores("b/", notes=["labels matched by name", "head padded"]))
    assert text.count("labels matched by name") == 1
    assert "<li>b/: head padded</li>" in text


@pytest.mark.slow
def test_the_page_says_how_many_units_alignment_moved(tmp_path: Path) -> None:
    """An alignment that moved nothing is the usual, honest result, so the count stands in the open, not folded."""
    moved = {"ffn": [0, 1536], "heads": [44, 48]}
    text = page_of(tmp_path, barrier(alignment={"by": "weights", "moved": moved}), barrier("c/", alignment=None))
    assert text.count("Units that alignment moved: ffn 0 of 1536, heads 44 of 48.") == 1
    assert text.count("Units that alignment moved") == 1


def test_undefined_numbers_do_not_stop_the_page(tmp_path: Path) -> None:
    """A broken merge has a loss of nan everywhere; its report is wanted most of all."""
    broken = curve("naive", math.nan) | {"barrier_lam": None, "convexity_interval": None}
    table = hans()["hans"] | {"accuracy": math.nan, "subcases": dict.fromkeys(SUBCASES, math.nan)}
    page = Page(page_of(tmp_path, barrier(curves=[broken]), hans(hans=table), scores(scores={"loss": math.nan})))
    assert "–" in page.cells
    assert not {"None", "nan", "null"} & set(page.cells)


def test_a_bare_record_is_enough(tmp_path: Path) -> None:
    """Only what the tables need is required; alignment, notes, times and versions may be absent."""
    optional = ("labels", "notes", "seconds", "versions", "alignment")
    records = [{name: value for name, value in one.items() if name not in optional} for one in (scores(), barrier())]
    page = Page(page_of(tmp_path, *records))
    assert page.tags.count("svg") == 1
    assert "0.8431" in page.cells


def test_a_kind_without_a_section_is_listed_all_the_same(tmp_path: Path) -> None:
    """Nothing in the store may be missing from the page in silence."""
    page = Page(page_of(tmp_path, {"kind": "volume", "key": "a b c", "loss": [[0.515625, 0.625], [0.75, 0.875]]}))
    assert "volume: a b c" in page.text
    assert {"0.515625", "0.625", "0.75", "0.875"} <= set(page.values)


def test_an_empty_folder_gives_a_page_that_says_so(tmp_path: Path) -> None:
    """A page without a word would look broken."""
    assert "No results yet." in page_of(tmp_path)
    assert "No results yet." not in page_of(tmp_path, scores())


def test_importing_the_report_loads_neither_matplotlib_nor_jinja() -> None:
    """The command must answer --help at once; both are loaded when a page is written."""
    code = (
        "import sys, evals.results.store, evals.report.barrier_figure; "
        "print(sorted({'matplotlib', 'jinja2', 'numpy'} & {*sys.modules}))"
    )
    package = str(Path(report.__file__).parents[1])
    environment = {**os.environ, "PYTHONPATH": package}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


# Rows for other readers


def test_models_of_one_name_are_told_apart_by_their_weights() -> None:
    """A folder that was overwritten between two runs is two models; the same weights twice are one."""
    models = [
        {"name": "out/", "hash": "aaaaaaaabb"},
        {"name": "out/", "hash": "ccccccccdd"},
        {"name": "a/", "hash": "e"},
    ]
    assert tables.model_labels(models) == ["out/ (aaaaaaaa)", "out/ (cccccccc)", "a/"]
    assert tables.model_labels([models[2], models[2]]) == ["a/", "a/"]


def test_one_model_that_was_run_in_several_ways_is_told_apart_by_how() -> None:
    """By what was asked for; a model that was run once is named alone."""
    model = {"name": "m/", "hash": "a"}
    ways: list[dict[str, Any]] = [{}, {"dtype": "bfloat16"}, {"max_length": 64, "stated": ["no", "yes"]}]
    records = [{"model": model, **way} for way in ways]
    assert tables.record_labels(records) == ["m/", "m/ (bfloat16)", "m/ (--max-length 64, --labels no,yes)"]
    assert tables.record_labels(records[2:]) == ["m/"]


def test_the_midpoint_is_reported_only_where_it_was_measured() -> None:
    """An even number of points has no middle, and a value between two others would be a guess."""
    odd, even = curve("naive", 1.0), curve("naive", 1.0)
    even["lam"] = [0.0, 0.2, 0.4, 0.6, 1.0]
    column = tables.barrier_rows([])[0].index("midpoint accuracy")
    rows = tables.barrier_rows([barrier(curves=[odd, even])])
    assert [row[column] for row in rows[1:]] == [odd["accuracy"][2], None]


def test_curves_on_different_grids_share_one_table_of_points() -> None:
    """An aligned curve may be sampled more finely; where a curve has no point the cell is empty."""
    fine, coarse = curve("fine", 1.0), curve("coarse", 0.5)
    for name in ("lam", "loss", "accuracy"):
        coarse[name] = coarse[name][::2]
    del coarse["calibrated"], coarse["temperature"]
    rows = tables.point_rows(barrier(curves=[fine, coarse]))
    assert [row[0] for row in rows[1:]] == ["0", "0.25", "0.5", "0.75", "1"]
    assert rows[0][3:6] == ["fine: calibrated loss", "fine: temperature", "coarse: loss"]
    assert [row[3] for row in rows[1:]] == fine["calibrated"]
    assert [row[5] for row in rows[1:]] == [coarse["loss"][0], None, coarse["loss"][1], None, coarse["loss"][2]]


def test_a_metric_that_a_task_lacks_is_an_empty_cell() -> None:
    """One table over several tasks has the metrics of all of them; absent is not zero."""
    cola_scores = {"matthews_correlation": 0.52, "accuracy": 0.81}
    records = [scores("a/"), scores("a/", task="cola", scores=cola_scores, intervals={})]
    header, mnli, cola = tables.score_rows([*records, barrier()])
    assert header == [
        "model",
        "task",
        "split",
        "n",
        "accuracy",
        "accuracy, 95% interval",
        "loss",
        "matthews_correlation",
    ]
    assert mnli[4:] == [0.8431, table_text.Span(0.8358, 0.8502), 0.4512, None]
    assert cola[4:] == [0.81, None, None, 0.52]


def test_a_score_without_intervals_has_no_column_for_them() -> None:
    """Results of an earlier version have none; nothing is invented for them."""
    record = {name: value for name, value in scores().items() if name != "intervals"}
    assert tables.score_rows([record])[0] == ["model", "task", "split", "n", "accuracy", "loss"]
    assert tables.interval_rows([record]) == []
    header, row = tables.interval_rows([record, scores("b/")])
    assert header == ["model", "score", "low", "high", "standard error", "level", "method"]
    assert row == ["b/", "accuracy", *INTERVAL.values()]


def test_an_interval_is_one_cell_for_people_and_two_columns_for_programs() -> None:
    """CSV keeps every digit and has nothing where there is nothing; a comma in a name does not part it."""
    rows = tables.score_rows([scores("a, b/", scores={"accuracy": 1 / 3}), scores("c/", intervals={}, scores={})])
    assert "0.8358 to 0.8502" in table_text.plain_table(rows)
    assert "| 0.8358 to 0.8502 |" in table_text.markdown_table(rows)
    assert table_text.show(table_text.Span(None, None)) == "–"
    text = table_text.csv_table(rows)
    assert list(csv.reader(io.StringIO(text))) == [
        ["model", "task", "split", "n", "accuracy", "accuracy, 95% interval low", "accuracy, 95% interval high"],
        ["a, b/", "mnli", "validation_matched", "9815", repr(1 / 3), "0.8358", "0.8502"],
        ["c/", "mnli", "validation_matched", "9815", "", "", ""],
    ]
    assert text.endswith("\n")
    assert "\r" not in text


def test_the_six_hans_cells_stand_in_the_paper_s_order() -> None:
    """Entailment then non-entailment, each by lexical overlap, subsequence, constituent."""
    header, row = tables.hans_rows([scores(), hans()])
    assert header[2] == "lexical overlap, entailment"
    assert header[7] == "constituent, non-entailment"
    assert row == ["a/", 0.5783, 0.9614, 0.9946, 0.9932, 0.39, 0.049, 0.0814]


def test_a_markdown_table_keeps_its_columns_whatever_a_model_is_called() -> None:
    """A bar or a line break in a name would end the cell, and a tag would reach the model card."""
    lines = table_text.markdown_table(tables.score_rows([scores("a|b\n<i>`*_"), scores("c/")])).splitlines()
    assert lines[1] == "| --- | --- | --- | ---: | ---: | --- | ---: |"
    assert lines[2].startswith(r"| a\|b &lt;i>\`\*\_ | mnli | validation\_matched | 9,815 | 0.8431 |")
    assert {len(re.findall(r"(?<!\\)\|", line)) for line in lines} == {8}
