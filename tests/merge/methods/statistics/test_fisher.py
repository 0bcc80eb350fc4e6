"""Fisher information against autograd, one text at a time, and against formulas; the Fisher-weighted average against numpy."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny import bert_config, random_tensors, save_checkpoint
from torch import Tensor

import merge.methods.statistics.fisher as module
from merge.checkpoints.checkpoint import Checkpoint
from merge.checkpoints.inputs import random_inputs
from merge.checkpoints.open import open_checkpoint
from merge.errors import CalibrationError, CheckpointError, MismatchError, UsageError
from merge.methods.context import TensorContext
from merge.methods.fisher import Fisher
from merge.methods.linear import Linear
from merge.methods.statistics.fisher import class_directions, drawn_direction, load_model, measure_fisher, one_text
from merge.methods.statistics.record import StatisticsError

MASK, CLS, SEP = 4, 2, 3


def opened(folder: Path, architecture: str = "BertForSequenceClassification", **changes: Any) -> Checkpoint:
    """Return a tiny checkpoint in float64, so that sums in another order differ by rounding only."""
    config = bert_config(architecture, **changes)
    return open_checkpoint(str(save_checkpoint(folder, config, tensors=random_tensors(config, 5))))


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def close(found: dict[str, Tensor], expected: dict[str, Tensor]) -> bool:
    """Say whether all tensors agree to the rounding of float32, relative to the largest entry of each.

    The key bias, which softmax cancels, has no gradient but the square of float64's rounding.
    """
    assert found.keys() == expected.keys()
    return all(
        float((found[name] - expected[name]).abs().max()) <= 1e-6 * float(expected[name].abs().max()) + 1e-26
        for name in expected
    )


def naive(checkpoint: Checkpoint, square_of_mean: bool = False) -> dict[str, Tensor]:
    """Return E_x sum_y p(y|x) (d log p(y|x))^2 as it is written: one backward pass for every text and class."""
    model = load_model(checkpoint)
    named = dict(model.named_parameters())
    sums = {name: torch.zeros_like(parameter) for name, parameter in named.items()}
    texts = [one_text(batch, row) for batch in random_inputs(checkpoint.config) for row in range(4)]
    for text in texts:
        mean = {name: torch.zeros_like(parameter) for name, parameter in named.items()}
        for y in range(3):
            model.zero_grad()
            log_p = model(**text).logits.log_softmax(-1)[0, y]
            log_p.backward()
            for name, parameter in named.items():
                weight = log_p.detach().exp() / len(texts)
                sums[name] += weight * parameter.grad.square()
                mean[name] += weight * parameter.grad
        if square_of_mean:
            sums = {name: mean[name].square() for name in mean}
    return sums


@pytest.mark.slow
def test_it_is_the_mean_over_texts_of_each_texts_own_squared_gradients(tmp_path: Path) -> None:
    """Exact over classes, on batches with padding, for all of the parameters; the square of a mean is something else."""
    checkpoint = opened(tmp_path)
    found = measure_fisher(checkpoint, random_inputs(checkpoint.config), seeded())
    assert {name: tuple(f.shape) for name, f in found.items()} == checkpoint.shapes
    assert all(f.dtype == torch.float32 for f in found.values())
    assert close(found, naive(checkpoint))
    assert not close(found, naive(checkpoint, square_of_mean=True))


def test_a_logistic_regression_has_the_fisher_information_of_the_textbook(tmp_path: Path) -> None:
    """The classifier is one on the pooled text x: F = E[p_k (1 - p_k) x^2] for the weights of class k."""
    checkpoint = opened(tmp_path)
    batches = random_inputs(checkpoint.config)
    found = measure_fisher(checkpoint, batches, seeded())
    model, read = load_model(checkpoint), []
    model.classifier.register_forward_pre_hook(lambda _module, args: read.append(args[0].detach().numpy()))
    logits = np.concatenate([model(**batch).logits.detach().numpy() for batch in batches])
    x, p = np.concatenate(read), np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    weight = (p * (1 - p)).T @ x**2 / len(x)
    assert np.abs(found["classifier.weight"].numpy() / weight - 1).max() < 1e-6
    assert np.abs(found["classifier.bias"].numpy() / (p * (1 - p)).mean(0) - 1).max() < 1e-6


def test_a_regression_has_the_fisher_information_of_a_normal_distribution(tmp_path: Path) -> None:
    """y ~ N(output, 1): the bias has 1 whatever the text, the weights E[x^2]. A softmax over one class would say 0."""
    checkpoint = opened(tmp_path, labels=("score",))
    batches = random_inputs(checkpoint.config)
    found = measure_fisher(checkpoint, batches, seeded())
    model, read = load_model(checkpoint), []
    model.classifier.register_forward_pre_hook(lambda _module, args: read.append(args[0].detach()))
    for batch in batches:
        model(**batch)
    assert float(found["classifier.bias"]) == 1.0
    assert torch.allclose(found["classifier.weight"][0].double(), torch.cat(read).square().mean(0), rtol=1e-6)


def test_a_regression_to_several_numbers_is_no_distribution_over_classes(tmp_path: Path) -> None:
    """Each output is the mean of a normal distribution of its own: every bias has 1. A classifier's have p (1 - p)."""
    checkpoint = opened(tmp_path, labels=("valence", "arousal"), problem_type="regression")
    found = measure_fisher(checkpoint, random_inputs(checkpoint.config), seeded())
    assert found["classifier.bias"].tolist() == [1.0, 1.0]


