"""Refinement: the numbers of a fitted map trained by gradient, both models frozen; the map stays inside its family.

    feature   |y' - y|^2 / |y - mean y|^2, of the state that the top reads and the one it was trained to read
    kl        divergence of the outputs from the top model's own, as in `merge.layers.repair.heal`
    task      cross-entropy of labels

A rotation is trained as W0 (I - S)^-1 (I + S) with S skew (Cayley), a low-rank map as a product of two factors.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from merge.checkpoints.hooks import token_mask, watching
from merge.checkpoints.inputs import MAX_LENGTH, encode, load_tokenizer, positions
from merge.errors import CheckpointError, UsageError
from merge.layers.activations import LiveLayers, live_layers, states_of
from merge.layers.assembly import Assembly
from merge.layers.repair.heal import TEXTS_A_STEP, distillation_loss
from merge.layers.stitching.maps import StateMap
from merge.progress import track

if TYPE_CHECKING:
    from merge.checkpoints.inputs import Batch
    from merge.layers.stitching.kinds import StitchSettings

# (W, c) -> tensors of the output by name, through which gradients pass.
Tensors = Callable[[Tensor, Tensor], dict[str, Tensor]]


@dataclass(frozen=True)
class Refined:
    """What a refinement did.

    Attributes:
        loss: what was made smaller, in words.
        first, last: its value in the first and the last step.
    """

    by: str
    steps: int
    rate: float
    texts_a_step: int
    loss: str
    first: float
    last: float

    @property
    def words(self) -> str:
        return (
            f"the map was refined by {self.steps} steps: {self.loss} {self.first:.4f} -> {self.last:.4f} (Adam, rate "
            f"{self.rate:g}, {self.texts_a_step} texts a step)"
        )

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Work:
    """What a refinement needs.

    Attributes:
        assembly: the stitched model with the map as it was fitted.
        tensors: how a map becomes tensors of it.
        index: of the layer that holds the map.
        top: the top model, live.
        samples: texts.
        classes: index of each text's class; empty but for task.
    """

    assembly: Assembly
    tensors: Tensors
    index: int
    top: LiveLayers
    samples: Sequence[tuple[str, ...]]
    classes: Sequence[int] = ()


def refine(work: Work, start: StateMap, settings: StitchSettings) -> tuple[StateMap, Refined]:
    """Return the map after some steps of Adam, and what they did.

    Raises:
        UsageError: the model has no class logits for labels.
        CheckpointError: the loss is no number.
    """
    student = live_layers(work.assembly.build())
    student.model.requires_grad_(False)
    names = {name: work.assembly.owner.written_name(name) for name in work.assembly.tensors.sources}
    tokenizer = load_tokenizer(work.assembly.embedder.folder)
    parameters, current = _parameters(start)
    optimizer = torch.optim.Adam(parameters, lr=settings.rate)
    losses, words = list[float](), ""
    drawn = _draws(len(work.samples), min(TEXTS_A_STEP, len(work.samples)), settings.text.seed)
    for _ in track(range(settings.steps), "refining the map"):
        numbers, total = next(drawn), 0.0
        for batch, rows in _batches(tokenizer, work, numbers):
            made = {names[name]: tensor for name, tensor in work.tensors(*current()).items()}
            loss, words = _loss(work, student, made, batch, rows, settings)
            share = len(batch["input_ids"]) / len(numbers)
            torch.autograd.backward(loss * share)
            total += float(loss.detach()) * share
        if not math.isfinite(total):
            raise CheckpointError("the refinement's loss is no number any more. Take fewer steps, or a smaller --rate.")
        optimizer.step()
        optimizer.zero_grad()
        losses.append(total)
    weight, constant = (tensor.detach().double() for tensor in current())
    done = Refined(
        settings.refine,
        settings.steps,
        settings.rate,
        min(TEXTS_A_STEP, len(work.samples)),
        words,
        losses[0],
        losses[-1],
    )
    return replace(start, weight=weight, constant=constant, explained=None), done


def _batches(tokenizer: Any, work: Work, numbers: Sequence[int]) -> Iterator[tuple[Batch, list[int]]]:
    """Yield batches of some texts, each with the numbers of its texts."""
    longest = min(MAX_LENGTH, positions(work.assembly.config))
    encoded = encode(tokenizer, [work.samples[number] for number in numbers], longest)
    for batch, rows in zip(encoded.batches, encoded.rows, strict=True):
        yield batch, [numbers[row] for row in rows]


def _parameters(start: StateMap) -> tuple[list[Tensor], Callable[[], tuple[Tensor, Tensor]]]:
    """Return what is trained of a map, and the function that returns W and c of it."""
    weight = start.weight.float()
    constant = start.constant.float().clone().requires_grad_()
    if start.kind == "scale":
        factor = weight.diagonal().clone().requires_grad_()
        return [factor, constant], lambda: (torch.diag(factor), constant)
    if start.kind == "orthogonal":
        skew, unit = torch.zeros_like(weight).requires_grad_(), torch.eye(len(weight))

        def turned() -> tuple[Tensor, Tensor]:
            s = skew - skew.T
            return weight @ torch.linalg.solve(unit - s, unit + s), constant

        return [skew, constant], turned
    if start.kind == "low-rank":
        left, size, right = torch.linalg.svd(start.weight)
        rank = int((size > 1e-9 * size[0]).sum())
        factors = [left[:, :rank] * size[:rank].sqrt(), size[:rank].sqrt()[:, None] * right[:rank]]
        first, second = (factor.float().contiguous().requires_grad_() for factor in factors)
        return [first, second, constant], lambda: (first @ second, constant)
    whole = weight.clone().requires_grad_()
    return [whole, constant], lambda: (whole, constant)


def _loss(
    work: Work,
    student: LiveLayers,
    made: dict[str, Tensor],
    batch: Batch,
    rows: Sequence[int],
    settings: StitchSettings,
) -> tuple[Tensor, str]:
    """Return the loss of a batch, with gradients to the tensors that were made of the map, and what it is in words."""
    known = student.model.state_dict().keys()
    swapped = {name: tensor for name, tensor in made.items() if name in known}
    seen: list[Tensor] = []
    site = f"{student.path}.{student.names[work.index]}:out"
    with watching(student.model.base_model, [site], lambda _site, activation: seen.append(activation)):
        output = torch.func.functional_call(student.model, swapped, (), dict(batch))
    if settings.refine == "task":
        logits = output.get("logits")
        if logits is None or logits.ndim != 2 or logits.shape[1] < 2:
            raise UsageError(
                f"--refine task needs a top model with one logit a class for each text; {work.assembly.owner.source} is a "
                f"{work.assembly.owner.architecture}."
            )
        gold = torch.tensor([work.classes[row] for row in rows])
        return torch.nn.functional.cross_entropy(logits, gold), "cross-entropy"
    if settings.refine == "kl":
        with torch.no_grad():
            due = work.top.model(**batch)
        return distillation_loss(output, due, batch)
    target = states_of(work.top, batch, [settings.at[1]])[settings.at[1]].clone()
    mask = token_mask(batch)
    state = seen[-1].transpose(0, 1) if student.order == "time" else seen[-1]
    given = state[mask] if mask is not None and state.ndim == 3 else state.reshape(-1, state.shape[-1])
    spread = (target - target.mean(0)).square().sum().clamp_min(1e-12)
    return (given - target).square().sum() / spread, "squared error of the state, as a share of its variance"


def _draws(texts: int, size: int, seed: int) -> Iterator[list[int]]:
    """Yield numbers of texts without end, `size` at a time, each text once a round."""
    generator = torch.Generator().manual_seed(seed)
    while True:
        order = torch.randperm(texts, generator=generator).tolist()
        yield from (order[start : start + size] for start in range(0, texts - size + 1, size))
