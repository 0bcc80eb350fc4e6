"""Measure the loss from the start of training to its end, or to each checkpoint of a run."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from evals.run.line import TaskData
from evals.run.options import EvalOptions, reuse_result, stored_results
from evals.run.surface.models import Asked, asked_models, facts, prepared
from evals.run.surface.start import Start, read_start
from merge.errors import UsageError, one_line

if TYPE_CHECKING:
    from torch import Tensor

    from evals.paths.surface.points import PointStore
    from evals.run.surface.models import Prepared
    from evals.tasks.task import Rows
    from merge.checkpoints.checkpoint import Checkpoint


@dataclass(frozen=True)
class MonotonicPlan:
    """What is measured from the start of training on.

    Attributes:
        points: of the even grid of alpha, both ends included.
        head_seed: with which a head that the start lacks is drawn; None where it is unknown.
        gauss_rows: rows of which the Gauss length is measured; 0 for none.
    """

    points: int = 21
    head_seed: int | None = None
    gauss_rows: int = 32


def measure_monotonic(
    init: Checkpoint, finals: Sequence[Checkpoint], data: TaskData, plan: MonotonicPlan, options: EvalOptions
) -> dict[str, Any]:
    """Return the record of the lines from the start of training to one model, or to each of a run's checkpoints.

    Raises:
        UsageError: there is nothing to interpolate: no model, or one with the weights of the start.
        MismatchError: the models do not fit one another.
        TaskError: the task does not fit them.
    """
    from evals.results.measure import named, record_key, setting
    from evals.results.store import add_result

    if not finals:
        raise UsageError(
            "no model is given to interpolate to. Example: evaluate-models monotonic init/ final/ --task mnli"
        )
    begun, stored = time.monotonic(), stored_results(options)
    asked = asked_models(finals, [data], options)
    start = read_start(init.encoder, asked.models[0].encoder, plan.head_seed)
    decided = [*facts(asked, _none(), options), init.content_hash, plan.head_seed]
    matched = asked.sets[0]
    key = record_key("monotonic", *decided, plan.points, plan.gauss_rows, options.seed)
    names = {"models": [named(init), *map(named, asked.models)], "data": matched.rows.data, "split": matched.rows.split}
    record = reuse_result(stored, key, names, options.output)
    if record is not None:
        return record
    record = (
        setting("monotonic", key, matched.task, matched.rows) | names | _measured(start, asked, plan, options, decided)
    )
    record["notes"] = [*asked.notes, *start.notes, start.head, *record["notes"]]
    record["seconds"] = time.monotonic() - begun
    if options.output:
        add_result(options.output, record)
    return record


def _none() -> Any:
    from merge.recipe.recipe import make_align_entry

    return make_align_entry({"by": "none"})


def _measured(
    start: Start, asked: Asked, plan: MonotonicPlan, options: EvalOptions, decided: Sequence[Any]
) -> dict[str, Any]:
    """Return the fields of the record that are of the lines."""
    from evals.clusters.sweep.names import short_names
    from evals.paths.pair_lines import written_weights
    from evals.paths.surface.points import point_store
    from evals.paths.surface.weights import length
    from evals.results.measure import record_key

    lines, notes = [], list[str]()
    with prepared(asked, _none(), options) as ready:
        first = written_weights(ready.checkpoint, start.weights)
        unknown = {ready.checkpoint.written_name(name) for name in start.unknown}
        for at, (name, final) in enumerate(zip(short_names(asked.models), ready.weights, strict=True)):
            ends = {**first, **{kept: final[kept] for kept in unknown}}, final
            key = record_key("line-points", *decided[:2], asked.models[at].content_hash, *decided[3:])
            with point_store(options.output, key, options.force) as store:
                lines.append(
                    {"name": name, **_line(ends, ready, store, plan, options, f"from the start to {name}", notes)}
                )
    steps = [first, *ready.weights]
    travelled = [_distance(a, b, unknown if at == 0 else set()) for at, (a, b) in enumerate(pairwise(steps))]
    return {
        "head": start.head,
        "lines": lines,
        "score": lines[0]["score"],
        "start_norm": length(first),
        "travelled": sum(travelled) if len(travelled) > 1 else None,
        "notes": [*ready.notes, *dict.fromkeys(notes)],
    }


def _distance(a: Mapping[str, Tensor], b: Mapping[str, Tensor], without: set[str]) -> float:
    from evals.paths.surface.weights import distances, gram

    shared = [name for name in b if name not in without]
    return float(distances(gram([{name: each[name] for name in shared} for each in (a, b)]))[0, 1])


def _line(
    ends: tuple[Mapping[str, Tensor], Mapping[str, Tensor]],
    ready: Prepared,
    store: PointStore,
    plan: MonotonicPlan,
    options: EvalOptions,
    label: str,
    notes: list[str],
) -> dict[str, Any]:
    """Return one line: its curve, smallest Delta, bumps, Gauss length and distance."""
    from evals.paths.refine import even_grid
    from evals.paths.surface.monotonic import LEAST_RISE, bumps, is_monotone, smallest_delta
    from evals.paths.surface.points import measure_points, score_name
    from evals.paths.surface.weights import combine, length

    apart = _distance(*ends, set())
    if apart == 0:
        raise UsageError(f"{label}: the weights are the same; there is nothing to interpolate.")
    alpha = even_grid(plan.points)
    values = [
        each[0]
        for each in measure_points(
            [(a,) for a in alpha],
            lambda at: combine(ends, (1 - at[0], at[0])),
            ready.predictor,
            ready.encoded[:1],
            store,
            label,
        )
    ]
    loss = [value.loss for value in values]
    delta, low, high = smallest_delta(loss)
    return {
        "score": score_name(values[0].scores),
        "alpha": alpha,
        "loss": loss,
        "standard_error": [value.standard_error for value in values],
        "scores": [next(iter(value.scores.values())) for value in values],
        "monotone": is_monotone(loss),
        "delta": delta,
        "delta_between": [alpha[low], alpha[high]],
        "delta_error": _paired_error(ends, (alpha[low], alpha[high]), ready) if delta > LEAST_RISE else None,
        "bumps": [bump.to_json() for bump in bumps(alpha, loss)],
        "gauss": _gauss(ends, ready, alpha, plan, options, notes) if plan.gauss_rows else None,
        "distance": apart,
        "relative_distance": apart / length(ends[0]),
    }


def _paired_error(
    ends: tuple[Mapping[str, Tensor], Mapping[str, Tensor]], between: tuple[float, float], ready: Prepared
) -> float | None:
    """Return the standard error of the difference of two points' losses, over the rows that both are measured on."""
    from evals.paths.surface.weights import combine
    from evals.results.measure import judge

    each, losses = ready.encoded[0], []
    matched = each.matched
    for at in between:
        ready.predictor.set(combine(ends, (1 - at, at)))
        logits = ready.predictor.logits(each.encoded)
        losses.append(judge(logits, matched.columns, matched.task, matched.rows, matched.model)[0].double())
    rows = losses[1] - losses[0]
    return float(rows.std() / len(rows) ** 0.5) if len(rows) > 1 else None


