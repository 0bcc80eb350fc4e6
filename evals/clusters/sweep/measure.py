"""The tasks of a sweep: endpoints once a model, the points between two models, the average of several; each ends in a record.

Every task computes in one thread, so that no sum is rounded otherwise where more processes share the work.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from evals.clusters.pair_losses import Pair
from evals.clusters.sweep.cost import token_count
from evals.clusters.sweep.diagnostics import Diagnostic, measure_diagnostic
from evals.clusters.sweep.pairs import Block
from evals.clusters.sweep.records import FOLDER, RowLosses, is_stored, write_record
from evals.clusters.sweep.skeleton import Skeleton, Together, make_skeleton
from evals.clusters.sweep.sweep import ALIGNED, NAIVE, Sweep
from evals.clusters.sweep.transforms import has_transform, measure_transform
from evals.paths.pair_lines import Weights, distance
from evals.paths.refine import even_grid
from evals.paths.walk import EncodedTask, Point, interpolate, walk
from merge.errors import MergeError, TaskError
from merge.progress import shown_by, silent
from merge.recipe.recipe import make_align_entry

if TYPE_CHECKING:
    from evals.predict.predictor import Predictor

THREADS = 1  # of every worker, whatever the number of processes
_COMPUTED: dict[str, Any] = {"threads": THREADS, "torch": torch.__version__}


# The skeleton of this process, kept from task to task: to build a model and to encode rows takes longer than many a point.
_KEPT: dict[tuple[str, str], Skeleton] = {}


@contextmanager
def worker_of(sweep: Sweep, number: int = 0) -> Iterator[Skeleton]:
    """Yield this process's skeleton for a sweep; computation inside is in one thread.

    Args:
        number: of the task, which decides the GPU where there are several.
    """
    from threadpoolctl import threadpool_limits

    threads, key = torch.get_num_threads(), (sweep.run, _device(sweep, number))
    torch.set_num_threads(THREADS)
    try:
        with threadpool_limits(THREADS), shown_by(silent):
            if key not in _KEPT:
                _KEPT.clear()
                _KEPT[key] = make_skeleton(sweep, key[1])
            yield _KEPT[key]
    finally:
        torch.set_num_threads(threads)


def let_go() -> None:
    """Let the skeleton of this process go."""
    _KEPT.clear()


def _device(sweep: Sweep, number: int) -> str:
    if sweep.device != "cuda" or torch.cuda.device_count() < 2:
        return sweep.device
    return f"cuda:{number % torch.cuda.device_count()}"


def measure_model(sweep: Sweep, model: int, diagnostics: Sequence[Diagnostic], number: int) -> None:
    """Store the losses of a model, its diagnostic scores, and its transform into the units of the reference, where missing."""
    with worker_of(sweep, number) as skeleton, _named(sweep.models[model].name):
        key, checkpoint = sweep.end_key(model), skeleton.checkpoints(model)
        missing = not is_stored(sweep.store, key)
        if missing or diagnostics:
            skeleton.predictor.set(skeleton.weights(model))
        if missing:
            points = _walk(
                sweep, [0.0], lambda _: skeleton.weights(model), skeleton.predictor, skeleton.rows_for(model)
            )
            facts = _facts(sweep) | {"model": sweep.models[model].hash}
            write_record(sweep.store, key, _record((None,), points, facts))
        for diagnostic in diagnostics:
            measure_diagnostic(sweep, diagnostic, checkpoint, skeleton.predictor)
        aligns = sweep.settings.moves and sweep.reference not in (None, model)
        if aligns and not has_transform(sweep, skeleton.checkpoints, model):
            measure_transform(sweep, skeleton.checkpoints, model)


def measure_block(sweep: Sweep, line: str, block: Block, number: int) -> None:
    """Store the losses between the models of each pair of a block, at every lam but 0 and 1."""
    with worker_of(sweep, number) as skeleton:
        for pair in block:
            if not is_stored(sweep.store, sweep.pair_key(line, pair)):
                measure_pair(skeleton, line, pair)


def measure_pair(skeleton: Skeleton, line: str, pair: Pair) -> None:
    """Store the losses between two models."""
    sweep = skeleton.sweep
    a, b = sweep.ordered(line, pair)
    names = _line_name(sweep, line, pair)
    inner = even_grid(sweep.points)[1:-1]
    with _named(names), _marked(sweep, names), skeleton.ends(line, a, b) as (ends, predictor):
        rows = skeleton.rows_for(a if sweep.reference is None or line != ALIGNED else sweep.reference)
        points = _walk(sweep, inner, lambda lam: interpolate(ends.a, ends.b, lam), predictor, rows)
        facts = _facts(sweep) | {"a": sweep.models[a].hash, "b": sweep.models[b].hash, "line": line}
        if line == ALIGNED:
            facts["moved"] = ends.name if sweep.reference is None else "to the reference"
        record = _record(tuple(inner), points, facts | {"distance": distance(ends)})
        write_record(sweep.store, sweep.pair_key(line, pair), record)


def measure_average(sweep: Sweep, line: str, members: Sequence[int], number: int) -> None:
    """Store the losses of the average of several models' weights, in equal parts.

    Where each pair is aligned by itself there are no units of all; the members are then aligned to the first of them.
    """
    key = sweep.average_key(line, members)
    if is_stored(sweep.store, key):
        return
    names = f"average of {', '.join(sweep.models[k].name for k in members)}, {line}"
    with worker_of(sweep, number) as skeleton, _named(names):
        with _members(skeleton, line, members) as (together, first):
            mean = average(together.weights)
            points = _walk(sweep, [0.5], lambda _: mean, together.predictor, skeleton.rows_for(first))
        facts = _facts(sweep) | {"average": [sweep.models[k].hash for k in members], "line": line}
        write_record(sweep.store, key, _record((None,), points, facts))


@contextmanager
def _members(skeleton: Skeleton, line: str, members: Sequence[int]) -> Iterator[tuple[Together, int]]:
    """Yield models in one order of classes, and units, and the model whose order of classes it is."""
    sweep = skeleton.sweep
    if line == ALIGNED and sweep.reference is not None:
        yield Together(tuple(map(skeleton.moved, members)), skeleton.predictor, "to the reference"), sweep.reference
        return
    settings = sweep.settings if line == ALIGNED else make_align_entry({})
    with skeleton.aligned(settings, members) as together:
        yield together, members[0]


def average(models: Sequence[Weights]) -> Weights:
    """Return the mean of the models' tensors, summed in float64; tensors of integers are those of the first."""
    count = len(models)

    def mean(name: str) -> torch.Tensor:
        first = models[0][name]
        if not first.is_floating_point():
            return first
        total = first.double()
        for other in models[1:]:
            total = total + other[name]
        return (total / count).to(first.dtype)

    return {name: mean(name) for name in models[0]}


