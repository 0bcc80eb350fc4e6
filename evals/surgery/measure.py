"""Many edited models judged on the same rows, a batch at a time, with the prefixes that they share run once."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from evals.surgery.judges import Judge
from evals.surgery.slots import Plan, SlottedModel, first_change
from evals.surgery.variants import Variant
from merge.errors import MergeError, UsageError
from merge.progress import track

if TYPE_CHECKING:
    from merge.checkpoints.inputs import Batch, Encoded

CHECK_ROWS = 8


@dataclass(frozen=True)
class Result:
    """One edited model.

    Attributes:
        scores: by name.
        change: of what the judge compares by row, from the whole model, mean over rows; larger is worse.
        standard_error: of the change, over rows.
    """

    variant: Variant
    scores: dict[str, float]
    change: float
    standard_error: float

    def to_json(self) -> dict[str, Any]:
        """Return the result for a record."""
        variant = self.variant
        return {
            "part": variant.part,
            "kind": variant.kind,
            "name": variant.name,
            "layers": list(variant.layers),
            "at": variant.at,
            "scores": self.scores,
            "change": self.change,
            "standard_error": self.standard_error,
        }


@dataclass(frozen=True)
class Check:
    """Edited models with cached prefixes against the same models run in full, on a few rows.

    Attributes:
        rows, variants: how many were compared.
        largest: the largest difference of any number of an output; 0 where all are equal bit for bit.
        cached_seconds, full_seconds: of the passes.
    """

    rows: int
    variants: int
    largest: float
    cached_seconds: float
    full_seconds: float


@dataclass(frozen=True)
class Study:
    """All results, and what they cost.

    Attributes:
        whole: scores of the whole model.
        floor: what has no skill, in words, and its scores.
        layer_passes: layers that ran for the edited models, summed over batches.
        full_layer_passes: the same without cached prefixes.
        seconds: of all passes.
    """

    results: tuple[Result, ...]
    whole: dict[str, float]
    floor: tuple[str, dict[str, float]]
    layer_passes: int
    full_layer_passes: int
    seconds: float
    check: Check

    def cost_json(self) -> dict[str, Any]:
        """Return the cost for a record."""
        return {
            "layer_passes": self.layer_passes,
            "full_layer_passes": self.full_layer_passes,
            "seconds": self.seconds,
            "check": vars(self.check),
        }


def plan_cost(plan: Plan, cached: bool = True) -> int:
    """Return how many layers a plan runs in one pass."""
    first = first_change(plan) if cached else 0
    return sum(step.instead is None for steps in plan[first:] for step in steps)


def measure_variants(model: SlottedModel, variants: Sequence[Variant], encoded: Encoded, judge: Judge) -> Study:
    """Return what a judge says of every variant.

    Memory is bounded by the states that the layers of one batch give, and the numbers that the judge reads of every row.

    Raises:
        UsageError: there is nothing to run.
        TaskError: an edited model gives numbers that are not finite on a task.
    """
    if not variants:
        raise UsageError("there is no model to run: every part was left out. Choose a part with --only.")
    begun, before = time.perf_counter(), model.passes
    values: list[list[Tensor]] = [[] for _ in range(len(variants) + 1)]
    unrelated = []
    with torch.inference_mode():
        for batch in track(encoded.batches, f"measuring {len(variants)} edited models"):
            batch = on_device(batch, model)
            whole = model.whole(batch)
            values[0].append(judge.read(whole, whole, batch))
            unrelated.append(judge.unrelated(whole, batch))
            for at, variant in enumerate(variants, 1):
                values[at].append(judge.read(model.follow(batch, variant.plan, whole.calls), whole, batch))
    passes = model.passes - before - model.total * len(encoded.batches)
    seconds = time.perf_counter() - begun
    ordered = [_in_order(parts, encoded) for parts in values]
    reference = judge.by_row(ordered[0])
    return Study(
        tuple(_result(v, x, judge, reference) for v, x in zip(variants, ordered[1:], strict=True)),
        judge.scores(ordered[0], "the whole model"),
        judge.floor(unrelated),
        passes,
        len(encoded.batches) * sum(plan_cost(variant.plan, cached=False) for variant in variants),
        seconds,
        check_cache(model, variants, encoded),
    )


def _result(variant: Variant, values: Tensor, judge: Judge, reference: Tensor) -> Result:
    change = judge.by_row(values) - reference
    error = float(change.std() / len(change) ** 0.5) if len(change) > 1 else float("nan")
    return Result(variant, judge.scores(values, variant.name), float(change.mean()), error)


def _in_order(parts: Sequence[Tensor], encoded: Encoded) -> Tensor:
    ordered = torch.cat(list(parts))
    rows = torch.tensor([row for batch in encoded.rows for row in batch])
    if len(rows) != len(ordered):
        raise MergeError(f"the model gave {len(ordered)} outputs for {len(rows)} texts; expected one a text.")
    values = torch.empty_like(ordered)
    values[rows] = ordered
    return values


def on_device(batch: Batch, model: SlottedModel) -> Batch:
    """Return a batch on the model's device."""
    return {name: tensor.to(model.model.device) for name, tensor in batch.items()}


def check_cache(model: SlottedModel, variants: Sequence[Variant], encoded: Encoded) -> Check:
    """Return how outputs with cached prefixes differ from full runs, on at most CHECK_ROWS rows of a middle batch."""
    middle = encoded.batches[len(encoded.batches) // 2]
    batch = on_device({name: tensor[:CHECK_ROWS] for name, tensor in middle.items()}, model)
    largest, seconds = 0.0, [0.0, 0.0]
    with torch.inference_mode():
        calls = model.whole(batch).calls
        for variant in variants:
            runs = []
            for at, cached in enumerate((True, False)):
                begun = time.perf_counter()
                runs.append(model.follow(batch, variant.plan, calls, cached))
                seconds[at] += time.perf_counter() - begun
            a, b = (run.states for run in runs)
            largest = max(largest, 0.0 if torch.equal(a, b) else float((a - b).abs().max()))
    return Check(len(batch["input_ids"]), len(variants), largest, seconds[0], seconds[1])
