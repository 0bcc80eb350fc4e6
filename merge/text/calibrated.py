"""Calibration text as batches of tokens for one model."""

from __future__ import annotations

from typing import TYPE_CHECKING

from merge.checkpoints.checkpoint import Checkpoint
from merge.errors import CalibrationError
from merge.text.source import TextSource

if TYPE_CHECKING:
    from merge.checkpoints.inputs import Batch


def calibrate(
    text_source: TextSource, reference: Checkpoint, needed: bool
) -> tuple[tuple[Batch, ...], str | None, tuple[str, ...]]:
    """Return calibration batches tokenised for the reference, a phrase on their source for reports, and notes.

    Raises:
        CalibrationError: the text cannot be read, or it is needed and the reference has no tokenizer.
    """
    from merge.checkpoints.inputs import load_tokenizer, tokenise
    from merge.text.calibration import read_calibration

    if not reference.has_tokenizer:
        if needed or text_source.source is not None:
            raise CalibrationError(
                f"{reference.source} has no tokenizer to read text with. Put one into its folder, or do what needs no "
                "text: --align weights without --text, a method without statistics."
            )
        note = f"{reference.source} has no tokenizer: which axes move could not be chosen on text, so all asked for do"
        return (), None, (note,)
    text = read_calibration(text_source)
    batches, cut = tokenise(load_tokenizer(reference.folder), text.samples, reference.config)
    return batches, text.source, (*text.notes, *cut)
