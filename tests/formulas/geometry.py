"""Methods that see a tensor as a vector, a matrix or a set of entries, as numpy has them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from formulas import averages
from formulas.case import Case, Peer

Array = np.ndarray[Any, Any]
Arrays = Sequence[Array]


def nuslerp(
    arrays: Arrays,
    base: Array | None = None,
    weights: Sequence[float] = (1, 1),
    vectors: str = "tensor",
    as_stored: bool = False,
) -> Any:
    """The rotation that slerp's own case is checked by, vector by vector."""
    origin = np.zeros_like(arrays[0]) if base is None else base
    a, b = (array - origin for array in arrays)
    lam = weights[1] / (weights[0] + weights[1])
    if vectors == "tensor" or a.ndim < 2:
        return origin + averages.slerp([a, b], lam)
    axis = a.ndim - 1 if vectors == "rows" else 0
    out = np.empty_like(a)
    for place in np.ndindex(*np.delete(a.shape, axis)):
        one = tuple(np.insert(np.array(place, dtype=object), axis, slice(None)))
        out[one] = averages.slerp([a[one], b[one]], lam)
    return origin + out


def multislerp(
    arrays: Arrays, base: Array | None = None, weights: Sequence[float] | None = None, normalize: bool = True
) -> Any:
    """The barycentre as it is described: to the tangent space at the mean direction, the mean there, and back."""
    origin = np.zeros_like(arrays[0]) if base is None else base
    chosen = np.ones(len(arrays)) if weights is None else np.asarray(weights, float)
    chosen = chosen / chosen.sum() if normalize else chosen
    vectors = np.stack([(array - origin).ravel() for array in arrays])
    lengths = np.sqrt((vectors**2).sum(1))
    units = vectors / lengths[:, None]
    mean = chosen @ units
    mean /= np.linalg.norm(mean)
    tangent = chosen @ (units - np.outer(units @ mean, mean))
    step = np.linalg.norm(tangent)
    on_sphere = np.cos(step) * mean + np.sinc(step / np.pi) * tangent
    return origin + (chosen @ lengths) * on_sphere.reshape(origin.shape)


def karcher(
    arrays: Arrays,
    weights: Sequence[float] | None = None,
    tol: float = 0,
    max_iter: int = 0,
    arithmetic: str = "float64",
) -> Any:
    """The mean on the sphere by many half steps on the vectors themselves, angles by arctan2, from the first model.

    How it is searched for is no part of the answer: `tol` and `max_iter` are not read.
    """
    chosen = np.ones(len(arrays)) if weights is None else np.asarray(weights, float)
    chosen = chosen / chosen.sum()
    lengths = [np.linalg.norm(array) for array in arrays]
    units = [array.ravel() / length for array, length in zip(arrays, lengths, strict=True)]
    mean = units[0]
    for _ in range(400):
        tangent = np.zeros_like(mean)
        for weight, unit in zip(chosen, units, strict=True):
            across = unit - (unit @ mean) * mean
            sine = np.linalg.norm(across)
            if sine > 0:
                tangent += weight * np.arctan2(sine, unit @ mean) / sine * across
        step = np.linalg.norm(tangent) / 2
        mean = np.cos(step) * mean + np.sinc(step / np.pi) * tangent / 2
        mean /= np.linalg.norm(mean)
    return float(chosen @ lengths) * mean.reshape(arrays[0].shape)


def model_stock(
    arrays: Arrays, base: Array, filter_wise: bool = False, floor: float = 0.0, as_stored: bool = False
) -> Any:
    """The ratio from the length of s, the sum of the unit task vectors: |s|^2 = N + N (N-1) c.

    Two models whose lengths multiply to less than the floor are taken to be less alike by their share of it.
    """
    if filter_wise and base.ndim > 1:
        return np.stack([model_stock([array[i] for array in arrays], base[i], True, floor) for i in range(len(base))])
    n = len(arrays)
    vectors = [array - base for array in arrays]
    squared = np.square(sum(vector / np.linalg.norm(vector) for vector in vectors)).sum()
    if floor:
        lengths = [np.linalg.norm(vector) for vector in vectors]
        pairs = [(i, j) for i in range(n) for j in range(i)]
        c = [np.vdot(vectors[i], vectors[j]) / max(lengths[i] * lengths[j], floor) for i, j in pairs]
        squared = n + n * (n - 1) * np.mean(c)
    return base + n * (squared - n) / ((n - 1) * squared) * sum(vectors) / n


def nearswap(arrays: Arrays, t: float = 1e-4) -> Any:
    """The weight of b entry by entry, as the formula has it."""
    out = arrays[0].copy()
    for place, a in np.ndenumerate(arrays[0]):
        b = arrays[1][place]
        w = min(1.0, t / abs(b - a))
        out[place] = (1 - w) * a + w * b
    return out


