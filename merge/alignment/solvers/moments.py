"""Moments and correlations of two models' units over the same text, which both are run on once."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from merge.alignment.divergence import outputs_of
from merge.alignment.masking import with_masked_words
from merge.alignment.pair import MAX_KEPT_BYTES, Outputs, Pair, in_dtype
from merge.alignment.solvers.balance import BALANCES
from merge.alignment.solvers.cross_moments import MIXING_GROUPS, CrossMoments
from merge.checkpoints.hooks import PaddingError, token_mask, token_rows, watching
from merge.checkpoints.inputs import Batch
from merge.checkpoints.transformers_model import runs_beside_others
from merge.errors import AlignmentError
from merge.machine import in_parallel, return_freed_memory
from merge.progress import track
from merge.symmetry.notation import View, contiguous
from merge.symmetry.permutation import unit_positions
from merge.symmetry.transform import axis_sizes

# View -> correlations of its units, a's along the rows; the view is as if it filled an axis alone.
Correlations = Mapping[View, Float[Tensor, "n n"]]  # float32: they are many


# Tokens that are run at once: the activations of both models at every site are kept until they are compared.
TOKENS_AT_ONCE = 256
# Units of a whose correlations are held in float64 at a time.
UNITS_AT_ONCE = 256


@dataclass(frozen=True)
class Compared:
    """What both models of a pair gave on its text.

    Attributes:
        correlations: of the units of each view, averaged over its sites.
        outputs: for each batch the outputs of a and of b that the spec names; None where they are too large to keep.
        lines: the same correlations by line, as `collect` names them.
        sites: of the lines that were asked for, the moments at their sites.
    """

    correlations: Correlations
    outputs: Outputs | None
    lines: Mapping[str, Float[Tensor, "n n"]]
    sites: Mapping[str, Sequence[CrossMoments]]


def compare_units(pair: Pair) -> Compared:
    """Run both models of a pair over its batches once; of a pair that matchers share, once for all of them."""

    def compare() -> Compared:
        outputs, group = KeptOutputs(pair), pair.spec.group
        # With maps they may be matched next.
        axes = axis_sizes(pair.spec, pair.shapes) if pair.shared is not None else ()
        mixing = frozenset(axis for axis in axes if group(axis) in MIXING_GROUPS)
        collected = collect(pair, outputs, frozenset(axis for axis in mixing if group(axis) in BALANCES))
        sites = {line: list(moments) for line, moments in collected.items() if level_names(line)[1] in mixing}
        correlations, lines = _correlations(pair, collected, frozenset(sites))
        return Compared(correlations, outputs.kept, lines, sites)

    return pair.once("compared units", compare)


def unit_correlations(pair: Pair) -> Correlations:
    """Return the correlations of the units of each view, averaged over its sites."""
    return _correlations(pair, collect(pair))[0]


def _correlations(
    pair: Pair, collected: dict[str, list[CrossMoments]], kept: Collection[str] = ()
) -> tuple[Correlations, Mapping[str, Float[Tensor, "n n"]]]:
    """Return correlations by view and by line; moments are taken out of the record, and their memory is used.

    Args:
        kept: lines whose moments are needed further.
    """
    counts = {axis: shape[-1] for axis, shape in pair.spec.fit(pair.shapes).items()}
    correlations, by_line = {}, {}
    lines: dict[tuple[str, ...], list[str]] = {}
    for line in collected:
        lines.setdefault(level_names(line)[0], []).append(line)
    for names, own in lines.items():
        counted = [len(collected[line]) for line in own]
        for line in own:
            sites = collected.pop(line)
            by_line[line] = _mean_correlation(sites, torch.empty_like(sites[0].cross) if line in kept else None)
        correlation = by_line[own[0]]
        if len(own) > 1:
            shares = [count / sum(counted) for count in counted]
            correlation = sum((s * by_line[line] for s, line in zip(shares, own, strict=True)), torch.zeros(()))
        correlations[contiguous(names, level_sizes(names, counts, len(correlation)))] = correlation
    return correlations, by_line


def _mean_correlation(sites: Sequence[CrossMoments], out: Tensor | None = None) -> Float[Tensor, "m n"]:
    """Return the mean of the sites' correlations, in float32, in this memory or that of the first one's products."""
    if out is None:
        out = sites[0].cross = sites[0].cross.cpu()
    filled = out.cpu()

    def fill(units: slice) -> None:
        total = sites[0].correlation_of(units)
        for site in sites[1:]:
            total += site.correlation_of(units)
        filled[units] = total / len(sites)

    in_parallel(fill, [slice(start, start + UNITS_AT_ONCE) for start in range(0, len(out), UNITS_AT_ONCE)])
    return filled


def level_names(line: str) -> tuple[tuple[str, ...], str]:
    """Return the names of a view's levels and of the axis whose maps act on the last, from a line that `collect` returns."""
    names = line.split()
    return tuple("-" if name.startswith("-") else name for name in names), names[-1].removeprefix("-")


