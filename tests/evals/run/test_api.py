"""The Python API of evaluations: live models and rows in memory give what the command gives on folders and files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import transformers
from click.testing import CliRunner
from tiny import NLI, bert_config, save_checkpoint

import evals
import merge
from evals.commands.evaluate_models import evaluate
from merge.checkpoints.inputs import load_tokenizer
from merge.errors import MismatchError, TaskError, UsageError

ROWS = [
    {"premise": f"the {word} saw a lawyer .", "hypothesis": "a lawyer helped .", "label": NLI[k % 3]}
    for k, word in enumerate(["doctor", "lawyer", "river", "doctor", "near"] * 6)
]


@pytest.fixture
def zoo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for seed, name in enumerate("ab"):
        save_checkpoint(tmp_path / name, seed=seed)
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return tmp_path


def command(*words: str) -> Any:
    done = CliRunner().invoke(evaluate, [*words, "--json", "-q"])
    assert done.exit_code == 0, done.output
    return json.loads(done.stdout)


def live(name: str) -> Any:
    return transformers.AutoModelForSequenceClassification.from_pretrained(f"{name}/")


def without_times(record: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in record.items() if name not in ("seconds", "predictions", "versions")}


def test_scores_are_those_of_the_command(zoo: Path) -> None:
    """Every field but times and file names; a subset of the rows scores otherwise (negative control)."""
    expected = command("score", "mnli", "a", "b", "--data", "rows.jsonl")
    scores = evals.score(["a", "b"], "mnli", data="rows.jsonl")
    assert [without_times(record) for record in scores.to_json()] == [without_times(record) for record in expected]
    assert [entry["accuracy"] for entry in scores] == [record["scores"]["accuracy"] for record in expected]
    assert evals.score("a", "mnli", data=ROWS[:7])[0]["loss"] != scores[0]["loss"]


@pytest.mark.slow
def test_live_models_and_rows_in_memory_score_as_files_do(zoo: Path) -> None:
    """Lists of dicts, a Dataset, live models, open checkpoints and results of a merge."""
    from datasets import Dataset

    expected = evals.score("a", "mnli", data="rows.jsonl")[0]
    for model in ("a", live("a"), merge.load("a"), Path("a")):
        for rows in (ROWS, Dataset.from_list(ROWS)):
            assert evals.score(model, "mnli", data=rows)[0] == expected
    other = evals.score(["b"], "mnli", data=ROWS)[0]
    assert other != expected
    both = evals.score((live("a"), live("b")), "mnli", data=ROWS)  # two models, not a model and its tokenizer
    assert list(both) == [expected, other]
    assert evals.score((live("a"), load_tokenizer(Path("a"))), "mnli", data=ROWS)[0] == expected
    merged = merge.merge(["a", "b"])
    assert evals.score(merged.checkpoint, "mnli", data=ROWS)[0] == evals.score(merged.model, "mnli", data=ROWS)[0]


def test_labels_and_dtype_are_those_of_the_command(zoo: Path) -> None:
    """For a model without class names; another order of them, or another dtype, gives other losses (negative control)."""
    save_checkpoint(zoo / "bare", bert_config(labels=("LABEL_0", "LABEL_1", "LABEL_2")), seed=1)
    (zoo / "few.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS[:7]))
    words = ("score", "mnli", "bare", "--data", "few.jsonl", "--labels", ",".join(NLI), "--dtype", "bfloat16")
    scores = evals.score("bare", "mnli", data="few.jsonl", labels=NLI, dtype="bfloat16")
    assert [without_times(record) for record in scores.to_json()] == [without_times(r) for r in command(*words)]
    float32 = [evals.score("bare", "mnli", data="few.jsonl", labels=names)[0]["loss"] for names in (NLI, NLI[::-1])]
    assert len({scores[0]["loss"], *float32}) == 3


@pytest.mark.slow
def test_hans_has_every_subcase(zoo: Path) -> None:
    scores = evals.hans(["a", "b"], limit=120, seed=1)
    expected = command("hans", "a", "b", "--limit", "120", "--seed", "1")
    assert [record["hans"] for record in scores.records] == [record["hans"] for record in expected]
    assert scores.plot().axes
    assert "lexical" in str(scores)


@pytest.mark.slow
def test_the_barrier_is_that_of_the_command(zoo: Path) -> None:
    """Curves to the last digit; the alignment is measured beside the naive line."""
    words = ("barrier", "a", "b", "--task", "mnli", "--data", "rows.jsonl", "--points", "3", "--align", "weights")
    expected = command(*words)[0]
    measured = evals.barrier(live("a"), "b", task="mnli", data=ROWS, points=3, align="weights")
    assert [dict(curve) for curve in measured.curves.values()] == expected["curves"]
    assert list(measured.curves) == ["naive", "aligned"]
    assert measured.barrier == expected["curves"][1]["barrier"]
    assert measured.plot().axes


@pytest.mark.slow
def test_the_line_is_that_of_the_command_on_every_data_set(zoo: Path) -> None:
    """Rows in memory of two data sets are two data sets, each with its own losses."""
    other = [{**row, "label": "neutral"} for row in ROWS[:9]]
    (zoo / "other.jsonl").write_text("".join(json.dumps(row) + "\n" for row in other))
    words = (
        "line",
        "a",
        "b",
        "--task",
        "mnli",
        "--data",
        "rows.jsonl",
        "--points",
        "3",
        "--head",
        "both",
        "--head",
        "A",
    )
    expected = command(*words, "--also", "mnli_mismatched=other.jsonl")
    measured = evals.line(
        live("a"), "b", task="mnli", data=ROWS, also={"mnli_mismatched": other}, head=["both", "A"], points=3
    )
    assert [record["curves"] for record in measured.to_json()] == [record["curves"] for record in expected]
    assert list(measured.summaries) == ["mnli", "mnli_mismatched"]
    assert [record["n"] for record in measured.records] == [30, 9]
    assert list(measured.curves["mnli"]) == ["naive", "naive, head of a"]
    assert measured.summaries["mnli"]["naive"]["loss barrier"] == measured.curves["mnli"]["naive"]["barrier"]
    assert measured.plot("mnli_mismatched").axes
    assert "Frankle" in str(measured)
    with pytest.raises(UsageError, match="was not measured on 'mnl'. Did you mean 'mnli'?"):
        measured.plot("mnl")


def test_compare_takes_results_or_their_folder(zoo: Path) -> None:
    scores = evals.score(["a", "b"], "mnli", data=ROWS, output="report")
    compared = evals.compare(scores)
    assert compared.to_json() == evals.compare("report", "mnli").to_json() == command("compare", "report", "mnli")
    assert compared[0].difference == pytest.approx(scores[0][compared[0].score] - scores[1][compared[0].score])
    assert "<table>" in compared._repr_html_()
    with pytest.raises(UsageError, match="say which task"):
        evals.compare("report")


def test_results_show_themselves(zoo: Path) -> None:
    """A notebook shows tables; a model's name with markup in it is shown as text."""
    save_checkpoint(zoo / "<b>", seed=3)
    scores = evals.score(["<b>"], "mnli", data=ROWS)
    assert "&lt;b&gt;" in scores._repr_html_()
    assert "<b>" not in scores._repr_html_().replace("<tbody>", "")
    assert "accuracy" in str(scores)


