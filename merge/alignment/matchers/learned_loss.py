"""Training losses of learned alignment, of a model between two others.

    labels                  cross-entropy of the texts' classes
    masked language model   cross-entropy of masked words: 15 % of a batch, 80/10/10 mask, random word, the word itself
    causal language model   cross-entropy of the next token
    any other               KL from the ensemble of the two endpoints to the model, `merge.alignment.midpoint`: no labels

One text in four is held out: the loss on it is measured, and never learned from.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from merge.alignment.divergence import FEATURES, divergence, outputs_of
from merge.alignment.masking import IGNORED, is_masked_language_model, mask_words, never_masked
from merge.alignment.midpoint import EndpointOutputs
from merge.alignment.pair import Pair, in_dtype
from merge.checkpoints.hooks import token_mask
from merge.checkpoints.inputs import Batch, attended
from merge.errors import AlignmentError
from merge.symmetry.spec import parse
from merge.symmetry.transform import Transform, apply_transform_axes

# One text in so many is held out.
HELD_OUT = 4
# Endings of architectures that may predict the next token.
CAUSAL = ("ForCausalLM", "LMHeadModel")


@dataclass(frozen=True)
class LossBatch:
    """A few texts as the model reads them, and the target of the loss: classes, token ids, or the endpoints' outputs."""

    inputs: Batch
    target: Any


# Index of a batch and rows of it -> the batch of a loss; whatever is random in it comes from the generator.
MakeBatch = Callable[[int, Int[Tensor, " rows"], torch.Generator], LossBatch]


@dataclass(frozen=True)
class Loss:
    """A training loss.

    Attributes:
        name: what it is taken of, for messages.
        make_batch: makes a batch of some texts.
        value: output of the model, the batch, and b's share in the target where that is an ensemble -> (summed loss, how many
            terms it has).
    """

    name: str
    make_batch: MakeBatch
    value: Callable[[Any, LossBatch, float], tuple[Tensor, int]]


def loss_of(pair: Pair, start: Transform, ends: EndpointOutputs) -> Loss:
    """Return the loss of a model between a pair: on labels, words or tokens with a head for them, else without labels.

    Args:
        start: transform of b, and so of its outputs along the axes that it moves.
        ends: the outputs of both models of the pair.
    Raises:
        AlignmentError: labels do not fit the model, or its words cannot be masked.
    """
    architecture = str((pair.config.get("architectures") or [""])[0])
    if pair.text.labels:
        return _labelled(pair, architecture)
    if is_masked_language_model(pair):
        return _masked(pair, architecture)
    if architecture.endswith(CAUSAL) and is_causal(pair.model(pair.a), _rows(pair.batches[-1], torch.arange(1))):
        return Loss("next tokens", lambda k, rows, _: _next(_rows(pair.batches[k], rows)), _word_loss(shift=1))
    return _unlabelled(pair, start, ends)


def split(batches: Sequence[Batch]) -> tuple[list[Tensor], list[Tensor]]:
    """Return for every batch the rows to learn from, and those held out: every fourth text over all batches.

    Raises:
        AlignmentError: there are fewer than four texts.
    """
    learned, held, texts = [], [], 0
    for batch in batches:
        rows = torch.arange(_count(batch))
        out = (rows + texts) % HELD_OUT == HELD_OUT - 1
        learned.append(rows[~out])
        held.append(rows[out])
        texts += len(rows)
    if texts < HELD_OUT:
        raise AlignmentError(
            f"learned alignment holds out one text in {HELD_OUT}; found {texts} texts. Give it more text."
        )
    return learned, held


def is_causal(model: Any, batch: Batch) -> bool:
    """Return whether a model's output at a position depends on no later token: a decoder, not an encoder with its head."""
    ids = batch["input_ids"]
    length = int(attended(batch).sum(1).max())
    other = ids.clone()
    other[:, length - 1] = (ids[:, length - 1] + 1) % int(model.get_input_embeddings().num_embeddings)
    with torch.inference_mode():
        logits, others = (model(**{**batch, "input_ids": x}).logits[:, : length - 1] for x in (ids, other))
    return length > 1 and torch.allclose(logits, others, rtol=0.0, atol=1e-5 * float(logits.std()))


