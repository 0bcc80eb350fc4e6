"""Pair: the two models an aligner sees, and what it gives back."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from merge.checkpoints.inputs import Batch
from merge.checkpoints.transformers_model import build, on_device
from merge.errors import AlignmentError, UsageError, nearest
from merge.symmetry.canonical import canonical_weights
from merge.symmetry.permutation import Permutation
from merge.symmetry.spec import PermutationSpec
from merge.symmetry.transform import Transform


@dataclass(frozen=True)
class Settings:
    """What a user may ask of a matcher; each reads what concerns it.

    Attributes:
        basis: what moves inside heads: `permutation`, or `orthogonal` for rotations behind it.
        restarts: further runs of weight matching, each from the best so far, disturbed.
        steps: of gradient descent, or of annealing.
        both: whether `learned` moves a as well.
        seed: of everything random.
    """

    basis: str = "permutation"
    restarts: int = 0
    steps: int = 200
    both: bool = False
    seed: int = 0


@dataclass(frozen=True)
class TextFacts:
    """What is known of a pair's calibration text and of its tokenizer.

    Attributes:
        labels: for each batch the class of each text; empty where texts have none.
        mask_token: what a masked language model reads instead of a word; None without one.
        special_tokens: those that frame a text, which are never masked.
        scored: for each batch a boolean mask of the tokens at which outputs are compared; empty where all but padding are.
    """

    labels: tuple[Tensor, ...] = ()
    mask_token: int | None = None
    special_tokens: tuple[int, ...] = ()
    scored: tuple[Tensor, ...] = ()


@dataclass(frozen=True)
class Pair:
    """Reference a, model b and the inputs both are run on.

    Attributes:
        spec: the permutation spec both fit.
        a, b: tensors by canonical name, equal names and shapes.
        config: the architecture, as a mapping; b's is the same but for what does not shape the model.
        written_name: canonical name -> the name transformers gives it.
        batches: tokenised calibration text; empty when there is no tokenizer.
        settings: what was asked of the matcher.
        text: facts about the batches and the tokenizer that made them.
        device: where models run and the large products are taken; all tensors of the pair stay where they are.
        merged: both models' tensors as they are merged, where a and b are in another form; None where they are not.
    """

    spec: PermutationSpec
    a: Mapping[str, Tensor]
    b: Mapping[str, Tensor]
    config: Mapping[str, Any]
    written_name: Callable[[str], str]
    batches: tuple[Batch, ...] = ()
    settings: Settings = Settings()
    text: TextFacts = TextFacts()
    device: str = "cpu"
    merged: tuple[Mapping[str, Tensor], Mapping[str, Tensor]] | None = None

    @property
    def as_merged(self) -> Pair:
        """The pair with the weights that are merged."""
        return self if self.merged is None else replace(self, a=self.merged[0], b=self.merged[1], merged=None)

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {name: tuple(tensor.shape) for name, tensor in self.a.items()}

    @property
    def movable(self) -> tuple[str, ...]:
        """Axes an aligner may move, in the order of the table."""
        return tuple(axis for axis in self.spec.fit(self.shapes) if axis not in self.spec.named)

    def kinds(self) -> tuple[str, ...]:
        """Return the kinds of movable axes, in the order of the table: residual, heads, ffn, pooler."""
        return tuple(dict.fromkeys(self.spec.kind(axis) for axis in self.movable))

    def axes_of(self, kinds: frozenset[str]) -> tuple[str, ...]:
        """Return the movable axes of these kinds, in the order of the table: sums over them must not depend on a set's."""
        return tuple(axis for axis in self.movable if self.spec.kind(axis) in kinds)

    def model(self, tensors: Mapping[str, Tensor], dtype: torch.dtype = torch.float32, copied: bool = True) -> Any:
        """Return a transformers model with these tensors, ready to run; for copied see `transformers_model.build`."""
        written = {self.written_name(name): tensor for name, tensor in tensors.items()}
        model = build(self.config, written, dtype, copied)
        return model if self.device == "cpu" else on_device(model, self.device)


def spread(batches: Sequence[Batch], tokens: int) -> tuple[Batch, ...]:
    """Return some of the batches, evenly spread from first to last, that hold about so many tokens; at least one."""
    size = sum(next(iter(batch.values())).shape[:2].numel() for batch in batches)
    count = min(len(batches), max(1, round(len(batches) * tokens / max(size, 1))))
    return tuple(batches[(2 * k + 1) * len(batches) // (2 * count)] for k in range(count))


def in_dtype(batch: Batch, dtype: torch.dtype) -> Batch:
    """Return the batch with what is not a count in it (pixels) in the dtype of a model."""
    return {name: tensor.to(dtype) if tensor.is_floating_point() else tensor for name, tensor in batch.items()}


@dataclass(frozen=True)
class Alignment:
    """A permutation of b's units, maps behind it, and how they were found.

    Attributes:
        permutation: apply it to b.
        maps: axis -> the map that acts behind it, as in `merge.symmetry.transform`; none by most matchers.
        reference_maps: the same for a, which moves too where both ends were asked to.
        kinds: the kinds of axes that were allowed to move.
        objective: what was maximised, normalised to [-1, 1]: of the identity, then after each sweep; never decreasing. Of
            `learned`, minus the loss on held-out texts: of its start, then of each better step.
    """

    permutation: Permutation
    kinds: tuple[str, ...]
    objective: tuple[float, ...]
    maps: Mapping[str, Tensor] = field(default_factory=dict)
    reference_maps: Mapping[str, Tensor] = field(default_factory=dict)

    @property
    def transform(self) -> Transform:
        return Transform(self.permutation, self.maps)


def as_transform(moved: Permutation | Transform) -> Transform:
    """Return a permutation as the transform that is nothing more."""
    return moved if isinstance(moved, Transform) else Transform(moved, {})


# From the kinds of axes that may move to the alignment that is best over them.
Matcher = Callable[[frozenset[str]], Alignment]


def check_text(pair: Pair, what: str) -> None:
    """Raise AlignmentError unless the pair has calibration text; `what` needs it."""
    if not pair.batches:
        raise AlignmentError(f"{what} needs calibration text and a tokenizer. Use --align weights without.")


def check_kinds(pair: Pair, kinds: frozenset[str]) -> None:
    """Stop at a kind of axis the architecture does not have."""
    unknown = sorted(kinds - set(pair.kinds()))
    if unknown:
        raise UsageError(f"{pair.spec.family} has no axes {unknown[0]!r}.{nearest(unknown[0], pair.kinds())}")


# The last word of a kind (text_residual is CLIP's) that says it is of the stream between the layers, or inside one.
STREAM = frozenset({"residual", "embedding"})


INSIDE = frozenset({"heads", "ffn", "talking"})


def streams(kinds: Collection[str]) -> frozenset[str]:
    """Return the kinds of axes that are streams between the layers."""
    return frozenset(kind for kind in kinds if _word(kind) in STREAM)


def head_kinds(kinds: Collection[str]) -> frozenset[str]:
    """Return the kinds of axes that are neither streams nor inside layers: what the task head reads."""
    return frozenset(kind for kind in kinds if _word(kind) not in STREAM | INSIDE)


def _word(kind: str) -> str:
    return kind.rsplit("_", 1)[-1]


def in_canonical_form(pair: Pair) -> Pair:
    """Return the pair as it is compared: without what the outputs cannot show."""
    a, b = (canonical_weights(pair.spec, pair.config, tensors) for tensors in (pair.a, pair.b))
    return replace(pair, a=a, b=b, merged=(pair.a, pair.b))
