"""Measure a method on a pair: the loss on the line between the endpoints, and whether each endpoint keeps its function.

The barrier is given raw and calibrated. Calibrated, every model on the line, endpoints included, first gets the
temperature at which its loss is least: this tells a model that is unsure from one that is wrong.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Float, Int
from torch import Tensor

from evals.paths.line import Curve, make_curve
from merge.alignment.pair import Pair
from merge.checkpoints.inputs import Batch
from merge.checkpoints.transformers_model import set_weights
from merge.errors import UsageError
from zoo.labelled_logits import LabelledLogits, labelled_logits
from zoo.methods import Aligned, Method

# The range in which the best inverse temperature is searched.
MAX_INVERSE_TEMPERATURE, MIN_INVERSE_TEMPERATURE = 20.0, 0.05
CHECKED_BATCHES = 2


@dataclass(frozen=True)
class Contest:
    """A pair and the labelled rows it is measured on; the endpoints are measured once for all methods."""

    pair: Pair
    batches: tuple[Batch, ...]

    @cached_property
    def ends(self) -> tuple[LabelledLogits, LabelledLogits]:
        """The logits and labels of a and of b on all rows."""
        return self._labelled_logits(self.pair.a), self._labelled_logits(self.pair.b)

    @cached_property
    def exact_ends(self) -> tuple[Tensor, Tensor]:
        """The losses of a and b in float64, on the rows that functions are compared on."""
        return exact_losses(self.pair, self.pair.a, self.batches), exact_losses(self.pair, self.pair.b, self.batches)

    def _labelled_logits(self, tensors: Mapping[str, Tensor]) -> LabelledLogits:
        return all_labelled_logits(self.pair.model(tensors), self.batches)


@dataclass(frozen=True)
class Measured:
    """One method on one pair.

    Attributes:
        raw, calibrated: the losses along the line.
        changed: largest difference of a row's loss between an endpoint before and after the method, in float64.
        seconds: CPU seconds of the method.
        note: the method's note on its choice.
        aligned: the aligned pair.
    """

    raw: Curve
    calibrated: Curve
    changed: float
    seconds: float
    note: str
    aligned: Aligned

    @property
    def midpoint(self) -> float:
        return self.raw.loss[len(self.raw.loss) // 2]


def measure(name: str, method: Method, contest: Contest, points: int) -> Measured:
    """Return the losses and costs of a method on a pair.

    Args:
        points: number of values of lam, evenly spread and endpoints included; odd, so that the midpoint is one of them.
    Raises:
        UsageError: points is even, or under 3.
    """
    if points < 3 or points % 2 == 0:
        raise UsageError(f"--points is {points}: the midpoint must be one of them. Give an odd number from 3 on.")
    started = time.process_time()
    aligned = method(contest.pair)
    seconds = time.process_time() - started
    lam = [k / (points - 1) for k in range(points)]
    model = aligned.pair.model(aligned.pair.a)
    outputs = [contest.ends[0]]
    for value in lam[1:-1]:
        set_weights(model, {aligned.pair.written_name(n): t for n, t in aligned.at(value).items()})
        outputs.append(all_labelled_logits(model, contest.batches))
    outputs.append(contest.ends[1])
    return Measured(
        raw=_curve(name, lam, outputs, [1.0] * points),
        calibrated=_curve(name, lam, outputs, [best_inverse_temperature(*output) for output in outputs]),
        changed=changed(contest, aligned),
        seconds=seconds,
        note=aligned.note,
        aligned=aligned,
    )


def changed(contest: Contest, aligned: Aligned) -> float:
    """Return the largest change of a row's loss that a method makes at an endpoint; rounding, if it keeps the function."""
    pairs = [(contest.exact_ends[1], exact_losses(aligned.pair, aligned.pair.b, contest.batches))]
    if aligned.pair.a is not contest.pair.a:
        pairs.append((contest.exact_ends[0], exact_losses(aligned.pair, aligned.pair.a, contest.batches)))
    return max(float((old - new).abs().max()) for old, new in pairs)


def exact_losses(pair: Pair, tensors: Mapping[str, Tensor], batches: Sequence[Batch]) -> Float[Tensor, " n"]:
    """Return the loss at every label of the first batches, in float64."""
    return _losses(*all_labelled_logits(pair.model(tensors, torch.float64), batches[:CHECKED_BATCHES]), 1.0)


def all_labelled_logits(model: object, batches: Sequence[Batch]) -> LabelledLogits:
    """Return the logits and labels of a model on all batches."""
    with torch.inference_mode():
        outputs = [labelled_logits(model, batch) for batch in batches]
    return torch.cat([logits for logits, _ in outputs]), torch.cat([labels for _, labels in outputs])


def best_inverse_temperature(logits: Float[Tensor, "n classes"], labels: Int[Tensor, " n"]) -> float:
    """Return the inverse temperature at which the loss is least; the loss is convex in it, so its slope is bisected."""
    low, high = MIN_INVERSE_TEMPERATURE, MAX_INVERSE_TEMPERATURE
    chosen = logits.gather(1, labels[:, None]).mean(dtype=torch.float64)
    for _ in range(24):
        middle = (low * high) ** 0.5
        slope = ((logits * middle).softmax(1) * logits).sum(1).mean(dtype=torch.float64) - chosen
        low, high = (middle, high) if slope < 0 else (low, middle)
    return (low * high) ** 0.5


def _curve(name: str, lam: Sequence[float], outputs: Sequence[LabelledLogits], factors: Sequence[float]) -> Curve:
    losses = [_losses(*output, factor) for output, factor in zip(outputs, factors, strict=True)]
    correct = [logits.argmax(1) == labels for logits, labels in outputs]
    return make_curve(name, lam, torch.stack(losses).numpy(), torch.stack(correct).numpy())


def _losses(logits: Float[Tensor, "n classes"], labels: Int[Tensor, " n"], factor: float) -> Float[Tensor, " n"]:
    return torch.nn.functional.cross_entropy(logits.double() * factor, labels, reduction="none")
