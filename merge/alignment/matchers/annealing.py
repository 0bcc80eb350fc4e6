"""Simulated annealing over permutations, on the divergence of the midpoint, for models small enough to evaluate many.

From the better of the identity and weight matching, two units (or blocks, or units inside one block) of a random axis are
swapped; the swap is kept if the midpoint's divergence from the endpoints (`merge.alignment.midpoint`) falls, and with
probability exp(-rise / temperature) if it rises, while the temperature falls. The best permutation of all steps is returned.
Swaps are scored on a part of the text, start and result on all of it. An oracle for axes of a few units: among n! orders a
few hundred swaps improve little, as its authors report.

Function-preserving: the result is a permutation.

Source: Entezari et al. 2022, arXiv:2110.06296, section 3.2.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from merge.alignment.divergence import divergence, outputs_of, scored_tokens
from merge.alignment.masking import with_masked_words
from merge.alignment.matchers.weights import match_weights
from merge.alignment.midpoint import score
from merge.alignment.pair import Alignment, Matcher, Pair, check_kinds, check_text, in_dtype
from merge.alignment.solvers.objective import occurrences
from merge.checkpoints.transformers_model import set_weights
from merge.progress import track
from merge.symmetry.canonical import canonical_weights
from merge.symmetry.permutation import Permutation, apply_axes, identity
from merge.symmetry.spec import parse

# Batches that swaps are scored on, evenly spaced from the shortest texts to the longest, and texts of each; all texts where
# there are no more.
MAX_BATCHES, MAX_TEXTS = 2, 64
# Temperatures at the start and at the end, as shares of the divergence at the start.
T_START, T_END = 0.3, 1e-4
# A divergence below this share of the identity's is rounding: nothing is left to gain.
NEGLIGIBLE = 1e-5


def match_annealing(pair: Pair) -> Matcher:
    """Return the matcher that tries `pair.settings.steps` swaps; the models are compared as they are merged.

    Its objective is 1 - divergence / divergence of the identity: 0 for the identity, 1 where the midpoint equals the
    endpoints' ensemble.

    Raises:
        AlignmentError: there are no batches.
    """
    check_text(pair, "annealing")
    a, b = (canonical_weights(pair.spec, pair.config, tensors) for tensors in (pair.a, pair.b))
    plain, pair = match_weights(replace(pair, a=a, b=b)), with_masked_words(pair)

    def match(kinds: frozenset[str]) -> Alignment:
        check_kinds(pair, kinds)
        unmoved, by_weights = identity(pair.spec, pair.shapes), plain(kinds)
        (at_identity, at_weights), _ = score([unmoved, by_weights.permutation], pair)
        if at_identity <= 0:
            return Alignment(unmoved, by_weights.kinds, (1.0,))
        better = at_weights < at_identity
        best, lowest = (by_weights.permutation, at_weights) if better else (unmoved, at_identity)
        divergences = [at_identity, lowest] if better else [at_identity]
        if lowest > NEGLIGIBLE * at_identity:
            candidate = annealed(pair, kinds, best)
            reached = score([candidate], pair)[0][0]
            if reached < lowest:
                best, divergences = candidate, [*divergences, reached]
        return Alignment(best, by_weights.kinds, tuple(1 - max(d, 0.0) / at_identity for d in divergences))

    return match


def annealed(pair: Pair, kinds: frozenset[str], start: Permutation) -> Permutation:
    """Return the best permutation of all steps of annealing over these kinds of axes."""
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
    """Return p with two units of an axis swapped: inside one random block, or whole blocks with the orders inside them."""
    index = p.indices[axis].clone()
    both = torch.randperm(index.shape[-1], generator=generator)[:2]
    if index.ndim > 1:
        block = int(torch.randint(len(index), (), generator=generator))
        index[block, both] = index[block, both.flip(0)]
        return Permutation({**p.indices, axis: index}, p.outer)
    index[both] = index[both.flip(0)]
    changed = {axis: index}
    for inside in (name for name, outer in p.outer.items() if outer == axis and name in p.indices):
        order = p.indices[inside].clone()
        order[both] = order[both.flip(0)]
        changed[inside] = order
    return Permutation({**p.indices, **changed}, p.outer)


class _Midpoint:
    """The midpoint of a and the permuted b, and the endpoints' outputs on some texts."""

    def __init__(self, pair: Pair, kinds: frozenset[str], start: Permutation) -> None:
        self.pair = pair = with_few_texts(pair)
        endpoints = pair.model(pair.a), pair.model(pair.b)
        with torch.inference_mode():
            self.outputs = [[outputs_of(pair, model(**batch)) for model in endpoints] for batch in pair.batches]
        self.tensors = {
            coordinate: tuple(dict.fromkeys(occurrence.tensor for occurrence in group))
            for coordinate, group in occurrences(pair, pair.axes_of(kinds)).items()
        }
        self.model = endpoints[0]
        set_weights(self.model, self._weights(start, tuple(pair.a)))

    def _weights(self, p: Permutation, names: Sequence[str]) -> dict[str, Tensor]:
        weights = {}
        for name in names:
            a, b = self.pair.a[name], apply_axes(self.pair.spec.axes(name), p, self.pair.b[name])
            weights[self.pair.written_name(name)] = (a.float() + b.float()) / 2 if a.is_floating_point() else a
        return weights

    def move(self, p: Permutation, axis: str) -> None:
        """Recompute the model's tensors on one axis under p."""
        set_weights(self.model, self._weights(p, self.tensors[p.outer.get(axis, axis)]))

    def divergence(self, p: Permutation) -> float:
        """Return the mean divergence of the model from the endpoints' ensemble, b's outputs permuted by p."""
        total, count = 0.0, 0
        with torch.inference_mode():
            for k, (a, b) in enumerate(self.outputs):
                moved = {n: apply_axes(parse(self.pair.spec.outputs[n]), p, value) for n, value in b.items()}
                between = outputs_of(self.pair, self.model(**self.pair.batches[k]))
                value, rows, _ = divergence(a, moved, between, scored_tokens(self.pair, k))
                total, count = total + float(value), count + rows
        return total / count


def with_few_texts(pair: Pair) -> Pair:
    """Return the pair with the first MAX_TEXTS texts of MAX_BATCHES of its batches, in float32; with all where they are few."""
    texts = sum(len(next(iter(batch.values()))) for batch in pair.batches)
    count = len(pair.batches) if texts <= MAX_BATCHES * MAX_TEXTS else min(MAX_BATCHES, len(pair.batches))
    taken = [k * (len(pair.batches) - 1) // max(count - 1, 1) for k in range(count)]
    batches = [{name: tensor[:MAX_TEXTS] for name, tensor in pair.batches[k].items()} for k in taken]
    return replace(
        pair,
        batches=tuple(in_dtype(batch, torch.float32) for batch in batches),
        text=replace(pair.text, scored=tuple(pair.text.scored[k][:MAX_TEXTS] for k in taken if pair.text.scored)),
    )
