"""Texts as batches without padding, of as many tokens as the memory for activations allows."""

from __future__ import annotations

from typing import TYPE_CHECKING

from evals.predict.tokens import tokenise_rows
from evals.tasks.task import Rows
from merge.checkpoints.inputs import Encoded, Tokens, batch_tokens

if TYPE_CHECKING:
    from merge.checkpoints.checkpoint import Checkpoint
    from merge.text.source import TextSource

# Of the activations of one batch that are kept at a time, at all sites and of all models together.
ACTIVATION_BYTES = 1 << 28
BYTES = 4  # of an activation
# More tokens in a batch are no faster on a CPU.
MAX_BATCH_TOKENS = 1024


def text_rows(source: TextSource) -> tuple[Rows, tuple[str, ...]]:
    """Return texts without labels as rows, and notes for the user.

    Raises:
        CalibrationError: they cannot be read.
    """
    from merge.text.calibration import read_calibration

    text = read_calibration(source, matching=False)
    return Rows(text.samples, (), (), text.source, "text", ()), text.notes


def unpadded_batches(tokens: Tokens, bytes_a_token: int = 0) -> Encoded:
    """Return batches of texts of one length each, so that nothing is padded.

    Args:
        bytes_a_token: of the activations that are kept; batches are so small that they fit into ACTIVATION_BYTES, down to one
            text.
    """
    budget = min(MAX_BATCH_TOKENS, ACTIVATION_BYTES // max(bytes_a_token, 1))
    return batch_tokens(tokens, max(budget, 1), even=0)


def tokens_of(checkpoint: Checkpoint, rows: Rows, max_length: int | None = None, cache: bool = True) -> Tokens:
    """Return rows as tokens of a checkpoint's tokenizer.

    Raises:
        TaskError: it has no tokenizer, or one of another model.
    """
    return tokenise_rows(checkpoint, rows, cache, max_length)
