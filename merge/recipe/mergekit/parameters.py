"""Convert the parameters of a mergekit file to settings and overrides: filters, gradients and precedence.

mergekit looks up a parameter for every tensor: in the source's parameters, then the slice's, then the file's; in a list
of {filter, value} the first filter contained in the tensor's name wins. A recipe has settings, and overrides of which
the last match wins. Both are functions of the tensor's name; this module rewrites one as the other.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from merge.errors import nearest
from merge.recipe.gradient import is_gradient, value_at
from merge.recipe.mergekit.counterparts import ALL_PARAMETERS, PAST_PARAMETERS, REQUIRED, Counterpart, Parameter

Where = tuple[int | str, ...]


class Fault(Exception):
    """An error in the file: its position and the message."""

    def __init__(self, where: Where, message: str) -> None:
        super().__init__(message)
        self.where = where
        self.message = message


@dataclass(frozen=True)
class Rule:
    """A value for tensors whose names contain the filter; None matches all."""

    filter: str | None
    value: Any


@dataclass(frozen=True)
class Scope:
    """One `parameters` mapping of the file.

    Attributes:
        where: its position in the file.
        rules: parameter -> its rules, of which the first match wins.
    """

    where: Where
    rules: Mapping[str, tuple[Rule, ...]]


def read_scope(
    parameters: Mapping[str, Any] | None,
    where: Where,
    method: str,
    counterpart: Counterpart,
    warn: Callable[[str], None],
) -> Scope:
    """Return the rules of one `parameters` mapping, with the values converted to our settings.

    Raises:
        Fault: mergekit has no such parameter, or the value has the wrong type.
    """
    by_name = {parameter.name: parameter for parameter in counterpart.parameters}
    rules: dict[str, tuple[Rule, ...]] = {}
    for name, value in (parameters or {}).items():
        if name not in by_name and name in PAST_PARAMETERS:
            warn(f"{name} is left out: mergekit 0.1.5 has no such parameter of {method}")
            continue
        if name not in ALL_PARAMETERS:
            raise Fault(
                (*where, name), f"mergekit has no parameter {name!r}.{nearest(str(name), by_name or ALL_PARAMETERS)}"
            )
        if name not in by_name:
            warn(f"{name} is not a parameter of {method} and is ignored, as in mergekit")
            continue
        rules[name] = _read_rules(by_name[name], value, (*where, name), warn)
        if by_name[name].setting is None:
            warn(f"{name} is left out: {method} does not use it")
    return Scope(where, rules)


def _read_rules(parameter: Parameter, value: Any, where: Where, warn: Callable[[str], None]) -> tuple[Rule, ...]:
    conditional = isinstance(value, Mapping) or (isinstance(value, list) and any(isinstance(v, Mapping) for v in value))
    if not conditional:
        return (Rule(None, _read(parameter, value, where)),)
    rules: list[Rule] = []
    items = enumerate(value) if isinstance(value, list) else [(None, value)]
    for number, item in items:
        at = where if number is None else (*where, number)
        if not isinstance(item, Mapping) or "value" not in item:
            raise Fault(at, f"{parameter.name}: expected {{filter: ..., value: ...}}, found {item!r}")
        for key in item:
            if key not in ("filter", "value"):
                raise Fault((*at, key), f"unknown key {key!r}.{nearest(str(key), ('filter', 'value'))}")
        chosen = item.get("filter")
        if chosen is not None and not isinstance(chosen, str):
            raise Fault((*at, "filter"), f"a filter must be text, a part of tensor names; found {chosen!r}")
        if rules and rules[-1].filter is None:
            warn(f"{parameter.name}: items after a value for all tensors have no effect, as in mergekit")
            break
        every = chosen in (None, "", "*")
        if chosen is not None and not every and any(mark in chosen for mark in "*?["):
            warn(f"filter {chosen!r} is left out: mergekit's filters are plain text, and no tensor name contains this")
            continue
        rules.append(Rule(None if every else chosen, _read(parameter, item["value"], (*at, "value"))))
    return tuple(rules)


def _read(parameter: Parameter, value: Any, where: Where) -> Any:
    try:
        return parameter.read(value)
    except ValueError as error:
        raise Fault(where, str(error)) from error


@dataclass(frozen=True)
class _Decision:
    """The value of one parameter by tensor name: that of the first matching filter, else the rest."""

    filters: tuple[str, ...]
    values: tuple[Any, ...]
    rest: Any

    def at(self, contained: Sequence[str]) -> Any:
        """Return the value for a tensor whose name contains these filters."""
        pairs = zip(self.filters, self.values, strict=True)
        matching = (value for filter, value in pairs if any(filter in text for text in contained))
        return next(matching, self.rest)


@dataclass(frozen=True)
class Settled:
    """Settings for all tensors, and overrides for tensors whose names contain a filter; the last match wins.

    Attributes:
        overlaps: pairs of filters for which this differs from mergekit, if a tensor name contains both.
    """

    settings: Mapping[str, Any]
    overrides: tuple[tuple[str, Mapping[str, Any]], ...] = ()
    overlaps: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class _Decisions:
    """All parameters of a merge, by our setting's name and the model's number (None for the whole merge)."""

    counterpart: Counterpart
    by_setting: Mapping[tuple[str, int | None], _Decision]

    def settings(self, contained: Sequence[str] = ()) -> dict[str, Any]:
        """Return our settings for a tensor whose name contains these filters."""
        raw: dict[str, Any] = {}
        for (setting, model), decision in self.by_setting.items():
            if model is None:
                raw[setting] = decision.at(contained)
            else:
                raw.setdefault(setting, []).append(decision.at(contained))
        settings = self.counterpart.finish(raw) | dict(self.counterpart.settings)
        return {key: _one_for_all(value) if key != "weights" else value for key, value in settings.items()}


def settle(counterpart: Counterpart, scopes: Sequence[Scope], by_model: Sequence[tuple[str, Scope]]) -> Settled:
    """Return the settings of a merge, and its overrides.

    Args:
        scopes: of the whole merge, the nearest first.
        by_model: name and parameters of each model.
    Raises:
        Fault: a required parameter is missing, or two lists have filters in contradictory orders.
    """
    by_setting: dict[tuple[str, int | None], _Decision] = {}
    for parameter in counterpart.parameters:
        if parameter.setting is None:
            continue
        if parameter.each:
            for number, (model, scope) in enumerate(by_model):
                by_setting[parameter.setting, number] = _decide(parameter, [scope, *scopes], model)
        else:
            by_setting[parameter.setting, None] = _decide(parameter, scopes)
    decisions = _Decisions(counterpart, by_setting)
    settings = decisions.settings()
    order = _order([decision.filters for decision in by_setting.values()], scopes[-1].where)
    # An override repeats every setting that any filter changes, because only the last match counts.
    varying = {k for name in order for k, v in decisions.settings((name,)).items() if v != settings[k]}

    def at(*contained: str) -> dict[str, Any]:
        return {key: value for key, value in decisions.settings(contained).items() if key in varying}

    overrides = tuple((name, at(name)) for name in order)
    overlaps = tuple(
        (name, later) for i, name in enumerate(order) for later in order[i + 1 :] if at(name, later) != at(later)
    )
    return Settled(settings, overrides if varying else (), overlaps)


def _decide(parameter: Parameter, chain: Sequence[Scope], model: str | None = None) -> _Decision:
    """Return one parameter of one model: mergekit's look-up as one list of filters."""
    filters: list[str] = []
    values: list[Any] = []
    for rule in (rule for scope in chain for rule in scope.rules.get(parameter.name, ())):
        if rule.filter is None:
            return _Decision(tuple(filters), tuple(values), rule.value)
        if not any(earlier in rule.filter for earlier in filters):  # otherwise it never matches first
            filters.append(rule.filter)
            values.append(rule.value)
    if parameter.default is REQUIRED:
        of = f" of {model}" if model else ""
        rest = " for the tensors that no filter matches" if filters else ""
        where = next((s for s in chain if parameter.name in s.rules), chain[0]).where
        raise Fault((*where, parameter.name), f"{parameter.name}{of} is required{rest}")
    return _Decision(tuple(filters), tuple(values), parameter.read(parameter.default))


