"""Read the text of an alignment: calibration texts as batches of tokens, with their labels where a column is named."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from merge.alignment.matchers import ALIGNERS
from merge.alignment.settings import AlignEntry
from merge.checkpoints.checkpoint import Checkpoint
from merge.errors import CalibrationError
from merge.text.calibrated import calibrate
from merge.text.labelled import draw_examples, gold_of

if TYPE_CHECKING:
    from torch import Tensor

    from merge.checkpoints.inputs import Batch


@dataclass(frozen=True)
class AlignmentText:
    """The text of an alignment.

    Attributes:
        batches: calibration texts, tokenised for the reference; none without a tokenizer.
        source: the file or data set of the text; None without.
        notes: sentences for the user.
        labels: for each batch the class of each text, by its index in the reference's logits; empty without a label column.
        mask_token: the mask token of a masked language model's tokenizer; None without.
        special_tokens: the tokens that frame a text.
        shares: class, as the text names it -> its share in the text.
    """

    batches: tuple[Batch, ...] = ()
    source: str | None = None
    notes: tuple[str, ...] = ()
    labels: tuple[Tensor, ...] = ()
    mask_token: int | None = None
    special_tokens: tuple[int, ...] = ()
    shares: Mapping[str, float] = field(default_factory=dict)


NO_TEXT = AlignmentText()


def read_alignment_text(settings: AlignEntry, seed: int, reference: Checkpoint) -> AlignmentText:
    """Return the text of an alignment, with its labels where a column of them is named.

    Raises:
        CalibrationError: the text cannot be read, or it is needed and there is no tokenizer to read it with.
        MismatchError: a label is no class of the reference.
    """
    if settings.label_column is not None:
        return _with_labels(settings, settings.label_column, seed, reference)
    needed = settings.by in ALIGNERS and ALIGNERS[settings.by].reads_text
    # An alignment that is applied matches nothing: the text is for its proof.
    text = calibrate(settings.text_source(seed), reference, needed, matching=settings.apply is None)
    source, notes = text.source, text.notes
    if not text.batches or not reference.architecture.endswith("ForMaskedLM"):
        return AlignmentText(text.batches, source, notes, shares=text.shares)
    from merge.checkpoints.inputs import load_tokenizer

    tokenizer = load_tokenizer(reference.folder)
    token = tokenizer.mask_token_id
    if token is None:
        notes = (*notes, f"{reference.source}'s tokenizer has no mask token: {_UNMASKED}")
    elif settings.apply is None:
        source = f"{source}, with words masked"
    return AlignmentText(text.batches, source, notes, (), token, tuple(sorted(tokenizer.all_special_ids)))


_UNMASKED = "the text is read as it stands, though the model was trained to tell masked words"


def _with_labels(settings: AlignEntry, column: str, seed: int, reference: Checkpoint) -> AlignmentText:
    import torch

    from merge.checkpoints.inputs import MAX_LENGTH, check_ids, encode, load_tokenizer, positions

    if settings.text is None:
        raise CalibrationError(
            f"label_column {column!r} names the labels of a text, and no text is given. Add text: train.jsonl."
        )
    if not reference.has_tokenizer:
        raise CalibrationError(f"{reference.source} has no tokenizer to read text with. Put one into its folder.")
    examples = draw_examples(settings.text_source(seed), column)
    gold = torch.tensor(gold_of(examples, reference))
    longest = min(MAX_LENGTH, positions(reference.config))
    encoded = encode(load_tokenizer(reference.folder), examples.texts, longest)
    check_ids(encoded.batches, reference.config)
    cut = f"{encoded.cut} of {len(gold)} calibration texts are longer than {longest} tokens; only their start is read"
    labels = tuple(gold[list(rows)] for rows in encoded.rows)
    notes = (*examples.notes, *([cut] if encoded.cut else []))
    return AlignmentText(encoded.batches, f"{examples.source}, labels {column}", notes, labels)
