"""Tiny models that read rows of numbers: plain multi-layer perceptrons, with LayerNorm and without."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from families import LABELS
from torch import Tensor

SIZES: dict[str, Any] = {"input_size": 5, "hidden_size": 12, "num_hidden_layers": 4, "layer_norm": False}


def _case(**changes: Any) -> dict[str, Any]:
    return {"model_type": "mlp", "architectures": ["MLPForSequenceClassification"], **SIZES, **LABELS, **changes}


CASES: dict[str, dict[str, Any]] = {
    "MLPForSequenceClassification": _case(),
    "mlp with LayerNorm": _case(layer_norm=True),
    "mlp of tanh": _case(hidden_act="tanh"),
}
INERT: dict[str, dict[str, str]] = {}


def inputs(config: Mapping[str, Any], seed: int = 0) -> tuple[dict[str, Tensor], ...]:
    """Return random rows of numbers."""
    generator = torch.Generator().manual_seed(seed)
    shape = (4, config["input_size"])
    return tuple({"input_ids": torch.randn(shape, generator=generator, dtype=torch.float64)} for _ in range(4))


def write_rows_of_numbers(path: Path, lines: int, size: int = SIZES["input_size"]) -> Path:
    """Write calibration rows, the numbers of each on a line."""
    rows = torch.randn((lines, size), generator=torch.Generator().manual_seed(3))
    path.write_text("".join(" ".join(map(str, row)) + "\n" for row in rows.tolist()), encoding="utf-8")
    return path