def _count(batch: Batch) -> int:
    return len(next(iter(batch.values())))


def _rows(batch: Batch, rows: Tensor) -> Batch:
    return in_dtype({name: tensor[rows] for name, tensor in batch.items()}, torch.float32)


def _labelled(pair: Pair, architecture: str) -> Loss:
    if not architecture.endswith("ForSequenceClassification") or "logits" not in pair.spec.outputs:
        raise AlignmentError(
            f"labels of texts are learned by sequence classifiers; this is a {architecture or 'model without a head'}. "
            "Leave the labels out (label_column): it is aligned without."
        )
    sizes = [(_count(batch), len(labels)) for batch, labels in zip(pair.batches, pair.text.labels, strict=True)]
    if any(texts != labels for texts, labels in sizes):
        raise AlignmentError(f"every text needs one label; the batches have (texts, labels) {sizes}.")

    def make_batch(k: int, rows: Tensor, _: torch.Generator) -> LossBatch:
        return LossBatch(_rows(pair.batches[k], rows), pair.text.labels[k][rows])

    def value(output: Any, batch: LossBatch, _: float) -> tuple[Tensor, int]:
        logits, count = output["logits"].float(), len(batch.target)
        if logits.shape[-1] < 2 or int(batch.target.max()) >= logits.shape[-1]:
            raise AlignmentError(
                f"the model has {logits.shape[-1]} classes, and a text's label is class {int(batch.target.max())}."
            )
        return torch.nn.functional.cross_entropy(logits, batch.target, reduction="sum"), count

    return Loss("labels", make_batch, value)


def _masked(pair: Pair, architecture: str) -> Loss:
    token = pair.text.mask_token
    if token is None:
        raise AlignmentError(
            f"learned alignment of a {architecture} masks words, and no mask token is known. Put a tokenizer that has one "
            "into the reference's folder, or use --align activations."
        )
    vocabulary = int(pair.config["vocab_size"])
    frame = never_masked(pair, token)

    def make_batch(k: int, rows: Tensor, generator: torch.Generator) -> LossBatch:
        return LossBatch(*mask_words(_rows(pair.batches[k], rows), token, frame, vocabulary, generator))

    return Loss("masked words", make_batch, _word_loss(shift=0))


def _next(batch: Batch) -> LossBatch:
    return LossBatch(batch, batch["input_ids"].masked_fill(~attended(batch), IGNORED))


def _word_loss(shift: int) -> Callable[[Any, LossBatch, float], tuple[Tensor, int]]:
    """Return the loss of tokens that are predicted `shift` positions before them."""

    def value(output: Any, batch: LossBatch, _: float) -> tuple[Tensor, int]:
        target = batch.target[:, shift:]
        scored = target != IGNORED
        logits = output["logits"][:, : target.shape[1]][scored].float()
        return torch.nn.functional.cross_entropy(logits, target[scored], reduction="sum"), len(logits)

    return value


def _unlabelled(pair: Pair, start: Transform, ends: EndpointOutputs) -> Loss:
    """Return the divergence from the endpoints' ensemble, `merge.alignment.midpoint`."""
    lines = {name: parse(line) for name, line in pair.spec.outputs.items()}

    def make_batch(k: int, rows: Tensor, _: torch.Generator) -> LossBatch:
        with torch.no_grad():
            a, b = ({name: output[rows] for name, output in outputs.items()} for outputs in ends(k))
        b = {name: apply_transform_axes(lines[name], start, output) for name, output in b.items()}
        return LossBatch(_rows(pair.batches[k], rows), (a, b))

    def value(output: Any, batch: LossBatch, lam: float) -> tuple[Tensor, int]:
        a, b = batch.target
        total, count, _ = divergence(a, b, outputs_of(pair, output), token_mask(batch.inputs), lam)
        return total, count

    hidden_states = any(name in pair.spec.outputs for name in FEATURES)
    return Loss("hidden states" if hidden_states else "outputs of the endpoints", make_batch, value)
