"""Checkpoints of one training run: in the order of their steps, the last of them, and the weights of an average over them.

SWA    the plain mean of all checkpoints                     Izmailov et al. 2018, arXiv:1803.05407
LAWA   the plain mean of the last N                          Kaddour 2022, arXiv:2209.14981
EMA    e_1 = c_1, e_t = d e_(t-1) + (1 - d) c_t              Polyak and Juditsky 1992; d is the decay
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from merge.disk.documents import read_object
from merge.errors import CheckpointError, UsageError, some

STATE = "trainer_state.json"
NAME = re.compile(r"checkpoint-(\d+)")
# An interval longer than this many of the shortest is a gap; the last may be shorter, where training ended between two saves.
GAP = 1.5


@dataclass(frozen=True)
class RunAverage:
    """The checkpoints of an average, by their steps.

    Attributes:
        models: their folders, the first step first.
        weights: one each, that sum to 1; None for a plain mean.
        notes: for the user.
    """

    models: tuple[str, ...]
    weights: tuple[float, ...] | None
    notes: tuple[str, ...]


def run_average(models: Sequence[str], last: int | None = None, ema: float | None = None) -> RunAverage:
    """Return the checkpoints of a run that are averaged, in the order of their steps, and their weights.

    Args:
        models: checkpoints of one run, or the folder of the run.
        last: of so many, those with the largest steps; all when None.
        ema: the decay of an exponential moving average from the first of them to the last; a plain mean when None.
    Raises:
        UsageError: there are too few checkpoints, two of one step, or a gap between them.
        CheckpointError: a folder is neither a checkpoint of a run nor a run.
    """
    if last is not None and last < 2:
        raise UsageError(f"--last {last}: an average takes two checkpoints or more.")
    if ema is not None and not 0 < ema < 1:
        raise UsageError(f"--ema {ema:g}: the decay is a number between 0 and 1, such as 0.9.")
    folders = [folder for model in models for folder in _checkpoints(model)]
    known = [_step(folder) for folder in folders]
    notes = tuple(note for _, note in known if note)
    ordered = sorted(zip([step for step, _ in known], folders, strict=True), key=lambda each: each[0])
    where = " ".join(models) if len(models) <= 2 else f"{models[0]} and {len(models) - 1} more"
    for (step, folder), (other, second) in pairwise(ordered):
        if step == other:
            raise UsageError(
                f"{folder} and {second} are both of step {step}. --last and --ema average checkpoints of one run, each once."
            )
    if len(ordered) == 1:
        raise UsageError(f"{where}: the run has one checkpoint, {ordered[0][1]}, so there is nothing to average.")
    if last is not None and last > len(ordered):
        steps = some([str(step) for step, _ in ordered])
        raise UsageError(f"--last {last}: {where} has {len(ordered)} checkpoints, of steps {steps}. Ask for fewer.")
    kept = ordered[-last:] if last is not None else ordered
    _check_gap([step for step, _ in kept])
    return RunAverage(tuple(str(folder) for _, folder in kept), _ema_weights(len(kept), ema), notes)


def _ema_weights(count: int, decay: float | None) -> tuple[float, ...] | None:
    """Return the weight of each checkpoint in the last value of the moving average."""
    if decay is None:
        return None
    return (decay ** (count - 1), *((1 - decay) * decay ** (count - 1 - t) for t in range(1, count)))


def _checkpoints(model: str) -> list[Path]:
    """Return a checkpoint's folder, or those in a run's folder."""
    folder = Path(model).expanduser()
    if not folder.is_dir():
        raise CheckpointError(
            f"{model}: no such folder. --last and --ema read checkpoints of a training run on this disk."
        )
    if NAME.fullmatch(folder.resolve().name) or (folder / STATE).is_file():
        return [folder]
    inside = [path for path in folder.glob("checkpoint-*") if NAME.fullmatch(path.name) and path.is_dir()]
    if not inside:
        raise CheckpointError(
            f"{model}: no checkpoints of a training run in it. Expected folders checkpoint-STEP, as transformers' Trainer "
            f"writes them, or a checkpoint with {STATE}."
        )
    return inside


def _step(folder: Path) -> tuple[int, str | None]:
    """Return a checkpoint's step, and a note where its name states another than its trainer's state."""
    named = NAME.fullmatch(folder.resolve().name)
    step = int(named[1]) if named else None
    if not (folder / STATE).is_file():
        assert step is not None
        return step, None
    stated = read_object(folder / STATE, CheckpointError, {"global_step": "a whole number"}).get("global_step")
    if stated is None and step is None:
        raise CheckpointError(f"{folder / STATE}: global_step is missing, and the folder's name states no step either.")
    if stated is None:
        return int(step or 0), f"{folder}: {STATE} states no global_step; its step is that of its name"
    if step not in (None, stated):
        return int(stated), f"{folder}: its step is {stated} by {STATE}, not {step}"
    return int(stated), None


def _check_gap(steps: Sequence[int]) -> None:
    """Stop where a checkpoint between two others is missing: the average would count the rest of the run for less.

    Raises:
        UsageError: names the steps between which one is missing.
    """
    intervals = [b - a for a, b in pairwise(steps)]
    usual = min(intervals[:-1] or intervals)
    for (a, b), interval in zip(pairwise(steps), intervals, strict=True):
        if interval > GAP * usual:
            raise UsageError(
                f"a gap: no checkpoint between steps {a} and {b}, and the others are {usual} steps apart. Average those after "
                f"it (--last {sum(step >= b for step in steps)}), or name the checkpoints without --last and --ema."
                if sum(step >= b for step in steps) > 1
                else f"a gap: no checkpoint between steps {a} and {b}, and the others are {usual} steps apart. Name the "
                "checkpoints to average, without --last and --ema."
            )
