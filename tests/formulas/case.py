"""Case: a merge method with settings, and the independent formula it must equal."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from merge.methods import METHODS, Method, make_method
from merge.methods.context import TensorContext, mask_generators


@dataclasses.dataclass(frozen=True)
class Peer:
    """The same merge in mergekit's words: method, parameters of the merge, and parameters of each model."""

    method: str
    parameters: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    per_model: tuple[Mapping[str, Any], ...] = ()


@dataclasses.dataclass(frozen=True)
class Case:
    """A method with settings, how many models it takes, and the formula that it must equal.

    Attributes:
        formula: called as formula(arrays, [base=], [draws=], [statistics=], **settings), all in float64; `base` if the
            method takes one, `draws` (uniform numbers, one array per model) if it is random, `statistics` if it needs them.
        not_itself: why merging a model with itself does not give it back; empty if it does.
        bound: why a merge does not commute with a permutation of units; empty if it does.
        peer: what mergekit calls it; None where it has nothing that is meant to be equal.
    """

    method: str
    settings: Mapping[str, Any]
    models: int
    formula: Callable[..., Any]
    not_itself: str = ""
    bound: str = ""
    peer: Peer | None = None

    @property
    def kind(self) -> Any:
        return METHODS[self.method]

    def make(self) -> Method:
        return make_method(self.method, self.settings, [None] * self.models)

    def context(self, shape: tuple[int, ...], seed: int = 0, dtype: torch.dtype = torch.float64) -> TensorContext:
        """Return a context with what the method asks for: generators, statistics of this shape."""
        keys = [f"model {k}" for k in range(self.models)]
        return TensorContext(
            name="a.weight",
            generators=mask_generators(seed, "a.weight", keys) if self.kind.random else (),
            statistics=tuple(s.to(dtype) for s in statistics(self.kind.statistics, shape, self.models)),
        )

    def expected(self, tensors: list[Tensor], base: Tensor | None, seed: int = 0) -> Any:
        """Return what the formula says, in float64."""
        shape = tuple(tensors[0].shape)
        extra: dict[str, Any] = {}
        if base is not None:
            extra["base"] = base.double().numpy()
        if self.kind.random:
            generators = self.context(shape, seed).generators
            extra["draws"] = [torch.rand(shape, generator=g).double().numpy() for g in generators]
        if self.kind.statistics:
            extra["statistics"] = [s.numpy() for s in statistics(self.kind.statistics, shape, self.models)]
        return self.formula([tensor.double().numpy() for tensor in tensors], **extra, **self.settings)


def statistics(kind: str | None, shape: tuple[int, ...], models: int) -> tuple[Tensor, ...]:
    """Return random statistics: positive entries for the Fisher information, X^T X for the Gram matrix of a weight."""
    generator = torch.Generator().manual_seed(17)
    if kind == "fisher":
        return tuple(torch.rand(shape, generator=generator, dtype=torch.float64) + 0.1 for _ in range(models))
    if kind == "gram" and len(shape) == 2:
        inputs = [
            torch.randn(3 * shape[1] + 1, shape[1], generator=generator, dtype=torch.float64) for _ in range(models)
        ]
        return tuple(x.T @ x / len(x) for x in inputs)
    return ()
