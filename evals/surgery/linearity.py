"""A linearity study: the maps of all components, models in which maps stand for components, and layers in other orders."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from evals.surgery import variants as made
from evals.surgery.lesion import SHARED_ORDER, check_parts, family_notes, one_module
from evals.surgery.linear import LOSSES, ROUNDS, Key, Linear
from evals.surgery.replacement import replacements
from evals.surgery.slots import SlottedModel, order_plan
from evals.surgery.variants import REVERSAL, SHUFFLE, SWAP, Variant
from merge.errors import UsageError, nearest

COMPONENTS, REPLACED = "components", "replaced"
PARTS = (COMPONENTS, REPLACED, SWAP, REVERSAL, SHUFFLE)
CLOSED = "closed"
FITS = (CLOSED, *LOSSES)


@dataclass(frozen=True)
class LinearitySettings:
    """What a study runs.

    Attributes:
        parts: of PARTS.
        fit: of FITS: the closed form, or the loss of the published training.
        rounds: of the training of maps through the text.
        cumulative: replace components in more and more layers too.
        draws: shuffles for each number of fixed layers.
        tune_rounds, tune_rate: of the training of models with frozen, removed and replaced components.
        seed: of all draws.
    """

    parts: tuple[str, ...] = PARTS
    fit: str = CLOSED
    rounds: int = ROUNDS
    cumulative: bool = True
    draws: int = 3
    tune_rounds: int = 3
    tune_rate: float = 2e-5
    seed: int = 0


def check_settings(settings: LinearitySettings) -> LinearitySettings:
    """Return settings whose names are known.

    Raises:
        UsageError: a part or a fit is unknown; names the nearest.
    """
    check_parts(settings.parts, PARTS)
    if settings.fit not in FITS:
        raise UsageError(f"unknown fit {settings.fit!r}.{nearest(settings.fit, FITS)} Fits: {', '.join(FITS)}.")
    return settings


def order_variants(model: SlottedModel, settings: LinearitySettings) -> tuple[list[Variant], list[str]]:
    """Return the models whose layers have other orders, and notes; the identity order is the first of them."""
    total, parts = model.total, [part for part in (SWAP, REVERSAL, SHUFFLE) if part in settings.parts]
    if not parts or total < 2:
        return [], []
    if one_module(model):
        return [], [SHARED_ORDER.format(", ".join(parts))]
    variants = [Variant(SWAP, "layers in their order", order_plan(range(total)), (), 0)]
    variants += made.swaps(total) if SWAP in parts else ()
    variants += made.reversals(total) if REVERSAL in parts else ()
    variants += made.shuffles(total, settings.draws, settings.seed) if SHUFFLE in parts else ()
    return variants, family_notes(model)


def linearity_variants(
    model: SlottedModel, settings: LinearitySettings, maps: Mapping[Key, Linear]
) -> tuple[list[Variant], list[str]]:
    """Return all edited models of a study, the one without layers first, and notes for the user.

    Args:
        maps: of all components; none where nothing is replaced.
    """
    variants = [made.no_layers(model.total)]
    if REPLACED in settings.parts:
        variants += replacements(model.total, maps, settings.cumulative)
    orders, notes = order_variants(model, settings)
    return [*variants, *orders], notes
