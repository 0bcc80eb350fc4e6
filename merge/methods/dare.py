"""Shared part of the DARE methods: entries of the task vectors are dropped at random and the rest rescaled."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from merge.methods.checks import check_choice, each
from merge.methods.context import EMPTY, TensorContext
from merge.methods.method import Method
from merge.methods.task_vectors import (
    RESCALES,
    base_of,
    check_densities,
    check_sum,
    deltas,
    drop,
    fuse,
    generators_of,
)

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Dare(Method):
    """Abstract base of DareLinear and DareTies: the settings and the random drops that they share.

    Attributes:
        elect: whether only entries that agree in sign are fused, as in TIES.
    Source: Yu et al. 2024, "Language models are super Mario", arXiv:2311.03099 (DARE).
    """

    density: float | tuple[float, ...] = 0.5
    weights: tuple[float, ...] | None = None
    normalize: bool = False
    scale: float = 1.0
    rescale: str = "probability"

    elect: ClassVar[bool]
    base = "required"
    random = True

    @property
    def elementwise(self) -> bool:
        """Whether each entry of the result depends on that entry alone: not if the L1 norm is kept."""
        return self.rescale != "l1"

    def __post_init__(self) -> None:
        check_densities(self.name, self.density)
        check_sum(self.name, self.weights, self.normalize, self.scale, elect=self.elect)
        check_choice(self.name, "rescale", self.rescale, RESCALES)

    def __call__(self, tensors: Sequence[Tensor], base: Tensor | None = None, context: TensorContext = EMPTY) -> Tensor:
        origin, models = base_of(self.name, base), len(tensors)
        generators = generators_of(self.name, context, models)
        triples = zip(deltas(tensors, origin), each(self.density, models), generators, strict=True)
        kept = (drop(delta, keep, self.rescale, generator) for delta, keep, generator in triples)
        return fuse(origin, kept, self.weights or (1.0,) * models, self.normalize, self.scale, elect=self.elect)
