"""Points of weight space, each measured once: the loss and the scores of a combination of models on every data set.

A point is the coefficients of the models. What was measured is kept, a line of JSON for each point, under a key that says of
which models, rows and reading it is; so a run that was killed goes on where it stopped, and a finer grid measures
new points only.
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from evals.paths.surface.weights import Weights
from evals.paths.walk import EncodedTask
from evals.predict.logits import check_finite
from evals.predict.predictor import Predictor
from evals.results.measure import judge
from evals.tasks.task import METRICS
from merge.disk.atomic import write_atomic
from merge.disk.checksums import NOT_AS_WRITTEN, with_checksum, without_checksum
from merge.disk.documents import check_regular, parse_json
from merge.errors import OutputError, first_line
from merge.progress import shown_by, track

FOLDER = "surface"
# Digits of a coefficient that decide whether two points are one.
DIGITS = 12
At = tuple[float, ...]


@dataclass(frozen=True)
class Value:
    """What is measured at a point on one data set.

    Attributes:
        loss: mean cross-entropy of the rows, or mean squared error.
        standard_error: of that mean, over the rows; None for one row.
        scores: those of the task's metric; None where one is undefined.
    """

    loss: float
    standard_error: float | None
    scores: Mapping[str, float | None]


def value_of(losses: Tensor, predicted: Tensor, each: EncodedTask) -> Value:
    """Return the value of rows' losses and predictions."""
    from evals.scores.glue import task_scores

    task, rows = each.matched.task, each.matched.rows
    if METRICS[task.metric] == ("accuracy",):  # without loading scikit-learn
        scores = {"accuracy": float((predicted == torch.tensor(rows.gold)).double().mean())}
    else:
        scores = task_scores(task.metric, predicted.tolist(), rows.gold)
    count = len(losses)
    error = float(losses.double().std() / math.sqrt(count)) if count > 1 else None
    finite = {name: score if math.isfinite(score) else None for name, score in scores.items()}
    return Value(float(losses.double().mean()), error, finite)


def _point_record(line: bytes) -> dict[str, Any] | None:
    """Return the record of a point; None for a line that is not as it was written."""
    try:
        return without_checksum(parse_json(line, "a point", OutputError))
    except OutputError:
        return None


@dataclass
class PointStore:
    """The values of points by their coefficients, kept in a file where there is one."""

    path: Path | None
    values: dict[At, tuple[Value, ...]] = field(default_factory=dict)

    def read(self) -> None:
        """Read what an earlier run has measured; lines that are not as it wrote them are left out, and measured again."""
        if self.path is None or not self.path.exists():
            return
        check_regular(self.path)
        lines, whole = self.path.read_bytes().splitlines(keepends=True), []
        unfinished = lines[-1:] if lines and not lines[-1].endswith(b"\n") else []  # of a run that was killed
        for line in lines[: len(lines) - len(unfinished)]:
            record = _point_record(line)
            if record is not None:
                values = tuple(Value(**value) for value in record["values"])
                self.values[tuple(record["at"])] = values
                whole.append(line)
        if changed := len(lines) - len(unfinished) - len(whole):
            logging.getLogger(__name__).warning(
                "%s: %d of %d points are not used, and measured again: %s.",
                self.path,
                changed,
                len(lines),
                NOT_AS_WRITTEN,
            )
        if len(whole) < len(lines):
            write_atomic(self.path, b"".join(whole))

    def add(self, at: At, values: Sequence[Value]) -> None:
        """Keep the values of a point, on the disk before this returns.

        Raises:
            OutputError: the file cannot be written.
        """
        self.values[at] = tuple(values)
        if self.path is None:
            return
        line = json.dumps(with_checksum({"at": list(at), "values": [asdict(value) for value in values]}))
        try:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(line + "\n")
        except OSError as error:
            raise OutputError(f"{self.path} cannot be written: {first_line(error)}") from error


@contextmanager
def point_store(folder: Path | None, key: str, force: bool = False) -> Iterator[PointStore]:
    """Yield the points measured under a key in a results folder; in memory alone without a folder.

    Raises:
        OutputError: another process measures these points now, or the folder is not writable.
    """
    if folder is None:
        yield PointStore(None)
        return
    from filelock import FileLock, Timeout

    path = folder / FOLDER / f"{key}.jsonl"
    lock = FileLock(path.with_name(f".{key}.lock"), timeout=0)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except Timeout:
        raise OutputError(
            f"another process measures these points in {folder} now. Wait for it, or choose another -o."
        ) from None
    except OSError as error:
        raise OutputError(f"{folder} cannot be written: {first_line(error)}") from error
    try:
        yield _opened(path, force)
    finally:
        lock.release()
        Path(lock.lock_file).unlink(missing_ok=True)


def rounded(coefficients: Sequence[float]) -> At:
    """Return coefficients as a point is known by, to DIGITS digits; no negative zero."""
    return tuple(round(float(c), DIGITS) + 0.0 for c in coefficients)


def measure_points(
    points: Sequence[Sequence[float]],
    weights_at: Callable[[At], Weights],
    predictor: Predictor,
    sets: Sequence[EncodedTask],
    store: PointStore,
    label: str,
) -> list[tuple[Value, ...]]:
    """Return the values of points in their order, one for each data set; those that are stored are not measured again.

    Args:
        points: coefficients, or other coordinates, of each.
        weights_at: from them to all weights by the names transformers writes; called once a point.
        predictor: its weights are overwritten.
        label: of the surface, for the display of progress.
    Raises:
        TaskError: the model's numbers overflow at a point.
    """
    asked = [rounded(point) for point in points]
    left = [at for at in dict.fromkeys(asked) if at not in store.values]
    for at in track(left, label) if left else ():
        predictor.set(weights_at(at))
        store.add(at, [_measured(predictor, each, f"{label}, at {at}") for each in sets])
    return [store.values[at] for at in asked]


def _measured(predictor: Predictor, each: EncodedTask, label: str) -> Value:
    with shown_by(lambda items, _label: items):
        logits = predictor.logits(each.encoded, label)
    check_finite(logits, label)
    matched = each.matched
    losses, predicted = judge(logits, matched.columns, matched.task, matched.rows, matched.model)
    return value_of(losses, predicted, each)


def score_name(values: Mapping[str, Any]) -> str:
    """Return the first score of the task's metric, which figures show."""
    return next(iter(values))


def _opened(path: Path, force: bool) -> PointStore:
    """Return the points of a file; none where they are to be measured again.

    Raises:
        OutputError: the file cannot be read, or replaced.
    """
    store = PointStore(path)
    try:
        if force:
            path.unlink(missing_ok=True)
        store.read()
    except OSError as error:
        raise OutputError(f"{path} cannot be used: {first_line(error)}") from error
    return store
