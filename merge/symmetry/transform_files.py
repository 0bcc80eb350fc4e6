"""Transform files: a transform as safetensors, which `--apply` reads.

The tensor `permutation/AXIS` is an index array, `map/AXIS` a map. The metadata has one entry, `transform`, a JSON
object with the format's version, the family, the outer axis of each inner one, and two facts of the run that wrote it
(ENTRIES).
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from merge.disk.atomic import write_atomic
from merge.disk.documents import check_regular, parse_json
from merge.errors import SpecError
from merge.symmetry.permutation import Permutation
from merge.symmetry.spec import PermutationSpec
from merge.symmetry.transform import Transform, check_transform

FORMAT = 1
# The entries of the metadata and their types; the defaults of those that may be absent.
ENTRIES = {"format": int, "family": str, "outer": dict, "reference": str, "canonical": str}
OPTIONAL = {"reference": "", "canonical": ""}


def save_transform(
    spec: PermutationSpec, transform: Transform, path: Path, reference: str | None = None, canonical: bool = False
) -> None:
    """Write a transform file; it appears whole or not at all.

    Args:
        reference: name of the file in the same folder with the transform of the reference, where that is transformed
            too.
        canonical: whether the transform acts on canonical weights (`merge.symmetry.canonical`), which were kept.
    Raises:
        SpecError: a map is not in the group of its axis.
    """
    from safetensors import torch as safetensors

    check_transform(spec, transform)
    tensors = {f"permutation/{axis}": index.contiguous() for axis, index in transform.permutation.indices.items()}
    tensors |= {f"map/{axis}": mapped.contiguous() for axis, mapped in transform.maps.items()}
    facts: dict[str, object] = {"format": FORMAT, "family": spec.family}
    facts["outer"] = dict(sorted(transform.permutation.outer.items()))
    if reference is not None:
        facts["reference"] = reference
    if canonical:
        facts["canonical"] = "keep"
    # One entry only: safetensors writes several in an order that changes from call to call, and files must repeat to
    # the byte.
    data = safetensors.save(tensors, metadata={"transform": json.dumps(facts)})
    write_atomic(path, data)


@dataclass(frozen=True)
class Header:
    """The facts of a transform file that need none of its tensors.

    Attributes:
        facts: its metadata: format, family, outer, reference, canonical.
        maps: axis -> shape of its map.
    """

    facts: Mapping[str, Any]
    maps: Mapping[str, tuple[int, ...]]


def read_header(path: Path) -> Header:
    """Return the header of a transform file.

    Raises:
        SpecError: the file cannot be read, or is no transform.
    """
    with _opened(path) as file:
        shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118 - has no __iter__
        maps = {name.removeprefix("map/"): shape for name, shape in shapes.items() if name.startswith("map/")}
        return Header(_facts(file, path), maps)


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    from safetensors import SafetensorError, safe_open

    try:
        check_regular(path)
        with safe_open(path, framework="pt") as file:
            yield file
    except FileNotFoundError as error:
        raise SpecError(f"{path} cannot be read as a transform: there is no such file.") from error
    except (OSError, SafetensorError) as error:
        raise SpecError(f"{path} cannot be read as a transform: {error}") from error


def _facts(file: Any, path: Path) -> dict[str, Any]:
    facts = parse_json((file.metadata() or {}).get("transform", "null"), f"{path}: its metadata", SpecError)
    if facts is None:
        raise SpecError(
            f"{path} is no transform: its metadata has no entry 'transform'. Is it the transform.safetensors of an aligned merge?"
        )
    faulty = [] if isinstance(facts, dict) else ["transform"]
    faulty = faulty or [key for key, kind in ENTRIES.items() if not isinstance(facts.get(key, OPTIONAL.get(key)), kind)]
    if faulty or not all(isinstance(name, str) for name in facts["outer"].values()):
        raise SpecError(
            f"{path} is malformed: entry {(faulty or ['outer'])[0]!r} of its metadata is missing or of the wrong type."
        )
    # A path would let a downloaded file name any other on this machine.
    reference = facts.get("reference", "x")
    if reference in ("", "..") or Path(reference).name != reference:
        raise SpecError(
            f"{path} is malformed: entry 'reference' of its metadata must be the name of a file in its folder."
        )
    return dict(facts)


def load_transform(spec: PermutationSpec, path: Path) -> Transform:
    """Return the transform in a file that `save_transform` wrote.

    Raises:
        SpecError: the file is no transform, has another format or family, or a map is not in the group of its axis.
    """
    with _opened(path) as file:
        facts = _facts(file, path)
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - has no __iter__
    if facts["format"] != FORMAT:
        raise SpecError(f"{path} is a transform of format {facts['format']}; this version reads {FORMAT}.")
    if facts["family"] != spec.family:
        raise SpecError(f"{path} is a transform of {facts['family']}, not of {spec.family}.")
    parts: dict[str, dict[str, Tensor]] = {"permutation": {}, "map": {}}
    for name, tensor in tensors.items():
        part, _, axis = name.partition("/")
        if part not in parts or not axis or (part == "permutation" and not _is_order(tensor)):
            raise SpecError(f"{path} is malformed: {name!r} is neither an index array of an axis nor a map.")
        parts[part][axis] = tensor
    if missing := sorted(set(facts["outer"].values()) - parts["permutation"].keys()):
        raise SpecError(f"{path} is malformed: axis {missing[0]!r} of its metadata has no index array.")
    transform = Transform(Permutation(parts["permutation"], facts["outer"]), parts["map"])
    try:
        check_transform(spec, transform)
    except SpecError as error:
        raise SpecError(f"{path}: {error}") from error
    return transform


def _is_order(index: Tensor) -> bool:
    """Return whether every row of an index array names each unit once."""
    if index.dtype != torch.int64 or index.ndim not in (1, 2):
        return False
    return bool((index.sort(-1).values == torch.arange(index.shape[-1])).all())
