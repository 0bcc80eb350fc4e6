"""Differences between models are those of the planted predictions, and only models on the same rows are compared."""

from __future__ import annotations

import csv
import io
import json
import math
from pathlib import Path
from typing import Any

import click.testing
import numpy as np
import pyarrow.parquet
import pytest
import sklearn.metrics

from evals.commands.compare import compare
from evals.report import table_text, tables
from evals.report.page import write_page
from evals.results.compare import Comparison, by_rows, compare_models, compare_records
from evals.results.predictions import PredictionTable, read_predictions_table, write_predictions_table
from evals.results.store import add_result, load_results
from evals.scores.intervals import mcnemar, paired_difference
from evals.scores.weighted import accuracy
from merge.errors import MergeError, TaskError, UsageError

ROWS = 400
LABELS = ("no", "yes")
GOLD = np.random.default_rng(0).integers(0, 2, ROWS)
HEURISTICS = tuple(("lexical_overlap", "subsequence")[k % 2] for k in range(ROWS))


def guesses(share: float, seed: int) -> np.ndarray:
    """Return predictions that are right with probability `share`."""
    return np.where(np.random.default_rng(seed).random(ROWS) < share, GOLD, 1 - GOLD)


def put(
    folder: Path, name: str, predicted: np.ndarray, task: str = "mrpc", scores: Any = ("accuracy", "f1"), **changes: Any
) -> dict[str, Any]:
    """Store a model's record and predictions as the command does."""
    labels = () if task == "stsb" else ("entailment", "non-entailment") if task == "hans" else LABELS
    record = {
        "kind": "scores", "key": f"scores-{task}-{name.strip('/')}", "task": task, "split": "dev", "data": "made",
        "n": len(predicted), "rows": "ab" * 32, "model": {"name": name, "hash": f"hash of {name}"}, "notes": [],
        "scores": {**dict.fromkeys(scores, 0.5), "loss": 0.1}, **changes,
    }  # fmt: skip
    gold = GOLD.astype(float) * 3 + np.arange(ROWS) / 100 if task == "stsb" else GOLD
    table = PredictionTable(
        record["key"], record["rows"], labels, ("a", "b"), tuple(map(str, range(ROWS))), gold[: len(predicted)], predicted,
        np.zeros((len(predicted), 2)), HEURISTICS if task == "hans" else (),
    )  # fmt: skip
    if len(predicted) < ROWS:
        table = PredictionTable(**{**vars(table), "ids": table.ids[: len(predicted)]})
    path = write_predictions_table(folder, table)
    record["predictions"] = str(path.relative_to(folder))
    add_result(folder, record)
    return record


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return a results folder with a good model, one that errs on 30 rows more, and one as good but different."""
    good = guesses(0.85, 1)
    worse = good.copy()
    worse[np.flatnonzero(good == GOLD)[:30]] ^= 1
    for name, predicted in (("good/", good), ("worse/", worse), ("other/", guesses(0.85, 2))):
        put(tmp_path, name, predicted)
    return tmp_path


def test_differences_are_those_of_the_scores(folder: Path) -> None:
    """Every pair and score: scikit-learn's difference, the paired interval about it, McNemar's test; planted: 30 and 0."""
    found = compare_models(folder, "mrpc")
    names = ["good/", "worse/", "other/"]
    predicted = [
        read_predictions_table(folder / "predictions" / f"scores-mrpc-{n[:-1]}.parquet").predicted for n in names
    ]
    pairs = [(0, 1), (0, 2), (1, 2)]
    assert [(c.a, c.b, c.score) for c in found] == [
        (names[i], names[j], s) for i, j in pairs for s in ("accuracy", "f1")
    ]
    oracles = {"accuracy": sklearn.metrics.accuracy_score, "f1": sklearn.metrics.f1_score}
    for one in found:
        a, b = predicted[names.index(one.a)], predicted[names.index(one.b)]
        expected = oracles[one.score](GOLD, a) - oracles[one.score](GOLD, b)
        assert one.difference == pytest.approx(expected, abs=1e-12)
        assert one.interval.low < one.difference < one.interval.high
        assert one.test == mcnemar(a == GOLD, b == GOLD)
        assert (one.task, one.split, one.data, one.n) == ("mrpc", "dev", "made", ROWS)
    interval = paired_difference(accuracy, GOLD, predicted[0], predicted[1], np.random.default_rng(0))
    assert found[0].interval == interval
    assert (found[0].test.only_a, found[0].test.only_b) == (30, 0)
    assert found[0].difference == pytest.approx(30 / ROWS, abs=1e-12)
    assert found[0].test.p == pytest.approx(2 / 2**30)
    assert found[0].interval.low > 0
    # The control: models that are equally good are not told apart.
    assert found[2].test.p > 0.1
    assert found[2].interval.low < 0 < found[2].interval.high


def test_one_model_can_be_compared_with_all_others(folder: Path) -> None:
    found = compare_models(folder, "mrpc", against="other/")
    assert [(c.a, c.b) for c in found if c.score == "f1"] == [("good/", "other/"), ("worse/", "other/")]
    reverse = next(c for c in compare_models(folder, "mrpc", against="worse/") if c.a == "good/")
    assert reverse.difference == pytest.approx(30 / ROWS, abs=1e-12)
    with pytest.raises(UsageError, match="has no scores of a model 'goood/' on mrpc. Did you mean 'good/'"):
        compare_models(folder, "mrpc", against="goood/")


def test_only_models_on_the_same_rows_are_compared(folder: Path) -> None:
    """Rows are the same if their hash is, whatever the data is called; two of other rows are a pair of their own."""
    put(folder, "half/", guesses(0.85, 3)[:200], rows="cd" * 32)
    assert {n for c in compare_models(folder, "mrpc") for n in (c.a, c.b)} == {"good/", "worse/", "other/"}
    with pytest.raises(TaskError, match="no two models were scored with half/ on the same rows of mrpc"):
        compare_models(folder, "mrpc", against="half/")
    put(folder, "half too/", guesses(0.85, 4)[:200], rows="cd" * 32, data="elsewhere")
    assert [(c.n, c.b) for c in compare_models(folder, "mrpc", against="half too/")] == [(200, "half too/")] * 2
    assert [len(group) for group in by_rows(load_results(folder))] == [3, 2]


def test_hans_lo_is_compared_on_its_own_rows(tmp_path: Path) -> None:
    """Lexical overlap without entailment only: b is wrong on three of those and on ten others."""
    cell = np.flatnonzero((np.array(HEURISTICS) == "lexical_overlap") & (GOLD == 1))
    outside = np.setdiff1d(np.arange(ROWS), cell)
    b = GOLD.copy()
    b[[*cell[:3], *outside[:10]]] ^= 1
    put(tmp_path, "a/", GOLD, "hans", ("accuracy", "hans_lo"))
    put(tmp_path, "b/", b, "hans", ("accuracy", "hans_lo"))
    whole, low = compare_models(tmp_path, "hans")
    assert (whole.score, whole.n, whole.difference, whole.test.only_a) == (
        "accuracy",
        ROWS,
        pytest.approx(13 / ROWS),
        13,
    )
    assert (low.score, low.n, low.difference) == ("hans_lo", len(cell), pytest.approx(3 / len(cell)))
    assert low.test.only_a == 3


def test_a_regression_task_has_differences_but_no_rows_that_are_right(tmp_path: Path) -> None:
    """Pearson and Spearman are compared by bootstrap; McNemar's test has nothing to count."""
    rng = np.random.default_rng(0)
    truth = GOLD.astype(float) * 3 + np.arange(ROWS) / 100
    put(tmp_path, "near/", truth + rng.normal(size=ROWS), "stsb", ("pearson", "spearmanr"))
    put(tmp_path, "far/", truth + 5 * rng.normal(size=ROWS), "stsb", ("pearson", "spearmanr"))
    put(tmp_path, "flat/", np.full(ROWS, 2.5), "stsb", ("pearson", "spearmanr"))
    found = compare_models(tmp_path, "stsb", against="far/")
    assert [c.test for c in found] == [None] * 4
    assert all(c.difference > 0.2 and c.interval.low > 0 for c in found if c.a == "near/")
    assert all(math.isnan(c.difference) and math.isnan(c.interval.low) for c in found if c.a == "flat/")
    assert tables.comparison_rows(found)[-1][4:] == [None, table_text.Span(None, None), None, None, None]


