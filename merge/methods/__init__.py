"""Merge methods, one a file; METHODS lists them by name.

`Method` is their abstract base: a frozen dataclass whose fields are the settings and whose call is the formula.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from merge.errors import UsageError, nearest
from merge.methods.arcee_fusion import ArceeFusion
from merge.methods.breadcrumbs import Breadcrumbs
from merge.methods.cocktail import Cocktail
from merge.methods.consensus import Consensus
from merge.methods.dare_linear import DareLinear
from merge.methods.dare_ties import DareTies
from merge.methods.della import Della
from merge.methods.fisher import Fisher
from merge.methods.greedy_soup import GreedySoup
from merge.methods.iso_c import IsoC
from merge.methods.karcher import Karcher
from merge.methods.linear import Linear
from merge.methods.magmax import MagMax
from merge.methods.method import Method
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

__all__ = ["METHODS", "WEIGHED", "Method", "make_method"]

METHODS: dict[str, type[Method]] = {
    method.name: method
    for method in (
        Linear,
        UniformSoup,
        GreedySoup,
        Cocktail,
        Slerp,
        Nuslerp,
        Multislerp,
        Karcher,
        Nearswap,
        TaskArithmetic,
        Ties,
        DareLinear,
        DareTies,
        Della,
        Breadcrumbs,
        Sce,
        MagMax,
        Consensus,
        Passthrough,
        ModelStock,
        ArceeFusion,
        Ram,
        RamPlusTl,
        IsoC,
        Wudi,
        Fisher,
        RegMean,
    )
}

# Methods that compute missing weights from scores or losses of whole models, before any tensor is merged.
WEIGHED = ("greedy_soup", "cocktail")


def make_method(name: str, settings: Mapping[str, Any], weights: Sequence[float | None]) -> Method:
    """Return a method with its settings, checked against the number of models.

    Args:
        settings: by field name; `weights` may be given here or per model in `weights`, not both.
        weights: the weight of each model, None if the user gave none.
    Raises:
        UsageError: unknown method or setting (the nearest name is suggested), a value out of range, or a wrong number of models.
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
                f"method {name} takes no model weights. Its settings: {', '.join(sorted(fields)) or 'none'}."
            )
        if "weights" in chosen:
            raise UsageError("weights are given both with the models and in settings. Give them once.")
        if any(weight is None for weight in weights):
            raise UsageError("some models have a weight and others have none. Give every model a weight, or none.")
        chosen["weights"] = tuple(weights)
    chosen = {key: tuple(value) if isinstance(value, list) else value for key, value in chosen.items()}
    method = METHODS[name](**chosen)
    method.check_count(len(weights))
    return method
