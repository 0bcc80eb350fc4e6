"""Character-level text from the HANS grammar, generated from a seed, so that a benchmark needs no data.

The sentences are simple English with about two hundred words, which a model of a hundred thousand weights learns in a
minute. The last tenth is held out.
"""

from __future__ import annotations

import math
import random
from collections import Counter
from dataclasses import dataclass
from itertools import pairwise

import torch
from jaxtyping import Int
from torch import Tensor

IGNORED = -100  # the label without a loss in transformers
MASKED_SHARE = 0.15
HELD_OUT = 0.1


@dataclass(frozen=True)
class Characters:
    """A text as character ids.

    Attributes:
        alphabet: the characters in order of their ids; the next id is the mask.
        train, held_out: ids of the text's first nine tenths and of the rest.
        length: number of characters that a model reads at once.
    """

    alphabet: str
    train: Int[Tensor, " n"]
    held_out: Int[Tensor, " m"]
    length: int

    @property
    def mask(self) -> int:
        return len(self.alphabet)

    def plain(self, rows: int, generator: torch.Generator, held_out: bool = False) -> Int[Tensor, "rows length"]:
        """Return windows of the text from random positions."""
        text = self.held_out if held_out else self.train
        starts = torch.randint(len(text) - self.length, (rows,), generator=generator)
        return text[starts[:, None] + torch.arange(self.length)]

    def rows(self, kind: str, rows: int, generator: torch.Generator, held_out: bool = False) -> dict[str, Tensor]:
        """Return inputs and labels for a model of this kind: "bert" masked, "gpt2" plain."""
        window = self.plain(rows, generator, held_out)
        if kind == "gpt2":
            return with_mask(window) | {"labels": window}
        inputs, labels = masked(window, self.mask, generator)
        return with_mask(inputs) | {"labels": labels}

    def unigram_loss(self) -> float:
        """Return the loss on the held-out text of a predictor that knows the frequency of each character alone."""
        counts = Counter(self.train.tolist())
        return -sum(math.log(counts[i] / len(self.train)) for i in self.held_out.tolist()) / len(self.held_out)

    def bigram_loss(self) -> float:
        """Return the loss on the held-out text of a predictor that also knows the previous character (add-one counts)."""
        text, test = self.train.tolist(), self.held_out.tolist()
        counts, pairs = Counter(text), Counter(pairwise(text))
        after = [(pairs[pair] + 1) / (counts[pair[0]] + len(self.alphabet)) for pair in pairwise(test)]
        return -sum(map(math.log, after)) / len(after)


def with_mask(inputs: Tensor) -> dict[str, Tensor]:
    """Return the batch of inputs without padding."""
    return {"input_ids": inputs, "attention_mask": torch.ones_like(inputs)}


def masked(
    inputs: Int[Tensor, "rows length"],
    mask: int,
    generator: torch.Generator,
    maskable: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Return the inputs with 15 % of their tokens replaced by the mask, and the labels: the tokens there.

    Args:
        maskable: which tokens may be masked; all of them if None.
    """
    chosen = torch.rand(inputs.shape, generator=generator) < MASKED_SHARE
    if maskable is not None:
        chosen &= maskable
    return inputs.masked_fill(chosen, mask), inputs.masked_fill(~chosen, IGNORED)


def hans_characters(length: int, per_subcase: int = 600, seed: int = 0) -> Characters:
    """Return the sentences of the HANS grammar's training half in random order, as characters."""
    from evals.heuristics.grammar import generate

    pairs = generate(per_subcase=per_subcase, seed=seed, half="train")
    sentences = sorted({sentence for pair in pairs for sentence in (pair.premise, pair.hypothesis)})
    random.Random(seed).shuffle(sentences)
    text = " ".join(sentences)
    alphabet = "".join(sorted(set(text)))
    ids = {character: i for i, character in enumerate(alphabet)}
    tensor = torch.tensor([ids[character] for character in text])
    cut = int((1 - HELD_OUT) * len(tensor))
    return Characters(alphabet, tensor[:cut], tensor[cut:], length)
