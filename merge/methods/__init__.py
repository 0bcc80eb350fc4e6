"""Merge methods, one a file; METHODS lists them.

A method is a frozen dataclass: its fields are its settings, and calling it with one tensor of every model (float32 or
float64, equal shapes, the reference first) returns the merged tensor.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, runtime_checkable

from merge.errors import UsageError, nearest
from merge.methods.arcee_fusion import ArceeFusion
from merge.methods.breadcrumbs import Breadcrumbs
from merge.methods.cocktail import Cocktail
from merge.methods.consensus import Consensus
from merge.methods.context import NOWHERE, Place
from merge.methods.dare_linear import DareLinear
from merge.methods.dare_ties import DareTies
from merge.methods.della import Della
from merge.methods.fisher import Fisher
from merge.methods.greedy_soup import GreedySoup
from merge.methods.iso_c import IsoC
from merge.methods.karcher import Karcher
from merge.methods.linear import Linear
from merge.methods.magmax import MagMax
from merge.methods.model_stock import ModelStock
from merge.methods.multislerp import Multislerp
from merge.methods.nearswap import Nearswap
from merge.methods.nuslerp import Nuslerp
from merge.methods.passthrough import Passthrough
from merge.methods.ram import Ram
from merge.methods.ramplus_tl import RamPlusTl
from merge.methods.regmean import RegMean
from merge.methods.sce import Sce
from merge.methods.slerp import Slerp
from merge.methods.task_arithmetic import TaskArithmetic
from merge.methods.ties import Ties
from merge.methods.uniform_soup import UniformSoup
from merge.methods.wudi import Wudi

if TYPE_CHECKING:
    from torch import Tensor


class Method(Protocol):
    """What the engine asks of a method.

    Attributes:
        base: whether it needs the model that the others were fine-tuned from: "required", "optional" or "none".
        elementwise: each entry of the result depends on the same entry of the inputs alone, given the place; the engine
            then merges a tensor in flat pieces.
        order_matters: the formula tells the models apart by their order, weights aside.
        random: it draws from `place.generators`.
        statistics: the data pass it needs ("fisher", "gram"), or None.
    """

    base: ClassVar[str]
    order_matters: ClassVar[bool]
    random: ClassVar[bool]
    statistics: ClassVar[str | None]

    @property
    def elementwise(self) -> bool: ...

    def check_count(self, models: int) -> None: ...

    def __call__(self, tensors: Sequence[Tensor], base: Tensor | None = None, place: Place = NOWHERE) -> Tensor: ...


@runtime_checkable
class Trimming(Protocol):
    """A method that keeps the largest entries of every model's task vector, ranked over the whole model."""

    def kept_fractions(self, models: int) -> tuple[float, ...] | None:
        """Return the fraction of entries kept of each model, or None where no ranking over the whole model is wanted."""
        ...


@runtime_checkable
class Arithmetic(Protocol):
    """A method whose formula is +, - and * alone: where `arrays`, numpy's arrays go through it too, and give the same bits."""

    arrays: ClassVar[bool]


METHODS: dict[str, type[Any]] = {
    "linear": Linear,
    "uniform_soup": UniformSoup,
    "greedy_soup": GreedySoup,
    "cocktail": Cocktail,
    "slerp": Slerp,
    "nuslerp": Nuslerp,
    "multislerp": Multislerp,
    "karcher": Karcher,
    "nearswap": Nearswap,
    "task_arithmetic": TaskArithmetic,
    "ties": Ties,
    "dare_linear": DareLinear,
    "dare_ties": DareTies,
    "della": Della,
    "breadcrumbs": Breadcrumbs,
    "sce": Sce,
    "magmax": MagMax,
    "consensus": Consensus,
    "passthrough": Passthrough,
    "model_stock": ModelStock,
    "arcee_fusion": ArceeFusion,
    "ram": Ram,
    "ramplus_tl": RamPlusTl,
    "iso_c": IsoC,
    "wudi": Wudi,
    "fisher": Fisher,
    "regmean": RegMean,
}

# Their weights, where none are given, are found from scores or losses of whole models before tensors are merged.
WEIGHED = ("greedy_soup", "cocktail")


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
                f"method {name} takes no weights beside the models. Its settings: {', '.join(sorted(fields)) or 'none'}."
            )
        if "weights" in chosen:
            raise UsageError("weights are given beside the models and again in settings. Give them once.")
        if any(weight is None for weight in weights):
            raise UsageError("some models have a weight and others have none. Give every model a weight, or none.")
        chosen["weights"] = tuple(weights)
    chosen = {key: tuple(value) if isinstance(value, list) else value for key, value in chosen.items()}
    method: Method = METHODS[name](**chosen)
    method.check_count(len(weights))
    return method
