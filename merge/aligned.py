"""Aligned: every model of a run brought into the units of the reference, each proved to be the model it was."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from merge.alignment import AS_MERGED, MANY, aligner, many_aligner
from merge.architectures import spec_for
from merge.checkpoint import Checkpoint
from merge.errors import AlignmentError, UsageError, nearest
from merge.head_plan import HeadPlan
from merge.material import Material, finite_tensors, read_material
from merge.progress import Progress, silent
from merge.recipe import Recipe
from merge.recipe_entries import AlignEntry
from merge.sentence_transformers import without_modules

if TYPE_CHECKING:
    from torch import Tensor

    from merge.alignment.choice import Choice
    from merge.alignment.pair import Alignment, Batch, Matcher, Pair
    from merge.alignment.proof import Proof
    from merge.permutation import Permutation
    from merge.spec import PermutationSpec
    from merge.transform import Transform


@dataclass(frozen=True)
class Aligned:
    """What alignment did to one model.

    Attributes:
        source, reference: the model, and the one it was aligned to.
        by: the matcher, or the file that an earlier one wrote.
        model: its place in the run.
        transform: of its units, classes aside.
        spec: which the transform is read by.
        moved: kind of axis -> (units that change place, units).
    """

    source: str
    reference: str
    by: str
    model: int
    choice: Choice
    proof: Proof
    transform: Transform
    spec: PermutationSpec
    moved: Mapping[str, tuple[int, int]]

    def to_json(self) -> dict[str, Any]:
        """Return the figures for the manifest."""
        candidates = [{"axes": list(c.alignment.kinds), "by": c.by, "score": c.score} for c in self.choice.candidates]
        return {
            "model": self.source,
            "reference": self.reference,
            "by": self.by,
            "candidates": candidates,
            "score": self.choice.score,
            "kept": list(self.choice.kept.alignment.kinds),
            "objective": list(self.choice.kept.alignment.objective),
            "moved": {kind: list(counts) for kind, counts in self.moved.items()},
            "maps": sorted(self.transform.maps),
            "proof": asdict(self.proof),
        }


@dataclass(frozen=True)
class Alignments:
    """What takes each checkpoint to the reference's units, None for one that stays, and what was done for it."""

    transforms: tuple[Transform | None, ...]
    aligned: tuple[Aligned, ...]
    calibration: str | None
    notes: tuple[str, ...]


def align_all(
    recipe: Recipe,
    checkpoints: Sequence[Checkpoint],
    spec: PermutationSpec,
    labels: Sequence[Permutation | None],
    heads: HeadPlan,
    progress: Progress = silent,
) -> Alignments:
    """Return what aligns every checkpoint to the recipe's reference, each proved on its own model.

    Args:
        checkpoints: the models, and the base behind them where there is one.
        spec: of the reference.
        labels: what brings the classes of each into one order; applied before anything is compared.
        heads: which models go on with a head that others do not have.
    Raises:
        AlignmentError, CalibrationError, SpecError: from the alignment.
    """
    from merge.inputs import random_inputs

    entry, at = recipe.align, reference_of(recipe.align, checkpoints)
    spec, stand_in = _without_pooler(_spec_moved(spec, entry), checkpoints[at])
    spec.fit(checkpoints[at].shapes)
    material = read_material(entry, recipe.seed, checkpoints[at])
    inputs = material.batches or random_inputs(checkpoints[at].config, recipe.seed)
    moving = [k for k in range(len(checkpoints)) if k != at] or [at]
    pairs = _pairs(recipe, checkpoints, spec, labels, stand_in, material, progress)
    transforms: list[Transform | None] = [None] * len(checkpoints)
    aligned: list[Aligned] = []
    for k, pair, choice in _choices(entry, at, moving, pairs):
        kept = choice.kept.alignment
        found, own, proof = kept.transform, spec, _proved(pair, kept.transform, inputs)
        if not heads.whole and k < len(heads.models) and heads.carried[k] is not heads.merged[k]:
            found, own, proof = _carry(heads.carried[k], found, inputs)
        transforms[k] = found
        if kept.reference_maps:
            transforms[at] = _moved_reference(pair, kept, inputs, len(moving))
        by, to = entry.apply or entry.by, checkpoints[at].source
        aligned.append(
            Aligned(checkpoints[k].source, to, by, k, choice, proof, found, own, _moved_by_kind(pair, found))
        )
    return Alignments(tuple(transforms), tuple(aligned), material.source, material.notes)


