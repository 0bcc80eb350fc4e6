"""Redundancy removed from a network of one hidden layer: units whose incoming weights have one direction become one unit.

Of a ReLU network, units i and j with n_j = s n_i (n: incoming weights and bias, s > 0) compute relu(n_j x) = s relu(n_i x), so
j can go if its outgoing weights are added to those of i times s = |n_j| / |n_i|. The published code multiplies by the
inverse, |n_i| / |n_j|, which changes the function; `scale="published"` does so too. Its loop also counts the units that it has
looked at and ends when they are as many as the units that are *left*, which is after about half of them; `whole=False` ends
there too.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from two_layer.nets import Nets, one, stacked

SCALES = ("function", "published")


def reduced(net: Mapping[str, Tensor], threshold: float = 0.99, scale: str = "function", whole: bool = True) -> Nets:
    """Return one network without units of the same direction.

    Args:
        net: of one hidden layer, without LayerNorm.
        threshold: of the cosine of incoming weights, bias included, above which two units have the same direction.
        scale: "function" keeps the function where the cosine is 1; "published" is the factor of the published code.
        whole: whether all units are looked at.
    Raises:
        ValueError: the scale is unknown.
    """
    if scale not in SCALES:
        raise ValueError(f"unknown scale {scale!r}. Choose among {', '.join(SCALES)}.")
    incoming = torch.cat([net["layers.0.dense.weight"], net["layers.0.dense.bias"][:, None]], 1).double()
    outgoing = net["classifier.weight"].double().clone()
    norms = incoming.norm(dim=1)
    cosines = (incoming / norms[:, None]) @ (incoming / norms[:, None]).T
    cosines.fill_diagonal_(-2)
    left, considered = torch.ones(len(norms), dtype=torch.bool), 0
    while whole or considered < int(left.sum()):
        nearest = int(cosines.argmax())
        i = min(nearest // len(norms), nearest % len(norms))
        same = cosines[i] > threshold
        if not same.any():
            break
        factor = norms[same] / norms[i] if scale == "function" else norms[i] / norms[same]
        outgoing[:, i] += (outgoing[:, same] * factor).sum(1)
        left &= ~same
        cosines[same], cosines[:, same] = -2.0, -2.0
        considered += int(same.sum()) + 1
    parts = {
        "layers.0.dense.weight": net["layers.0.dense.weight"][left],
        "layers.0.dense.bias": net["layers.0.dense.bias"][left],
        "classifier.weight": outgoing[:, left].to(net["classifier.weight"].dtype),
    }
    return {**net, **parts}


def padded(single: list[Nets]) -> Nets:
    """Return networks of several widths as a stack, the narrow ones with units of zero weights."""
    width = max(len(net["layers.0.dense.bias"]) for net in single)

    def grown(net: Nets) -> Nets:
        more = width - len(net["layers.0.dense.bias"])
        pad = torch.nn.functional.pad
        return {
            **net,
            "layers.0.dense.weight": pad(net["layers.0.dense.weight"], (0, 0, 0, more)),
            "layers.0.dense.bias": pad(net["layers.0.dense.bias"], (0, more)),
            "classifier.weight": pad(net["classifier.weight"], (0, more)),
        }

    return stacked([grown(net) for net in single])


def reduced_zoo(
    nets: Mapping[str, Tensor], threshold: float = 0.99, scale: str = "function", whole: bool = True
) -> tuple[Nets, Tensor]:
    """Return every network reduced, as one stack of padded ones, and the units that each has left."""
    single = [reduced(one(nets, k), threshold, scale, whole) for k in range(len(nets["classifier.bias"]))]
    units = torch.tensor([float(len(net["layers.0.dense.bias"])) for net in single], dtype=torch.float64)
    return padded(single), units
