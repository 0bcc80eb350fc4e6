"""Calibration text as batches of tokens for one model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, NamedTuple

from merge.checkpoints.checkpoint import Checkpoint
from merge.errors import CalibrationError
from merge.text.source import TextSource

if TYPE_CHECKING:
    from merge.checkpoints.inputs import Batch


_NUMBERS = "reads rows of numbers, and no text was given: one row a line, its numbers with blanks between them"


class Calibrated(NamedTuple):
    """Calibration text, tokenised.

    Attributes:
        batches: of the texts; none without a tokenizer.
        source: a phrase for reports; None without text.
        notes: for the user.
        shares: class, as the text names it -> its share in the text.
    """

    batches: tuple[Batch, ...]
    source: str | None
    notes: tuple[str, ...]
    shares: Mapping[str, float]


def calibrate(text_source: TextSource, reference: Checkpoint, needed: bool, matching: bool = True) -> Calibrated:
    """Return calibration text tokenised for the reference.

    Args:
        needed: whether the text is; else nothing is read without a tokenizer.
        matching: whether units are matched on it, as in `read_calibration`.
    Raises:
        CalibrationError: the text cannot be read, or it is needed and the reference has no tokenizer.
    """
    from merge.checkpoints.inputs import load_tokenizer, tokenise
    from merge.text.calibration import read_calibration

    if reference.model_type == "mlp" and text_source.source is None:
        if needed:
            raise CalibrationError(f"{reference.source} {_NUMBERS}. Give such rows (--text FILE), or --align weights.")
        return Calibrated((), None, (f"{reference.source} {_NUMBERS}; so all axes that were asked for move",), {})
    if not reference.has_tokenizer:
        if needed or text_source.source is not None:
            raise CalibrationError(
                f"{reference.source} has no tokenizer to read text with. Put one into its folder, or do what needs no "
                "text: --align weights without --text, a method without statistics."
            )
        note = f"{reference.source} has no tokenizer: which axes move could not be chosen on text, so all asked for do"
        return Calibrated((), None, (note,), {})
    text = read_calibration(text_source, matching)
    batches, cut = tokenise(load_tokenizer(reference.folder), text.samples, reference.config)
    return Calibrated(batches, text.source, (*text.notes, *cut), text.shares)
