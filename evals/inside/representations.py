"""Representations of texts by one model: a matrix at each site, a row a text (mean of its tokens) or a row a token."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from evals.inside.rows import Rows, see_sites
from evals.inside.sites import Site
from evals.inside.sums import all_finite
from evals.inside.texts import BYTES, unpadded_batches
from merge.errors import TaskError
from merge.progress import track

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor

    from merge.checkpoints.inputs import Tokens

BY_TEXT, BY_TOKEN = "texts", "tokens"


@dataclass(frozen=True)
class Representation:
    """One site's rows; row k of two models belongs to the same text, or token."""

    site: Site
    values: Float[Tensor, "rows units"] = field(repr=False)


def represent(model: Any, tokens: Tokens, sites: Sequence[Site], by: str, label: str) -> list[Representation]:
    """Return the representation at every site, in one pass; float32, on the model's device.

    Memory is bounded by rows times the sum of the sites' widths times four bytes: nothing else remains of a batch.

    Args:
        sites: of `sites_of`; by token, none that is pooled.
        by: BY_TEXT, the mean over the tokens of a text; or BY_TOKEN.
    Raises:
        TaskError: an activation is not finite.
    """
    starts = torch.tensor((0, *tokens.lengths)).cumsum(0)[:-1].to(model.device)
    count = len(tokens.lengths) if by == BY_TEXT else sum(tokens.lengths)
    held: dict[str, Tensor] = {}
    for batch, texts in _batches(model, tokens, label):

        def see(site: Site, rows: Rows, texts: Tensor = texts) -> None:
            values = rows.values.float()
            if not all_finite(values):
                raise TaskError(f"{site.name} of {label} is not finite on these texts: the weights are broken.")
            out = held.setdefault(site.name, values.new_zeros(count, values.shape[1]))
            if by == BY_TEXT:
                lengths = torch.bincount(rows.texts, minlength=len(texts))[:, None]
                # In float64: the mean of what is the same at every token is that, of a text of any length.
                sums = values.new_zeros(len(texts), values.shape[1], dtype=torch.float64)
                out[texts] = (sums.index_add_(0, rows.texts, values.double()) / lengths).float()
            else:
                first = torch.searchsorted(rows.texts, torch.arange(len(texts), device=model.device))
                positions = torch.arange(len(values), device=model.device) - first[rows.texts]
                out[starts[texts[rows.texts]] + positions] = values

        see_sites(model, batch, sites, see)
    return [Representation(site, held[site.name]) for site in sites]


def _batches(model: Any, tokens: Tokens, label: str) -> Any:
    """Yield (batch, numbers of its texts)."""
    width = 16 * int(getattr(model.config, "hidden_size", 1024) or 1024) * BYTES
    encoded = unpadded_batches(tokens, width)
    for batch, rows in track(list(zip(encoded.batches, encoded.rows, strict=True)), f"running {label}"):
        yield batch, torch.tensor(rows, device=model.device)


def first_texts(tokens: Tokens, most: int) -> Tokens:
    """Return the first texts that have together at most so many tokens, at least one text."""
    from dataclasses import replace

    total, count = 0, 0
    for length in tokens.lengths:
        if count and total + length > most:
            break
        total, count = total + length, count + 1
    fields = {name: values[:total] for name, values in tokens.fields.items()}
    return replace(tokens, fields=fields, lengths=tokens.lengths[:count])
