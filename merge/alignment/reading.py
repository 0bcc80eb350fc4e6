"""Material: what alignments and statistics read, calibration text as batches and tensors that are finite."""

from __future__ import annotations

from dataclasses import dataclass
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
class Material:
    """What an alignment reads.

    Attributes:
        batches: calibration text, tokenised for the reference; none without a tokenizer.
        source: where the text came from.
        notes: on both.
        labels: for each batch the class of each text, by its place in the reference's logits; empty where none was asked for.
        mask_token: of the reference's tokenizer, for what masks words; None without.
        special_tokens: those that frame a text.
    """

    batches: tuple[Batch, ...]
    source: str | None
    notes: tuple[str, ...]
    labels: tuple[Tensor, ...] = ()
    mask_token: int | None = None
    special_tokens: tuple[int, ...] = ()


def read_material(entry: AlignEntry, seed: int, reference: Checkpoint) -> Material:
    """Return what an alignment reads: text, with its labels where a column of them is named.

    Raises:
        CalibrationError: the text cannot be read, or it is needed and there is no tokenizer to read it with.
        MismatchError: a label is no class of the reference.
    """
    if entry.label_column is not None:
        return _with_labels(entry, entry.label_column, seed, reference)
    needed = entry.by in ALIGNERS and ALIGNERS[entry.by].reads_text
    batches, source, notes = calibrate(entry.text_source(seed), reference, needed)
    if not batches or not reference.architecture.endswith("ForMaskedLM"):
        return Material(batches, source, notes)
    from merge.checkpoints.inputs import load_tokenizer

    tokenizer = load_tokenizer(reference.folder)
    token = tokenizer.mask_token_id
    if token is None:
        notes = (*notes, f"{reference.source}'s tokenizer has no mask token: {_UNMASKED}")
    elif entry.apply is None:
        source = f"{source}, with words masked"
    return Material(batches, source, notes, (), token, tuple(sorted(tokenizer.all_special_ids)))


_UNMASKED = "the text is read as it stands, though the model was trained to tell masked words"


def _with_labels(entry: AlignEntry, column: str, seed: int, reference: Checkpoint) -> Material:
    import torch

    from merge.checkpoints.inputs import MAX_LENGTH, check_ids, encode, load_tokenizer, positions

    if entry.text is None:
        raise CalibrationError(
            f"label_column {column!r} names the labels of a text, and no text is given. Add text: train.jsonl."
        )
    if not reference.has_tokenizer:
        raise CalibrationError(f"{reference.source} has no tokenizer to read text with. Put one into its folder.")
    examples = draw_examples(entry.text, entry.text_column, column, entry.samples, seed)
    gold = torch.tensor(gold_of(examples, reference))
    longest = min(MAX_LENGTH, positions(reference.config))
    encoded = encode(load_tokenizer(reference.folder), examples.texts, longest)
    check_ids(encoded.batches, reference.config)
    cut = f"{encoded.cut} of {len(gold)} calibration texts are longer than {longest} tokens; only their start is read"
    labels = tuple(gold[list(rows)] for rows in encoded.rows)
    notes = (*examples.notes, *([cut] if encoded.cut else []))
    return Material(encoded.batches, f"{examples.source}, labels {column}", notes, labels)


def absent_pooler(checkpoint: Checkpoint) -> dict[str, Tensor]:
    """Return zeros for the pooler that transformers gives a base model which was stored without one."""
    import torch

    shapes = {checkpoint.canonical_name(name): shape for name, shape in checkpoint.structure.shapes.items()}
    return {n: torch.zeros(s) for n, s in shapes.items() if n not in checkpoint.tensors and ".pooler." in n}
