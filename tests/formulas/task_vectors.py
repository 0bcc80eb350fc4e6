"""The task-vector family in numpy, entry by entry where a loop is the plainest reading of the paper."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from formulas.case import Case, Peer

Array = np.ndarray[Any, Any]
Arrays = Sequence[Array]
Each = float | Sequence[float]


def spread(value: Each | None, count: int) -> list[float]:
    """One number per model; 1 for None."""
    if value is None:
        return [1.0] * count
    return [float(one) for one in np.broadcast_to(np.asarray(value, float), (count,))]


def added(vectors: Arrays, weights: Each | None, normalize: bool) -> Array:
    """The weighted sum, by tensordot; over the sum of the weights if normalised."""
    chosen = spread(weights, len(vectors))
    total = np.tensordot(chosen, np.stack(vectors), 1)
    return np.asarray(total / np.sum(chosen) if normalize else total)


def voted(vectors: Arrays, weights: Each | None, normalize: bool) -> Array:
    """Per entry: the mass of positive against that of negative movement, then the sum or mean of the winning side."""
    chosen = spread(weights, len(vectors))
    merged = np.zeros(vectors[0].size)
    for entry, values in enumerate(zip(*(vector.ravel() for vector in vectors), strict=True)):
        moves = [(weight * value, weight) for weight, value in zip(chosen, values, strict=True)]
        up = [move for move in moves if move[0] > 0]
        down = [move for move in moves if move[0] < 0]
        winners = up if sum(m for m, _ in up) >= -sum(m for m, _ in down) else down
        if winners:
            merged[entry] = sum(m for m, _ in winners) / (sum(w for _, w in winners) if normalize else 1)
    return merged.reshape(vectors[0].shape)


def task_arithmetic(
    arrays: Arrays, base: Array, weights: Each | None = None, normalize: bool = False, scale: float = 1.0
) -> Any:
    """A line through base and the models' sum: the base's share is what the task vectors' weights leave."""
    chosen = np.asarray(spread(weights, len(arrays)))
    shares = scale * (chosen / chosen.sum() if normalize else chosen)
    return (1 - shares.sum()) * base + sum(share * array for share, array in zip(shares, arrays, strict=True))


def ties(
    arrays: Arrays,
    base: Array,
    density: Each = 0.2,
    weights: Each | None = None,
    normalize: bool = True,
    scale: float = 1.0,
    trim: str = "model",
    exact_count: bool = False,
    rescale: str = "none",
) -> Any:
    """Sort by magnitude, zero all but the last ones, vote. One tensor is the whole model here, so both trims agree.

    No two entries are equal, so that nothing depends on how ties are broken.
    """
    assert trim in ("model", "tensor")
    trimmed = []
    for array, fraction in zip(arrays, spread(density, len(arrays)), strict=True):
        vector = (array - base).ravel()
        keep = max(int(fraction * vector.size), 1) if fraction else 0
        for entry in sorted(range(vector.size), key=lambda i, v=vector: abs(v[i]))[: vector.size - keep]:
            vector[entry] = 0
        trimmed.append(rescaled(array - base, vector.reshape(base.shape), 1, rescale))
    return base + scale * voted(trimmed, weights, normalize)


def rescaled(vector: Array, kept: Array, probability: Any, rescale: str) -> Array:
    """What dropping does to the survivors: over their probability, or to the L1 norm from before."""
    if rescale == "probability":
        return kept / probability
    if rescale == "l1" and np.any(kept):
        return kept * (np.linalg.norm(vector.ravel(), 1) / np.linalg.norm(kept.ravel(), 1))
    return kept


def dare(combine: Callable[..., Array], normalize_default: bool) -> Callable[..., Any]:
    """DARE in front of a way to combine task vectors."""

    def formula(
        arrays: Arrays,
        base: Array,
        draws: Arrays,
        density: Each = 0.5,
        weights: Each | None = None,
        normalize: bool = normalize_default,
        scale: float = 1.0,
        rescale: str = "probability",
    ) -> Any:
        left = []
        for array, draw, keep in zip(arrays, draws, spread(density, len(arrays)), strict=True):
            vector = array - base
            left.append(rescaled(vector, np.where(draw < keep, vector, 0), keep, rescale if keep < 1 else "none"))
        return base + scale * combine(left, weights, normalize)

    return formula


dare_linear, dare_ties = dare(added, False), dare(voted, True)


