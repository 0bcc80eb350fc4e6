"""The models that a lesion study runs: a plan, its name, and where it belongs on an axis of a figure.

Source: Veit et al. 2016, arXiv:1605.06431, section 4 (one block deleted, k blocks deleted, blocks reordered); Zhao et al. 2021,
arXiv:2101.04547 (layers swapped, ranges reversed, shuffled with k layers fixed).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from evals.surgery.slots import Plan, SlottedModel, Step, order_plan
from evals.surgery.sublayers import ATTENTION, SUBLAYERS, Edit, nothing

# Parts of a study, by the names that --only takes.
LAYER, SUBLAYER, RANDOM, ORDER, DUPLICATE, PATHS = "layers", "sublayers", "random", "orders", "duplicates", "paths"
SWAP, REVERSAL, SHUFFLE = "swaps", "reversals", "shuffles"
KEPT, BYPASSED = "norm kept", "norm bypassed"


@dataclass(frozen=True)
class Variant:
    """One edited model.

    Attributes:
        part: of the study that it belongs to.
        name: for people.
        plan: how it runs.
        layers: those that it drops, edits or moves.
        at: its place on the axis of its part: the layer, the number of dropped layers, Kendall's tau, the distance of a swap, the
            length of a reversed range, the number of layers that are shuffled.
        kind: what distinguishes variants of one part: "attention, norm kept".
    """

    part: str
    name: str
    plan: Plan
    layers: tuple[int, ...]
    at: float
    kind: str = ""


def without(layers: Sequence[int], total: int) -> Plan:
    """Return the plan that drops layers: the states pass their slots unchanged."""
    return tuple(() if slot in layers else (Step(slot),) for slot in range(total))


def single_layers(total: int) -> Iterator[Variant]:
    """Yield the models without one layer."""
    for layer in range(total):
        yield Variant(LAYER, f"without layer {layer}", without([layer], total), (layer,), layer, "dropped")


def sublayers(model: SlottedModel) -> Iterator[Variant]:
    """Yield the models without one sublayer: its last norm kept and, where norms come last, bypassed too."""
    assert model.kind is not None
    for sublayer in SUBLAYERS:
        for norm in (KEPT, BYPASSED) if model.kind.norm_last else ("",):
            kind = f"{sublayer}, {norm}" if norm else sublayer
            edit = silent(sublayer, norm == BYPASSED)
            for layer in range(model.total):
                plan = edited_plan({layer: edit}, model.total)
                yield Variant(SUBLAYER, f"layer {layer} without {kind}", plan, (layer,), layer, kind)


def silent(sublayer: str, bypassed: bool = False) -> Edit:
    """Return the edit under which a sublayer writes nothing."""
    past = (sublayer,) if bypassed else ()
    if sublayer == ATTENTION:
        return Edit(attention=nothing, bypassed=past)
    return Edit(ffn=nothing, bypassed=past)


def edited_plan(edits: dict[int, Edit], total: int) -> Plan:
    """Return the plan that edits some layers."""
    return tuple((Step(slot, edits.get(slot)),) for slot in range(total))


def random_layers(total: int, draws: int, seed: int) -> Iterator[Variant]:
    """Yield models without k layers, k from 2 to all but one: `draws` sets of each k, or all where there are no more."""
    generator = np.random.default_rng([seed, 1])
    for count in range(2, total):
        if math.comb(total, count) <= draws:
            sets = list(combinations(range(total), count))
        else:
            drawn: dict[tuple[int, ...], None] = {}
            while len(drawn) < draws:
                drawn[tuple(sorted(map(int, generator.choice(total, count, replace=False))))] = None
            sets = list(drawn)
        for layers in sets:
            name = f"without layers {', '.join(map(str, layers))}"
            yield Variant(RANDOM, name, without(layers, total), layers, count)


def random_orders(total: int, draws: int, seed: int) -> Iterator[Variant]:
    """Yield the identity order, then orders by more and more random swaps, until nothing of the order is left.

    Draw d of D has ceil(d total / D) swaps: few leave Kendall's tau near 1, as many as layers bring it to 0 on average.
    """
    from scipy.stats import kendalltau

    generator = np.random.default_rng([seed, 2])
    for draw in range(draws + 1):
        order = list(range(total))
        for _ in range(math.ceil(draw * total / draws)):
            a, b = map(int, generator.choice(total, 2, replace=False))
            order[a], order[b] = order[b], order[a]
        tau = float(kendalltau(order, range(total)).statistic) if draw else 1.0
        name = "layers in their order" if draw == 0 else _order_name(order)
        yield Variant(ORDER, name, order_plan(order), _moved(order), tau)


def given_orders(orders: Sequence[Sequence[int]]) -> Iterator[Variant]:
    """Yield models whose layers have given orders."""
    from scipy.stats import kendalltau

    for order in orders:
        tau = float(kendalltau(order, range(len(order))).statistic)
        yield Variant(ORDER, _order_name(order), order_plan(order), _moved(order), tau)


def duplicates(total: int) -> Iterator[Variant]:
    """Yield the models in which one layer runs twice."""
    for layer in range(total):
        plan = tuple((Step(slot),) * (2 if slot == layer else 1) for slot in range(total))
        yield Variant(DUPLICATE, f"layer {layer} twice", plan, (layer,), layer)


def swaps(total: int) -> Iterator[Variant]:
    """Yield every pair of layers swapped."""
    for a, b in combinations(range(total), 2):
        order = list(range(total))
        order[a], order[b] = b, a
        yield Variant(SWAP, f"layers {a} and {b} swapped", order_plan(order), (a, b), b - a)


def reversals(total: int) -> Iterator[Variant]:
    """Yield every range of three or more layers reversed; one of two is a swap."""
    for length in range(3, total + 1):
        for start in range(total - length + 1):
            order = list(range(total))
            order[start : start + length] = order[start : start + length][::-1]
            name = f"layers {start} to {start + length - 1} reversed"
            yield Variant(REVERSAL, name, order_plan(order), tuple(range(start, start + length)), length)


def shuffles(total: int, draws: int, seed: int) -> Iterator[Variant]:
    """Yield random orders in which k layers keep their slots, k from 0 to all but two, and of thirds of the stack alone.

    Equal draws are one model.
    """
    generator = np.random.default_rng([seed, 3])
    for fixed in range(total - 1):
        orders = {
            tuple(
                _shuffled(total, [sorted(map(int, generator.choice(total, total - fixed, replace=False)))], generator)
            )
            for _ in range(draws)
        }
        for order in sorted(orders):
            yield Variant(
                SHUFFLE, _order_name(order), order_plan(order), _moved(order), total - fixed, "k layers fixed"
            )
    thirds = [[int(k) for k in part] for part in np.array_split(np.arange(total), 3)]
    groups = {f"layers {part[0]} to {part[-1]} alone": [part] for part in thirds if len(part) > 1}
    for name, parts in {**groups, "each third by itself": [part for part in thirds if len(part) > 1]}.items():
        orders = {tuple(_shuffled(total, parts, generator)) for _ in range(draws if parts else 0)}
        for order in sorted(orders):
            yield Variant(SHUFFLE, _order_name(order), order_plan(order), _moved(order), sum(map(len, parts)), name)


def _shuffled(total: int, groups: Sequence[Sequence[int]], generator: np.random.Generator) -> list[int]:
    """Return an order in which each group is shuffled among its own slots, and is not what it was."""
    order = list(range(total))
    for group in groups:
        drawn = list(group)
        while drawn == list(group):
            drawn = [int(k) for k in generator.permutation(group)]
        for slot, layer in zip(group, drawn, strict=True):
            order[slot] = layer
    return order


def _moved(order: Sequence[int]) -> tuple[int, ...]:
    return tuple(slot for slot, layer in enumerate(order) if slot != layer)


def _order_name(order: Sequence[int]) -> str:
    return f"order {' '.join(map(str, order))}"


def no_layers(total: int) -> Variant:
    """Return the model without any layer: the floor that a score of an edited model is read against."""
    return Variant("floor", "no layers", ((),) * total, tuple(range(total)), total)