def _order(lists: Sequence[tuple[str, ...]], where: Where) -> list[str]:
    """Return all filters in an order in which the last match wins: earlier ones of a list last, contained filters first.

    Raises:
        Fault: two lists have two filters in opposite orders.
    """
    names = list(dict.fromkeys(name for filters in lists for name in filters))
    after = {name: {other for other in names if other != name and other in name} for name in names}
    for filters in lists:
        for index, name in enumerate(filters):
            after[name] |= {later for later in filters[index + 1 :] if later not in name and name not in later}
    order: list[str] = []
    while len(order) < len(names):
        ready = [name for name in names if name not in order and after[name] <= set(order)]
        if not ready:
            stuck = ", ".join(repr(name) for name in names if name not in order)
            raise Fault(where, f"filters {stuck} have different orders in two lists; give them the same order")
        order.append(ready[-1])
    return order


def _one_for_all(value: Any) -> Any:
    """Return a list of equal values as a single value."""
    return value[0] if isinstance(value, list) and all(item == value[0] for item in value) else value


def stretched(value: Any, offset: int, length: int, total: int) -> Any:
    """Return a gradient over `length` of `total` layers, from `offset`, as a gradient over all layers.

    mergekit's gradients run over each slice, ours over the whole model. Outside the slice the value is constant; for a
    slice of one layer it is the last value, as in mergekit, which has the first for tensors outside the layers. A total of 0
    means that there are no slices.
    """
    if isinstance(value, list):
        return [stretched(item, offset, length, total) for item in value]
    if not is_gradient(value) or total == 0 or length == total > 1:
        return value
    outside = {"outside": value["outside"]} if "outside" in value else {}
    if length == 1:
        return {"gradient": [value["gradient"][-1]], **outside} if outside else value["gradient"][-1]
    steps = (min(max(layer - offset, 0), length - 1) for layer in range(total))
    return {"gradient": [value_at(value, step / (length - 1)) for step in steps], **outside}
