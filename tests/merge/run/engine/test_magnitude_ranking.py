"""The k-th largest magnitude of a model: what a sort of everything says, found without one."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from merge.run.engine.magnitude_ranking import magnitude_thresholds


def swept(models: list[list[Tensor]], step: int = 7, only: int | None = None) -> tuple[Any, list[bool]]:
    """Return a sweep over the pieces of every model, and a list with what each of its runs was: a sample or not.

    Args:
        step: one entry of so many is in the sample, of the first `only` entries of each piece.
    """
    runs: list[bool] = []

    def sweep(visit: Callable[[int, Any], None], sampled: bool) -> None:
        runs.append(sampled)
        for model, pieces in enumerate(models):
            for piece in pieces:
                visit(model, (piece[:only][::step] if sampled else piece).numpy())

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
    assert runs == [True] + [False] * (4 if dtype == torch.float64 else 2)


# What a model of many entries holds -> whether a sample from its beginning shows where the threshold is.
LARGE: dict[str, tuple[Callable[[Tensor], Tensor], bool]] = {
    "entries of one kind": (lambda drawn: drawn, True),
    "larger entries at the end": (lambda drawn: torch.cat([drawn, drawn + 9, drawn + 99]), False),
    "half zeros": (lambda drawn: drawn * (torch.arange(len(drawn)) % 2), True),
    "equal magnitudes": (lambda drawn: torch.ones_like(drawn), False),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("content", LARGE)
def test_a_sample_shortens_the_way_and_changes_nothing(content: str, dtype: torch.dtype) -> None:
    """One pass over everything where the sample brackets the threshold; where it does not, the digits give it."""
    make, shows = LARGE[content]
    entries = make(drawn([40000], dtype, 0)[0])
    everything = np.sort(entries.numpy())[::-1]
    for fraction in (1e-5, 0.01, 0.4, 0.999):
        sweep, runs = swept([[entries]], only=40000)
        (found,) = magnitude_thresholds([fraction], sweep, double=dtype == torch.float64)
        assert found == everything[max(int(fraction * everything.size), 1) - 1]
        if fraction == 0.4:
            assert (runs == [True, False]) is shows


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
