"""Gram matrices against numpy on what each layer reads; RegMean against least squares on the stacked problem."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny import bert_config, random_tensors, save_checkpoint
from torch import Tensor

from merge.checkpoints.checkpoint import Checkpoint
from merge.checkpoints.inputs import Batch, random_inputs
from merge.checkpoints.open import open_checkpoint
from merge.errors import MismatchError, UsageError
from merge.methods.context import TensorContext
from merge.methods.linear import Linear
from merge.methods.regmean import RegMean
from merge.methods.statistics.fisher import load_model, one_text
from merge.methods.statistics.gram import linear_layers, measure_gram
from merge.methods.statistics.orientation import transposed_weights
from merge.methods.statistics.record import StatisticsError
from merge.progress import shown_by

GPT2 = {
    "architectures": ["GPT2Model"],
    "model_type": "gpt2",
    "vocab_size": 18,
    "n_embd": 24,
    "n_layer": 1,
    "n_head": 4,
    "n_inner": 40,
    "n_positions": 32,
}


def opened(folder: Path, config: dict[str, Any] | None = None, dtype: torch.dtype = torch.float64) -> Checkpoint:
    config = config or bert_config()
    return open_checkpoint(str(save_checkpoint(folder, config, tensors=random_tensors(config, 5, dtype))))


def read_rows(checkpoint: Checkpoint, batches: tuple[Batch, ...], path: str) -> Any:
    """Return what a module reads, text by text without padding, as numpy has it."""
    model, rows = load_model(checkpoint), []
    layer = model.get_submodule(path)
    layer.register_forward_pre_hook(lambda _module, args: rows.append(args[0].detach().flatten(0, -2).numpy()))
    for batch in batches:
        for row in range(len(batch["input_ids"])):
            model(**one_text(batch, row))
    return np.concatenate(rows)


@pytest.mark.parametrize(
    "path",
    [
        "bert.encoder.layer.0.attention.self.query",
        "bert.encoder.layer.1.attention.self.value",
        "bert.encoder.layer.1.attention.output.dense",
        "bert.encoder.layer.0.intermediate.dense",
        "bert.encoder.layer.1.output.dense",
        "bert.pooler.dense",
        "classifier",
    ],
)
def test_a_gram_matrix_is_the_second_moment_of_what_the_layer_reads(path: str, tmp_path: Path) -> None:
    """Of tokens that are not padding, or of one row a text for the layers that see the first token only."""
    checkpoint = opened(tmp_path)
    batches = random_inputs(checkpoint.config)
    x = read_rows(checkpoint, batches, path)
    assert len(x) == (16 if "encoder" not in path else sum(int(b["attention_mask"].sum()) for b in batches))
    gram = measure_gram(checkpoint, batches)[f"{path}.weight"]
    assert gram.dtype == torch.float32
    assert torch.equal(gram, gram.T)
    assert np.abs(gram.numpy() - x.T @ x / len(x)).max() < 1e-6 * np.abs(gram.numpy()).max()


def test_every_linear_weight_has_one_and_nothing_else_has(tmp_path: Path) -> None:
    """Embeddings, LayerNorms and biases have none."""
    checkpoint = opened(tmp_path)
    grams = measure_gram(checkpoint, random_inputs(checkpoint.config))
    expected = {n for n, shape in checkpoint.shapes.items() if len(shape) == 2 and "embeddings" not in n}
    assert grams.keys() == expected
    assert all(gram.shape == (checkpoint.shapes[name][1],) * 2 for name, gram in grams.items())


def test_padding_counts_for_nothing(tmp_path: Path) -> None:
    """What stands on padded places changes nothing; what stands on real ones does (the negative control)."""
    checkpoint = opened(tmp_path)
    batch = random_inputs(checkpoint.config)[0]
    assert batch["attention_mask"][0, -6:].sum() == 0
    name = "bert.encoder.layer.0.intermediate.dense.weight"
    plain = measure_gram(checkpoint, [batch])[name]

    def changed(place: slice) -> Tensor:
        ids = batch["input_ids"].clone()
        ids[0, place] = (ids[0, place] + 1) % 18
        return measure_gram(checkpoint, [{**batch, "input_ids": ids}])[name]

    assert torch.equal(changed(slice(-6, None)), plain)
    assert not torch.allclose(changed(slice(0, 6)), plain, rtol=1e-3)


def test_a_decoder_tied_to_the_embedding_table_has_none(tmp_path: Path) -> None:
    """Least squares would speak of one of its two uses; untied, it has one."""
    batches = random_inputs(bert_config())
    tied = measure_gram(opened(tmp_path / "tied", bert_config("BertForMaskedLM")), batches)
    config = bert_config("BertForMaskedLM", tie_word_embeddings=False)
    untied = measure_gram(opened(tmp_path / "untied", config), batches)
    assert untied.keys() - tied.keys() == {"cls.predictions.decoder.weight"}
    assert "bert.embeddings.word_embeddings.weight" not in tied


def test_a_weight_that_two_layers_share_has_none(tmp_path: Path) -> None:
    """What one of them reads is not what the other reads, and the weight has one Gram matrix or none."""
    checkpoint = opened(tmp_path)
    model = load_model(checkpoint)
    before = linear_layers(model, checkpoint).keys()
    layers = model.bert.encoder.layer
    layers[1].intermediate.dense.weight = layers[0].intermediate.dense.weight
    shared = {f"bert.encoder.layer.{i}.intermediate.dense.weight" for i in (0, 1)}
    assert before - linear_layers(model, checkpoint).keys() == shared


def test_little_memory_means_more_passes_and_the_same_numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A layer at a time, where not even one fits; the passes are counted."""
    checkpoint = opened(tmp_path)
    batches = random_inputs(checkpoint.config)
    labels: list[str] = []

    def listen(items: Any, label: str) -> Any:
        labels.append(label)
        return items

    whole = measure_gram(checkpoint, batches)
    monkeypatch.setattr("merge.methods.statistics.gram.MAX_SUM_BYTES", 1)
    with shown_by(listen):
        parts = measure_gram(checkpoint, batches)
    assert len(labels) == len(whole) == 14
    assert labels[3] == "measuring Gram matrices, part 4 of 14"
    assert list(parts) == list(whole)
    assert all(torch.equal(parts[name], whole[name]) for name in whole)


