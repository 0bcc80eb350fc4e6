"""Weighted averages and slerp, as numpy has them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from formulas.case import Case, Peer

Arrays = Sequence[np.ndarray[Any, Any]]


def linear(arrays: Arrays, weights: Sequence[float] | None = None, normalize: bool = True) -> Any:
    """The weighted mean, as numpy has it."""
    chosen = np.ones(len(arrays)) if weights is None else np.asarray(weights, float)
    return np.average(arrays, axis=0, weights=chosen) if normalize else np.tensordot(chosen, np.stack(arrays), 1)


def slerp(arrays: Arrays, lam: float = 0.5, line_above: float = 1.0, zeros: str = "parallel") -> Any:
    """The rotation of a towards b in the plane of the two: a by Gram-Schmidt, then cos and sin along that plane.

    A rotation of the unit vectors by lam times their angle; lengths are mixed as slerp's own formula mixes them. Above a
    cosine it is the straight line. No array is all zeros.
    """
    assert zeros in ("parallel", "orthogonal")
    if abs(np.vdot(arrays[0], arrays[1]) / np.linalg.norm(arrays[0]) / np.linalg.norm(arrays[1])) > line_above:
        return (1 - lam) * arrays[0] + lam * arrays[1]
    a, b = (x.astype(float).ravel() for x in arrays)
    unit_a, unit_b = a / np.linalg.norm(a), b / np.linalg.norm(b)
    angle = 2 * np.arctan2(np.linalg.norm(unit_a - unit_b), np.linalg.norm(unit_a + unit_b))
    across = unit_b - (unit_a @ unit_b) * unit_a
    across /= np.linalg.norm(across)
    # The part of b's length at each lam: what remains of sin(lam w) b / sin(w) once b is split along a and across.
    length_a, length_b = np.linalg.norm(a), np.linalg.norm(b)
    share = np.sin(lam * angle) / np.sin(angle)
    along = length_a * (np.cos(lam * angle) - share * np.cos(angle)) + share * length_b * np.cos(angle)
    return (along * unit_a + share * length_b * np.sin(angle) * across).reshape(arrays[0].shape)


CASES = {
    "linear of two": Case("linear", {}, 2, linear, peer=Peer("linear", per_model=({"weight": 1.0},) * 2)),
    "linear of five": Case("linear", {}, 5, linear, peer=Peer("linear", per_model=({"weight": 1.0},) * 5)),
    "linear weighted": Case(
        "linear",
        {"weights": [2, 1, 0.5]},
        3,
        linear,
        peer=Peer("linear", per_model=({"weight": 2.0}, {"weight": 1.0}, {"weight": 0.5})),
    ),
    "linear negative": Case("linear", {"weights": [1.5, -0.5]}, 2, linear),
    "linear summed": Case(
        "linear",
        {"weights": [1, 0.3], "normalize": False},
        2,
        linear,
        not_itself="weights that do not sum to 1 scale the model",
        peer=Peer("linear", {"normalize": False}, ({"weight": 1.0}, {"weight": 0.3})),
    ),
    "slerp half way": Case("slerp", {}, 2, slerp, peer=Peer("slerp", {"t": 0.5})),
    "slerp near a": Case("slerp", {"lam": 0.1}, 2, slerp, peer=Peer("slerp", {"t": 0.1})),
    "slerp on the line": Case("slerp", {"lam": 0.3, "line_above": 0.0, "zeros": "orthogonal"}, 2, slerp),
    "slerp near b": Case("slerp", {"lam": 0.9}, 2, slerp),
}
