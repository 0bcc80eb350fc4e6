"""Lessons: what a model half way between two others is asked, and how far off its answer is.

    labels                  cross-entropy of the texts' classes
    masked language model   cross-entropy of masked words: 15 % of a batch, 80/10/10 mask, random word, the word itself
    causal language model   cross-entropy of the next token
    any other               KL from the ensemble of the two endpoints to the midpoint, `merge.alignment.midpoint`: no labels

One text in four is held out: it is asked about, and never learned from.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from merge.alignment.masking import IGNORED, is_masked_language_model, mask_words, never_masked
from merge.alignment.midpoint import FEATURES, divergence, outputs_of
from merge.alignment.pair import Pair, in_dtype
from merge.checkpoints.hooks import token_mask
from merge.checkpoints.inputs import Batch, attended
from merge.errors import AlignmentError
from merge.symmetry.transform import Transform, apply_transform

HELD_OUT = 4
CAUSAL = ("ForCausalLM", "LMHeadModel")


@dataclass(frozen=True)
class Example:
    """A few texts as the model reads them, and what it is held to."""

    inputs: Batch
    target: Any


# Batch and rows of it -> an example; whatever is random in it comes from the generator.
Draw = Callable[[int, Int[Tensor, " rows"], torch.Generator], Example]


@dataclass(frozen=True)
class Lesson:
    """What is asked.

    Attributes:
        name: of the loss, for messages.
        draw: makes an example.
        loss: what a model gives back, and the example -> (summed loss, answers).
    """

    name: str
    draw: Draw
    loss: Callable[[Any, Example], tuple[Tensor, int]]


def lesson_of(pair: Pair, start: Transform) -> Lesson:
    """Return what the midpoint of a pair is asked: its labels, words or tokens where it has such a head, else no labels.

    Args:
        start: what b is moved by, and so those of its outputs that lie on a moved axis.
    Raises:
        AlignmentError: labels do not fit the model, or its words cannot be masked.
    """
    architecture = str((pair.config.get("architectures") or [""])[0])
    if pair.text.labels:
        return _labelled(pair, architecture)
    if is_masked_language_model(pair):
        return _masked(pair, architecture)
    model = pair.model(pair.a)
    if architecture.endswith(CAUSAL) and is_causal(model, _rows(pair.batches[-1], torch.arange(1))):
        return Lesson("next tokens", lambda k, rows, _: _next(_rows(pair.batches[k], rows)), _word_loss(shift=1))
    return _unlabelled(pair, model, start)


def split(batches: Sequence[Batch]) -> tuple[list[Tensor], list[Tensor]]:
    """Return for every batch the rows to learn from, and those held out: each fourth text, counted through all batches.

    Raises:
        AlignmentError: there are fewer than four texts.
    """
    learned, held, seen = [], [], 0
    for batch in batches:
        rows = torch.arange(_count(batch))
        out = (rows + seen) % HELD_OUT == HELD_OUT - 1
        learned.append(rows[~out])
        held.append(rows[out])
        seen += len(rows)
    if seen < HELD_OUT:
        raise AlignmentError(
            f"learned alignment holds out one text in {HELD_OUT}; found {seen} texts. Give it more text."
        )
    return learned, held


def is_causal(model: Any, batch: Batch) -> bool:
    """Return whether what a model says of a place depends on no later one: a decoder, not an encoder with such a head."""
    ids = batch["input_ids"]
    length = int(attended(batch).sum(1).max())
    other = ids.clone()
    other[:, length - 1] = (ids[:, length - 1] + 1) % int(model.get_input_embeddings().num_embeddings)
    with torch.inference_mode():
        one, two = (model(**{**batch, "input_ids": x}).logits[:, : length - 1] for x in (ids, other))
    return length > 1 and torch.allclose(one, two, rtol=0.0, atol=1e-5 * float(one.std()))


def _count(batch: Batch) -> int:
    return len(next(iter(batch.values())))


def _rows(batch: Batch, rows: Tensor) -> Batch:
    return in_dtype({name: tensor[rows] for name, tensor in batch.items()}, torch.float32)


def _labelled(pair: Pair, architecture: str) -> Lesson:
    if not architecture.endswith("ForSequenceClassification") or "logits" not in pair.spec.outputs:
        raise AlignmentError(
            f"labels of texts are learned by sequence classifiers; this is a {architecture or 'model without a head'}. "
            "Leave the labels out (label_column): it is aligned without."
        )
    sizes = [(_count(batch), len(labels)) for batch, labels in zip(pair.batches, pair.text.labels, strict=True)]
    if any(texts != labels for texts, labels in sizes):
        raise AlignmentError(f"every text needs one label; the batches have (texts, labels) {sizes}.")

    def draw(k: int, rows: Tensor, _: torch.Generator) -> Example:
        return Example(_rows(pair.batches[k], rows), pair.text.labels[k][rows])

    def loss(output: Any, example: Example) -> tuple[Tensor, int]:
        logits, count = output["logits"].float(), len(example.target)
        if logits.shape[-1] < 2 or int(example.target.max()) >= logits.shape[-1]:
            raise AlignmentError(
                f"the model tells {logits.shape[-1]} classes apart, and a text's label is class {int(example.target.max())}."
            )
        return torch.nn.functional.cross_entropy(logits, example.target, reduction="sum"), count

    return Lesson("labels", draw, loss)


def _masked(pair: Pair, architecture: str) -> Lesson:
    token = pair.text.mask_token
    if token is None:
        raise AlignmentError(
            f"learned alignment of a {architecture} masks words, and no mask token is known. Put a tokenizer that has one "
            "into the reference's folder, or use --align activations."
        )
    vocabulary = int(pair.config["vocab_size"])
    frame = never_masked(pair, token)

    def draw(k: int, rows: Tensor, generator: torch.Generator) -> Example:
        return Example(*mask_words(_rows(pair.batches[k], rows), token, frame, vocabulary, generator))

    return Lesson("masked words", draw, _word_loss(shift=0))


def _next(batch: Batch) -> Example:
    return Example(batch, batch["input_ids"].masked_fill(~attended(batch), IGNORED))


def _word_loss(shift: int) -> Callable[[Any, Example], tuple[Tensor, int]]:
    """Return the loss of words `shift` places behind where they are told."""

    def loss(output: Any, example: Example) -> tuple[Tensor, int]:
        target = example.target[:, shift:]
        asked = target != IGNORED
        logits = output["logits"][:, : target.shape[1]][asked].float()
        return torch.nn.functional.cross_entropy(logits, target[asked], reduction="sum"), len(logits)

    return loss


def _unlabelled(pair: Pair, a: Any, start: Transform) -> Lesson:
    """Return the lesson of `agreement`: what the endpoints say together."""
    b = pair.model(apply_transform(pair.spec, start, pair.b))

    def draw(k: int, rows: Tensor, _: torch.Generator) -> Example:
        inputs = _rows(pair.batches[k], rows)
        with torch.no_grad():
            return Example(inputs, (outputs_of(pair, a(**inputs)), outputs_of(pair, b(**inputs))))

    def loss(output: Any, example: Example) -> tuple[Tensor, int]:
        said_a, said_b = example.target
        value, count, _ = divergence(said_a, said_b, outputs_of(pair, output), token_mask(example.inputs))
        return value, count

    shown = any(name in pair.spec.outputs for name in FEATURES)
    return Lesson("hidden states" if shown else "answers of the endpoints", draw, loss)
