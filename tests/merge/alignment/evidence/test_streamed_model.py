"""A streamed model gives the outputs of one that is wholly in the wide dtype, and holds its layers in the narrow one."""

from __future__ import annotations

import pytest
import torch
from families import CASES, canonical_tensors, inputs, written_name
from quick import quick_on
from torch import nn

from merge.alignment.evidence.streamed_model import streamed_model
from merge.checkpoints.structure import structure_of
from merge.checkpoints.transformers_model import build


@pytest.mark.parametrize(
    "architecture",
    quick_on(("BertForSequenceClassification", "AlbertModel", "DebertaV2ForSequenceClassification"), CASES),
)
def test_a_streamed_model_is_the_whole_model(architecture: str) -> None:
    """Built on other weights of the same shapes: none of them may show in an output."""
    config = CASES[architecture]
    structure = structure_of(config)
    stored, weights = (
        {
            written_name(structure, name): tensor
            for name, tensor in canonical_tensors(config, seed, torch.float32).items()
        }
        for seed in (0, 1)
    )
    batch = inputs(config, 0)[0]
    batch = {name: tensor.double() if tensor.is_floating_point() else tensor for name, tensor in batch.items()}
    with torch.inference_mode():
        model = streamed_model(config, stored, weights, torch.float64)
        absent = absent_weights(model)
        outputs = [
            each(**batch)[0]
            for each in (model, build(config, weights, torch.float64), build(config, stored, torch.float64))
        ]
        after = absent_weights(model)
    assert torch.allclose(outputs[0], outputs[1], rtol=1e-9, atol=1e-9)
    assert not torch.allclose(outputs[0], outputs[2], rtol=1e-3, atol=1e-3)
    assert absent == after
    assert len(absent) > len(weights) // 2


def absent_weights(model: nn.Module) -> set[str]:
    """Return the parameters that are not a number while their layers do not run."""
    return {name for name, each in model.named_parameters() if bool(each.isnan().all())}
