"""The weights of a cocktail, from the loss of each model on a few labelled examples or on plain text."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from merge.checkpoints.checkpoint import Checkpoint
from merge.errors import CalibrationError, CheckpointError, MismatchError
from merge.methods import make_method
from merge.methods.cocktail import Cocktail
from merge.progress import track
from merge.recipe.recipe import Recipe
from merge.text.calibrated import calibrate
from merge.text.labelled import Examples, draw_examples, gold_of
from merge.text.masking import draw_words_of_each_text
from merge.text.source import StatisticsEntry

if TYPE_CHECKING:
    from merge.checkpoints.inputs import Batch, Encoded

SEQUENCE, MASKED = "ForSequenceClassification", "ForMaskedLM"


def cocktail_weights(recipe: Recipe, models: Sequence[Checkpoint]) -> tuple[Recipe, tuple[str, ...]]:
    """Return the recipe with the weights softmax(-loss / temperature), and notes on every loss; any other unchanged.

    The loss of a classifier is the mean cross-entropy of the examples' labels, matched by name to each model's id2label; of a
    masked language model that of masked words in plain text, at the same positions for every model.

    Raises:
        MismatchError: a head has no such loss, or a label is not one of a model's classes.
        CalibrationError: the examples cannot be read, or have no labels.
        CheckpointError: a loss is not finite.
    Source: Xiao et al. 2023, arXiv:2311.13534, section 3.
    """
    if recipe.method != "cocktail":
        return recipe, ()
    if recipe.settings.get("weights") is not None or recipe.models[0].weight is not None:
        return recipe, ("cocktail: weights are given, so no loss was measured",)
    method = make_method(recipe.method, recipe.settings, [None] * len(models))
    assert isinstance(method, Cocktail)
    head = check_head(models[0])
    if head == SEQUENCE:
        losses, source, notes = _label_losses(recipe, models)
    else:
        losses, source, notes = _word_losses(recipe, models)
    for model, loss in zip(models, losses, strict=True):
        if not math.isfinite(loss):
            raise CheckpointError(
                f"{model.source}: its loss on {source} is {loss}. This model is broken; leave it out."
            )
    weights = softmax([-loss / method.temperature for loss in losses])
    by_model = [
        f"cocktail: {model.source} has a loss of {loss:.6f}, so a weight of {weight:.6f}"
        for model, loss, weight in zip(models, losses, weights, strict=True)
    ]
    filled = recipe.model_copy(update={"settings": {**recipe.settings, "weights": weights}})
    return filled, (f"cocktail: losses on {source}", *notes, *by_model)


def softmax(values: Sequence[float]) -> list[float]:
    """Return exp(v_i) / sum_j exp(v_j)."""
    top = max(values)
    powers = [math.exp(value - top) for value in values]
    total = math.fsum(powers)
    return [power / total for power in powers]


def check_head(model: Checkpoint) -> str:
    """Return which of the two supported heads a model has, SEQUENCE or MASKED.

    Raises:
        MismatchError: it has another head, or its labels are not classes.
    """
    head = next((h for h in (SEQUENCE, MASKED) if model.architecture.endswith(h)), None)
    if head is None:
        raise MismatchError(
            f"cocktail: {model.source} is a {model.architecture}, for which no loss is defined here. Supported: {SEQUENCE} on "
            f"labelled examples, {MASKED} on plain text. Set the weights yourself: --method linear --weights ..."
        )
    problem = model.config.get("problem_type")
    if head == SEQUENCE and (
        len(model.structure.label_names) < 2 or problem not in (None, "single_label_classification")
    ):
        raise MismatchError(
            f"cocktail: {model.source} does not predict one of several classes (problem_type {problem}, "
            f"{len(model.structure.label_names)} labels). Set the weights yourself: --method linear --weights ..."
        )
    return head


def _label_losses(recipe: Recipe, models: Sequence[Checkpoint]) -> tuple[list[float], str, tuple[str, ...]]:
    """Return the loss of every classifier on the labelled examples, their source, and notes."""
    from merge.checkpoints.inputs import MAX_LENGTH, encode, load_tokenizer

    examples = read_examples(recipe.statistics, recipe.seed)
    golds = [gold_of(examples, model) for model in models]
    encoded: list[Encoded] = []
    notes = list(examples.notes)
    for model in models:
        if not model.has_tokenizer:
            raise CalibrationError(f"cocktail: {model.source} has no tokenizer to read examples with. Put one into it.")
        longest = min(MAX_LENGTH, int(model.config.get("max_position_embeddings", MAX_LENGTH)))
        encoded.append(encode(load_tokenizer(model.folder), examples.texts, longest))
        if encoded[-1].cut:
            notes.append(
                f"{model.source}: {encoded[-1].cut} of {len(examples.texts)} examples are longer than {longest} tokens; "
                "only their start is read"
            )
    losses = [
        label_loss(model, read, gold)
        for model, read, gold in track(list(zip(models, encoded, golds, strict=True)), "measuring losses")
    ]
    return losses, examples.source, tuple(notes)


def label_loss(model: Checkpoint, encoded: Encoded, gold: Sequence[int]) -> float:
    """Return the mean cross-entropy of the labels."""
    import torch

    from merge.methods.statistics.fisher import load_model

    network, total, target = load_model(model), 0.0, torch.tensor(gold)
    with torch.inference_mode():
        for batch, rows in zip(encoded.batches, encoded.rows, strict=True):
            logits = network(**batch).logits.double()
            total += float(torch.nn.functional.cross_entropy(logits, target[list(rows)], reduction="sum"))
    return total / len(gold)


def _word_losses(recipe: Recipe, models: Sequence[Checkpoint]) -> tuple[list[float], str, tuple[str, ...]]:
    """Return the loss of every masked language model on plain text, its source, and notes."""
    if recipe.statistics.label_column is not None:
        raise CalibrationError(
            f"cocktail: {models[0].source} is a {models[0].architecture}, whose loss is that of masked words; it reads no "
            "labels. Leave label_column out."
        )
    if recipe.tokenizer is not None:
        raise MismatchError(
            "cocktail: losses of masked words compare only in one vocabulary. Give the weights yourself, or models of one."
        )
    text = calibrate(recipe.statistics.text_source(recipe.seed), models[0], needed=True, matching=False)
    losses = [word_loss(model, text.batches, recipe.seed) for model in track(models, "measuring losses")]
    return losses, str(text.source), text.notes


def word_loss(model: Checkpoint, batches: Sequence[Batch], seed: int) -> float:
    """Return the mean cross-entropy of masked words, 15% of each text's, drawn from the seed and replaced by the mask."""
    import torch

    from merge.checkpoints.inputs import load_tokenizer
    from merge.methods.statistics.fisher import load_model

    tokenizer = load_tokenizer(model.folder)
    if tokenizer.mask_token_id is None:
        raise MismatchError(f"cocktail: {model.source} has a tokenizer without a mask token, so no word can be masked.")
    frame = torch.tensor(sorted(tokenizer.all_special_ids))
    generator, network = torch.Generator().manual_seed(seed), load_model(model)
    total, count = 0.0, 0
    with torch.inference_mode():
        for batch in batches:
            ids = batch["input_ids"]
            masked = draw_words_of_each_text(~torch.isin(ids, frame) & batch["attention_mask"].bool(), generator)
            logits = network(**{**batch, "input_ids": ids.masked_fill(masked, int(tokenizer.mask_token_id))}).logits
            total += float(torch.nn.functional.cross_entropy(logits[masked].double(), ids[masked], reduction="sum"))
            count += int(masked.sum())
    if count == 0:
        raise CalibrationError("cocktail: the text holds no word that could be masked. Give other text.")
    return total / count


def read_examples(entry: StatisticsEntry, seed: int) -> Examples:
    """Return the labelled examples that the recipe names.

    Raises:
        CalibrationError: no file or label column is named, a column is missing, or no row has a label.
    """
    if entry.text is None or entry.label_column is None:
        raise CalibrationError(
            "cocktail needs labelled examples. Say where they are, in a recipe: statistics: {text: dev.jsonl, "
            "label_column: label}; as flags: --statistics-text dev.jsonl --label-column label."
        )
    return draw_examples(entry.text_source(seed), entry.label_column)
