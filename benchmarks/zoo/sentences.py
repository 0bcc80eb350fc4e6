"""Labelled sentences and pairs: a vocabulary made from the text itself, training batches, and labelled rows to measure on."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from merge.checkpoints.inputs import Batch, encode
from zoo.training import Batches

SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
MAX_LENGTH = 48  # tokens of a text or pair


@dataclass(frozen=True)
class Examples:
    """Texts (text,) or (text, text_pair), the class of each, and the names of the classes."""

    texts: tuple[tuple[str, ...], ...]
    gold: tuple[int, ...]
    labels: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.texts)

    def part(self, start: int, end: int) -> Examples:
        """Return a run of the examples."""
        return Examples(self.texts[start:end], self.gold[start:end], self.labels)


def word_tokenizer(texts: Sequence[tuple[str, ...]]) -> Any:
    """Return a BERT tokenizer whose vocabulary is the words of the texts, and letters for others."""
    from transformers import BertTokenizer

    words = {word for text in texts for part in text for word in part.lower().split()}
    letters = sorted({letter for word in words for letter in word})
    entries = [*SPECIAL, *letters, *(f"##{letter}" for letter in letters), *sorted(words - set(letters))]
    return BertTokenizer(vocab={entry: i for i, entry in enumerate(entries)}, do_lower_case=True)


def padded(tokenizer: Any, texts: Sequence[tuple[str, ...]], longest: int = MAX_LENGTH) -> dict[str, Tensor]:
    """Return all texts as one padded batch, the longer ones cut."""
    columns = [list(column) for column in zip(*texts, strict=True)]
    encoded = tokenizer(*columns, padding=True, truncation=True, max_length=longest, return_tensors="pt")
    return dict(encoded)


def training_batches(tokenizer: Any, examples: Examples, rows: int) -> Batches:
    """Return a function that draws batches of random examples, each as wide as its longest text."""
    inputs, gold = padded(tokenizer, examples.texts), torch.tensor(examples.gold)

    def draw(generator: torch.Generator) -> Iterator[Mapping[str, Tensor]]:
        while True:
            chosen = torch.randint(len(gold), (rows,), generator=generator)
            width = int(inputs["attention_mask"][chosen].sum(1).max())
            yield {name: tensor[chosen, :width] for name, tensor in inputs.items()} | {"labels": gold[chosen]}

    return draw


def labelled_rows(tokenizer: Any, examples: Examples) -> tuple[Batch, ...]:
    """Return all examples in batches of like length, with their labels."""
    encoded, gold = encode(tokenizer, examples.texts, MAX_LENGTH), torch.tensor(examples.gold)
    return tuple(
        {**batch, "labels": gold[list(rows)]} for batch, rows in zip(encoded.batches, encoded.rows, strict=True)
    )
