"""Exact quartiles, and which entries of a model are set into its base."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from merge.methods import make_method
from merge.methods.arcee_fusion import importance, threshold


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5, 101, 1000])
def test_quartiles_are_entries_of_the_sorted_list(count: int) -> None:
    """numpy's "lower" quantile is the entry at floor(q (n-1))."""
    values = np.random.default_rng(count).normal(size=count)
    first, median, third = np.quantile(values, [0.25, 0.5, 0.75], method="lower")
    assert threshold(values.copy()) == median + 1.5 * (third - first)
    if count > 4:
        assert threshold(values) != np.median(values)


def test_one_entry_moved_far_is_the_one_taken_over() -> None:
    """A planted change stands out of the noise; the rest of the tensor keeps the base's bits."""
    generator = torch.Generator().manual_seed(0)
    base = torch.randn(40, 30, generator=generator)
    model = base + 1e-4 * torch.randn(40, 30, generator=generator)
    model[7, 3] += 2.0
    merged = make_method("arcee_fusion", {}, [None])([model], base)
    assert merged[7, 3] == model[7, 3]
    taken = merged != base
    assert 0 < int(taken.sum()) < 0.25 * base.numel()
    assert torch.equal(merged[taken], model[taken])


def test_importance_sees_a_divergence_that_float32_rounds_away() -> None:
    """Near models have a divergence of second order: terms of 1e-3 cancel to 1e-9, which needs float64."""
    generator = torch.Generator().manual_seed(0)
    base = torch.randn(3, 500, generator=generator)
    model = base + 1e-4 * torch.randn(3, 500, generator=generator)
    step = (model.double() - base.double()).numpy()
    q = np.exp(base.double().numpy())
    q /= q.sum(1, keepdims=True)
    # To second order the divergence is half the variance of the step under q.
    expected = ((q * step**2).sum(1) - (q * step).sum(1) ** 2) / 2
    found = importance(model, base) / np.abs(step)
    assert found[:, 0] == pytest.approx(expected, rel=1e-3)


def test_a_row_of_one_entry_has_no_divergence() -> None:
    """Its softmax is 1 in every model: nothing stands out of zeros, and all entries reach the threshold of 0."""
    base, model = torch.zeros(4, 1), torch.arange(4.0).reshape(4, 1)
    assert torch.equal(make_method("arcee_fusion", {}, [None])([model], base), model)