def test_what_cannot_be_compared_is_said(folder: Path, tmp_path: Path) -> None:
    """An unknown task, one model alone, predictions that are gone, and predictions of another model in their place."""
    with pytest.raises(UsageError, match="has no scores on 'mrcp'. Did you mean 'mrpc'"):
        compare_models(folder, "mrcp")
    put(folder, "alone/", GOLD, "rte", ("accuracy",))
    with pytest.raises(TaskError, match="no two models were scored on the same rows of rte"):
        compare_models(folder, "rte")
    worse = folder / "predictions" / "scores-mrpc-worse.parquet"
    assert worse.is_file()
    worse.write_bytes((folder / "predictions" / "scores-mrpc-good.parquet").read_bytes())
    with pytest.raises(TaskError, match="holds the predictions of another record .*score worse/ again with --force"):
        compare_models(folder, "mrpc")
    worse.unlink()
    with pytest.raises(TaskError, match="has no predictions, only scores, of worse/. Score them on mrpc again"):
        compare_models(folder, "mrpc")


@pytest.mark.parametrize("kept", [0, ROWS - 1])
def test_a_file_that_lost_rows_is_one_line(kept: int, folder: Path) -> None:
    """Rows are paired by their places: one that is gone would shift all others. The control: a file that lost none."""
    path = folder / "predictions" / "scores-mrpc-worse.parquet"
    table = pyarrow.parquet.read_table(path)
    pyarrow.parquet.write_table(table, path)
    assert len(compare_models(folder, "mrpc")) == 6
    pyarrow.parquet.write_table(table.slice(0, kept), path)
    with pytest.raises(TaskError, match=f"expected the predictions of 400 rows, found {kept}. Delete it"):
        compare_models(folder, "mrpc")


