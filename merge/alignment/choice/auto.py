"""Auto: nothing moves where two models come of one start; else the best of many alignments, chosen without labels.

Models of one start are told by their weights alone, `merge.alignment.choice.common_start`: they are kept as they are, no text is
read and nothing is run. For others every way of matching in TRIED is tried over every set of axes, with permutations and with
rotations inside heads; of pre-LN models also with a rotation of the residual stream, for which the gains of their norms are
folded. All are scored together, `merge.alignment.choice.candidates`, and moving nothing is always among them.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import product

from merge.alignment.choice.candidates import Candidate, Choice, best, nothing, scores, sets_of_axes, settled
from merge.alignment.choice.common_start import find_common_start
from merge.alignment.masking import with_masked_words
from merge.alignment.matchers import aligner
from merge.alignment.midpoint import SCORES, EndpointOutputs
from merge.alignment.pair import Alignment, Pair, check_kinds, head_kinds, in_canonical_form, streams
from merge.checkpoints.structure import structure_of
from merge.errors import AlignmentError, SpecError
from merge.symmetry.architectures import spec_for
from merge.symmetry.canonical import fold_norms
from merge.symmetry.transform import axis_sizes, folded_spec, restrict_transform

# The matchers that are tried.
TRIED = ("activations", "weights", "activations+weights")
BASES = ("permutation", "orthogonal")


@dataclass(frozen=True)
class Auto:
    """What may be tried.

    Attributes:
        axes: the kinds that move; None where they are to be chosen.
        basis: what moves inside heads, one of BASES; None for both.
        rotate: whether the norms of a pre-LN model may be folded and its residual stream rotated.
    """

    axes: frozenset[str] | None = None
    basis: str | None = None
    rotate: bool = False

    def __call__(self, pair: Pair, tell: Callable[[], Pair]) -> Choice:
        """Return the best alignment of a pair.

        Args:
            pair: without text.
            tell: returns the pair with its text, which is read only if the models do not come of one start.
        """
        if self.axes is not None:
            check_kinds(pair, self.axes)
        start = find_common_start(in_canonical_form(pair))
        if start.common:
            still = nothing(pair)
            return Choice((still,), still, None, (), start)
        pair = with_masked_words(tell())
        wanted = self._wanted(pair, start.away)
        if not pair.batches:
            found = Candidate(
                next(_alignments(in_canonical_form(pair), "weights", self.basis or BASES[0], wanted[-1:])),
                None,
                "weights",
                self.basis,
            )
            return Choice((found,), found, None, (), start)
        tried, left_out = self._candidates(pair, wanted)
        ends = EndpointOutputs(pair)
        scored, kind = scores([nothing(pair), *tried], pair, ends)
        groups = [(scored, pair)]
        if self.rotate and pair.spec.folded and self.axes is None and start.away - head_kinds(pair.kinds()):
            rotated, folded, faults = self._rotated(pair, ends)
            groups, left_out = [*groups, (rotated, folded)], (*left_out, *faults)
        scored = settled(groups, ends)
        return Choice(scored, best(scored), SCORES[kind], (*left_out, *ends.notes()), start)

    def _wanted(self, pair: Pair, away: frozenset[str]) -> Sequence[frozenset[str]]:
        """Return the sets of axes that candidates move, the last one whole."""
        if self.axes is not None:
            return (self.axes,)
        # Fine-tunes of one start whose heads were made anew: what lies below has its place.
        return (away,) if away <= head_kinds(pair.kinds()) else sets_of_axes(pair)

    def _candidates(
        self, pair: Pair, wanted: Sequence[frozenset[str]]
    ) -> tuple[tuple[Candidate, ...], tuple[str, ...]]:
        """Return every way of matching over every set of axes that is not one of those before it, and why others failed."""
        compared, still = in_canonical_form(pair), nothing(pair)
        found: dict[Hashable, Candidate] = {_key(still.alignment): still}
        faults: dict[str, None] = {}
        for by, basis in product(TRIED, BASES if self.basis is None else [self.basis]):
            try:
                for alignment in _alignments(compared, by, basis, wanted):
                    found.setdefault(_key(alignment), Candidate(alignment, None, by, basis))
            except AlignmentError as error:
                faults[f"not tried: {by}, {basis} inside heads ({error})"] = None
        size = {kinds: k for k, kinds in enumerate(wanted)}
        others = [candidate for candidate in found.values() if candidate is not still]
        return tuple(sorted(others, key=lambda c: size[frozenset(c.alignment.kinds)])), tuple(faults)

    def _rotated(self, pair: Pair, ends: EndpointOutputs) -> tuple[tuple[Candidate, ...], Pair, tuple[str, ...]]:
        """Return the candidates that rotate the residual stream, scored, of which pair, and why there are none."""
        try:
            folded = folded_pair(pair)
        except SpecError as error:
            return (), pair, (f"not tried: a rotation of the residual stream ({error})",)
        tried, faults = self._candidates(folded, [frozenset(folded.kinds())])
        if not tried:
            return (), pair, faults
        scored, _ = scores(tried, folded, ends)
        return tuple(replace(candidate, rotated=True) for candidate in scored), folded, faults


def _alignments(pair: Pair, by: str, basis: str, wanted: Sequence[frozenset[str]]) -> Iterator[Alignment]:
    """Yield what a matcher finds over each set of axes."""
    # Where the stream stays, its beginning hardly matters to weight matching: it ends where `weights` does.
    wanted = [kinds for kinds in wanted if by != "activations+weights" or streams(kinds)]
    if not wanted:
        return
    matcher = aligner(by)(replace(pair, settings=replace(pair.settings, basis=basis)))
    if by != "activations" or basis == "permutation":
        yield from map(matcher, wanted)
        return
    # What a unit responds to does not depend on the others: each axis is matched on its own, and the text is run once.
    whole, spec = matcher(wanted[-1]), pair.spec
    for kinds in wanted[:-1]:
        axes = (axis for axis in axis_sizes(spec, pair.shapes) if spec.kind(axis) in kinds)
        some = restrict_transform(whole.transform, axes)
        yield Alignment(some.permutation, tuple(k for k in pair.kinds() if k in kinds), (), some.maps)
    yield whole


def _key(alignment: Alignment) -> Hashable:
    """Return what two alignments have in common that are the same."""
    moves = (*alignment.permutation.indices.items(), *alignment.maps.items())
    return tuple((axis, tensor.numpy().tobytes()) for axis, tensor in sorted(moves, key=lambda move: move[0]))


def folded_pair(pair: Pair) -> Pair:
    """Return the pair with the gains of its norms folded into what reads them, and a residual stream that may be rotated.

    Raises:
        SpecError: they cannot be folded.
    """
    a, b = (fold_norms(pair.spec, pair.config, tensors) for tensors in (pair.a, pair.b))
    structure = structure_of(a.config)

    def written_name(name: str) -> str:
        return name if structure.writes_prefix else name.removeprefix(f"{structure.prefix}.")

    spec = folded_spec(spec_for(a.config))
    return replace(pair, spec=spec, a=a.tensors, b=b.tensors, config=a.config, written_name=written_name)


def agreed(choices: Sequence[Choice]) -> list[Choice]:
    """Return the choices of several models with a rotation of the residual stream kept by all of them or by none.

    Folded norms are written into the merged model, so that all models have to be folded for it.
    """
    if all(choice.kept.rotated for choice in choices):
        return list(choices)
    plain = [tuple(c for c in choice.candidates if not c.rotated) for choice in choices]
    return [
        replace(choice, kept=best(left)) if choice.kept.rotated else choice
        for choice, left in zip(choices, plain, strict=True)
    ]
