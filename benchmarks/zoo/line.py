"""Measuring a method on a pair: the loss on the line between the ends, and whether each end is still what it was.

The barrier is raw, and calibrated: every model on the line, the ends too, first gets the one temperature at which its
loss is least, which tells a model that is unsure from one that is wrong.
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
from zoo.answers import Answers, answers
from zoo.methods import Aligned, Method

# Inverse temperatures that are tried lie between these.
COLDEST, HOTTEST = 20.0, 0.05
CHECKED_BATCHES = 2


@dataclass(frozen=True)
class Contest:
    """A pair and the rows it is measured on, labels among them; the ends are measured once for all methods."""

    pair: Pair
    batches: tuple[Batch, ...]

    @cached_property
    def ends(self) -> tuple[Answers, Answers]:
        """What a and b say on all rows."""
        return self._answers(self.pair.a), self._answers(self.pair.b)

    @cached_property
    def exact_ends(self) -> tuple[Tensor, Tensor]:
        """The losses of a and b in float64, on the rows that functions are compared on."""
        return exact_losses(self.pair, self.pair.a, self.batches), exact_losses(self.pair, self.pair.b, self.batches)

    def _answers(self, tensors: Mapping[str, Tensor]) -> Answers:
        return all_answers(self.pair.model(tensors), self.batches)


@dataclass(frozen=True)
class Measured:
    """One method on one pair.

    Attributes:
        raw, calibrated: the curves of losses.
        changed: largest difference of a row's loss between an end and itself in the new basis, in float64.
        seconds: CPU seconds of the method.
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
    """Return what a method makes of a pair.

    Args:
        points: of the even grid of lam, the ends included; odd, so that the midpoint is one of them.
    Raises:
        UsageError: points is even, or under 3.
    """
    if points < 3 or points % 2 == 0:
        raise UsageError(f"--points is {points}: the half way point is one of them. Give an odd number from 3 on.")
    begun = time.process_time()
    aligned = method(contest.pair)
    seconds = time.process_time() - begun
    lam = [k / (points - 1) for k in range(points)]
    model = aligned.pair.model(aligned.pair.a)
    said = [contest.ends[0]]
    for at in lam[1:-1]:
        set_weights(model, {aligned.pair.written_name(n): t for n, t in aligned.at(at).items()})
        said.append(all_answers(model, contest.batches))
    said.append(contest.ends[1])
    return Measured(
        raw=_curve(name, lam, said, [1.0] * points),
        calibrated=_curve(name, lam, said, [coolness(*one) for one in said]),
        changed=changed(contest, aligned),
        seconds=seconds,
        note=aligned.note,
        aligned=aligned,
    )


def changed(contest: Contest, aligned: Aligned) -> float:
    """Return by how much the loss of a row changes at most when the ends are written in the new basis."""
    pairs = [(contest.exact_ends[1], exact_losses(aligned.pair, aligned.pair.b, contest.batches))]
    if aligned.pair.a is not contest.pair.a:
        pairs.append((contest.exact_ends[0], exact_losses(aligned.pair, aligned.pair.a, contest.batches)))
    return max(float((old - new).abs().max()) for old, new in pairs)


def exact_losses(pair: Pair, tensors: Mapping[str, Tensor], batches: Sequence[Batch]) -> Float[Tensor, " n"]:
    """Return the loss of every answer on the first batches, in float64."""
    return _losses(*all_answers(pair.model(tensors, torch.float64), batches[:CHECKED_BATCHES]), 1.0)


def all_answers(model: object, batches: Sequence[Batch]) -> Answers:
    """Return what a model says to all batches."""
    with torch.inference_mode():
        said = [answers(model, batch) for batch in batches]
    return torch.cat([logits for logits, _ in said]), torch.cat([labels for _, labels in said])


def coolness(logits: Float[Tensor, "n classes"], labels: Int[Tensor, " n"]) -> float:
    """Return the inverse temperature at which the loss is least: the loss is convex in it, so its slope is bisected."""
    chosen, (low, high) = logits.gather(1, labels[:, None]).mean(dtype=torch.float64), (HOTTEST, COLDEST)
    for _ in range(24):
        middle = (low * high) ** 0.5
        slope = ((logits * middle).softmax(1) * logits).sum(1).mean(dtype=torch.float64) - chosen
        low, high = (middle, high) if slope < 0 else (low, middle)
    return (low * high) ** 0.5


def _curve(name: str, lam: Sequence[float], said: Sequence[Answers], factors: Sequence[float]) -> Curve:
    losses = [_losses(*one, factor) for one, factor in zip(said, factors, strict=True)]
    correct = [logits.argmax(1) == labels for logits, labels in said]
    return make_curve(name, lam, torch.stack(losses).numpy(), torch.stack(correct).numpy())


def _losses(logits: Float[Tensor, "n classes"], labels: Int[Tensor, " n"], factor: float) -> Float[Tensor, " n"]:
    return torch.nn.functional.cross_entropy(logits.double() * factor, labels, reduction="none")
