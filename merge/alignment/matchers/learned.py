"""Learned alignment: gradient descent on the loss between the models, from the result of matching.

Permutations stay as they were matched. What is learned are maps that are exact symmetries, in the coordinates of
`merge.alignment.solvers.charts`: every invertible map inside a head, rotary scales and angles, scales of hidden units, and
rotations of the residual stream where the norms are folded. So b keeps its function throughout, and with `both` a as well.
Adam minimises the expected loss at (1 - lam) a + lam G(b), lam uniform in [.4, .6]; the step with the least loss on held-out
texts at lam = 1/2 is kept, or the start where no step is better. So the average of the two is good, and a barrier may be left
beside the middle. With `line`, lam is uniform in [.2, .8], and the mean loss at 1/4, 1/2 and 3/4 decides.

A post-LN model has one more symmetry, a scale of the stream between two norms. It is not used: it is exact only if the
norms' epsilon is neglected, and b would fail the proof that its function is unchanged.

Sources: Zhang et al. 2025, arXiv:2502.00264 and Theus et al. 2025, arXiv:2506.22712 (the symmetries; learning them).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from merge.alignment.matchers.learned_loss import Loss, LossBatch, loss_of, split
from merge.alignment.matchers.rotations import rotate_by_activations, rotate_by_both, rotate_by_weights
from merge.alignment.midpoint import ALONG, EndpointOutputs
from merge.alignment.pair import Alignment, Matcher, Pair, check_kinds, check_text
from merge.alignment.solvers.charts import CHARTS, Action, Coordinates, actions, maps_at, moved, origin
from merge.progress import track
from merge.symmetry.canonical import canonical_weights
from merge.symmetry.groups import Shape, is_full
from merge.symmetry.permutation import identity
from merge.symmetry.spec import parse
from merge.symmetry.transform import Transform, apply_transform, axis_sizes, check_transform, compose

LEARNING_RATE, TEXTS_A_STEP = 1e-2, 16
LAM_RANGE, LINE_RANGE = (0.4, 0.6), (0.2, 0.8)
# The learning rate was measured on models of this width; wider matrices have more entries, and a step should rotate no
# further.
RATE_WIDTH = 64
# Matchers whose alignments are candidates for the start; which is best differs from family to family.
STARTS = (rotate_by_activations, rotate_by_weights, rotate_by_both)
# How often the held-out loss is measured in a run.
CHECKS = 20
# A map with a larger condition number would cost digits of weights that are stored in float32.
MAX_CONDITION = 1e3

Tensors = Mapping[str, Tensor]


def match_learned(pair: Pair) -> Matcher:
    """Return the matcher that improves the alignments of other matchers by gradient descent on the loss between the models.

    The models are compared as they are merged; only the start is matched on their canonical forms.

    Raises:
        AlignmentError: there are no batches, or too few texts; the loss does not fit the model.
    """
    check_text(pair, "learned alignment")
    split(pair.batches)
    ends = EndpointOutputs(pair)
    starts = best_start(pair, ends)

    def match(kinds: frozenset[str]) -> Alignment:
        check_kinds(pair, kinds)
        return learn(pair, starts(kinds), kinds, ends)

    return match


def learn(pair: Pair, start: Alignment, kinds: frozenset[str], ends: EndpointOutputs | None = None) -> Alignment:
    """Return the best alignment learned from a start over these kinds of axes; the start where no step is better.

    Args:
        ends: the outputs of both models, where further alignments of the pair need them too.
    """
    axes = free_axes(pair, kinds)
    return _Learner(pair, start, axes, ends or EndpointOutputs(pair)).run() if axes else start


def best_start(pair: Pair, ends: EndpointOutputs | None = None) -> Matcher:
    """Return the matcher of the start: the alignment by STARTS with the least held-out loss.

    Heads are matched with maps, whatever basis was requested: maps are what will be learned.
    """
    ends = ends or EndpointOutputs(pair)
    a, b = (canonical_weights(pair.spec, pair.config, tensors) for tensors in (pair.a, pair.b))
    compared = replace(pair, a=a, b=b, settings=replace(pair.settings, basis="orthogonal"))
    matchers = [rotate(compared) for rotate in STARTS]

    def match(kinds: frozenset[str]) -> Alignment:
        return min((matcher(kinds) for matcher in matchers), key=lambda start: held_out_loss(pair, start, ends))

    return match


def held_out_loss(pair: Pair, start: Alignment, ends: EndpointOutputs) -> float:
    """Return the mean loss under an alignment on the held-out texts: of the midpoint, or along the line."""
    return _Learner(pair, start, {}, ends).held_out()


def free_axes(pair: Pair, kinds: frozenset[str]) -> dict[str, Shape]:
    """Return the axes of these kinds whose group has coordinates to learn, and their shapes.

    An axis along which the model has an output keeps its basis: otherwise the endpoints' outputs would move too.
    """
    shown = {name for line in pair.spec.outputs.values() for axis in parse(line) for name in axis.axis_names()}
    return {
        axis: shape
        for axis, shape in axis_sizes(pair.spec, pair.shapes).items()
        if pair.spec.kind(axis) in kinds and pair.spec.group(axis) in CHARTS and axis not in shown | pair.spec.named
    }


@dataclass(frozen=True)
class Endpoint:
    """One of the two models: its tensors in float32 under the start, and the coordinates of the maps learned since."""

    tensors: Tensors
    at: tuple[Coordinates, ...]

    def moved(self, acting: Mapping[str, Sequence[Action]]) -> dict[str, Tensor]:
        """Return the tensors that maps act on, under the current maps."""
        if not self.at:
            return {}
        maps = maps_at(self.at)
        return {name: moved(self.tensors[name], along, maps) for name, along in acting.items()}

    def maps(self) -> dict[str, Tensor]:
        """Return the maps, float64."""
        with torch.no_grad():
            return {axis: out.clone() for axis, (out, _) in maps_at(self.at).items()}


class _Learner:
    """Gradient descent from a start; holds a model to run and the two endpoints that it lies between."""

    def __init__(self, pair: Pair, start: Alignment, axes: Mapping[str, Shape], ends: EndpointOutputs) -> None:
        self.pair, self.start = pair, start
        self.generator = torch.Generator().manual_seed(pair.settings.seed)
        self.loss: Loss = loss_of(pair, start.transform, ends)
        self.range = LINE_RANGE if pair.settings.line else LAM_RANGE
        self.measured: tuple[float, ...] = ALONG if pair.settings.line else (0.5,)
        self.model: Any = pair.model(pair.a).requires_grad_(False)
        self.acting = actions(pair.spec, pair.shapes, axes)
        b = apply_transform(pair.spec, start.transform, pair.b)
        self.a = Endpoint(_single(pair.a), origin(pair.spec, axes) if pair.settings.both else ())
        self.b = Endpoint(_single(b), origin(pair.spec, axes))
        self.rows, held = split(pair.batches)
        self.held = [self.loss.make_batch(k, rows, self.generator) for k, rows in enumerate(held) if len(rows)]

    def run(self) -> Alignment:
        """Return the alignment of the step with the least held-out loss."""
        steps, values = self.pair.settings.steps, [-self.held_out()]
        best: tuple[dict[str, Tensor], dict[str, Tensor]] | None = None
        optimiser = torch.optim.Adam(
            [{"params": [part.values], "lr": _rate(part)} for part in (*self.a.at, *self.b.at)]
        )
        every = max(1, steps // CHECKS)
        for step in track(range(steps), "learning"):
            self._step(optimiser)
            if (step + 1) % every and step + 1 < steps:
                continue
            value = -self.held_out()
            if value > values[-1] and conditioned(maps := (self.a.maps(), self.b.maps()), self.pair):
                best = maps
                values.append(value)
        return self._alignment(best, tuple(values))

    def _step(self, optimiser: torch.optim.Adam) -> None:
        """Take one optimiser step on the loss of a few texts."""
        generator = self.generator
        sizes = torch.tensor([float(len(rows)) for rows in self.rows])
        k = int(torch.multinomial(sizes, 1, generator=generator))
        rows = self.rows[k][torch.randperm(len(self.rows[k]), generator=generator)[:TEXTS_A_STEP]]
        low, high = self.range
        lam = low + (high - low) * float(torch.rand((), generator=generator))
        total, count = self._loss(self.loss.make_batch(k, rows, generator), lam)
        optimiser.zero_grad()
        (total / count).backward()
        optimiser.step()

    def _loss(self, batch: LossBatch, lam: float) -> tuple[Tensor, int]:
        """Return the summed loss of the model at lam, and the number of terms."""
        from torch.func import functional_call

        moved_tensors = [end.moved(self.acting) for end in (self.a, self.b)]
        weights = {}
        for name, tensor in self.a.tensors.items():
            a, b = (m.get(name, end.tensors[name]) for m, end in zip(moved_tensors, (self.a, self.b), strict=True))
            between = torch.lerp(a, b, lam) if tensor.is_floating_point() else tensor
            weights[self.pair.written_name(name)] = between.to(self.pair.device)
        output = functional_call(self.model, weights, (), dict(batch.inputs))
        # Near the middle the ensemble of both halves is the target for every lam.
        return self.loss.value(output, batch, lam if self.pair.settings.line else 0.5)

    def held_out(self) -> float:
        """Return the mean loss on the held-out texts: of the midpoint, or along the line."""
        with torch.no_grad():
            losses = [self._loss(batch, lam) for lam in self.measured for batch in self.held]
        return sum(float(total) for total, _ in losses) / sum(count for _, count in losses)

    def _alignment(
        self, best: tuple[dict[str, Tensor], dict[str, Tensor]] | None, values: tuple[float, ...]
    ) -> Alignment:
        if best is None:
            return replace(self.start, objective=values)
        pair, unmoved = self.pair, identity(self.pair.spec, self.pair.shapes)
        transform = compose(Transform(unmoved, best[1]), self.start.transform)
        check_transform(pair.spec, transform)
        check_transform(pair.spec, Transform(unmoved, best[0]))
        return replace(self.start, maps=transform.maps, reference_maps=best[0], objective=values)


def conditioned(ends: Sequence[Tensors], pair: Pair) -> bool:
    """Return whether every map has a condition number of at most MAX_CONDITION."""
    shapes = axis_sizes(pair.spec, pair.shapes)
    for axis, mapped in (item for maps in ends for item in maps.items()):
        sizes = torch.linalg.svdvals(mapped) if is_full(mapped, shapes[axis]) else mapped.abs()
        if not bool((sizes.amax(-1) <= MAX_CONDITION * sizes.amin(-1)).all()):
            return False
    return True


def _rate(part: Coordinates) -> float:
    square = len(CHARTS[part.group].shape(part.shape)) > len(part.shape)
    return LEARNING_RATE * (min(1.0, RATE_WIDTH / part.shape[-1]) if square else 1.0)


def _single(tensors: Tensors) -> dict[str, Tensor]:
    return {name: tensor.float() if tensor.is_floating_point() else tensor for name, tensor in tensors.items()}
