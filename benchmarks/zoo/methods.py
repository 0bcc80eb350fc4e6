"""METHODS: every way to align model b to model a, by its name in the tables.

A method takes the pair and returns it aligned. To add one, write a function and give it one line in METHODS.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from merge.alignment.choice.auto import folded_pair
from merge.alignment.choice.candidates import choose
from merge.alignment.matchers import aligner
from merge.alignment.pair import Alignment, Pair, as_transform, in_canonical_form
from merge.symmetry.permutation import Permutation, identity
from merge.symmetry.transform import Transform, apply_transform

INSIDE = frozenset({"heads", "ffn"})


@dataclass(frozen=True)
class Aligned:
    """An aligned pair, and the models between its endpoints.

    Attributes:
        pair: the pair with b transformed; a method that folds norms or unties tables changes a and the config too.
        transform: the transform of b, where nothing else was changed.
        between: lam -> the tensors of the model there; the straight line unless a method repairs it.
        note: on the method's choice.
    """

    pair: Pair
    transform: Transform | None = None
    between: Callable[[float], Mapping[str, Tensor]] | None = None
    note: str = ""

    def at(self, lam: float) -> Mapping[str, Tensor]:
        """Return the tensors of the model at lam, 0 being a."""
        return straight(self.pair, lam) if self.between is None else self.between(lam)


Method = Callable[[Pair], Aligned]


def straight(pair: Pair, lam: float) -> dict[str, Tensor]:
    """Return (1 - lam) a + lam b; integer tensors are a's."""
    return {n: torch.lerp(a, pair.b[n], lam) if a.is_floating_point() else a for n, a in pair.a.items()}


def moved(pair: Pair, by: Permutation | Transform, note: str = "") -> Aligned:
    """Return the pair with b transformed; in float64 where maps act, so that rounding is not measured as a change of b."""
    transform = as_transform(by)
    pair = exact(pair) if transform.maps else pair
    return Aligned(replace(pair, b=apply_transform(pair.spec, transform, pair.b)), transform, note=note)


def aligned_by(pair: Pair, alignment: Alignment, note: str = "") -> Aligned:
    """Return the pair after an alignment; `transform` is None where it transforms a as well."""
    if not alignment.reference_maps:
        return moved(pair, alignment.transform, note)
    unmoved = identity(pair.spec, pair.shapes)
    pair = exact(pair)
    a = apply_transform(pair.spec, Transform(unmoved, alignment.reference_maps), pair.a)
    return replace(moved(replace(pair, a=a), alignment.transform, note), transform=None)


def exact(pair: Pair) -> Pair:
    """Return the pair with its tensors in float64."""
    a, b = ({n: t.double() if t.is_floating_point() else t for n, t in side.items()} for side in (pair.a, pair.b))
    return replace(pair, a=a, b=b)


def naive(pair: Pair) -> Aligned:
    """Return the pair as it is."""
    return moved(pair, identity(pair.spec, pair.shapes))


def matched(by: str, kinds: frozenset[str] | None = None, basis: str = "permutation", restarts: int = 0) -> Method:
    """Return the method that matches by an aligner over these kinds of axes; over all of them if None.

    Args:
        basis: `permutation` or `orthogonal`, inside heads.
        restarts: number of restarts, of which the calibration text chooses one.
    """

    def method(pair: Pair) -> Aligned:
        movable = frozenset(pair.kinds())
        configured = replace(pair, settings=replace(pair.settings, basis=basis, restarts=restarts))
        compared = configured if aligner(by).compares_merged else in_canonical_form(configured)
        return aligned_by(pair, aligner(by)(compared)(movable if kinds is None else kinds & movable))

    return method


def rotated(by: str, restarts: int = 0) -> Method:
    """Return the method that rotates the residual stream too, for models whose norms can be folded."""
    turned = matched(by, basis="orthogonal", restarts=restarts)
    return lambda pair: turned(folded_pair(exact(pair)))


def chosen(*aligners: str) -> Method:
    """Return the method of the command line: one of the aligners' candidates, chosen without labels."""

    def method(pair: Pair) -> Aligned:
        kept = choose(pair, {by: aligner(by)(pair) for by in aligners}, None).kept
        return aligned_by(pair, kept.alignment, note=f"{kept.by}: {kept.name}" if len(aligners) > 1 else kept.name)

    return method


def repaired(by: Method) -> Method:
    """Return the method with the variance of units repaired in every model between, on the pair's calibration text."""

    def method(pair: Pair) -> Aligned:
        from merge.run.repair.repair import repair

        aligned = by(pair)

        def between(lam: float) -> Mapping[str, Tensor]:
            both, middle = aligned.pair, aligned.at(lam)
            ends, weights = (both.a, both.b), (1 - lam, lam)
            batches, spec, name = both.batches, both.spec, both.written_name
            return repair(both.config, middle, ends, lambda _: weights, batches, spec, name)[0]

        return replace(aligned, between=between)

    return method


def together(pair: Pair) -> Aligned:
    """Return the pair aligned through the universe of its two models."""
    return aligned_by(pair, aligner("universe").align_jointly([pair], frozenset(pair.kinds()))[0])


METHODS: dict[str, Method] = {
    "naive": naive,
    "weights: ffn": matched("weights", frozenset({"ffn"})),
    "weights: heads, ffn": matched("weights", INSIDE),
    "weights: all": matched("weights"),
    "weights: all + repair": repaired(matched("weights")),
    "weights: chosen": chosen("weights"),
    "circuits: all": matched("circuits"),
    "activations: ffn": matched("activations", frozenset({"ffn"})),
    "activations: heads, ffn": matched("activations", INSIDE),  # the recipe of Verma and Elbayad 2024
    "activations: heads, ffn + repair": repaired(matched("activations", INSIDE)),
    "activations: all": matched("activations"),
    "activations: all + repair": repaired(matched("activations")),
    "activations: chosen": chosen("activations"),
    "frank-wolfe: all": matched("frank-wolfe"),
    "universe: all": together,
    "sinkhorn: all": matched("sinkhorn"),
    "transport: all": matched("transport"),
    "annealing: all": matched("annealing"),
    "weights+orthogonal: all": matched("weights", basis="orthogonal"),
    "activations+orthogonal: all": matched("activations", basis="orthogonal"),
    "activations+weights: all": matched("activations+weights"),
    "activations+weights+orthogonal: all": matched("activations+weights", basis="orthogonal"),
    "weights, rotation": rotated("weights"),
    "weights, rotation, 24 restarts": rotated("weights", restarts=24),
    "activations, rotation": rotated("activations"),
    "activations+weights, rotation": rotated("activations+weights"),
    "learned: all": matched("learned"),
    "learned, rotation": rotated("learned"),
}

# Methods for pre-LN models only: the residual stream of others cannot be rotated.
PRE_LAYER_NORM = frozenset(name for name in METHODS if ", rotation" in name)

# Methods that do not keep the function of b, for which it is not checked.
SOFT: frozenset[str] = frozenset()
