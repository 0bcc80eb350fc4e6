"""Predictor: a model in memory that takes the weights of many checkpoints; and how half precision changes predictions."""

from __future__ import annotations

import logging
import platform
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from evals.predict.batching import plan_batches
from evals.predict.embeddings import (
    SentenceEncoder,
    build_embedder,
    cosines,
    embedding_facts,
    embeds,
    longest_text,
    set_embedder,
    single_texts,
)
from evals.predict.logits import predict, token_budget
from evals.predict.tokens import tokenise_rows
from evals.predict.workers import WorkerGroup
from evals.tasks.task import Rows
from merge.checkpoints.checkpoint import Checkpoint, absent_pooler, finite_tensors, without_absent_pooler
from merge.checkpoints.inputs import Encoded
from merge.checkpoints.settings import setting_differences
from merge.checkpoints.transformers_model import build, set_weights
from merge.errors import TaskError, some


@dataclass(frozen=True)
class Predictor:
    """A model in memory whose weights are replaced in place, so that no model is built for the next checkpoint.

    Attributes:
        like: the checkpoint it was made for; the checkpoints that it loads must have its config and shapes.
        model: on its device and in its dtype, in evaluation mode.
        cache: whether tokens are read from the cache and written to it.
        workers: the processes that share the work; None for this one alone.
        max_length: tokens of a row that are read at most; None for the model's own limit.
    """

    like: Checkpoint
    model: Any = field(repr=False)
    cache: bool = True
    workers: WorkerGroup | None = None
    max_length: int | None = None

    @property
    def embeds(self) -> bool:
        """Whether the model embeds texts, and a row's prediction is the cosine of two; this process then works alone."""
        return isinstance(self.model, SentenceEncoder)

    def fits(self, checkpoint: Checkpoint) -> bool:
        """Return whether `load` accepts a checkpoint: same architecture, settings and shapes."""
        return embedding_facts(self.like) == embedding_facts(checkpoint) and not _differences(self.like, checkpoint)

    def load(self, checkpoint: Checkpoint) -> None:
        """Replace the weights by a checkpoint's.

        Raises:
            TaskError: its architecture, settings or shapes differ.
            CheckpointError: a tensor holds NaN or infinity.
        """
        _check_alike(self.like, checkpoint)
        self.set(_written(checkpoint))

    def set(self, tensors: Mapping[str, Tensor]) -> None:
        """Replace all weights, given by the names transformers writes.

        Raises:
            TaskError: a tensor is missing or unknown.
        """
        expected = {self.like.written_name(name) for name in self.like.tensors}
        if odd := sorted(expected ^ tensors.keys()):
            what = "missing" if odd[0] in expected else "unknown"
            raise TaskError(
                f"{self.like.source}: {len(odd)} weights do not fit its model; {odd[0]} is {what}. Give every weight by name."
            )
        (set_embedder if self.embeds else set_weights)(self.model, tensors)

    def encode(self, rows: Rows, of: Checkpoint | None = None) -> Encoded:
        """Return rows as batches for this model, by the tokenizer of a checkpoint (default: `like`).

        A row has the logits in its batch that it has alone: padding and the rows beside change nothing (`batching`).

        Raises:
            TaskError: there is no tokenizer, there are no rows, or the model cannot predict one.
        """
        checkpoint, limit = of or self.like, None
        if self.embeds:
            rows, limit = single_texts(checkpoint, rows), longest_text(checkpoint)
        tokens = tokenise_rows(checkpoint, rows, self.cache, self.max_length, limit)
        try:
            return plan_batches(self.model, tokens, token_budget(self.model.device), checkpoint.source)
        except TaskError as error:
            raise TaskError(f"{checkpoint.source}: {error}") from error

    def steps(self, encoded: Encoded) -> int:
        """Return the number of batches that this process predicts."""
        return len(encoded.batches[:: self.workers.size if self.workers else 1])

    def logits(self, encoded: Encoded, label: str = "predicting") -> Float[Tensor, "rows classes"]:
        """Return the logits of every row under the current weights, or the cosine of its embeddings; float32, on the CPU."""
        if self.embeds:
            return cosines(predict(self.model, encoded, label))
        if self.workers is None:
            return predict(self.model, encoded, label)
        names = tuple(sorted(self.like.written_name(name) for name in self.like.tensors))
        return self.workers.predict(self.like.config, self.model, names, encoded, label)


