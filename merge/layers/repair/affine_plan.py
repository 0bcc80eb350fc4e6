"""Affine layers in a plan: put in where layers are missing, and taken out where they are folded into the layer before."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from merge.checkpoints.checkpoint import Checkpoint
from merge.errors import UsageError
from merge.layers.parts import parts_of
from merge.layers.plans.making import Making
from merge.layers.plans.plan import LayerPlan
from merge.layers.repair.seams import find_seams


def with_affine_layers(plan: LayerPlan, totals: Sequence[int]) -> tuple[LayerPlan, tuple[str, ...]]:
    """Return the plan with a fitted layer in every place where layers of one model are missing, and notes."""
    seams, notes = find_seams(plan, totals)
    layers, makings = list(plan.layers), list(plan.makings or [None] * len(plan.layers))
    for seam in reversed(seams):
        if not seam.missing:
            notes = (*notes, "--repair affine fits a layer for missing layers of one model, not between two models")
            continue
        layers.insert(seam.index + 1, ((seam.model, seam.state - 1),))
        makings.insert(seam.index + 1, Making("affine", states=(seam.missing[0], seam.state)))
    first = plan.layers[0][0] if plan.layers else (0, 0)
    if first[1] > 0 and plan.making(0) is None:
        layers.insert(0, ((first[0], first[1] - 1),))
        makings.insert(0, Making("affine", states=(0, first[1])))
        notes = tuple(note for note in notes if "first layers" not in note)
    return replace(plan, layers=tuple(layers), makings=tuple(makings) if any(makings) else ()), notes


def is_affine(plan: LayerPlan, index: int) -> bool:
    making = plan.making(index)
    return making is not None and making.kind == "affine"


def without_folds(plan: LayerPlan, models: Sequence[Checkpoint]) -> tuple[LayerPlan, list[tuple[int, int]]]:
    """Return the plan without the affine layers that are folded into the layer before, and (layer before, state) of each.

    Raises:
        UsageError: there is no layer before that writes the state which the map reads.
    """
    affine = [index for index in range(len(plan.layers)) if is_affine(plan, index)]
    if not affine or parts_of(models[0].config, plan.stack).norm_last:
        return plan, []
    kept = [index for index in range(len(plan.layers)) if index not in affine]
    folds = []
    for index in affine:
        making = plan.making(index)
        assert making is not None
        assert making.states is not None
        start, end = making.states
        if making.reads is not None:
            raise UsageError(
                f"layer {index} of the plan: where norms come first, a map between two models is no layer of its own. "
                "stitch-models says which maps can be written."
            )
        before = ((plan.layers[index][0][0], start - 1),)
        if index == 0 or plan.making(index - 1) is not None or plan.layers[index - 1] != before:
            raise UsageError(
                f"layer {index} of the plan: where norms come first, a fitted map from state {start} is folded into layer "
                f"{start - 1}, which must be the layer before it in the plan."
            )
        folds.append((kept.index(index - 1), end))
    makings = tuple(plan.makings[index] for index in kept)
    thin = replace(plan, layers=tuple(plan.layers[i] for i in kept), makings=makings if any(makings) else ())
    return thin, folds
