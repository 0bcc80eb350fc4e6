"""Table of mergekit's merge methods and parameters: our names for them, and the differences."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from merge.methods import METHODS

REQUIRED = object()


@dataclass(frozen=True)
class Parameter:
    """One parameter of a mergekit method.

    Attributes:
        name: mergekit's name.
        setting: our name; None if it only saves memory in mergekit or the method does not use it.
        each: mergekit reads one value per model.
        default: mergekit's default, or REQUIRED.
        kind: "number", or "flag" (true or false).
        words: our values for true and false of a flag.
        refused: a value that has an effect in mergekit but no counterpart here.
    """

    name: str
    setting: str | None
    each: bool = False
    default: Any = None
    kind: str = "number"
    words: tuple[Any, Any] = (True, False)
    refused: Any = None

    def read(self, value: Any) -> Any:
        """Return the setting's value for a value in the file; a list of numbers becomes a gradient.

        Raises:
            ValueError: the value has the wrong type.
        """
        if self.kind == "flag":
            if not isinstance(value, bool | int) or value not in (0, 1):
                raise ValueError(f"{self.name} must be true or false, the same for all layers; found {value!r}")
            if value == self.refused:
                raise ValueError(f"{self.name}: {str(bool(value)).lower()} has no counterpart here. Leave it out.")
            return self.words[0] if value else self.words[1]
        if isinstance(value, list):
            if not value or not all(map(_is_number, value)):
                raise ValueError(f"{self.name}: a gradient is a list of finite numbers, found {value!r}")
            return value[0] if len(value) == 1 else {"gradient": list(value)}
        if not _is_number(value):
            raise ValueError(f"{self.name} must be a finite number, found {value!r}")
        return value


@dataclass(frozen=True)
class Counterpart:
    """Our counterpart of a mergekit method.

    Attributes:
        method: our name.
        base: role of mergekit's base_model: task "vectors" start from it, "optional" likewise if given, the "first" of
            the two models, or an "input" like the others.
        parameters: all parameters that the method reads.
        settings: settings with which our method computes what mergekit computes.
        notes: remaining differences: (text, setting); none if that setting is 1, always if it is empty.
        finish: converts settings that do not correspond one by one.
    """

    method: str
    base: str
    parameters: tuple[Parameter, ...] = ()
    settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    notes: tuple[tuple[str, str], ...] = ()
    finish: Callable[[dict[str, Any]], dict[str, Any]] = dict

    def defaults(self) -> dict[str, Any]:
        """Return the defaults of our method, which a recipe need not repeat."""
        return {
            field.name: field.default
            for field in dataclasses.fields(METHODS[self.method])
            if field.default is not dataclasses.MISSING
        }


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _flag(name: str, setting: str | None, default: bool, words: tuple[Any, Any] = (True, False)) -> Parameter:
    return Parameter(name, setting, default=default, kind="flag", words=words)


def _nuslerp_vectors(settings: dict[str, Any]) -> dict[str, Any]:
    """Convert mergekit's two flags to `vectors`: the tensor, its rows or its columns."""
    vectors = "tensor" if settings["flatten"] else "columns" if settings["columns"] else "rows"
    return {"weights": settings["weights"], "vectors": vectors}


def _della_epsilon(settings: dict[str, Any]) -> dict[str, Any]:
    """Set epsilon to 0 for models with density 1, for which mergekit does not use it."""
    density, epsilon = settings["density"], settings["epsilon"]
    if isinstance(density, list) and isinstance(epsilon, list):
        spread = [0.0 if d == 1 else e for d, e in zip(density, epsilon, strict=True)]
        return settings | {"epsilon": spread}
    return settings


WEIGHT = Parameter("weight", "weights", each=True, default=REQUIRED)
DENSITY = Parameter("density", "density", each=True, default=1.0)
MEMORY = _flag("int8_mask", None, False)

TIED = (
    "all entries equal to the smallest kept entry are kept, and at least one; mergekit keeps a fixed number, in its "
    "sorting order"
)
MASKS = (
    "the random masks differ from mergekit's: they depend on seed, model and tensor, not on the order of computation"
)
NEAR = (
    "tensors with a cosine above 0.9995 are interpolated along the arc; mergekit takes the straight line, which is "
    "shorter by up to 0.013%"
)