def test_bad_input_is_one_clear_line(zoo: Path) -> None:
    save_checkpoint(zoo / "small", {**json.loads((zoo / "a/config.json").read_text()), "hidden_size": 32}, seed=1)
    with pytest.raises(UsageError, match="Did you mean 'mnli'"):
        evals.score("a", "mnlx", data=ROWS)
    with pytest.raises(UsageError, match="no models given"):
        evals.score([], "mnli", data=ROWS)
    with pytest.raises(UsageError, match="found none"):
        evals.score("a", "mnli", data=[])
    with pytest.raises(UsageError, match="row 0: expected column names"):
        evals.score("a", "mnli", data=["text"])
    with pytest.raises(TaskError, match="label"):
        evals.score("a", "mnli", data=[{**ROWS[0], "label": "perhaps"}])
    with pytest.raises(UsageError, match="points must be at least 3"):
        evals.barrier("a", "b", task="mnli", data=ROWS, points=2)
    with pytest.raises(UsageError, match="points must be at least 3"):
        evals.line("a", "b", task="mnli", data=ROWS, points=2)
    with pytest.raises(UsageError, match="unknown head 'a'"):
        evals.line("a", "b", task="mnli", data=ROWS, head="a")
    with pytest.raises(UsageError, match="no head is named"):
        evals.line("a", "b", task="mnli", data=ROWS, head=())
    with pytest.raises(TypeError, match="unexpected keyword argument 'dtype'"):
        evals.line("a", "b", task="mnli", data=ROWS, dtype="bfloat16")
    with pytest.raises(TaskError, match="asks for a number"):
        evals.barrier("a", "b", task="stsb", data=ROWS)
    with pytest.raises(MismatchError):
        evals.barrier("a", "small", task="mnli", data=ROWS)
    with pytest.raises(AttributeError, match="Public names: average_loss, barrier"):
        _ = evals.scores_of
