"""Rewrites: how the weights of a family can be changed without changing its function, whatever they are.

A rewrite is no symmetry of the table: it moves no units. It removes freedom that the outputs cannot show, so that two
models are compared by what counts (`merge.symmetry.canonical` does it). Each family's file states its own; the empty
record claims nothing, which is right wherever a claim is not proved: rotary and relative positions make the key bias
count, gated convolutions and heads that are mixed with one another the value bias.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Rewrites:
    """Modules of a family, each by the end of its path, and the freedom that their weights have.

    Attributes:
        keys: the modules that make keys. Their bias b adds q . b to every score of a query q: softmax ignores a
            constant.
        values: module that makes values -> module that reads what the heads gather. The weights of attention sum to
            one, so a bias of the values is a bias of the reader.
        writers: modules whose outputs reach LayerNorms alone. A LayerNorm subtracts the mean over the units, so the
            mean of what they write is free.
        tables: embedding tables of which the same holds; word embeddings only where no decoder reads them.
        norms: norm -> the modules beside it that are all that reads it; they can take over its gain.
        last: the norm at the end of the residual stream, which the task head reads; None where the gains of the norms
            cannot be folded away.
    """

    keys: tuple[str, ...] = ()
    values: Mapping[str, str] = field(default_factory=dict)
    writers: tuple[str, ...] = ()
    tables: tuple[str, ...] = ()
    norms: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    last: str | None = None


NO_REWRITES = Rewrites()
