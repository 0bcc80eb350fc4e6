"""Loss barrier between two models: the losses on the straight line between them, as a record of results.json."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from evals.paths.line import Curve
from evals.paths.pair_lines import LinePlan, Pair, measure_lines
from evals.predict.embeddings import embedding_facts
from evals.predict.predictor import Predictor
from evals.results.measure import named, record_key, setting
from evals.tasks.label_names import MatchedTask
from merge.alignment.settings import AlignEntry
from merge.checkpoints.model_set import ModelSet
from merge.disk.hashes import file_hash
from merge.run.rebase import Rebased


def barrier_key(
    pair: Pair, matched: MatchedTask, settings: AlignEntry, seed: int, points: int, max_length: int | None = None
) -> str:
    """Return the key under which a pair's barrier is stored; text and transforms count by content, not by name."""
    alignment = alignment_facts(settings, seed)
    hashes = [checkpoint.content_hash for checkpoint in pair]
    task, rows = matched.task.name, matched.rows.hash
    embedded = tuple(embedding_facts(checkpoint) for checkpoint in pair) if matched.task.regression else ()
    cut = () if max_length is None else (max_length,)
    return record_key("barrier", task, rows, hashes, points, matched.columns, alignment, *embedded, *cut)


def alignment_facts(settings: AlignEntry, seed: int) -> dict[str, Any] | None:
    """Return what decides an alignment, for the key of a result: files by their content; None where nothing is aligned."""
    if not settings.moves:
        return None
    alignment = settings.model_dump(mode="json") | {"seed": seed}
    with suppress(OSError, TypeError):  # a Hub id, or the package's own text
        alignment["text"] = file_hash(Path(alignment["text"]))
    with suppress(OSError):  # a missing file is an error where it is read
        alignment["apply"] = [file_hash(Path(path).expanduser()) for path in settings.apply or ()]
    return alignment


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
        pair, ready, rebased, predictor: as in `measure_lines`.
        matched: the task's rows, its classes matched to those of a.
        points: of the even grid of lam, both endpoints included.
    """
    lines, notes = measure_lines(pair, ready, rebased, [matched], LinePlan(points), predictor)
    return [line.curve for line in lines[0]], notes[0]


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
