"""Models of one plan aligned to the first before their layers are taken."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from merge.alignment.settings import AlignEntry
from merge.checkpoints.checkpoint import Checkpoint, finite_tensors
from merge.checkpoints.modules import is_module_tensor
from merge.errors import MismatchError, UsageError

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class AlignedModels:
    """What alignment did.

    Attributes:
        moved: number of a model -> its tensors in the units of the first, each computed when it is read.
        facts: figures for the manifest, one record a model.
        sentences: for terminal and card.
        notes: for the user.
    """

    moved: Mapping[int, Mapping[str, Tensor]]
    facts: list[dict[str, Any]]
    sentences: tuple[str, ...]
    notes: tuple[str, ...]


def align_models(models: Sequence[Checkpoint], settings: AlignEntry, seed: int = 0) -> AlignedModels:
    """Return every model in the units of the first, each proved to compute what it computed before.

    Raises:
        UsageError: settings that a plan has no use for, or one model alone.
        MismatchError: the models are not of one class and size.
        SpecError, AlignmentError, CalibrationError: from the alignment.
    """
    from merge.alignment.align import align_all
    from merge.alignment.task import AlignmentTask
    from merge.symmetry.transform import moved_when_read

    if len(models) < 2:
        raise UsageError("--align puts the units of models into one order; this plan has one model. Leave it out.")
    if settings.repair or settings.both or settings.residual == "rotation":
        raise UsageError(
            "a layer plan aligns by permutations and bases inside heads; leave out repair, both and rotations."
        )
    encoders = [model.encoder for model in models]
    first = encoders[0]
    for other in encoders[1:]:
        if (first.architecture, first.shapes) != (other.architecture, other.shapes):
            raise MismatchError(
                f"{other.source} ({other.architecture}) cannot be aligned to {first.source} ({first.architecture}): an alignment "
                "needs one class, one number of layers and the same sizes."
            )
    result = align_all(AlignmentTask(settings, tuple(encoders), seed=seed))
    moved, sentences = {}, []
    for record in result.aligned:
        units = ", ".join(f"{kind} {count} of {total}" for kind, (count, total) in record.moved.items()) or "nothing"
        sentences.append(
            f"{record.source} was aligned to {record.reference} by {record.by}: units that moved: {units}; outputs changed by "
            f"{record.proof.error:.1e} standard deviations"
        )
        if record.transform.is_identity:
            continue
        encoder = encoders[record.model]
        tensors = dict(moved_when_read(record.spec, record.transform, finite_tensors(encoder)))
        cast = {
            name: tensor.to(encoder.tensor(name).dtype) for name, tensor in tensors.items() if name in encoder.tensors
        }
        modules = {n: models[record.model].tensor(n) for n in models[record.model].tensors if is_module_tensor(n)}
        extra = {n: encoder.tensor(n) for n in encoder.tensors if n not in cast}
        moved[record.model] = {**cast, **extra, **modules}
    facts = [record.to_json() for record in result.aligned]
    return AlignedModels(moved, facts, tuple(sentences), result.notes)
