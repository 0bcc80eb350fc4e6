"""Prune heads and neurons: choose them, zero what they add or cut them out, write the model and prove it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from merge.checkpoints.checkpoint import Checkpoint
from merge.checkpoints.sentence_transformers import check_edited
from merge.errors import UsageError
from merge.layers.plans.numbers import format_layers
from merge.layers.pruning.proof import BOUND, against_gated
from merge.layers.pruning.redundancy import Redundant, find_redundant, merging
from merge.layers.pruning.scores import SCORES, UnitScores, unit_scores
from merge.layers.pruning.selection import Removal, check_removal, format_units, lowest
from merge.layers.pruning.shrink import shrink_heads, shrink_neurons
from merge.layers.pruning.units import UnitLayer, unit_layers
from merge.layers.pruning.write import Pruned, PruneReport, check_input, of_its_class, write_pruned
from merge.symmetry.architectures import spec_note
from merge.text.source import TextSource

if TYPE_CHECKING:
    from torch import Tensor

Change = Callable[["Tensor"], "Tensor"]

# The largest difference that merged neurons may make, in standard deviations of an output.
REDUNDANT_BOUND = 1e-3
UNITS_SHOWN = 400  # characters of a list of units, in what is printed


@dataclass(frozen=True)
class Choice:
    """How units are chosen: listed, redundant, or by a score.

    Attributes:
        listed: layer -> units.
        redundant: the tolerance within which neurons are the same; neurons only.
        score: a key of SCORES.
        count, share: how many units the score removes; one of both.
        per_layer: of each layer, not of all together.
        protected: layers that keep all their units.
        source: the text that the score is measured on.
        loss, label_column: of the gate gradient.
    """

    listed: Removal | None = None
    redundant: float | None = None
    score: str | None = None
    count: int | None = None
    share: float | None = None
    per_layer: bool = False
    protected: tuple[int, ...] = ()
    source: TextSource = field(default_factory=TextSource)
    loss: str = "own"
    label_column: str | None = None


@dataclass(frozen=True, eq=False)
class _Chosen:
    """The units to remove, and why."""

    removal: Removal
    phrase: str
    scores: UnitScores | None = None
    redundant: Mapping[int, Redundant] | None = None


def prune_units(
    checkpoint: Checkpoint,
    kind: str,
    choice: Choice,
    output: Path,
    shrink: bool = False,
    stack: str = "",
    force: bool = False,
    dry_run: bool = False,
) -> PruneReport:
    """Write a checkpoint without some heads or neurons; with `dry_run` only return the report.

    Args:
        kind: heads or neurons.
        shrink: cut the units out, so that tensors are smaller; else the weights that read them are zero, and the model
            has its size.
        stack: text or vision, in models with both.
    Raises:
        MergeError: a subclass for every error in choice, input or output; no incomplete output is left.
    """
    check_choice(kind, choice)
    check_edited(checkpoint)
    checkpoint = of_its_class(checkpoint)
    check_input(checkpoint)
    layers = unit_layers(checkpoint, kind, stack)
    chosen = _chosen(checkpoint, kind, layers, choice, shrink)
    pruned = _pruned(checkpoint, kind, layers, chosen, shrink)
    gated = chosen.removal if chosen.redundant is None else {}
    prove = against_gated(checkpoint, layers, gated, pruned.config)
    bound = BOUND if chosen.redundant is None else REDUNDANT_BOUND
    return write_pruned(pruned, output, prove, bound, force, dry_run)


def check_choice(kind: str, choice: Choice) -> None:
    """Stop where a choice names no units, or names them in two ways.

    Raises:
        UsageError: it does.
    """
    ways = [choice.listed is not None, choice.redundant is not None, choice.score is not None]
    if sum(ways) != 1:
        also = "" if kind == "heads" else ", --redundant"
        raise UsageError(
            f"say which {kind} go in one way: --{kind} 0:1,3{also}, or --score NAME with --count or --share."
        )
    if choice.score is None:
        if choice.count is not None or choice.share is not None or choice.per_layer or choice.protected:
            raise UsageError(
                "--count, --share, --per-layer and --protect belong to --score. Give a score, or leave them out."
            )
        return
    if choice.score not in SCORES:
        from merge.errors import nearest

        raise UsageError(f"unknown score {choice.score!r}.{nearest(choice.score, SCORES)}")
    if (choice.count is None) == (choice.share is None):
        raise UsageError("--score needs --count N or --share X, one of both. Example: --score lesion --count 4")
    if choice.share is not None and not 0 < choice.share < 1:
        raise UsageError(f"--share expects a number between 0 and 1, found {choice.share:g}.")


def _chosen(checkpoint: Checkpoint, kind: str, layers: Sequence[UnitLayer], choice: Choice, shrink: bool) -> _Chosen:
    if choice.listed is not None:
        check_removal(layers, choice.listed, kind)
        return _Chosen(choice.listed, "listed by hand")
    if choice.redundant is not None:
        return _redundant(checkpoint, layers, choice.redundant)
    scores = unit_scores(checkpoint, layers, str(choice.score), choice.source, choice.loss, choice.label_column)
    whole_groups = shrink and layers[0].group > 1
    removal = (_lowest_groups if whole_groups else _lowest_units)(layers, scores, kind, choice)
    how = "of each layer" if choice.per_layer else "over all layers"
    kept = f", layers {', '.join(map(str, choice.protected))} protected" if choice.protected else ""
    return _Chosen(removal, f"lowest {how}{kept} by {scores.phrase}", scores)


def _lowest_units(layers: Sequence[UnitLayer], scores: UnitScores, kind: str, choice: Choice) -> Removal:
    return lowest(layers, scores.layers, kind, choice.count, choice.share, choice.per_layer, choice.protected)


def _lowest_groups(layers: Sequence[UnitLayer], scores: UnitScores, kind: str, choice: Choice) -> Removal:
    """Return the key/value heads with the lowest sums of scores, as the query heads of each: those alone can be cut out.

    Raises:
        UsageError: the count is no multiple of the query heads of a key/value head.
    """
    size = layers[0].group
    if choice.count is not None and choice.count % size:
        raise UsageError(
            f"{size} query heads share a key/value head and are cut out together, so --count must be a multiple of {size}; "
            f"found {choice.count}. Or leave --shrink out."
        )
    grouped = [replace(layer, count=layer.count // size, group=1) for layer in layers]
    sums = {number: values.reshape(-1, size).sum(1) for number, values in scores.layers.items()}
    count = None if choice.count is None else choice.count // size
    groups = lowest(grouped, sums, kind, count, choice.share, choice.per_layer, choice.protected)
    return {n: tuple(size * g + q for g in of_layer for q in range(size)) for n, of_layer in groups.items()}


def _redundant(checkpoint: Checkpoint, layers: Sequence[UnitLayer], tolerance: float) -> _Chosen:
    if not 0 <= tolerance < 1:
        raise UsageError(f"--tolerance expects a number from 0 to 1, found {tolerance:g}.")
    by_layer = {layer.number: find_redundant(checkpoint, layer, tolerance) for layer in layers}
    removal = {number: each.removed for number, each in by_layer.items() if each.removed}
    if not removal:
        raise UsageError(
            f"{checkpoint.source} has no redundant neurons: no two have the same input weights within {tolerance:g} of the "
            "largest, and all are read. Give a larger --tolerance, or choose neurons by --score."
        )
    merged, silent = (sum(len(part) for part in parts) for parts in _parts(by_layer))
    return _Chosen(
        removal,
        f"redundant: {merged} have the input weights of another neuron within {tolerance:g}, which takes over their outgoing "
        f"weights, and {silent} are read by nothing",
        redundant=by_layer,
    )


def _parts(by_layer: Mapping[int, Redundant]) -> tuple[list[Any], list[Any]]:
    return [each.merged for each in by_layer.values()], [each.silent for each in by_layer.values()]


def _pruned(checkpoint: Checkpoint, kind: str, layers: Sequence[UnitLayer], chosen: _Chosen, shrink: bool) -> Pruned:
    """Return what is written: the changes of tensors and config, and how they are reported."""
    shrunk = (
        (shrink_heads if kind == "heads" else shrink_neurons)(checkpoint, layers, chosen.removal) if shrink else None
    )
    changes = _zeroing(layers, chosen)
    if shrunk is not None:
        for layer in layers:  # neurons that only fill a layer up are nothing at all
            for place in layer.writers if layer.number in shrunk.padded else ():
                changes.setdefault(place.tensor, []).append(_without(place, shrunk.padded[layer.number]))
        for name, change in shrunk.changes.items():
            changes.setdefault(name, []).append(change)
    count, total = sum(map(len, chosen.removal.values())), sum(layer.count for layer in layers)
    way = "cut out" if shrink else "their outputs zeroed, the size is as before"
    named = format_units(chosen.removal)
    shown = named if len(named) <= UNITS_SHOWN else f"{named[:UNITS_SHOWN]}... (all in edit.json)"
    lines = [f"{count} of {total} {kind} removed, {way}: {shown}", chosen.phrase]
    if shrunk is not None and shrunk.padded:
        padding = sum(map(len, shrunk.padded.values()))
        lines.append(f"{padding} of them remain with weights of zero, as a config has one width for all layers")
    facts: dict[str, Any] = {
        "kind": kind,
        "removed": {str(number): list(units) for number, units in chosen.removal.items()},
        "of": {str(layer.number): layer.count for layer in layers},
        "shrunk": shrink,
        "chosen": chosen.phrase,
    }
    if shrunk is not None and shrunk.padded:
        facts["filled_with_zeros"] = {str(number): list(units) for number, units in shrunk.padded.items()}
    if chosen.scores is not None and kind == "heads":
        facts["scores"] = {str(number): values.tolist() for number, values in chosen.scores.layers.items()}
    return Pruned(
        checkpoint=checkpoint,
        command=f"prune-{kind}",
        config=checkpoint.config if shrunk is None else shrunk.config,
        changes={name: _one_after_another(steps) for name, steps in changes.items()},
        shapes={} if shrunk is None else shrunk.shapes,
        facts=facts,
        lines=tuple(lines),
        notes=(*_notes(checkpoint, kind, layers), *(chosen.scores.notes if chosen.scores else ())),
    )


def _notes(checkpoint: Checkpoint, kind: str, layers: Sequence[UnitLayer]) -> list[str]:
    """Return notes on a table that was derived, and on layers of which it says nothing."""
    derived, numbers = spec_note(checkpoint.config), [layer.number for layer in layers]
    notes = [] if derived is None else [derived]
    if len(numbers) < max(numbers) + 1:
        notes.append(f"only the {kind} of layers {format_layers(numbers)} are known; those of others stay as they are")
    return notes


def _zeroing(layers: Sequence[UnitLayer], chosen: _Chosen) -> dict[str, list[Change]]:
    """Return tensor -> what gives the outgoing weights of merged neurons to others, and zeroes those of removed units."""
    changes: dict[str, list[Change]] = {}
    for layer in layers:
        units = chosen.removal.get(layer.number, ())
        for place in layer.readers if units else ():
            steps = changes.setdefault(place.tensor, [])
            if chosen.redundant is not None and chosen.redundant[layer.number].merged:
                steps.append(_adding(place, chosen.redundant[layer.number]))
            steps.append(_without(place, units))
    return changes


def _without(place: Any, units: Sequence[int]) -> Change:
    def change(tensor: Tensor) -> Tensor:
        import torch

        zeroed: Tensor = place.without(tensor, torch.tensor(units))
        return zeroed

    return change


def _adding(place: Any, redundant: Redundant) -> Change:
    """Return what adds the outgoing weights of merged neurons, times their factors, to those of the neurons that stay."""
    twins, firsts, factors = merging(redundant)

    def change(tensor: Tensor) -> Tensor:
        flat = tensor.flatten(place.dim, place.dim + place.span - 1).movedim(place.dim, 0).double()
        where = place.positions[:, 0]
        added = flat[where[twins]] * factors.double().reshape(-1, *(1,) * (flat.ndim - 1))
        summed = flat.index_add(0, where[firsts], added)
        return summed.movedim(0, place.dim).reshape(tensor.shape).to(tensor.dtype)

    return change


def _one_after_another(steps: Sequence[Change]) -> Change:
    def change(tensor: Tensor) -> Tensor:
        for step in steps:
            tensor = step(tensor)
        return tensor

    return change
