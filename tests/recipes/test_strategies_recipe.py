"""The recipe of the published protocol measures the published rows, and prints the published clusters against every score."""

from __future__ import annotations

import argparse
import json
import os
import runpy
from pathlib import Path
from typing import Any

import pytest

from evals.clusters.sweep.diagnostics import hans_part, read_diagnostic
from evals.tasks import find_task

SCRIPT = Path(__file__).parents[2] / "recipes" / "strategies.py"
DATA = Path(os.environ.get("MERGE_MODELS_DATA") or Path(__file__).parents[3] / "shared" / "data")
here = pytest.mark.skipif(not DATA.is_dir(), reason=f"{DATA} is not here: the public data sets")


@pytest.fixture(scope="module")
def recipe() -> dict[str, Any]:
    return runpy.run_path(str(SCRIPT))


def _arguments(**changes: Any) -> argparse.Namespace:
    given = {"data": Path("dev.jsonl"), "diagnostic_data": None, "labels": None, "models": [], "dry_run": False}
    return argparse.Namespace(**{**given, "out": Path("out"), **changes})


@pytest.mark.parametrize("what", ["mnli", "qqp", "cola"])
def test_the_settings_are_the_published_ones(recipe: dict[str, Any], what: str) -> None:
    protocol = recipe["PROTOCOLS"][what]
    words = recipe["command"](protocol, ["a", "b"], _arguments(), Path("rows.jsonl"))
    text = " ".join(words)
    assert "--points 10 --summary convexity gap --method spectral --clusters 2" in text
    assert f"--labels {protocol.labels}" in text
    assert ("=dev.jsonl" in text) == (what == "cola")
    assert set(protocol.labels.split(",")) == set(find_task(protocol.task).labels)
    assert "--labels" not in recipe["command"](protocol, ["a"], _arguments(models=["a"]), Path("rows.jsonl"))


@here
def test_cola_has_527_rows_in_domain_and_516_out_of_it(recipe: dict[str, Any], tmp_path: Path) -> None:
    validation = DATA / "cola" / "validation.jsonl.gz"
    path = recipe["write_rows"](recipe["PROTOCOLS"]["cola"], validation, tmp_path, 10_000)
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    assert len(rows) == 527
    assert find_task("cola_in_domain").read(path, 0).gold == find_task("cola_in_domain").read(validation, 0).gold
    score = "matthews_correlation"
    assert len(read_diagnostic(find_task("cola_out_of_domain"), score, validation, None, 0).rows) == 516


@here
def test_paws_has_677_rows_and_its_f1(recipe: dict[str, Any], tmp_path: Path) -> None:
    diagnostic = read_diagnostic(find_task("paws_qqp"), "f1", DATA / "paws_qqp" / "dev_and_test.jsonl.gz", None, 0)
    assert (len(diagnostic.rows), diagnostic.score) == (677, "f1")
    path = recipe["write_rows"](recipe["PROTOCOLS"]["qqp"], DATA / "qqp" / "validation.10k.jsonl.gz", tmp_path, 512)
    assert len(find_task("qqp").read(path, 0)) == 512


@pytest.mark.slow
def test_hans_lo_is_lexical_overlap_that_is_not_entailed() -> None:
    rows = hans_part(find_task("hans").read(None, 0), "hans_lo")
    assert len(rows) == 5000
    assert {(pair.heuristic, pair.label) for pair in rows.extra} == {("lexical_overlap", "non-entailment")}


@here
@pytest.mark.slow
def test_the_published_clusters_are_printed_against_every_column(recipe: dict[str, Any]) -> None:
    text = recipe["table_text"](DATA / "hans" / "berts_of_a_feather_accuracies_by_run.csv")
    lines = {line.split("  ")[0].strip(): line.split() for line in text.splitlines()}
    assert "small cluster (12)" in text
    assert "0.976" in lines["Lexical (nonent)"]
    assert "0.982" in lines["ln_subject/object_swap"]
    assert len(lines) >= 39