def arcee_fusion(arrays: Arrays, base: Array, arithmetic: str = "float64", as_stored: bool = False) -> Any:
    """Importances row by row, quartiles from a full sort."""
    model = arrays[0]
    scores = np.empty_like(model)
    for place in np.ndindex(*model.shape[:-1]):
        p, q = (np.exp(x[place]) / np.exp(x[place]).sum() + 1e-8 for x in (model, base))
        scores[place] = np.abs(model[place] - base[place]) * np.sum(p * (np.log(p) - np.log(q)))
    ordered = sorted(scores.ravel().tolist())
    first, median, third = (ordered[int(q * (len(ordered) - 1))] for q in (0.25, 0.5, 0.75))
    return base + (model - base) * (scores - median >= 1.5 * (third - first))


def iso_c(arrays: Arrays, base: Array, scale: float = 1.0) -> Any:
    """The polar factor by the inverse square root of D^T D, times the nuclear norm over the number of singular values."""
    summed = sum(array - base for array in arrays)
    if base.ndim != 2:
        return base + scale * summed / len(arrays)
    tall = summed if summed.shape[0] >= summed.shape[1] else summed.T
    values, vectors = np.linalg.eigh(tall.T @ tall)
    polar = tall @ (vectors / np.sqrt(values)) @ vectors.T
    strength = np.linalg.norm(summed, "nuc") / min(summed.shape)
    return base + scale * strength * (polar if tall is summed else polar.T)


def wudi(arrays: Arrays, base: Array, ridge: float = 0.0) -> Any:
    """Least squares on the equations themselves, one block of rows for each model (and one for the ridge)."""
    vectors = [array - base for array in arrays]
    if base.ndim != 2:
        return base + np.mean(vectors, axis=0)
    blocks = [vector / np.linalg.norm(vector) for vector in vectors]
    right = [vector @ block.T for vector, block in zip(vectors, blocks, strict=True)]
    if ridge:
        gram = sum(block.T @ block for block in blocks)
        root = np.sqrt(ridge * np.linalg.eigvalsh(gram).mean()) * np.eye(base.shape[1])
        blocks, right = [*blocks, root], [*right, sum(vectors) @ root]
    solution = np.linalg.lstsq(np.concatenate(blocks), np.concatenate(right, axis=1).T, rcond=None)[0]
    return base + solution.T


def ram(arrays: Arrays, base: Array, epsilon: float = 1e-5) -> Any:
    """The mean of the changes that count, entry by entry."""
    out = base.copy()
    for place in np.ndindex(*base.shape):
        changes = [array[place] - base[place] for array in arrays]
        counting = [change for change in changes if abs(change) > epsilon]
        out[place] += np.mean(counting) if counting else 0.0
    return out


def ramplus_tl(arrays: Arrays, base: Array, r: float = 0.1, alpha: float = 0.2, epsilon: float = 1e-5) -> Any:
    """RAM plus what the scaling adds: r min(rho, alpha) of every entry that one model alone changed."""
    changes = np.stack([array - base for array in arrays])
    counting = np.abs(changes) > epsilon
    alone = counting.sum(0) == 1
    out = ram(arrays, base, epsilon)
    for change, counts in zip(changes, counting, strict=True):
        own, shared = np.sum(counts & alone), np.sum(counts & ~alone)
        if own:
            out = out + r * min(shared / own, alpha) * np.where(counts & alone, change, 0.0)
    return out


def _each(count: int) -> tuple[dict[str, float], ...]:
    return ({"weight": 1.0},) * count


MOSTLY_BASE = "the entries that do not stand out stay the base's"
FLATTENED = "its singular values are replaced by their mean"
# mergekit's karcher, let run until it stands still.
PATIENT = {"max_iter": 200, "tol": 1e-9}

