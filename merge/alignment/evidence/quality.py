"""Match quality: how similar the units are that an alignment put in the same position, against what chance would do.

For every axis, S[i, j] is the similarity of unit i of a and unit j of the aligned b: their correlation on calibration
text, or the cosine of all their weights where there is no text. The matched score is the mean of the diagonal. It is
compared with two kinds of chance: the scores of random elements of the group (S[i, r(i)], which also give a p-value),
and the best assignment of the same numbers in random order, which is what matching itself makes of scores that mean
nothing. Matching always beats the first. Only where it beats the second too are these the same units; elsewhere the new
basis may still be a better one to average in.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from merge.alignment.evidence.chance import DRAWS, RandomElements, random_scores, shuffled_score
from merge.alignment.evidence.distance import canonical_distances
from merge.alignment.evidence.similarity import has_activations, similarities
from merge.alignment.pair import Alignment, Pair
from merge.symmetry.notation import contiguous
from merge.symmetry.permutation import identity, view_index
from merge.symmetry.transform import Transform, moved_when_read

# Above this p-value nothing is claimed.
MAX_P = 0.05
# Scores nearer to one another are taken for equal.
ROUNDING = 1e-6
MEASURES = {True: "activation correlation", False: "cosine of weights"}


@dataclass(frozen=True)
class AxisQuality:
    """The similarity of the matched units of one axis.

    Attributes:
        axis: its names, outermost first: "ffn0", "heads0 v0".
        kind: the kind of the outermost axis.
        layer: the number of its layer, if it has one.
        units: number of units.
        score: mean similarity of the matched units.
        random: mean score of random elements.
        p: share of random elements with at least this score; exact where there are few elements.
        smallest_p: the p of the best element: one of all elements, or 1 / (DRAWS + 1) where they are drawn.
        shuffled: mean score of the best matching of the same scores in random order.
        in_place: share of the units that kept their position.
    """

    axis: str
    kind: str
    layer: int | None
    units: int
    score: float
    random: float
    p: float
    shuffled: float
    in_place: float
    smallest_p: float = 1 / (DRAWS + 1)

    @property
    def too_few(self) -> bool:
        """Whether so few orders exist that the best of them is no evidence: three heads have six."""
        return self.smallest_p > MAX_P

    @property
    def claims(self) -> bool:
        """Whether the matched units are more similar than either kind of chance explains."""
        return self.p <= MAX_P and self.score > self.shuffled


@dataclass(frozen=True)
class Quality:
    """Match quality of an alignment.

    Attributes:
        measure: the kind of similarity, one of MEASURES.
        axes: an entry for each axis, in the order of the table.
        groups: kind of axis -> what moved it, in words: permutation, signs, scales, rotations, linear maps, or nothing.
        distance: |A - B| / |A| of gauge-fixed weights (`merge.alignment.evidence.distance`), before and after.
    """

    measure: str
    axes: tuple[AxisQuality, ...]
    groups: Mapping[str, str]
    distance: tuple[float, float]

    def kinds(self) -> tuple[AxisQuality, ...]:
        """Return one record for each kind of axis: means over its axes, weighted by their units; the largest p."""
        summaries = []
        for kind in dict.fromkeys(axis.kind for axis in self.axes):
            axes = [axis for axis in self.axes if axis.kind == kind]
            units = sum(axis.units for axis in axes)
            means = {
                field: math.fsum(getattr(axis, field) * axis.units for axis in axes) / units
                for field in ("score", "random", "shuffled", "in_place")
            }
            extremes = {field: max(getattr(axis, field) for axis in axes) for field in ("p", "smallest_p")}
            summaries.append(AxisQuality(kind, kind, None, units, **extremes, **means))
        return tuple(summaries)

    @property
    def notes(self) -> tuple[str, ...]:
        """Sentences on what must not be claimed of the alignment."""
        kinds = self.kinds()
        random = [k.kind for k in kinds if k.p > MAX_P and not k.too_few]
        few = [k for k in kinds if k.p > MAX_P and k.too_few]
        chance = [k.kind for k in kinds if k.p <= MAX_P and not k.claims and k.in_place < 1]
        notes = []
        if random:
            notes.append(
                f"{', '.join(random)}: matched units are no more alike than random ones; nothing is claimed for them"
            )
        if few:
            least = ", ".join(f"{k.kind} (p is at least {k.smallest_p:.2g})" for k in few)
            notes.append(
                f"{least}: too few units to tell a match from chance, as even the best of all orders is found by chance that "
                "often; nothing is claimed for them"
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
        width = max(map(len, ("match quality", *(k.kind for k in kinds))))
        lines = [f"{'match quality':<{width}}  matched  random  shuffled      p  in place  moved by  ({self.measure})"]
        for k in kinds:
            figures = f"{k.score:7.3f}  {k.random:6.3f}  {k.shuffled:8.3f}  {k.p:5.3f}  {k.in_place:8.0%}"
            lines.append(f"{k.kind:<{width}}  {figures}  {self.groups[k.kind]}")
        before, after = self.distance
        return [*lines, f"distance of gauge-fixed weights, |A - B| / |A|: {before:.3f} -> {after:.3f}"]

    def to_json(self) -> dict[str, Any]:
        """Return the figures for the manifest."""
        return {
            "measure": self.measure,
            "distance": list(self.distance),
            "groups": dict(self.groups),
            "kinds": [_as_json(kind) for kind in self.kinds()],
            "axes": [_as_json(axis) for axis in self.axes],
        }


def _as_json(axis: AxisQuality) -> dict[str, Any]:
    """Return the figures of one axis; in the manifest's format the share of units in place is called `still`."""
    return {"still" if field == "in_place" else field: value for field, value in asdict(axis).items()}