def _gauss(
    ends: tuple[Mapping[str, Tensor], Mapping[str, Tensor]],
    ready: Prepared,
    alpha: Sequence[float],
    plan: MonotonicPlan,
    options: EvalOptions,
    notes: list[str],
) -> dict[str, Any] | None:
    """Return the Gauss length of the logits of some rows: mean, standard deviation and number of rows; None where it has none."""
    import torch

    from evals.paths.surface.arc import gauss_length, logits_path
    from evals.predict.embeddings import embeds

    matched = ready.encoded[0].matched
    if matched.task.regression or embeds(ready.checkpoint):
        notes.append("no Gauss length: one number has no direction that could turn")
        return None
    rows = matched.rows.sample(plan.gauss_rows, options.seed)
    encoded = ready.predictor.encode(rows)
    ready.predictor.model.requires_grad_(False)
    try:
        parts = [gauss_length(logits_path(ready.predictor.model, *ends, batch), alpha) for batch in encoded.batches]
    except RuntimeError as error:  # NotImplementedError is one; so is a machine without memory
        if isinstance(error, NotImplementedError):
            reason = f"a part of {ready.checkpoint.architecture} has no forward derivative"
        elif _fails_to_derive(ends, ready, rows):
            reason = f"{ready.checkpoint.architecture} runs, and its forward derivative fails even on one row"
        else:
            raise
        notes.append(f"no Gauss length: {reason} ({one_line(error)[:120]})")
        return None
    every = torch.cat(parts)
    spread = float(every.std()) if len(every) > 1 else None
    return {"mean": float(every.mean()), "standard_deviation": spread, "rows": len(every)}


def _fails_to_derive(ends: tuple[Mapping[str, Tensor], Mapping[str, Tensor]], ready: Prepared, rows: Rows) -> bool:
    """Return whether the model runs on one row, and its forward derivative there does not."""
    import torch

    from evals.paths.surface.arc import logits_path, turning_rate

    batch = ready.predictor.encode(rows.chosen([0], "one row")).batches[0]
    path = logits_path(ready.predictor.model, *ends, batch)
    path(torch.tensor(0.5))
    try:
        turning_rate(path, 0.5)
    except RuntimeError:
        return True
    return False