def test_the_order_of_batches_hardly_matters(tmp_path: Path) -> None:
    """Sums are in float64: another order gives the same to rounding, in a float32 model too."""
    checkpoint = opened(tmp_path, dtype=torch.float32)
    batches = random_inputs(checkpoint.config)
    one, turned = measure_gram(checkpoint, batches), measure_gram(checkpoint, batches[::-1])
    assert all(torch.allclose(one[name], turned[name], rtol=0, atol=1e-6 * float(one[name].max())) for name in one)


def test_weights_stored_as_in_out_are_known(tmp_path: Path) -> None:
    """transformers' Conv1D, square ones too: the Gram matrix is of what they read, the first axis."""
    checkpoint = opened(tmp_path, GPT2)
    batches = random_inputs({**checkpoint.config, "type_vocab_size": 0})
    grams = measure_gram(checkpoint, batches)
    assert set(grams) == transposed_weights(checkpoint)
    assert {name.split(".h.0.")[1]: len(gram) for name, gram in grams.items()} == {
        "attn.c_attn.weight": 24,
        "attn.c_proj.weight": 24,
        "mlp.c_fc.weight": 24,
        "mlp.c_proj.weight": 40,
    }
    x = read_rows(checkpoint, batches, "h.0.mlp.c_proj")
    found = grams["transformer.h.0.mlp.c_proj.weight"].numpy()
    assert np.abs(found - x.T @ x / len(x)).max() < 1e-6 * np.abs(found).max()
    assert transposed_weights(opened(tmp_path / "bert")) == set()


def test_rows_that_padding_cannot_be_told_from_are_refused(tmp_path: Path) -> None:
    """Not guessed: a mask of another shape than what the layers read is named with the layer."""
    checkpoint = opened(tmp_path)
    batch = {"input_ids": torch.ones(2, 6, dtype=torch.int64), "attention_mask": torch.ones(2, 1, 6, 6)}
    with pytest.raises(
        StatisticsError, match=r"inputs of layer bert.*query: expected .* found a tensor of shape \(2, 6, 24\)"
    ):
        measure_gram(checkpoint, [batch])


