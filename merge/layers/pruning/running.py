"""Run a checkpoint on calibration text, in float32."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from merge.checkpoints.checkpoint import Checkpoint, absent_pooler, without_absent_pooler
from merge.errors import CalibrationError
from merge.text.source import TextSource

if TYPE_CHECKING:
    from merge.checkpoints.inputs import Batch


def read_text_of(
    checkpoint: Checkpoint, source: TextSource, name: str
) -> tuple[tuple[Batch, ...], str, tuple[str, ...]]:
    """Return batches of the text, a phrase on it, and notes.

    Args:
        name: of the score that reads it, for messages.
    Raises:
        CalibrationError: the checkpoint cannot read text, or the text cannot be read.
    """
    from merge.text.calibrated import calibrate

    check_reads_text(checkpoint, name)
    text = calibrate(source, checkpoint, needed=True, matching=False)
    assert text.source is not None
    return text.batches, text.source, text.notes


def check_reads_text(checkpoint: Checkpoint, name: str) -> None:
    """Stop where a checkpoint has no tokenizer.

    Raises:
        CalibrationError: it has none.
    """
    if not checkpoint.has_tokenizer:
        raise CalibrationError(
            f"{checkpoint.source} has no tokenizer, which {name} needs to read text. Use --score weight-norm, or put one "
            "into its folder."
        )


def float_model(checkpoint: Checkpoint) -> Any:
    """Return the model of a checkpoint in float32."""
    import torch

    from merge.checkpoints.transformers_model import build

    encoder = checkpoint.encoder
    tensors = encoder.state_dict() | absent_pooler(encoder)
    written = {encoder.written_name(name): tensor for name, tensor in tensors.items()}
    return without_absent_pooler(encoder, in_own_memory(build(checkpoint.config, written, torch.float32)))


def in_own_memory(model: Any) -> Any:
    """Return the model with every weight in memory that torch has allocated, as torch aligns it.

    Matrix products are rounded otherwise where a weight begins at another address modulo 64 bytes, as in a mapped file.
    """
    import torch

    with torch.no_grad():
        for parameter in model.parameters():
            parameter.data = parameter.data.clone()
    return model
