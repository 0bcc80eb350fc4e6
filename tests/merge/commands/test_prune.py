"""edit-layers prune-heads, prune-neurons and prune-embeddings as they are typed."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from command_run import Run, command_run
from tiny import save_checkpoint, write_text

from merge.commands.edit_layers import edit_main
from merge.commands.prune import LOSS_NAMES, SCORE_NAMES
from merge.layers.pruning.gradients import LOSSES
from merge.layers.pruning.scores import SCORES


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[Run]:
    """Return a function that runs edit-layers in a folder with a checkpoint m and a text."""
    save_checkpoint(tmp_path / "m")
    write_text(tmp_path / "t.txt", 10)
    monkeypatch.chdir(tmp_path)
    with command_run("edit-layers", edit_main, monkeypatch, capsys) as run_here:
        yield run_here


def test_the_help_names_every_score_and_loss() -> None:
    """The command lists them itself, as their own module would load torch."""
    assert tuple(SCORES) == SCORE_NAMES
    assert tuple(LOSSES) == LOSS_NAMES


def test_heads_are_listed_with_and_without_quotes(run: Run) -> None:
    code, out, _ = run("prune-heads", "m", "--heads", "0:1,3", "1:0", "-o", "out")
    assert code == 0
    assert "3 of 8 heads removed, their outputs zeroed, the size is as before: 0:1,3 1:0" in out
    assert "differ by at most 0 standard deviations" in out
    code, out, _ = run("prune-heads", "m", "--heads", "0:1,3 1:0", "--json", "-q", "-o", "again")
    assert code == 0
    assert json.loads(out)["removed"] == {"0": [1, 3], "1": [0]}
    one, two = (Path(folder, "model.safetensors").read_bytes() for folder in ("out", "again"))
    assert one == two != Path("m", "model.safetensors").read_bytes()


@pytest.mark.slow
def test_neurons_come_from_a_file_or_a_score(run: Run) -> None:
    Path("neurons.json").write_text(json.dumps({"0": [1, 3], "1": [0, 2]}))
    code, out, _ = run("prune-neurons", "m", "--neurons", "neurons.json", "--shrink", "-o", "out")
    assert code == 0
    assert "config.json: intermediate_size: 40 -> 38" in out
    arguments = (
        "--score",
        "gate-gradient",
        "--share",
        "0.25",
        "--per-layer",
        "--text",
        "t.txt",
        "--shrink",
        "-o",
        "half",
    )
    code, out, err = run("prune-neurons", "m", *arguments)
    assert code == 0
    assert "config.json: intermediate_size: 40 -> 30" in out
    assert (
        "lowest of each layer by gate-gradient (divergence from the model's own predictions, no labels), on t.txt"
        in out
    )
    assert "small" in err  # the note on ten texts


def test_a_vocabulary_is_trimmed(run: Run) -> None:
    Path("few.txt").write_text("the doctor saw a lawyer .\n")
    code, out, err = run("prune-embeddings", "m", "--text", "few.txt", "--allow-unknown", "-o", "out")
    assert code == 0
    assert "6 of 18 tokens removed: 12 stay" in out
    assert "config.json: vocab_size: 18 -> 12" in out
    assert "other texts with them are read as unknown" in err


USAGE = {
    "nothing": (("prune-heads", "m"), "say which heads go in one way"),
    "both": (
        ("prune-heads", "m", "--heads", "0:1", "--score", "lesion", "--count", "1"),
        "say which heads go in one way",
    ),
    "no count": (("prune-heads", "m", "--score", "lesion"), "--score needs --count N or --share X"),
    "two counts": (("prune-heads", "m", "--score", "lesion", "--count", "1", "--share", "0.1"), "one of both"),
    "a count alone": (("prune-heads", "m", "--heads", "0:1", "--count", "1"), "belong to --score"),
    "a share of two": (
        ("prune-heads", "m", "--score", "lesion", "--share", "2"),
        "--share expects a number between 0 and 1",
    ),
    "text for weights": (
        ("prune-heads", "m", "--score", "weight-norm", "--count", "1", "--text", "t.txt"),
        "--text has no effect without a score that reads text",
    ),
    "a loss of a lesion": (
        ("prune-heads", "m", "--score", "lesion", "--count", "1", "--loss", "own"),
        "--loss has no effect",
    ),
    "unknown score": (("prune-heads", "m", "--score", "lesions", "--count", "1"), "Did you mean 'lesion'?"),
    "stray": (("prune-heads", "m", "0:1"), "unexpected argument '0:1'"),
    "form": (("prune-heads", "m", "--heads", "0,1"), "heads are given as layer:heads, such as 0:1,3"),
    "index": (("prune-heads", "m", "--heads", "0:9"), "layer 0 has no head 9; it has 4, 0 to 3"),
    "none left": (("prune-heads", "m", "--heads", "0:0-3"), "layer 0 would have zero heads left"),
    "family": (("prune-heads", "m", "--heads", "0:0 1:0", "--shrink"), "heads of bert models cannot be cut out"),
    "tolerance": (("prune-neurons", "m", "--neurons", "0:1", "--tolerance", "0.1"), "no effect without --redundant"),
    "no redundant": (("prune-neurons", "m", "--redundant"), "has no redundant neurons"),
    "no text": (("prune-embeddings", "m"), "Missing option '--text'"),
    "exists": (("prune-heads", "m", "--heads", "0:1", "-o", "t.txt"), "output t.txt exists"),
}


@pytest.mark.parametrize("fault", USAGE)
def test_a_fault_is_one_line_and_nothing_is_written(fault: str, run: Run) -> None:
    arguments, message = USAGE[fault]
    before = sorted(path.name for path in Path().iterdir())
    code, out, err = run(*arguments)
    lines = [line for line in err.splitlines() if line.startswith("edit-layers:")]
    assert code in (1, 2)
    assert out == ""
    assert len(lines) == 1
    assert message in lines[0]
    assert "Traceback" not in err
    assert sorted(path.name for path in Path().iterdir()) == before
