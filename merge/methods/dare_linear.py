"""DARE, then task arithmetic: task vectors with random entries dropped and the rest rescaled, added up."""

from __future__ import annotations

from dataclasses import dataclass

from merge.methods.dare import Dare


@dataclass(frozen=True)
class DareLinear(Dare):
    """Return theta_0 + scale * sum_m w_m t_m, t_m the task vector m with random entries dropped and the others rescaled.

    t_m = d_m * mask / density, mask ~ Bernoulli(density), d_m = theta_m - theta_0.

    Attributes:
        density: probability that an entry is kept (1 - p of the paper), for all models or one per model. The paper tunes p
            and gives no default; 0.5 is the middle of its range.
        weights: one per model; all 1 when None.
        normalize: divide by the sum of the weights.
        scale: lambda of the paper.
        rescale: kept entries are divided by their "probability" of being kept (the paper: the expected task vector is
            unchanged), scaled to keep the "l1" norm of the tensor's task vector (mergekit), or left unscaled ("none").
    Source: Yu et al. 2024, "Language models are super Mario", arXiv:2311.03099 (DARE).
    """

    name = "dare_linear"
    elect = False