def reference_of(entry: AlignEntry, checkpoints: Sequence[Checkpoint]) -> int:
    """Return the place of the model that the others are aligned to.

    Raises:
        UsageError: the entry names none of the models.
    """
    if entry.reference is None:
        return 0
    names = [checkpoint.source for checkpoint in checkpoints]
    if entry.reference not in names:
        raise UsageError(f"reference {entry.reference!r} is not one of the models.{nearest(entry.reference, names)}")
    return names.index(entry.reference)


def _spec_moved(spec: PermutationSpec, entry: AlignEntry) -> PermutationSpec:
    """Return the spec with the group of the residual stream that was asked for."""
    from merge.transform import folded_spec

    return folded_spec(spec) if entry.residual == "rotation" else spec


def _pairs(
    recipe: Recipe,
    checkpoints: Sequence[Checkpoint],
    spec: PermutationSpec,
    labels: Sequence[Permutation | None],
    stand_in: Mapping[str, Tensor],
    material: Material,
    progress: Progress,
) -> Callable[[int, int], Pair]:
    """Return what makes the pair of two checkpoints by their places; a model that was read last is not read again."""
    from merge.alignment.pair import Pair, Settings
    from merge.permutation import apply

    entry = recipe.align
    settings = Settings(entry.basis or "permutation", entry.restarts, entry.steps, entry.both, recipe.seed)
    reference = checkpoints[reference_of(entry, checkpoints)]

    @lru_cache(maxsize=2)
    def tensors(k: int) -> dict[str, Tensor]:
        own, order = finite_tensors(checkpoints[k]), labels[k]
        return (own if order is None else apply(spec, order, own)) | dict(stand_in)

    def pair(a: int, b: int) -> Pair:
        config, name = reference.config, reference.written_name
        told = (material.labels, material.mask_token, material.special_tokens)
        return Pair(spec, tensors(a), tensors(b), config, name, material.batches, progress, settings, *told)

    return pair


def _choices(
    entry: AlignEntry, at: int, moving: Sequence[int], pairs: Callable[[int, int], Pair]
) -> Iterator[tuple[int, Pair, Choice]]:
    """Yield (place, pair with the reference, what was chosen) of every checkpoint that moves."""
    from merge.alignment.choice import choose, fixed

    if entry.by in MANY:
        all_pairs = [pairs(at, k) for k in moving]
        found = many_aligner(entry.by)([_canonical(pair) for pair in all_pairs], _kinds(entry, all_pairs[0]))
        yield from ((k, pair, fixed(one, entry.by)) for k, pair, one in zip(moving, all_pairs, found, strict=True))
        return
    for k in moving:
        pair = pairs(at, k)
        if entry.apply is not None:
            yield k, pair, fixed(_repeated(entry.apply, pair), entry.apply)
            continue
        matchers: dict[str, Matcher] = {
            entry.by: aligner(entry.by)(pair if entry.by in AS_MERGED else _canonical(pair))
        }
        yield k, pair, choose(pair, matchers, _stated_kinds(entry, pair))


def _canonical(pair: Pair) -> Pair:
    """Return the pair as it is compared: without what the outputs cannot show."""
    from merge.gauges import canonical

    a, b = (canonical(pair.spec, pair.config, tensors) for tensors in (pair.a, pair.b))
    return replace(pair, a=a, b=b)


