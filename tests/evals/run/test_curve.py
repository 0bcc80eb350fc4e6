"""Curves between checkpoints: ends, bends as checkpoints, alignment beside it, and runs that go on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from tiny import NLI, bert_config, save_checkpoint

import evals
from evals.commands.evaluate_models import evaluate
from merge.errors import MergeError

SMALL = bert_config(hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=12)
ROWS = [
    {"premise": f"the {word} saw a lawyer .", "hypothesis": "a lawyer helped .", "label": NLI[k % 3]}
    for k, word in enumerate(["doctor", "lawyer", "river", "near"] * 3)
]
TRAIN = [{**row, "premise": row["premise"].replace("saw", "helped"), "label": "neutral"} for row in ROWS]


@pytest.fixture(scope="module")
def zoo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("zoo")
    for seed, name in enumerate("ab"):
        save_checkpoint(root / name, SMALL, seed=seed)
    save_checkpoint(root / "wide", {**SMALL, "intermediate_size": 16}, seed=3)
    for name, rows in (("rows", ROWS), ("train", TRAIN)):
        (root / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return root


@pytest.fixture
def inside(zoo: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(zoo)
    return zoo


def measured(out: Path | None = None, **options: Any) -> dict[str, Any]:
    settings = {"points": 5, "steps": 6, "rate": 1e-2, **options}
    return evals.curve("a", "b", task="mnli", train=TRAIN, data=ROWS, output=out, **settings).record


def test_a_curve_ends_at_its_models_and_passes_through_its_bend(inside: Path, tmp_path: Path) -> None:
    """Losses at the ends are those of the straight line, to the last digit; half way that of the bend."""
    record = measured(tmp_path, kind="chain")
    line, curve = record["curves"]
    assert line["loss"][0] == curve["loss"][0]
    assert line["loss"][-1] == curve["loss"][-1]
    assert line["loss"][2] != curve["loss"][2]
    assert line["loss"][0] == pytest.approx(evals.score("a", "mnli", data=ROWS)[0]["loss"], rel=1e-6)
    bend = tmp_path / record["checkpoints"] / "naive-bend1"
    assert curve["loss"][2] == pytest.approx(evals.score(bend, "mnli", data=ROWS)[0]["loss"], rel=1e-5)
    assert curve["length"] > line["length"]
    assert list((tmp_path / "surface").glob("*.safetensors")) == []


def test_a_second_run_reads_the_bend_and_a_finer_grid_trains_nothing(
    inside: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = measured(tmp_path)
    monkeypatch.setattr("evals.paths.surface.training.train_points", None)
    assert measured(tmp_path) == first
    finer = measured(tmp_path, points=9)
    assert finer["curves"][1]["loss"][::2] == first["curves"][1]["loss"]
    assert finer["curves"][1]["training"] == first["curves"][1]["training"]
    with pytest.raises(TypeError):  # the control: other training is trained
        measured(tmp_path, steps=7)


@pytest.mark.slow
def test_after_an_alignment_both_paths_are_measured_once_more(inside: Path, tmp_path: Path) -> None:
    """The aligned end has b's loss, and is a checkpoint of its own."""
    record = measured(tmp_path, align="weights", kind="bezier")
    names = ["naive straight line", "naive Bezier curve", "aligned straight line", "aligned Bezier curve"]
    assert [curve["name"] for curve in record["curves"]] == names
    naive, aligned = record["curves"][0], record["curves"][2]
    assert aligned["loss"][-1] == pytest.approx(naive["loss"][-1], rel=1e-4)
    assert aligned["loss"][2] != pytest.approx(naive["loss"][2], rel=1e-4)
    end = tmp_path / record["checkpoints"] / "aligned-b"
    assert evals.score(end, "mnli", data=ROWS)[0]["loss"] == pytest.approx(aligned["loss"][-1], rel=1e-5)
    expected = evals.barrier("a", "b", task="mnli", data=ROWS, points=5, align="weights").curves
    assert aligned["loss"] == pytest.approx(list(expected["aligned"]["loss"]), rel=1e-5)


def test_rows_that_are_trained_on_and_measured_are_said(inside: Path) -> None:
    record = evals.curve("a", "b", task="mnli", train=ROWS[:4], data=ROWS, points=3, steps=1).record
    assert any("of the 4 rows of --train are measured too" in note for note in record["notes"])
    assert not any("measured too" in note for note in measured(points=3, steps=1)["notes"])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["a", "b"], "--train names the labelled rows"),
        (["a", "wide", "--train", "train.jsonl"], "wide"),
        (["a", "a", "--train", "train.jsonl"], "have the same weights"),
        (["a", "b", "--train", "train.jsonl", "--rate", "0"], "a rate above 0"),
        (["a", "b", "--train", "absent.jsonl"], "absent.jsonl"),
    ],
)
def test_what_is_no_curve_is_one_line(inside: Path, words: list[str], message: str) -> None:
    done = CliRunner().invoke(evaluate, ["curve", *words, "--task", "mnli", "--data", "rows.jsonl"])
    assert done.exit_code != 0
    assert isinstance(done.exception, MergeError)
    assert message in str(done.exception)


@pytest.mark.slow
def test_the_command_prints_and_draws_what_the_function_measures(inside: Path, tmp_path: Path) -> None:
    words = [
        "curve",
        "a",
        "b",
        "--task",
        "mnli",
        "--train",
        "train.jsonl",
        "--data",
        "rows.jsonl",
        "--points",
        "5",
        "--rate",
        ".01",
    ]
    words += ["--train-steps", "6"]
    done = CliRunner().invoke(evaluate, [*words, "-o", str(tmp_path)])
    assert done.exit_code == 0, done.output
    assert "naive Bezier curve" in done.stdout
    again = json.loads(CliRunner().invoke(evaluate, [*words, "-o", str(tmp_path), "--json", "-q"]).stdout)
    assert [c["loss"] for c in again["curves"]] == [c["loss"] for c in measured()["curves"]]
    assert "Curves of low loss" in (tmp_path / "index.html").read_text()
