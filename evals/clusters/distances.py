"""How far apart models are: a matrix for every summary of the lines between them, and the same for resampled rows."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from jaxtyping import Float64

from evals.clusters.pair_losses import PairLosses
from evals.paths.summaries import SOURCES, summarise
from evals.scores.intervals import row_weights
from merge.errors import UsageError, nearest

# Heights over the ends, in the unit of the loss or as a share of errors: 0 where two models share a basin.
BARRIERS = ("convexity gap", "loss barrier", "barrier over the mean", "epsilon", "error barrier")
# What models can be clustered by: 0 from a model to itself. The mean loss of a line is no distance.
DISTANCES = (*BARRIERS, "area", "distance")
# The mean stitching penalty, of no line between the weights: measured on request alone.
STITCHING = "stitching"
STITCHING_SOURCE = "Bansal et al. 2021, arXiv:2106.07682; mean penalty over the cuts inside, both directions"

# Of the mean losses of resampled rows that are in memory at a time, 64 MB.
MAX_NUMBERS = 8_000_000


@dataclass(frozen=True)
class Matrix:
    """One summary of every line.

    Attributes:
        name: a key of `evals.paths.summaries.SOURCES`.
        values: symmetric, shape (models, models); nan for pairs that were not measured. The diagonal is 0, or the model's own
            loss for the mean loss.
        errors: paired standard errors, of the same shape; nan where there is none.
    """

    name: str
    values: Float64[np.ndarray, "models models"] = field(repr=False)
    errors: Float64[np.ndarray, "models models"] = field(repr=False)

    def to_json(self) -> dict[str, Any]:
        """Return the matrix as nested lists, None for nan."""
        return {
            "name": self.name,
            "source": STITCHING_SOURCE if self.name == STITCHING else SOURCES[self.name],
            "values": _lists(self.values),
            "errors": _lists(self.errors),
        }


def _lists(values: Any) -> list[list[float | None]]:
    return [[float(v) if np.isfinite(v) else None for v in row] for row in values]


def find_summary(name: str, losses: PairLosses | None = None) -> str:
    """Return the summary of that name, in any case, with - or _ for spaces.

    Raises:
        UsageError: models cannot be clustered by it (the nearest is named), or it needs right and wrong rows, which a task that
            asks for a number does not have.
    """
    summary = " ".join(name.lower().replace("-", " ").replace("_", " ").split())
    if summary not in (*DISTANCES, STITCHING):
        raise UsageError(f"unknown summary {name!r}.{nearest(summary, (*DISTANCES, STITCHING))}")
    if summary == "error barrier" and losses is not None and losses.ends_correct is None:
        raise UsageError("the task asks for a number, so there is no error barrier. Choose another summary.")
    if summary == STITCHING and losses is not None and losses.stitching is None:
        raise UsageError("stitching penalties were not measured. Run the sweep with --distance stitching.")
    return summary


def summary_matrices(losses: PairLosses) -> dict[str, Matrix]:
    """Return the matrix of every summary, in the order of SOURCES; no error barrier where the task asks for a number."""
    n = len(losses.models)
    names = [name for name in SOURCES if name != "error barrier" or losses.ends_correct is not None]
    values = {name: np.full((n, n), np.nan) for name in names}
    errors = {name: np.full((n, n), np.nan) for name in names}
    for name in names:
        np.fill_diagonal(values[name], losses.ends.mean(1, dtype=np.float64) if name == "mean loss" else 0.0)
    for i, j in losses.pairs:
        for each in summarise(losses.lam, losses.curve(i, j), losses.correct(i, j), losses.distance[i, j]):
            values[each.name][i, j] = values[each.name][j, i] = each.value
            if each.standard_error is not None:
                errors[each.name][i, j] = errors[each.name][j, i] = each.standard_error
    matrices = {name: Matrix(name, values[name], errors[name]) for name in names}
    if losses.stitching is not None:
        penalties = np.full((n, n), np.nan)
        np.fill_diagonal(penalties, 0.0)
        for i, j in losses.pairs:
            penalties[i, j] = penalties[j, i] = losses.stitching[i, j]
        matrices[STITCHING] = Matrix(STITCHING, penalties, np.full((n, n), np.nan))
    return matrices


def summary_values(name: str, lam: Any, curves: Any, distance: Any = 0.0) -> Float64[np.ndarray, " ..."]:
    """Return a summary of many curves at once: what `evals.paths.summaries.summarise` says of each.

    Args:
        name: a key of SOURCES, or STITCHING.
        curves: mean losses, or error rates for the error barrier, shape (..., points).
        distance: of the endpoints, which `area` and `distance` need, or the penalty of STITCHING; shape (...).
    """
    grid, curves = np.asarray(lam, dtype=np.float64), np.asarray(curves, dtype=np.float64)
    first, last, peak = curves[..., 0], curves[..., -1], curves.max(-1)
    if name == "convexity gap":
        return _convexity_gaps(grid, curves)
    if name == "loss barrier":
        return np.asarray((curves - (1 - grid) * first[..., None] - grid * last[..., None]).max(-1))
    if name in ("barrier over the mean", "error barrier"):
        return np.asarray(peak - (first + last) / 2)
    if name == "epsilon":
        return np.asarray(peak - np.maximum(first, last))
    steps = np.diff(grid)
    mean = curves @ ((np.append(steps, 0) + np.append(0, steps)) / 2)
    if name == "mean loss":
        return np.asarray(mean)
    if name == "area":
        return np.asarray(distance * (mean - curves.min(-1)))
    return np.broadcast_to(np.asarray(distance, dtype=np.float64), first.shape)


def _convexity_gaps(grid: Any, curves: Any) -> Float64[np.ndarray, " ..."]:
    """Return the largest height of each curve over a chord between two of its points, at least 0."""
    gaps = np.zeros(curves.shape[:-1])
    for i in range(len(grid) - 2):
        for j in range(i + 2, len(grid)):
            weight = (grid[i + 1 : j] - grid[i]) / (grid[j] - grid[i])
            chord = (1 - weight) * curves[..., i, None] + weight * curves[..., j, None]
            np.maximum(gaps, (curves[..., i + 1 : j] - chord).max(-1), out=gaps)
    return gaps


def resampled_matrices(
    losses: PairLosses, name: str, generator: np.random.Generator, draws: int
) -> Float64[np.ndarray, "draws models models"]:
    """Return the matrix of a summary for resamples of the rows, which every pair has in common; nan where not measured."""
    rows, n = losses.ends.shape[1], len(losses.models)
    weights = np.concatenate(list(row_weights(generator, rows, draws))) / rows
    matrices = np.full((draws, n, n), np.nan)
    matrices[:, np.arange(n), np.arange(n)] = 0.0
    for pairs in _blocks(losses, draws):
        first, second = np.array(pairs).T
        fixed = losses.stitching if name == STITCHING and losses.stitching is not None else losses.distance
        distance = np.array([fixed[pair] for pair in pairs])  # the same for all resamples
        curves = _mean_curves(losses, pairs, weights, errors=name == "error barrier")
        values = summary_values(name, losses.lam, curves, distance)
        matrices[:, first, second] = matrices[:, second, first] = values
    return matrices


def _blocks(losses: PairLosses, draws: int) -> Iterator[list[tuple[int, int]]]:
    size = len(losses.lam) * max(draws, losses.ends.shape[1])
    step = max(1, MAX_NUMBERS // size)
    for done in range(0, len(losses.pairs), step):
        yield losses.pairs[done : done + step]


def _mean_curves(
    losses: PairLosses, pairs: list[tuple[int, int]], weights: Any, errors: bool
) -> Float64[np.ndarray, "draws pairs points"]:
    """Return the weighted mean over the rows at every point, of the losses or of wrong rows."""
    lines = [losses.correct(*pair) if errors else losses.curve(*pair) for pair in pairs]
    stacked = np.asarray(lines, dtype=np.float64)
    if errors:
        stacked = 1 - stacked
    flat = weights @ stacked.reshape(-1, stacked.shape[-1]).T
    return np.asarray(flat.reshape(len(weights), len(pairs), -1))
