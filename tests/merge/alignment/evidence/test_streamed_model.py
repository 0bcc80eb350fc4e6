"""A streamed model gives the outputs of one that is wholly in the wide dtype, and holds its layers in the narrow one."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from families import CASES, VARIANTS, canonical_tensors, inputs, written_name
from quick import quick_on
from torch import Tensor, nn

from merge.alignment.evidence.streamed_model import streamed_model, streamed_models
from merge.checkpoints.structure import structure_of
from merge.checkpoints.transformers_model import build
from merge.symmetry.transform import TensorsWhenRead

# What is tied and what is read differs by head and by variant: every variant, the first head of each family, and all heads
# of families that differ in kind, which stand for those of their kin.
KINDS = ("bert", "albert", "distilbert", "electra", "xlm-roberta-xl")
FIRST = {config["model_type"]: name for name, config in reversed(CASES.items())}
CHOSEN = {*FIRST.values(), *VARIANTS, *(name for name, config in CASES.items() if config["model_type"] in KINDS)}
BUILT = [name for name in CASES if name in CHOSEN]


def two_models(config: dict[str, Any]) -> tuple[list[dict[str, Tensor]], dict[str, Tensor]]:
    """Return the float32 weights of two models, by their names in a file, and a batch of float64 inputs."""
    structure = structure_of(config)
    sides = [
        {written_name(structure, name): each for name, each in canonical_tensors(config, seed, torch.float32).items()}
        for seed in (0, 1)
    ]
    batch = inputs(config, 0)[0]
    return sides, {name: each.double() if each.is_floating_point() else each for name, each in batch.items()}


@pytest.mark.parametrize(
    "architecture",
    quick_on(
        ("BertForSequenceClassification", "BertForMaskedLM", "AlbertModel", "DebertaV2ForSequenceClassification"), BUILT
    ),
)
def test_streamed_models_are_the_whole_models(architecture: str) -> None:
    """Built on other weights of the same shapes, of which none may show in an output; tied weights are tied.

    Two that are built once run in turn with weights of their own, so that neither leaves anything in the other.
    """
    config = CASES[architecture]
    sides, batch = two_models(config)
    with torch.inference_mode():
        whole = [build(config, side, torch.float64)(**batch)[0] for side in sides]
        model = streamed_model(config, sides[0], sides[1], torch.float64)
        absent = absent_weights(model)
        assert torch.allclose(model(**batch)[0], whole[1], rtol=1e-9, atol=1e-9)
        assert absent_weights(model) == absent
        models = streamed_models(config, sides[0], sides, torch.float64)
        for k in (0, 1, 0, 1):
            assert torch.allclose(models[k](**batch)[0], whole[k], rtol=1e-9, atol=1e-9)
    assert not torch.allclose(*whole, rtol=1e-3, atol=1e-3)
    assert len(absent) > len(sides[1]) // 2


def test_layers_whose_forward_is_called_past_the_module_read_their_weights() -> None:
    """As SqueezeBERT calls it: no hook of the layer runs."""
    config = CASES["BertModel"]
    sides, _ = two_models(config)
    model = streamed_model(config, sides[0], sides[1], torch.float64)
    layer = model.encoder.layer[0]
    assert absent_weights(layer)
    with torch.inference_mode():
        states = torch.ones(1, 3, config["hidden_size"], dtype=torch.float64)
        past, called = layer.forward(states), layer(states)
        past, called = (each[0] if isinstance(each, tuple) else each for each in (past, called))
    assert torch.isfinite(past).all()
    assert torch.equal(past, called)
    assert absent_weights(layer)


def absent_weights(model: nn.Module) -> set[str]:
    """Return the parameters that are not a number while their layers do not run."""
    return {name for name, each in model.named_parameters() if bool(each.isnan().all())}


def test_of_a_table_of_embeddings_only_the_rows_that_are_looked_up_are_read() -> None:
    config = CASES["BertForSequenceClassification"]
    structure = structure_of(config)
    weights = {
        written_name(structure, name): tensor for name, tensor in canonical_tensors(config, 0, torch.float32).items()
    }
    words = next(name for name in weights if name.endswith("word_embeddings.weight"))
    read: list[str] = []
    rows: list[torch.Tensor] = []

    def whole(name: str) -> torch.Tensor:
        read.append(name)
        return weights[name]

    def some(name: str, numbers: torch.Tensor) -> torch.Tensor:
        rows.append(numbers)
        return weights[name][numbers]

    batch = {"input_ids": torch.tensor([[5, 7, 5], [7, 7, 3]])}
    with torch.inference_mode():
        model = streamed_model(config, weights, TensorsWhenRead(weights, whole, some), torch.float64)
        outputs = model(**batch)[0]
        assert outputs.equal(build(config, weights, torch.float64)(**batch)[0])
    assert words not in read
    assert any(numbers.tolist() == [3, 5, 7] for numbers in rows)