def test_a_file_whose_bytes_changed_is_one_line(folder: Path) -> None:
    """Each byte of the stored columns is covered by a checksum of its page."""
    path = folder / "predictions" / "scores-mrpc-worse.parquet"
    sound = path.read_bytes()
    column = pyarrow.parquet.ParquetFile(path).metadata.row_group(0).column(2)
    at = column.data_page_offset + column.total_compressed_size // 2
    path.write_bytes(sound[:at] + bytes([sound[at] ^ 16]) + sound[at + 1 :])
    with pytest.raises(TaskError, match="is not a predictions file .* Delete it and score again"):
        compare_models(folder, "mrpc")


# ---- tables, page, command ----


def test_a_table_of_differences_says_what_was_found(folder: Path) -> None:
    found = compare_models(folder, "mrpc", against="worse/")
    header, first, *_ = tables.comparison_rows(found)
    assert header == ["a", "b", "score", "n", "a - b", "95% interval", "only a right", "only b right", "McNemar p"]
    span = table_text.Span(found[0].interval.low, found[0].interval.high)
    assert first == [
        "good/",
        "worse/",
        "accuracy",
        ROWS,
        pytest.approx(30 / ROWS),
        span,
        30,
        0,
        pytest.approx(2 / 2**30),
    ]
    assert tables.comparison_rows([]) == [[*header[:5], "interval", *header[6:]]]


def test_the_page_compares_the_first_model_with_the_others(folder: Path) -> None:
    """Its differences are those of the function; a model without predictions is named as not compared."""
    first, *others = load_results(folder)
    found = compare_records(folder, [first, *others], first_only=True)
    assert [(c.a, c.b) for c in found] == [("good/", o["model"]["name"]) for o in others for _ in range(2)]
    text = write_page(folder).read_text(encoding="utf-8")
    for one in found:
        for number in (one.difference, one.interval.low, one.interval.high, one.test.p):
            assert f'<data value="{number}">' in text
    assert "Not compared" not in text
    bare = {name: value for name, value in first.items() if name not in ("predictions", "rows")}
    add_result(folder, {**bare, "key": "bare", "model": {"name": "bare/"}})
    text = write_page(folder).read_text(encoding="utf-8")
    assert "Not compared, because predictions on the same examples are not stored: bare/." in text
    assert f'<data value="{found[0].interval.low}">' in text


