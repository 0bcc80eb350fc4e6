"""Two trained models as the pair that an aligner takes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from merge.alignment.pair import Pair, TextFacts
from merge.checkpoints.checkpoint import finite_tensors
from merge.checkpoints.inputs import Batch
from merge.checkpoints.open import open_checkpoint
from merge.symmetry.architectures import spec_for


def open_pair(
    a: Path, b: Path, batches: Sequence[Batch], mask: int | None = None, special: tuple[int, ...] = ()
) -> Pair:
    """Return the models of two folders as a pair, with the text it is aligned on.

    Args:
        mask: the mask token of a masked language model.
        special: tokens that are never masked.
    """
    first, second = open_checkpoint(str(a)), open_checkpoint(str(b))
    return Pair(
        spec_for(first.config),
        finite_tensors(first),
        finite_tensors(second),
        first.config,
        first.written_name,
        tuple(batches),
        text=TextFacts(mask_token=mask, special_tokens=special),
    )
