"""Choices: what every model of a run is aligned by, as the recipe's align entry says."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from merge.alignment.matchers import ALIGNERS, aligner
from merge.alignment.settings import AlignEntry
from merge.errors import AlignmentError, UsageError

if TYPE_CHECKING:
    from merge.alignment.choice.candidates import Choice
    from merge.alignment.pair import Alignment, Matcher, Pair
    from merge.symmetry.spec import PermutationSpec
    from merge.symmetry.transform import Transform
    from merge.symmetry.transform_files import Header


def choices(
    entry: AlignEntry, at: int, moving: Sequence[int], pairs: Callable[..., Pair], decided: Sequence[Choice]
) -> Iterator[tuple[int, Pair, Choice]]:
    """Yield (place, pair with the reference, what was chosen) of every checkpoint that moves."""
    from merge.alignment.choice.candidates import choose, fixed
    from merge.alignment.pair import in_canonical_form

    if decided:
        for k, choice in zip(moving, decided, strict=True):
            yield k, pairs(at, k, text=not choice.common), choice
        return
    if entry.by in ALIGNERS and ALIGNERS[entry.by].joint is not None:
        all_pairs = [pairs(at, k) for k in moving]
        forms = [in_canonical_form(pair) for pair in all_pairs]
        found = ALIGNERS[entry.by].align_jointly(forms, _kinds(entry, all_pairs[0]))
        yield from ((k, pair, fixed(one, entry.by)) for k, pair, one in zip(moving, all_pairs, found, strict=True))
        return
    if entry.apply is not None:
        if len(entry.apply) != len(moving):
            raise UsageError(
                f"{len(moving)} models move, and {len(entry.apply)} transforms are to be applied. Give one for each model but "
                "the reference, in their order, and the base's last."
            )
        for k, path in zip(moving, entry.apply, strict=True):
            pair = pairs(at, k)
            yield k, pair, fixed(_repeated(path, pair), path)
        return
    chosen = aligner(entry.by)
    for k in moving:
        pair = pairs(at, k)
        matchers: dict[str, Matcher] = {entry.by: chosen(pair if chosen.compares_merged else in_canonical_form(pair))}
        yield k, pair, choose(pair, matchers, _stated_kinds(entry, pair))


def decide(
    entry: AlignEntry, at: int, moving: Sequence[int], pairs: Callable[..., Pair], rotate: bool
) -> Sequence[Choice]:
    """Return what auto chooses for every checkpoint that moves."""
    from merge.alignment.choice.auto import Auto, agreed

    found = []
    for k in moving:
        pair = pairs(at, k, text=False)
        found.append(Auto(_stated_kinds(entry, pair), entry.basis, rotate)(pair, partial(pairs, at, k)))
    return agreed(found) if rotate else found


def _stated_kinds(entry: AlignEntry, pair: Pair) -> frozenset[str] | None:
    """Return the kinds of axes that were asked to move; None where they are to be chosen."""
    from merge.alignment.pair import streams

    if entry.axes is not None:
        return frozenset(entry.axes)
    if entry.residual is None:
        return None
    everything = frozenset(pair.kinds())
    return everything - streams(everything) if entry.residual == "identity" else everything


def _kinds(entry: AlignEntry, pair: Pair) -> frozenset[str]:
    stated = _stated_kinds(entry, pair)
    return frozenset(pair.kinds()) if stated is None else stated


def _repeated(path: str, pair: Pair) -> Alignment:
    """Return the alignment of an earlier run; where it moved the reference too, so does this."""
    from merge.alignment.pair import Alignment
    from merge.symmetry.transform_files import read_header

    file = Path(path).expanduser()
    found, beside = _loaded(file, pair), read_header(file).facts.get("reference")
    reference = {} if beside is None else _loaded(file.with_name(beside), pair).maps
    kinds = {pair.spec.kind(axis) for axis, (moved, _) in found.permutation.moved().items() if moved}
    kinds |= {pair.spec.kind(axis) for axis in found.maps}
    kept = tuple(kind for kind in pair.kinds() if kind in kinds)
    return Alignment(found.permutation, kept, (), found.maps, reference)


def _loaded(path: Path, pair: Pair) -> Transform:
    """Return the transform of a file, which fits the pair."""
    from merge.symmetry.permutation import identity
    from merge.symmetry.transform_files import load_transform

    found = load_transform(pair.spec, path)
    still = identity(pair.spec, pair.shapes).indices
    off = sorted(
        axis for axis, index in still.items() if found.permutation.indices.get(axis, index).shape != index.shape
    )
    if off or set(still) != set(found.permutation.indices):
        raise AlignmentError(
            f"{path} was made for a model of another size or head (axis {(off or sorted(still))[0]!r})."
        )
    return found


def rotates(entry: AlignEntry, spec: PermutationSpec) -> bool:
    """Return whether an alignment rotates the residual stream: as it was asked to, or as a file does that it applies.

    Raises:
        SpecError: a file is no transform.
    """
    if entry.apply is None:
        return entry.residual == "rotation"
    return any(len(header.maps.get(stream, ())) == 2 for header in _headers(entry) for stream in spec.folded)


def keeps_canonical(entry: AlignEntry) -> bool:
    """Return whether canonical weights are kept: as was asked, or as they were where a file that is applied was written.

    Raises:
        SpecError: a file is no transform.
    """
    return entry.canonical == "keep" or any(header.facts.get("canonical") == "keep" for header in _headers(entry))


def _headers(entry: AlignEntry) -> list[Header]:
    from merge.symmetry.transform_files import read_header

    return [read_header(Path(path).expanduser()) for path in entry.apply or ()]
