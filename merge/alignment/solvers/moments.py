"""Means, variances and correlations of two models' units over the same text."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor

from merge.alignment.masking import with_masked_words
from merge.alignment.pair import Pair, in_dtype
from merge.checkpoints.hooks import PaddingError, token_mask, token_rows, watching
from merge.checkpoints.inputs import Batch
from merge.errors import AlignmentError
from merge.progress import track
from merge.symmetry.notation import View, contiguous
from merge.symmetry.permutation import unit_positions

# View -> correlations of its units, a's along the rows; the view is as if it filled an axis alone.
Correlations = Mapping[View, Float[Tensor, "n n"]]  # float32: they are many


# Tokens that are run at once: the activations of one model at every site are kept until the other has run.
TOKENS_AT_ONCE = 512


# A unit whose variance is below this share of the average varies by rounding only; it correlates with nothing.
DEAD_UNIT_VARIANCE = 1e-10


class Moments:
    """Running mean and variance of units about the first batch's mean; sums in float64.

    Attributes:
        count: rows so far.
        calls: batches so far.
    """

    def __init__(self) -> None:
        self.count, self.calls = 0, 0

    def add(self, rows: Float[Tensor, "rows units"]) -> Float[Tensor, "rows units"]:
        """Add a batch of rows, and return it about the first batch's mean, in its own dtype."""
        if self.calls == 0:
            self.shift = rows.mean(0)
            self.sums = torch.zeros(rows.shape[1], dtype=torch.float64, device=rows.device)
            self.squares = torch.zeros_like(self.sums)
        rows = rows - self.shift
        self.sums += rows.sum(0, dtype=torch.float64)
        self.squares += rows.square().sum(0, dtype=torch.float64)
        self.count, self.calls = self.count + len(rows), self.calls + 1
        return rows

    @property
    def mean(self) -> Float[Tensor, " units"]:
        return self.shift + self.sums / self.count

    @property
    def variance(self) -> Float[Tensor, " units"]:
        return (self.squares / self.count - (self.sums / self.count).square()).clamp_min(0)

    @property
    def deviation(self) -> Float[Tensor, " units"]:
        return self.variance.sqrt()


class CrossMoments:
    """Running cross-moments of two activations about the first batch's means; products in float32."""

    def __init__(self) -> None:
        self.a, self.b = Moments(), Moments()

    @property
    def count(self) -> int:
        """Rows so far."""
        return self.a.count

    def add(self, a: Float[Tensor, "rows m"], b: Float[Tensor, "rows n"]) -> None:
        """Add a batch of rows; row i of a and of b belong to the same token."""
        if self.a.calls == 0:
            self.cross = torch.zeros(a.shape[1], b.shape[1], device=a.device)
        self.cross.addmm_(self.a.add(a).T, self.b.add(b))

    def covariance(self) -> tuple[Float[Tensor, "m n"], Float[Tensor, " m"], Float[Tensor, " n"]]:
        """Return covariances, and the variances of a's units and of b's; float64, on the CPU."""
        a, b = (side.sums.cpu() / side.count for side in (self.a, self.b))
        return self.cross.cpu().double() / self.a.count - a[:, None] * b, self.a.variance.cpu(), self.b.variance.cpu()

    def correlation(self) -> Float[Tensor, "m n"]:
        """Return Pearson correlations, float64; 0 for a unit that never varies."""
        covariance, *variances = self.covariance()
        factor = [torch.where(v > DEAD_UNIT_VARIANCE * v.mean(), v, torch.inf).rsqrt() for v in variances]
        return covariance * factor[0][:, None] * factor[1]


def unit_correlations(pair: Pair) -> Correlations:
    """Return the correlations of the units of each view, averaged over its sites."""
    counts = {axis: shape[-1] for axis, shape in pair.spec.fit(pair.shapes).items()}
    correlations, collected = {}, collect(pair)
    lines: dict[tuple[str, ...], list[str]] = {}
    for line in collected:
        lines.setdefault(level_names(line)[0], []).append(line)
    for names, own in lines.items():
        sites = [site for line in own for site in collected.pop(line)]
        count = len(sites)
        correlation = sites.pop(0).correlation()
        while sites:  # sums of d x d entries, freed as soon as they are used
            correlation += sites.pop(0).correlation()
        correlations[contiguous(names, level_sizes(names, counts, len(correlation)))] = (correlation / count).float()
    return correlations


def level_names(line: str) -> tuple[tuple[str, ...], str]:
    """Return the names of a view's levels and of the axis whose maps act on the last, from a line that `collect` returns."""
    names = line.split()
    return tuple("-" if name.startswith("-") else name for name in names), names[-1].removeprefix("-")


def level_sizes(names: tuple[str, ...], counts: Mapping[str, int], units: int) -> tuple[int, ...]:
    """Return the sizes of a view's levels; that of a level without a name follows from the number of units."""
    rest = units // math.prod(counts[name] for name in names if name != "-")
    return tuple(counts.get(name, rest) for name in names)


def collect(pair: Pair) -> dict[str, list[CrossMoments]]:
    """Run both models over the batches and return the cross-moments of every site, by the names of the levels there.

    A last level that does not move is `-` and the name under which maps act on it.
    """
    pair = with_masked_words(pair)
    models = [pair.model(side, copied=False) for side in (pair.a, pair.b)]
    counts = {axis: shape[-1] for axis, shape in pair.spec.fit(pair.shapes).items()}
    movable = frozenset(pair.movable)
    sites = {site: axis for site, axis in pair.spec.sites().items() if movable.issuperset(axis.axis_names())}
    moments_of: dict[str, list[CrossMoments]] = {}
    moments_at: dict[str, list[tuple[Tensor, CrossMoments]]] = {}
    kept: dict[str, list[Tensor]] = {}
    # A layer that is run several times (ALBERT) has as many activations.
    every = "num_hidden_groups" in pair.config

    def keep(site: str, activation: Tensor) -> None:
        kept.setdefault(site, []).append(activation.clone())  # some models add to it in place later

    def compare(batch: Batch, site: str, activation: Tensor) -> None:
        a, b = _rows(kept[site].pop(0), batch, site), _rows(activation, batch, site)
        if a is None or b is None:
            return
        if site not in moments_at:
            views = [view for view in sites[site].views((a.shape[1],), counts) if view.movable]
            moments_at[site] = [(unit_positions(view).reshape(-1), CrossMoments()) for view in views]
            for view, (_, moments) in zip(views, moments_at[site], strict=True):
                line = " ".join(f"-{view.map_only}" if name == "-" else name for name in view.names)
                moments_of.setdefault(line, []).append(moments)
        for positions, moments in moments_at[site]:
            moments.add(*(x if len(positions) == x.shape[1] else x[:, positions] for x in (a, b)))

    with torch.inference_mode():
        for batch in track(pair.batches, "comparing activations"):
            for part in _parts(in_dtype(batch, torch.float32)):
                with watching(models[0], sites, keep, first=not every):
                    models[0](**part)
                with watching(models[1], sites, partial(compare, part), first=not every):
                    models[1](**part)
    return moments_of


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
    try:
        return token_rows(activation, token_mask(batch), "".join(site.split(":")[2:]))
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