def match_quality(pair: Pair, alignment: Alignment) -> Quality:
    """Return how similar the units are that an alignment of the pair put in the same position.

    Deterministic: random elements are drawn from the pair's seed.
    """
    generator = torch.Generator().manual_seed(pair.settings.seed)
    distances = _distances(pair, alignment)
    pair.release_canonical()
    axes, random = [], RandomElements(generator)
    for similarity in similarities(pair, alignment):
        view, scores = similarity.view, similarity.scores
        if not set(view.movable) <= set(pair.movable):
            continue
        index = view_index(contiguous(view.names, view.shape), alignment.permutation).reshape(-1)
        has_map = any(
            name in alignment.maps or name in alignment.reference_maps for name in (*view.names, view.map_axis)
        )
        score, (elements, exact) = similarity.matched, random.of(view)
        drawn = random_scores(scores, elements, similarity.units)
        # The element itself is among all of them: it counts, however its mean was rounded.
        above = int((drawn >= score - ROUNDING).sum())
        axes.append(
            AxisQuality(
                axis=" ".join(view.movable),
                kind=pair.spec.kind(view.names[0]),
                layer=_layer(view.names[0]),
                units=len(index),
                score=score,
                random=float(drawn.mean()),
                p=above / len(drawn) if exact else (1 + above) / (1 + DRAWS),
                shuffled=shuffled_score(view, scores, has_map, generator),
                in_place=float((index == torch.arange(len(index))).double().mean()),
                smallest_p=1 / (len(drawn) if exact else 1 + DRAWS),
            )
        )
    order = pair.kinds()
    axes.sort(key=lambda axis: (order.index(axis.kind), -1 if axis.layer is None else axis.layer))
    return Quality(MEASURES[has_activations(pair)], tuple(axes), _groups(pair, alignment), distances)


def _distances(pair: Pair, alignment: Alignment) -> tuple[float, float]:
    """Return the distance of gauge-fixed weights before and after: a transform of canonical weights is canonical."""
    a, b = pair.canonical
    moved = moved_when_read(pair.spec, alignment.transform, b)
    if not alignment.reference_maps:
        before, after = canonical_distances(pair.spec, a, b, moved)
        return before, after
    reference = Transform(identity(pair.spec, pair.shapes), alignment.reference_maps)
    moved_a = moved_when_read(pair.spec, reference, a)
    return canonical_distances(pair.spec, a, b)[0], canonical_distances(pair.spec, moved_a, moved)[0]


def _layer(axis: str) -> int | None:
    number = axis[len(axis.rstrip("0123456789")) :]
    return int(number) if number else None


def _groups(pair: Pair, alignment: Alignment) -> dict[str, str]:
    """Return for each kind of axis what moved it, in words: nothing, permutation, signs, scales, rotations, linear maps."""
    moved, words_of = alignment.permutation.moved(), dict[str, dict[str, None]]()
    for axis in pair.movable:
        words = words_of.setdefault(pair.spec.kind(axis), {})
        if moved[axis][0]:
            words["permutation"] = None
    for axis, mapped in (*alignment.maps.items(), *alignment.reference_maps.items()):
        words_of.setdefault(pair.spec.kind(axis), {})[_word(mapped, axis in alignment.permutation.outer)] = None
    return {kind: ", ".join(words) or "nothing" for kind, words in words_of.items()}


def _word(mapped: Tensor, inside: bool) -> str:
    if mapped.ndim == (2 if inside else 1):
        return "signs" if bool((mapped.abs() == 1).all()) else "scales"
    unit = torch.eye(mapped.shape[-1], dtype=mapped.dtype)
    return "rotations" if bool(((mapped.mT @ mapped - unit).abs() < 1e-6).all()) else "linear maps"
