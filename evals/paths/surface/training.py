"""Train points of weight space by the loss at random combinations of them with models that stay as they are.

At every step coefficients are drawn, the combination's loss on a few rows is computed by `torch.func.functional_call`, and the
gradient goes to the trained points alone. What is drawn at a step depends on the seed and on the step, so a run that was
interrupted goes on exactly as it would have: the points and the optimiser's state are kept in a file.
"""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from evals.paths.surface.weights import Weights
from evals.predict.tokens import tokenise_rows
from evals.results.measure import judge
from evals.tasks.label_names import MatchedTask
from evals.tasks.task import Rows
from merge.checkpoints.checkpoint import Checkpoint
from merge.checkpoints.inputs import Batch, Tokens, batch_tokens
from merge.disk.atomic import replacing
from merge.disk.checksums import CHECKSUM, NOT_AS_WRITTEN, tensors_checksum
from merge.errors import CheckpointError, OutputError, first_line
from merge.progress import track

# A step's learning rate falls linearly from this one to 0.
RATE, ROWS_A_STEP = 1e-4, 32
SECONDS_BETWEEN_SAVES = 60.0
MOMENTS = ("exp_avg", "exp_avg_sq")


@dataclass(frozen=True)
class Training:
    """How points are trained.

    Attributes:
        steps: of Adam, without weight decay; the rate falls linearly to 0.
        rows_a_step: labelled rows whose mean loss a step lowers.
    """

    steps: int
    rate: float = RATE
    rows_a_step: int = ROWS_A_STEP
    seed: int = 0


@dataclass(frozen=True)
class Material:
    """The labelled rows that points are trained on.

    Attributes:
        matched: the rows, their classes matched to those of the model.
        texts: input name -> its values for each row.
    """

    matched: MatchedTask
    tokens: Tokens = field(repr=False)
    texts: Mapping[str, Sequence[Tensor]] = field(repr=False)

    def batch(self, rows: Sequence[int]) -> tuple[Batch, list[int]]:
        """Return some rows as one batch, and their order in it."""
        fields = {name: torch.cat([values[k] for k in rows]) for name, values in self.texts.items()}
        lengths = tuple(self.tokens.lengths[k] for k in rows)
        part = Tokens(fields, lengths, self.tokens.pad, 0, self.tokens.pad_left)
        encoded = batch_tokens(part, max(lengths) * len(rows))
        return encoded.batches[0], [rows[k] for k in encoded.rows[0]]


def training_material(
    matched: MatchedTask, checkpoint: Checkpoint, cache: bool = True, max_length: int | None = None
) -> Material:
    """Return rows as they are trained on.

    Raises:
        TaskError: there is no tokenizer, or there are no rows.
    """
    tokens = tokenise_rows(checkpoint, matched.rows, cache, max_length)
    return Material(matched, tokens, {name: values.split(tokens.lengths) for name, values in tokens.fields.items()})


# From a step's random numbers to the coefficients of the fixed models and of the trained points, in this order.
Draw = Callable[[random.Random], Sequence[float]]
# From the trained points to what is added to the loss; None for nothing.
Penalty = Callable[[Sequence[Weights]], Tensor]


@dataclass(frozen=True)
class Trained:
    """Trained points.

    Attributes:
        points: their weights, float32.
        losses: of the rows of every step, without what a penalty adds; of a run that went on from a file those since then.
        steps: how many were taken in this run; fewer than asked for where some were kept in a file.
    """

    points: tuple[dict[str, Tensor], ...] = field(repr=False)
    losses: tuple[float, ...]
    steps: int


def train_points(
    model: Any,
    fixed: Sequence[Weights],
    start: Sequence[Weights],
    draw: Draw,
    material: Material,
    training: Training,
    kept: Path | None = None,
    penalty: Penalty | None = None,
    label: str = "training",
) -> Trained:
    """Return points trained from a start.

    Args:
        model: of the architecture, in evaluation mode (no dropout); its own weights are neither read nor changed.
        fixed: models that combinations have beside the points.
        kept: a file that the state is kept in, now and then and when the run is interrupted; it is read again.
        penalty: is added to the loss of every step.
    Raises:
        CheckpointError: the loss is no number any more.
        OutputError: the state cannot be written.
    """
    from torch.func import functional_call

    device = model.device
    names = [name for name, tensor in start[0].items() if tensor.is_floating_point()]
    points = [{name: point[name].detach().clone().to(device).requires_grad_() for name in names} for point in start]
    still = [{name: tensor.to(device) for name, tensor in each.items()} for each in fixed]
    buffers = {name: tensor for name, tensor in (still or points)[0].items() if name not in names}
    flat = [point[name] for point in points for name in names]
    optimiser = torch.optim.Adam(flat, lr=training.rate)
    begun = _read_state(kept, points, optimiser) if kept else 0
    losses: list[float] = []
    keeper = _Keeper(kept, points, optimiser, begun)
    with _frozen(model), _written_on_errors(keeper):
        for step in track(range(begun, training.steps), label):
            numbers = random.Random(f"{training.seed}-{step}")
            coefficients = draw(numbers)
            weights = {name: _mixed(name, [*still, *points], coefficients) for name in names}
            rows = numbers.sample(
                range(len(material.matched.rows)), min(training.rows_a_step, len(material.matched.rows))
            )
            batch, order = material.batch(sorted(rows))
            inputs = {name: tensor.to(device) for name, tensor in batch.items()}
            output = functional_call(model, {**buffers, **weights}, (), inputs).logits.cpu()
            loss = _loss(output, material.matched, order)
            if not math.isfinite(float(loss.detach())):
                raise CheckpointError(
                    f"{label}: the loss is no number at step {step + 1}. Take a smaller rate (--rate)."
                )
            total = loss if penalty is None else loss + penalty(points)
            for group in optimiser.param_groups:
                group["lr"] = training.rate * (1 - step / training.steps)
            optimiser.zero_grad(set_to_none=False)
            total.backward()
            keeper.step()
            losses.append(float(loss.detach()))
    if not all(torch.isfinite(tensor).all() for tensor in flat):  # after the last step nothing else would show it
        raise CheckpointError(f"{label}: the trained weights are no numbers any more. Take a smaller rate (--rate).")
    trained = tuple(
        {**{n: t.cpu() for n, t in buffers.items()}, **{n: t.detach().cpu() for n, t in point.items()}}
        for point in points
    )
    return Trained(tuple({name: each[name] for name in start[0]} for each in trained), tuple(losses), len(losses))


