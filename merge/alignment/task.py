"""The task of an alignment: the checkpoints, the settings, and the pairs that matchers read."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache, partial
from typing import TYPE_CHECKING

from merge.alignment.applied import rotates_stream
from merge.alignment.reading import NO_TEXT, AlignmentText, read_alignment_text
from merge.alignment.settings import AlignEntry
from merge.checkpoints.checkpoint import Checkpoint, absent_pooler, finite_tensors
from merge.errors import UsageError, nearest
from merge.symmetry.architectures import spec_for

if TYPE_CHECKING:
    from torch import Tensor

    from merge.alignment.pair import Pair
    from merge.symmetry.permutation import Permutation
    from merge.symmetry.spec import PermutationSpec


@dataclass(frozen=True)
class AlignmentTask:
    """Checkpoints that are aligned to one of them, the reference.

    Attributes:
        settings: how they are aligned, and which is the reference.
        checkpoints: the models, then the base where there is one; all of one architecture.
        labels: for each checkpoint the permutation that brings its classes into the reference's order, None where it has
            that order; empty where all have. It is applied before anything is compared.
        seed: of everything random.
        device: where models run and the large products are taken.
        rotated: whether the residual stream may be rotated although the settings do not state it: norms are folded.
        text_read: the text of the alignment, where it has been read before.
    """

    settings: AlignEntry
    checkpoints: tuple[Checkpoint, ...]
    labels: tuple[Permutation | None, ...] = ()
    seed: int = 0
    device: str = "cpu"
    rotated: bool = False
    text_read: AlignmentText | None = None

    @cached_property
    def reference_number(self) -> int:
        """The number of the reference among the checkpoints."""
        return reference_of(self.settings, self.checkpoints)

    @property
    def reference(self) -> Checkpoint:
        return self.checkpoints[self.reference_number]

    @property
    def moving(self) -> list[int]:
        """The numbers of the checkpoints that are aligned to the reference."""
        return [k for k in range(len(self.checkpoints)) if k != self.reference_number] or [self.reference_number]

    @cached_property
    def spec(self) -> PermutationSpec:
        """The spec that the checkpoints are aligned by.

        Raises:
            SpecError: the architecture has no table, or the reference does not fit it.
        """
        spec = self.spec_of(self.checkpoints[0], self.reference)
        spec.fit(self.reference.shapes)
        return spec

    @cached_property
    def text(self) -> AlignmentText:
        """The calibration text, read when it is first asked for.

        Raises:
            CalibrationError, MismatchError: as `read_alignment_text`.
        """
        return self.text_read or read_alignment_text(self.settings, self.seed, self.reference)

    def spec_of(self, checkpoint: Checkpoint, reference: Checkpoint) -> PermutationSpec:
        """Return the spec of an architecture: its residual stream rotates where asked, a pooler not stored does not move."""
        from merge.symmetry.transform import folded_spec

        spec = spec_for(checkpoint.config)
        if self.rotated or rotates_stream(self.settings, spec):
            spec = folded_spec(spec)
        return _with_fixed_pooler(spec, absent_pooler(reference))

    def pair(self, k: int, text: bool = True) -> Pair:
        """Return the pair of the reference and checkpoint k; without text none is read."""
        from merge.alignment.pair import Pair, Settings, TextFacts

        settings, reference = self.settings, self.reference
        text_read = self.text if text else NO_TEXT
        return Pair(
            self.spec,
            self._tensors(self.reference_number),
            self._tensors(k),
            reference.config,
            reference.written_name,
            text_read.batches,
            Settings(
                settings.basis or "permutation",
                settings.restarts,
                settings.steps,
                settings.both,
                settings.line,
                self.seed,
            ),
            TextFacts(text_read.labels, text_read.mask_token, text_read.special_tokens, class_shares=text_read.shares),
            self.device,
            release_pages=partial(_release_pages, (reference, self.checkpoints[k])),
        )

    @cached_property
    def _tensors(self) -> Callable[[int], dict[str, Tensor]]:
        """Number of a checkpoint -> its tensors; the reference and the last other are kept."""
        return lru_cache(maxsize=2)(self._read_tensors)

    def _read_tensors(self, k: int) -> dict[str, Tensor]:
        from merge.symmetry.permutation import apply

        tensors, labels = finite_tensors(self.checkpoints[k]), self.labels[k] if self.labels else None
        ordered = tensors if labels is None else apply(self.spec, labels, tensors)
        return ordered | absent_pooler(self.reference)


def _release_pages(checkpoints: Sequence[Checkpoint]) -> None:
    for checkpoint in checkpoints:
        checkpoint.release_pages()


def reference_of(settings: AlignEntry, checkpoints: tuple[Checkpoint, ...]) -> int:
    """Return the number of the model that the others are aligned to.

    Raises:
        UsageError: the settings name none of the models.
    """
    if settings.reference is None:
        return 0
    names = [checkpoint.source for checkpoint in checkpoints]
    if settings.reference not in names:
        raise UsageError(
            f"reference {settings.reference!r} is not one of the models.{nearest(settings.reference, names)}"
        )
    return names.index(settings.reference)


def _with_fixed_pooler(spec: PermutationSpec, absent: Mapping[str, Tensor]) -> PermutationSpec:
    """Return the spec with no axis on the pooler of base models that were stored without one: zeros stand in for it."""
    if not absent:
        return spec
    axes = {name for line in absent for name in spec.axes(line)[0].names}

    def fixed(lines: Mapping[str, str]) -> dict[str, str]:
        return {n: " ".join("-" if i.rstrip("'=") in axes else i for i in line.split(" ")) for n, line in lines.items()}

    taps = {axis: sites for axis, sites in spec.taps.items() if axis not in axes}
    return replace(spec, lines=fixed(spec.lines), outputs=fixed(spec.outputs), taps=taps)
