"""Planes: coordinates are those of Gram and Schmidt, collinear points are refused, and the grid is finer where the loss bends."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from evals.paths.surface.plane import Lattice, lattice_around, measure_lattice, principal_plane, span
from evals.paths.surface.weights import combine, distances, gram, length
from merge.errors import UsageError

SINGLE = [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]]


def models(*points: list[float]) -> list[dict[str, torch.Tensor]]:
    """Return models whose weights are points of space, in two tensors and with an integer buffer."""
    return [
        {"w": torch.tensor(point[:2]), "b": torch.tensor([point[2:]]), "ids": torch.tensor([k])}
        for k, point in enumerate(points)
    ]


def test_distances_are_those_of_the_flat_vectors() -> None:
    points = [[0.0, 1.0, 2.0], [3.0, -1.0, 0.5], [1.0, 1.0, 1.0], [9.0, 0.0, 4.0]]
    flat = np.array(points)
    expected = np.linalg.norm(flat[:, None] - flat, axis=2)
    assert distances(gram(models(*points))) == pytest.approx(expected, abs=1e-6)
    assert length(models(*points)[3]) == pytest.approx(math.sqrt(97))


def test_a_combination_is_the_sum_and_one_model_is_itself_bit_for_bit() -> None:
    a, b, c = models([-0.0, 1.0, 2.0], [3.0, math.pi, 0.5], [1e-30, 1.0, 1.0])
    assert combine([a, b, c], [0, 1, 0])["w"].data_ptr() == b["w"].data_ptr()
    mixed = combine([a, b, c], [0.5, 0.25, 0.25])
    assert mixed["w"].tolist() == pytest.approx([0.75, 0.5 + math.pi / 4 + 0.25])
    assert mixed["ids"].tolist() == [0]
    assert b["w"].tolist() == pytest.approx([3.0, math.pi])  # inputs are as they were


def test_the_axes_are_those_of_gram_and_schmidt() -> None:
    """A right triangle with sides 3 and 4: its corners are (0, 0), (3, 0) and (0, 4), and a fourth model is off the plane."""
    points = [[1.0, 1.0, 1.0], [4.0, 1.0, 1.0], [1.0, 5.0, 1.0], [1.0, 1.0, 3.0]]
    products = gram(models(*points))
    plane = span([[*row, 0.0] for row in SINGLE], ["a", "b", "c"], products)
    places = [plane.place([float(k == m) for k in range(4)]) for m in range(4)]
    assert np.array(places) == pytest.approx(np.array([(0, 0, 0), (3, 0, 0), (0, 4, 0), (0, 0, 2)]), abs=1e-6)
    weights = combine(models(*points), plane.coefficients(1.5, 2.0))
    assert torch.cat([weights["w"], weights["b"][0]]).tolist() == pytest.approx([2.5, 3.0, 1.0])
    assert sum(plane.coefficients(-7.0, 3.0)) == pytest.approx(1)


@pytest.mark.parametrize(
    ("third", "message"),
    [
        ([3.0, 6.0, 9.0], "a, b and c are on one line: c is .* of its distance off the line"),
        ([3.0, 6.0, 9.001], "are on one line"),
        ([1.0, 2.0, 3.0], "b and c have the same weights"),
    ],
)
def test_collinear_models_are_refused(third: list[float], message: str) -> None:
    products = gram(models([0.0, 0.0, 0.0], [1.0, 2.0, 3.0], third))
    with pytest.raises(UsageError, match=message):
        span(SINGLE, ["a", "b", "c"], products)
    span(SINGLE, ["a", "b", "c"], gram(models([0.0, 0.0, 0.0], [1.0, 2.0, 3.0], [3.0, 6.0, 9.5])))  # off the line


def test_the_principal_plane_is_that_of_numpy() -> None:
    points = np.random.default_rng(0).normal(size=(5, 3)).astype(np.float32)
    plane, shares = principal_plane(gram(models(*points.tolist())))
    centred = points - points.mean(0)
    scores, values, _ = np.linalg.svd(centred.astype(np.float64), full_matrices=False)
    places = np.array([plane.place([float(k == m) for k in range(5)]) for m in range(5)])
    assert np.abs(places[:, :2]) == pytest.approx(np.abs(scores[:, :2] * values[:2]), abs=1e-5)
    assert shares == pytest.approx(tuple(values[:2] ** 2 / (values**2).sum()), abs=1e-6)
    assert np.linalg.norm(places, axis=1) == pytest.approx(np.linalg.norm(centred, axis=1), abs=1e-5)
    with pytest.raises(UsageError, match="the checkpoints are on one line"):
        principal_plane(gram(models([0.0, 0.0, 0.0], [1.0, 1.0, 1.0], [2.0, 2.0, 2.0])))


def bowl(lattice: Lattice, narrow: float) -> dict[tuple[int, int], float]:
    """Return the loss exp(narrow hill at (0, 0)) + 1 measured on a lattice; no point is measured twice."""
    measured: list[tuple[int, int]] = []

    def measure(points: list[tuple[int, int]]) -> list[float]:
        measured.extend(points)
        places = [lattice.place(*point) for point in points]
        return [1 + math.exp(-narrow * (x * x + y * y)) for x, y in places]

    loss = measure_lattice(lattice, measure)
    assert len(measured) == len(set(measured)) == len(loss)
    return loss


def test_the_grid_is_finer_where_the_loss_bends() -> None:
    lattice = lattice_around([(-1.0, -1.0), (1.0, 1.0)], 7, 2)
    assert lattice.low == pytest.approx((-1.4, -1.4))
    assert lattice.high == pytest.approx((1.4, 1.4))
    loss = bowl(lattice, narrow=12.0)
    fine = [lattice.place(*point) for point in loss if point[0] % lattice.step or point[1] % lattice.step]
    assert 49 < len(loss) <= 3 * 49
    assert max(math.hypot(x, y) for x, y in fine) < 1.5  # of corners at 1.98
    assert set(lattice.even()) <= set(loss)


def test_a_loss_without_bends_keeps_the_even_grid() -> None:
    """The negative control: the logarithm of the loss is linear."""
    lattice = lattice_around([(0.0, 0.0), (1.0, 2.0)], 5, 3)
    loss = measure_lattice(lattice, lambda at: [math.exp(sum(lattice.place(*point))) for point in at])
    assert sorted(loss) == sorted(lattice.even())


@pytest.mark.parametrize("order", [(0, 1, 2), (1, 0, 2), (1, 2, 0)])
def test_models_that_are_lost_beside_a_far_one_are_not_called_the_same(order: tuple[int, ...]) -> None:
    """Two models are 5 apart and the third is 1e38 away, whichever is named first; at 1e3 the plane is drawn (control)."""
    far, near = [1e38, 0.0, 0.0], [[0.0, 3.0, 0.0], [0.0, 0.0, 4.0]]
    products = gram(models(*([far, *near][k] for k in order)))
    assert np.sort(distances(products)[np.triu_indices(3, 1)]) == pytest.approx([5, 1e38, 1e38])
    names = ["far", "one", "two"]
    with pytest.raises(UsageError, match=r"one and two are 5 apart, and far is 1e\+38 away.*does far hold weights"):
        span(SINGLE, [names[k] for k in order], products)
    span(SINGLE, names, gram(models(*near, [1e3, 0.0, 0.0])))


def test_distances_of_weights_at_the_ends_of_float32_are_finite() -> None:
    """3e38 and -3e38 are 6e38 apart, which float32 cannot hold."""
    a, b = models([3e38, 0.0, 0.0], [-3e38, 0.0, 0.0])
    assert distances(gram([a, b]))[0, 1] == pytest.approx(6e38)