def _mixed(name: str, parts: Sequence[Weights], coefficients: Sequence[float]) -> Tensor:
    terms = [part[name] * c for part, c in zip(parts, coefficients, strict=True) if c != 0]
    return torch.stack(terms).sum(0) if len(terms) > 2 else terms[0] + terms[1] if len(terms) > 1 else terms[0]


def _loss(logits: Tensor, matched: MatchedTask, order: Sequence[int]) -> Tensor:
    """Return the mean loss of rows, as they are judged when they are measured."""
    rows: Rows = matched.rows.chosen(order, "a step")
    losses, _ = judge(logits, matched.columns, matched.task, rows, matched.model)
    return losses.mean()


@contextmanager
def _frozen(model: Any) -> Iterator[None]:
    """Keep a model's own parameters without gradients for the code inside."""
    before = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    model.requires_grad_(False)
    try:
        yield
    finally:
        for parameter, requires in before:
            parameter.requires_grad_(requires)


@dataclass
class _Keeper:
    """Writes the state of a training once in a while; without a file nothing is written.

    Attributes:
        done: steps that were taken.
        whole: whether the points are those after `done` steps, and not in the middle of the next.
    """

    path: Path | None
    points: Sequence[Mapping[str, Tensor]]
    optimiser: torch.optim.Adam
    done: int = 0
    whole: bool = True
    last: float = field(default_factory=time.monotonic)

    def step(self) -> None:
        """Take a step of the optimiser, and write the state if the last time is long ago."""
        self.whole = False
        self.optimiser.step()
        self.done, self.whole = self.done + 1, True
        if time.monotonic() - self.last > SECONDS_BETWEEN_SAVES:
            self.write()

    def write(self) -> None:
        """Write the state, if there is a file for it and something to keep."""
        self.last = time.monotonic()
        if self.path is not None and self.done and self.whole:
            _write_state(self.path, self.points, self.optimiser, self.done)


@contextmanager
def _written_on_errors(keeper: _Keeper) -> Iterator[None]:
    """Write the state when the code inside is interrupted or fails."""
    try:
        yield
    except BaseException:
        keeper.write()
        raise


def _write_state(path: Path, points: Sequence[Mapping[str, Tensor]], optimiser: torch.optim.Adam, step: int) -> None:
    from safetensors.torch import save_file

    tensors = {}
    for k, point in enumerate(points):
        for name, tensor in point.items():
            tensors[f"{k}/{name}"] = tensor.detach().contiguous()
            for moment in MOMENTS:
                tensors[f"{k}/{name}/{moment}"] = optimiser.state[tensor][moment].contiguous()
    tensors = {name: tensor.cpu() for name, tensor in tensors.items()}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as temporary:
            save_file(tensors, temporary, metadata={"step": str(step), CHECKSUM: _checksum(tensors, step)})
    except OSError as error:
        raise OutputError(f"{path} cannot be written: {first_line(error)}") from error


def _read_state(path: Path, points: Sequence[Mapping[str, Tensor]], optimiser: torch.optim.Adam) -> int:
    """Read the points and the optimiser's state, and return the steps that were taken; 0 where there is no file.

    Raises:
        CheckpointError: the file is not as it was written; it is removed.
    """
    from safetensors import SafetensorError, safe_open

    if not path.is_file():
        return 0
    try:
        with safe_open(path, "pt") as file:
            facts = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - it is no mapping
        step = int(facts["step"])
        if facts[CHECKSUM] != _checksum(tensors, step):
            raise ValueError(NOT_AS_WRITTEN)
    except (SafetensorError, KeyError, ValueError):
        path.unlink(missing_ok=True)
        raise CheckpointError(f"{path} is removed: {NOT_AS_WRITTEN}. Start the command again.") from None
    with torch.no_grad():
        for k, point in enumerate(points):
            for name, tensor in point.items():
                tensor.copy_(tensors[f"{k}/{name}"])
                moments = {m: tensors[f"{k}/{name}/{m}"].to(tensor.device) for m in MOMENTS}
                optimiser.state[tensor] = {"step": torch.tensor(float(step)), **moments}
    return step


def _checksum(tensors: Mapping[str, Tensor], step: int) -> str:
    return f"{step} {tensors_checksum(tensors).hex()}"
