"""The page and files of a sweep: the verdict first, the numbers of the analysis in every table, one picture a diagnostic."""

from __future__ import annotations

import csv
import re
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from captured_log import CapturedLog
from planted_basins import planted

from evals.clusters.analysis import analyse, verified
from evals.clusters.pair_losses import PairLosses
from evals.clusters.subsets import predicted_rows
from evals.report.basins import tables
from evals.report.basins.section import basins_figures, basins_section, write_basins_report
from evals.report.page import write_page
from evals.report.table_text import Span
from evals.results.json_text import json_text
from evals.results.store import load_basins
from merge.disk.checksums import with_checksum
from merge.errors import TaskError

pytestmark = pytest.mark.usefixtures("all_drawn")

SIZES = (5, 3)
SCORES = (0.3, 0.28, 0.33, 0.31, 0.29, 0.1, 0.11, 0.09)
AVERAGES = ((0, 1, 2), (0, 1, 5), (2, 3, 4), (5, 6, 7), tuple(range(8)))
OFF = 0.01  # of the predictions: what is measured is so much higher


@cache
def losses() -> PairLosses:
    return planted(SIZES, correct=True)


@cache
def analysis(measured: bool = True) -> dict[str, Any]:
    result = analyse(losses(), {"hans:hans_lo": SCORES, "paws": (0.5, float("nan"), *[0.5] * 6)})
    rows = {models: predicted_rows(losses(), models) + OFF for models in AVERAGES}
    return (verified(result, losses(), rows) if measured else result).to_json()


@cache
def record(measured: bool = True) -> dict[str, Any]:
    one = losses()
    return {
        "kind": "basins",
        "key": "basins-1",
        "task": "mnli",
        "split": "validation",
        "data": "planted & <made>.jsonl",
        "n": one.ends.shape[1],
        "models": [{"name": name, "hash": name} for name in one.models],
        "loss": one.ends.mean(1).tolist(),
        "accuracy": one.ends_correct.mean(1).tolist() if one.ends_correct is not None else None,
        "pairs": [list(pair) for pair in one.pairs],
        "lam": list(one.lam),
        "analyses": [analysis(measured)],
    }


def column(rows: list[Any], title: str) -> list[Any]:
    return [row[rows[0].index(title)] for row in rows[1:]]


def test_the_table_of_clusters_has_the_basins_and_the_means_of_their_scores() -> None:
    rows = tables.cluster_rows(analysis())
    assert column(rows, "models") == list(SIZES)
    means = [np.mean(SCORES[:5]), np.mean(SCORES[5:])]
    assert column(rows, "mean hans:hans_lo") == pytest.approx(means)
    assert column(rows, "mean paws") == [0.5, 0.5]  # a model without a score counts for nothing
    gaps = np.array(analysis()["matrices"]["convexity gap"]["values"], dtype=float)
    inside = [gaps[:5, :5].max(), gaps[5:, 5:].max()]
    assert column(rows, "largest convexity gap") == pytest.approx(inside)
    assert column(rows, "least to another") == pytest.approx([gaps[:5, 5:].min()] * 2)


def test_every_model_is_a_row_in_the_order_of_the_dendrogram() -> None:
    rows = tables.member_rows(record(), analysis())
    order = analysis()["order"]
    assert column(rows, "model") == [f"m{k}" for k in order]
    assert column(rows, "hans:hans_lo") == [SCORES[k] for k in order]
    assert column(rows, "cluster") == ["cluster 1" if k < 5 else "cluster 2" for k in order]
    assert column(rows, "loss") == [record()["loss"][k] for k in order]


def test_a_diagnostic_that_splits_the_clusters_has_an_area_of_1_and_one_that_is_constant_no_test() -> None:
    rows = tables.strategy_rows(analysis())
    assert column(rows, "diagnostic") == ["hans:hans_lo", "paws"]
    assert column(rows, "AUC") == [1.0, 0.5]
    assert column(rows, "permutations") == ["56 (all)", None]
    assert all(isinstance(cell, Span) for cell in column(rows, "difference, 95%"))


