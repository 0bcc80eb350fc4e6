"""Merge methods, one a file; METHODS lists them by name.

`Method` is their abstract base: a frozen dataclass whose fields are the settings and whose call is the formula.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from importlib import import_module
from typing import Any

from merge.errors import UsageError, nearest
from merge.methods.method import Method

__all__ = ["METHODS", "WEIGHED", "Method", "make_method"]


class _Methods(Mapping[str, type[Method]]):
    """Name -> method. A method's file, which has its name, is imported when the method is looked up: most runs need one."""

    def __init__(self, classes: Mapping[str, str]) -> None:
        self._classes = classes

    def __getitem__(self, name: str) -> type[Method]:
        class_name = self._classes[name]
        method: type[Method] = getattr(import_module(f"{__name__}.{name}"), class_name)
        return method

    def __contains__(self, name: object) -> bool:
        return name in self._classes

    def __iter__(self) -> Iterator[str]:
        return iter(self._classes)

    def __len__(self) -> int:
        return len(self._classes)


METHODS = _Methods(
    {
        "linear": "Linear",
        "uniform_soup": "UniformSoup",
        "greedy_soup": "GreedySoup",
        "cocktail": "Cocktail",
        "slerp": "Slerp",
        "nuslerp": "Nuslerp",
        "multislerp": "Multislerp",
        "karcher": "Karcher",
        "nearswap": "Nearswap",
        "task_arithmetic": "TaskArithmetic",
        "ties": "Ties",
        "dare_linear": "DareLinear",
        "dare_ties": "DareTies",
        "della": "Della",
        "breadcrumbs": "Breadcrumbs",
        "sce": "Sce",
        "magmax": "MagMax",
        "consensus": "Consensus",
        "passthrough": "Passthrough",
        "model_stock": "ModelStock",
        "arcee_fusion": "ArceeFusion",
        "ram": "Ram",
        "ramplus_tl": "RamPlusTl",
        "iso_c": "IsoC",
        "wudi": "Wudi",
        "fisher": "Fisher",
        "regmean": "RegMean",
    }
)

# Names of other tools and of papers, and what they are here: methods, with their settings, and settings.
OTHER_NAMES = {
    **dict.fromkeys(("average", "avg", "mean", "lerp", "swa", "weighted_average"), "linear"),
    **dict.fromkeys(("soup", "model_soup"), "uniform_soup or greedy_soup"),
    "dare": "dare_ties or dare_linear",
    "breadcrumbs_ties": "breadcrumbs with elect=true",
    "della_linear": "della with elect=false",
}
OTHER_SETTINGS = {"lambda": "scale", "t": "lam", "select_topk": "select", "weight": "weights"}

# Methods that compute missing weights from scores or losses of whole models, before any tensor is merged.
WEIGHED = ("greedy_soup", "cocktail")


def method_advice(name: str) -> str:
    """Return what to write in place of an unknown method: its name here, or the nearest one."""
    ours = OTHER_NAMES.get(name.lower().replace("-", "_"))
    return f" It is {ours} here. Known: {', '.join(sorted(METHODS))}." if ours else nearest(name, METHODS)


def make_method(name: str, settings: Mapping[str, Any], weights: Sequence[float | None]) -> Method:
    """Return a method with its settings, checked against the number of models.

    Args:
        settings: by field name; `weights` may be given here or per model in `weights`, not both.
        weights: the weight of each model, None if the user gave none.
    Raises:
        UsageError: unknown method or setting (the nearest name is suggested), a value out of range, or a wrong number of models.
    """
    if name not in METHODS:
        raise UsageError(f"unknown method {name!r}.{method_advice(name)}")
    fields = {field.name for field in dataclasses.fields(METHODS[name])}
    for key in settings:
        if key not in fields:
            ours = OTHER_SETTINGS.get(key)
            known = (
                f" It is {ours!r} here. Known: {', '.join(sorted(fields))}." if ours in fields else nearest(key, fields)
            )
            raise UsageError(f"method {name} has no setting {key!r}.{known}")
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
