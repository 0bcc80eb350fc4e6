"""evaluate-models features and evals.features: on every family, aligned and not, with one line for each bad input."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from classifier_families import LOOKED_INSIDE, classifier_config
from click.testing import CliRunner
from quick import quick_on
from tiny import NLI, bert_config, save_checkpoint, write_text

import evals
from evals.commands.evaluate_models import evaluate
from merge.checkpoints.open import open_encoder
from merge.symmetry.architectures import spec_for
from merge.symmetry.permutation import apply, random

FAMILIES = (*LOOKED_INSIDE, "deberta", "nomic_bert")
ROWS = [
    {"premise": f"the {word} saw a lawyer .", "hypothesis": "a lawyer helped .", "label": NLI[k % 3]}
    for k, word in enumerate(["doctor", "lawyer", "river"] * 3)
]


@pytest.fixture
def zoo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for seed, name in enumerate("ab"):
        save_checkpoint(tmp_path / name, seed=seed)
    write_text(tmp_path / "text.txt", 20)
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return tmp_path


def run(*words: str) -> Any:
    return CliRunner().invoke(evaluate, ["features", *words])


@pytest.mark.slow
def test_the_command_writes_tables_figure_and_page_and_the_function_returns_the_same(zoo: Path) -> None:
    done = run("a", "b", "--task", "mnli", "--data", "rows.jsonl", "--lam", "0.5", "--lam", "0.25", "-o", "out")
    assert done.exit_code == 0, done.output
    assert "layer 1 ffn hidden" in done.stdout
    lines = done.stdout.splitlines()
    upper = next(k for k, line in enumerate(lines) if "height over" in line)  # a wide table folds its headers
    end = lines[upper].index("height over") + len("height over")
    assert lines[upper + 1][:end].endswith("the line")
    made = sorted(path.suffix for path in (zoo / "out").iterdir())
    assert [made.count(suffix) for suffix in (".csv", ".png", ".svg")] == [3, 1, 1]
    page = (zoo / "out" / "index.html").read_text()
    assert "Feature connectivity" in page
    assert "Dist_com" in page
    record = json.loads((zoo / "out" / "results.json").read_text())["results"][0]
    same = evals.features("a", "b", task="mnli", data=ROWS, lam=[0.5, 0.25])
    assert same.record["curves"] == record["curves"]
    losses = record["curves"][0]["loss"]["loss"]
    line = evals.line("a", "b", task="mnli", data=ROWS, points=3).curves["mnli"]["naive"]["loss"]
    assert [losses["a"], losses["0.5"], losses["b"]] == pytest.approx(line, abs=1e-6)
    assert (
        run("a", "b", "--task", "mnli", "--data", "rows.jsonl", "--lam", "0.5", "--lam", "0.25", "-o", "out").exit_code
        == 0
    )
    assert len(json.loads((zoo / "out" / "results.json").read_text())["results"]) == 1


def test_the_height_of_the_loss_is_above_the_line_between_its_ends(zoo: Path) -> None:
    """A quarter of the way from A to B, so that the ends do not weigh the same."""
    of = evals.features("a", "b", task="mnli", data=ROWS, lam=0.25, llfc_only=True).record["curves"][0]["loss"]
    a, b, between = (of["loss"][name] for name in ("a", "b", "0.25"))
    assert of["height"] == {"0.25": pytest.approx(between - (0.75 * a + 0.25 * b), abs=1e-9)}
    assert abs(a - b) > 1e-3


@pytest.mark.slow
def test_connectivity_alone_leaves_the_other_tables_out(zoo: Path) -> None:
    """The record of connectivity alone is not taken for that of the whole command, which measures again."""
    alone = run("a", "b", "--text", "text.txt", "-o", "out", "--llfc-only")
    assert alone.exit_code == 0, alone.output
    assert "layer 1 ffn hidden" in alone.stdout
    assert "Dist_com" not in alone.stdout
    assert sum(path.suffix == ".png" for path in (zoo / "out").iterdir()) == 1
    assert "Dist_com" in run("a", "b", "--text", "text.txt", "-o", "out").stdout


@pytest.mark.slow
def test_a_permuted_copy_is_connected_once_it_is_aligned(zoo: Path) -> None:
    """B is A with its units in another order: far from connected as it is, exactly connected aligned."""
    checkpoint = open_encoder("a")
    tensors = {name: checkpoint.tensor(name) for name in checkpoint.tensors}
    spec, shapes = spec_for(checkpoint.config), {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    permutation = random(spec, shapes, torch.Generator().manual_seed(0))
    save_checkpoint(zoo / "c", bert_config(), tensors=apply(spec, permutation, tensors))
    axes = {"by": "weights", "axes": ["residual", "heads", "ffn", "pooler"]}
    naive, aligned = evals.features("a", "c", text="text.txt", align=axes).record["curves"]
    worst = {
        curve["name"].split()[0]: max(site["at"][0]["distance"]["whole"] for site in curve["connectivity"])
        for curve in (naive, aligned)
    }
    assert worst["as"] > 0.1
    assert worst["aligned"] < 1e-6


@pytest.mark.parametrize("family", quick_on(("distilbert",), FAMILIES))
def test_every_family_answers(family: str, tmp_path: Path) -> None:
    """All sites, and both other measures."""
    config = classifier_config(family)
    for seed, name in enumerate("ab"):
        save_checkpoint(tmp_path / name, config, seed=seed)
    text = str(write_text(tmp_path / "text.txt", 8))
    curve = evals.features(str(tmp_path / "a"), str(tmp_path / "b"), text=text).record["curves"][0]
    kinds = {site["kind"] for site in curve["connectivity"]}
    assert {"embeddings", "ffn hidden", "output", "logits"} <= kinds
    assert len(curve["commutativity"]) >= 4
    assert {each["function"] for each in curve["additivity"]} > {"ReLU"}
    for site in curve["connectivity"]:
        assert 0 <= site["at"][0]["distance"]["whole"] <= 2


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (
            ("--task", "mnli", "--data", "rows.jsonl", "--text", "text.txt"),
            "nothing reads --text: leave one of the two out",
        ),
        (("--labels", "yes,no"), "--labels names the classes of a task, and texts have none"),
        (("--text", "text.txt", "--site", "ffn hiden"), "unknown site 'ffn hiden'. Did you mean 'ffn hidden'"),
        (("--text", "text.txt", "--lam", "2"), "lam is between 0 (A) and 1 (B), found 2"),
        (("--data", "rows.jsonl"), "--data holds the rows of a task: give --task too"),
        (("--text", "one.txt"), "models are compared on two texts or more, found 1"),
        (("--text", "missing.txt"), "missing.txt"),
        (("--align", "sideways", "--text", "text.txt"), "unknown alignment 'sideways'"),
    ],
)
def test_a_bad_input_is_one_line(zoo: Path, words: tuple[str, ...], line: str) -> None:
    (zoo / "one.txt").write_text("the doctor .\n")
    done = run("a", "b", *words, "-o", "out")
    assert done.exit_code != 0
    assert line in str(done.exception or done.output)
    assert not (zoo / "out").exists()


def test_models_that_do_not_fit_and_models_without_tokenizer_are_refused(zoo: Path) -> None:
    save_checkpoint(zoo / "wide", bert_config(hidden_size=32))
    save_checkpoint(zoo / "mute", tokenizer=False)
    assert "wide" in str(run("a", "wide", "--text", "text.txt").exception)
    assert "has no tokenizer" in str(run("mute", "b", "--text", "text.txt").exception)