CASES = {
    "uniform soup of two": Case("uniform_soup", {}, 2, averages.linear, peer=Peer("linear", per_model=_each(2))),
    "uniform soup of five": Case("uniform_soup", {}, 5, averages.linear, peer=Peer("linear", per_model=_each(5))),
    "nuslerp": Case("nuslerp", {}, 2, nuslerp, peer=Peer("nuslerp", per_model=_each(2))),
    "nuslerp weighted": Case(
        "nuslerp",
        {"weights": [1, 3]},
        2,
        nuslerp,
        peer=Peer("nuslerp", per_model=({"weight": 1.0}, {"weight": 3.0})),
    ),
    "nuslerp of rows": Case(
        "nuslerp",
        {"weights": [0.7, 0.3], "vectors": "rows"},
        2,
        nuslerp,
        peer=Peer("nuslerp", {"nuslerp_flatten": False}, ({"weight": 0.7}, {"weight": 0.3})),
    ),
    "nuslerp of columns": Case(
        "nuslerp",
        {"weights": [2, 1], "vectors": "columns"},
        2,
        nuslerp,
        peer=Peer("nuslerp", {"nuslerp_flatten": False, "nuslerp_row_wise": True}, ({"weight": 2.0}, {"weight": 1.0})),
    ),
    "multislerp of two": Case("multislerp", {}, 2, multislerp, peer=Peer("multislerp", per_model=_each(2))),
    "multislerp of five": Case(
        "multislerp",
        {"weights": [3, 1, 1, 2, 0.5]},
        5,
        multislerp,
        peer=Peer("multislerp", per_model=tuple({"weight": float(w)} for w in (3, 1, 1, 2, 0.5))),
    ),
    "multislerp not normalised": Case(
        "multislerp",
        {"weights": [1, 0.3], "normalize": False},
        2,
        multislerp,
        not_itself="weights that do not sum to 1 scale the task vector",
        peer=Peer("multislerp", {"normalize_weights": False}, ({"weight": 1.0}, {"weight": 0.3})),
    ),
    "karcher of two": Case("karcher", {}, 2, karcher, peer=Peer("karcher", PATIENT)),
    "karcher of five": Case("karcher", {"tol": 1e-13, "max_iter": 500}, 5, karcher, peer=Peer("karcher", PATIENT)),
    "karcher on the tensors": Case(
        "karcher", {"arithmetic": "tensor", "tol": 1e-12, "max_iter": 40}, 3, karcher, peer=Peer("karcher", PATIENT)
    ),
    "karcher weighted": Case("karcher", {"weights": [3, 1, 0, 2, 0.5]}, 5, karcher),
    "model stock of two": Case("model_stock", {}, 2, model_stock, peer=Peer("model_stock")),
    "model stock of five": Case("model_stock", {}, 5, model_stock, peer=Peer("model_stock")),
    "model stock by rows": Case(
        "model_stock", {"filter_wise": True}, 5, model_stock, peer=Peer("model_stock", {"filter_wise": True})
    ),
    "model stock of short vectors": Case(
        "model_stock",
        {"filter_wise": True, "floor": 1e4, "as_stored": True},
        3,
        model_stock,
        not_itself="below the floor equal task vectors do not count as alike",
    ),
    "nuslerp of stored rows": Case("nuslerp", {"vectors": "rows", "as_stored": True}, 2, nuslerp),
    "arcee fusion of stored rows": Case(
        "arcee_fusion", {"arithmetic": "tensor", "as_stored": True}, 1, arcee_fusion, not_itself=MOSTLY_BASE
    ),
    "nearswap": Case("nearswap", {"t": 0.5}, 2, nearswap, peer=Peer("nearswap", {"t": 0.5})),
    "nearswap by a little": Case("nearswap", {}, 2, nearswap, peer=Peer("nearswap", {"t": 1e-4})),
    "arcee fusion": Case("arcee_fusion", {}, 1, arcee_fusion, not_itself=MOSTLY_BASE, peer=Peer("arcee_fusion")),
    "passthrough": Case("passthrough", {}, 1, lambda arrays: arrays[0], peer=Peer("passthrough")),
    "passthrough scaled": Case(
        "passthrough",
        {"scale": -0.5},
        1,
        lambda arrays, scale: np.multiply(arrays[0], scale),
        not_itself="it is scaled",
        peer=Peer("passthrough", per_model=({"scale": -0.5},)),
    ),
    "iso-c of two": Case("iso_c", {}, 2, iso_c, not_itself=FLATTENED),
    "iso-c of five": Case("iso_c", {"scale": 0.4}, 5, iso_c, not_itself=FLATTENED),
    "wudi of two": Case("wudi", {}, 2, wudi),
    "wudi of five": Case("wudi", {}, 5, wudi),
    "wudi with a ridge": Case(
        "wudi", {"ridge": 0.3}, 2, wudi, not_itself="the ridge pulls towards the sum of the models"
    ),
    "ram of two": Case(
        "ram",
        {"epsilon": 0.8},
        2,
        ram,
        not_itself="changes within epsilon are dropped",
        peer=Peer("ram", {"epsilon": 0.8}),
    ),
    "ram of five": Case("ram", {}, 5, ram, peer=Peer("ram", {"epsilon": 1e-5})),
    "ram+ of two": Case(
        "ramplus_tl",
        {"epsilon": 0.8, "r": 0.5, "alpha": 1.0},
        2,
        ramplus_tl,
        not_itself="changes within epsilon are dropped",
        peer=Peer("ramplus_tl", {"epsilon": 0.8, "r": 0.5, "alpha": 1.0}),
    ),
    "ram+ of five": Case("ramplus_tl", {}, 5, ramplus_tl, peer=Peer("ramplus_tl")),
}
