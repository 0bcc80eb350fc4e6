"""DARE, then sign election: random entries are dropped, and the models with the elected sign are averaged."""

from __future__ import annotations

from dataclasses import dataclass

from merge.methods.dare import Dare


@dataclass(frozen=True)
class DareTies(Dare):
    """Return theta_0 + scale * mean of the w_m t_m that agree in sign, t_m the task vector m after random drops.

    t_m = d_m * mask / density, mask ~ Bernoulli(density), d_m = theta_m - theta_0.

    Random drops replace the trimming of TIES; sign election and mean are those of TIES.
    The authors' code (MergeLM, mask_merging) runs all of TIES on the dropped and rescaled models: it also trims them, to the 20%
    of largest magnitude over the whole model by default. mergekit does not trim, as this does not.

    Attributes:
        density: probability that an entry is kept (1 - p of the paper), for all models or one per model. The paper tunes p
            and gives no default; 0.5 is the middle of its range.
        weights: one per model; all 1 when None.
        normalize: average the agreeing models instead of summing them (mergekit sums by default).
        scale: lambda of the paper.
        rescale: kept entries are divided by their "probability" of being kept (the paper: the expected task vector is
            unchanged), scaled to keep the "l1" norm of the tensor's task vector (mergekit), or left unscaled ("none").
    Source: Yu et al. 2024, "Language models are super Mario", arXiv:2311.03099 (DARE).
    """

    normalize: bool = True

    name = "dare_ties"
    elect = True
