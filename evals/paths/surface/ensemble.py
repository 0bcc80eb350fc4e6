"""Averages of the predicted probabilities of several models, and how well they are calibrated."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

BINS = 15  # of confidence, as Guo et al. take them


@dataclass(frozen=True)
class Calibration:
    """Scores of predicted probabilities.

    Attributes:
        accuracy: share of the rows whose most probable class is the gold one.
        nll: mean negative log-likelihood of the gold class.
        ece: expected calibration error: the mean over rows of how far the accuracy in their bin of confidence is from the
            bin's mean confidence.
    """

    accuracy: float
    nll: float
    ece: float


def calibration(probabilities: Float[Tensor, "rows classes"], gold: Int[Tensor, " rows"]) -> Calibration:
    """Return accuracy, negative log-likelihood and expected calibration error; float64.

    Source: Guo et al. 2017, arXiv:1706.04599, equation 3; BINS bins of one width.
    """
    exact = probabilities.double()
    confidence, predicted = exact.max(1)
    right = (predicted == gold).double()
    # Bins are (0, 1/15], (1/15, 2/15], ...
    at = (confidence * BINS).ceil().long().clamp(1, BINS) - 1
    counts = torch.zeros(BINS, dtype=torch.float64).index_add_(0, at, torch.ones_like(confidence))
    gaps = torch.zeros(BINS, dtype=torch.float64).index_add_(0, at, right - confidence)
    nll = -exact[torch.arange(len(gold)), gold].clamp(min=1e-300).log().mean()
    return Calibration(float(right.mean()), float(nll), float(gaps.abs().sum() / counts.sum()))
