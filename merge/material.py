"""Material: what alignments and statistics read, calibration text as batches and tensors that are finite."""

from __future__ import annotations

from typing import TYPE_CHECKING

from merge.checkpoint import Checkpoint
from merge.errors import CalibrationError, CheckpointError
from merge.recipe_entries import AlignEntry, StatisticsEntry

if TYPE_CHECKING:
    from torch import Tensor

    from merge.alignment.pair import Batch


def calibrate(
    entry: AlignEntry | StatisticsEntry, seed: int, reference: Checkpoint, needed: bool
) -> tuple[tuple[Batch, ...], str | None, tuple[str, ...]]:
    """Return calibration batches tokenised for the reference, where the text came from, and notes on both.

    Raises:
        CalibrationError: the text cannot be read, or it is needed and there is no tokenizer to read it with.
    """
    from merge.alignment.calibration import read_calibration
    from merge.inputs import load_tokenizer, tokenise

    if not reference.has_tokenizer:
        if needed or entry.text is not None:
            raise CalibrationError(
                f"{reference.source} has no tokenizer to read text with. Put one into its folder, or do what needs no "
                "text: --align weights without --text, a method without statistics."
            )
        note = f"{reference.source} has no tokenizer: which axes move could not be chosen on text, so all asked for do"
        return (), None, (note,)
    text = read_calibration(entry.text, entry.text_column, entry.samples, seed)
    batches, cut = tokenise(load_tokenizer(reference.folder), text.samples, reference.config)
    return batches, text.source, (*text.notes, *cut)


def finite_tensors(checkpoint: Checkpoint) -> dict[str, Tensor]:
    """Return every tensor of a checkpoint, in float32 or better.

    Raises:
        CheckpointError: a tensor holds NaN or infinity.
    """
    return {name: finite(checkpoint, name) for name in checkpoint.tensors}


def finite(checkpoint: Checkpoint, name: str) -> Tensor:
    import torch

    tensor = checkpoint.tensor(name)
    if not tensor.is_floating_point():
        return tensor
    if not torch.isfinite(tensor).all():
        raise CheckpointError(f"{checkpoint.source}: {name} holds NaN or infinity. This model is broken; leave it out.")
    return tensor if tensor.dtype == torch.float64 else tensor.float()
