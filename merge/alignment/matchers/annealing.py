"""Annealing: a search of permutations by what counts, the divergence of the midpoint, for models small enough to try many.

From the better of the identity and weight matching, two units (or blocks, or units inside one block) of an axis drawn at
random change places; the swap is kept if the midpoint's divergence from its ends (`merge.alignment.midpoint`) falls, and with
probability exp(-rise / temperature) if it rises, while the temperature falls. What is returned is the best ever seen,
judged on all the text; swaps are judged on a part of it. An oracle for axes of a few units: among n! orders a few hundred
swaps find little, as its authors report.

Function-preserving: what is returned is a permutation.

Source: Entezari et al. 2022, arXiv:2110.06296, section 3.2.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from merge.alignment.masking import with_masked_words
from merge.alignment.matchers.weights import match_weights
from merge.alignment.midpoint import divergence, outputs_of, score, scored_tokens
from merge.alignment.pair import Alignment, Matcher, Pair, check_kinds, check_text, in_dtype
from merge.alignment.solvers.objective import occurrences
from merge.checkpoints.transformers_model import set_weights
from merge.progress import track
from merge.symmetry.canonical import canonical_weights
from merge.symmetry.permutation import Permutation, apply_axes, identity
from merge.symmetry.spec import parse

# Batches that swaps are judged on, evenly over all from the shortest texts to the longest, and texts of each; where there
# are no more than that, all.
MAX_BATCHES, MAX_TEXTS = 2, 64
# Temperatures at the beginning and at the end, as shares of the divergence at the start.
T_START, T_END = 0.3, 1e-4
# A divergence below this share of the identity's is rounding: there is nothing to search for.
NEGLIGIBLE = 1e-5


def match_annealing(pair: Pair) -> Matcher:
    """Return the matcher that swaps units `pair.settings.steps` times; the models are taken as they are merged.

    Its objective is 1 - divergence / divergence of the identity: 0 where nothing moves, 1 where the midpoint says what
    the ends say together.

    Raises:
        AlignmentError: there are no batches.
    """
    check_text(pair, "annealing")
    a, b = (canonical_weights(pair.spec, pair.config, tensors) for tensors in (pair.a, pair.b))
    plain, pair = match_weights(replace(pair, a=a, b=b)), with_masked_words(pair)

    def match(kinds: frozenset[str]) -> Alignment:
        check_kinds(pair, kinds)
        still, begun = identity(pair.spec, pair.shapes), plain(kinds)
        (nothing, matched), _ = score([still, begun.permutation], pair)
        if nothing <= 0:
            return Alignment(still, begun.kinds, (1.0,))
        start, value = (begun.permutation, matched) if matched < nothing else (still, nothing)
        values = [nothing, value] if value < nothing else [nothing]
        if value > NEGLIGIBLE * nothing:
            found = annealed(pair, kinds, start)
            reached = score([found], pair)[0][0]
            if reached < value:
                start, values = found, [*values, reached]
        return Alignment(start, begun.kinds, tuple(1 - max(v, 0.0) / nothing for v in values))

    return match


def annealed(pair: Pair, kinds: frozenset[str], start: Permutation) -> Permutation:
    """Return the best permutation seen while units of these kinds of axes change places."""
    generator = torch.Generator().manual_seed(pair.settings.seed)
    midpoint, steps = _Midpoint(pair, kinds, start), pair.settings.steps
    axes = [axis for axis in pair.axes_of(kinds) if start.indices[axis].shape[-1] > 1]
    if not axes:
        return start
    sizes = torch.tensor([float(start.indices[axis].numel()) for axis in axes])
    p, best = start, start
    value = lowest = first = midpoint.divergence(start)
    for step in track(range(steps), "swapping units"):
        axis = axes[int(torch.multinomial(sizes, 1, generator=generator))]
        tried = swapped(p, axis, generator)
        midpoint.move(tried, axis)
        reached = midpoint.divergence(tried)
        temperature = first * T_START * (T_END / T_START) ** (step / max(steps - 1, 1))
        if math.log(max(float(torch.rand((), generator=generator)), 1e-12)) * temperature < value - reached:
            p, value = tried, reached
        else:
            midpoint.move(p, axis)
        if value < lowest:
            best, lowest = p, value
    return best


def swapped(p: Permutation, axis: str, generator: torch.Generator) -> Permutation:
    """Return p with two places of an axis exchanged: inside one block drawn at random, or whole blocks with their orders."""
    index = p.indices[axis].clone()
    both = torch.randperm(index.shape[-1], generator=generator)[:2]
    if index.ndim > 1:
        block = int(torch.randint(len(index), (), generator=generator))
        index[block, both] = index[block, both.flip(0)]
        return Permutation({**p.indices, axis: index}, p.outer)
    index[both] = index[both.flip(0)]
    found = {axis: index}
    for inside in (name for name, outer in p.outer.items() if outer == axis and name in p.indices):
        order = p.indices[inside].clone()
        order[both] = order[both.flip(0)]
        found[inside] = order
    return Permutation({**p.indices, **found}, p.outer)


class _Midpoint:
    """The model half way between a and the moved b, and what the ends say to some texts."""

    def __init__(self, pair: Pair, kinds: frozenset[str], start: Permutation) -> None:
        self.pair = pair = some(pair)
        ends = pair.model(pair.a), pair.model(pair.b)
        with torch.inference_mode():
            self.said = [[outputs_of(pair, model(**batch)) for model in ends] for batch in pair.batches]
        self.tensors = {
            move: tuple(dict.fromkeys(occurrence.tensor for occurrence in found))
            for move, found in occurrences(pair, pair.axes_of(kinds)).items()
        }
        self.model = ends[0]
        set_weights(self.model, self._weights(start, tuple(pair.a)))

    def _weights(self, p: Permutation, names: Sequence[str]) -> dict[str, Tensor]:
        found = {}
        for name in names:
            a, b = self.pair.a[name], apply_axes(self.pair.spec.axes(name), p, self.pair.b[name])
            found[self.pair.written_name(name)] = (a.float() + b.float()) / 2 if a.is_floating_point() else a
        return found

    def move(self, p: Permutation, axis: str) -> None:
        """Bring the tensors on one axis up to date."""
        set_weights(self.model, self._weights(p, self.tensors[p.outer.get(axis, axis)]))

    def divergence(self, p: Permutation) -> float:
        """Return the mean divergence of the model from its ends; p says how b's outputs moved."""
        total, count = 0.0, 0
        with torch.inference_mode():
            for k, (a, b) in enumerate(self.said):
                moved = {n: apply_axes(parse(self.pair.spec.outputs[n]), p, value) for n, value in b.items()}
                between = outputs_of(self.pair, self.model(**self.pair.batches[k]))
                value, rows, _ = divergence(a, moved, between, scored_tokens(self.pair, k))
                total, count = total + float(value), count + rows
        return total / count


def some(pair: Pair) -> Pair:
    """Return the pair with the first texts of some of its batches, in float32; with all of them where they are few."""
    texts = sum(len(next(iter(batch.values()))) for batch in pair.batches)
    count = len(pair.batches) if texts <= MAX_BATCHES * MAX_TEXTS else min(MAX_BATCHES, len(pair.batches))
    taken = [k * (len(pair.batches) - 1) // max(count - 1, 1) for k in range(count)]
    batches = [{name: tensor[:MAX_TEXTS] for name, tensor in pair.batches[k].items()} for k in taken]
    return replace(
        pair,
        batches=tuple(in_dtype(batch, torch.float32) for batch in batches),
        text=replace(pair.text, scored=tuple(pair.text.scored[k][:MAX_TEXTS] for k in taken if pair.text.scored)),
    )