def make_predictor(
    checkpoint: Checkpoint,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    cache: bool = True,
    workers: WorkerGroup | None = None,
    max_length: int | None = None,
) -> Predictor:
    """Return a predictor that has this checkpoint's weights.

    Args:
        dtype: of weights and computation; `precision_change` measures the effect of less than float32.
        cache, workers, max_length: as in Predictor.
    """
    if emulated(dtype, device):
        logging.getLogger(__name__).warning(
            "this machine has no instructions for %s on %s: float32 is exact, and faster here.",
            str(dtype).removeprefix("torch."),
            torch.device(device).type,
        )
    model = build_embedder(checkpoint, dtype) if embeds(checkpoint) else build_written(checkpoint, dtype)
    return Predictor(checkpoint, model.to(device), cache, workers, max_length)


def build_written(checkpoint: Checkpoint, dtype: torch.dtype = torch.float32) -> Any:
    """Return a checkpoint's model."""
    return without_absent_pooler(checkpoint, build(checkpoint.config, _written(checkpoint), dtype))


def emulated(dtype: torch.dtype, device: torch.device | str = "cpu") -> bool:
    """Return whether a device computes a half-precision dtype by way of float32."""
    if dtype not in (torch.bfloat16, torch.float16):
        return False
    if torch.device(device).type == "cuda":
        return dtype == torch.bfloat16 and not torch.cuda.is_bf16_supported(including_emulation=False)
    x86 = platform.machine().lower() in ("x86_64", "amd64")
    return torch.device(device).type == "cpu" and x86 and torch.backends.cpu.get_cpu_capability() in ("DEFAULT", "AVX2")


@dataclass(frozen=True)
class Change:
    """The difference between two sets of logits for the same rows.

    Attributes:
        rows: how many were compared.
        changed: how many of them have another predicted class.
        largest: the largest difference of any logit.
    """

    rows: int
    changed: int
    largest: float

    @property
    def share(self) -> float:
        """The share of changed predictions."""
        return self.changed / self.rows


def change(exact: Float[Tensor, "rows classes"], other: Float[Tensor, "rows classes"]) -> Change:
    """Return how many rows have another largest logit, and the largest difference of the logits.

    A regression model has one logit and predicts no class: for it only `largest` has a meaning.
    """
    differing = exact.argmax(1) != other.argmax(1)
    return Change(len(exact), int(differing.sum()), float((exact - other).abs().max()))


def precision_change(
    checkpoint: Checkpoint,
    rows: Rows,
    dtype: torch.dtype,
    count: int | None = 500,
    seed: int = 0,
    device: torch.device | str = "cpu",
    cache: bool = True,
    max_length: int | None = None,
) -> Change:
    """Return the change of the logits from float32 to `dtype`, measured on rows drawn at random.

    Args:
        count: how many rows are drawn; all when None.
        max_length: tokens of a row that are read at most; None for the model's own limit.
    """
    sample = rows.sample(count, seed)
    exact, other = (
        make_predictor(checkpoint, kind, device, cache, max_length=max_length) for kind in (torch.float32, dtype)
    )
    encoded = exact.encode(sample)
    return change(exact.logits(encoded), other.logits(encoded))


def _written(checkpoint: Checkpoint) -> dict[str, Tensor]:
    tensors = finite_tensors(checkpoint) | absent_pooler(checkpoint)
    return {checkpoint.written_name(name): tensor for name, tensor in tensors.items()}


def _differences(like: Checkpoint, other: Checkpoint) -> list[str]:
    """Return every difference between checkpoints, besides the weights, that changes their outputs; labels may differ."""
    differences = setting_differences(like.structure, other.structure)
    faults = [f"{key} is {right!r}, not {left!r}" for key, left, right in differences]
    if like.architecture != other.architecture:
        faults = [f"it is a {other.architecture}, not a {like.architecture}"]
    shapes, others = like.shapes, other.shapes
    return faults + [
        f"{name} is {others.get(name, 'absent')}, not {shapes.get(name, 'absent')}"
        for name in sorted(shapes.keys() | others.keys())
        if shapes.get(name) != others.get(name)
    ]


def _check_alike(like: Checkpoint, other: Checkpoint) -> None:
    if faults := _differences(like, other):
        raise TaskError(
            f"{other.source} does not fit a predictor made for {like.source}: {some(faults, separator='; ')}. "
            "Make one for it."
        )
