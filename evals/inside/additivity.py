"""Weak additivity: does an activation, or a norm, of the average give the average of the activations?

With h the inputs of the activation in both models, and any lam:

    dist( (1 - lam) s(h_A) + lam s(h_B),  s((1 - lam) h_A + lam h_B) ),   dist(x, y) = |x - y|^2 / (|x| |y|)

for the model's own activation, for ReLU, and for the normalisation of each norm without its gain and bias. For ReLU
and lam = 1/2 it is the paper's: ReLU takes the factor out. The control is B's units in random order: what two vectors of
such units give that have nothing to do with one another.

Source: Zhou et al. 2023, arXiv:2307.08286, "weak additivity for ReLU activations"; other functions and the control are ours.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from evals.inside.sums import Distance

if TYPE_CHECKING:
    from torch import Tensor

    from evals.inside.rows import Rows
    from evals.inside.sites import Site

Function = Callable[["Tensor"], "Tensor"]


@dataclass(frozen=True)
class Additivity:
    """How far a function of a layer is from additive, on both models' inputs of it.

    Attributes:
        function: "GELUActivation", "ReLU", or "norm output.LayerNorm".
        vanilla, cosine: |x - y|^2 / (|x| |y|) and 1 - cos.
        control, control_cosine: the same with B's units in random order.
    """

    layer: int
    function: str
    vanilla: float
    cosine: float
    control: float
    control_cosine: float


class RunningAdditivity:
    """Running distance of a function from additive, at lam."""

    def __init__(self, site: Site, name: str, function: Function, lam: float) -> None:
        self.site, self.name, self.function, self.lam = site, name, function, lam
        self.distance, self.control = Distance(), Distance()

    def add(self, a: Rows, b: Rows) -> None:
        """Add the inputs of the function in both models; it gives units in another order in that order."""
        x, y = a.values.float(), b.values.float()
        of_x, of_y = self.function(x), self.function(y)
        order = torch.randperm(y.shape[1], generator=torch.Generator().manual_seed(0)).to(y.device)
        for distance, left, right in ((self.distance, y, of_y), (self.control, y[:, order], of_y[:, order])):
            inside = self.function(torch.lerp(x, left, self.lam))
            distance.add(torch.lerp(of_x, right, self.lam), inside)

    @property
    def result(self) -> Additivity:
        measured, control = self.distance, self.control
        assert self.site.layer is not None
        distances = (measured.vanilla, measured.cosine, control.vanilla, control.cosine)
        return Additivity(self.site.layer, self.name, *distances)


def normalisation(norm: Any) -> Function | None:
    """Return what a norm does before its gain and bias; None where its class says neither LayerNorm nor RMSNorm."""
    kind, eps = type(norm).__name__, float(getattr(norm, "eps", getattr(norm, "variance_epsilon", 1e-6)) or 1e-6)
    if "RMSNorm" in kind:
        return lambda x: x * (x.square().mean(-1, keepdim=True) + eps).rsqrt()
    if "LayerNorm" in kind:
        return lambda x: (x - x.mean(-1, keepdim=True)) * (x.var(-1, correction=0, keepdim=True) + eps).rsqrt()
    return None
