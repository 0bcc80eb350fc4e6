"""Lines between two models: naive and aligned, with each head that was asked for, on every data set in one pass over lam."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor

from evals.paths.heads import HEADS, check_refit, head_tensors, last_layer_inputs, last_layer_tensors, refitted_logits
from evals.paths.line import Curve, make_curve
from evals.paths.refine import MOST_TIMES, even_grid, refine
from evals.paths.summaries import Summary, summarise
from evals.paths.walk import EncodedTask, Point, class_logits, interpolate, walk
from evals.predict.predictor import Predictor, make_predictor
from evals.results.measure import reading_notes
from evals.tasks.label_names import MatchedTask
from merge.checkpoints.checkpoint import Checkpoint, finite_tensors
from merge.checkpoints.model_set import ModelSet
from merge.run.rebase import Rebased
from merge.symmetry.transform import Transform, apply_transform

Pair = tuple[Checkpoint, Checkpoint]
Weights = Mapping[str, Tensor]


@dataclass(frozen=True)
class LinePlan:
    """What is measured along a line.

    Attributes:
        points: of the even grid of lam, both endpoints included.
        heads: keys of HEADS, a line each.
        adaptive: whether lam is refined where a curve bends.
        seed: of the folds in which a head is re-fitted.
    """

    points: int
    heads: tuple[str, ...] = ("both",)
    adaptive: bool = False
    seed: int = 0


@dataclass(frozen=True)
class Line:
    """One line on one data set: its curve, and every summary of it."""

    curve: Curve
    head: str
    summaries: tuple[Summary, ...]

    def to_json(self) -> dict[str, Any]:
        """Return the curve of a line record of results.json."""
        return self.curve.to_json() | {"head": self.head, "summaries": [each.to_json() for each in self.summaries]}


@dataclass(frozen=True)
class Ends:
    """The endpoints of a line, float32, by the names that transformers writes; and the model that they are weights of."""

    name: str
    a: Weights = field(repr=False)
    b: Weights = field(repr=False)
    checkpoint: Checkpoint = field(repr=False)


# The points that are measured already: lam -> one for each data set.
Known = dict[float, tuple[Point, ...]]


def measure_lines(
    pair: Pair,
    ready: ModelSet,
    rebased: Rebased,
    sets: Sequence[MatchedTask],
    plan: LinePlan,
    predictor: Predictor | None = None,
) -> tuple[list[list[Line]], list[list[str]]]:
    """Return, for each data set, its lines: naive ones first, then aligned ones if b was aligned; and notes for the reader.

    Args:
        pair: a and b as they are.
        ready: the same models as they were aligned: their norms folded, where the residual stream is rotated.
        rebased: the transforms that bring b into the label order of a, and into its units.
        sets: the rows of each task, its classes matched to those of a.
        predictor: made for a; by default one is made, in float32 on the CPU.
    """
    _check_heads(pair[0], sets, plan)
    rewritten = None if ready.models == pair else ready.models
    predictor = predictor or make_predictor(pair[0])
    encoded = [EncodedTask(matched, predictor.encode(matched.rows)) for matched in sets]
    labels = None if rebased.labels[1] is None else Transform(rebased.labels[1], {})
    a, b = endpoints(pair, rebased, (None, labels))
    ends = Ends("naive", a, b, pair[0])
    naive = {head: _measure(ends, head, predictor, encoded, plan, {}) for head in plan.heads}
    lines = [_lines(ends, head, measured, len(sets)) for head, measured in naive.items()]
    for aligned in rebased.aligned:
        name = f"aligned ({aligned.by}; {aligned.choice.kept.name})"
        models = rewritten or pair
        a, b = endpoints(models, rebased, rebased.transforms)
        ends = Ends(name, a, b, models[0])
        if rewritten is not None and not predictor.fits(rewritten[0]):
            like_before = {
                "device": predictor.model.device,
                "cache": predictor.cache,
                "workers": predictor.workers,
                "max_length": predictor.max_length,
            }
            predictor = make_predictor(rewritten[0], **like_before)
        # Both lines start at a, unless alignment moved or rewrote a too.
        same_start = rewritten is None and rebased.transforms[0] is None
        for head, before in naive.items():
            known = {0.0: before[0.0]} if same_start else {}
            measured = _measure(ends, head, predictor, encoded, plan, known)
            lines.append(_lines(ends, head, measured, len(sets)))
    notes = [
        reading_notes(each.matched.task, each.matched.columns, each.encoded, predictor.max_length) for each in encoded
    ]
    return [list(of_set) for of_set in zip(*lines, strict=True)], notes


def _check_heads(checkpoint: Checkpoint, sets: Sequence[MatchedTask], plan: LinePlan) -> None:
    """Stop where a head that was asked for cannot be had, before anything is measured."""
    if "A" in plan.heads:
        head_tensors(checkpoint)
    if "refit" in plan.heads:
        last_layer_tensors(checkpoint)
        for matched in sets:
            check_refit(matched)


def endpoints(
    models: Sequence[Checkpoint], rebased: Rebased, transforms: Sequence[Transform | None]
) -> tuple[Weights, ...]:
    """Return the transformed weights of each model, float32, by the names transformers writes."""
    transformed = []
    for checkpoint, transform in zip(models, transforms, strict=True):
        tensors = finite_tensors(checkpoint)
        if transform is not None and rebased.spec is not None:
            tensors = apply_transform(rebased.spec, transform, tensors)
        transformed.append(written_weights(checkpoint, tensors))
    return tuple(transformed)


def written_weights(checkpoint: Checkpoint, tensors: Weights) -> Weights:
    """Return tensors by the names transformers writes, float32; integers as they are."""
    return {checkpoint.written_name(n): t.float() if t.is_floating_point() else t for n, t in tensors.items()}


def _measure(
    ends: Ends, head: str, predictor: Predictor, sets: Sequence[EncodedTask], plan: LinePlan, known: Known
) -> Known:
    """Return what is measured at every lam of a line with one of the HEADS, in the order of lam.

    Args:
        known: points of the line that are measured already.
    """
    kept = _kept(ends, head)

    def weights_at(lam: float) -> Weights:
        return {**interpolate(ends.a, ends.b, lam), **{name: ends.a[name] for name in kept}}

    refit, label = head == "refit", f"{ends.name} path{_suffix(head)}"
    reading = partial(refitted_logits, seed=plan.seed) if refit else class_logits

    def measure(lams: list[float]) -> Known:
        points = walk(lams, weights_at, predictor, sets, label, reading)
        return dict(zip(lams, points, strict=True))

    with last_layer_inputs(predictor.model, ends.checkpoint) if refit else nullcontext():
        return _refined(measure, even_grid(plan.points), known, plan.adaptive)


def _refined(measure: Callable[[list[float]], Known], grid: list[float], known: Known, adaptive: bool) -> Known:
    """Return what is measured on the grid and, if it is adaptive, at the lam that refine it, in the order of lam."""
    points = {lam: known[lam] for lam in grid if lam in known}
    waiting = [lam for lam in grid if lam not in points]
    while waiting:
        points |= measure(waiting)
        lams = sorted(points)
        curves = zip(*([float(each.losses.mean()) for each in points[lam]] for lam in lams), strict=True)
        waiting = refine(lams, list(curves), MOST_TIMES * len(grid) - len(lams)) if adaptive else []
    return {lam: points[lam] for lam in sorted(points)}


def _kept(ends: Ends, head: str) -> frozenset[str]:
    """Return the tensors that are not interpolated: a's head, or the last layer, which is re-fitted."""
    if head == "both":
        return frozenset()
    return head_tensors(ends.checkpoint) if head == "A" else last_layer_tensors(ends.checkpoint)


