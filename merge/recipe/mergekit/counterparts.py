"""Table of mergekit's merge methods and parameters: our names for them, and the differences."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from merge.methods import METHODS
from merge.methods.checks import is_finite_number

REQUIRED = object()
WORDS = {"true": True, "yes": True, "on": True, "1": True, "false": False, "no": False, "off": False, "0": False}


@dataclass(frozen=True)
class Parameter:
    """One parameter of a mergekit method.

    Attributes:
        name: mergekit's name.
        setting: our name; None if it only saves memory in mergekit or the method does not use it.
        each: mergekit reads one value per model.
        default: mergekit's default, or REQUIRED.
        kind: "number", or "flag" (true or false). As in mergekit, numbers may be written as text and flags as 0, 1, yes, no.
        words: our values for true and false of a flag.
    """

    name: str
    setting: str | None
    each: bool = False
    default: Any = None
    kind: str = "number"
    words: tuple[Any, Any] = (True, False)

    def read(self, value: Any) -> Any:
        """Return the setting's value for a value in the file; a list of numbers becomes a gradient.

        Raises:
            ValueError: the value has the wrong type.
        """
        if self.kind == "flag":
            flag = _flag_of(value)
            if flag is None:
                raise ValueError(f"{self.name} must be true or false, the same for all layers; found {value!r}")
            return self.words[0] if flag else self.words[1]
        if isinstance(value, list):
            numbers = [_number_of(item) for item in value]
            points = [number for number in numbers if number is not None]
            if not points or len(points) < len(value):
                raise ValueError(f"{self.name}: a gradient is a list of finite numbers, found {value!r}")
            if len(points) == 1:
                return points[0]
            # Outside the layers mergekit takes the first value, also after the last layer.
            return {"gradient": points} | ({"outside": points[0]} if points[0] != points[-1] else {})
        number = _number_of(value)
        if number is None:
            raise ValueError(f"{self.name} must be a finite number, found {value!r}")
        return number


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


def _number_of(value: Any) -> float | None:
    """Return a finite number, or the one that a text is; None for anything else."""
    if isinstance(value, str):
        try:
            value = float(value)
        except ValueError:
            return None
    return value if is_finite_number(value) else None


def _flag_of(value: Any) -> bool | None:
    """Return true or false, however YAML has it: 1.0 and "yes" too; a list of equal flags is one; None for anything else."""
    if isinstance(value, list):
        flags = {_flag_of(item) for item in value}
        return flags.pop() if len(flags) == 1 else None
    if isinstance(value, str):
        return WORDS.get(value.lower())
    return bool(value) if isinstance(value, bool | int | float) and value in (0, 1) else None


def _flag(name: str, setting: str | None, default: bool, words: tuple[Any, Any] = (True, False)) -> Parameter:
    return Parameter(name, setting, default=default, kind="flag", words=words)


def _nuslerp_vectors(settings: dict[str, Any]) -> dict[str, Any]:
    """Convert mergekit's two flags to `vectors`: the tensor, its rows or its columns."""
    vectors = "tensor" if settings["flatten"] else "columns" if settings["columns"] else "rows"
    return {"weights": settings["weights"], "vectors": vectors, "as_stored": vectors != "tensor"}


def _stock_rows(settings: dict[str, Any]) -> dict[str, Any]:
    """Take rows as the file has them, as mergekit does."""
    return settings | {"as_stored": settings["filter_wise"]}


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

MASKS = (
    "the random masks differ from mergekit's: they depend on seed, model and tensor, not on the order of computation"
)
ALIKE = (
    "sce: models weigh alike in tensors whose task vectors' mean squares add up to less than 1e-6, as in mergekit; a "
    "fine-tune's often all do. settings: {floor: 0} weighs them by energy, as in the paper"
)


DRIFT = (
    "karcher: angles are computed in the dtype of the arithmetic, as in mergekit; in float32 the mean of fine-tunes of one model "
    "drifts towards one of them. settings: {arithmetic: float64} computes it exactly"
)


def _vectors(
    method: str, normalize: bool, *more: Parameter, rescale: bool | None = None, **settings: Any
) -> Counterpart:
    """Return the counterpart of a task-vector method: all have weight, normalize and lambda."""
    named = {parameter.name for parameter in more}
    kept = "rescale" if "density" in named else None
    scaling = _flag("rescale", kept, False, words=("l1", "none"))
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
    notes = ((MASKS, "density"),) if rescale is not None else ()
    finish = _della_epsilon if method == "della" else dict
    return Counterpart(method, "vectors", (*shared, *more, *unused), settings, notes, finish)


GAMMA = Parameter("gamma", "gamma", each=True, default=0.01)
EPSILON = Parameter("epsilon", "epsilon", each=True, default=0.15)
CHANGE = Parameter("epsilon", "epsilon", default=1e-5)

COUNTERPARTS: dict[str, Counterpart] = {
    "linear": Counterpart("linear", "input", (WEIGHT, _flag("normalize", "normalize", True))),
    "slerp": Counterpart(
        "slerp",
        "first",
        (Parameter("t", "lam", default=REQUIRED),),
        settings={"line_above": 0.9995, "zeros": "orthogonal"},
    ),
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
        (Parameter("max_iter", "max_iter", default=10), Parameter("tol", "tol", default=1e-5)),
        settings={"arithmetic": "tensor"},
        notes=((DRIFT, ""),),
    ),
    "task_arithmetic": _vectors("task_arithmetic", False),
    "ties": _vectors("ties", True, DENSITY, trim="tensor", exact_count=True),
    "dare_linear": _vectors("dare_linear", False, DENSITY, rescale=True),
    "dare_ties": _vectors("dare_ties", False, DENSITY, rescale=True),
    "breadcrumbs": _vectors("breadcrumbs", False, DENSITY, GAMMA, exact_count=True),
    "breadcrumbs_ties": _vectors("breadcrumbs", False, DENSITY, GAMMA, elect=True, exact_count=True),
    "della": _vectors("della", True, DENSITY, EPSILON, rescale=True, as_stored=True),
    "della_linear": _vectors("della", False, DENSITY, EPSILON, rescale=True, elect=False, as_stored=True),
    "sce": Counterpart(
        "sce",
        "vectors",
        (Parameter("select_topk", "select", default=1.0), MEMORY),
        settings={"exact_count": True, "floor": 1e-6},
        notes=((ALIKE, ""),),
    ),
    "ram": Counterpart("ram", "vectors", (CHANGE,)),
    "ramplus_tl": Counterpart(
        "ramplus_tl",
        "vectors",
        (Parameter("r", "r", default=0.1), Parameter("alpha", "alpha", default=0.2), CHANGE),
    ),
    "model_stock": Counterpart(
        "model_stock",
        "vectors",
        (_flag("filter_wise", "filter_wise", False),),
        settings={"floor": 1e-6},
        finish=_stock_rows,
    ),
    "nearswap": Counterpart("nearswap", "first", (Parameter("t", "t", default=REQUIRED),)),
    "arcee_fusion": Counterpart(
        "arcee_fusion",
        "vectors",
        settings={"arithmetic": "tensor", "as_stored": True},
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

# Parameters and keys that other versions of mergekit and its tools had; mergekit 0.1.5 reads none of them.
PAST_PARAMETERS = frozenset(
    {"smooth", "embed_slerp", "allow_negative_weights", "filter_wise", "naive_count", "consensus_method"}
)
PAST_KEYS = frozenset({"name", "allow_negative_weights"})

# Methods that mergekit computes in float32 for any dtype of the models, or that compute nothing.
FLOAT32_METHODS = frozenset({"linear", "slerp", "passthrough"})
