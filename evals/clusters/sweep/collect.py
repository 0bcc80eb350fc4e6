"""The records of a sweep as one: the row losses of its models and of the lines between them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from evals.clusters.pair_losses import Pair, PairLosses
from evals.clusters.sweep.records import RowLosses, read_record, record_path
from evals.clusters.sweep.sweep import ALIGNED, NAIVE, Sweep
from evals.paths.refine import even_grid
from merge.errors import OutputError


def collect(sweep: Sweep, line: str, pairs: Sequence[Pair]) -> PairLosses:
    """Return the losses of a line of every pair, each from the model of the smaller index to the other.

    Raises:
        OutputError: a record is missing, or was changed since it was written.
    """
    ends = [_read(sweep, sweep.end_key(k)) for k in range(len(sweep.models))]
    inside: dict[Pair, Any] = {}
    correct: dict[Pair, Any] = {}
    distance: dict[Pair, float] = {}
    for pair in pairs:
        record = _read(sweep, sweep.pair_key(line, pair))
        step = 1 if sweep.ordered(line, pair) == pair else -1
        inside[pair], distance[pair] = record.losses[::step], float(record.facts["distance"])
        if record.correct is not None:
            correct[pair] = record.correct[::step]
    hits = [end.correct for end in ends if end.correct is not None]
    return PairLosses(
        models=tuple(model.name for model in sweep.models),
        lam=tuple(even_grid(sweep.points)),
        ends=np.concatenate([end.losses for end in ends]),
        inside=inside,
        distance=distance,
        ends_correct=np.concatenate(hits) if hits else None,
        inside_correct=correct if hits else None,
        name=line if line == NAIVE else aligned_name(sweep),
    )


def aligned_name(sweep: Sweep) -> str:
    """Return the name of the line between aligned models: how, and to which model."""
    to = "each pair" if sweep.reference is None else f"to {sweep.models[sweep.reference].name}"
    return f"aligned ({sweep.settings.by}, {to})"


def alignment_notes(sweep: Sweep, pairs: Sequence[Pair]) -> list[str]:
    """Return what the alignments of the pairs moved, each with its number; for one reference, how many models moved."""
    if not sweep.settings.moves or sweep.reference is not None:
        return []
    kept = Counter(str(_read(sweep, sweep.pair_key(ALIGNED, pair)).facts["moved"]) for pair in pairs)
    return [f"what alignment moved: {'; '.join(f'{what} in {count} pairs' for what, count in kept.most_common())}"]


def read_average(sweep: Sweep, line: str, members: Sequence[int]) -> RowLosses:
    """Return the losses of the average of several models, one point.

    Raises:
        OutputError: as `collect`.
    """
    return _read(sweep, sweep.average_key(line, members))


def _read(sweep: Sweep, key: str) -> RowLosses:
    record = read_record(sweep.store, key, len(sweep.rows))
    if record is None:
        raise OutputError(f"{record_path(sweep.store, key)} is damaged or gone; delete it and run the command again.")
    return record
