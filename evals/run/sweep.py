"""Measure the lines between many models: what is stored is kept, the cost is stated, and all else is measured."""

from __future__ import annotations

import os
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evals.run.basins_plan import BasinsPlan, check_plan
from evals.run.options import EvalOptions, read_rows, stored_results
from merge.commands.terminal import usable_cores
from merge.errors import OutputError, UsageError, nearest

if TYPE_CHECKING:
    from evals.clusters.pair_losses import Pair, PairLosses
    from evals.clusters.sweep.cost import Cost
    from evals.clusters.sweep.diagnostics import Diagnostic
    from evals.clusters.sweep.sweep import Sweep
    from evals.clusters.sweep.work import Work
    from evals.tasks.task import EvalTask
    from merge.alignment.settings import AlignEntry
    from merge.checkpoints.checkpoint import Checkpoint


@dataclass(frozen=True)
class Swept:
    """The losses of a sweep.

    Attributes:
        losses: of the naive lines, then of the aligned ones.
        diagnostics: name -> score of each model.
        cost: what it was estimated to cost.
        seconds: that it took.
    """

    sweep: Sweep
    pairs: tuple[Pair, ...]
    losses: tuple[PairLosses, ...] = field(repr=False)
    diagnostics: dict[str, list[float]]
    notes: tuple[str, ...]
    cost: Cost
    seconds: float


def sweep_models(
    checkpoints: Sequence[Checkpoint],
    task: EvalTask,
    settings: AlignEntry,
    plan: BasinsPlan,
    options: EvalOptions,
    tell: Callable[[str], None],
) -> Swept | Cost:
    """Measure every pair of models that is not stored yet, and return all; the cost alone for a dry run.

    Args:
        options: `output` names the folder of records, which must be set.
        tell: is called with each line of the estimate before the work begins.
    Raises:
        UsageError: there are fewer than two models, or an option does not fit.
        MismatchError: two models do not fit one another.
        TaskError: a task does not fit a model, or rows are malformed.
        MergeError: a worker process ended.
    """
    from evals.clusters.sweep.measure import let_go
    from evals.clusters.sweep.work import alone, carry_out, estimate, work_left

    begun = time.monotonic()
    check_plan(plan, options)
    different, notes = _different(checkpoints)
    sweep, more = _sweep(different, task, settings, plan, options)
    pairs = _pairs(sweep, plan, different)
    diagnostics = _diagnostics(plan, different, options)
    with alone(sweep.store):
        work = work_left(sweep, pairs, diagnostics, different, stored_results(options), options.force)
        processes = _processes(plan, options, work)
        sweep, cost = estimate(sweep, pairs, work, processes)
        for line in cost.lines():
            tell(line)
        if plan.dry_run:
            let_go()
            return cost
        carry_out(sweep, work, processes, plan.backend)
        let_go()
    return _swept(sweep, pairs, diagnostics, different, (*notes, *more), cost, begun)


def _different(checkpoints: Sequence[Checkpoint]) -> tuple[list[Checkpoint], list[str]]:
    """Return each model once, with the weights that it is evaluated with, and notes on those that are left out."""
    from evals.clusters.sweep.names import different_models
    from evals.predict.embeddings import with_modules

    different, notes = different_models([with_modules(checkpoint) for checkpoint in checkpoints])
    if len(different) < 2:
        once = f" ({'; '.join(notes)})" if notes else ""
        named = f"{len(checkpoints)} {'model' if len(checkpoints) == 1 else 'models'}"
        raise UsageError(
            f"basins needs at least two different models, found {named}{once}. Example: evaluate-models basins zoo/* --task mnli"
        )
    return different, notes


def _sweep(
    models: Sequence[Checkpoint], task: EvalTask, settings: AlignEntry, plan: BasinsPlan, options: EvalOptions
) -> tuple[Sweep, tuple[str, ...]]:
    """Return what is measured, after checking that all models fit the first one and the task; and notes."""
    from evals.clusters.sweep.names import short_names
    from evals.clusters.sweep.sweep import Sweep, SweptModel, without_reader
    from evals.clusters.sweep.transforms import check_one_reference
    from evals.predict.embeddings import embedding_facts
    from evals.predict.logits import match_labels, matched_label_notes
    from evals.run.barrier import check_pair

    notes = check_pair(tuple(models), options)[1]
    names = short_names(models)
    columns = [match_labels(task, model, options.labels) for model in models]
    embedded = [embedding_facts(model) if task.regression else {} for model in models]
    swept = tuple(
        SweptModel(name, model.folder.resolve(), model.content_hash, of_model, facts)
        for name, model, of_model, facts in zip(names, models, columns, embedded, strict=True)
    )
    reference = None
    if settings.moves and plan.align_to == "reference":
        reference = _index(plan.references[0], models, names) if plan.references else 0
    elif plan.align_to == "reference":
        raise UsageError("--align-to reference belongs to an alignment. Add --align weights or --align activations.")
    sweep = Sweep(
        swept,
        without_reader(task),
        read_rows(task, options),
        plan.points,
        settings,
        Path(str(options.output)).resolve(),
        uuid.uuid4().hex,
        options.labels,
        reference=reference,
        seed=options.seed,
        max_length=options.max_length,
        device=options.device,
        cache=not options.no_cache,
        owner=os.getpid() if plan.backend == "loky" else None,
    )
    check_one_reference(sweep)
    return sweep, (*notes, *matched_label_notes(models, options.labels))