@dataclass(frozen=True)
class Probe:
    """Seconds of the parts of a pair, measured on one: to read its models, to align them, and one point between them."""

    read: float
    align: float
    point: float
    tokens: int
    weights: int  # bytes of a model


def probe(sweep: Sweep, pair: Pair, others: Sequence[Diagnostic] = ()) -> tuple[Probe, dict[str, int]]:
    """Return what the parts of the first pair take, measured here, and the number of tokens of each diagnostic by name."""
    a, b = sweep.ordered(NAIVE, pair)
    with worker_of(sweep) as skeleton, _named(_line_name(sweep, NAIVE, pair)):
        begun = time.perf_counter()
        with skeleton.ends(NAIVE, a, b) as (ends, predictor):
            between = time.perf_counter()
            _walk(sweep, [0.5], lambda lam: interpolate(ends.a, ends.b, lam), predictor, skeleton.rows_for(a))
        ended = time.perf_counter()
        if sweep.settings.moves:
            with skeleton.aligned(sweep.settings, pair):
                pass
        aligned = time.perf_counter() - ended
        tokens = {each.name: token_count(predictor.encode(each.rows).batches) for each in others}
        weights = sum(tensor.numel() * tensor.element_size() for tensor in skeleton.weights(a).values())
        own = token_count(skeleton.encoded.encoded.batches)
        return Probe(between - begun, aligned, ended - between, own, weights), tokens


def _walk(
    sweep: Sweep, lams: list[float], weights_at: Callable[[float], Weights], predictor: Predictor, rows: EncodedTask
) -> list[Point]:
    """Return the losses at each lam; stops between two of them where the command has ended."""

    def attended(lam: float) -> Weights:
        if sweep.owner is not None and os.getpid() != sweep.owner and os.getppid() != sweep.owner:
            raise TaskError("the command that this worker belongs to has ended.")
        return weights_at(lam)

    return [point for (point,) in walk(lams, attended, predictor, [rows], "losses")]


def _record(lam: tuple[float | None, ...], points: Sequence[Point], facts: dict[str, Any]) -> RowLosses:
    losses = np.stack([point.losses.numpy() for point in points]).astype(np.float32)
    hits = [point.correct.numpy() for point in points if point.correct is not None]
    return RowLosses(lam, losses, np.stack(hits) if hits else None, facts)


def _facts(sweep: Sweep) -> dict[str, Any]:
    return {"task": sweep.task.name, "rows": sweep.rows.hash, "max_length": sweep.max_length, **_COMPUTED}


def _line_name(sweep: Sweep, line: str, pair: Pair) -> str:
    a, b = sweep.ordered(line, pair)
    return f"{sweep.models[a].name} - {sweep.models[b].name}, {line}"


@contextmanager
def _named(what: str) -> Iterator[None]:
    """Say in an error which models it is about."""
    try:
        yield
    except MergeError as error:
        error.args = (f"{what}: {error}",)
        raise


@contextmanager
def _marked(sweep: Sweep, names: str) -> Iterator[None]:
    """Note on the disk which pair this process measures, for the error where the process is killed."""
    marker = running(sweep) / str(os.getpid())
    marker.parent.mkdir(parents=True, exist_ok=True)
    marker.write_text(names, encoding="utf-8")
    try:
        yield
    finally:
        marker.unlink(missing_ok=True)


def running(sweep: Sweep) -> Path:
    """Return the folder with a file for each pair that a process measures now, or was killed at."""
    return sweep.store / FOLDER / "running"
