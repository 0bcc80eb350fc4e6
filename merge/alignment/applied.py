"""Transforms of earlier runs that are applied instead of matching, and the rewrites of models that they ask for."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from merge.alignment.settings import AlignEntry
from merge.errors import AlignmentError

if TYPE_CHECKING:
    from merge.alignment.pair import Alignment, Pair
    from merge.symmetry.spec import PermutationSpec
    from merge.symmetry.transform import Transform
    from merge.symmetry.transform_files import Header


def rotates_stream(settings: AlignEntry, spec: PermutationSpec) -> bool:
    """Return whether the settings rotate the residual stream, or apply a file that does.

    Raises:
        SpecError: a file is no transform.
    """
    if settings.apply is None:
        return settings.residual == "rotation"
    return any(len(header.maps.get(stream, ())) == 2 for header in _headers(settings) for stream in spec.folded)


def keeps_canonical(settings: AlignEntry) -> bool:
    """Return whether the settings keep canonical weights, or apply a file of a run that did.

    Raises:
        SpecError: a file is no transform.
    """
    return settings.canonical == "keep" or any(h.facts.get("canonical") == "keep" for h in _headers(settings))


def _headers(settings: AlignEntry) -> list[Header]:
    from merge.symmetry.transform_files import read_header

    return [read_header(Path(path).expanduser()) for path in settings.apply or ()]


def applied_alignment(path: str, pair: Pair) -> Alignment:
    """Return the alignment of an earlier run; it moves the reference too where that run did.

    Raises:
        AlignmentError: the file was made for a model of another size or head.
        SpecError: the file is no transform.
    """
    from merge.alignment.pair import Alignment
    from merge.symmetry.transform_files import read_header

    file = Path(path).expanduser()
    transform, beside = _load(file, pair), read_header(file).facts.get("reference")
    reference_maps = {} if beside is None else _load(file.with_name(beside), pair).maps
    moved = {pair.spec.kind(axis) for axis, (units, _) in transform.permutation.moved().items() if units}
    moved |= {pair.spec.kind(axis) for axis in transform.maps}
    kinds = tuple(kind for kind in pair.kinds() if kind in moved)
    return Alignment(transform.permutation, kinds, (), transform.maps, reference_maps)


def _load(path: Path, pair: Pair) -> Transform:
    """Return the transform of a file, checked to fit the pair."""
    from merge.symmetry.permutation import identity
    from merge.symmetry.transform_files import load_transform

    transform = load_transform(pair.spec, path)
    indices, expected = transform.permutation.indices, identity(pair.spec, pair.shapes).indices
    wrong = sorted(axis for axis, index in expected.items() if indices.get(axis, index).shape != index.shape)
    if wrong or set(expected) != set(indices):
        axis = (wrong or sorted(expected))[0]
        raise AlignmentError(f"{path} was made for a model of another size or head (axis {axis!r}).")
    return transform
