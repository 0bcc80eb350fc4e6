"""Choose an alignment automatically: none for two models of one start, else the best of many candidates, without labels.

The weights alone show whether two models have one start, `merge.alignment.choice.common_start`: those are kept as they are,
no text is read and no model is run. For others every matcher in TRIED is tried over every set of axes, with permutations and
with rotations inside heads; for pre-LN models also with a rotation of the residual stream, for which the gains of their norms
are folded. All candidates are scored together, `merge.alignment.choice.candidates`; moving nothing is always one of them.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import product

from merge.alignment.choice.candidates import (
    Candidate,
    Choice,
    best,
    known_outputs,
    scores,
    sets_of_kinds,
    unmoved,
    with_line_scores,
)
from merge.alignment.choice.common_start import find_common_start
from merge.alignment.choice.race import Race, run_race
from merge.alignment.choice.text_part import parts_for_race
from merge.alignment.masking import with_masked_words
from merge.alignment.matchers import aligner
from merge.alignment.midpoint import SCORES, EndpointOutputs
from merge.alignment.pair import Alignment, Pair, Shared, check_kinds, head_kinds, in_canonical_form, streams
from merge.checkpoints.structure import structure_of
from merge.errors import AlignmentError, SpecError
from merge.machine import return_freed_memory
from merge.progress import begin_phase
from merge.symmetry.architectures import spec_for
from merge.symmetry.canonical import fold_norms
from merge.symmetry.transform import axis_sizes, folded_spec, restrict_transform

# The matchers that are tried.
TRIED = ("activations", "weights", "activations+weights")
BASES = ("permutation", "orthogonal")


@dataclass(frozen=True)
class Auto:
    """Chooses the alignment of a pair.

    Attributes:
        axes: the kinds of axes that move; None where they are to be chosen.
        basis: what moves inside heads, one of BASES; None for both.
        rotate: whether the norms of a pre-LN model may be folded and its residual stream rotated.
    """

    axes: frozenset[str] | None = None
    basis: str | None = None
    rotate: bool = False

    def __call__(self, pair: Pair, with_text: Callable[[], Pair]) -> Choice:
        """Return the best alignment of a pair.

        Args:
            pair: without text.
            with_text: returns the pair with its text, which is read only if the models do not have one start.
        """
        if self.axes is not None:
            check_kinds(pair, self.axes)
        start = find_common_start(in_canonical_form(pair))
        if start.common:
            identity = unmoved(pair)
            return Choice((identity,), identity, None, (), start)
        pair = with_masked_words(with_text())
        sets = self._sets_of_kinds(pair, start.away)
        if not pair.batches:
            matched = _alignments(in_canonical_form(pair), "weights", self.basis or BASES[0], sets[-1:])
            only = Candidate(next(matched), None, "weights", self.basis)
            return Choice((only,), only, None, (), start)
        begin_phase("matching units by every matcher")
        tried, left_out, race = self._candidates(pair, sets)
        rotates = self.rotate and pair.spec.folded and self.axes is None and start.away - head_kinds(pair.kinds())
        if race is not None:
            groups: list[tuple[Sequence[Candidate], Pair]] = [([unmoved(pair), *tried], pair)]
            if rotates:
                rotated, folded, faults = self._rotated(pair)
                groups, left_out = [*groups, (rotated, folded)], (*left_out, *faults)
            scored, notes = run_race(groups, race)
            return Choice(scored, best(scored), SCORES[race.kind], (*left_out, *notes), start)
        ends = EndpointOutputs(pair, known_outputs(tried))
        scored, kind, notes = scores([unmoved(pair), *tried], pair, ends, alone=not rotates)
        groups = [(scored, pair)]
        if rotates:
            rotated, folded, faults = self._rotated(pair)
            rotated = scores(rotated, folded, ends)[0] if rotated else ()
            groups, left_out = [*groups, (rotated, folded)], (*left_out, *faults)
        scored = with_line_scores(groups, ends)
        return Choice(scored, best(scored), SCORES[kind], (*left_out, *notes), start)

    def _sets_of_kinds(self, pair: Pair, away: frozenset[str]) -> Sequence[frozenset[str]]:
        """Return the sets of kinds of axes that candidates move, the largest last.

        Args:
            away: the kinds on which the models do not have one start.
        """
        if self.axes is not None:
            return (self.axes,)
        # Fine-tunes of one start whose task heads were initialised anew: all layers share a basis.
        return (away,) if away <= head_kinds(pair.kinds()) else sets_of_kinds(pair)

    def _candidates(
        self, pair: Pair, sets: Sequence[frozenset[str]]
    ) -> tuple[tuple[Candidate, ...], tuple[str, ...], Race | None]:
        """Return the different alignments by all matchers over all sets of kinds, and notes on what was not tried.

        Where models are large, with a race: a set that the first matcher, the cheapest, shows to be clearly behind is left to
        no other.
        """
        compared, identity = replace(in_canonical_form(pair), shared=Shared()), unmoved(pair)
        candidates: dict[Hashable, Candidate] = {_key(identity.alignment): identity}
        faults: dict[str, None] = {}
        race, size = None, {kinds: k for k, kinds in enumerate(sets)}
        for by, basis in product(TRIED, BASES if self.basis is None else [self.basis]):
            try:
                for alignment in _alignments(compared, by, basis, sets):
                    candidates.setdefault(_key(alignment), Candidate(alignment, None, by, basis))
            except AlignmentError as error:
                faults[f"not tried: {by}, {basis} inside heads ({error})"] = None
            return_freed_memory()
            if race is None and parts_for_race(pair):
                race = Race(pair, known_outputs([*candidates.values()]))
                sets, behind = _sets_ahead([*candidates.values()], sets, race)
                faults |= dict.fromkeys(behind)
                begin_phase("matching units by every matcher")
        others = [candidate for candidate in candidates.values() if candidate is not identity]
        return tuple(sorted(others, key=lambda c: size[frozenset(c.alignment.kinds)])), tuple(faults), race

    def _rotated(self, pair: Pair) -> tuple[tuple[Candidate, ...], Pair, tuple[str, ...]]:
        """Return the candidates that rotate the residual stream, the pair they align, and notes where there are none."""
        try:
            folded = folded_pair(pair)
        except SpecError as error:
            return (), pair, (f"not tried: a rotation of the residual stream ({error})",)
        tried, faults, _ = self._candidates(folded, [frozenset(folded.kinds())])
        if not tried:
            return (), pair, faults
        return tuple(replace(candidate, rotated=True) for candidate in tried), folded, faults


def _sets_ahead(
    candidates: Sequence[Candidate], sets: Sequence[frozenset[str]], race: Race
) -> tuple[Sequence[frozenset[str]], list[str]]:
    """Return the sets of kinds with a candidate that is not clearly behind, all where none has one, and notes on the others."""
    if len(sets) < 2 or len(candidates) < 2:
        return sets, []
    ahead = {
        frozenset(c.alignment.kinds)
        for c, near in zip(candidates, race.ahead(candidates, race.pair), strict=True)
        if near
    }
    tried = {frozenset(c.alignment.kinds) for c in candidates}
    left = [kinds for kinds in sets if kinds in ahead or kinds not in tried]
    if not left:
        return sets, []
    behind = [", ".join(k for k in race.pair.kinds() if k in kinds) for kinds in sets if kinds not in left]
    note = f"over {'; over '.join(behind)}: only one matcher was tried, as the text puts them clearly behind"
    return left, [note] if behind else []


def _alignments(pair: Pair, by: str, basis: str, sets: Sequence[frozenset[str]]) -> Iterator[Alignment]:
    """Yield the alignment by a matcher over each set of kinds of axes."""
    # Where the stream does not move, its start hardly matters to weight matching: it ends where `weights` does.
    sets = [kinds for kinds in sets if by != "activations+weights" or streams(kinds)]
    if not sets:
        return
    matcher = aligner(by)(replace(pair, settings=replace(pair.settings, basis=basis)))
    if by != "activations" or basis == "permutation":
        yield from map(matcher, sets)
        return
    # Activations match each axis independently of the others, so the text is run once, for the largest set.
    whole, spec = matcher(sets[-1]), pair.spec
    for kinds in sets[:-1]:
        axes = (axis for axis in axis_sizes(spec, pair.shapes) if spec.kind(axis) in kinds)
        part = restrict_transform(whole.transform, axes)
        yield Alignment(part.permutation, tuple(k for k in pair.kinds() if k in kinds), (), part.maps)
    yield whole


def _key(alignment: Alignment) -> Hashable:
    """Return a key that is equal for equal alignments."""
    moves = (*alignment.permutation.indices.items(), *alignment.maps.items())
    return tuple((axis, tensor.numpy().tobytes()) for axis, tensor in sorted(moves, key=lambda move: move[0]))


def folded_pair(pair: Pair) -> Pair:
    """Return the pair with the gains of its norms folded into the weights that read them; its stream may be rotated.

    Raises:
        SpecError: the norms of this architecture cannot be folded.
    """
    a, b = (fold_norms(pair.spec, pair.config, tensors) for tensors in (pair.a, pair.b))
    structure = structure_of(a.config)

    def written_name(name: str) -> str:
        return name if structure.writes_prefix else name.removeprefix(f"{structure.prefix}.")

    spec = folded_spec(spec_for(a.config))
    return replace(pair, spec=spec, a=a.tensors, b=b.tensors, config=a.config, written_name=written_name)


def agreed(choices: Sequence[Choice]) -> list[Choice]:
    """Return the choices of several models with a rotation of the residual stream kept for all of them or for none.

    Folded norms are written into the merged model, so all models have to be folded for it.
    """
    if all(choice.kept.rotated for choice in choices):
        return list(choices)
    plain = [tuple(c for c in choice.candidates if not c.rotated) for choice in choices]
    return [
        replace(choice, kept=best(left)) if choice.kept.rotated else choice
        for choice, left in zip(choices, plain, strict=True)
    ]