# ---- the method ----


def problem(rows: int = 200, n: int = 6, out: int = 4) -> tuple[list[Tensor], list[Tensor]]:
    """Return correlated inputs of three models, each of its own kind, and their weights (out, in)."""
    generator = torch.Generator().manual_seed(1)
    drawn = [
        torch.randn(3, *shape, generator=generator, dtype=torch.float64) for shape in ((rows, n), (n, n), (out, n))
    ]
    return [x @ mix for x, mix in zip(drawn[0], drawn[1], strict=True)], list(drawn[2])


def grams_of(inputs: list[Tensor]) -> tuple[Tensor, ...]:
    return tuple(x.T @ x / len(x) for x in inputs)


def test_with_alpha_one_it_is_least_squares() -> None:
    """numpy's lstsq on all inputs stacked, with the outputs that each model wants for its own."""
    inputs, weights = problem()
    merged = RegMean(alpha=1.0)(weights, None, TensorContext(statistics=grams_of(inputs)))
    wanted = np.concatenate([(x @ w.T).numpy() for x, w in zip(inputs, weights, strict=True)])
    expected = np.linalg.lstsq(np.concatenate([x.numpy() for x in inputs]), wanted, rcond=None)[0].T
    assert np.abs(merged.numpy() - expected).max() < 1e-10
    assert np.abs(Linear()(weights).numpy() - expected).max() > 0.1


def test_no_other_weight_is_nearer_to_the_models_outputs() -> None:
    """The loss is at a minimum: every step away raises it, and the plain average is far above."""
    inputs, weights = problem()

    def loss(merged: Tensor) -> float:
        return sum(float((x @ (merged - w).T).square().mean()) for x, w in zip(inputs, weights, strict=True))

    merged = RegMean(alpha=1.0)(weights, None, TensorContext(statistics=grams_of(inputs)))
    generator = torch.Generator().manual_seed(0)
    steps = [1e-3 * torch.randn(merged.shape, generator=generator, dtype=torch.float64) for _ in range(20)]
    assert all(loss(merged + step) > loss(merged) for step in steps)
    assert loss(Linear()(weights)) > 1.2 * loss(merged)


@pytest.mark.parametrize("alpha", [0.1, 0.9])
def test_alpha_scales_what_is_off_the_diagonal(alpha: float) -> None:
    """The paper's formula in numpy; alpha changes the answer."""
    inputs, weights = problem()
    grams = [g.numpy() * np.where(np.eye(6), 1, alpha) for g in grams_of(inputs)]
    expected = np.linalg.inv(sum(grams)) @ sum(g @ w.numpy().T for g, w in zip(grams, weights, strict=True))
    context = TensorContext(statistics=grams_of(inputs))
    assert np.abs(RegMean(alpha)(weights, None, context).numpy() - expected.T).max() < 1e-10
    assert np.abs(RegMean(1.0)(weights, None, context).numpy() - expected.T).max() > 1e-3


def test_with_alpha_zero_every_input_is_averaged_on_its_own() -> None:
    """By its second moment in each model: a diagonal matrix is inverted entry by entry."""
    inputs, weights = problem()
    power = np.stack([x.square().mean(0).numpy() for x in inputs])
    expected = np.einsum("mi,moi->oi", power, np.stack(weights)) / power.sum(0)
    assert (
        np.abs(RegMean(0.0)(weights, None, TensorContext(statistics=grams_of(inputs))).numpy() - expected).max() < 1e-12
    )