def _suffix(head: str) -> str:
    return f", {HEADS[head]}" if HEADS[head] else ""


def _lines(ends: Ends, head: str, measured: Known, sets: int) -> list[Line]:
    """Return the line on each data set."""
    length = distance(ends, _kept(ends, head))
    return [
        _line(f"{ends.name}{_suffix(head)}", head, list(measured), [points[at] for points in measured.values()], length)
        for at in range(sets)
    ]


def _line(name: str, head: str, lam: list[float], points: Sequence[Point], length: float) -> Line:
    losses = torch.stack([point.losses for point in points]).numpy()
    hits = [point.correct for point in points if point.correct is not None]
    correct = torch.stack(hits).numpy() if hits else None
    temperature = [point.temperature for point in points if point.temperature is not None]
    calibrated = [point.calibrated for point in points if point.calibrated is not None]
    curve = make_curve(name, lam, losses, correct, temperature, calibrated)
    return Line(curve, head, summarise(lam, losses, correct, length))


def distance(ends: Ends, kept: frozenset[str] = frozenset()) -> float:
    """Return the Euclidean distance of the endpoints, over the tensors that are interpolated; summed in float64."""
    moving = (name for name, tensor in ends.a.items() if tensor.is_floating_point() and name not in kept)
    # Halves, whose difference is in the range of float32 whatever the two are.
    halves = (torch.sub(ends.a[name] * 0.5, ends.b[name], alpha=0.5) for name in moving)
    return 2 * math.hypot(*(float(torch.linalg.vector_norm(half, dtype=torch.float64)) for half in halves))
