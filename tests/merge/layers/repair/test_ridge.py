"""Ridge least squares from sums, against numpy on the rows themselves."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from merge.errors import CalibrationError
from merge.layers.repair.ridge import NormalEquations, check_rows, fit, relative_error


def rows(count: int = 60, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x, y = (torch.randn(count, n, generator=generator, dtype=torch.float64) for n in (5, 3))
    return x + 0.5, y


def summed(x: Tensor, y: Tensor) -> NormalEquations:
    equations = NormalEquations(x.shape[1], y.shape[1])
    for part in range(0, len(x), 17):
        equations.add(x[part : part + 17], y[part : part + 17])
    return equations


def test_the_solution_is_that_of_least_squares_on_added_rows() -> None:
    """A ridge is least squares with rows sqrt(ridge d) (W - W0) = 0 for every feature, but for the constant."""
    x, y = rows()
    start = torch.full((6, 3), 0.25, dtype=torch.float64)
    wide = np.concatenate([x.numpy(), np.ones((60, 1))], 1)
    pull = np.sqrt(0.3 * (wide.T @ wide).diagonal()[:5].mean()) * np.eye(6)[:5]
    due = np.linalg.lstsq(np.concatenate([wide, pull]), np.concatenate([y.numpy(), pull @ start.numpy()]), rcond=None)[
        0
    ]
    assert np.allclose(summed(x, y).solve(start, 0.3).numpy(), due, atol=1e-7)


def test_error_and_explained_are_those_of_the_rows() -> None:
    x, y = rows()
    weights = torch.randn(6, 3, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    left = y - x @ weights[:-1] - weights[-1]
    equations = summed(x, y)
    assert abs(equations.error(weights) - float(left.square().sum(1).mean())) < 1e-9
    due = 1 - float(left.square().sum() / (y - y.mean(0)).square().sum())
    assert abs(equations.explained(weights) - due) < 1e-9


def test_features_that_depend_on_each_other_change_no_more_than_the_rows_need() -> None:
    """One feature is double another and one is always zero: the least change that fits, as numpy's pseudo-inverse has it."""
    x, y = rows()
    x = torch.cat([x, 2 * x[:, :1], torch.zeros(60, 1)], 1)
    start = torch.randn(8, 3, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    equations = summed(x, y)
    equations.xx += 1e-9 * torch.diag(torch.tensor([-1.0, 0, 0, 0, 0, -1, -1, 0])) * equations.xx.max()  # rounding
    wide = np.concatenate([x.numpy(), np.ones((60, 1))], 1)
    due = start.numpy() + np.linalg.pinv(wide) @ (y.numpy() - wide @ start.numpy())
    assert np.allclose(equations.solve(start, 0.0).numpy(), due, atol=1e-5)
    equations.add(torch.full((1, 7), torch.nan), torch.zeros(1, 3))
    with pytest.raises(CalibrationError, match="not finite"):
        equations.solve(start, 0.0)


def test_a_large_ridge_keeps_the_weights_and_none_fits_planted_ones() -> None:
    x, _ = rows()
    planted = torch.randn(6, 3, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    start, y = torch.zeros(6, 3, dtype=torch.float64), x @ planted[:-1] + planted[-1]
    equations = summed(x, y)
    assert torch.allclose(equations.solve(start, 0.0), planted, atol=1e-6)
    assert float(equations.solve(start, 1e9)[:-1].abs().max()) < 1e-6


def test_the_ridge_is_chosen_by_the_held_out_rows() -> None:
    """Few rows and noise: a fit that follows them is worse elsewhere than the weights that are there."""
    generator = torch.Generator().manual_seed(0)
    planted = torch.randn(41, 3, generator=generator, dtype=torch.float64)
    parts = []
    for count in (45, 200):
        x = torch.randn(count, 40, generator=generator, dtype=torch.float64)
        noise = 3 * torch.randn(count, 3, generator=generator, dtype=torch.float64)
        equations = NormalEquations(40, 3)
        equations.add(x, x @ planted[:-1] + planted[-1] + noise)
        parts.append(equations)
    chosen = fit(parts[0], parts[1], planted, (1e-6, 1e3))
    assert chosen.ridge == 1e3
    assert chosen.held_out[1e3] < chosen.held_out[1e-6]
    assert chosen.rows == 245


def test_held_out_rows_are_fitted_only_where_all_are() -> None:
    """Without `whole` the held-out rows can still judge the fit: the weights are those of the first rows alone."""
    (x, y), (other, due) = rows(), rows(30, 1)
    start = torch.zeros(6, 3, dtype=torch.float64)
    alone = fit(summed(x, y), summed(other, due), start, (0.1,), whole=False)
    assert alone.rows == 60
    assert torch.equal(alone.weights, summed(x, y).solve(start, 0.1))
    both = fit(summed(x, y), summed(other, due), start, (0.1,))
    assert both.rows == 90
    assert not torch.allclose(both.weights, alone.weights)


def test_a_fit_takes_as_many_tokens_as_units() -> None:
    check_rows("a map", 24, 24)
    with pytest.raises(CalibrationError, match="a map needs text of at least 24 tokens, .* found 23"):
        check_rows("a map", 23, 24)


def test_what_does_not_vary_is_explained_and_its_error_is_a_share_of_its_size() -> None:
    """Its variance, which is the rounding of float32, would give any number; of rows that vary it is the variance."""
    x, y = rows()
    noise = torch.randn(60, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    for due, varies in ((3 + 1e-7 * noise, False), (y, True)):
        given = due + 0.1
        sums = float((given - due).square().sum()), float(due.square().sum()), due.sum(0), 60
        scale = float((due - due.mean(0) if varies else due).square().sum())
        assert relative_error(*sums) == pytest.approx(sums[0] / scale)
        equations = summed(x, due)
        assert (equations.explained(torch.zeros(6, 3, dtype=torch.float64)) == 1.0) is not varies
    assert relative_error(0.0, 0.0, torch.zeros(3), 60) == 0
