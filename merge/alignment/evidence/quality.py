"""Match quality: how alike the units are that an alignment put in the same place, against what chance would have done.

For every axis, S[i, j] says how alike unit i of a and unit j of the aligned b are: their correlation on calibration text, or
the cosine of all their weights where there is no text. The matched score is the mean of the diagonal. It is held against
two kinds of chance: the scores of random elements (S[i, r(i)], which also give a p-value), and what matching itself makes of
scores that mean nothing, the best assignment of the same numbers in random order. Matching always beats the first. Only where
it beats the second too are these the same units found again; elsewhere the basis may still be a better one to average in.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from merge.alignment.evidence.distance import distance
from merge.alignment.pair import Alignment, Pair, spread
from merge.alignment.solvers.assignment import match_axis
from merge.alignment.solvers.moments import unit_correlations
from merge.alignment.solvers.objective import Objective, weights_of
from merge.symmetry.notation import View, contiguous
from merge.symmetry.permutation import identity, view_index
from merge.symmetry.transform import Transform, apply_transform

DRAWS = 200
# A p-value of more than this claims nothing.
SIGNIFICANT = 0.05
# Units of an axis among which shuffled scores are matched, and tokens on which units are compared.
LARGEST, TOKENS = 1024, 8192
MEASURES = {True: "activation correlation", False: "cosine of weights"}


@dataclass(frozen=True)
class AxisQuality:
    """How alike the matched units of one axis are.

    Attributes:
        axis: its names, the blocks first: "ffn0", "heads0 v0".
        score: mean over the matched units.
        random: mean score of random elements.
        p: share of random elements that score as much, at least 1 / (DRAWS + 1).
        shuffled: what matching makes of the same scores in random order.
        still: share of the units that stayed in their place.
    """

    axis: str
    kind: str
    layer: int | None
    units: int
    score: float
    random: float
    p: float
    shuffled: float
    still: float

    @property
    def claims(self) -> bool:
        """Whether the matched units are more alike than either kind of chance explains."""
        return self.p <= SIGNIFICANT and self.score > self.shuffled


@dataclass(frozen=True)
class Quality:
    """Match quality of an alignment.

    Attributes:
        measure: what the scores are, one of MEASURES.
        groups: kind of axis -> what moved it, in words.
        distance: |A - B| / |A| of gauge-fixed weights, `merge.alignment.evidence.distance`, before and after.
    """

    measure: str
    axes: tuple[AxisQuality, ...]
    groups: Mapping[str, str]
    distance: tuple[float, float]

    def kinds(self) -> tuple[AxisQuality, ...]:
        """Return one record a kind: means over its axes, weighted by their units; the largest p."""
        found = []
        for kind in dict.fromkeys(one.kind for one in self.axes):
            own = [one for one in self.axes if one.kind == kind]
            units = sum(one.units for one in own)
            means = {
                what: math.fsum(getattr(one, what) * one.units for one in own) / units
                for what in ("score", "random", "shuffled", "still")
            }
            found.append(AxisQuality(kind, kind, None, units, p=max(one.p for one in own), **means))
        return tuple(found)

    @property
    def notes(self) -> tuple[str, ...]:
        """What must not be claimed of it."""
        random = [one.kind for one in self.kinds() if one.p > SIGNIFICANT]
        chance = [one.kind for one in self.kinds() if one.p <= SIGNIFICANT and not one.claims and one.still < 1]
        notes = []
        if random:
            notes.append(
                f"{', '.join(random)}: matched units are no more alike than random ones; nothing is claimed for them"
            )
        if chance:
            notes.append(
                f"{', '.join(chance)}: matched units are more alike than random ones, but no more than matching makes of "
                "the same scores in random order; nothing says that they are the same units"
            )
        return tuple(notes)

    def table(self) -> list[str]:
        """Return lines for a terminal: a row for each kind of axis, and the distance."""
        kinds = self.kinds()
        width = max(map(len, ("match quality", *(one.kind for one in kinds))))
        lines = [f"{'match quality':<{width}}  matched  random  shuffled      p  in place  moved by  ({self.measure})"]
        for one in kinds:
            figures = f"{one.score:7.3f}  {one.random:6.3f}  {one.shuffled:8.3f}  {one.p:5.3f}  {one.still:8.0%}"
            lines.append(f"{one.kind:<{width}}  {figures}  {self.groups[one.kind]}")
        before, after = self.distance
        return [*lines, f"distance of gauge-fixed weights, |A - B| / |A|: {before:.3f} -> {after:.3f}"]

    def to_json(self) -> dict[str, Any]:
        """Return the figures for the manifest."""
        return {
            "measure": self.measure,
            "distance": list(self.distance),
            "groups": dict(self.groups),
            "kinds": [asdict(one) for one in self.kinds()],
            "axes": [asdict(one) for one in self.axes],
        }


def match_quality(pair: Pair, alignment: Alignment) -> Quality:
    """Return how alike the units are that an alignment of the pair put in the same place.

    Deterministic: what is random is drawn from the pair's seed.
    """
    still = identity(pair.spec, pair.shapes)
    a = apply_transform(pair.spec, Transform(still, alignment.reference_maps), pair.a)
    aligned = replace(
        pair, a=a, b=apply_transform(pair.spec, alignment.transform, pair.b), batches=spread(pair.batches, TOKENS)
    )
    generator = torch.Generator().manual_seed(pair.settings.seed)
    axes = []
    for view, scores in _scores(aligned):
        if not set(view.movable) <= set(pair.movable):
            continue
        index = view_index(contiguous(view.names, view.shape), alignment.permutation).reshape(-1)
        turned = any(
            name in alignment.maps or name in alignment.reference_maps for name in (*view.names, view.map_axis)
        )
        score, drawn = float(scores.diagonal().mean()), _random(view, scores, generator)
        axes.append(
            AxisQuality(
                axis=" ".join(view.movable),
                kind=pair.spec.kind(view.names[0]),
                layer=_layer(view.names[0]),
                units=len(scores),
                score=score,
                random=float(drawn.mean()),
                p=(1 + int((drawn >= score).sum())) / (1 + DRAWS),
                shuffled=_shuffled(view, scores, turned, generator),
                still=float((index == torch.arange(len(index))).double().mean()),
            )
        )
    order = pair.kinds()
    axes.sort(key=lambda one: (order.index(one.kind), -1 if one.layer is None else one.layer))
    apart = distance(pair, pair.a, pair.b), distance(pair, aligned.a, aligned.b)
    return Quality(MEASURES[_runs(pair)], tuple(axes), _groups(pair, alignment), apart)


def _layer(axis: str) -> int | None:
    number = axis[len(axis.rstrip("0123456789")) :]
    return int(number) if number else None


def _runs(pair: Pair) -> bool:
    """Return whether units can be compared by what they do on text."""
    return bool(pair.batches and pair.spec.taps)


def _scores(pair: Pair) -> Iterator[tuple[View, Float[Tensor, "n n"]]]:
    """Yield how alike the units of a and b are, for every run of units of an axis."""
    if _runs(pair):
        yield from unit_correlations(pair).items()
        return
    objective = Objective(pair, weights_of(pair), pair.movable)
    still = identity(pair.spec, pair.shapes)
    for move in objective.touches:
        for names, gain in objective.gains(move, still).items():
            shape = tuple(gain.shape[: gain.ndim // 2])
            own = [_squares(objective, move, names, side) for side in "ab"]
            factor = [torch.where(x > 0, x, torch.inf).rsqrt() for x in own]
            flat = gain.reshape(math.prod(shape), -1)
            yield contiguous(names, shape), flat * factor[0][:, None] * factor[1]


def _squares(objective: Objective, move: str, names: tuple[str, ...], side: str) -> Float[Tensor, " n"]:
    """Return the squared length of all weights of each unit, scaled as gains are."""
    scale = objective.weights.scale_a if side == "a" else objective.weights.scale_b
    found = [touch for touch in objective.touches[move] if touch.view.names == names]
    return torch.stack([(objective.rows(t, side, None).double() * scale[t.tensor]).square().sum(1) for t in found]).sum(
        0
    )


def _random(view: View, scores: Float[Tensor, "n n"], generator: torch.Generator) -> Float[Tensor, " draws"]:
    """Return the mean scores of random elements: blocks, and what may move inside each of them."""
    alone, last = contiguous(view.names, view.shape), len(view.shape) - 1
    shapes, source = alone.index_shapes(), torch.zeros(DRAWS, *view.shape, dtype=torch.long)
    for level, (name, size) in enumerate(zip(view.names, view.shape, strict=True)):
        index = torch.arange(size)
        if name != "-":
            drawn = torch.rand(DRAWS, *shapes[name], generator=generator).argsort(-1)
            index = drawn.reshape(*drawn.shape[:-1], *(1,) * (level - drawn.ndim + 2), size)
        source += alone.strides[level] * index.reshape(*index.shape, *(1,) * (last - level))
    return scores[torch.arange(len(scores)), source.reshape(DRAWS, -1)].mean(1, dtype=torch.float64)


def _shuffled(view: View, scores: Float[Tensor, "n n"], turned: bool, generator: torch.Generator) -> float:
    """Return the mean score of the best matching of the scores in random order; of the best rotation where maps act.

    On a split axis, of the units inside each block; of the blocks where nothing moves inside them.
    """
    if len(view.shape) == 1:
        blocks = scores[None]
    elif view.names[-1] == "-" and not turned:
        whole, inside = view.shape[0], math.prod(view.shape[1:])
        blocks = scores.reshape(whole, inside, whole, inside).diagonal(0, 1, 3).mean(-1)[None]
    else:
        count, inside = math.prod(view.shape[:-1]), view.shape[-1]
        blocks = scores.reshape(count, inside, count, inside).diagonal(0, 0, 2).movedim(-1, 0)
    means = []
    for block in blocks:
        size = min(len(block), LARGEST)
        entries = block.reshape(-1)[torch.randperm(block.numel(), generator=generator)[: size * size]]
        square = entries.reshape(size, size).double()
        if turned:
            means.append(float(torch.linalg.svdvals(square).mean()))
        else:
            means.append(float(square.gather(1, match_axis(square)[:, None]).mean()))
    return math.fsum(means) / len(means)


def _groups(pair: Pair, alignment: Alignment) -> dict[str, str]:
    """Return for each kind of axis what moved it, in words: nothing, permutation, signs, scales, rotations, linear maps."""
    moved, found = alignment.permutation.moved(), dict[str, dict[str, None]]()
    for axis in pair.movable:
        words = found.setdefault(pair.spec.kind(axis), {})
        if moved[axis][0]:
            words["permutation"] = None
    for axis, mapped in (*alignment.maps.items(), *alignment.reference_maps.items()):
        found.setdefault(pair.spec.kind(axis), {})[_word(mapped, axis in alignment.permutation.outer)] = None
    return {kind: ", ".join(words) or "nothing" for kind, words in found.items()}


def _word(mapped: Tensor, inside: bool) -> str:
    if mapped.ndim == (2 if inside else 1):
        return "signs" if bool((mapped.abs() == 1).all()) else "scales"
    unit = torch.eye(mapped.shape[-1], dtype=mapped.dtype)
    return "rotations" if bool(((mapped.mT @ mapped - unit).abs() < 1e-6).all()) else "linear maps"