@pytest.mark.parametrize(
    "logits", [[0.3, -1.0], [0.0, 0.0, 0.0], [30.0, 0.0, -3.0], [0.0, 12.0], [1.0, 2.0, 3.0, 4.0, -50.0]]
)
def test_one_direction_less_than_classes_says_the_same(logits: list[float]) -> None:
    """sum_j d_j d_j' = diag p - p p', the covariance of the drawn class, of which one eigenvalue is 0."""
    z = torch.tensor(logits, dtype=torch.float64)
    d, p = class_directions(z), z.softmax(0)
    assert d.shape == (len(z) - 1, len(z))
    assert float((d.T @ d - (p.diag() - torch.outer(p, p))).abs().max()) < 1e-14
    assert float((d[1:].T @ d[1:] - (p.diag() - torch.outer(p, p))).abs().max()) > 1e-14  # none of them is idle


def test_drawn_classes_have_the_covariance_of_the_model() -> None:
    """Mean 0 and covariance diag p - p p' over many draws, within four standard errors; places not asked for stay 0."""
    logits = torch.tensor([0.2, -1.0, 0.9], dtype=torch.float64).repeat(1, 20000, 1)
    where = torch.ones(1, 20000, dtype=torch.bool)
    where[0, 5] = False
    d = drawn_direction(logits, where, seeded())[0]
    p = logits[0, 0].softmax(0)
    assert d[5].abs().max() == 0
    assert float(d.mean(0).abs().max()) < 4 * 0.5 / 20000**0.5
    assert float((d.T @ d / 19999 - (p.diag() - torch.outer(p, p))).abs().max()) < 4 * 0.5 / 20000**0.5


