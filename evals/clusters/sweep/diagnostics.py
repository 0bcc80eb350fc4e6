"""Diagnostics: further scores of every model of a sweep, such as accuracy on a part of HANS."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evals.heuristics.grammar import LABELS, SUBCASES
from evals.heuristics.scores import HANS_LO
from evals.results.measure import score_key, score_model
from evals.results.predictions import has_predictions
from evals.results.store import add_result, find
from evals.scores.weighted import score_names
from evals.tasks.task import EvalTask, Rows
from merge.errors import UsageError, nearest

if TYPE_CHECKING:
    from evals.clusters.sweep.sweep import Sweep
    from evals.predict.predictor import Predictor
    from merge.checkpoints.checkpoint import Checkpoint

ACCURACY, LO = "accuracy", "hans_lo"


@dataclass(frozen=True)
class Diagnostic:
    """A score of every model.

    Attributes:
        name: of the task and the score, as the user writes it: hans:hans_lo.
        task: without its reader where a worker receives it.
        score: key of the scores of a record.
        rows: those that the score is taken on.
    """

    name: str
    task: EvalTask
    score: str
    rows: Rows


def read_diagnostic(task: EvalTask, score: str | None, data: Path | None, limit: int | None, seed: int) -> Diagnostic:
    """Return a diagnostic with its rows; for a part of HANS those of that part, and the draw is among them.

    Args:
        score: of the task; for HANS also hans_lo, a heuristic, HEURISTIC/LABEL, or a subcase. The task's first one when None.
    Raises:
        UsageError: the task has no such score; names the nearest.
        TaskError: rows are malformed.
    """
    names = score_names(task.metric)
    wanted = score or names[0]
    if task.name == "hans":
        if data is None:  # its parts are known before its pairs are drawn
            _check_part(wanted, dict.fromkeys(case.heuristic for case in SUBCASES), [case.name for case in SUBCASES])
        whole = task.read(data, seed)
        part = hans_part(whole, wanted)
        return Diagnostic(f"{task.name}:{wanted}", task, ACCURACY, part.sample(limit, seed))
    if wanted not in (*names, "loss"):
        raise UsageError(f"{task.name} has no score {wanted!r}.{nearest(wanted, [*names, 'loss'])}")
    return Diagnostic(f"{task.name}:{wanted}", task, wanted, task.read(data, seed).sample(limit, seed))


def hans_part(rows: Rows, part: str) -> Rows:
    """Return the rows of a part of HANS: accuracy (all), hans_lo, a heuristic, HEURISTIC/LABEL or a subcase.

    Raises:
        UsageError: there is no such part, or no row of it.
    """
    heuristics = list(dict.fromkeys(pair.heuristic for pair in rows.extra))
    _check_part(part, heuristics, dict.fromkeys(pair.subcase for pair in rows.extra))
    cells = _cells(heuristics)
    if part == ACCURACY:
        return rows
    if part in cells:
        kept = [k for k, pair in enumerate(rows.extra) if (pair.heuristic, pair.label) == cells[part]]
    elif part in heuristics:
        kept = [k for k, pair in enumerate(rows.extra) if pair.heuristic == part]
    else:
        kept = [k for k, pair in enumerate(rows.extra) if pair.subcase == part]
    if not kept:
        raise UsageError(f"{rows.data} has no row of {part}. Name another part of HANS, or another file.")
    return rows.chosen(kept, f"{len(kept):,} of {len(rows):,} rows, those of {part}")


def _cells(heuristics: Iterable[str]) -> dict[str, tuple[str, str]]:
    """Return the name of each part that is a heuristic under one label -> both."""
    return {f"{heuristic}/{label}": (heuristic, label) for heuristic in heuristics for label in LABELS} | {LO: HANS_LO}


def _check_part(part: str, heuristics: Collection[str], subcases: Iterable[str]) -> None:
    """Raise UsageError with the nearest names where HANS with these heuristics and subcases has no such part."""
    parts = [ACCURACY, *_cells(heuristics), *heuristics, *subcases]
    if part not in parts:
        raise UsageError(f"hans has no part {part!r}.{nearest(part, parts)}")


def diagnostic_key(sweep: Sweep, diagnostic: Diagnostic, checkpoint: Checkpoint) -> str:
    """Return the key of the scores of a model; they are those of `evaluate-models score` on the same rows."""
    return score_key(checkpoint, diagnostic.task, diagnostic.rows, sweep.labels, max_length=sweep.max_length)


def measure_diagnostic(sweep: Sweep, diagnostic: Diagnostic, checkpoint: Checkpoint, predictor: Predictor) -> None:
    """Store the scores of a model, whose weights the predictor has, in results.json."""
    scored = (diagnostic.task, diagnostic.rows, sweep.labels, sweep.store, sweep.seed, predictor)
    record, _ = score_model(checkpoint, *scored)
    add_result(sweep.store, record)


def stored_score(
    results: Sequence[dict[str, Any]], sweep: Sweep, diagnostic: Diagnostic, checkpoint: Checkpoint
) -> dict[str, Any] | None:
    """Return the scores record of a model among those of results.json; None where it has to be measured."""
    record = find(results, diagnostic_key(sweep, diagnostic, checkpoint))
    return record if record is not None and has_predictions(sweep.store, record) else None
