"""The k-th largest magnitude of a model: what a sort of everything says, found without one."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from merge.run.engine.magnitude_ranking import magnitude_thresholds


def swept(models: list[list[Tensor]]) -> tuple[Callable[..., None], list[int]]:
    """Return a sweep over the pieces of every model, and a list that counts how often it was run."""
    runs: list[int] = []

    def sweep(visit: Callable[[int, Tensor], None]) -> None:
        runs.append(1)
        for model, pieces in enumerate(models):
            for piece in pieces:
                visit(model, piece)

    return sweep, runs


def drawn(sizes: list[int], dtype: torch.dtype, seed: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    spread = torch.linspace(-20, 3, len(sizes), dtype=torch.float64).exp()
    return [
        (torch.randn(n, generator=generator, dtype=torch.float64).abs() * s).to(dtype)
        for n, s in zip(sizes, spread, strict=True)
    ]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("fraction", [1e-4, 0.01, 0.2, 0.5, 0.999])
def test_the_threshold_is_the_one_of_a_full_sort(fraction: float, dtype: torch.dtype) -> None:
    """Over pieces of all sizes, magnitudes from 1e-9 to 20; each model on its own."""
    models = [drawn([1, 700, 3, 2000, 400], dtype, seed) for seed in (0, 1)]
    sweep, runs = swept(models)
    found = magnitude_thresholds([fraction, 0.3], sweep, double=dtype == torch.float64)
    for threshold, kept, pieces in zip(found, (fraction, 0.3), models, strict=True):
        everything = np.sort(torch.cat(pieces).numpy())[::-1]
        assert threshold == everything[max(int(kept * everything.size), 1) - 1]
        assert (everything >= threshold).sum() == max(int(kept * everything.size), 1)
    assert len(runs) == (4 if dtype == torch.float64 else 2)


def test_equal_magnitudes_are_kept_together() -> None:
    """Which of them to drop would be a matter of their order; zeros, denormals and large numbers too."""
    pieces = [torch.tensor([0.0, 2.0, 2.0, 2.0]), torch.tensor([1e-45, 3e38, 0.0, 2.0])]
    for fraction, expected in ((1 / 8, 3e38), (2 / 8, 2.0), (5 / 8, 2.0), (6 / 8, 1e-45), (7 / 8, 0.0)):
        sweep, _ = swept([pieces])
        (found,) = magnitude_thresholds([fraction], sweep, double=False)
        assert math.isclose(found, np.float32(expected), rel_tol=0)


def test_keeping_everything_reads_nothing() -> None:
    sweep, runs = swept([[torch.ones(3)]])
    assert magnitude_thresholds([1.0], sweep, double=False) == (0.0,)
    assert runs == []


def test_at_least_one_entry_is_kept() -> None:
    sweep, _ = swept([[torch.tensor([0.5, 0.25])]])
    assert magnitude_thresholds([0.01], sweep, double=False) == (0.5,)