def _stated_kinds(entry: AlignEntry, pair: Pair) -> frozenset[str] | None:
    """Return the kinds of axes that were asked to move; None where they are to be chosen."""
    from merge.alignment.choice import streams

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
    """Return the alignment of an earlier run."""
    from merge.alignment.pair import Alignment
    from merge.permutation import identity
    from merge.transform import load_transform

    found = load_transform(pair.spec, Path(path).expanduser())
    still = identity(pair.spec, pair.shapes).indices
    off = sorted(
        axis for axis, index in still.items() if found.permutation.indices.get(axis, index).shape != index.shape
    )
    if off or set(still) != set(found.permutation.indices):
        raise AlignmentError(
            f"{path} was made for a model of another size or head (axis {(off or sorted(still))[0]!r})."
        )
    kinds = {pair.spec.kind(axis) for axis, (moved, _) in found.permutation.moved().items() if moved}
    kinds |= {pair.spec.kind(axis) for axis in found.maps}
    return Alignment(found.permutation, tuple(kind for kind in pair.kinds() if kind in kinds), (), found.maps)


def _proved(pair: Pair, transform: Transform, inputs: tuple[Batch, ...]) -> Proof:
    from merge.alignment.proof import prove
    from merge.transform import apply_transform

    return prove(pair, apply_transform(pair.spec, transform, pair.b), transform, inputs)


def _moved_reference(pair: Pair, kept: Alignment, inputs: tuple[Batch, ...], moving: int) -> Transform:
    """Return what moves the reference where both ends were asked to, proved as the other's is."""
    from merge.permutation import identity
    from merge.transform import Transform

    if moving > 1:
        raise AlignmentError("--both moves the reference towards one model; with several models leave it where it is.")
    transform = Transform(identity(pair.spec, pair.shapes), kept.reference_maps)
    _proved(replace(pair, b=pair.a), transform, inputs)
    return transform


def _without_pooler(spec: PermutationSpec, reference: Checkpoint) -> tuple[PermutationSpec, dict[str, Tensor]]:
    """Return the spec and stand-ins for a pooler that the base models are aligned without: zeros, on no axis."""
    import torch

    absent = {reference.canonical_name(name): shape for name, shape in reference.structure.shapes.items()}
    absent = {n: s for n, s in absent.items() if n not in reference.tensors and ".pooler." in n}
    if not absent:
        return spec, {}
    axes = {name for line in absent for name in spec.axes(line)[0].names}

    def still(lines: Mapping[str, str]) -> dict[str, str]:
        return {n: " ".join("-" if i.rstrip("'=") in axes else i for i in line.split(" ")) for n, line in lines.items()}

    taps = {axis: sites for axis, sites in spec.taps.items() if axis not in axes}
    without = replace(spec, lines=still(spec.lines), outputs=still(spec.outputs), taps=taps)
    return without, {name: torch.zeros(shape) for name, shape in absent.items()}


def _carry(model: Checkpoint, found: Transform, inputs: Sequence[Batch]) -> tuple[Transform, PermutationSpec, Proof]:
    """Return the transform of a base model over what goes along with it, its spec, and its proof on the outputs of the whole."""
    from merge.alignment.pair import Pair
    from merge.permutation import Permutation, identity
    from merge.transform import Transform

    whole = without_modules(model)
    spec, stand_in = _without_pooler(spec_for(whole.config), whole)
    tensors, still = finite_tensors(whole) | stand_in, identity(spec, whole.shapes)
    indices = {axis: found.permutation.indices.get(axis, index) for axis, index in still.indices.items()}
    moved = Transform(Permutation(indices, still.outer), found.maps)
    pair = Pair(spec, tensors, tensors, whole.config, whole.written_name, tuple(inputs))
    return moved, spec, _proved(pair, moved, tuple(inputs))


def _moved_by_kind(pair: Pair, transform: Transform) -> dict[str, tuple[int, int]]:
    """Return kind of axis -> (units that change place, units), summed over layers; heads count as blocks."""
    permutation = transform.permutation
    totals: dict[str, tuple[int, int]] = {}
    for axis, (moved, units) in permutation.moved().items():
        if axis in pair.spec.named:
            continue
        kind = pair.spec.kind(axis) if axis not in permutation.outer else f"inside {pair.spec.kind(axis)}"
        old = totals.get(kind, (0, 0))
        totals[kind] = (old[0] + moved, old[1] + units)
    return totals
