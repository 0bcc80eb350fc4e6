"""Measure a model's statistics on calibration text, keep them in a cache, and hand them to the method tensor by tensor."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

import merge
from merge.checkpoints.checkpoint import Checkpoint
from merge.disk.cache import cache_folder, cache_key
from merge.errors import CalibrationError, UsageError, nearest
from merge.methods.statistics.fisher import measure_fisher
from merge.methods.statistics.gram import measure_gram
from merge.methods.statistics.orientation import transposed_weights
from merge.methods.statistics.record import FORMAT, Statistics, StatisticsError, read_statistics, write_statistics

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from merge.checkpoints.inputs import Batch

    Measure = Callable[[Checkpoint, Sequence[Batch], torch.Generator], dict[str, Tensor]]


def _gram(checkpoint: Checkpoint, batches: Sequence[Batch], _generator: torch.Generator) -> dict[str, Tensor]:
    return measure_gram(checkpoint, batches)  # draws no random numbers


MEASURES: dict[str, Measure] = {"fisher": measure_fisher, "gram": _gram}


def measure(
    checkpoint: Checkpoint,
    kind: str,
    batches: Sequence[Batch],
    text: str = "",
    seed: int = 0,
) -> Statistics:
    """Return the statistics of a model on tokenised text.

    Args:
        kind: one of MEASURES.
        text: the source of the text, in words, for the record.
        seed: seeds the masked positions and the labels drawn from token-level heads.
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
    tensors = MEASURES[kind](checkpoint, batches, torch.Generator().manual_seed(seed))
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
    text: str = "",
    seed: int = 0,
) -> Statistics:
    """Return the statistics of this model, text, kind and seed from the cache; measure and store them if they are missing.

    A file of the cache that cannot be read, or holds statistics of something else, is replaced.

    Raises:
        OutputError: the cache folder cannot be written to.
    """
    _check_kind(kind)
    key = statistics_key(checkpoint, kind, batches, seed)
    path = cache_folder() / "statistics" / f"{key}.safetensors"
    if path.is_file():
        with contextlib.suppress(StatisticsError):  # of a damaged file: it is measured again
            return dataclasses.replace(read_statistics(path, kind, checkpoint), text=text)
    statistics = measure(checkpoint, kind, batches, text, seed)
    write_statistics(path, statistics)
    return statistics


def statistics_key(checkpoint: Checkpoint, kind: str, batches: Sequence[Batch], seed: int) -> str:
    """Return the cache key: a hash of model, kind, text, number of texts, seed and format."""
    return cache_key(FORMAT, kind, checkpoint.content_hash, batches_hash(batches), _count(batches), seed)


def batches_hash(batches: Sequence[Batch]) -> str:
    """Return the SHA-256 of the model's inputs: names, shapes and values of every tensor, in order."""
    digest = hashlib.sha256()
    for batch in batches:
        for name in sorted(batch):
            tensor = batch[name].contiguous()
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
            digest.update(tensor.numpy().tobytes())
    return digest.hexdigest()


def statistics_at(statistics: Sequence[Statistics], name: str) -> tuple[Tensor, ...]:
    """Return one tensor per model for `TensorContext.statistics`; empty where nothing was measured for this tensor.

    Fisher information is divided by its mean over the whole model: a model that is certain of its predictions has little
    of it everywhere, and would otherwise count for nothing.

    Raises:
        StatisticsError: the tensor was measured for some models and not for others, or a Fisher information is 0 everywhere.
    """
    measured = sum(name in record.tensors for record in statistics)
    if not measured:
        return ()
    if measured < len(statistics):
        raise StatisticsError(
            f"{name} was measured for {measured} of {len(statistics)} models. Measure all with the same architecture."
        )
    return tuple(_scaled(record, name) for record in statistics)


def _scaled(statistics: Statistics, name: str) -> Tensor:
    tensor = statistics.tensors[name]
    if statistics.kind == "gram":
        return tensor
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