def test_one_model_alone_has_no_differences_on_the_page(tmp_path: Path) -> None:
    put(tmp_path, "a/", GOLD)
    text = write_page(tmp_path).read_text(encoding="utf-8")
    assert "McNemar" not in text
    put(tmp_path, "b/", guesses(0.9, 0))
    assert "McNemar" in write_page(tmp_path).read_text(encoding="utf-8")


def run(*words: Any) -> click.testing.Result:
    return click.testing.CliRunner().invoke(compare, [str(word) for word in words], catch_exceptions=True)


def test_the_command_prints_what_the_function_finds(folder: Path) -> None:
    """As a table, Markdown, CSV with every digit, or JSON; the note on several tests goes to stderr."""
    found = compare_models(folder, "mrpc")
    done = run(folder, "mrpc")
    assert (done.exit_code, done.stdout) == (0, table_text.plain_table(tables.comparison_rows(found)) + "\n")
    assert done.stderr == "note: 3 pairs are compared; the p values are not corrected for that\n"
    assert run(folder, "mrpc", "-q").stderr == ""
    assert run(folder, "mrpc", "--table", "markdown").stdout == table_text.markdown_table(tables.comparison_rows(found))
    rows = list(csv.DictReader(io.StringIO(run(folder, "mrpc", "--table", "csv").stdout)))
    assert [float(row["95% interval low"]) for row in rows] == [one.interval.low for one in found]
    assert [float(row["McNemar p"]) for row in rows] == [one.test.p for one in found]
    assert json.loads(run(folder, "mrpc", "--json").stdout) == json.loads(json.dumps([c.to_json() for c in found]))
    assert len(json.loads(run(folder, "mrpc", "--json", "--against", "good/").stdout)) == 4


def test_a_model_of_other_rows_is_named(folder: Path) -> None:
    """It would be missing in silence; the note is for people, and not part of the table."""
    put(folder, "half/", guesses(0.85, 3)[:200], rows="cd" * 32, data="elsewhere, 200 rows")
    done = run(folder, "mrpc")
    assert "note: half/ was scored on other rows (elsewhere, 200 rows), and is not compared\n" in done.stderr
    assert "half/" not in done.stdout + run(folder, "mrpc", "-q").stderr
    put(folder, "half too/", guesses(0.85, 4)[:200], rows="cd" * 32)
    assert "not compared" not in run(folder, "mrpc").stderr


def test_format_is_the_older_name_of_table(folder: Path) -> None:
    for form in ("markdown", "csv"):
        assert run(folder, "mrpc", "--format", form).stdout == run(folder, "mrpc", "--table", form).stdout
    assert run(folder, "mrpc", "--format", "table").stdout == run(folder, "mrpc").stdout
    assert run(folder, "mrpc", "--format", "csv", "--table", "csv").exit_code == 0
    assert isinstance(run(folder, "mrpc", "--format", "csv", "--table", "markdown").exception, UsageError)
    assert "--format" not in run("--help").stdout


def test_the_command_refuses_two_formats_and_passes_errors_on(folder: Path) -> None:
    assert isinstance(run(folder, "mrpc", "--json", "--format", "csv").exception, UsageError)
    assert isinstance(run(folder, "mrpc", "--json", "--table", "csv").exception, UsageError)
    assert isinstance(run(folder, "mrcp").exception, MergeError)
    assert run(folder, "mrpc", "--format", "html").exit_code == 2


def test_an_undefined_difference_is_null_in_json(tmp_path: Path) -> None:
    """A strict reader must be able to read it."""
    put(tmp_path, "flat/", np.full(ROWS, 2.5), "stsb", ("pearson",))
    put(tmp_path, "same/", np.full(ROWS, 2.5), "stsb", ("pearson",))
    (only,) = json.loads(run(tmp_path, "stsb", "--json").stdout)
    assert only["difference"] is only["interval"]["low"] is None
    assert isinstance(compare_models(tmp_path, "stsb")[0], Comparison)
