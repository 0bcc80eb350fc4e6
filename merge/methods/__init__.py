"""Merge methods, one a file; METHODS lists them.

A method is a frozen dataclass: its fields are its settings, and calling it with one tensor of every model (float32 or
float64, equal shapes, the reference first) returns the merged tensor.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from merge.errors import UsageError, nearest
from merge.methods.linear import Linear
from merge.methods.slerp import Slerp

if TYPE_CHECKING:
    from torch import Tensor


class Method(Protocol):
    """What the engine asks of a method."""

    def __call__(self, tensors: Sequence[Tensor], base: Tensor | None = None) -> Tensor: ...


METHODS: dict[str, type] = {
    "linear": Linear,
    "slerp": Slerp,
}


def make_method(name: str, settings: Mapping[str, Any], weights: Sequence[float | None]) -> Method:
    """Return the method of that name with these settings, checked against the number of models.

    Args:
        settings: by field name; `weights` may be given here or beside the models, not both.
        weights: one per model, None where the user gave none.
    Raises:
        UsageError: unknown method or setting (the nearest is named), a value out of range, or a wrong number of models.
    """
    if name not in METHODS:
        raise UsageError(f"unknown method {name!r}.{nearest(name, METHODS)}")
    fields = {field.name for field in dataclasses.fields(METHODS[name])}
    for key in settings:
        if key not in fields:
            raise UsageError(f"method {name} has no setting {key!r}.{nearest(key, fields)}")
    chosen = dict(settings)
    if any(weight is not None for weight in weights):
        if "weights" not in fields:
            raise UsageError(
                f"method {name} takes no weights beside the models. Its settings: {', '.join(sorted(fields))}."
            )
        if "weights" in chosen:
            raise UsageError("weights are given beside the models and again in settings. Give them once.")
        if any(weight is None for weight in weights):
            raise UsageError("some models have a weight and others have none. Give every model a weight, or none.")
        chosen["weights"] = tuple(weights)
    if isinstance(chosen.get("weights"), list):
        chosen["weights"] = tuple(chosen["weights"])
    method: Method = METHODS[name](**chosen)
    METHODS[name].check_count(method, len(weights))  # type: ignore[attr-defined]
    return method
