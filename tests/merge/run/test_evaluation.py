"""The evaluation after a merge: evaluate-models is run on the result and its inputs, and the card says what it found."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import warm
import yaml
from tiny import NLI, WORDS, bert_config, save_checkpoint

import merge.run.evaluation as module
from merge.commands.merge_models import main
from merge.errors import TaskError
from merge.recipe.entries import EvaluationEntry
from merge.recipe.recipe import Recipe, make_recipe
from merge.run.evaluation import START, EvaluationError, evaluate, report_folder
from merge.run.run import run
from merge.run.verify import verify


@pytest.fixture
def warm_evaluation(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let evaluate-models start from a process that has torch imported."""
    monkeypatch.setattr(module, "subprocess", SimpleNamespace(run=warm.run, DEVNULL=subprocess.DEVNULL))


@pytest.fixture(scope="module")
def zoo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("zoo")
    save_checkpoint(root / "a", seed=0)
    save_checkpoint(root / "b", seed=1)
    for seed, name in enumerate("xy"):  # without names for their classes
        save_checkpoint(root / name, bert_config(labels=("LABEL_0", "LABEL_1", "LABEL_2")), seed=seed)
    draw = random.Random(0)
    rows = [
        {
            "premise": " ".join(draw.choices(WORDS[:11], k=draw.randint(2, 10))),
            "hypothesis": " ".join(draw.choices(WORDS[:11], k=draw.randint(2, 6))),
            "label": draw.choice(NLI),
        }
        for _ in range(30)
    ]
    (root / "mnli.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return root


def recipe(zoo: Path, output: Path, *evaluation: dict[str, Any], models: str = "ab") -> Recipe:
    names = [str(zoo / name) for name in models]
    return make_recipe({"models": names, "output": str(output), "evaluation": list(evaluation)})


@pytest.mark.usefixtures("warm_evaluation")
@pytest.mark.slow
def test_the_scores_of_the_merge_and_its_inputs_go_into_its_card(zoo: Path, tmp_path: Path) -> None:
    """Report beside the output, metadata for the Hub, a manifest that still verifies; once scored, not scored again."""
    made = recipe(zoo, tmp_path / "out", {"task": "mnli", "data": str(zoo / "mnli.jsonl"), "limit": 20})
    report = run(made)
    records = json.loads((tmp_path / "out-report" / "results.json").read_text(encoding="utf-8"))["results"]
    assert [Path(r["model"]["name"]).name for r in records] == ["out", "a", "b"]
    assert {(r["task"], r["n"]) for r in records} == {("mnli", 20)}
    assert (tmp_path / "out-report" / "index.html").is_file()
    card = (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    (result,) = yaml.safe_load(card.split("---")[1])["model-index"][0]["results"]
    assert {m["type"]: m["value"] for m in result["metrics"]} == records[0]["scores"]
    assert card.count(f"| {records[0]['scores']['loss']:.4f} |") == 1
    assert verify(tmp_path / "out").holds
    assert any("evaluated on mnli: scores are in" in note for note in report.notes)
    before = [r["seconds"] for r in records]
    evaluate(made, report.models)
    records = json.loads((tmp_path / "out-report" / "results.json").read_text(encoding="utf-8"))["results"]
    assert [r["seconds"] for r in records] == before


def test_without_evaluation_nothing_is_run(zoo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor in a dry run, which has no output to score."""

    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("evaluate-models was run")

    monkeypatch.setattr(module.subprocess, "run", refuse)
    run(recipe(zoo, tmp_path / "out"))
    run(recipe(zoo, tmp_path / "dry", {"task": "mnli"}), dry_run=True)
    assert not report_folder(tmp_path / "out").exists()
    with pytest.raises(AssertionError, match="evaluate-models was run"):
        run(recipe(zoo, tmp_path / "other", {"task": "mnli"}))


def test_the_command_is_what_a_user_would_type() -> None:
    """Options before --, so that no model or task is read as one; hans is a command of its own."""
    entry = EvaluationEntry(task="mnli", data="d.tsv", limit=5, labels=("no", "yes"))
    command = module._command(entry, 7, Path("out-report"), ["out", "-a"])
    assert command[:4] == [sys.executable, "-P", "-c", START]
    words = ["score", "-q", "-o", "out-report", "--seed", "7", "--data", "d.tsv", "--limit", "5", "--labels", "no,yes"]
    assert command[5:] == [*words, "--", "mnli", "out", "-a"]
    hans = module._command(EvaluationEntry(task="hans"), 0, Path("r"), ["out"])
    assert hans[5:] == ["hans", "-q", "-o", "r", "--seed", "0", "--", "out"]


@pytest.mark.usefixtures("warm_evaluation")
@pytest.mark.slow
def test_class_names_that_the_models_lack_are_stated(zoo: Path, tmp_path: Path) -> None:
    """Without them evaluate-models refuses placeholder names: the error is its last line, and the merge stays."""
    entry = {"task": "mnli", "data": str(zoo / "mnli.jsonl"), "limit": 10}
    run(recipe(zoo, tmp_path / "out", entry | {"labels": NLI}, models="xy"))
    assert "| mnli (" in (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    with pytest.raises(EvaluationError, match="bad is written, but its evaluation on mnli failed .exit 1.: .*LABEL_0"):
        run(recipe(zoo, tmp_path / "bad", entry, models="xy"))
    assert verify(tmp_path / "bad").holds
    assert "## Scores" not in (tmp_path / "bad" / "README.md").read_text(encoding="utf-8")


def test_an_unknown_task_is_one_line_and_exit_1(
    zoo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(recipe(zoo, tmp_path / "out", {"task": "mnly"}).to_yaml(), encoding="utf-8")
    monkeypatch.setattr(sys, "argv", ["merge-models", "--recipe", str(path), "-q"])
    with pytest.raises(SystemExit) as stop:
        main()
    said = capsys.readouterr().err.strip()
    assert stop.value.code == 1
    assert said.splitlines()[-1].startswith(f"merge-models: {tmp_path / 'out'} is written, but its evaluation on mnly")
    assert "Did you mean 'mnli'" in said
    assert (tmp_path / "out" / "model.safetensors").is_file()


def test_data_that_is_not_there_is_said_before_anything_is_merged(zoo: Path, tmp_path: Path) -> None:
    with pytest.raises(TaskError, match="evaluation on mnli: .*none.tsv: there is no such file"):
        run(recipe(zoo, tmp_path / "out", {"task": "mnli", "data": str(tmp_path / "none.tsv")}))
    assert not (tmp_path / "out").exists()