def level_sizes(names: tuple[str, ...], counts: Mapping[str, int], units: int) -> tuple[int, ...]:
    """Return the sizes of a view's levels; that of a level without a name follows from the number of units."""
    rest = units // math.prod(counts[name] for name in names if name != "-")
    return tuple(counts.get(name, rest) for name in names)


class KeptOutputs:
    """The outputs of both models on each batch, in its parts: kept as long as they are small."""

    def __init__(self, pair: Pair) -> None:
        self.pair, self.bytes = pair, 0
        self.kept: list[tuple[dict[str, Tensor], dict[str, Tensor]]] | None = []

    def add(self, batch: Batch, parts: Sequence[tuple[Mapping[str, Tensor], Mapping[str, Tensor]]]) -> None:
        """Add the outputs of a and b on the parts of a batch, in float32.

        A model of texts and images compares each text with each image, so those of the parts are not those of the whole.
        """
        if self.kept is not None and len(parts) > 1 and "pixel_values" in batch:
            self.kept = None
        if self.kept is None:
            return
        sides = []
        for side in zip(*parts, strict=True):
            outputs = [outputs_of(self.pair, part) for part in side]
            sides.append({name: torch.cat([part[name] for part in outputs]) for name in outputs[0]})
        self.bytes += sum(out.nbytes for outputs in sides for out in outputs.values())
        self.kept = [*self.kept, (sides[0], sides[1])] if self.bytes <= MAX_KEPT_BYTES else None


def collect(pair: Pair, outputs: KeptOutputs | None = None, own: Collection[str] = ()) -> dict[str, list[CrossMoments]]:
    """Run both models over the batches and return the cross-moments of every site, by the names of the levels there.

    A last level that does not move is `-` and the name under which maps act on it.

    Args:
        outputs: where the models' outputs go.
        own: axes of which the products of the units of one model with one another are taken as well.
    """
    pair = with_masked_words(pair)
    models = [pair.model(side, copied=False) for side in (pair.a, pair.b)]
    counts = {axis: shape[-1] for axis, shape in pair.spec.fit(pair.shapes).items()}
    movable = frozenset(pair.movable)
    sites = {site: axis for site, axis in pair.spec.sites().items() if movable.issuperset(axis.axis_names())}
    moments_of: dict[str, list[CrossMoments]] = {}
    moments_at: dict[str, list[tuple[Tensor, CrossMoments]]] = {}
    # A layer that is run several times (ALBERT) has as many activations.
    every, beside = "num_hidden_groups" in pair.config, all(map(runs_beside_others, models))

    def begin(site: str, units: int) -> None:
        views = [view for view in sites[site].views((units,), counts) if view.movable]
        moments_at[site] = []
        for view in views:
            blocks = math.prod(view.shape[:-1]) if view.map_axis in own else 0
            moments_at[site].append((unit_positions(view).reshape(-1), CrossMoments(site, view, blocks)))
        for view, (_, moments) in zip(views, moments_at[site], strict=True):
            line = " ".join(f"-{view.map_only}" if name == "-" else name for name in view.names)
            moments_of.setdefault(line, []).append(moments)

    def compare(activations: tuple[list[Tensor], list[Tensor], str]) -> None:
        with torch.inference_mode():
            for a, b in zip(*activations[:2], strict=True):
                for positions, moments in moments_at[activations[2]]:
                    moments.add(*(x if len(positions) == x.shape[1] else x[:, positions] for x in (a, b)))

    for batch in track(pair.batches, "comparing activations"):
        given = []
        for part in _parts(in_dtype(batch, torch.float32)):
            run = partial(_run, batch=part, sites=tuple(sites), every=every)
            (output_a, rows_a), (output_b, rows_b) = in_parallel(run, models) if beside else map(run, models)
            given.append((output_a, output_b))
            shown = [site for site, rows in rows_b.items() if rows and rows_a[site]]
            for site in (site for site in shown if site not in moments_at):
                begin(site, rows_a[site][0].shape[1])
            in_parallel(compare, [(rows_a.pop(site), rows_b.pop(site), site) for site in shown])
        if outputs is not None:
            outputs.add(batch, given)
    del models
    pair.release_pages()
    return_freed_memory()
    return moments_of


