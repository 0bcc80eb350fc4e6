"""Scoring models on tasks: records in the results folder are reused, all others are computed and stored at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evals.run.choose_tasks import ChosenTask, choose_tasks
from evals.run.options import EvalOptions, reuse_result, stored_results
from merge.checkpoints.weights.arrays import check_device

if TYPE_CHECKING:
    import torch

    from evals.predict.predictor import Predictor
    from evals.results.predictions import PredictionTable
    from evals.tasks.task import EvalTask
    from merge.checkpoints.checkpoint import Checkpoint


@dataclass(frozen=True)
class Scored:
    """A scores record, and the model's predictions where it was run just now (else they are in the results folder)."""

    record: dict[str, Any]
    table: PredictionTable | None

    def predictions(self, folder: Path | None) -> PredictionTable:
        """Return the predictions of each row, read from the results folder where the record was reused."""
        from evals.results.predictions import read_predictions_table

        return self.table or read_predictions_table(Path(folder or "") / self.record["predictions"])


def score_all(
    tasks: Sequence[EvalTask], checkpoints: Sequence[Checkpoint], options: EvalOptions, all_tasks: bool = False
) -> tuple[list[Scored], list[str]]:
    """Score every model on the tasks that fit it.

    Args:
        all_tasks: whether the user asked for `all`, as in `choose_tasks`.
    Returns:
        One entry a task and model, by task first; and a line for each task that is left out.
    Raises:
        TaskError: a named task does not fit a model, or rows are malformed.
    """
    check_device(options.device)

    import torch

    from evals.predict.embeddings import with_modules
    from evals.results.measure import is_of_run, named, score_key

    stored, checkpoints = stored_results(options), [with_modules(checkpoint) for checkpoint in checkpoints]
    chosen, left_out = choose_tasks(tasks, checkpoints, options, all_tasks)
    dtype = getattr(torch, options.dtype)
    scored: dict[tuple[int, int], Scored] = {}
    predictor: Predictor | None = None
    for m, checkpoint in enumerate(checkpoints):
        loaded = False
        for t, chosen_task in enumerate(chosen):
            if not any(checkpoint is fitting for fitting in chosen_task.checkpoints):
                continue
            rows = chosen_task.rows
            names = {"model": named(checkpoint), "data": rows.data, "split": rows.split}
            records = [*stored, *(earlier.record for earlier in scored.values())]
            key = score_key(checkpoint, chosen_task.task, rows, options.labels, dtype, options.max_length)
            of_run = (rows, options.seed, options.output)
            held = [each for each in records if each["key"] == key and is_of_run(each, *of_run)]
            record = reuse_result(held, key, names, options.output)
            if record is not None:
                tables = (earlier.table for earlier in scored.values() if earlier.record["key"] == key)
                scored[t, m] = Scored(record, next(tables, None))
                continue
            if predictor is None or not loaded:
                predictor, loaded = _load(predictor, checkpoint, dtype, options), True
            scored[t, m] = _score(predictor, checkpoint, chosen_task, options)
    return [scored[at] for at in sorted(scored)], left_out


def _load(predictor: Predictor | None, checkpoint: Checkpoint, dtype: torch.dtype, options: EvalOptions) -> Predictor:
    """Return a predictor with a checkpoint's weights: the same one where it fits, else a new one."""
    from evals.predict.predictor import make_predictor
    from evals.predict.process_group import local_device
    from evals.predict.workers import worker_group

    if predictor is not None and predictor.fits(checkpoint):
        predictor.load(checkpoint)
        return predictor
    device, cache = local_device(options.device), not options.no_cache
    return make_predictor(checkpoint, dtype, device, cache, worker_group(), options.max_length)


def _score(predictor: Predictor, checkpoint: Checkpoint, chosen: ChosenTask, options: EvalOptions) -> Scored:
    """Score one model on one task, and store the record at once, so that a run which is killed loses only the current one."""
    from evals.results.measure import score_model
    from evals.results.store import add_result

    record, table = score_model(
        checkpoint, chosen.task, chosen.rows, options.labels, options.output, options.seed, predictor
    )
    if options.output:
        add_result(options.output, record)
    return Scored(record, table)
