"""The plane through three points of weight space: its coordinates, and an even grid that is refined where the loss bends.

Every point of the plane is a combination of the models with coefficients that sum to 1. With o the first of the three, and d1, d2
the ways from it to the others, Gram and Schmidt give the axes

    u = d1 / |d1|        v = (d2 - <d2, u> u) / |d2 - <d2, u> u|

and the point (x, y) is o + x u + y v; x and y are Euclidean distances of weights.

Source: Garipov et al. 2018, arXiv:1802.10026, section 3.3 and its plane.py (there the axes are divided by nothing).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from evals.paths.surface.weights import inner
from merge.errors import UsageError

# Three points whose third is nearer to the line of the others than this share of its distance span no plane.
LEAST_SINE = 1e-3
# Where one side of their triangle is shorter than this share of another, places are lost in the rounding of float64.
LEAST_SIDE = 1e-6
# The picture extends beyond the points on it by this share of its width and height.
MARGIN = 0.2
# A point bends the log loss where it is further from the mean of its neighbours than this share of the range.
BEND_SHARE = 0.02
LEAST_BEND = 1e-4
# How many times as many points as the even grid has are measured at most.
MOST_TIMES = 3


@dataclass(frozen=True)
class Plane:
    """A plane through weight space, in coefficients of the models that span it.

    Attributes:
        origin: coefficients of the point (0, 0), shape (models,); they sum to 1.
        u, v: coefficients of the axes, of length 1 and perpendicular; they sum to 0.
        products: of the models' differences (`gram`), shape (models, models).
    """

    origin: np.ndarray
    u: np.ndarray
    v: np.ndarray
    products: np.ndarray

    def coefficients(self, x: float, y: float) -> tuple[float, ...]:
        """Return the models' coefficients of a point."""
        return tuple((self.origin + x * self.u + y * self.v).tolist())

    def place(self, coefficients: Sequence[float]) -> tuple[float, float, float]:
        """Return (x, y, distance off the plane) of a combination of the models whose coefficients sum to 1."""
        away = np.asarray(coefficients, dtype=np.float64) - self.origin
        x, y = inner(self.products, away, self.u), inner(self.products, away, self.v)
        rest = away - x * self.u - y * self.v
        return x, y, math.sqrt(max(inner(self.products, rest, rest), 0.0))


def span(points: Sequence[Sequence[float]], names: Sequence[str], products: np.ndarray) -> Plane:
    """Return the plane through three points.

    Args:
        points: coefficients of each, which sum to 1.
        names: of the points, for errors.
        products: of the models' differences (`gram`), shape (models, models).
    Raises:
        UsageError: two of them are the same, or too near to one another beside the third, or all three are on one line.
    """
    o, a, b = (np.asarray(point, dtype=np.float64) for point in points)
    first, second = a - o, b - o
    long = math.sqrt(max(inner(products, first, first), 0.0))
    far = math.sqrt(max(inner(products, second, second), 0.0))
    apart = math.sqrt(max(inner(products, b - a, b - a), 0.0))
    for distance, (one, other, third) in ((long, (0, 1, 2)), (far, (0, 2, 1)), (apart, (1, 2, 0))):
        if distance == 0:
            raise UsageError(
                f"{names[one]} and {names[other]} have the same weights; a plane takes three different models."
            )
        if distance < LEAST_SIDE * (longest := max(long, far, apart)):
            raise UsageError(
                f"{names[one]} and {names[other]} are {distance:.2g} apart, and {names[third]} is {longest:.2g} away from them: "
                "all are on one line but for rounding. A plane takes three models whose distances are of one size; does "
                f"{names[third]} hold weights that are out of range?"
            )
    u = first / long
    v = second - inner(products, second, u) * u
    off = math.sqrt(max(inner(products, v, v), 0.0))
    if off <= LEAST_SINE * far:
        raise UsageError(
            f"{names[0]}, {names[1]} and {names[2]} are on one line: {names[2]} is {off / far:.1e} of its distance off the line "
            f"of the others (at least {LEAST_SINE:g} is expected). A plane takes three models that are not; `evaluate-models "
            "line` measures a line."
        )
    return Plane(o, u, v / off, products)


def principal_plane(products: np.ndarray) -> tuple[Plane, tuple[float, float]]:
    """Return the plane through the average of models along their first two principal components, and the share of each.

    Args:
        products: of the models' differences (`gram`), shape (models, models).
    Raises:
        UsageError: the models are on one line.
    """
    count = len(products)
    centring = np.eye(count) - 1 / count
    values, vectors = np.linalg.eigh(centring @ products @ centring)
    order = np.argsort(values)[::-1][:2]
    total, axes = float(values[values > 0].sum()), []
    if total <= 0 or values[order[1]] <= LEAST_SINE**2 * total:
        raise UsageError("the checkpoints are on one line; a plane takes three that are not.")
    for k in order:
        # X = C w has the covariance products; its axis is X' e / sqrt(value), so the coefficients are C e / sqrt(value).
        axis = centring @ vectors[:, k] / math.sqrt(values[k])
        axes.append(axis * (1 if axis[-1] >= 0 else -1))
    shares = float(values[order[0]] / total), float(values[order[1]] / total)
    return Plane(np.full(count, 1 / count), axes[0], axes[1], products), shares