def della(
    arrays: Arrays,
    base: Array,
    draws: Arrays,
    density: Each = 0.5,
    epsilon: Each = 0.15,
    weights: Each | None = None,
    normalize: bool = True,
    scale: float = 1.0,
    rescale: str = "probability",
    elect: bool = True,
    as_stored: bool = False,
) -> Any:
    """The rank of an entry is how many of its row are smaller; its probability lies that far along the range."""
    count = len(arrays)
    left = []
    for array, draw, keep, half in zip(arrays, draws, spread(density, count), spread(epsilon, count), strict=True):
        vector = array - base
        rows = np.abs(vector).reshape(vector.shape[0] if vector.ndim > 1 else 1, -1)
        rank = (rows[:, None, :] < rows[:, :, None]).sum(axis=2)
        low, high = keep - half, keep + half
        probability = (low + (high - low) * rank / (rows.shape[1] - 1)).reshape(vector.shape)
        if keep in (0, 1):
            left.append(vector * keep)
        else:
            left.append(rescaled(vector, np.where(draw < probability, vector, 0), probability, rescale))
    return base + scale * (voted if elect else added)(left, weights, normalize)


def breadcrumbs(
    arrays: Arrays,
    base: Array,
    density: Each = 0.15,
    gamma: Each = 0.01,
    weights: Each | None = None,
    normalize: bool = False,
    scale: float = 1.0,
    elect: bool = False,
    exact_count: bool = False,
    rescale: str = "none",
) -> Any:
    """Line the entries up by magnitude, take the outliers off one end, and keep the last of what is left."""
    count = len(arrays)
    masked = []
    for array, fraction, outliers in zip(arrays, spread(density, count), spread(gamma, count), strict=True):
        vector = (array - base).ravel()
        line = list(np.argsort(np.abs(vector)))
        keep = int(fraction * vector.size) if exact_count or not fraction else max(int(fraction * vector.size), 1)
        for _ in range(int(outliers * vector.size)):
            if len(line) > keep:
                line.pop()
        kept = np.zeros_like(vector)
        chosen = line[len(line) - keep :]
        kept[chosen] = vector[chosen]
        masked.append(rescaled(array - base, kept.reshape(base.shape), 1, rescale))
    return base + scale * (voted if elect else added)(masked, weights, normalize)


def sce(
    arrays: Arrays,
    base: Array,
    select: float = 1.0,
    normalize: bool = True,
    exact_count: bool = False,
    floor: float = 0.0,
) -> Any:
    """Select, calculate, erase; the winning side is summed by the energy weights of its models."""
    variance = np.var(np.stack(arrays), axis=0).ravel()
    selected = np.argsort(variance)[variance.size - max(int(select * variance.size), 0 if exact_count else 1) :]
    vectors = []
    for array in arrays:
        vector = np.zeros(base.size)
        vector[selected] = (array - base).ravel()[selected]
        vectors.append(vector)
    energy = np.array([vector @ vector for vector in vectors])
    if energy.sum() / base.size < floor:
        energy = np.ones(len(vectors))
    merged = np.zeros(base.size)
    for entry in range(base.size):
        values = np.array([vector[entry] for vector in vectors])
        side = values > 0 if values.sum() >= 0 else values < 0
        if side.any():
            shares = energy[side] / (energy[side].sum() if normalize else energy.sum())
            merged[entry] = shares @ values[side]
    return base + merged.reshape(base.shape)


def magmax(arrays: Arrays, base: Array, scale: float = 1.0) -> Any:
    """Per entry, the change that goes farthest."""
    farthest = [max(values, key=abs) for values in zip(*((array - base).ravel() for array in arrays), strict=True)]
    return base + scale * np.array(farthest).reshape(base.shape)


def consensus(
    arrays: Arrays,
    base: Array,
    k: int = 2,
    tall_lambda: Each = 0.4,
    weights: Each | None = None,
    normalize: bool = False,
    scale: float = 1.0,
) -> Any:
    """The masks as the paper writes them, on parameters and not on task vectors."""
    multi_task = task_arithmetic(arrays, base, weights, normalize)
    users = np.zeros(base.shape, int)
    for array, lam in zip(arrays, spread(tall_lambda, len(arrays)), strict=True):
        users = users + (np.abs(array - base) >= lam * np.abs(multi_task - array))
    return np.where(users >= k, scale * multi_task + (1 - scale) * base, base)


def models(**parameters: Each) -> tuple[dict[str, float], ...]:
    """Return mergekit's parameters of each model from lists of them."""
    count = max(len(value) for value in parameters.values() if not isinstance(value, float))
    columns = {key: spread(value, count) for key, value in parameters.items()}
    return tuple({key: column[k] for key, column in columns.items()} for k in range(count))


