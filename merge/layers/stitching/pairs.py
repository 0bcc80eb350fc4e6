"""States of two models at the same tokens of a text: rows for the fit of a map, streamed batch by batch.

Models of one tokenizer read the same batches. Of two tokenizers, tokens are matched by the characters that they cover: a text
is cut wherever a token of both ends, and the states of each piece are averaged in either model. Special tokens are matched in
their order.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from merge.checkpoints.checkpoint import Checkpoint
from merge.checkpoints.inputs import MAX_LENGTH, load_tokenizer, positions, tokenise
from merge.checkpoints.tokenizers.tokenizer import reading_texts
from merge.errors import CalibrationError
from merge.layers.activations import LiveLayers, split_batches, states_of
from merge.progress import track
from merge.text.calibration import read_calibration
from merge.text.source import TextSource

if TYPE_CHECKING:
    from merge.checkpoints.inputs import Batch

# A state of A, the state of B at the same tokens, and whether the text is held out.
Rows = tuple[Tensor, Tensor, bool]
# Returns the rows of a state of a model on a batch.
Reader = Callable[[LiveLayers, "Batch", int], Tensor]
EVERY = 5  # one text in so many is held out


@dataclass(frozen=True)
class StitchText:
    """The text of a fit.

    Attributes:
        samples: the texts.
        batches: as the bottom model reads them.
        source: a phrase for reports.
        notes: for the user.
    """

    samples: tuple[tuple[str, ...], ...]
    batches: tuple[Batch, ...]
    source: str
    notes: tuple[str, ...]


def read_text(bottom: Checkpoint, source: TextSource) -> StitchText:
    """Return a text, tokenised for the bottom model.

    Raises:
        CalibrationError: it cannot be read, or the model has no tokenizer.
    """
    text = read_calibration(source, matching=False)
    batches, cut = tokenise(load_tokenizer(bottom.folder), text.samples, bottom.config)
    return StitchText(text.samples, batches, text.source, (*text.notes, *cut))


def state_of(live: LiveLayers, batch: Batch, state: int) -> Tensor:
    """Return the rows of one state as the next layer reads it."""
    return states_of(live, batch, [state])[state]


AS_READ: tuple[Reader, Reader] = (state_of, state_of)


def same_tokens(
    live: tuple[LiveLayers, LiveLayers],
    at: tuple[int, int],
    batches: Sequence[Batch],
    readers: tuple[Reader, Reader] = AS_READ,
) -> Iterator[Rows]:
    """Yield the states of two models that read the same tokens, a row for each token that is not padding."""
    for batch, held in track(list(split_batches(tuple(batches))), "reading states"):
        x, y = (read(model, batch, state) for read, model, state in zip(readers, live, at, strict=True))
        yield x, y, held


def matched_tokens(
    models: tuple[Checkpoint, Checkpoint],
    live: tuple[LiveLayers, LiveLayers],
    at: tuple[int, int],
    text: StitchText,
    readers: tuple[Reader, Reader] = AS_READ,
) -> Iterator[Rows]:
    """Yield the states of two models with tokenizers of their own, a row for each piece that tokens of both make up.

    Raises:
        CalibrationError: a tokenizer does not say which characters its tokens cover.
    """
    tokenizers = [load_tokenizer(model.folder) for model in models]
    for model, tokenizer in zip(models, tokenizers, strict=True):
        if not tokenizer.is_fast:
            raise CalibrationError(
                f"{model.source}: its tokenizer ({type(tokenizer).__name__}) does not say which characters a token covers. "
                "Tokens are matched by offsets only with a tokenizer.json."
            )
    longest = min(MAX_LENGTH, *(positions(model.config) for model in models))
    for number, sample in enumerate(track(list(text.samples), "reading states")):
        sides = [_tokenised(tokenizer, sample, longest) for tokenizer in tokenizers]
        pieces = matched_pieces(*(spans for spans, _ in sides))
        if pieces:
            states = [
                read(model, batch, state)
                for read, model, state, (_, batch) in zip(readers, live, at, sides, strict=True)
            ]
            x, y = (torch.stack([states[side][list(piece[side])].mean(0) for piece in pieces]) for side in range(2))
            yield x, y, number % EVERY == EVERY - 1


def _tokenised(tokenizer: Any, sample: tuple[str, ...], longest: int) -> tuple[list[tuple[int, int, int]], Batch]:
    """Return of every token which text of a pair it is in and its characters, and the batch of this one sample."""
    with reading_texts(tokenizer.name_or_path):
        encoded = tokenizer(
            *sample, truncation=True, max_length=longest, return_offsets_mapping=True, return_special_tokens_mask=True
        )
    special = encoded.pop("special_tokens_mask")
    offsets = encoded.pop("offset_mapping")
    parts = encoded.sequence_ids()
    batch = {name: torch.tensor([values]) for name, values in encoded.items()}
    spans = [
        (-1, 0, 0) if part is None or marked else (part, *span)
        for part, span, marked in zip(parts, offsets, special, strict=True)
    ]
    return spans, batch


def matched_pieces(
    a: Sequence[tuple[int, int, int]], b: Sequence[tuple[int, int, int]]
) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
    """Return which tokens of both sides make up the same characters, in order.

    Args:
        a, b: (text of a pair, first character, end) of each token; (-1, 0, 0) for special tokens.
    """
    left, right = _pieces(a), _pieces(b)
    ends = [{(part, end) for part, end, _ in side if part >= 0} for side in (left, right)]
    common = ends[0] & ends[1]
    merged = [_merged(side, common) for side in (left, right)]
    kept = [piece for piece in merged[0] if piece in merged[1]]
    return [(merged[0][piece], merged[1][piece]) for piece in kept]


def _pieces(tokens: Sequence[tuple[int, int, int]]) -> list[tuple[int, int, int]]:
    """Return (text, end, token) of every token that covers characters, and (-1, n, token) for the nth special one."""
    pieces, specials = [], 0
    for number, (part, start, end) in enumerate(tokens):
        if part < 0:
            pieces.append((-1, specials, number))
            specials += 1
        elif end > start:
            pieces.append((part, end, number))
    return pieces


def _merged(
    pieces: Sequence[tuple[int, int, int]], common: set[tuple[int, int]]
) -> dict[tuple[int, int], tuple[int, ...]]:
    """Return (text, end) -> tokens since the last end that both sides have; (-1, n) -> the nth special token."""
    merged: dict[tuple[int, int], tuple[int, ...]] = {}
    waiting: list[int] = []
    for part, end, token in pieces:
        if part < 0:
            waiting = []
            merged[-1, end] = (token,)
            continue
        waiting.append(token)
        if (part, end) in common:  # several tokens end there where each is some bytes of a character
            merged[part, end] = (*merged.get((part, end), ()), *waiting)
            waiting = []
    return merged