Cell = tuple[int, int, int]  # column and row of its lower left corner on the finest lattice, and its size there


@dataclass(frozen=True)
class Lattice:
    """The even grid of a plane, and the finer one that it may be refined to.

    Attributes:
        low, high: corners of the picture, (x, y).
        points: along each side of the even grid.
        levels: how often a cell may be halved.
    """

    low: tuple[float, float]
    high: tuple[float, float]
    points: int
    levels: int

    @property
    def step(self) -> int:
        """The step of the even grid on the finest lattice."""
        return 1 << self.levels

    def even(self) -> list[tuple[int, int]]:
        """Return the points of the even grid, row by row."""
        side = range(0, (self.points - 1) * self.step + 1, self.step)
        return [(i, j) for j in side for i in side]

    def place(self, i: int, j: int) -> tuple[float, float]:
        """Return (x, y) of a point of the finest lattice."""
        side = (self.points - 1) * self.step
        (x0, y0), (x1, y1) = self.low, self.high
        return x0 + (x1 - x0) * i / side, y0 + (y1 - y0) * j / side


def lattice_around(places: Sequence[tuple[float, float]], points: int, levels: int) -> Lattice:
    """Return the lattice over points of the plane with a margin of MARGIN on each side."""
    xs, ys = np.asarray(places, dtype=np.float64).T
    wide, high = np.ptp(xs), np.ptp(ys)
    low_corner = float(xs.min() - MARGIN * wide), float(ys.min() - MARGIN * high)
    return Lattice(low_corner, (float(xs.max() + MARGIN * wide), float(ys.max() + MARGIN * high)), points, levels)


def measure_lattice(
    lattice: Lattice, measure: Callable[[list[tuple[int, int]]], list[float]]
) -> dict[tuple[int, int], float]:
    """Return the loss at the even grid, and at the finer points where its logarithm bends.

    A cell is halved in both directions where the second difference of the log loss at one of its corners is over BEND_SHARE of
    the range, the most bent cells first, until MOST_TIMES as many points as the even grid has are measured.

    Args:
        measure: from lattice points to their losses.
    """
    even = lattice.even()
    loss = dict(zip(even, measure(even), strict=True))
    room = (MOST_TIMES - 1) * len(even)
    side = range(0, (lattice.points - 1) * lattice.step, lattice.step)
    cells: list[Cell] = [(i, j, lattice.step) for j in side for i in side]
    while cells and cells[0][2] > 1 and room > 0:
        halved: list[Cell] = []
        wanted: dict[tuple[int, int], None] = {}
        for cell in bent_cells(cells, loss):
            new = [point for point in middle_points(cell) if point not in loss and point not in wanted]
            if len(wanted) + len(new) > room:
                break
            wanted |= dict.fromkeys(new)
            halved.append(cell)
        loss |= dict(zip(wanted, measure(list(wanted)), strict=True))
        room -= len(wanted)
        cells = [quarter for cell in halved for quarter in quarters(cell)]
    return loss


def bent_cells(cells: Sequence[Cell], loss: dict[tuple[int, int], float]) -> list[Cell]:
    """Return the cells where the log loss bends, the most bent first."""
    logs = {at: math.log(max(value, 1e-12)) for at, value in loss.items()}
    least = max(BEND_SHARE * (max(logs.values()) - min(logs.values())), LEAST_BEND)

    def bend(cell: Cell) -> float:
        i, j, size = cell
        heights = [0.0]
        for a, b in ((i, j), (i + size, j), (i, j + size), (i + size, j + size)):
            for da, db in ((size, 0), (0, size)):
                ends = (a - da, b - db), (a + da, b + db)
                if all(end in logs for end in ends):
                    heights.append(abs(logs[a, b] - (logs[ends[0]] + logs[ends[1]]) / 2))
        return max(heights)

    bends = {cell: bend(cell) for cell in cells}
    return sorted((cell for cell in cells if bends[cell] > least), key=lambda cell: -bends[cell])


def middle_points(cell: Cell) -> list[tuple[int, int]]:
    """Return the centre of a cell and the middles of its sides."""
    i, j, size = cell
    half = size // 2
    return [(i + half, j + half), (i + half, j), (i + half, j + size), (i, j + half), (i + size, j + half)]


def quarters(cell: Cell) -> list[Cell]:
    """Return the four quarters of a cell."""
    i, j, size = cell
    half = size // 2
    return [(i + a, j + b, half) for a in (0, half) for b in (0, half)]
