"""Healing: a few steps in which an edited model learns from the model that it was made of, on unlabelled text.

The loss is that of the outputs that both have: for classes and tokens KL(teacher | student) of their logits, for single
numbers the squared error, for encoders without a head 1 - cosine of the mean of each text's last states.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from merge.checkpoints.hooks import token_mask
from merge.errors import CheckpointError, UsageError
from merge.progress import track

if TYPE_CHECKING:
    from merge.checkpoints.inputs import Batch

RATE = 2e-4
TEXTS_A_STEP = 32


@dataclass(frozen=True)
class Healing:
    """What healing did.

    Attributes:
        loss: what was made smaller, in words.
        first, last: its value in the first and in the last step.
    """

    steps: int
    rate: float
    texts_a_step: int
    loss: str
    first: float
    last: float


def heal(
    student: Any,
    teacher: Any,
    batches_of: Callable[[Sequence[int]], Sequence[Batch]],
    texts: int,
    steps: int,
    rate: float = RATE,
    seed: int = 0,
) -> Healing:
    """Train a live model towards another on text: AdamW with a constant rate, without dropout; the student changes in place.

    Args:
        batches_of: numbers of texts -> batches of them, whose losses are averaged by their texts.
        texts: how many there are; they are shuffled anew for every round through them.
    Raises:
        UsageError: the number of steps or the rate makes no sense.
        CheckpointError: the loss is no number.
    """
    from accelerate import Accelerator

    if steps < 1 or not rate > 0:
        raise UsageError(f"healing takes at least 1 step and a rate above 0, found {steps} and {rate}.")
    accelerator = Accelerator(cpu=True)
    student.eval()  # without dropout, as the teacher
    optimizer = torch.optim.AdamW([p for p in student.parameters() if p.requires_grad], lr=rate, weight_decay=0.0)
    student, optimizer = accelerator.prepare(student, optimizer)
    losses, words = list[float](), ""
    drawn = _draws(texts, min(TEXTS_A_STEP, texts), seed)
    for _ in track(range(steps), "healing"):
        numbers, total = next(drawn), 0.0
        for batch in batches_of(numbers):
            with torch.no_grad():
                due = teacher(**batch)
            loss, words = distillation_loss(student(**batch), due, batch)
            share = len(batch["input_ids"]) / len(numbers)
            accelerator.backward(loss * share)
            total += float(loss.detach()) * share
        if not math.isfinite(total):
            raise CheckpointError("healing: the loss is no number any more. Take fewer steps, or a smaller rate.")
        optimizer.step()
        optimizer.zero_grad()
        losses.append(total)
    return Healing(steps, rate, min(TEXTS_A_STEP, texts), words, losses[0], losses[-1])


def distillation_loss(student: Any, teacher: Any, batch: Batch) -> tuple[Tensor, str]:
    """Return the loss between the outputs of two models on a batch, and what it is in words."""
    mask = token_mask(batch)
    if "logits" in teacher:
        left, right = student.logits, teacher.logits
        if mask is not None and left.ndim == 3 and left.shape[:2] == mask.shape:
            left, right = left[mask], right[mask]
        if left.shape[-1] == 1:
            return (left - right).square().mean(), "squared error of the logits"
        left, right = (x.flatten(0, -2).log_softmax(-1) for x in (left, right))
        return torch.nn.functional.kl_div(left, right, log_target=True, reduction="batchmean"), "KL of the logits"
    given, due = (mean_states(output[0], mask) for output in (student, teacher))
    return (1 - torch.cosine_similarity(given, due, dim=-1)).mean(), "1 - cosine of the mean states"


def mean_states(states: Tensor, mask: Tensor | None) -> Tensor:
    """Return the mean over each text's tokens that are not padding, shape (texts, units)."""
    if mask is None:
        return states.mean(1)
    if states.shape[0] != mask.shape[0]:
        states = states.transpose(0, 1)
    weights = mask[..., None].to(states.dtype)
    return (states * weights).sum(1) / weights.sum(1).clamp(min=1)


def _draws(texts: int, size: int, seed: int) -> Iterator[list[int]]:
    """Yield numbers of texts without end, `size` at a time, each text once a round."""
    generator = torch.Generator().manual_seed(seed)
    while True:
        order = torch.randperm(texts, generator=generator).tolist()
        yield from (order[start : start + size] for start in range(0, texts - size + 1, size))
