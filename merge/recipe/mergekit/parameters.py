"""The parameters of a mergekit file as settings: filters, gradients and precedence.

mergekit looks a parameter up for every tensor: in the source's own parameters, then the slice's, then the file's; in a
list of {filter, value} the first filter that is part of the tensor's name counts. Here a recipe has settings, and
overrides of which the last that matches counts. Both are decisions by name; this module writes one as the other.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from merge.errors import nearest
from merge.recipe.gradient import is_gradient, value_at
from merge.recipe.mergekit.counterparts import ALL_PARAMETERS, REQUIRED, Counterpart, Parameter

Where = tuple[int | str, ...]


class Fault(Exception):
    """Something in the file that has no counterpart: where, and what."""

    def __init__(self, where: Where, message: str) -> None:
        super().__init__(message)
        self.where = where
        self.message = message


@dataclass(frozen=True)
class Rule:
    """A value for tensors whose names hold the filter; None holds for all."""

    filter: str | None
    value: Any


@dataclass(frozen=True)
class Scope:
    """The parameters written at one place of the file.

    Attributes:
        where: that place.
        rules: parameter -> its rules, the first that matches counts.
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
    """Return the rules of one `parameters` mapping, its values as our settings have them.

    Raises:
        Fault: mergekit has no such parameter, or the value does not fit.
    """
    known = {parameter.name: parameter for parameter in counterpart.parameters}
    rules: dict[str, tuple[Rule, ...]] = {}
    for name, value in (parameters or {}).items():
        if name not in ALL_PARAMETERS:
            raise Fault(
                (*where, name), f"mergekit has no parameter {name!r}.{nearest(str(name), known or ALL_PARAMETERS)}"
            )
        if name not in known:
            warn(f"{name} is no parameter of {method}: mergekit passes over it, and so does this recipe")
            continue
        rules[name] = _read_rules(known[name], value, (*where, name), warn)
        if known[name].setting is None:
            warn(f"{name} is left out: it has no part in what {method} computes here")
    return Scope(where, rules)


def _read_rules(parameter: Parameter, value: Any, where: Where, warn: Callable[[str], None]) -> tuple[Rule, ...]:
    conditional = isinstance(value, Mapping) or (isinstance(value, list) and any(isinstance(v, Mapping) for v in value))
    if not conditional:
        return (Rule(None, _read(parameter, value, where)),)
    found: list[Rule] = []
    listed = enumerate(value) if isinstance(value, list) else [(None, value)]
    for number, item in listed:
        at = where if number is None else (*where, number)
        if not isinstance(item, Mapping) or "value" not in item:
            raise Fault(at, f"{parameter.name}: expected {{filter: ..., value: ...}}, found {item!r}")
        for key in item:
            if key not in ("filter", "value"):
                raise Fault((*at, key), f"unknown key {key!r}.{nearest(str(key), ('filter', 'value'))}")
        chosen = item.get("filter")
        if chosen is not None and not isinstance(chosen, str):
            raise Fault((*at, "filter"), f"a filter is text, part of a tensor's name; found {chosen!r}")
        if found and found[-1].filter is None:
            warn(f"{parameter.name}: what follows a value for all tensors never counts, in mergekit as here")
            break
        every = chosen in (None, "", "*")
        if chosen is not None and not every and any(mark in chosen for mark in "*?["):
            warn(f"filter {chosen!r} is left out: mergekit's filters are plain text, and no tensor's name holds this")
            continue
        found.append(Rule(None if every else chosen, _read(parameter, item["value"], (*at, "value"))))
    return tuple(found)


def _read(parameter: Parameter, value: Any, where: Where) -> Any:
    try:
        return parameter.read(value)
    except ValueError as error:
        raise Fault(where, str(error)) from error


@dataclass(frozen=True)
class _Decision:
    """What one parameter is, of one model or of the merge: the first filter that matches counts, else the rest."""

    filters: tuple[str, ...]
    values: tuple[Any, ...]
    rest: Any

    def at(self, held: Sequence[str]) -> Any:
        """Return the value for a tensor whose name holds these filters."""
        matching = (v for f, v in zip(self.filters, self.values, strict=True) if any(f in one for one in held))
        return next(matching, self.rest)


@dataclass(frozen=True)
class Settled:
    """Settings for all tensors, and for those whose names hold a filter; of these the last that matches counts.

    Attributes:
        overlaps: pairs of filters for which this is not mergekit's choice, should one tensor's name hold both.
    """

    settings: Mapping[str, Any]
    overrides: tuple[tuple[str, Mapping[str, Any]], ...] = ()
    overlaps: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class _Decisions:
    """Every parameter of a merge, by the name of our setting and the number of the model it is of (or None)."""

    counterpart: Counterpart
    found: Mapping[tuple[str, int | None], _Decision]

    def settings(self, held: Sequence[str] = ()) -> dict[str, Any]:
        """Return our settings for a tensor whose name holds these filters."""
        raw: dict[str, Any] = {}
        for (setting, model), decision in self.found.items():
            if model is None:
                raw[setting] = decision.at(held)
            else:
                raw.setdefault(setting, []).append(decision.at(held))
        settings = self.counterpart.finish(raw) | dict(self.counterpart.settings)
        return {key: _one_for_all(value) if key != "weights" else value for key, value in settings.items()}


