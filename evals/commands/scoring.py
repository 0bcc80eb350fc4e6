"""Scoring models on tasks: what the results folder holds is taken from there, all else is computed and stored at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from evals.commands.choose_tasks import Chosen, choose
from evals.commands.options import check_device, known_results, listed, stored_result
from merge.errors import UsageError

if TYPE_CHECKING:
    import torch

    from evals.predict.predictor import Predictor
    from evals.results.predictions import PredictionTable
    from evals.tasks.task import EvalTask
    from merge.checkpoints.checkpoint import Checkpoint


@dataclass(frozen=True)
class Scored:
    """A scores record, and the table of what the model said where it was run just now."""

    record: dict[str, Any]
    table: PredictionTable | None

    def predictions(self, folder: Path | None) -> PredictionTable:
        """Return what the model said of each row, read from the results folder where the record was taken from there."""
        from evals.results.predictions import read_predictions_table

        return self.table or read_predictions_table(Path(folder or "") / self.record["predictions"])


def score_all(
    tasks: Sequence[EvalTask], models: Sequence[str], options: dict[str, Any], everything: bool = False
) -> list[Scored]:
    """Score every model on the tasks that fit it, taking from the results folder what it already holds."""
    if not models:
        raise UsageError("no models given. Example: evaluate-models hans merged/ a/ b/")
    check_device(options)
    stated = listed(options["labels"], "--labels")

    import torch

    from evals.results.measure import named, score_key
    from evals.results.predictions import has_predictions
    from merge.checkpoints.checkpoint import open_encoder

    checkpoints = [open_encoder(model) for model in models]
    known = known_results(options)
    chosen, left = choose(tasks, checkpoints, stated, options, everything)
    if not options["quiet"]:
        for line in left:
            click.echo(f"note: {line}", err=True)
    dtype = getattr(torch, options["dtype"])
    scored: dict[tuple[int, int], Scored] = {}
    predictor: Predictor | None = None
    for m, checkpoint in enumerate(checkpoints):
        loaded = False
        for t, one in enumerate(chosen):
            if not any(checkpoint is fitting for fitting in one.checkpoints):
                continue
            said = {"model": named(checkpoint), "data": one.rows.data, "split": one.rows.split}
            done = [*known, *(found.record for found in scored.values())]
            key = score_key(checkpoint, one.task, one.rows, stated, dtype)
            record = stored_result(done, key, said, options["output"])
            if record is not None and (not options["output"] or has_predictions(options["output"], record)):
                earlier = (found.table for found in scored.values() if found.record["key"] == key)
                scored[t, m] = Scored(record, next(earlier, None))
                continue
            if predictor is None or not loaded:
                predictor, loaded = _loaded(predictor, checkpoint, dtype, options), True
            scored[t, m] = _score(predictor, checkpoint, one, stated, options)
    return [scored[at] for at in sorted(scored)]


def _loaded(
    predictor: Predictor | None, checkpoint: Checkpoint, dtype: torch.dtype, options: dict[str, Any]
) -> Predictor:
    """Return a predictor with a checkpoint's weights: the one at hand where it fits, else a new one."""
    from evals.predict.crew import crew
    from evals.predict.predictor import make_predictor
    from evals.predict.rendezvous import device_here

    if predictor is not None and predictor.fits(checkpoint):
        predictor.load(checkpoint)
        return predictor
    return make_predictor(checkpoint, dtype, device_here(options["device"]), not options["no_cache"], crew())


def _score(
    predictor: Predictor,
    checkpoint: Checkpoint,
    one: Chosen,
    stated: Sequence[str] | None,
    options: dict[str, Any],
) -> Scored:
    """Score one model on one task, and store the record at once: a run that is killed has lost nothing before it."""
    from evals.results.measure import score_model
    from evals.results.store import add_result

    folder = options["output"]
    record, table = score_model(checkpoint, one.task, one.rows, stated, folder, options["seed"], predictor)
    if folder:
        add_result(folder, record)
    return Scored(record, table)
