"""Loss barrier between two models: the losses on the straight line between them, as a record of results.json."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from evals.paths.line import Curve, make_curve
from evals.paths.walk import Point, interpolate, walk
from evals.predict.embeddings import embedding_facts
from evals.predict.predictor import Predictor, make_predictor
from evals.results.measure import named, reading_notes, record_key, setting
from evals.tasks.label_names import MatchedTask
from merge.alignment.settings import AlignEntry
from merge.checkpoints.checkpoint import Checkpoint, finite_tensors
from merge.checkpoints.model_set import ModelSet
from merge.disk.hashes import file_hash
from merge.run.rebase import Rebased
from merge.symmetry.transform import Transform, apply_transform

Pair = tuple[Checkpoint, Checkpoint]


def barrier_key(
    pair: Pair, matched: MatchedTask, settings: AlignEntry, seed: int, points: int, max_length: int | None = None
) -> str:
    """Return the key under which a pair's barrier is stored; text and transforms count by content, not by name."""
    alignment: dict[str, Any] | None = None
    if settings.moves:
        alignment = settings.model_dump(mode="json") | {"seed": seed}
        with suppress(OSError, TypeError):  # a Hub id, or the package's own text
            alignment["text"] = file_hash(Path(alignment["text"]))
        with suppress(OSError):  # a missing file is an error where it is read
            alignment["apply"] = [file_hash(Path(path).expanduser()) for path in settings.apply or ()]
    hashes = [checkpoint.content_hash for checkpoint in pair]
    task, rows = matched.task.name, matched.rows.hash
    embedded = tuple(embedding_facts(checkpoint) for checkpoint in pair) if matched.task.regression else ()
    cut = () if max_length is None else (max_length,)
    return record_key("barrier", task, rows, hashes, points, matched.columns, alignment, *embedded, *cut)


def measure_pair(
    pair: Pair,
    ready: ModelSet,
    rebased: Rebased,
    matched: MatchedTask,
    points: int,
    predictor: Predictor | None = None,
) -> tuple[list[Curve], list[str]]:
    """Return the curve of the naive line and, if b was aligned, that of the aligned one; and notes for the reader.

    Args:
        pair: a and b as they are.
        ready: the same models as they were aligned: their norms folded, where the residual stream is rotated.
        rebased: the transforms that bring b into the label order of a, and into its units.
        matched: the task's rows, its classes matched to those of a.
        points: of the even grid of lam, both endpoints included.
        predictor: made for a; by default one is made, in float32 on the CPU.
    """
    rewritten = None if ready.models == pair else ready.models
    predictor = predictor or make_predictor(pair[0])
    encoded = predictor.encode(matched.rows)
    labels = None if rebased.labels[1] is None else Transform(rebased.labels[1], {})
    lams = _even_grid(points)
    weights_at = partial(interpolate, *_endpoints(pair, rebased, (None, labels)))
    naive = walk(lams, weights_at, predictor, matched, encoded, "naive path")
    curves = [_curve("naive", naive)]
    for aligned in rebased.aligned:
        name = f"aligned ({aligned.by}; {aligned.choice.kept.name})"
        weights_at = partial(interpolate, *_endpoints(rewritten or pair, rebased, rebased.transforms))
        if rewritten is not None and not predictor.fits(rewritten[0]):
            like_before = {
                "device": predictor.model.device,
                "cache": predictor.cache,
                "workers": predictor.workers,
                "max_length": predictor.max_length,
            }
            predictor = make_predictor(rewritten[0], **like_before)
        # Both lines start at a, unless alignment moved or rewrote a too.
        measured = naive[:1] if rewritten is None and rebased.transforms[0] is None else []
        rest = walk(lams[len(measured) :], weights_at, predictor, matched, encoded, f"{name} path")
        curves.append(_curve(name, [*measured, *rest]))
    return curves, reading_notes(matched.task, matched.columns, encoded, predictor.max_length)


def _endpoints(
    pair: Sequence[Checkpoint], rebased: Rebased, transforms: Sequence[Transform | None]
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Return the transformed weights of both models, float32, by the names transformers writes."""
    endpoints = []
    for checkpoint, transform in zip(pair, transforms, strict=True):
        tensors = finite_tensors(checkpoint)
        if transform is not None and rebased.spec is not None:
            tensors = apply_transform(rebased.spec, transform, tensors)
        endpoints.append(
            {checkpoint.written_name(n): t.float() if t.is_floating_point() else t for n, t in tensors.items()}
        )
    return endpoints[0], endpoints[1]


def _even_grid(points: int) -> list[float]:
    return [k / (points - 1) for k in range(points)]


def _curve(name: str, points: Sequence[Point]) -> Curve:
    correct = [point.correct for point in points if point.correct is not None]
    return make_curve(
        name,
        _even_grid(len(points)),
        torch.stack([point.losses for point in points]).numpy(),
        torch.stack(correct).numpy() if correct else None,
        [point.temperature for point in points if point.temperature is not None],
        [point.calibrated for point in points if point.calibrated is not None],
    )


def barrier_record(
    key: str,
    matched: MatchedTask,
    models: Pair,
    curves: Sequence[Curve],
    alignment: Mapping[str, Any] | None,
    notes: Sequence[str],
    seconds: float,
) -> dict[str, Any]:
    """Return the barrier record of a pair."""
    record = setting("barrier", key, matched.task, matched.rows) | {
        "a": named(models[0]),
        "b": named(models[1]),
        "curves": [curve.to_json() for curve in curves],
        "notes": list(notes),
        "seconds": seconds,
    }
    return record if alignment is None else record | {"alignment": dict(alignment)}
