"""The ways to cluster models, by name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from jaxtyping import Int64

from evals.clusters.hierarchy import LINKAGES, cut, link
from evals.clusters.spectral import PUBLISHED_SCALE, spectral_labels
from merge.errors import UsageError, nearest

Labels = Int64[np.ndarray, " models"]


def _linked(how: str) -> Callable[[Any, int], Labels]:
    return lambda distances, number: cut(link(distances, how), [number])[0]


# From complete distances and the number of clusters to labels, 0 for the largest cluster.
METHODS: dict[str, Callable[[Any, int], Labels]] = {
    **{how: _linked(how) for how in LINKAGES},
    "rows": _linked("rows"),
    "spectral": lambda distances, number: spectral_labels(distances, number, PUBLISHED_SCALE),
    "spectral-scaled": lambda distances, number: spectral_labels(distances, number, None),
}


def find_method(name: str) -> str:
    """Return the method of that name, in any case, with a space or _ for -.

    Raises:
        UsageError: there is none; the nearest is named.
    """
    method = "-".join(name.lower().replace("_", " ").replace("-", " ").split())
    if method not in METHODS:
        raise UsageError(f"unknown cluster method {name!r}.{nearest(method, METHODS)}")
    return method


def linkage_of(method: str) -> str:
    """Return how the dendrogram beside a method is linked: as the method says, by averages beside spectral clustering."""
    return method if method in (*LINKAGES, "rows") else LINKAGES[0]
