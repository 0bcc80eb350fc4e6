"""The pairs of a record of basins: as a matrix, and the extreme ones inside clusters and between them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float64

from evals.report.basins.pair_curves import Curve

Record = Mapping[str, Any]


def model_names(record: Record) -> list[str]:
    """Return the models' names without the folder that all of them are in."""
    paths = [model["name"].rstrip("/").split("/") for model in record["models"]]
    shared = 0
    while all(len(path) > shared + 1 and path[shared] == paths[0][shared] for path in paths):
        shared += 1
    return ["/".join(path[shared:]) for path in paths]


def pair_matrix(record: Record, line: Record, summary: str) -> Float64[np.ndarray, "models models"]:
    """Return a summary of every pair as a symmetric matrix: 0 on the diagonal, nan where a pair was not measured."""
    count = len(record["models"])
    matrix = np.full((count, count), np.nan)
    np.fill_diagonal(matrix, 0.0)
    for (i, j), value in zip(record["pairs"], line["summaries"][summary]["value"], strict=True):
        matrix[i, j] = matrix[j, i] = np.nan if value is None else value
    return matrix


def extreme_curves(record: Record, line: Record, summary: str, labels: Sequence[int]) -> dict[str, list[Curve]]:
    """Return the curves of the pairs with the smallest and largest summary inside each cluster, and between clusters.

    Args:
        labels: the cluster of each model, from 0.
    """
    names = model_names(record)
    values = line["summaries"][summary]["value"]
    panels = {}
    for title, chosen in _kinds(record["pairs"], labels):
        places = sorted((at for at in chosen if values[at] is not None), key=lambda at: values[at])
        if places:
            panels[title] = [_curve(record, line, names, values, at) for at in dict.fromkeys((places[0], places[-1]))]
    return panels


def _kinds(pairs: Sequence[Sequence[int]], labels: Sequence[int]) -> Iterator[tuple[str, list[int]]]:
    """Yield each kind of pair, and the places of its pairs."""
    count = max(labels) + 1
    for cluster in range(count):
        title = f"inside cluster {cluster + 1}" if count > 1 else "all models in one cluster"
        yield title, [at for at, (i, j) in enumerate(pairs) if labels[i] == labels[j] == cluster]
    yield "between clusters", [at for at, (i, j) in enumerate(pairs) if labels[i] != labels[j]]


def _curve(record: Record, line: Record, names: Sequence[str], values: Sequence[float], at: int) -> Curve:
    i, j = record["pairs"][at]
    return {"name": f"{names[i]} → {names[j]}", "loss": line["curves"][at], "value": values[at]}
