"""Maps between states in closed form from sums, against numpy on the rows themselves and against planted answers."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from merge.errors import CalibrationError, UsageError
from merge.layers.repair.ridge import NormalEquations
from merge.layers.stitching.maps import Norm, fit_map, fit_rotation, mean_map
from merge.layers.stitching.norms import divisor, rotation_before_norm

UNITS, ROWS = 5, 80
RIDGES = (1e-9,)


def rows(seed: int = 0, units: int = UNITS) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(ROWS, units, generator=generator, dtype=torch.float64) * torch.arange(1, units + 1) + 0.5


def sums(x: Tensor, y: Tensor) -> tuple[NormalEquations, NormalEquations]:
    """Return the sums of the rows, in two batches, and none held out."""
    whole, none = (NormalEquations(x.shape[1], y.shape[1]) for _ in range(2))
    for part in (slice(0, 33), slice(33, None)):
        whole.add(x[part], y[part])
    return whole, none


def rotation(seed: int = 3) -> Tensor:
    return torch.linalg.qr(torch.randn(UNITS, UNITS, generator=torch.Generator().manual_seed(seed)).double()).Q


def planted(kind: str) -> tuple[Tensor, Tensor]:
    """Return (W, c) of a map that belongs to a kind and to none of the smaller ones."""
    generator = torch.Generator().manual_seed(5)
    constant = torch.randn(UNITS, generator=generator, dtype=torch.float64)
    if kind == "permutation":
        return torch.eye(UNITS, dtype=torch.float64)[:, [2, 0, 1, 4, 3]], torch.zeros(UNITS, dtype=torch.float64)
    if kind == "scale":
        return torch.diag(torch.randn(UNITS, generator=generator, dtype=torch.float64)), constant
    if kind == "orthogonal":
        return rotation(), constant
    factors = [torch.randn(UNITS, 2, generator=generator, dtype=torch.float64) for _ in range(2)]
    thin = factors[0] @ factors[1].T
    return (thin if kind == "low-rank" else thin + torch.eye(UNITS)), constant


@pytest.mark.parametrize("kind", ["scale", "permutation", "orthogonal", "low-rank", "affine"])
def test_a_planted_map_is_recovered(kind: str) -> None:
    """And not by a smaller family than it is of: the identity leaves an error."""
    weight, constant = planted(kind)
    x = rows()
    fitted = fit_map(kind, *sums(x, x @ weight + constant), RIDGES, 2 if kind == "low-rank" else None)
    assert (fitted.weight - weight).abs().max() < 1e-6
    assert (fitted(x) - x @ weight - constant).abs().max() < 1e-5
    assert fitted.explained is not None
    assert fitted.explained > 1 - 1e-9
    assert (x - x @ weight - constant).abs().max() > 0.1


def test_fits_of_noise_are_those_of_numpy() -> None:
    """Least squares (affine), its best approximation of a lower rank, the SVD (orthogonal), one slope a unit (scale)."""
    x, y = rows(), rows(1)
    wide = np.concatenate([x.numpy(), np.ones((ROWS, 1))], 1)
    due = np.linalg.lstsq(wide, y.numpy(), rcond=None)[0]
    affine = fit_map("affine", *sums(x, y), RIDGES)
    assert np.allclose(affine.weight.numpy(), due[:-1], atol=1e-6)
    centred_x, centred_y = (z.numpy() - z.numpy().mean(0) for z in (x, y))
    left, size, right = np.linalg.svd(centred_x @ due[:-1], full_matrices=False)
    low = fit_map("low-rank", *sums(x, y), RIDGES, 2)
    assert np.allclose((low(x) - y.mean(0)).numpy(), left[:, :2] * size[:2] @ right[:2], atol=1e-5)
    u, _, v = np.linalg.svd(centred_x.T @ centred_y)
    assert np.allclose(fit_map("orthogonal", *sums(x, y), RIDGES).weight.numpy(), u @ v, atol=1e-9)
    slopes = [np.polyfit(x[:, k], y[:, k], 1)[0] for k in range(UNITS)]
    assert np.allclose(fit_map("scale", *sums(x, y), RIDGES).weight.diagonal().numpy(), slopes, atol=1e-9)


def test_a_rotation_without_a_constant_may_have_to_fix_the_ones() -> None:
    x = rows()
    free = fit_rotation(sums(x, x @ rotation())[0], fixes_ones=False)
    assert (free.weight - rotation()).abs().max() < 1e-9
    fixed = fit_rotation(sums(x, x @ rotation())[0], fixes_ones=True)
    assert (fixed.weight.T @ fixed.weight - torch.eye(UNITS)).abs().max() < 1e-9
    assert (fixed.weight.sum(1) - 1).abs().max() < 1e-9
    assert (free.weight.sum(1) - 1).abs().max() > 0.1


def test_an_affine_fit_of_few_rows_is_pulled_to_the_rotation_and_not_to_zero() -> None:
    """With a large ridge nothing is left but the rotation times the best factor."""
    x = rows()
    fitted = fit_map("affine", *sums(x, 2 * x @ rotation() + 1), (1e9,))
    assert (fitted.weight - 2 * rotation()).abs().max() < 1e-6


def test_the_mean_map_forgets_its_input() -> None:
    x, y = rows(), rows(1)
    mean = mean_map(sums(x, y)[0])
    assert (mean(x) - y.mean(0)).abs().max() < 1e-9


@pytest.mark.parametrize("kind", ["identity", "scale", "permutation"])
def test_maps_of_one_width_say_so(kind: str) -> None:
    with pytest.raises(UsageError, match=r"bottom model has 5 units, the top one 4"):
        fit_map(kind, *sums(rows(), rows(1, 4)), RIDGES)


def test_a_rotation_between_widths_keeps_lengths() -> None:
    weight = fit_map("orthogonal", *sums(rows(), rows(1, 4)), RIDGES).weight
    assert (weight.T @ weight - torch.eye(4)).abs().max() < 1e-9


def test_too_few_tokens_and_a_rank_that_is_none() -> None:
    x = rows()[:3]
    with pytest.raises(CalibrationError, match=r"needs text of at least 5 tokens.*found 3"):
        fit_map("affine", *sums(x, x), RIDGES)
    with pytest.raises(UsageError, match=r"has rank 1 to 4"):
        fit_map("low-rank", *sums(rows(), rows(1)), RIDGES, 5)


def test_a_gain_near_zero_is_not_divided_by() -> None:
    """The least divisor is a thousandth of the mean size, which signs do not cancel, and keeps the sign of its gain."""
    gain = torch.tensor([1.0, -1.0, 1e-9, -1e-9], dtype=torch.float64)
    assert torch.allclose(divisor(gain), torch.tensor([1.0, -1.0, 5e-4, -5e-4], dtype=torch.float64), rtol=1e-6)


def test_a_rotation_to_a_state_is_taken_back_through_its_norm() -> None:
    """Of a state 2 n + bias with n = x R the best rotation is 2 x R + bias, which n is reached from by R and no constant."""
    x, turn = rows(), rotation()
    norm = Norm(torch.full((UNITS,), 2.0), torch.arange(UNITS, dtype=torch.float32) - 1, 0.0)
    whole, _ = sums(x, x @ turn)
    due = torch.cat([turn, torch.zeros(1, UNITS, dtype=torch.float64)])
    assert (rotation_before_norm(whole, norm) - due).abs().max() < 1e-9
