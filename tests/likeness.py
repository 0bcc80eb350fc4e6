"""How alike the weights of models are, in numpy: the answer that searches of permutations are held against."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from merge.alignment.pair import Pair
from merge.symmetry.permutation import Permutation, apply


def alike(pairs: Sequence[Pair], found: Sequence[Permutation]) -> float:
    """Return the mean over entries and pairs of models of products of weights, every tensor at root mean square one.

    Vectors are centred; tensors that no axis can move are left out. The reference of the pairs stays as it is.
    """
    models = [pairs[0].a, *(apply(pair.spec, p, pair.b) for pair, p in zip(pairs, found, strict=True))]
    total, entries = 0.0, 0
    for name in models[0]:
        if all(axis.fixed or set(axis.axis_names()) <= pairs[0].spec.named for axis in pairs[0].spec.axes(name)):
            continue
        tensors = [m[name].numpy().astype(np.float64) for m in models]
        tensors = [t - t.mean() if t.ndim == 1 else t for t in tensors]
        tensors = [t / np.sqrt((t**2).mean()) for t in tensors]
        for i, later in enumerate(tensors):
            for earlier in tensors[:i]:
                total += (later * earlier).sum()
                entries += later.size
    return total / entries
