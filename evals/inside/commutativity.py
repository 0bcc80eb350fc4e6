"""Commutativity of weights and features: may the inputs of a linear layer be those of the other model?

With W the weight and H the inputs of one linear layer in both models:

    Dist_com = dist( W_A H_A + W_B H_B,  W_A H_B + W_B H_A ),   dist(x, y) = |x - y|^2 / (|x| |y|)

to be compared with Dist_W = dist(W_A, W_B) and Dist_H = dist(H_A, H_B): the two commute where Dist_com is far below both.
The difference of the two sides is (W_A - W_B)(H_A - H_B), which is how it is computed, without cancellation.

Source: Zhou et al. 2023, arXiv:2307.08286, "commutativity property".
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from evals.inside.sums import Distance, squares

if TYPE_CHECKING:
    from torch import Tensor

    from evals.inside.rows import Rows
    from evals.inside.sites import Site


@dataclass(frozen=True)
class Commutativity:
    """Of one linear layer: Dist_com beside Dist_W and Dist_H."""

    layer: int
    module: str
    combined: float
    weights: float
    inputs: float


class RunningCommutativity:
    """Running commutativity of one linear layer; its site is what it reads."""

    def __init__(self, site: Site, name: str, a: Any, b: Any) -> None:
        self.site, self.name = site, name
        self.a, self.b = matrix(a), matrix(b)
        self.weights, self.inputs, self.combined = Distance(), Distance(), Distance()
        self.weights.add(self.a, self.b)

    def add(self, a: Rows, b: Rows) -> None:
        """Add the inputs of the layer in both models."""
        self.inputs.add(a.values, b.values)
        common = (a.values + b.values) @ (self.a + self.b)  # twice the common part of both sides
        gap = (a.values - b.values) @ (self.a - self.b)  # their difference
        self.combined.add_squares(squares(common + gap) / 4, squares(common - gap) / 4, squares(gap))

    @property
    def result(self) -> Commutativity:
        assert self.site.layer is not None
        distances = (self.combined.vanilla, self.weights.vanilla, self.inputs.vanilla)
        return Commutativity(self.site.layer, self.name, *distances)


def matrix(module: Any) -> Tensor:
    """Return the weight of a linear layer as (inputs, outputs)."""
    from torch import nn

    weight: Tensor = module.weight.detach()
    return weight.T if isinstance(module, nn.Linear) else weight


def is_linear(module: Any) -> bool:
    """Return whether a module is a plain linear layer: nn.Linear, or Conv1D of GPT-2."""
    from torch import nn
    from transformers.pytorch_utils import Conv1D

    return isinstance(module, nn.Linear | Conv1D)
