"""Statistics of one model and their file: safetensors with a record of kind, model and text."""

from __future__ import annotations

import dataclasses
import errno
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from merge.checkpoints.checkpoint import Checkpoint
from merge.disk.atomic import replacing
from merge.disk.checksums import CHECKSUM, tensors_checksum, with_checksum, without_checksum
from merge.disk.documents import check_regular, checked_object, parse_json
from merge.errors import MergeError, OutputError, first_line

if TYPE_CHECKING:
    from torch import Tensor

FORMAT = 2
SUM = "sum"  # entry of the file's record: SHA-256 of the tensors
# Field of the record -> kind of its value.
KINDS = {
    **dict.fromkeys(("kind", "model", "architecture", "text", "text_hash", "version"), "text"),
    **dict.fromkeys(("format", "texts", "seed"), "a whole number"),
    "mean": "a number",
    "transposed": "a list",
}


class StatisticsError(MergeError):
    """Statistics cannot be measured for this model, cannot be read, or belong to another model."""


@dataclass(frozen=True)
class Statistics:
    """Statistics of one model on a text.

    Attributes:
        kind: "fisher" or "gram".
        tensors: canonical name -> float32; of the tensor's shape (fisher) or (d_in, d_in) (gram).
        model: content hash of the checkpoint.
        architecture: the checkpoint's architecture.
        text: the source of the text, in words.
        text_hash: SHA-256 of the tokenised text.
        texts: number of texts.
        seed: seed of the random draws.
        version: version of merge-models.
        mean: mean over all entries of all tensors.
        transposed: names of the weights stored as (in, out).
    """

    kind: str
    tensors: Mapping[str, Tensor]
    model: str
    architecture: str
    text: str
    text_hash: str
    texts: int
    seed: int
    version: str
    mean: float
    transposed: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Return all fields except the tensors."""
        fields = [field.name for field in dataclasses.fields(self) if field.name != "tensors"]
        return {"format": FORMAT, **{name: getattr(self, name) for name in fields}}


def write_statistics(path: Path, statistics: Statistics) -> None:
    """Write statistics to a file, completely or not at all.

    Raises:
        OutputError: the disk is full or the file cannot be written.
    """
    from safetensors import SafetensorError
    from safetensors import torch as safetensors

    # A single entry: safetensors writes several in varying order.
    record = with_checksum({**statistics.to_json(), SUM: tensors_checksum(statistics.tensors).hex()})
    metadata = {"statistics": json.dumps(record, sort_keys=True)}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        tensors = {n: t.contiguous() for n, t in sorted(statistics.tensors.items())}
        with replacing(path) as temporary:
            safetensors.save_file(tensors, temporary, metadata)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise OutputError(f"no space left on the disk of {path.parent}; nothing was written.") from error
        raise OutputError(f"{path} cannot be written: {first_line(error)}") from error
    except SafetensorError as error:  # it wraps the system's errors
        raise OutputError(f"{path} cannot be written: {first_line(error)}") from error


def read_statistics(path: Path, kind: str | None = None, checkpoint: Checkpoint | None = None) -> Statistics:
    """Read what `write_statistics` wrote; the tensors are memory-mapped, not to be written to.

    Args:
        kind: expected kind; any if None.
        checkpoint: expected model; any if None.
    Raises:
        StatisticsError: not a statistics file, or one of another kind, model or shape.
    """
    from safetensors import SafetensorError, safe_open

    try:
        check_regular(path)
        with safe_open(path, framework="pt") as file:
            text = (file.metadata() or {})["statistics"]
            record = checked_object(
                parse_json(text, f"{path}: its record", StatisticsError), str(path), StatisticsError, KINDS
            )
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping, has no __iter__
    except KeyError as error:
        raise StatisticsError(f"{path} holds no statistics: it was not written by merge-models statistics.") from error
    except FileNotFoundError as error:
        raise StatisticsError(f"{path} cannot be read as statistics: there is no such file.") from error
    except (OSError, SafetensorError) as error:
        raise StatisticsError(f"{path} cannot be read as statistics: {first_line(error)}") from error
    if record.get("format") != FORMAT:
        raise StatisticsError(f"{path} has another format than {FORMAT}. Measure it again: merge-models statistics.")
    wanted = {"format", SUM} | {field.name for field in dataclasses.fields(Statistics)} - {"tensors"}
    if record.keys() - {CHECKSUM} != wanted:
        raise StatisticsError(f"{path}: its record is not one of merge-models statistics. Measure it again.")
    if without_checksum(record) is None or record[SUM] != tensors_checksum(tensors).hex():
        raise StatisticsError(f"{path} is damaged, or was changed since it was written. Measure it again.")
    fields = {name: value for name, value in record.items() if name not in ("format", SUM, CHECKSUM)}
    statistics = Statistics(tensors=tensors, **{**fields, "transposed": tuple(record["transposed"])})
    _check_values(path, statistics)
    if kind is not None and statistics.kind != kind:
        raise StatisticsError(
            f"{path} holds {statistics.kind} statistics, expected {kind}. Give the file of that kind."
        )
    if checkpoint is not None:
        check_model(statistics, checkpoint, str(path))
    return statistics


def check_model(statistics: Statistics, checkpoint: Checkpoint, source: str) -> None:
    """Check that statistics belong to this checkpoint and fit its tensors.

    Raises:
        StatisticsError: they do not; names the first fault.
    """
    if statistics.model != checkpoint.content_hash:
        raise StatisticsError(
            f"{source} was measured of another model ({statistics.architecture}, content {statistics.model[:12]}), not of "
            f"{checkpoint.source} ({checkpoint.architecture}, content {checkpoint.content_hash[:12]}). Measure it again."
        )
    shapes = checkpoint.shapes
    for name, tensor in statistics.tensors.items():
        if name not in shapes:
            raise StatisticsError(f"{source} holds {name}, which {checkpoint.source} has not. Measure it again.")
        side = shapes[name][0 if name in statistics.transposed else -1] if shapes[name] else 0
        expected = (side, side) if statistics.kind == "gram" else shapes[name]
        if tuple(tensor.shape) != expected:
            raise StatisticsError(
                f"{source}: {name} has shape {tuple(tensor.shape)}, expected {expected}. Measure it again."
            )


def _check_values(path: Path, statistics: Statistics) -> None:
    import torch

    for name, tensor in statistics.tensors.items():
        if tensor.dtype != torch.float32 or not torch.isfinite(tensor).all():
            raise StatisticsError(f"{path}: {name} is not float32 and finite. The file is damaged; measure it again.")
