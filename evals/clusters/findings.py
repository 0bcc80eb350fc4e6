"""The record of an analysis, and its settings: what the command prints, and what the page draws."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np
from jaxtyping import Float64

from evals.clusters.basins import Basin
from evals.clusters.distances import BARRIERS, Matrix, find_summary
from evals.clusters.extremes import ExtremePair
from evals.clusters.methods import find_method
from evals.clusters.number import Number, check_number
from evals.clusters.pair_losses import PairLosses
from evals.clusters.reference import Reference, Triangles
from evals.clusters.spectral import Embedding
from evals.clusters.stability import Stability
from evals.clusters.strategies import Strategy
from evals.clusters.subsets import Ranking
from evals.clusters.verification import Verification
from merge.errors import UsageError

# The largest barrier of models that share a basin, where none is given.
ERROR_TOLERANCE, LOSS_TOLERANCE = 0.02, 0.05


@dataclass(frozen=True)
class AnalysisSettings:
    """How models are clustered and subsets ranked.

    Attributes:
        summary: what the distance of two models is; one of `evals.clusters.distances.DISTANCES`, or STITCHING.
        method: of clustering; a key of `evals.clusters.methods.METHODS`.
        number: of clusters, or how it is chosen: "auto", "silhouette" or "gap".
        tolerance: the largest barrier between two models that share a basin, in the unit of `barrier_summary`. None: .02 for the
            error barrier (Frankle et al. 2020: stable under 2 %), .05 for a loss, which is between the .02 inside published
            clusters and the .07 between them.
        draws: resamples of the rows.
        best: how many subsets are kept.
        weights: of the models in an average; equal when None.
        seed: of all draws.
    """

    summary: str = "convexity gap"
    method: str = "average"
    number: int | str = "auto"
    tolerance: float | None = None
    draws: int = 200
    best: int = 10
    weights: tuple[float, ...] | None = None
    seed: int = 0

    @property
    def barrier_summary(self) -> str:
        """What decides whether models share a basin: the summary, or the convexity gap where that is an area or a distance."""
        return self.summary if self.summary in BARRIERS else BARRIERS[0]

    def check_names(self) -> AnalysisSettings:
        """Return the settings with names as the tables have them, before there are losses.

        Raises:
            UsageError: a summary or a method is unknown; the nearest is named.
        """
        return replace(self, summary=find_summary(self.summary), method=find_method(self.method))

    def check(self, losses: PairLosses) -> AnalysisSettings:
        """Return the settings with names as the tables have them, and the tolerance filled in.

        Raises:
            UsageError: a name is unknown (the nearest is named), or a number does not fit.
        """
        summary, method = find_summary(self.summary, losses), find_method(self.method)
        models = len(losses.models)
        check_number(self.number, models)
        if self.draws < 1 or self.best < 1:
            raise UsageError(f"draws and best must be at least 1, found {self.draws} and {self.best}.")
        if self.tolerance is not None and not self.tolerance >= 0:
            raise UsageError(f"tolerance must be at least 0, found {self.tolerance}.")
        if self.weights is not None and (len(self.weights) != models or not min(self.weights) > 0):
            raise UsageError(f"expected {models} weights over 0, one a model; found {list(self.weights)}.")
        usual = ERROR_TOLERANCE if summary == "error barrier" else LOSS_TOLERANCE
        tolerance = usual if self.tolerance is None else self.tolerance
        return replace(self, summary=summary, method=method, tolerance=tolerance)


@dataclass(frozen=True)
class Analysis:
    """What a sweep says of its models; every model is known by its index in `models`.

    Attributes:
        verdict: sentences, the most important first.
        models: names. line: "naive", or how the models were aligned. lam: the grid. rows: how many.
        settings: as they were used.
        matrices: every summary of every line, by name.
        departures: the largest distance of each curve from a parabola, shape (models, models); nan where not measured.
        linkage: scipy's, shape (models - 1, 4), and order: of the dendrogram's leaves; hierarchical by the method, by averages
            beside spectral clustering.
        labels: cluster of each model, 0 for the largest. clusters: their models. number: how many, and why.
        basins: each cluster with its largest barrier, its interval, and whether its models share a basin.
        groups: models within the tolerance of one another, pair by pair, whatever the clusters are; empty where not all pairs
            were measured.
        stability: of the clusters under resampling of the rows.
        clusterings: the labels by every method with the same number of clusters, and agreement: their adjusted Rand index with
            `labels`; a method that does not apply is absent, and `notes` says why.
        embedding: in two dimensions, with the coordinate between two clusters; None where spectral clustering does not apply.
        triangles: violations of the triangle inequality. references: what each model would show as the only reference; empty
            where not all pairs were measured.
        extremes: nearest and farthest pairs inside and between clusters, with their curves.
        diagnostics: name -> score of each model. strategies: each against the clusters.
        ranking: which subsets to average. verification: predicted against measured, once averages were measured.
        notes: what the reader is to know.
    """

    verdict: tuple[str, ...]
    models: tuple[str, ...]
    line: str
    lam: tuple[float, ...]
    rows: int
    settings: AnalysisSettings
    matrices: Mapping[str, Matrix] = field(repr=False)
    departures: Float64[np.ndarray, "models models"] = field(repr=False)
    linkage: Float64[np.ndarray, "merges 4"] = field(repr=False)
    order: tuple[int, ...]
    labels: tuple[int, ...]
    clusters: tuple[tuple[int, ...], ...]
    number: Number
    basins: tuple[Basin, ...]
    groups: tuple[tuple[int, ...], ...]
    stability: Stability = field(repr=False)
    clusterings: Mapping[str, tuple[int, ...]] = field(repr=False)
    agreement: Mapping[str, float] = field(repr=False)
    embedding: Embedding | None = field(repr=False)
    triangles: Triangles
    references: tuple[Reference, ...] = field(repr=False)
    extremes: tuple[ExtremePair, ...] = field(repr=False)
    diagnostics: Mapping[str, tuple[float, ...]] = field(repr=False)
    strategies: tuple[Strategy, ...] = field(repr=False)
    ranking: Ranking = field(repr=False)
    notes: tuple[str, ...]
    verification: Verification | None = field(default=None, repr=False)

    @property
    def distances(self) -> Float64[np.ndarray, "models models"]:
        """The matrix by which the models were clustered; nan where a pair was not measured."""
        return self.matrices[self.settings.summary].values

    @property
    def coordinate(self) -> tuple[float, ...] | None:
        """Where each model is between two clusters: negative in the larger; None where there is no embedding."""
        return None if self.embedding is None else tuple(self.embedding.coordinate.tolist())

    def to_json(self) -> dict[str, Any]:
        """Return all of it as JSON holds it."""
        plain = ("line", "rows", "verdict", "models", "lam", "order", "labels", "clusters", "groups", "notes")
        rows = ("basins", "references", "extremes", "strategies")
        records = ("number", "stability", "embedding", "triangles", "ranking", "verification")
        document = {name: getattr(self, name) for name in plain}
        document |= {name: [each.to_json() for each in getattr(self, name)] for name in rows}
        document |= {name: None if getattr(self, name) is None else getattr(self, name).to_json() for name in records}
        return _plain(
            {
                **document,
                "settings": {**asdict(self.settings), "barrier_summary": self.settings.barrier_summary},
                "matrices": {name: matrix.to_json() for name, matrix in self.matrices.items()},
                "departures": self.departures.tolist(),
                "linkage": self.linkage.tolist(),
                "clusterings": self.clusterings,
                "agreement": self.agreement,
                "diagnostics": self.diagnostics,
            }
        )

    @property
    def barriers(self) -> Float64[np.ndarray, "models models"]:
        """The matrix that decides which models share a basin."""
        return self.matrices[self.settings.barrier_summary].values


def _plain(value: Any) -> Any:
    """Return a value as JSON holds it: lists for tuples, None for numbers that are not finite."""
    if isinstance(value, Mapping):
        return {key: _plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