@pytest.mark.parametrize("alpha", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_a_model_merged_with_itself_is_itself(alpha: float, dtype: torch.dtype) -> None:
    """To the rounding of the average of three: only differences from it are solved for."""
    inputs, weights = problem()
    one = weights[0].to(dtype)
    merged = RegMean(alpha)([one] * 3, None, TensorContext(statistics=grams_of(inputs)))
    assert merged.dtype == dtype
    assert torch.allclose(merged, one, rtol=1e-6 if dtype == torch.float32 else 1e-12, atol=0)
    assert torch.equal(RegMean(alpha)([one, one], None, TensorContext(statistics=grams_of(inputs[:2]))), one)


def test_equal_grams_give_the_plain_average_and_so_does_none() -> None:
    inputs, weights = problem()
    context = TensorContext(statistics=grams_of(inputs[:1]) * 3)
    assert torch.allclose(RegMean()(weights, None, context), Linear()(weights), rtol=0, atol=1e-12)
    assert torch.equal(RegMean()(weights), Linear()(weights))
    assert torch.equal(RegMean()([w[0] for w in weights]), Linear()([w[0] for w in weights]))


@pytest.mark.parametrize("alpha", [0.9, 1.0])
def test_an_input_that_is_always_zero_takes_the_plain_average(alpha: float) -> None:
    """Nothing is known of it, and nothing is divided by it; the other inputs are solved as if it were not there."""
    inputs, weights = problem()
    silent = [torch.cat((x[:, :2], 0 * x[:, 2:3], x[:, 3:]), 1) for x in inputs]
    merged = RegMean(alpha)(weights, None, TensorContext(statistics=grams_of(silent)))
    assert torch.allclose(merged[:, 2], Linear()(weights)[:, 2], rtol=0, atol=1e-12)
    rest = [0, 1, 3, 4, 5]
    without = RegMean(alpha)(
        [w[:, rest] for w in weights], None, TensorContext(statistics=grams_of([x[:, rest] for x in inputs]))
    )
    assert torch.allclose(merged[:, rest], without, rtol=0, atol=1e-10)


def test_fewer_texts_than_inputs_still_fit_and_elsewhere_it_is_the_plain_average() -> None:
    """One row a model spans 3 of 6 directions: outputs on those rows are each model's own, without noise blown up.

    The Gram matrices are rounded to float32, as files keep them: rounding must not pass for a direction.
    """
    inputs, weights = problem(rows=1)
    grams = tuple(g.float() for g in grams_of(inputs))
    merged = RegMean(alpha=1.0)(weights, None, TensorContext(statistics=grams))
    for x, w in zip(inputs, weights, strict=True):
        assert torch.allclose(x @ merged.T, x @ w.T, rtol=0, atol=1e-4)
    # The step from the average lies in the span of three rows.
    assert int(torch.linalg.matrix_rank(merged - Linear()(weights), rtol=1e-4)) == 3
    assert float((merged - Linear()(weights)).abs().max()) < 20


def test_inputs_in_another_order_give_the_merge_in_that_order() -> None:
    inputs, weights = problem()
    p = torch.tensor([3, 0, 5, 1, 4, 2])
    merged = RegMean()(weights, None, TensorContext(statistics=grams_of(inputs)))
    turned = RegMean()(
        [w[:, p] for w in weights], None, TensorContext(statistics=tuple(g[p][:, p] for g in grams_of(inputs)))
    )
    assert torch.allclose(turned, merged[:, p], rtol=0, atol=1e-10)


def test_the_merge_changes_neither_models_nor_statistics() -> None:
    inputs, weights = problem()
    context = TensorContext(statistics=grams_of(inputs))
    before = [t.clone() for t in (*weights, *context.statistics)]
    RegMean()(weights, None, context).fill_(7)
    assert all(torch.equal(old, new) for old, new in zip(before, (*weights, *context.statistics), strict=True))


def test_gram_matrices_of_another_size_or_number_are_refused() -> None:
    inputs, weights = problem()
    grams = grams_of(inputs)
    for wrong in (grams[:2], tuple(g[:4, :4] for g in grams)):
        with pytest.raises(MismatchError, match="regmean: layer.weight has Gram matrices of sizes"):
            RegMean()(weights, None, TensorContext("layer.weight", statistics=wrong))
    with pytest.raises(MismatchError, match="for weights of shapes"):
        RegMean()([w[0] for w in weights], None, TensorContext("layer.weight", statistics=grams))


@pytest.mark.parametrize("alpha", [-0.1, 1.1, float("nan"), True, "most"])
def test_a_bad_alpha_is_refused_by_name(alpha: Any) -> None:
    with pytest.raises(UsageError, match="regmean: alpha must be a number from 0 to 1"):
        RegMean(alpha)