TRIMS, SUMS, DROPS = "trimming zeroes entries", "task vectors are summed", "every model drops its own entries"
FIVE = [1.0, 0.5, 2.0, 0.25, 1.5]

CASES = {
    "task_arithmetic of two": Case(
        "task_arithmetic", {}, 2, task_arithmetic, SUMS, peer=Peer("task_arithmetic", {}, models(weight=[1.0, 1.0]))
    ),
    "task_arithmetic of five": Case(
        "task_arithmetic",
        {"weights": FIVE, "normalize": True, "scale": 0.7},
        5,
        task_arithmetic,
        "the scale shrinks the task vector",
        peer=Peer("task_arithmetic", {"normalize": True, "lambda": 0.7}, models(weight=FIVE)),
    ),
    "task_arithmetic forgetting": Case("task_arithmetic", {"weights": [1, -0.5]}, 2, task_arithmetic, SUMS),
    "ties of two": Case("ties", {}, 2, ties, TRIMS),
    "ties per tensor": Case(
        "ties",
        {"trim": "tensor", "density": 0.5},
        2,
        ties,
        TRIMS,
        peer=Peer("ties", {}, models(weight=[1.0, 1.0], density=0.5)),
    ),
    "ties of five": Case(
        "ties",
        {"density": [0.3, 0.5, 0.7, 0.9, 1.0], "weights": FIVE, "scale": 0.8, "trim": "tensor"},
        5,
        ties,
        TRIMS,
        peer=Peer("ties", {"lambda": 0.8}, models(weight=FIVE, density=[0.3, 0.5, 0.7, 0.9, 1.0])),
    ),
    # The mean is over the models that kept the entry: one untrimmed model is enough to give a model back.
    "ties of five by the model": Case("ties", {"density": [0.3, 0.5, 0.7, 0.9, 1.0], "weights": FIVE}, 5, ties),
    "ties untrimmed": Case(
        "ties", {"density": 1.0}, 3, ties, peer=Peer("ties", {}, models(weight=[1.0, 1.0, 1.0], density=1.0))
    ),
    "ties summed": Case(
        "ties",
        {"density": 0.6, "weights": [1, -0.5, 2], "normalize": False, "trim": "tensor"},
        3,
        ties,
        TRIMS,
        peer=Peer("ties", {"normalize": False}, models(weight=[1.0, -0.5, 2.0], density=0.6)),
    ),
    "ties of exactly as many": Case(
        "ties",
        {"trim": "tensor", "density": [0.5, 0.2, 0.0], "exact_count": True},
        3,
        ties,
        TRIMS,
        peer=Peer("ties", {}, models(weight=[1.0, 1.0, 1.0], density=[0.5, 0.2, 0.0])),
    ),
    "dare_linear of two": Case("dare_linear", {}, 2, dare_linear, DROPS),
    "dare_linear of five": Case(
        "dare_linear",
        {"density": [0.3, 0.5, 0.7, 0.9, 1.0], "weights": FIVE, "normalize": True, "scale": 0.8},
        5,
        dare_linear,
        DROPS,
    ),
    "dare_linear keeping the norm": Case("dare_linear", {"density": 0.6, "rescale": "l1"}, 2, dare_linear, DROPS),
    # Masks are drawn from other generators than mergekit's: the numbers can be equal only where nothing is dropped.
    "dare_linear keeping all": Case(
        "dare_linear",
        {"density": 1.0, "weights": [1, 0.3]},
        2,
        dare_linear,
        SUMS,
        peer=Peer("dare_linear", {}, models(weight=[1.0, 0.3], density=1.0)),
    ),
    "dare_ties of two": Case("dare_ties", {"rescale": "none"}, 2, dare_ties, DROPS),
    "dare_ties of five": Case(
        "dare_ties", {"density": [0.3, 0.5, 0.7, 0.9, 1.0], "weights": FIVE, "scale": 0.8}, 5, dare_ties, DROPS
    ),
    "dare_ties keeping the norm": Case("dare_ties", {"density": 0.6, "rescale": "l1"}, 2, dare_ties, DROPS),
    "dare_ties keeping all": Case(
        "dare_ties",
        {"density": 1.0, "normalize": False, "weights": [1, 0.3]},
        2,
        dare_ties,
        SUMS,
        peer=Peer("dare_ties", {}, models(weight=[1.0, 0.3], density=1.0)),
    ),
    "della of two": Case("della", {}, 2, della, DROPS),
    "della of five": Case(
        "della",
        {"density": [0.3, 0.5, 0.7, 0.8, 1.0], "epsilon": [0.2, 0.1, 0.0, 0.15, 0.5], "weights": FIVE, "scale": 0.8},
        5,
        della,
        DROPS,
    ),
    "della linear": Case("della", {"elect": False, "rescale": "none", "normalize": False}, 2, della, DROPS),
    "della keeping the norm": Case("della", {"rescale": "l1", "epsilon": 0.3}, 2, della, DROPS),
    "ties rescaled": Case(
        "ties",
        {"trim": "tensor", "density": 0.3, "rescale": "l1"},
        2,
        ties,
        TRIMS,
        peer=Peer("ties", {"rescale": True}, models(weight=[1.0, 1.0], density=0.3)),
    ),
    "della by stored rows": Case("della", {"as_stored": True, "density": [0.5, 0.0]}, 2, della, DROPS),
    "della keeping all": Case(
        "della",
        {"density": 1.0, "weights": [1, 0.3]},
        2,
        della,
        peer=Peer("della", {}, models(weight=[1.0, 0.3], density=1.0)),
    ),
    "della linear keeping all": Case(
        "della",
        {"density": 1.0, "elect": False, "normalize": False},
        2,
        della,
        SUMS,
        peer=Peer("della_linear", {"normalize": False}, models(weight=[1.0, 1.0], density=1.0)),
    ),
    "breadcrumbs of two": Case("breadcrumbs", {}, 2, breadcrumbs, TRIMS),
    "breadcrumbs half": Case(
        "breadcrumbs",
        {"density": 0.5, "gamma": 0.2},
        2,
        breadcrumbs,
        TRIMS,
        peer=Peer("breadcrumbs", {}, models(weight=[1.0, 1.0], density=0.5, gamma=0.2)),
    ),
    "breadcrumbs of five": Case(
        "breadcrumbs",
        {
            "density": [0.3, 0.5, 0.7, 0.9, 1.0],
            "gamma": [0.1, 0.2, 0.5, 0.0, 0.3],
            "weights": FIVE,
            "normalize": True,
            "scale": 0.8,
            "elect": True,
        },
        5,
        breadcrumbs,
        TRIMS,
        peer=Peer(
            "breadcrumbs_ties",
            {"normalize": True, "lambda": 0.8},
            models(weight=FIVE, density=[0.3, 0.5, 0.7, 0.9, 1.0], gamma=[0.1, 0.2, 0.5, 0.0, 0.3]),
        ),
    ),
    "breadcrumbs rescaled": Case(
        "breadcrumbs",
        {"density": 0.5, "gamma": 0.2, "rescale": "l1", "exact_count": True},
        2,
        breadcrumbs,
        TRIMS,
        peer=Peer("breadcrumbs", {"rescale": True}, models(weight=[1.0, 1.0], density=0.5, gamma=0.2)),
    ),
    "breadcrumbs of exactly as many": Case(
        "breadcrumbs",
        {"density": [0.5, 0.3, 0.0], "gamma": 0.2, "exact_count": True},
        3,
        breadcrumbs,
        TRIMS,
        peer=Peer("breadcrumbs", {}, models(weight=[1.0, 1.0, 1.0], density=[0.5, 0.3, 0.0], gamma=0.2)),
    ),
    "sce of exactly as many": Case(
        "sce",
        {"select": 0.4, "exact_count": True, "floor": 1e-6},
        3,
        sce,
        "entries that all models agree on are not selected",
        peer=Peer("sce", {"select_topk": 0.4}),
    ),
    # The floor is above all energy, so that models weigh alike.
    "sce of equals": Case("sce", {"floor": 1e9, "normalize": False}, 3, sce),
    "sce of two": Case("sce", {}, 2, sce, peer=Peer("sce", {})),
    "sce of five": Case(
        "sce",
        {"select": 0.4},
        5,
        sce,
        "entries that all models agree on are not selected",
        peer=Peer("sce", {"select_topk": 0.4}),
    ),
    "sce summed": Case("sce", {"normalize": False}, 3, sce),
    "magmax of two": Case("magmax", {}, 2, magmax),
    "magmax of five": Case("magmax", {"scale": 0.5}, 5, magmax, "the scale shrinks the task vector"),
    "consensus of two": Case("consensus", {}, 2, consensus, SUMS),
    "consensus of five": Case(
        "consensus",
        {"k": 3, "tall_lambda": [0.2, 0.3, 0.4, 0.5, 0.6], "weights": FIVE, "scale": 0.3},
        5,
        consensus,
        "the scale shrinks the task vector",
    ),
    "consensus averaged": Case("consensus", {"k": 1, "normalize": True, "tall_lambda": 1.0}, 3, consensus),
}