@pytest.mark.parametrize("architecture", ["BertForTokenClassification", "BertForMaskedLM"])
def test_token_heads_square_each_texts_own_gradient(
    architecture: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of log p of what was drawn, by cross-entropy; a tied embedding table gets the sum of its two uses, then the square."""
    checkpoint = opened(tmp_path, architecture)
    batches = random_inputs(checkpoint.config)[:2]
    drawn: list[tuple[Tensor, Tensor]] = []

    def keep(logits: Tensor, where: Tensor, generator: torch.Generator) -> Tensor:
        direction = drawn_direction(logits, where, generator)
        drawn.append((where, (direction + where[..., None] * logits.softmax(-1)).argmax(-1)))
        return direction

    monkeypatch.setattr(module, "drawn_direction", keep)
    found = measure_fisher(checkpoint, batches, seeded())
    model = load_model(checkpoint)
    named = dict(model.named_parameters())
    expected = {name: torch.zeros_like(parameter) for name, parameter in named.items()}
    texts = [one_text(batch, row) for batch in batches for row in range(4)]
    for text, (where, y) in zip(texts, drawn, strict=True):
        if architecture == "BertForMaskedLM":
            text["input_ids"] = torch.where(where, MASK, text["input_ids"])
        model.zero_grad()
        torch.nn.functional.cross_entropy(model(**text).logits[where], y[where], reduction="sum").backward()
        for name, parameter in named.items():
            expected[name] += parameter.grad.square() / len(texts)
    assert close(found, expected)
    assert all(
        bool((w.sum() == text["attention_mask"].sum()) == (architecture != "BertForMaskedLM"))
        for (w, _), text in zip(drawn, texts, strict=True)
    )


@pytest.mark.slow
def test_masked_words_have_the_fisher_information_of_the_models_own_words(tmp_path: Path) -> None:
    """A model that says p whatever it reads: the bias of word k has n p_k (1 - p_k) for n masked places in every text.

    Ten words, so that round(1.5) = 2 are masked; [CLS] and [SEP] never are. Within four standard errors.
    """
    config = bert_config("BertForMaskedLM", num_hidden_layers=1, tie_word_embeddings=False)
    tensors = random_tensors(config, 0)
    tensors["cls.predictions.decoder.weight"] = torch.zeros_like(tensors["cls.predictions.decoder.weight"])
    tensors["cls.predictions.decoder.bias"] = tensors["cls.predictions.bias"]
    checkpoint = open_checkpoint(str(save_checkpoint(tmp_path, config, tensors=tensors)))
    texts = 400
    ids = torch.tensor([[CLS, *range(5, 15), SEP]]).repeat(texts, 1)
    found = measure_fisher(checkpoint, [{"input_ids": ids, "attention_mask": torch.ones_like(ids)}], seeded())
    p = tensors["cls.predictions.bias"].softmax(0)
    expected = 2 * p * (1 - p)
    bias = found["cls.predictions.decoder.bias" if "cls.predictions.decoder.bias" in found else "cls.predictions.bias"]
    assert float(((bias - expected) / (2 * expected / texts).sqrt()).abs().max()) < 4
    assert float(((bias - expected / 2) / (2 * expected / texts).sqrt()).abs().max()) > 4  # one masked place would show


def test_masks_and_draws_follow_the_generator(tmp_path: Path) -> None:
    checkpoint = opened(tmp_path, "BertForMaskedLM")
    batches = random_inputs(checkpoint.config)[:1]
    one, again, other = (measure_fisher(checkpoint, batches, seeded(seed)) for seed in (0, 0, 1))
    assert all(torch.equal(one[name], again[name]) for name in one)
    assert not close(one, other)


def test_padding_counts_for_nothing(tmp_path: Path) -> None:
    """Twice as wide a batch says the same; another word does not (the negative control)."""
    checkpoint = opened(tmp_path, "BertForTokenClassification")
    batch = dict(random_inputs(checkpoint.config)[0])
    wide = {name: torch.nn.functional.pad(tensor, (0, 8)) for name, tensor in batch.items()}
    plain = measure_fisher(checkpoint, [batch], seeded())
    assert close(measure_fisher(checkpoint, [wide], seeded()), plain)
    wide["input_ids"][0, 3] = (wide["input_ids"][0, 3] + 1) % 18
    assert not close(measure_fisher(checkpoint, [wide], seeded()), plain)


def test_what_the_text_does_not_reach_has_none(tmp_path: Path) -> None:
    """Words that do not occur and positions behind the last; those that do have some."""
    checkpoint = opened(tmp_path)
    ids = torch.tensor([[2, 6, 7, 3]])
    found = measure_fisher(checkpoint, [{"input_ids": ids, "attention_mask": torch.ones_like(ids)}], seeded())
    words = found["bert.embeddings.word_embeddings.weight"].sum(1)
    places = found["bert.embeddings.position_embeddings.weight"].sum(1)
    assert set(words.nonzero().flatten().tolist()) == {2, 3, 6, 7}
    assert set(places.nonzero().flatten().tolist()) == {0, 1, 2, 3}


@pytest.mark.parametrize(
    ("architecture", "changes", "expected"),
    [
        ("BertModel", {}, "a BertModel, is not defined here: it needs a distribution"),
        ("BertForMultipleChoice", {}, "a BertForMultipleChoice, is not defined here"),
        ("BertForQuestionAnswering", {}, "a BertForQuestionAnswering, is not defined here"),
        (
            "BertForSequenceClassification",
            {"problem_type": "multi_label_classification"},
            "classes are no distribution",
        ),
    ],
)
def test_a_head_without_a_known_distribution_is_refused_by_name(
    architecture: str, changes: dict[str, Any], expected: str, tmp_path: Path
) -> None:
    checkpoint = opened(tmp_path, architecture, **changes)
    with pytest.raises(StatisticsError, match=expected):
        measure_fisher(checkpoint, random_inputs(checkpoint.config), seeded())


def test_a_model_that_holds_a_nan_is_refused_by_the_tensors_name(tmp_path: Path) -> None:
    tensors = random_tensors(bert_config(), 5)
    tensors["bert.pooler.dense.bias"][3] = torch.nan
    checkpoint = open_checkpoint(str(save_checkpoint(tmp_path, tensors=tensors)))
    with pytest.raises(CheckpointError, match=r"bert\.pooler\.dense\.bias holds NaN or infinity"):
        measure_fisher(checkpoint, random_inputs(checkpoint.config), seeded())


def test_a_text_without_a_word_to_mask_is_an_error(tmp_path: Path) -> None:
    ids = torch.tensor([[CLS, SEP]])
    with pytest.raises(CalibrationError, match="no word that could be masked"):
        measure_fisher(opened(tmp_path, "BertForMaskedLM"), [{"input_ids": ids, "attention_mask": ids > 0}], seeded())


# ---- the method ----


def drawn_models(
    count: int, shape: tuple[int, ...] = (5, 7), dtype: torch.dtype = torch.float64
) -> tuple[list[Tensor], TensorContext]:
    """Return tensors and Fisher information over several orders of magnitude."""
    generator = seeded(3)
    tensors = [torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype) for _ in range(count)]
    fishers = tuple((4 * torch.randn(shape, generator=generator)).exp() for _ in range(count))
    return tensors, TensorContext("layer.weight", statistics=fishers)


@pytest.mark.parametrize("weights", [None, (1.0, 3.0, 0.5), (0.0, 1.0, 2.0)])
def test_the_merge_is_the_weighted_mean_of_numpy(weights: tuple[float, ...] | None) -> None:
    tensors, context = drawn_models(3)
    merged = Fisher(weights)(tensors, None, context)
    shares = np.stack([f.double().numpy() for f in context.statistics]) * np.reshape(weights or (1, 1, 1), (3, 1, 1))
    expected = np.average([t.numpy() for t in tensors], axis=0, weights=np.maximum(shares, 0))
    assert np.abs(merged.numpy() - expected).max() < 1e-10
    assert np.abs(Linear(weights)(tensors).numpy() - expected).max() > 0.1  # it is not the plain average


def test_only_a_model_that_cares_is_heard() -> None:
    """The other's Fisher information is 0, which counts as the floor: one part in a million."""
    tensors, _ = drawn_models(2)
    context = TensorContext(statistics=(torch.zeros(5, 7), torch.ones(5, 7)))
    assert torch.allclose(Fisher()(tensors, None, context), tensors[1], rtol=0, atol=1e-5)
    assert not torch.allclose(Fisher(floor=1.0)(tensors, None, context), tensors[1], rtol=0, atol=0.1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_where_nobody_cares_the_plain_average_is_exact(dtype: torch.dtype) -> None:
    """Entry by entry; a model of weight 0 has no say in who cares. Without statistics it is the plain average everywhere."""
    tensors, context = drawn_models(3, dtype=dtype)
    below = torch.arange(35).reshape(5, 7) % 2 == 0
    context = TensorContext(statistics=tuple(torch.where(below, 1e-7, f + 1e-3) for f in context.statistics))
    for weights in (None, (3.0, 1.0, 1.0)):
        plain, merged = Linear(weights)(tensors), Fisher(weights)(tensors, None, context)
        assert torch.equal(merged[below], plain[below])
        assert (merged[~below] != plain[~below]).all()
        assert torch.equal(Fisher(weights)(tensors), plain)
    deaf = TensorContext(statistics=(torch.zeros(5, 7), torch.zeros(5, 7), torch.ones(5, 7)))
    assert torch.equal(Fisher((1.0, 1.0, 0.0), floor=0.0)(tensors, None, deaf), Linear((1.0, 1.0, 0.0))(tensors))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_a_model_merged_with_itself_is_itself(dtype: torch.dtype) -> None:
    """To the bit: only differences between models are weighted."""
    tensors, context = drawn_models(2, dtype=dtype)
    merged = Fisher()([tensors[0], tensors[0]], None, context)
    assert merged.dtype == dtype
    assert torch.equal(merged, tensors[0])


def test_the_merge_changes_neither_models_nor_statistics_and_does_not_mind_their_order() -> None:
    tensors, context = drawn_models(3)
    before = [t.clone() for t in (*tensors, *context.statistics)]
    merged = Fisher()(tensors, None, context)
    turned = Fisher()(tensors[::-1], None, TensorContext(statistics=context.statistics[::-1]))
    assert torch.allclose(merged, turned, rtol=0, atol=1e-12)
    merged.fill_(7)
    assert all(torch.equal(old, new) for old, new in zip(before, (*tensors, *context.statistics), strict=True))


def test_statistics_of_another_shape_or_number_are_refused() -> None:
    tensors, context = drawn_models(2)
    for wrong in (context.statistics[:1], (context.statistics[0], context.statistics[1].T)):
        with pytest.raises(MismatchError, match="fisher: layer.weight has statistics of shapes"):
            Fisher()(tensors, None, TensorContext("layer.weight", statistics=wrong))


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"weights": (1.0, -0.5)}, "weights must be a number of at least 0, found -0.5"),
        ({"weights": (0.0, 0.0)}, "sum to 0"),
        ({"floor": -1e-6}, "floor must be a number of at least 0, found -1e-06"),
        ({"floor": "small"}, "floor must be"),
    ],
)
def test_a_bad_setting_is_refused_by_name(settings: dict[str, Any], expected: str) -> None:
    with pytest.raises(UsageError, match=expected):
        Fisher(**settings)
    with pytest.raises(UsageError, match="2 weights for 3 models"):
        Fisher((1.0, 2.0)).check_count(3)
