"""Measures of every layer, and of every block of neighbours, from one pass of the model over text.

With h_i the state that layer i reads, averaged over tokens that are not padding:

    block influence   1 - cos(h_i, h_i+1)                  Men et al. 2024, arXiv:2403.03853, equation 1
    relative norm     |h_i+1 - h_i| / |h_i|                the size of what a layer changes
    angular           arccos(cos(h_i, h_i+n)) / pi         Gromov et al. 2024, arXiv:2403.17887, equation 6, over all tokens
    linear fit        R2 of the best affine map from h_i to h_i+n, from streamed normal equations
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from merge.layers.activations import LiveLayers, states_of
from merge.layers.repair.ridge import NormalEquations
from merge.progress import track

if TYPE_CHECKING:
    from merge.checkpoints.inputs import Batch

LINEAR_RIDGE = 1e-6


@dataclass(frozen=True)
class LayerMeasures:
    """The measures of a model's layers.

    Attributes:
        block_influence, relative_norm: for each layer.
        block: the number of neighbours in a block.
        angular, linear_fit: for each block, by its first layer.
        tokens: how many the means are over.
    """

    block_influence: tuple[float, ...]
    relative_norm: tuple[float, ...]
    block: int
    angular: tuple[float, ...]
    linear_fit: tuple[float, ...]
    tokens: int

    def to_json(self) -> dict[str, Any]:
        """Return the measures for a report."""
        return {name: list(value) if isinstance(value, tuple) else value for name, value in vars(self).items()}


def measure_layers(live: LiveLayers, batches: Sequence[Batch], block: int = 1) -> LayerMeasures:
    """Return all measures from one pass; sums alone are kept.

    Args:
        block: the number of neighbouring layers that angular and linear fit look across.
    """
    total = live.total
    starts = range(total - block + 1)
    influence, norm = (torch.zeros(total, dtype=torch.float64) for _ in range(2))
    angle, tokens = torch.zeros(len(starts), dtype=torch.float64), 0
    maps: list[NormalEquations] = []
    for batch in track(batches, "measuring layers"):
        states = [rows.float() for _, rows in sorted(states_of(live, batch, range(total + 1)).items())]
        if not maps:
            width = states[0].shape[1]
            maps = [NormalEquations(width, width) for _ in starts]
        tokens += len(states[0])
        for layer in range(total):
            before, after = states[layer], states[layer + 1]
            influence[layer] += (1 - _cosine(before, after)).sum()
            norm[layer] += ((after - before).norm(dim=1) / before.norm(dim=1).clamp(min=1e-12)).double().sum()
        for start in starts:
            before, after = states[start], states[start + block]
            angle[start] += _cosine(before, after).clamp(-1, 1).arccos().sum() / torch.pi
            maps[start].add(before, after)
    solved = [each.solve(torch.zeros_like(each.xy), LINEAR_RIDGE) for each in maps]
    explained = [each.explained(weights) for each, weights in zip(maps, solved, strict=True)]
    return LayerMeasures(
        tuple((influence / tokens).tolist()),
        tuple((norm / tokens).tolist()),
        block,
        tuple((angle / tokens).tolist()),
        tuple(explained),
        tokens,
    )


def _cosine(a: Tensor, b: Tensor) -> Tensor:
    return torch.nn.functional.cosine_similarity(a.double(), b.double(), dim=1)