def activations(
    pair: Pair, tensors: Mapping[str, Tensor], batch: Batch, sites: Sequence[str]
) -> dict[str, list[Float[Tensor, "rows units"]]]:
    """Return a model's activations at the sites on one batch, as rows."""
    return _run(pair.model(tensors, copied=False), batch, sites, "num_hidden_groups" in pair.config)[1]


def _run(
    model: Any, batch: Batch, sites: Sequence[str], every: bool
) -> tuple[Mapping[str, Tensor], dict[str, list[Float[Tensor, "rows units"]]]]:
    """Return a model's outputs on a batch, and its activations at the sites as rows, in the order it comes to them."""
    shown: dict[str, list[Tensor]] = {}

    def keep(site: str, activation: Tensor) -> None:
        rows, kept = _rows(activation, batch, site), shown.setdefault(site, [])
        if rows is not None:  # some models add to an activation in place later
            kept.append(rows.clone() if rows.data_ptr() == activation.data_ptr() else rows)

    with torch.inference_mode(), watching(model, sites, keep, first=not every):
        return model(**batch), shown


def _parts(batch: Batch) -> Iterator[Batch]:
    """Yield parts of a batch with about TOKENS_AT_ONCE tokens each; the whole where not all of its tensors are by text."""
    texts = len(next(iter(batch.values())))
    if "input_ids" not in batch or any(len(tensor) != texts for tensor in batch.values()):
        yield batch
        return
    each = max(1, TOKENS_AT_ONCE * texts // batch["input_ids"].numel())
    for start in range(0, texts, each):
        yield {name: tensor[start : start + each] for name, tensor in batch.items()}


def _rows(activation: Tensor, batch: Batch, site: str) -> Float[Tensor, "rows units"] | None:
    """Return activations as rows, without those of padding tokens; activations of two dimensions as they are.

    None where rows are not told apart from padding, as in models that pool tokens or fill texts up to a window.
    """
    if activation.ndim < 3:
        return activation
    mask = token_mask(batch)
    if mask is not None and activation.shape[:2] == mask.shape and bool(mask.all()):
        return activation.flatten(0, -2)
    try:
        return token_rows(activation, mask, "".join(site.split(":")[2:]))
    except PaddingError:
        return None


def check_seen(movable: Sequence[str], moves: Mapping[str, Collection[tuple[str, ...]]]) -> None:
    """Raise AlignmentError for a movable axis that no activation lies along."""
    seen = {name for gains in moves.values() for names in gains for name in names}
    for axis in movable:
        if axis not in seen:
            raise AlignmentError(
                f'the spec names no activation for axis "{axis}" whose rows can be told apart from padding; it cannot be matched '
                "by activations. Leave its kind out (--axes), or use --align weights."
            )
