"""Gauss length: how much the direction of a path of logits turns along the way, in radians.

With z(alpha) the logits of an example along a line of weights, and t = z' / |z'| the unit tangent,

    Gauss length = integral of |dt / d alpha| over alpha from 0 to 1,    dt / d alpha = (z'' - <z'', t> t) / |z'|

It is 0 for a straight way, and pi for a half circle, whatever the speed. z' and z'' are exact: a forward derivative of a forward
derivative through the model.

Source: Lucas et al. 2021, arXiv:2104.11044, section 4.2.
"""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from merge.progress import track

Path = Callable[[Tensor], Tensor]


def turning_rate(path: Path, at: float) -> Float[Tensor, " examples"]:
    """Return |dt / d alpha| of every example at a point of a path; 0 where the logits do not move.

    Args:
        path: from alpha, a scalar, to logits of shape (examples, classes).
    """
    from torch.func import jvp

    _load_forward_derivatives()
    alpha, one = torch.tensor(at, dtype=torch.float32), torch.ones(())

    def velocity(where: Tensor) -> Tensor:
        moved: Tensor = jvp(path, (where,), (one,))[1]
        return moved

    first, second = (each.double() for each in jvp(velocity, (alpha,), (one,)))
    speed = torch.linalg.vector_norm(first, dim=1, keepdim=True)
    tangent = first / speed
    turn = torch.linalg.vector_norm(second - (second * tangent).sum(1, keepdim=True) * tangent, dim=1) / speed[:, 0]
    return torch.where(speed[:, 0] > 0, turn, torch.zeros_like(turn))


def _load_forward_derivatives() -> None:
    """Load torch's forward derivatives, which are compiled by a function of torch that torch itself calls deprecated."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", r".*torch\.jit\.script", DeprecationWarning)
        importlib.import_module("torch._decomp.decompositions_for_jvp")


def gauss_length(path: Path, grid: Sequence[float]) -> Float[Tensor, " examples"]:
    """Return the Gauss length of every example by the trapezoid rule over a grid of alpha; in float64.

    Raises:
        NotImplementedError: a part of the model has no forward derivative.
    """
    rates = torch.stack([turning_rate(path, at) for at in track(grid, "Gauss length")])
    return torch.trapezoid(rates, torch.tensor(grid, dtype=torch.float64), dim=0)


def logits_path(
    model: Any, start: Mapping[str, Tensor], end: Mapping[str, Tensor], batch: Mapping[str, Tensor]
) -> Path:
    """Return the path from alpha to a model's logits on a batch, between two sets of weights.

    Args:
        model: in evaluation mode; its own weights are not read.
        start, end: by the names transformers writes; a tensor of integers is that of the start.
    """
    from torch.func import functional_call
    from torch.nn.attention import SDPBackend, sdpa_kernel

    device = model.device
    inputs = {name: tensor.to(device) for name, tensor in batch.items()}
    steps = {
        name: ((tensor.to(device)), (end[name] - tensor).to(device))
        if tensor.is_floating_point()
        else (tensor.to(device), None)
        for name, tensor in start.items()
    }

    def path(alpha: Tensor) -> Tensor:
        weights = {name: a if step is None else a + alpha.to(device) * step for name, (a, step) in steps.items()}
        # The fused kernels of attention have no forward derivative.
        with sdpa_kernel(SDPBackend.MATH):
            logits: Tensor = functional_call(model, weights, (), inputs).logits
        return logits.cpu()

    return path
