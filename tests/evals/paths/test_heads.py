"""Heads that are kept or re-fitted: which tensors they are, what the last layer reads, and what a head in closed form knows."""

from __future__ import annotations

from pathlib import Path

import families
import families_more
import numpy as np
import pytest
import torch
from tiny import bert_config, save_checkpoint

from evals.paths.heads import HEADS, head_tensors, last_layer_inputs, last_layer_tensors, refitted_logits
from evals.predict.predictor import make_predictor
from evals.run.line import HEAD_NAMES
from evals.tasks import TASKS
from evals.tasks.label_names import MatchedTask
from evals.tasks.task import Rows
from merge.checkpoints.open import open_checkpoint
from merge.errors import TaskError

MNLI = TASKS["mnli"]
OPENED = {
    "bert": (bert_config(), {"classifier.weight", "classifier.bias"}, {"classifier.weight", "classifier.bias"}),
    "gpt2": (families_more.CASES["GPT2ForSequenceClassification"], {"score.weight"}, {"score.weight"}),
    "roberta": (
        families.CASES["RobertaForSequenceClassification"],
        {f"classifier.{layer}.{part}" for layer in ("dense", "out_proj") for part in ("weight", "bias")},
        {"classifier.out_proj.weight", "classifier.out_proj.bias"},
    ),
}


def matched(gold: np.ndarray) -> MatchedTask:
    rows = Rows((("x", "y"),) * len(gold), tuple(gold.tolist()), MNLI.labels, "made", "test", ())
    return MatchedTask(MNLI, rows, (0, 1, 2))


@pytest.mark.parametrize("family", OPENED)
def test_the_head_is_what_is_outside_the_base_model(family: str, tmp_path: Path) -> None:
    """And its last layer is what has a row for each class; RoBERTa's head has two layers."""
    config, head, last = OPENED[family]
    checkpoint = open_checkpoint(str(save_checkpoint(tmp_path / "m", config)))
    assert head_tensors(checkpoint) == head
    assert last_layer_tensors(checkpoint) == last


def test_the_names_of_heads_are_those_of_the_command() -> None:
    """Two lists, because the command does not load torch."""
    assert tuple(HEADS) == HEAD_NAMES


def test_the_inputs_of_the_last_layer_give_its_logits(tmp_path: Path) -> None:
    """W x + b of the inputs are the logits; after the block the model gives logits again."""
    checkpoint = open_checkpoint(str(save_checkpoint(tmp_path / "m")))
    predictor = make_predictor(checkpoint)
    texts = tuple((f"the {word} saw", "a river .") for word in ("doctor", "lawyer", "river", "near"))
    encoded = predictor.encode(Rows(texts, (0, 1, 2, 0), MNLI.labels, "made", "test", tuple("1234")))
    logits = predictor.logits(encoded)
    with last_layer_inputs(predictor.model, checkpoint):
        features = predictor.logits(encoded)
    layer = predictor.model.classifier
    assert features.shape == (4, 24)
    assert torch.allclose(features @ layer.weight.T + layer.bias, logits, atol=1e-6)
    assert torch.equal(predictor.logits(encoded), logits)


def test_a_refitted_head_has_the_losses_of_the_best_one() -> None:
    """Three Gaussian classes of one covariance, whose posterior is known: the loss is its entropy, give or take 0.02.

    The control: with the features of other rows the loss is that of guessing, log 3.
    """
    generator = np.random.default_rng(0)
    gold = generator.integers(0, 3, 3000)
    means, mix = 1.5 * generator.normal(size=(3, 5)), generator.normal(size=(5, 5))
    features = torch.from_numpy(means[gold] + generator.normal(size=(3000, 5)) @ mix.T)
    inverse = np.linalg.inv(mix @ mix.T)
    logits = features.numpy() @ inverse @ means.T - 0.5 * np.einsum("kd,de,ke->k", means, inverse, means)
    answers = torch.from_numpy(gold)
    best = torch.nn.functional.cross_entropy(torch.from_numpy(logits), answers)
    found, predicted = refitted_logits(features, matched(gold), seed=0)
    assert float(torch.nn.functional.cross_entropy(found, answers)) == pytest.approx(float(best), abs=0.02)
    assert torch.equal(predicted, found.argmax(1))
    assert float(best) < 0.9
    others, _ = refitted_logits(features.roll(1, 0), matched(gold), seed=0)
    assert float(torch.nn.functional.cross_entropy(others, answers)) == pytest.approx(np.log(3), abs=0.02)


def test_no_row_is_predicted_by_a_head_that_has_seen_it() -> None:
    """More features than rows, all noise: a head that saw the rows would be right on nearly all of them."""
    generator = np.random.default_rng(1)
    gold = np.arange(60) % 3
    features = torch.from_numpy(generator.normal(size=(60, 200)))
    _, predicted = refitted_logits(features, matched(gold), seed=0)
    assert float((predicted.numpy() == gold).mean()) < 0.6


def test_the_folds_are_those_of_the_seed() -> None:
    generator = np.random.default_rng(2)
    gold, features = np.arange(60) % 3, torch.from_numpy(generator.normal(size=(60, 4)))
    first, again, other = (refitted_logits(features, matched(gold), seed)[0] for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_a_class_without_two_rows_is_named() -> None:
    with pytest.raises(TaskError, match="class contradiction has 1 of 7 rows"):
        refitted_logits(torch.ones(7, 2), matched(np.array([0, 0, 0, 1, 1, 1, 2])), seed=0)


def test_a_model_without_a_last_layer_for_the_classes_is_named(tmp_path: Path) -> None:
    checkpoint = open_checkpoint(str(save_checkpoint(tmp_path / "m", bert_config("BertForMaskedLM"))))
    with pytest.raises(TaskError, match="has no single layer that gives its logits"):
        last_layer_tensors(checkpoint)
