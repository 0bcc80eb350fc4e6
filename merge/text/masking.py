"""Masked words: which words of a text a masked language model has to predict, as BERT was trained."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch
    from jaxtyping import Bool, Int
    from torch import Tensor

MASKED_SHARE = 0.15


def draw_words(
    words: Bool[Tensor, "texts length"], generator: torch.Generator
) -> tuple[Int[Tensor, " drawn"], Int[Tensor, " drawn"]]:
    """Return (texts, positions) of 15 % of the words, rounded and at least one, drawn from all texts together.

    Args:
        words: which tokens are words; at least one is.
    Source: Devlin et al. 2019, arXiv:1810.04805, section 3.1.
    """
    import torch

    places = words.nonzero()
    count = max(1, round(MASKED_SHARE * len(places)))
    texts, positions = places[torch.randperm(len(places), generator=generator)[:count]].unbind(1)
    return texts, positions


def draw_words_of_each_text(
    words: Bool[Tensor, "texts length"], generator: torch.Generator
) -> Bool[Tensor, "texts length"]:
    """Return which words are drawn: 15 % of those of each text, rounded and at least one where it has any."""
    import torch

    counts = (words.sum(1, keepdim=True) * MASKED_SHARE).round().clamp_min(1.0)
    draws = torch.rand(words.shape, generator=generator).masked_fill(~words, 2.0)
    ranks = draws.argsort(dim=1, stable=True).argsort(1)
    return words & (ranks < counts)
