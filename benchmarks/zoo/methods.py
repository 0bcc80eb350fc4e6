"""METHODS: every way of bringing model b into the basis of model a, by the name it has in the tables.

A method takes the pair and returns it aligned. To add one, write it as a function here or where it belongs, and give it
one line in METHODS.
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
    """Two models in one basis, and what lies between them.

    Attributes:
        pair: as it was given, with b moved; a method that folds norms or unties tables changes a and the config too.
        transform: what moved b, where that is all that happened.
        between: from lam to the tensors of the model there; the straight line unless a method repairs it.
        note: what the method says about its choice.
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
    """Return (1 - lam) a + lam b; what is not a floating-point number is a's."""
    return {n: torch.lerp(a, pair.b[n], lam) if a.is_floating_point() else a for n, a in pair.a.items()}


def moved(pair: Pair, by: Permutation | Transform, note: str = "") -> Aligned:
    """Return the pair with b moved; in float64 where maps act, so that nothing but the symmetry is held to account."""
    transform = as_transform(by)
    pair = exact(pair) if transform.maps else pair
    return Aligned(replace(pair, b=apply_transform(pair.spec, transform, pair.b)), transform, note=note)


def placed(pair: Pair, alignment: Alignment, note: str = "") -> Aligned:
    """Return the pair as an alignment says; where it moves a as well, no single transform is named."""
    if not alignment.reference_maps:
        return moved(pair, alignment.transform, note)
    still = identity(pair.spec, pair.shapes)
    pair = exact(pair)
    a = apply_transform(pair.spec, Transform(still, alignment.reference_maps), pair.a)
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
        basis: what moves inside heads.
        restarts: of which the calibration text chooses.
    """

    def method(pair: Pair) -> Aligned:
        movable = frozenset(pair.kinds())
        asked = replace(pair, settings=replace(pair.settings, basis=basis, restarts=restarts))
        compared = asked if aligner(by).compares_merged else in_canonical_form(asked)
        return placed(pair, aligner(by)(compared)(movable if kinds is None else kinds & movable))

    return method


def rotated(by: str, restarts: int = 0) -> Method:
    """Return the method with the residual stream rotated, and bases inside heads; of models whose norms can be folded."""
    turned = matched(by, basis="orthogonal", restarts=restarts)
    return lambda pair: turned(folded_pair(exact(pair)))


def chosen(*aligners: str) -> Method:
    """Return the method of the command line: the aligners' candidates, of which one is chosen without labels."""

    def method(pair: Pair) -> Aligned:
        kept = choose(pair, {by: aligner(by)(pair) for by in aligners}, None).kept
        return placed(pair, kept.alignment, note=f"{kept.by}: {kept.name}" if len(aligners) > 1 else kept.name)

    return method


def repaired(by: Method) -> Method:
    """Return the method with the spread of units restored in every model on the way, by the pair's calibration text."""

    def method(pair: Pair) -> Aligned:
        from merge.run.repair.repair import repair

        found = by(pair)

        def between(lam: float) -> Mapping[str, Tensor]:
            both, middle = found.pair, found.at(lam)
            ends, weights = (both.a, both.b), (1 - lam, lam)
            batches, spec, name = both.batches, both.spec, both.written_name
            return repair(both.config, middle, ends, lambda _: weights, batches, spec, name)[0]

        return replace(found, between=between)

    return method


def together(pair: Pair) -> Aligned:
    """Return the pair as the universe of two models has it."""
    return placed(pair, aligner("universe").align_jointly([pair], frozenset(pair.kinds()))[0])


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

# Methods of pre-LN models alone: of others the residual stream cannot be rotated.
PRE_LAYER_NORM = frozenset(name for name in METHODS if ", rotation" in name)

# Methods after which b is not the function it was: they are not held to it.
SOFT: frozenset[str] = frozenset()
