"""Gate gradients: the derivative of a loss by a gate on the output of a head or a neuron, for all of them at once.

A gate multiplies what a unit adds to the residual stream, so it multiplies the weights W that read the unit: d loss /
d gate = sum(W * d loss / d W) over its weights, exactly. One backward pass a text gives the gates of every unit.

Losses:
    own      without labels. At the full model the divergence from its own predictions is zero and so is its gradient;
             what is left is the second order, half the expected squared gradient of `curvature_probe`: the divergence of
             a model without the unit, if the divergence were quadratic in the gate.
    masked   |d loss / d gate| of the masked-word loss, for masked language models.
    labels   |d loss / d gate| of the classification loss on labelled texts.

Source: Michel et al. 2019, arXiv:1905.10650, section 4.1 (the absolute gradient, averaged over texts).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from merge.checkpoints.checkpoint import Checkpoint
from merge.errors import UsageError, nearest
from merge.layers.pruning.predictions import curvature_probe, predictions
from merge.layers.pruning.running import check_reads_text, float_model, read_text_of
from merge.progress import track
from merge.text.source import TextSource

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from merge.checkpoints.inputs import Batch
    from merge.layers.pruning.units import UnitLayer

LOSSES = {
    "own": "divergence from the model's own predictions, no labels",
    "masked": "masked-word loss",
    "labels": "classification loss on labels",
}


@dataclass(frozen=True, eq=False)
class _Text:
    """A batch of one text, and what its loss compares with: masked words or a class."""

    inputs: Batch
    target: Tensor | None = None


@dataclass(frozen=True, eq=False)
class _Texts:
    """Texts one by one, and their loss: (its value, the number of predictions that it sums over)."""

    batches: Sequence[_Text]
    loss: Callable[[Any, _Text], tuple[Tensor, int]]
    phrase: str
    notes: tuple[str, ...]


def gate_gradients(
    checkpoint: Checkpoint, layers: Sequence[UnitLayer], source: TextSource, loss: str, label_column: str | None
) -> tuple[dict[int, Tensor], str, tuple[str, ...]]:
    """Return the scores of all units by layer, a phrase on the text, and notes.

    Raises:
        UsageError: the loss is unknown, or does not fit the model or what else is given.
        CalibrationError: the text cannot be read.
    """
    import torch

    if loss not in LOSSES:
        raise UsageError(f"unknown loss {loss!r}.{nearest(loss, LOSSES)}")
    if (loss == "labels") != (label_column is not None):
        raise UsageError(
            "--loss labels and --label-column belong together. Example: --loss labels --label-column label"
        )
    kinds = {"masked": "ForMaskedLM", "labels": "ForSequenceClassification"}
    if loss in kinds and not checkpoint.architecture.endswith(kinds[loss]):
        raise UsageError(
            f"{checkpoint.source} is a {checkpoint.architecture}: --loss {loss} is for {kinds[loss]} models. Use --loss own."
        )
    generator = torch.Generator().manual_seed(source.seed)
    text = (
        _labelled(checkpoint, source, str(label_column))
        if loss == "labels"
        else _plain(checkpoint, source, loss, generator)
    )
    model = float_model(checkpoint).requires_grad_(False)
    sums = {layer.number: torch.zeros(layer.count, dtype=torch.float64) for layer in layers}
    named, rows = dict(model.named_parameters()), 0
    for layer in layers:
        for place in layer.readers:
            named[checkpoint.written_name(place.tensor)].requires_grad_(True)
    for batch in track(text.batches, "measuring units"):
        model.zero_grad()
        value, predicted = text.loss(model(**batch.inputs), batch)
        value.backward()
        rows += predicted
        for layer in layers:
            gates = _gates(checkpoint, named, layer)
            sums[layer.number] += gates.square() / 2 if loss == "own" else gates.abs()
    return {number: total / max(rows, 1) for number, total in sums.items()}, text.phrase, text.notes


def _gates(checkpoint: Checkpoint, parameters: Mapping[str, Any], layer: UnitLayer) -> Tensor:
    """Return the derivative of the last loss by the gate of every unit of a layer."""
    import torch

    gates = torch.zeros(layer.count, dtype=torch.float64)
    for place in layer.readers:
        weight = parameters[checkpoint.written_name(place.tensor)]
        if weight.grad is not None:  # a layer that the loss does not depend on
            gates += place.weights((weight.detach() * weight.grad).double()).sum((1, 2))
    return gates


def _plain(checkpoint: Checkpoint, source: TextSource, loss: str, generator: torch.Generator) -> _Texts:
    """Return texts without labels, for the losses `own` and `masked`.

    Raises:
        UsageError: words are to be masked, and the tokenizer has no mask token.
    """
    from merge.checkpoints.inputs import load_tokenizer

    batches, phrase, notes = read_text_of(checkpoint, source, "gate-gradient")
    texts = [text for batch in batches for text in _one_by_one(batch, checkpoint.architecture)]

    def own(output: Any, text: _Text) -> tuple[Tensor, int]:
        predicted = predictions(output, text.inputs, checkpoint.config)
        return curvature_probe(predicted, generator), sum(len(each.rows) for each in predicted)

    if loss == "own":
        return _Texts([_Text(text) for text in texts], own, phrase, notes)
    tokenizer = load_tokenizer(checkpoint.folder)
    if tokenizer.mask_token_id is None:
        raise UsageError(
            f"{checkpoint.source}: its tokenizer has no mask token, which --loss masked needs. Use --loss own."
        )
    masked = [each for text in texts if (each := _masked(text, tokenizer, generator)) is not None]
    return _Texts(masked, _cross_entropy, phrase, notes)


def _one_by_one(batch: Batch, architecture: str) -> Iterator[Batch]:
    """Yield each text of a batch as a batch of its own, without the padding of longer ones."""
    from merge.checkpoints.inputs import attended

    for k in range(len(batch["input_ids"])):
        text = {name: tensor[k : k + 1] for name, tensor in batch.items()}
        if not architecture.endswith("ForMultipleChoice"):
            kept = attended(text)[0]
            text = {name: tensor[:, kept] for name, tensor in text.items()}
        yield text


def _masked(text: Batch, tokenizer: Any, generator: torch.Generator) -> _Text | None:
    """Return a text with 15 % of its words masked, and the words; None where it holds no word."""
    import torch

    from merge.text.masking import draw_words_of_each_text

    ids = text["input_ids"]
    drawn = draw_words_of_each_text(~torch.isin(ids, torch.tensor(tokenizer.all_special_ids)), generator)
    if not drawn.any():
        return None
    return _Text({**text, "input_ids": ids.masked_fill(drawn, tokenizer.mask_token_id)}, torch.where(drawn, ids, -100))


def _cross_entropy(output: Any, text: _Text) -> tuple[Tensor, int]:
    """Return the mean cross-entropy of one text at its targets."""
    import torch

    assert text.target is not None
    logits = output["logits"].float()
    return torch.nn.functional.cross_entropy(logits.flatten(0, -2), text.target.flatten(), ignore_index=-100), 1


def _labelled(checkpoint: Checkpoint, source: TextSource, label_column: str) -> _Texts:
    """Return labelled texts.

    Raises:
        UsageError: no file was given.
        MismatchError: a label is none of the model's classes.
    """
    import torch

    from merge.checkpoints.inputs import load_tokenizer, tokenise
    from merge.text.labelled import draw_examples, gold_of

    if source.source is None:
        raise UsageError("--loss labels needs labelled texts. Give them with --text FILE --label-column COLUMN.")
    check_reads_text(checkpoint, "--loss labels")
    examples = draw_examples(source, label_column)
    gold, tokenizer = gold_of(examples, checkpoint), load_tokenizer(checkpoint.folder)
    read = [tokenise(tokenizer, [text], checkpoint.config) for text in examples.texts]
    texts = [_Text(batch, torch.tensor([label])) for ((batch,), _), label in zip(read, gold, strict=True)]
    cut = sum(bool(note) for _, note in read)
    notes = (f"{cut} of {len(read)} texts are too long and only their start is read",) if cut else ()
    return _Texts(texts, _cross_entropy, examples.source, (*examples.notes, *notes))
