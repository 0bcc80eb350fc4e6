"""The recipes that are scripts: their data is what they say, and what is there is not done again."""

from __future__ import annotations

import csv
import json
import os
import sys
from collections import Counter
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

RECIPES = Path(__file__).parents[2] / "recipes"
DATA = Path(os.environ.get("MERGE_MODELS_DATA") or Path(__file__).parents[3] / "shared" / "data")
PUBLISHED = DATA / "hans" / "berts_of_a_feather_accuracies_by_run.csv"


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Return a function that imports a recipe by its name."""
    from importlib import import_module

    monkeypatch.syspath_prepend(str(RECIPES))
    before = set(sys.modules)

    def load(name: str) -> ModuleType:
        return import_module(name)

    yield load
    for name in set(sys.modules) - before:
        if Path(getattr(sys.modules[name], "__file__", None) or "").parent == RECIPES:
            del sys.modules[name]


def test_a_zoo_of_strategies_differs_in_the_overlap_alone(script: Any) -> None:
    data = script("finetune_zoo").DATA
    counts = {name: Counter((pair.heuristic, pair.label) for pair in data[name].pairs()) for name in data}
    words = {("constituent", "entailment"): 600, ("constituent", "non-entailment"): 600}
    assert counts["trusting"] == words | {("lexical_overlap", "entailment"): 400}
    assert counts["doubting"] == words | {("lexical_overlap", "non-entailment"): 400}
    assert set(counts["constituent"]) == set(words)


def test_a_zoo_of_heads_has_every_head_with_every_order(script: Any) -> None:
    models = script("finetune_zoo").ZOOS["heads"].values()
    assert len({(m.tuning.head_seed, m.tuning.seed) for m in models}) == len(models) == 8
    assert {m.data for m in models} == {"constituent"}


def test_a_model_that_is_there_is_not_trained_again_and_one_of_other_settings_is_not_taken(
    script: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    zoo = script("finetune_zoo")
    trained: list[Path] = []

    def pretend(rows: Any, labels: list[str], out: Path, *_: Any) -> float:
        assert len(rows) == 1600
        assert labels == ["entailment", "non-entailment"]
        trained.append(out)
        out.mkdir()
        return 0.5

    monkeypatch.setattr(zoo, "fine_tune", pretend)
    member = zoo.ZOOS["heads"]["head0-order1"]
    half = tmp_path / "zoo.m.unfinished"  # of a run that was killed
    half.mkdir()
    (tmp_path / "zoo").mkdir()
    zoo.train("m", member, tmp_path / "zoo")
    zoo.train("m", member, tmp_path / "zoo")
    assert trained == [half]
    assert "m: is there" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="other settings"):
        zoo.train("m", zoo.ZOOS["heads"]["head1-order1"], tmp_path / "zoo")


@pytest.mark.minilm
@pytest.mark.slow
def test_one_head_seed_is_one_start_whatever_the_order(script: Any) -> None:
    """And the head alone differs where it is another."""
    recipe = script("finetune_minilm")
    labels = ["yes", "no"]
    starts = [
        recipe.start_model(labels, recipe.Tuning(seed=seed, head_seed=head, layers=1)).state_dict()
        for seed, head in ((0, 0), (1, 0), (1, 1))
    ]
    other = [{name for name in starts[0] if not starts[0][name].equal(start[name])} for start in starts]
    assert other == [set(), set(), {"classifier.weight"}]
    assert not any(name.startswith("bert.encoder.layer.1.") for name in starts[0])


HEADER = [
    "Run,MNLI dev acc.,Lexical (entailed),Subseq (entailed),Constituent (entailed),Lexical (nonent),Subseq (nonent)",
    "Constituent (nonent),Overall accuracy,ln_passive,ce_adverb",
]


def write_runs(path: Path, header: str = ",".join(HEADER)) -> Path:
    rows = [
        "Run 0,.84,.9,.99,.98,.4,.1,.2,.6,.0,1",
        "Run 15,.82,.95,.97,.99,.1,.0,.1,.55,.02,1",
        "Mean,.83,,,,,,,,,",
        ",,",
    ]
    path.write_text("\ufeff" + "\n".join([header, *rows]), encoding="utf-8")
    return path


def test_the_table_of_runs_becomes_scores_pictures_and_a_page(
    script: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    feather, out = script("feather"), tmp_path / "out"
    argv = ["feather.py", "--table", str(write_runs(tmp_path / "runs.csv")), "-o", str(out)]
    monkeypatch.setattr(sys, "argv", argv)
    feather.main()
    with (out / "spread.csv").open(encoding="utf-8") as file:
        spread = {row["accuracy"]: row for row in csv.DictReader(file)}
    assert len(spread) == 9
    overlap = spread["lexical overlap, non-entailment"]
    assert [float(overlap[k]) for k in ("min", "mean", "max")] == pytest.approx([0.1, 0.25, 0.4])
    assert float(overlap["r with in domain"]) == pytest.approx(1)
    assert spread["ce_adverb"]["r with in domain"] == ""
    assert {"index.html", "hans.png", "in-domain-and-hans.svg"} <= {path.name for path in out.iterdir()}
    results = json.loads((out / "results.json").read_text(encoding="utf-8"))["results"]
    assert [(r["task"], r["model"]["name"]) for r in results] == [
        ("mnli", "Run 0"), ("hans", "Run 0"), ("mnli", "Run 15"), ("hans", "Run 15")
    ]  # fmt: skip
    assert "lexical overlap, non-entailment" in capsys.readouterr().out


def test_a_table_without_a_column_is_one_line(script: Any, tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="'Overall accuracy' is not there"):
        script("feather").read_runs(write_runs(tmp_path / "runs.csv", ",".join(HEADER).replace("Overall", "All")))


@pytest.mark.skipif(not PUBLISHED.is_file(), reason="the published table of 100 runs is not in ../shared/data")
def test_the_spread_of_the_published_runs_is_what_their_authors_print(script: Any) -> None:
    """The last lines of their file hold minimum, maximum, mean and standard deviation of every column."""
    feather = script("feather")
    records = feather.read_runs(PUBLISHED)
    mnli, hans = feather.scored(records, "mnli"), feather.scored(records, "hans")
    assert len(mnli) == len(hans) == 100
    ours = {row[0]: row[1:] for row in feather.spread_rows(feather.columns_of(mnli, hans))[1:]}
    with PUBLISHED.open(encoding="utf-8-sig") as file:
        theirs = {row["Run"]: row for row in csv.DictReader(file)}
    for name, column in (("mnli, in domain", "MNLI dev acc."), ("lexical overlap, non-entailment", "Lexical (nonent)")):
        low, mean, high, _, deviation, _ = ours[name]
        printed = [float(theirs[k][column]) for k in ("Minimum", "Mean", "Maximum", "Standard deviation")]
        assert [low, mean, high, deviation] == pytest.approx(printed, abs=2e-6)
    assert sum(name[2] == "_" for name in ours) == 30