def _vectors(
    method: str, normalize: bool, *more: Parameter, rescale: bool | None = None, **settings: Any
) -> Counterpart:
    """Return the counterpart of a task-vector method: all have weight, normalize and lambda."""
    named = {parameter.name for parameter in more}
    scaling = Parameter("rescale", None, default=False, kind="flag", refused=True if "density" in named else None)
    if rescale is not None:
        scaling = _flag("rescale", "rescale", rescale, words=("l1", "none"))
    shared = (
        WEIGHT,
        _flag("normalize", "normalize", normalize),
        Parameter("lambda", "scale", default=1.0),
        MEMORY,
        scaling,
    )
    unused = () if "density" in named else (Parameter("density", None, each=True, default=1.0),)
    notes = ((MASKS if rescale is not None else TIED, "density"),) if "density" in named else ()
    finish = _della_epsilon if method == "della" else dict
    return Counterpart(method, "vectors", (*shared, *more, *unused), settings, notes, finish)


GAMMA = Parameter("gamma", "gamma", each=True, default=0.01)
EPSILON = Parameter("epsilon", "epsilon", each=True, default=0.15)
CHANGE = Parameter("epsilon", "epsilon", default=1e-5)

COUNTERPARTS: dict[str, Counterpart] = {
    "linear": Counterpart("linear", "input", (WEIGHT, _flag("normalize", "normalize", True))),
    "slerp": Counterpart("slerp", "first", (Parameter("t", "lam", default=REQUIRED),), notes=((NEAR, ""),)),
    "nuslerp": Counterpart(
        "nuslerp",
        "optional",
        (WEIGHT, _flag("nuslerp_flatten", "flatten", True), _flag("nuslerp_row_wise", "columns", False)),
        finish=_nuslerp_vectors,
    ),
    "multislerp": Counterpart(
        "multislerp",
        "optional",
        (WEIGHT, _flag("normalize_weights", "normalize", True), Parameter("eps", None, default=1e-8)),
    ),
    "karcher": Counterpart(
        "karcher",
        "input",
        (Parameter("max_iter", None, default=10), Parameter("tol", None, default=1e-5)),
        notes=(
            (
                "the mean is iterated until it converges; mergekit stops at its tol or max_iter, whichever comes first",
                "",
            ),
        ),
    ),
    "task_arithmetic": _vectors("task_arithmetic", False),
    "ties": _vectors("ties", True, DENSITY, trim="tensor"),
    "dare_linear": _vectors("dare_linear", False, DENSITY, rescale=True),
    "dare_ties": _vectors("dare_ties", False, DENSITY, rescale=True),
    "breadcrumbs": _vectors("breadcrumbs", False, DENSITY, GAMMA),
    "breadcrumbs_ties": _vectors("breadcrumbs", False, DENSITY, GAMMA, elect=True),
    "della": _vectors("della", True, DENSITY, EPSILON, rescale=True),
    "della_linear": _vectors("della", False, DENSITY, EPSILON, rescale=True, elect=False),
    "sce": Counterpart(
        "sce", "vectors", (Parameter("select_topk", "select", default=1.0), MEMORY), notes=((TIED, "select"),)
    ),
    "ram": Counterpart("ram", "vectors", (CHANGE,)),
    "ramplus_tl": Counterpart(
        "ramplus_tl",
        "vectors",
        (Parameter("r", "r", default=0.1), Parameter("alpha", "alpha", default=0.2), CHANGE),
    ),
    "model_stock": Counterpart("model_stock", "vectors", (_flag("filter_wise", "filter_wise", False),)),
    "nearswap": Counterpart("nearswap", "first", (Parameter("t", "t", default=REQUIRED),)),
    "arcee_fusion": Counterpart(
        "arcee_fusion",
        "vectors",
        notes=(
            (
                "quartiles are exact; mergekit samples a million entries of larger tensors, so its result depends on the seed",
                "",
            ),
        ),
    ),
    "passthrough": Counterpart("passthrough", "input", (Parameter("scale", "scale", each=True, default=1.0),)),
}

# Parameters that any mergekit method reads; in the file of another method mergekit ignores them.
ALL_PARAMETERS = frozenset(p.name for c in COUNTERPARTS.values() for p in c.parameters)

# Methods that mergekit computes in float32 for any dtype of the models, or that compute nothing.
FLOAT32_METHODS = frozenset({"linear", "slerp", "passthrough"})
