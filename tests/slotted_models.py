"""Tiny models that plans run, and batches for them."""

from __future__ import annotations

from typing import Any

import layered
import torch
from tiny import random_tensors
from torch import Tensor

from evals.surgery.slots import SlottedModel, slotted
from merge.checkpoints.inputs import random_inputs
from merge.checkpoints.transformers_model import build

# Config keys of the number of layers, where it is not num_hidden_layers.
COUNTS = {"distilbert": "n_layers", "gpt2": "n_layer", "xlnet": "n_layer", "t5": "num_layers"}


def config_of(family: str, layers: int = 4, **changes: Any) -> dict[str, Any]:
    """Return the config.json of a tiny model of some layers."""
    return layered.family_config(family, **{COUNTS.get(family, "num_hidden_layers"): layers}, **changes)


def model_of(family: str, layers: int = 4, **changes: Any) -> SlottedModel:
    """Return a tiny random model that plans run."""
    config = config_of(family, layers, **changes)
    model = build(config, random_tensors(config, 0, torch.float32), torch.float32)
    return slotted(model, layered.STACK.get(family, ""))


def batch_of(model: SlottedModel, seed: int = 0) -> dict[str, Tensor]:
    """Return a batch of random tokens, some of them padding."""
    batch = dict(random_inputs({**model.model.config.to_dict(), "max_position_embeddings": 24}, seed)[0])
    if model.model.config.model_type in layered.LIVE_COUNT:  # where only padding is in a window, softmax is of nothing
        batch["attention_mask"] = torch.ones_like(batch["attention_mask"])
    return batch
