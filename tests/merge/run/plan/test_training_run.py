"""Checkpoints of a run are ordered by their steps, and averaged as the papers say; a run that cannot be averaged is one line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from families_numbers import CASES
from tiny import save_checkpoint

import merge
from merge.commands.merge_models import merge_command
from merge.errors import MergeError
from merge.run.plan.training_run import run_average

CONFIG = CASES["MLPForSequenceClassification"] | {"num_hidden_layers": 1}


def _run(folder: Path, steps: tuple[int, ...], state: bool = False) -> Path:
    """Write a run's folder with empty checkpoints: their steps are all that is looked at."""
    for step in steps:
        checkpoint = folder / f"checkpoint-{step}"
        checkpoint.mkdir(parents=True)
        if state:
            (checkpoint / "trainer_state.json").write_text(json.dumps({"global_step": step}))
    return folder


def _names(folders: tuple[str, ...]) -> list[str]:
    return [Path(folder).name for folder in folders]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three checkpoints of random weights, 500 steps apart; 1500 is before 500 by name."""
    folder = tmp_path_factory.mktemp("trained")
    for seed, step in enumerate((500, 1000, 1500)):
        save_checkpoint(folder / f"checkpoint-{step}", CONFIG, seed=seed, tokenizer=False)
    return folder


def test_the_last_are_those_of_the_largest_steps_not_names(tmp_path: Path) -> None:
    folder = _run(tmp_path / "run", (500, 1000, 1500, 2000))
    chosen = run_average([str(folder)], last=3)
    assert _names(chosen.models) == ["checkpoint-1000", "checkpoint-1500", "checkpoint-2000"]
    assert chosen.weights is None
    by_name = sorted(str(path) for path in folder.iterdir())
    assert _names(tuple(by_name[-3:])) != _names(chosen.models)
    assert run_average(by_name, last=3) == chosen


def test_the_step_of_the_trainers_state_counts_over_the_name(tmp_path: Path) -> None:
    """A renamed folder keeps its place in the run, and the user is told."""
    folder = _run(tmp_path / "run", (500, 1000, 1500), state=True)
    (folder / "checkpoint-500").rename(folder / "checkpoint-9000")
    (folder / "checkpoint-1500").rename(folder / "best")
    chosen = run_average([str(folder / name) for name in ("checkpoint-9000", "checkpoint-1000", "best")])
    assert _names(chosen.models) == ["checkpoint-9000", "checkpoint-1000", "best"]
    assert [note.split(": ")[1] for note in chosen.notes] == ["its step is 500 by trainer_state.json, not 9000"]


def test_a_shorter_last_interval_is_no_gap(tmp_path: Path) -> None:
    """Training ends between two saves more often than not."""
    assert len(run_average([str(_run(tmp_path / "run", (500, 1000, 1500, 1607)))]).models) == 4


def test_the_average_is_the_recursion_of_the_moving_average(run: Path) -> None:
    """Computed anew: e = d e + (1 - d) c, one checkpoint after another."""
    average = merge.merge([str(run)], ema=0.7).model.state_dict()
    expected: dict[str, torch.Tensor] = {}
    for step in (500, 1000, 1500):
        tensors = merge.load(run / f"checkpoint-{step}").state_dict()
        expected = {n: 0.7 * expected[n] + 0.3 * t if expected else t.clone() for n, t in tensors.items()}
    assert all(torch.allclose(average[name], tensor, atol=1e-6) for name, tensor in expected.items())


def test_the_last_two_are_averaged_by_the_command(run: Path, tmp_path: Path) -> None:
    arguments = [*sorted(map(str, run.iterdir())), "--last", "2", "-o", str(tmp_path / "out"), "-q"]
    result = CliRunner().invoke(merge_command, arguments, catch_exceptions=False)
    assert result.exit_code == 0
    a, b = (merge.load(run / f"checkpoint-{step}").state_dict() for step in (1000, 1500))
    written = merge.load(tmp_path / "out").state_dict()
    assert all(torch.allclose(written[name], (a[name] + b[name]) / 2, atol=1e-6) for name in written)


@pytest.mark.parametrize(
    ("steps", "options", "message"),
    [
        ((), {}, "no checkpoints of a training run in it"),
        ((500,), {}, "the run has one checkpoint, .*checkpoint-500, so there is nothing to average"),
        ((500, 1000), {"last": 5}, "--last 5: .* has 2 checkpoints, of steps 500, 1000"),
        ((500, 1000), {"last": 1}, "--last 1: an average takes two"),
        ((500, 1000), {"ema": 1.0}, "--ema 1: the decay is a number between 0 and 1"),
        ((500, 1000, 2000, 2500), {}, r"a gap: no checkpoint between steps 1000 and 2000.*--last 2"),
        ((500, 1000, 2500), {}, r"a gap: no checkpoint between steps 1000 and 2500.*Name the checkpoints"),
    ],
)
def test_a_run_that_cannot_be_averaged_is_refused_in_one_line(
    tmp_path: Path, steps: tuple[int, ...], options: dict[str, float], message: str
) -> None:
    folder = _run(tmp_path / "run", steps)
    folder.mkdir(exist_ok=True)
    with pytest.raises(MergeError, match=message) as refused:
        run_average([str(folder)], **options)  # type: ignore[arg-type]
    assert "\n" not in str(refused.value)


def test_two_checkpoints_of_one_step_are_refused(tmp_path: Path) -> None:
    """Those of two runs: their mean is no average over one."""
    folders = [str(_run(tmp_path / name, (500, 1000))) for name in ("a", "b")]
    with pytest.raises(MergeError, match="are both of step 500"):
        run_average(folders)


def test_checkpoints_of_other_sizes_are_refused_a_line_a_fault(run: Path, tmp_path: Path) -> None:
    other = save_checkpoint(tmp_path / "checkpoint-2000", CONFIG | {"hidden_size": 8}, tokenizer=False)
    arguments = [*map(str, run.iterdir()), str(other), "--last", "2", "-o", str(tmp_path / "out")]
    result = CliRunner().invoke(merge_command, arguments)
    assert isinstance(result.exception, MergeError)
    faults = str(result.exception).split("\n")
    assert [fault.split(":")[0] for fault in faults] == ["configs differ", "shapes differ"]
    assert not (tmp_path / "out").exists()
