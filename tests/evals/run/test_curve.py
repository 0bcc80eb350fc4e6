"""Curves between checkpoints: ends, bends as checkpoints, alignment beside it, and runs that go on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from captured_log import CapturedLog
from click.testing import CliRunner
from tiny import NLI, bert_config, save_checkpoint

import evals
from evals.commands.evaluate_models import evaluate
from evals.paths.surface import training
from merge.commands.terminal import start
from merge.errors import CheckpointError, MergeError

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


def test_a_curve_of_shorter_rows_has_bends_of_its_own_in_the_same_folder(inside: Path, tmp_path: Path) -> None:
    """They are trained on other tokens; beside each other, both are what each is in a folder of its own."""
    first, cut = measured(tmp_path / "both"), measured(tmp_path / "both", max_length=4)
    alone = measured(tmp_path / "alone", max_length=4)
    assert cut["curves"][1]["loss"] == alone["curves"][1]["loss"] != first["curves"][1]["loss"]
    assert cut["checkpoints"] == alone["checkpoints"] != first["checkpoints"]


def test_a_damaged_record_is_measured_again_from_its_bends(
    inside: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, captured_log: CapturedLog
) -> None:
    """What tables would index is not used; bends are read, and one that was changed is named and not used either."""
    first = measured(tmp_path)
    path = tmp_path / "results.json"
    sound = path.read_text()
    del (damaged := json.loads(sound))["results"][0]["curves"][1]["length"]
    path.write_text(json.dumps(damaged))
    monkeypatch.setattr("evals.paths.surface.training.train_points", None)
    again = measured(tmp_path)
    assert without_times(again) == without_times(first)
    assert [line for line in captured_log.messages if "measured again where it is asked for: curve (" in line]
    bend = tmp_path / first["checkpoints"] / "naive-bend1"
    for name, change in (
        ("model.safetensors", flipped),
        ("surface.json", lambda data: data.replace(b"steps", b"STEPS")),
    ):
        whole = (bend / name).read_bytes()
        (bend / name).write_bytes(change(whole))
        with pytest.raises(CheckpointError, match="naive-bend1 is not used: it was changed since it was written"):
            measured(tmp_path, points=3)
        (bend / name).write_bytes(whole)
    measured(tmp_path, points=3)  # the control


def test_ctrl_c_says_in_one_line_what_is_kept(
    inside: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nothing before the first step; then its state, from which the command ends as if it had not been stopped."""
    words = [
        "curve",
        "a",
        "b",
        "-q",
        "--task",
        "mnli",
        "--data",
        "rows.jsonl",
        "--train",
        "train.jsonl",
        "--points",
        "3",
    ]
    words += ["--train-steps", "4", "--rate", "0.01"]
    real, left = training._loss, [0]

    def loss(*args: Any) -> Any:
        left[0] -= 1
        if left[0] < 0:
            raise KeyboardInterrupt
        return real(*args)

    def stopped(folder: str) -> str:
        with pytest.raises(SystemExit, match="130"):
            start(evaluate, "evaluate-models", [*words, "-o", str(tmp_path / folder)])
        (line,) = filter(None, capsys.readouterr().err.splitlines())
        return line

    monkeypatch.setattr(training, "_loss", loss)
    assert stopped("none") == "evaluate-models: interrupted; no incomplete output is left"
    for folder in ("kept", "changed"):
        left[0] = 2
        kept = f"what was done is kept in {tmp_path / folder}, and the same command goes on from there"
        assert stopped(folder) == f"evaluate-models: interrupted; {kept}"
    (state,) = (tmp_path / "changed" / "surface").glob("*.safetensors")
    state.write_bytes(flipped(state.read_bytes()))
    monkeypatch.setattr(training, "_loss", real)
    settings: dict[str, Any] = {"train": "train.jsonl", "data": "rows.jsonl", "points": 3, "steps": 4, "rate": 0.01}
    expected = evals.curve("a", "b", task="mnli", **settings).record["curves"][1]["loss"]
    assert (
        evals.curve("a", "b", task="mnli", output=tmp_path / "kept", **settings).record["curves"][1]["loss"] == expected
    )
    with pytest.raises(CheckpointError, match="is removed: it was changed since it was written"):
        evals.curve("a", "b", task="mnli", output=tmp_path / "changed", **settings)
    assert not state.exists()


def without_times(record: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in record.items() if name != "seconds"}


def flipped(data: bytes) -> bytes:
    """Return the bytes of weights with one bit of the last number changed: another model that loads as well."""
    return data[:-3] + bytes([data[-3] ^ 1]) + data[-2:]


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
        (["a", "b", "--train", "train.jsonl", "--rate", "inf"], "a rate above 0"),
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
