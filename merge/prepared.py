"""Prepared: models rewritten before they are aligned, without a change of their function, as checkpoints of their own.

Folding the gains of norms and keeping canonical weights change tensors that the engine would read as they are stored.
What is written here lies in a temporary folder beside the output and goes with the run.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from merge.architectures import spec_for
from merge.checkpoint import Checkpoint, open_checkpoint
from merge.material import finite_tensors
from merge.recipe_entries import AlignEntry
from merge.sentence_transformers import is_module_tensor, with_modules, without_modules
from merge.weight_writer import open_writer
from merge.writer import copy_side_files, write_json

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Prepared:
    """Models and base as they are aligned and merged, under the names that the user gave, and what was done to them."""

    models: tuple[Checkpoint, ...]
    base: Checkpoint | None
    notes: tuple[str, ...] = ()


@contextmanager
def prepared(
    entry: AlignEntry, models: Sequence[Checkpoint], base: Checkpoint | None, beside: Path
) -> Iterator[Prepared]:
    """Yield the models rewritten as the entry asks: norms folded for a rotation, canonical weights where they are kept.

    Args:
        beside: a path whose nearest existing parent takes the temporary folder.
    Raises:
        SpecError: the norms of this architecture cannot be folded.
        CheckpointError: a tensor holds NaN or infinity.
    """
    if entry.residual != "rotation" and (entry.canonical != "keep" or not entry.moves):
        yield Prepared(tuple(models), base)
        return
    parent = next(folder for folder in beside.expanduser().resolve().parents if folder.is_dir())
    with tempfile.TemporaryDirectory(prefix=".prepared-", dir=parent) as place:
        everyone = [*models, *([] if base is None else [base])]
        notes: dict[str, None] = {}
        written = []
        for k, checkpoint in enumerate(everyone):
            written.append(_rewritten(entry, checkpoint, Path(place) / str(k), notes))
        yield Prepared(tuple(written[: len(models)]), None if base is None else written[-1], tuple(notes))


def _rewritten(entry: AlignEntry, checkpoint: Checkpoint, folder: Path, notes: dict[str, None]) -> Checkpoint:
    from merge.gauges import canonical, fold_norms

    own = without_modules(checkpoint)
    tensors: Mapping[str, Tensor] = finite_tensors(own)
    config: Mapping[str, Any] = own.config
    if entry.canonical == "keep":
        tensors = canonical(spec_for(config), config, tensors)
        notes["canonical weights were kept: key and value biases and means that the outputs cannot show are zero"] = (
            None
        )
    if entry.residual == "rotation":
        folded = fold_norms(spec_for(config), config, tensors)
        tensors, config = folded.tensors, folded.config
        notes |= dict.fromkeys((_FOLDED, *folded.notes))
    folder.mkdir()
    _write(folder, own, tensors, config)
    for file in sorted({stored.file for name, stored in checkpoint.tensors.items() if is_module_tensor(name)}):
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(checkpoint.folder / file, folder / file)
    opened = with_modules(open_checkpoint(str(folder)))
    return replace(opened, source=checkpoint.source, commit=checkpoint.commit, left_behind=checkpoint.left_behind)


_FOLDED = (
    "the gains of the norms were folded into the weights that read them, so that the residual stream can be rotated"
)


def _write(folder: Path, own: Checkpoint, tensors: Mapping[str, Tensor], config: Mapping[str, Any]) -> None:
    """Write a checkpoint of these tensors, each in the dtype it is stored in, with the side files of its model."""
    import torch

    from merge.arrays import TorchArrays

    arrays, dtypes = TorchArrays("cpu"), {name: own.tensor(name).dtype for name in own.tensors}
    usual = next(iter(dtypes.values()))
    ready = {name: tensor.to(dtypes.get(name, usual)).contiguous() for name, tensor in tensors.items()}
    layout = {own.written_name(name): (arrays.dtype(t), tuple(t.shape)) for name, t in ready.items()}
    with torch.inference_mode(), open_writer(folder, layout) as writer:
        for name, tensor in ready.items():
            writer.write(own.written_name(name), arrays.dtype(tensor), arrays.raw(tensor), 0)
    write_json(folder / "config.json", config)
    copy_side_files(own.folder, tuple(name for name in own.side_files if name != "config.json"), folder)
