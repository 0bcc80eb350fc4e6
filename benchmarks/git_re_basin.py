"""The baseline of `align_speed.py`: Git Re-Basin's weight matching on BERT, in numpy, with the spec its ports use.

A plain port of the published algorithm: every update permutes every tensor of an axis anew, and axes are visited in
random order until a sweep gains nothing. The spec has 37 axes for 12 layers and knows no heads: it moves rows of
queries, keys and values across heads, so what it finds is not the same function (except where the truth is a plain
permutation).

Source: Ainsworth et al. 2023, arXiv:2209.04836, algorithm 1.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment

Tensors = Mapping[str, NDArray[np.float32]]
Orders = dict[str, NDArray[np.int64]]


def bert_axes(layers: int, prefix: str = "bert.") -> dict[str, tuple[str | None, ...]]:
    """Return tensor -> the axis that permutes each of its dimensions; None where nothing does."""
    norm = ("LayerNorm.weight", "LayerNorm.bias")
    axes: dict[str, tuple[str | None, ...]] = {
        f"{prefix}embeddings.{kind}_embeddings.weight": (None, "residual")
        for kind in ("word", "position", "token_type")
    }
    axes |= {f"{prefix}embeddings.{name}": ("residual",) for name in norm}
    for i in range(layers):
        layer = f"{prefix}encoder.layer.{i}."
        for name, rows in (("query", "qk"), ("key", "qk"), ("value", "vo")):
            axes[f"{layer}attention.self.{name}.weight"] = (f"{rows}{i}", "residual")
            axes[f"{layer}attention.self.{name}.bias"] = (f"{rows}{i}",)
        for name, rows, columns in (
            ("attention.output.dense", "residual", f"vo{i}"),
            ("intermediate.dense", f"ffn{i}", "residual"),
            ("output.dense", "residual", f"ffn{i}"),
        ):
            axes[f"{layer}{name}.weight"] = (rows, columns)
            axes[f"{layer}{name}.bias"] = (rows,)
        for name in norm:
            axes[f"{layer}attention.output.{name}"] = axes[f"{layer}output.{name}"] = ("residual",)
    return axes


def permuted(
    axes: Mapping[str, tuple[str | None, ...]], orders: Orders, name: str, tensor: NDArray[np.float32], but: int
) -> NDArray[np.float32]:
    """Return a tensor in the current orders, one of its dimensions left out."""
    for dimension, axis in enumerate(axes[name]):
        if dimension != but and axis is not None:
            tensor = np.take(tensor, orders[axis], axis=dimension)
    return tensor


def update(axes: Mapping[str, tuple[str | None, ...]], orders: Orders, axis: str, a: Tensors, b: Tensors) -> float:
    """Bring one axis to its best order, in place, and return what that gained."""
    n = len(orders[axis])
    gain = np.zeros((n, n), dtype=np.float32)
    for name, along in axes.items():
        for dimension, other in enumerate(along):
            if other == axis:
                moved = permuted(axes, orders, name, b[name], dimension)
                rows_a, rows_b = (np.moveaxis(x, dimension, 0).reshape(n, -1) for x in (a[name], moved))
                gain += rows_a @ rows_b.T
    best = linear_sum_assignment(gain, maximize=True)[1]
    old, new = (float(gain[np.arange(n), order].sum()) for order in (orders[axis], best))
    orders[axis] = best
    return new - old


def start(axes: Mapping[str, tuple[str | None, ...]], a: Tensors) -> Orders:
    """Return the orders that move nothing."""
    sizes = {axis: a[name].shape[d] for name, along in axes.items() for d, axis in enumerate(along) if axis is not None}
    return {axis: np.arange(size) for axis, size in sizes.items()}


def weight_matching(
    axes: Mapping[str, tuple[str | None, ...]], a: Tensors, b: Tensors, seed: int = 0, sweeps: int = 100
) -> tuple[Orders, int]:
    """Return the orders it ends in and the number of sweeps: axes in random order until a sweep gains nothing."""
    generator, orders = np.random.default_rng(seed), start(axes, a)
    for sweep in range(1, sweeps + 1):
        gains = [update(axes, orders, axis, a, b) for axis in generator.permutation(list(orders))]
        if max(gains) <= 1e-12:
            return orders, sweep
    return orders, sweeps