def test_an_average_has_its_measured_loss_where_it_was_measured() -> None:
    rows = tables.average_rows(analysis())
    measured = dict(zip(column(rows, "average of"), column(rows, "measured loss"), strict=True))
    predicted = dict(zip(column(rows, "average of"), column(rows, "predicted loss"), strict=True))
    assert measured["all 8"] == pytest.approx(predicted["all 8"] + OFF)
    assert sum(value is None for value in measured.values()) >= 5
    assert "measured loss" not in tables.average_rows(analysis(measured=False))[0]
    assert column(tables.verified_rows(analysis()), "error") == pytest.approx([-OFF] * len(AVERAGES))


def test_the_shorter_name_of_an_average_is_used() -> None:
    def name(*models: int) -> str:
        return tables.average_name({"models": ["a", "b", "c", "d", "e"]}, models)

    assert [name(1), name(0, 4), name(0, 1, 3, 4), name(*range(5))] == ["b alone", "a + e", "all but c", "all 5"]


def test_there_is_a_picture_for_every_part() -> None:
    assert list(basins_figures(analysis())) == ["heatmap", "curves", "scatter0", "scatter1", "averages"]
    assert "averages" not in basins_figures(analysis(measured=False))


def test_two_models_have_a_section_without_clusters_and_coordinate() -> None:
    pair = losses().subset((0, 5))
    result = analyse(pair, {"paws": (0.4, 0.5)}).to_json()
    short = record() | {"loss": pair.ends.mean(1).tolist(), "accuracy": None}
    section = basins_section(short, result, "b")
    assert set(section["figures"]) == {"heatmap", "curves"}
    assert len(section["clusters"]) == len(result["clusters"]) + 1


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with the record, its page, pictures and tables."""
    folder = tmp_path_factory.mktemp("basins")
    (folder / "basins.json").write_text(json_text(with_checksum(record())), encoding="utf-8")
    write_basins_report(record(), record()["analyses"], folder)
    write_page(folder)
    return folder


@pytest.mark.slow
def test_the_verdict_comes_first_on_the_page(folder: Path) -> None:
    text = (folder / "index.html").read_text(encoding="utf-8")
    first = analysis()["verdict"][0]
    assert first in text
    assert text.index(first) < min(text.index("<svg"), text.index("<table"))
    assert "planted &amp; &lt;made&gt;.jsonl" in text
    assert text.count("<svg") == 5
    ids = re.findall(r'\sid="([^"]+)"', text)
    assert len(ids) == len(set(ids))
    assert not re.search(r'(src|href)="(?!#|data:)', text)  # it needs no other file


@pytest.mark.slow
def test_every_number_of_the_page_is_in_a_csv_file(folder: Path) -> None:
    files = {path.name for path in folder.glob("*.csv")}
    assert files == {f"basins-{name}.csv" for name in ("clusters", "models", "strategies", "averages", "verified")}
    with (folder / "basins-models.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert {row["model"]: float(row["hans:hans_lo"]) for row in rows} == {f"m{k}": s for k, s in enumerate(SCORES)}


@pytest.mark.slow
def test_the_same_record_gives_the_same_bytes(folder: Path, tmp_path: Path) -> None:
    made = write_basins_report(record(), record()["analyses"], tmp_path)
    assert len(made) == 15
    assert all(path.read_bytes() == (folder / path.name).read_bytes() for path in made)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ('{"kind": "scores"}', "not a record of evaluate-models basins"),
        ('{"kind": "basins", "models": []}', "is not used: it was changed since it was written"),
    ],
)
def test_the_page_is_whole_without_a_basins_file_that_cannot_be_used(
    text: str, reason: str, tmp_path: Path, captured_log: CapturedLog
) -> None:
    """The page is of all else, and a line names the file; a command that needs the file stops."""
    (tmp_path / "basins.json").write_text(text, encoding="utf-8")
    assert write_page(tmp_path).is_file()
    assert reason in " ".join(captured_log.messages)
    with pytest.raises(TaskError, match=reason):
        load_basins(tmp_path)
