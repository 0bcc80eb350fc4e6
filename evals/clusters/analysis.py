"""Everything that the losses on the lines between models say of them, without a forward pass."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from evals.clusters.basins import find_basins, groups_within
from evals.clusters.distances import BARRIERS, resampled_matrices, summary_matrices
from evals.clusters.extremes import extreme_pairs
from evals.clusters.findings import Analysis, AnalysisSettings
from evals.clusters.hierarchy import leaf_order, link, row_distances
from evals.clusters.labels import members, rand_index
from evals.clusters.methods import METHODS, linkage_of
from evals.clusters.number import choose_number
from evals.clusters.pair_losses import PairLosses
from evals.clusters.reference import references, triangles
from evals.clusters.spectral import PUBLISHED_SCALE, Embedding, embed
from evals.clusters.stability import stability
from evals.clusters.strategies import strategies
from evals.clusters.subsets import parabola_departures, rank_subsets
from evals.clusters.verdict import sentences
from evals.clusters.verification import verify
from merge.errors import UsageError, some

__all__ = ["Analysis", "AnalysisSettings", "analyse", "verified"]


def analyse(
    losses: PairLosses,
    diagnostics: Mapping[str, Sequence[float]] | None = None,
    settings: AnalysisSettings | None = None,
) -> Analysis:
    """Return everything that the losses on the lines between models say of them.

    Args:
        diagnostics: name -> a score of each model, nan where a model has none; shape (models,).
    Raises:
        UsageError: an unknown summary or method (the nearest is named), a setting that does not fit, a loss that is not finite,
            or so few lines that the models cannot be compared.
    """
    _check_finite(losses)
    diagnostics, settings = diagnostics or {}, (settings or AnalysisSettings()).check(losses)
    matrices = summary_matrices(losses)
    barriers, shape = matrices[settings.barrier_summary], (len(losses.lam), losses.ends.shape[1])
    complete, method, notes = _comparable(matrices[settings.summary].values, settings)
    how = linkage_of(method)
    number = choose_number(complete, how, settings.number, np.random.default_rng(settings.seed))
    labels = METHODS[method](complete, number.chosen)
    links = link(complete, how, ordered=True)
    clusterings, absent = _clusterings(complete, number.chosen)
    embedding, unembedded = _embedding(complete, settings)
    drawn, drawn_barriers = _drawn(losses, settings)
    ranking = rank_subsets(losses, barriers.values, settings.best, settings.weights)
    tolerance = float(settings.tolerance or 0)
    analysis = Analysis(
        verdict=(),
        models=losses.models,
        line=losses.name,
        lam=losses.lam,
        rows=shape[1],
        settings=settings,
        matrices=matrices,
        departures=parabola_departures(losses),
        linkage=links,
        order=leaf_order(links),
        labels=tuple(labels.tolist()),
        clusters=tuple(map(tuple, members(labels))),
        number=number,
        basins=find_basins(barriers, drawn_barriers, labels, tolerance, shape),
        groups=groups_within(barriers.values, tolerance),
        stability=stability(drawn, method, labels),
        clusterings=clusterings,
        agreement={name: rand_index(each, labels.tolist()) for name, each in clusterings.items()},
        embedding=embedding,
        triangles=triangles(barriers.values, tolerance),
        references=references(complete, labels.tolist()) if losses.complete else (),
        extremes=extreme_pairs(losses, matrices[settings.summary].values, labels),
        diagnostics={name: tuple(map(float, scores)) for name, scores in diagnostics.items()},
        strategies=strategies(diagnostics, labels.tolist(), embedding and embedding.coordinate, settings.seed),
        ranking=ranking,
        notes=(*notes, *absent, *unembedded, *ranking.notes),
    )
    return replace(analysis, verdict=sentences(analysis))


def verified(analysis: Analysis, losses: PairLosses, measured: Mapping[tuple[int, ...], Any]) -> Analysis:
    """Return the analysis with predicted against measured losses of averages, and a verdict on them.

    Args:
        losses: that were analysed.
        measured: models of an average, by their index in increasing order -> its losses on the same rows, shape (rows,).
    Raises:
        UsageError: nothing was measured, or losses do not fit.
    """
    analysis = replace(analysis, verification=verify(losses, measured, analysis.settings.weights))
    return replace(analysis, verdict=sentences(analysis))


def _check_finite(losses: PairLosses) -> None:
    faults = [name for name, rows in zip(losses.models, losses.ends, strict=True) if not np.isfinite(rows).all()]
    faults += [
        f"the line {losses.models[i]} - {losses.models[j]}"
        for (i, j), rows in sorted(losses.inside.items())
        if not np.isfinite(rows).all()
    ]
    if faults:
        raise UsageError(f"a loss is not finite: {some(faults)}. Leave these models out.")


def _comparable(distances: Any, settings: AnalysisSettings) -> tuple[Any, str, tuple[str, ...]]:
    """Return distances of all pairs, the method on them, and notes: those of the rows where not all pairs were measured."""
    if np.isfinite(distances).all():
        return distances, settings.method, ()
    references = int(np.isfinite(distances).all(0).sum())
    note = (
        f"not all pairs were measured: models are compared by their {settings.summary} to {references} reference"
        f"{'s' if references > 1 else ''}, as Euclidean distances"
    )
    # The rows are compared already.
    return row_distances(distances), "single" if settings.method == "rows" else settings.method, (note,)


def _drawn(losses: PairLosses, settings: AnalysisSettings) -> tuple[Any, Any]:
    """Return the distances of all pairs, and the barriers, for resamples of the rows."""

    def resampled(name: str) -> Any:
        return resampled_matrices(losses, name, np.random.default_rng(settings.seed), settings.draws)

    distances = resampled(settings.summary)
    barriers = distances if settings.summary in BARRIERS else resampled(settings.barrier_summary)
    return distances if losses.complete else np.stack([row_distances(each) for each in distances]), barriers


def _clusterings(distances: Any, number: int) -> tuple[dict[str, tuple[int, ...]], list[str]]:
    """Return the labels by every method, and notes on those that do not apply."""
    labels, notes = {}, []
    for name, method in METHODS.items():
        try:
            labels[name] = tuple(method(distances, number).tolist())
        except UsageError as error:
            notes.append(f"no {name} clusters: {error}")
    return labels, notes


def _embedding(distances: Any, settings: AnalysisSettings) -> tuple[Embedding | None, list[str]]:
    """Return the models in two dimensions, at the published scale for barriers; else, and if so asked, at that of the data."""
    published = settings.summary in BARRIERS and settings.method != "spectral-scaled"
    try:
        return embed(distances, PUBLISHED_SCALE if published else None), []
    except UsageError as error:
        return None, [f"no cluster coordinate: {error}"]
