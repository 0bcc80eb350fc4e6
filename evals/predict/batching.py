"""How rows share batches: padded, at one length, or each alone; measured on a probe of rows against one row at a time.

Some models read their padding (convolutions, Fourier transforms), some the rows beside (a maximum over the batch), some look
for the pad token or count positions from the padded end. None of that may decide a score, so the batches are the fullest whose
logits are those of one row at a time.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch

from evals.predict.forward import forward_logits
from merge.checkpoints.inputs import Encoded, Tokens, batch_tokens

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor

# A batch that has this share of its budget ends where texts get longer: measured faster than full batches with more padding.
MIN_BATCH_SHARE = 0.5
PROBE_ROWS = 4
# Largest difference of logits that is rounding, in units of the dtype's precision.
ROUNDING = 100

ONE_LENGTH = "{}: its logits depend on padding, so rows of one length are predicted together and none is padded"
ALONE = "{}: its logits depend on padding and on the rows beside, so each row is predicted alone"
NO_PAD = (
    "{}: its config names no pad_token_id, by which its head finds the end of a row, so each row is predicted alone"
)
OTHER_SIDE = (
    "{}: its tokenizer pads on the {}, where its logits change; padded on the {}, they are those of one row at a time"
)
RANDOM = "{}: its logits change from run to run (largest difference {:.2g} on one row): its code draws random numbers"


@dataclass(frozen=True)
class Probe:
    """Rows on which batches are tried, and their logits one at a time.

    Attributes:
        mixed: rows of several lengths; none where all have one.
        equal: two rows of one length; none where every length occurs once.
        alone: row -> its logits.
    """

    mixed: tuple[int, ...]
    equal: tuple[int, ...]
    alone: dict[int, Tensor]


def plan_batches(model: Any, tokens: Tokens, budget: int, source: str) -> Encoded:
    """Return batches of the rows in which a row has the logits that it has alone, and a note where they are not the usual.

    Args:
        budget: tokens in a batch, padding included.
        source: the model's name, for notes.
    Raises:
        TaskError: the model cannot predict a row alone.
    """
    mixed, equal = _mixed_lengths(tokens.lengths, budget), _equal_lengths(tokens.lengths, budget)
    padded = batch_tokens(tokens, budget, MIN_BATCH_SHARE)
    if not mixed and not equal:  # no two rows fit into one batch
        return padded
    with _exact(model) as exact, torch.inference_mode():
        probe = Probe(mixed, equal, {row: _logits(exact, tokens, (row,)) for row in (*mixed, *equal)})
        first = (*mixed, *equal)[0]
        change = float((_logits(exact, tokens, (first,)) - probe.alone[first]).abs().max())
        notes = () if change <= _rounding(probe.alone[first]) else (RANDOM.format(source, change),)
        encoded, note = _choose(exact, tokens, probe, budget, source)
    return replace(encoded, notes=(*notes, *note))


def _choose(model: Any, tokens: Tokens, probe: Probe, budget: int, source: str) -> tuple[Encoded, tuple[str, ...]]:
    """Return the fullest batches that agree with one row at a time, and what to tell the user of them."""
    other = replace(tokens, pad_left=not tokens.pad_left)
    if not probe.mixed and _agrees(model, tokens, probe.equal, probe):
        return batch_tokens(tokens, budget, 0), ()
    if probe.mixed and _agrees(model, tokens, probe.mixed, probe):
        return batch_tokens(tokens, budget, MIN_BATCH_SHARE), ()
    if probe.mixed and _agrees(model, other, probe.mixed, probe):
        sides = ("left", "right") if tokens.pad_left else ("right", "left")
        return batch_tokens(other, budget, MIN_BATCH_SHARE), (OTHER_SIDE.format(source, *sides),)
    if probe.mixed and probe.equal and _agrees(model, tokens, probe.equal, probe):
        return batch_tokens(tokens, budget, 0), (ONE_LENGTH.format(source),)
    no_pad = getattr(model.config, "pad_token_id", None) is None
    return batch_tokens(tokens, 0), ((NO_PAD if no_pad else ALONE).format(source),)


def _agrees(model: Any, tokens: Tokens, rows: Sequence[int], probe: Probe) -> bool:
    """Return whether rows have the same logits in one batch as one at a time, to the rounding of the dtype."""
    alone = torch.cat([probe.alone[row] for row in rows])
    try:
        together = _logits(model, tokens, rows)
    # Model code raises errors of many kinds for a batch that it does not take, such as ValueError without a pad token.
    except Exception:  # noqa: BLE001 (the row alone was predicted; the batch is not used)
        return False
    return together.shape == alone.shape and bool((together - alone).abs().max() <= _rounding(alone))


def _rounding(logits: Tensor) -> float:
    return ROUNDING * torch.finfo(logits.dtype).eps * max(1.0, float(logits.abs().max()))


def _logits(model: Any, tokens: Tokens, rows: Sequence[int]) -> Float[Tensor, "rows classes"]:
    """Return the logits of some rows in one batch, in the order of `rows`."""
    starts = torch.tensor(tokens.lengths).cumsum(0) - torch.tensor(tokens.lengths)
    of_rows = [slice(int(starts[row]), int(starts[row]) + tokens.lengths[row]) for row in rows]
    fields = {name: torch.cat([values[at] for at in of_rows]) for name, values in tokens.fields.items()}
    chosen = replace(tokens, fields=fields, lengths=tuple(tokens.lengths[row] for row in rows))
    encoded = batch_tokens(chosen, sum(chosen.lengths) * len(rows))
    logits = forward_logits(model, encoded.batches[0], [rows[k] for k in encoded.rows[0]])
    return logits[torch.tensor(encoded.rows[0]).argsort().to(logits.device)]


def _mixed_lengths(lengths: Sequence[int], budget: int) -> tuple[int, ...]:
    """Return rows from the shortest to the longest that may share a batch, PROBE_ROWS at most; none where all are equal."""
    first = {length: row for row, length in reversed(list(enumerate(lengths))) if 2 * length <= budget}
    ordered = sorted(first)
    if len(ordered) < 2:
        return ()
    count = min(PROBE_ROWS, len(ordered), budget // ordered[-1])
    return tuple(first[ordered[k * (len(ordered) - 1) // (count - 1)]] for k in range(count))


def _equal_lengths(lengths: Sequence[int], budget: int) -> tuple[int, ...]:
    """Return the first and the last row of the greatest length that occurs twice and may share a batch; none if there is none."""
    rows: dict[int, list[int]] = {}
    for row, length in enumerate(lengths):
        if 2 * length <= budget:
            rows.setdefault(length, []).append(row)
    longest = max((length for length, at in rows.items() if len(at) > 1), default=None)
    return () if longest is None else (rows[longest][0], rows[longest][-1])


@contextlib.contextmanager
def _exact(model: Any) -> Iterator[Any]:
    """Yield the model, as a copy in float32 where its own precision would hide differences."""
    yield model if torch.finfo(model.dtype).bits >= 32 else copy.deepcopy(model).float()
