"""Statistics: what data-based methods know of each model besides its weights, measured on text without labels.

MEASURES lists the kinds: `fisher`, how much each parameter matters to the model's predictions; `gram`, the second moments
of what each linear layer reads. They are measured once a model and text, and kept in a cache.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import merge
from merge.checkpoints.checkpoint import Checkpoint
from merge.disk.cache import cache_folder
from merge.errors import CalibrationError, UsageError, nearest
from merge.methods.statistics.fisher import measure_fisher
from merge.methods.statistics.gram import measure_gram, transposed_weights
from merge.methods.statistics.record import FORMAT, Statistics, StatisticsError, read_statistics, write_statistics
from merge.progress import Progress, silent

__all__ = [
    "MEASURES",
    "Statistics",
    "StatisticsError",
    "batches_hash",
    "measure",
    "read_statistics",
    "statistics_at",
    "statistics_for",
    "statistics_key",
    "write_statistics",
]

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from merge.checkpoints.inputs import Batch

    Measure = Callable[[Checkpoint, Sequence[Batch], torch.Generator, Progress], dict[str, Tensor]]


def _gram(
    checkpoint: Checkpoint, batches: Sequence[Batch], _generator: torch.Generator, progress: Progress
) -> dict[str, Tensor]:
    return measure_gram(checkpoint, batches, progress)  # nothing in it is random


MEASURES: dict[str, Measure] = {"fisher": measure_fisher, "gram": _gram}


def measure(
    checkpoint: Checkpoint,
    kind: str,
    batches: Sequence[Batch],
    text: str = "",
    seed: int = 0,
    progress: Progress = silent,
) -> Statistics:
    """Return the statistics of a model on tokenised text.

    Args:
        kind: one of MEASURES.
        text: where the text came from, in words, for the record.
        seed: of what is sampled: masked positions and predictions of token-level heads.
    Raises:
        UsageError: no such kind.
        CalibrationError: no text.
        StatisticsError: the kind is not defined for this architecture.
    """
    import torch

    _check_kind(kind)
    if not batches:
        raise CalibrationError(
            f"{kind} statistics of {checkpoint.source} need text, and there is none. Give --text FILE."
        )
    tensors = MEASURES[kind](checkpoint, batches, torch.Generator().manual_seed(seed), progress)
    entries = sum(tensor.numel() for tensor in tensors.values())
    scale = sum(float(tensor.sum(dtype=torch.float64)) for tensor in tensors.values()) / max(entries, 1)
    return Statistics(
        kind=kind,
        tensors=tensors,
        model=checkpoint.content_hash,
        architecture=checkpoint.architecture,
        text=text,
        text_hash=batches_hash(batches),
        texts=_count(batches),
        seed=seed,
        version=merge.__version__,
        mean=scale,
        transposed=tuple(sorted(transposed_weights(checkpoint) & tensors.keys())) if kind == "gram" else (),
    )


def statistics_for(
    checkpoint: Checkpoint,
    kind: str,
    batches: Sequence[Batch],
    where: Path | None = None,
    text: str = "",
    seed: int = 0,
    progress: Progress = silent,
) -> Statistics:
    """Return the statistics kept for this model, text, kind and seed; measure and keep them where there are none.

    Args:
        where: the folder they are kept in, one file a key; the cache's own if None.
    Raises:
        StatisticsError: the kept file cannot be read, or is not what its name says.
        OutputError: the folder cannot be written to.
    """
    _check_kind(kind)
    key = statistics_key(checkpoint, kind, batches, seed)
    path = (where or cache_folder() / "statistics") / f"{key}.safetensors"
    if path.is_file():
        return read_statistics(path, kind, checkpoint)
    found = measure(checkpoint, kind, batches, text, seed, progress)
    write_statistics(path, found)
    return found


def statistics_key(checkpoint: Checkpoint, kind: str, batches: Sequence[Batch], seed: int) -> str:
    """Return the hash of everything that decides the values: model, kind, text, number of texts, seed and format."""
    parts = [FORMAT, kind, checkpoint.content_hash, batches_hash(batches), _count(batches), seed]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def batches_hash(batches: Sequence[Batch]) -> str:
    """Return the SHA-256 of what the model reads: names, shapes and values of every input tensor, in order."""
    digest = hashlib.sha256()
    for batch in batches:
        for name in sorted(batch):
            tensor = batch[name].contiguous()
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
            digest.update(tensor.numpy().tobytes())
    return digest.hexdigest()


def statistics_at(statistics: Sequence[Statistics], name: str) -> tuple[Tensor, ...]:
    """Return one tensor per model for `Place.statistics`, empty where the data pass measured nothing for this tensor.

    Fisher information is divided by its mean over the whole model: models that are certain of their predictions have little
    of it everywhere, and would otherwise not be heard. The Gram matrix of a weight stored as (in, out) gets a first axis
    of size 1, by which the method knows it.

    Raises:
        StatisticsError: some models have the tensor measured and others have not, or a Fisher is 0 everywhere.
    """
    having = [one for one in statistics if name in one.tensors]
    if not having:
        return ()
    if len(having) < len(statistics):
        raise StatisticsError(
            f"{name} was measured for {len(having)} of {len(statistics)} models. Measure all with the same architecture."
        )
    return tuple(_handed(one, name) for one in statistics)


def _handed(statistics: Statistics, name: str) -> Tensor:
    tensor = statistics.tensors[name]
    if statistics.kind == "gram":
        return tensor[None] if name in statistics.transposed else tensor
    if not statistics.mean > 0:
        raise StatisticsError(
            f"the Fisher information of model {statistics.model[:12]} is 0 everywhere: its predictions do not vary with "
            "its weights on this text. Give other --text, or merge by another method."
        )
    return tensor / statistics.mean


def _check_kind(kind: str) -> None:
    if kind not in MEASURES:
        raise UsageError(f"unknown kind of statistics {kind!r}.{nearest(kind, MEASURES)}")


def _count(batches: Sequence[Mapping[str, Tensor]]) -> int:
    return sum(len(batch["input_ids"]) for batch in batches)