def _index(name: str, models: Sequence[Checkpoint], names: Sequence[str]) -> int:
    """Return the model of a name, as the user typed it or as it is shown.

    Raises:
        UsageError: there is none; the nearest is named.
    """
    for k, (model, short) in enumerate(zip(models, names, strict=True)):
        if name in (model.source, model.source.rstrip("/"), short) or name.rstrip("/") == model.source.rstrip("/"):
            return k
    raise UsageError(f"reference {name!r} is not one of the models.{nearest(name, names)}")


def _pairs(sweep: Sweep, plan: BasinsPlan, models: Sequence[Checkpoint]) -> tuple[Pair, ...]:
    from evals.clusters.sweep.pairs import all_pairs, reference_pairs

    if not plan.references:
        return tuple(all_pairs(len(models)))
    names = [model.name for model in sweep.models]
    return tuple(reference_pairs(len(models), [_index(name, models, names) for name in plan.references]))


def _diagnostics(plan: BasinsPlan, models: Sequence[Checkpoint], options: EvalOptions) -> tuple[Diagnostic, ...]:
    """Return the diagnostics with their rows, after checking that every model can answer them."""
    from evals.clusters.sweep.diagnostics import read_diagnostic
    from evals.clusters.sweep.sweep import without_reader
    from evals.predict.logits import match_labels

    diagnostics = {}
    for asked in plan.diagnostics:
        for model in models:
            match_labels(asked.task, model, options.labels)
        ready = read_diagnostic(asked.task, asked.score, asked.data, options.limit, options.seed)
        if ready.name in diagnostics:
            raise UsageError(f"diagnostic {ready.name} is named twice. Name each once.")
        diagnostics[ready.name] = replace(ready, task=without_reader(ready.task))
    return tuple(diagnostics.values())


def _processes(plan: BasinsPlan, options: EvalOptions, work: Work) -> int:
    """Return how many processes share the work: those asked for, else one a GPU or a core; never more than tasks."""
    if plan.processes is not None:
        wanted = plan.processes
    elif options.device == "cpu":
        wanted = usable_cores()
    else:
        import torch

        wanted = max(torch.cuda.device_count(), 1) if options.device == "cuda" else 1
    return max(1, min(wanted, max(work.pair_count, len(work.models))))


def _swept(
    sweep: Sweep,
    pairs: tuple[Pair, ...],
    diagnostics: Sequence[Diagnostic],
    models: Sequence[Checkpoint],
    notes: Sequence[str],
    cost: Cost,
    begun: float,
) -> Swept:
    """Return all that is stored of a sweep, and its notes."""
    from evals.clusters.sweep.collect import alignment_notes, collect
    from evals.clusters.sweep.diagnostics import stored_score
    from evals.results.store import load_results

    results = load_results(sweep.store)
    scores: dict[str, list[float]] = {}
    for diagnostic in diagnostics:
        records = [stored_score(results, sweep, diagnostic, model) for model in models]
        scores[diagnostic.name] = [_score(record, diagnostic) for record in records]
    losses = tuple(collect(sweep, line, pairs) for line in sweep.lines)
    all_notes = (*notes, *alignment_notes(sweep, pairs))
    return Swept(sweep, pairs, losses, scores, all_notes, cost, time.monotonic() - begun)


def measure_averages(
    swept: Swept, line: int, subsets: Sequence[tuple[int, ...]], plan: BasinsPlan
) -> dict[tuple[int, ...], Any]:
    """Return the row losses of the average of each subset of models, measured where they are not stored.

    Args:
        line: 0 for the models as they are, 1 as they were aligned.
    """
    from evals.clusters.sweep.collect import read_average
    from evals.clusters.sweep.measure import let_go
    from evals.clusters.sweep.work import alone, average_models

    sweep = swept.sweep
    name = sweep.lines[line]
    with alone(sweep.store):
        average_models(sweep, name, subsets, min(swept.cost.processes, len(subsets)), plan.backend)
    let_go()
    return {models: read_average(sweep, name, models).losses[0] for models in subsets}


def _score(record: dict[str, Any] | None, diagnostic: Diagnostic) -> float:
    """Return a score of a record of results.json, which has null for one that is not finite."""
    if record is None:
        raise OutputError(f"the scores of {diagnostic.name} are gone from results.json; run the command again.")
    value = record["scores"][diagnostic.score]
    return float("nan") if value is None else float(value)
