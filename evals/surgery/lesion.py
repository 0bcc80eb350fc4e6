"""A lesion study: which edited models it runs, and how much of the gradient comes through paths of each length."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from evals.surgery import variants as made
from evals.surgery.slots import SlottedModel
from evals.surgery.variants import DUPLICATE, LAYER, ORDER, PATHS, RANDOM, SUBLAYER, Variant
from merge.errors import UsageError, nearest
from merge.layers.plans.numbers import parse_layers

if TYPE_CHECKING:
    from merge.checkpoints.inputs import Batch

PARTS = (LAYER, SUBLAYER, RANDOM, ORDER, DUPLICATE, PATHS)

SHARED_ORDER = "all layers share their weights, so that any order of them is the same model: {} are left out"
NO_SUBLAYERS = "the sublayers of this form of {} are not known: {} are left out"
CONVOLUTION = (
    "this model's convolution after the first slot is not part of a layer: it runs behind whichever layer comes first"
)


@dataclass(frozen=True)
class LesionSettings:
    """What a study runs.

    Attributes:
        parts: of PARTS.
        layers: that are dropped, edited and repeated one at a time, as text ("0-3,5"); all when None.
        orders: further orders of all layers.
        draws: random sets of k layers for each k.
        reorders: random orders.
        paths: paths of each length that a gradient is followed through.
        path_texts: texts whose gradients are followed.
        seed: of all draws.
    """

    parts: tuple[str, ...] = PARTS
    layers: str | None = None
    orders: tuple[tuple[int, ...], ...] = ()
    draws: int = 5
    reorders: int = 24
    paths: int = 8
    path_texts: int = 16
    seed: int = 0


def check_parts(asked: Sequence[str], known: Sequence[str]) -> tuple[str, ...]:
    """Return the parts of a study in their order.

    Raises:
        UsageError: there is none, or no such part; names the nearest.
    """
    for part in asked:
        if part not in known:
            raise UsageError(f"unknown part {part!r}.{nearest(part, known)}")
    if not asked:
        raise UsageError(f"no part was asked for. Parts: {', '.join(known)}.")
    return tuple(part for part in known if part in asked)


def check_orders(orders: Sequence[Sequence[int]], total: int) -> None:
    """Stop at an order that does not have every layer once.

    Raises:
        UsageError: names what is missing or out of range.
    """
    for order in orders:
        text = ",".join(map(str, order))
        if outside := [layer for layer in order if not 0 <= layer < total]:
            raise UsageError(f"order {text}: there is no layer {outside[0]}; the model has {total}, 0 to {total - 1}.")
        if sorted(order) != list(range(total)):
            missing = sorted(set(range(total)) - set(order))
            fault = f"layer {missing[0]} is missing" if missing else "a layer is there twice"
            raise UsageError(f"order {text}: {fault}; an order has each of the {total} layers once.")


def lesion_variants(model: SlottedModel, settings: LesionSettings) -> tuple[list[Variant], list[str]]:
    """Return the edited models of a study, the one without layers first, and notes for the user.

    Raises:
        UsageError: a layer or an order does not fit the model, or there is no such part.
    """
    total, parts, seed = model.total, check_parts(settings.parts, PARTS), settings.seed
    check_orders(settings.orders, total)
    layers = set(range(total)) if settings.layers is None else set(parse_layers(settings.layers, total))
    variants, notes = [made.no_layers(total)], []
    if LAYER in parts:
        variants += [v for v in made.single_layers(total) if v.at in layers]
    if SUBLAYER in parts and model.kind is not None:
        variants += [v for v in made.sublayers(model) if v.at in layers]
    if RANDOM in parts:
        variants += made.random_layers(total, settings.draws, seed)
    if ORDER in parts and one_module(model):
        notes += [SHARED_ORDER.format("orders")] if total > 1 else []
    elif ORDER in parts:
        drawn = made.random_orders(total, settings.reorders, seed) if settings.reorders else ()
        variants += [*drawn, *made.given_orders(settings.orders)]
    if DUPLICATE in parts:
        variants += [v for v in made.duplicates(total) if v.at in layers]
    unknown = [part for part in (SUBLAYER, PATHS) if part in parts]
    if model.kind is None and unknown:
        notes.append(NO_SUBLAYERS.format(model.model.config.model_type, " and ".join(unknown)))
    return variants, [*notes, *family_notes(model)]


def one_module(model: SlottedModel) -> bool:
    """Return whether all layers are one module, so that no order of them differs from another."""
    return all(model.same_weights(0, layer) for layer in range(model.total))


def family_notes(model: SlottedModel) -> list[str]:
    """Return what is particular to a family, for the user."""
    if int(getattr(model.model.config, "conv_kernel_size", 0) or 0) and model.model.config.model_type == "deberta-v2":
        return [CONVOLUTION]
    return []


def path_batch(batches: Sequence[Batch], texts: int) -> tuple[int, Batch]:
    """Return the texts whose gradients are followed: the first of the middle batch, and the number of that batch."""
    number = len(batches) // 2
    # Clones: what was made without gradients may not be part of what has them.
    return number, {name: tensor[:texts].clone() for name, tensor in batches[number].items()}