def settle(counterpart: Counterpart, scopes: Sequence[Scope], own: Sequence[tuple[str, Scope]]) -> Settled:
    """Return the settings of a merge, and its overrides.

    Args:
        scopes: of the whole merge, the nearest first.
        own: name and parameters of each model that is merged.
    Raises:
        Fault: a parameter that mergekit requires is missing, or lists of filters stand in contradictory order.
    """
    found: dict[tuple[str, int | None], _Decision] = {}
    for parameter in counterpart.parameters:
        if parameter.setting is None:
            continue
        if parameter.each:
            for number, (model, scope) in enumerate(own):
                found[parameter.setting, number] = _decide(parameter, [scope, *scopes], model)
        else:
            found[parameter.setting, None] = _decide(parameter, scopes)
    decisions = _Decisions(counterpart, found)
    settings = decisions.settings()
    order = _order([decision.filters for decision in found.values()], scopes[-1].where)
    # What no filter changes is not repeated; what one changes every override states, for the last one counts.
    varying = {k for name in order for k, v in decisions.settings((name,)).items() if v != settings[k]}

    def at(*held: str) -> dict[str, Any]:
        return {key: value for key, value in decisions.settings(held).items() if key in varying}

    overrides = tuple((name, at(name)) for name in order)
    overlaps = tuple(
        (name, later) for i, name in enumerate(order) for later in order[i + 1 :] if at(name, later) != at(later)
    )
    return Settled(settings, overrides if varying else (), overlaps)


def _decide(parameter: Parameter, chain: Sequence[Scope], model: str | None = None) -> _Decision:
    """Return what one parameter of one model is: mergekit's look-up, written as one list."""
    filters: list[str] = []
    values: list[Any] = []
    for rule in (rule for scope in chain for rule in scope.rules.get(parameter.name, ())):
        if rule.filter is None:
            return _Decision(tuple(filters), tuple(values), rule.value)
        if not any(earlier in rule.filter for earlier in filters):  # else it never counts
            filters.append(rule.filter)
            values.append(rule.value)
    if parameter.default is REQUIRED:
        of = f" of {model}" if model else ""
        rest = " for the tensors that no filter names" if filters else ""
        where = next((s for s in chain if parameter.name in s.rules), chain[0]).where
        raise Fault((*where, parameter.name), f"{parameter.name}{of} is required{rest}")
    return _Decision(tuple(filters), tuple(values), parameter.read(parameter.default))


def _order(lists: Sequence[tuple[str, ...]], where: Where) -> list[str]:
    """Return all filters, such that the one that counts comes last: the earlier in its list, and what holds another.

    Raises:
        Fault: two lists have two filters in opposite orders.
    """
    names = list(dict.fromkeys(name for filters in lists for name in filters))
    after = {name: {other for other in names if other != name and other in name} for name in names}
    for filters in lists:
        for place, name in enumerate(filters):
            after[name] |= {later for later in filters[place + 1 :] if later not in name and name not in later}
    order: list[str] = []
    while len(order) < len(names):
        ready = [name for name in names if name not in order and after[name] <= set(order)]
        if not ready:
            stuck = ", ".join(repr(name) for name in names if name not in order)
            raise Fault(where, f"filters {stuck} stand in different orders in two lists; list them in one order")
        order.append(ready[-1])
    return order


def _one_for_all(value: Any) -> Any:
    """Return a list of equal values as the value."""
    return value[0] if isinstance(value, list) and all(one == value[0] for one in value) else value


def has_gradient(value: Any) -> bool:
    """Tell whether a setting, or one of a list of them, changes from layer to layer."""
    return any(map(has_gradient, value)) if isinstance(value, list) else is_gradient(value)


def stretched(value: Any, offset: int, length: int, total: int) -> Any:
    """Return a setting whose gradient runs over `length` of `total` layers as one that runs over all of them.

    mergekit's gradients run over each slice, ours over the whole model. Before and after its slice the value stays; over
    a slice of one layer it is the last, as in mergekit. A total of 0 says that there are no slices.
    """
    if isinstance(value, list):
        return [stretched(one, offset, length, total) for one in value]
    if not is_gradient(value) or total == 0 or length == total > 1:
        return value
    if length == 1:
        return value["gradient"][-1]
    places = (min(max(layer - offset, 0), length - 1) for layer in range(total))
    return {"gradient": [value_at(value, place / (length - 1)) for place in places]}
