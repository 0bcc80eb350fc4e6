"""Training a model on a task while components are frozen, left out, or replaced by linear maps; scored before and after.

A frozen component keeps its weights and all others learn; a removed one writes nothing and does not learn; in place of a replaced
one is its fitted linear map, which does not learn either. All start from the same weights, read the same rows in the same order,
and are compared with the model that learns as a whole.

Settings as published: AdamW, rate 2e-5 with linear decay, 3 rounds, 32 rows a step. Source: Zhao et al. 2021, arXiv:2101.04547.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from evals.surgery.linear import Key, Linear
from evals.surgery.measure import on_device
from evals.surgery.replacement import LAYER, REMOVE, REPLACE, component_plan
from evals.surgery.slots import Plan, SlottedModel, order_plan
from evals.surgery.sublayers import ATTENTION, FFN
from evals.surgery.variants import Variant
from merge.errors import CheckpointError
from merge.progress import track

if TYPE_CHECKING:
    from evals.tasks.label_names import MatchedTask
    from merge.checkpoints.inputs import Encoded

NORM = re.compile(r"norm|(^|_)ln(_|$|\d)", re.IGNORECASE)  # names of norms
FREEZE, TUNED = "freeze", "tuned"
RATE, ROUNDS, ROWS_A_STEP = 2e-5, 3, 32
REST = 1e-2  # weight decay, as torch's AdamW has it by default


@dataclass(frozen=True)
class Training:
    """How models are trained.

    Attributes:
        rows: of the task, with the classes of the model.
        encoded: the same in batches.
    """

    rows: MatchedTask
    encoded: Encoded
    rounds: int = ROUNDS
    rate: float = RATE
    seed: int = 0


@dataclass(frozen=True)
class Tuning:
    """A model that is trained.

    Attributes:
        variant: how it runs while it is trained and scored.
        still: the components that do not learn, by layer.
    """

    variant: Variant
    still: frozenset[Key]


def tunings(total: int, maps: Mapping[Key, Linear]) -> Iterator[Tuning]:
    """Yield the model that learns as a whole; then each sublayer of all layers, and each layer, frozen, removed and replaced."""
    whole = order_plan(range(total))
    yield Tuning(Variant(TUNED, "the whole model learns", whole, (), -1, "whole"), frozenset())
    for component in (ATTENTION, FFN):
        layers = tuple(range(total))
        for how in (FREEZE, REMOVE, REPLACE):
            yield _tuning(layers, component, how, maps, total, f"{component} of all layers {_word(how)}")
    for layer in range(total):
        for how in (FREEZE, REMOVE, REPLACE):
            yield _tuning((layer,), LAYER, how, maps, total, f"layer {layer} {_word(how)}")


def _word(how: str) -> str:
    return {FREEZE: "frozen", REMOVE: "removed", REPLACE: "as a linear map"}[how]


def _tuning(
    layers: tuple[int, ...], component: str, how: str, maps: Mapping[Key, Linear], total: int, name: str
) -> Tuning:
    plan: Plan = order_plan(range(total))
    if how != FREEZE:
        plan = component_plan(layers, component, maps if how == REPLACE else None, total)
    variant = Variant(TUNED, name, plan, layers, layers[0], f"{component}, {how}")
    return Tuning(variant, frozenset((layer, component) for layer in layers))


def train(model: SlottedModel, tuning: Tuning, training: Training) -> float:
    """Train the model in place by the plan of a variant; return the mean loss of the last round.

    Raises:
        CheckpointError: the loss is no number any more.
    """
    for parameter in model.model.parameters():
        parameter.requires_grad_(True)
    for layer, component in tuning.still:
        for parameter in _parameters(model, layer, component):
            parameter.requires_grad_(False)
    learning = [p for p in model.model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(learning, lr=training.rate, weight_decay=REST)
    steps = training.rounds * math.ceil(len(training.rows.rows) / ROWS_A_STEP)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: max(0.0, 1 - step / steps))
    last: list[float] = []
    for number, batches in enumerate(track(list(_steps(training)), f"training: {tuning.variant.name}")):
        rows = sum(len(of_batch) for _, of_batch in batches)
        for batch, of_batch in batches:
            loss = _loss(model, tuning.variant.plan, on_device(batch, model), of_batch, training.rows) / rows
            loss.backward()
            if not bool(torch.isfinite(loss)):
                raise CheckpointError(f"{tuning.variant.name}: the loss is no number any more. Give a smaller --rate.")
            if number >= steps * (training.rounds - 1) / training.rounds:
                last.append(float(loss.detach()))
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
    return math.fsum(last) / max(1, steps // training.rounds)


def _steps(training: Training) -> Iterator[list[tuple[Any, list[int]]]]:
    """Yield, for each step, its rows as parts of the batches of equal length; every row once a round, in a random order."""
    generator = torch.Generator().manual_seed(training.seed)
    places = {row: (b, at) for b, rows in enumerate(training.encoded.rows) for at, row in enumerate(rows)}
    for _ in range(training.rounds):
        order = torch.randperm(len(places), generator=generator).tolist()
        for start in range(0, len(order), ROWS_A_STEP):
            parts: dict[int, list[tuple[int, int]]] = {}
            for row in order[start : start + ROWS_A_STEP]:
                number, at = places[row]
                parts.setdefault(number, []).append((at, row))
            yield [
                (
                    {n: t[[at for at, _ in part]].clone() for n, t in training.encoded.batches[number].items()},
                    [row for _, row in part],
                )
                for number, part in parts.items()
            ]


def _loss(model: SlottedModel, plan: Plan, batch: Any, rows: list[int], matched: MatchedTask) -> Tensor:
    """Return the summed cross-entropy of some rows; dropout is off, as the model is in evaluation mode."""
    from evals.predict.logits import task_logits

    with torch.no_grad():
        calls = model.whole(batch).calls
    logits, _ = task_logits(model.follow(batch, plan, calls, cached=False).result.logits, matched.columns, matched.task)
    gold = torch.tensor([int(matched.rows.gold[row]) for row in rows], device=logits.device)
    return torch.nn.functional.cross_entropy(logits, gold, reduction="sum")


def _parameters(model: SlottedModel, layer: int, component: str) -> Iterator[Any]:
    """Yield the parameters of a component: all of a layer, or those of a sublayer by the paths of the family."""
    module = model.module(layer)
    if component == LAYER:
        yield from module.parameters()
        return
    for name, parameter in module.named_parameters():
        if _sublayer_of(name, model) == component:
            yield parameter


def _sublayer_of(name: str, model: SlottedModel) -> str | None:
    """Return the sublayer that a parameter below a layer belongs to; None for norms that are outside both."""
    assert model.kind is not None
    attention, ffn = (model.kind.projections[kind].split(".") for kind in (ATTENTION, FFN))
    depth = next(k for k, (x, y) in enumerate(zip(attention, ffn, strict=False)) if x != y)
    words = name.split(".")
    # The first word in which the two projections differ tells them apart, and all that is below it: attention.* of BERT.
    if words[: depth + 1] == attention[: depth + 1]:
        return ATTENTION
    return None if any(NORM.search(word) for word in words[:-1]) else FFN
