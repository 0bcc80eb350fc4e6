"""What single networks and pairs of them are like: on how many rows two differ, and how many units carry a network."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import combinations

import torch
from torch import Tensor

from two_layer.nets import Data, logits, predicted

STRENGTH_SHARE = 0.95  # of a network's strength that its strong units have


@torch.inference_mode()
def disagreements(nets: Mapping[str, Tensor], data: Data) -> Tensor:
    """Return the share of the test rows on which two networks predict different classes, of every pair; shape (pairs,)."""
    classes = predicted(logits(nets, data.test))
    pairs = combinations(range(len(classes)), 2)
    return torch.stack([(classes[i] != classes[j]).double().mean() for i, j in pairs])


def strong_units(nets: Mapping[str, Tensor], share: float = STRENGTH_SHARE) -> Tensor:
    """Return how many of the strongest units have a share of the strength of each network, shape (networks,).

    The strength of a unit is |n|^2 + |o|^2 with n its incoming weights and bias, o its outgoing weights: the part of the
    network's squared norm that is its own.

    Args:
        nets: of one hidden layer, without LayerNorm.
    """
    incoming = nets["layers.0.dense.weight"].double().square().sum(2) + nets["layers.0.dense.bias"].double().square()
    strength = incoming + nets["classifier.weight"].double().square().sum(1)
    sorted_shares = (strength / strength.sum(1, keepdim=True)).sort(1, descending=True).values
    return ((sorted_shares.cumsum(1) < share).sum(1) + 1).clamp(max=strength.shape[1]).double()
