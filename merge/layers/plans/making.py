"""How one output layer is made of its source layers, where it is not a plain copy.

    mean      sum_k w_k theta_k / sum_k w_k
    laco      theta_1 + sum_k (theta_k - theta_1), the layers after the first collapsed into it
    zero      a copy whose output projections are zero: where norms come first, a layer that changes nothing
    affine    a layer, or a part of the layer before, that is fitted to the map between two states of a model
    without   a copy without its attention, its feed-forward part, or another sublayer, whose output projection is zero

Source: Yang et al. 2024, arXiv:2402.11187 (LaCo), equation 1, by its formula. The authors' notebook subtracts in place, so
that every merged layer of it equals the last one of its window: the plan A[j] for layers i to j.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from merge.errors import MismatchError, UsageError

if TYPE_CHECKING:
    from torch import Tensor

Kind = Literal["mean", "laco", "zero", "affine", "without"]
SUBLAYERS = ("attention", "cross", "ffn")  # cross: attention to an encoder
NORM = "norm"  # removed too: the norm after the sublayer


@dataclass(frozen=True)
class Making:
    """How an output layer is made of its sources.

    Attributes:
        kind: mean, laco, zero, affine or without.
        weights: of a mean, one a source; equal ones when empty.
        states: of an affine layer, the state that it reads and the one that it is fitted to: state i is what layer i of
            the model reads, and the last one what its last layer writes.
        without: the sublayers that a copy loses, in the order of SUBLAYERS, with NORM behind them where the norm after
            each is bypassed too.
        reads: of an affine layer between two models, the model whose state it reads; the layer is made of the other one's.
    """

    kind: Kind
    weights: tuple[float, ...] = ()
    states: tuple[int, int] | None = None
    without: tuple[str, ...] = ()
    reads: int | None = None

    @property
    def removed(self) -> tuple[str, ...]:
        """The sublayers that write nothing."""
        return SUBLAYERS if self.kind == "zero" else tuple(name for name in SUBLAYERS if name in self.without)

    def check(self, sources: Sequence[tuple[int, int]]) -> None:
        """Stop at sources that cannot be made into one layer.

        Raises:
            UsageError: weights are not one a source, not finite or of sum 0; layers of several models where one is meant.
        """
        if self.weights and (
            len(self.weights) != len(sources)
            or not all(map(math.isfinite, self.weights))
            or abs(math.fsum(self.weights)) < 1e-12
        ):
            raise UsageError(f"a mean of {len(sources)} layers needs as many finite weights, of a sum other than 0.")
        if self.kind == "laco" and len({model for model, _ in sources}) > 1:
            raise UsageError("laco(...) collapses layers of one model. For layers of two models use mean(...).")
        if self.kind in ("zero", "affine", "without") and len(sources) != 1:
            raise UsageError(f"{self.kind}(...) is made of one layer, found {len(sources)}.")
        unknown = sorted(set(self.without) - {*SUBLAYERS, NORM})
        if unknown or (self.kind == "without") != bool(self.removed and self.without):
            raise UsageError(
                f"a layer without a sublayer names one of {', '.join(SUBLAYERS)}, and {NORM} behind it where the norm after it "
                f"is bypassed too; found {', '.join(self.without) or 'none'}."
            )

    def to_json(self) -> dict[str, Any]:
        """Return the fields that say something, for a manifest."""
        stated = {
            "made": self.kind,
            "weights": list(self.weights) or None,
            "states": self.states and list(self.states),
            "without": list(self.without) or None,
            "reads": self.reads,
        }
        return {key: value for key, value in stated.items() if value is not None}


def combined(tensors: Sequence[Tensor], making: Making | None, name: str) -> Tensor:
    """Return the tensor of a merged layer, computed in float32 (float64 where a source has it), in the sources' dtype.

    Args:
        making: mean or laco; a plain mean where a plan only lists several sources.
        name: for messages.
    Raises:
        MismatchError: integer tensors differ, or dtypes do.
    """
    import torch

    first = tensors[0]
    if len({tensor.dtype for tensor in tensors}) > 1:
        listed = ", ".join(sorted({str(tensor.dtype).removeprefix("torch.") for tensor in tensors}))
        raise MismatchError(f"{name}: layers of different dtypes cannot be merged ({listed}). Convert one model first.")
    if not first.is_floating_point():
        if not all(torch.equal(first, tensor) for tensor in tensors):
            raise MismatchError(f"{name} holds integers that differ between the layers to be merged.")
        return first
    wide = [tensor.to(torch.promote_types(tensor.dtype, torch.float32)) for tensor in tensors]
    if making is not None and making.kind == "laco":
        result = wide[0] + torch.stack([tensor - wide[0] for tensor in wide[1:]]).sum(0) if wide[1:] else wide[0]
    else:
        weights = (making.weights if making is not None else ()) or (1.0,) * len(wide)
        total = math.fsum(weights)
        result = torch.stack([weight / total * tensor for weight, tensor in zip(weights, wide, strict=True)]).sum(0)
    return result.to(first.dtype)
