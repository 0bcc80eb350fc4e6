"""Masking words of the calibration text, for masked language models.

Such a model was trained to predict words that it does not see, and on plain text its predictions tell little. Measured
on ten pairs of small BERTs from different seeds, with seven candidates each: the divergence at masked words ranks
candidates as the loss of their midpoints does (Spearman .93 to 1.00), the divergence at all words of plain text does
not (-.89 to .93); and activations on masked text match better in nine of the ten.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from jaxtyping import Int
from torch import Tensor

from merge.alignment.pair import Pair
from merge.checkpoints.inputs import Batch, attended
from merge.errors import AlignmentError
from merge.text.masking import draw_words

# Of the chosen words 80 % are replaced by the mask token, the next 10 % by a random word; the rest are kept.
MASK_BELOW, RANDOM_BELOW = 0.8, 0.9
# The label of tokens without a loss, as in transformers.
IGNORED = -100


def with_masked_words(pair: Pair) -> Pair:
    """Return the pair with masked words in its text, if its models are masked language models.

    Other pairs are returned unchanged, and so is a pair that is masked already or has no mask token.

    Raises:
        AlignmentError: a batch holds no word.
    """
    if pair.text.scored or pair.text.mask_token is None or not is_masked_language_model(pair):
        return pair
    generator = torch.Generator().manual_seed(pair.settings.seed)
    kept, vocabulary = never_masked(pair, pair.text.mask_token), int(pair.config["vocab_size"])
    masked = [mask_words(batch, pair.text.mask_token, kept, vocabulary, generator) for batch in pair.batches]
    return replace(
        pair,
        batches=tuple(batch for batch, _ in masked),
        text=replace(pair.text, scored=tuple(target != IGNORED for _, target in masked)),
    )


def is_masked_language_model(pair: Pair) -> bool:
    """Return whether the models of a pair predict masked words."""
    return str((pair.config.get("architectures") or [""])[0]).endswith("ForMaskedLM")


def never_masked(pair: Pair, token: int) -> Int[Tensor, " special"]:
    """Return the tokens that are never masked: the special tokens of a text, and the mask itself."""
    return torch.tensor(sorted({*pair.text.special_tokens, token}))


def mask_words(
    batch: Batch, token: int, kept: Int[Tensor, " special"], vocabulary: int, generator: torch.Generator
) -> tuple[Batch, Int[Tensor, "texts length"]]:
    """Return a batch with 15 % of its words masked, at least one, and the labels: the original words.

    Args:
        token: the mask token.
        kept: tokens that are never masked.
        vocabulary: number of tokens that a random word is drawn from.
    Returns:
        The batch, and labels that hold the original word at each chosen position and IGNORED at all others.
    Raises:
        AlignmentError: the batch holds no word.
    Source: Devlin et al. 2019, arXiv:1810.04805, section 3.1.
    """
    ids = batch["input_ids"]
    words = attended(batch) & ~torch.isin(ids, kept)
    if not words.any():
        raise AlignmentError("a batch of the calibration text holds no word that could be masked. Give other text.")
    chosen = draw_words(words, generator)
    draw = torch.rand(len(chosen[0]), generator=generator)
    other = torch.randint(vocabulary, (len(chosen[0]),), generator=generator)
    original = ids[chosen]
    shown, labels = ids.clone(), torch.full_like(ids, IGNORED)
    shown[chosen] = torch.where(draw < MASK_BELOW, token, torch.where(draw < RANDOM_BELOW, other, original))
    labels[chosen] = original
    return {**batch, "input_ids": shown}, labels
