"""Pair: two models to align, and the alignment that a matcher returns."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, TypeVar

import torch
from torch import Tensor

from merge.checkpoints.inputs import Batch
from merge.checkpoints.transformers_model import build, on_device
from merge.errors import AlignmentError, UsageError, nearest
from merge.symmetry.canonical import canonical_weights
from merge.symmetry.notation import View
from merge.symmetry.permutation import Permutation
from merge.symmetry.spec import PermutationSpec
from merge.symmetry.transform import Transform

T = TypeVar("T")

# For each batch the outputs of a and of b by name, in float32.
Outputs = Sequence[tuple[Mapping[str, Tensor], Mapping[str, Tensor]]]
# Outputs are kept up to so many bytes; models with larger ones are run again where they are needed.
MAX_KEPT_BYTES = 1 << 29


@dataclass(frozen=True)
class Settings:
    """Settings of matchers; each reads those that concern it.

    Attributes:
        basis: inside heads: `permutation`, or `orthogonal` for rotations after it.
        restarts: further runs of weight matching, each from the best so far with some units shuffled.
        steps: of gradient descent or annealing.
        both: whether `learned` moves a as well.
        line: whether `learned` learns along the whole line, not near its middle alone.
        seed: of everything random.
    """

    basis: str = "permutation"
    restarts: int = 0
    steps: int = 200
    both: bool = False
    line: bool = False
    seed: int = 0


@dataclass(frozen=True)
class TextFacts:
    """Facts about a pair's calibration text and its tokenizer.

    Attributes:
        labels: for each batch the class of each text; empty where texts have none.
        mask_token: what a masked language model reads instead of a word; None without one.
        special_tokens: tokens around a text ([CLS], [SEP], padding), which are never masked.
        scored: for each batch a boolean mask of the tokens at which outputs are compared; empty where all tokens but padding are.
        class_shares: class, as the text names it -> its share in the text; empty where it names none.
    """

    labels: tuple[Tensor, ...] = ()
    mask_token: int | None = None
    special_tokens: tuple[int, ...] = ()
    scored: tuple[Tensor, ...] = ()
    class_shares: Mapping[str, float] = field(default_factory=dict)


class Shared:
    """What several matchers compute of one pair: once, by whichever asks first."""

    def __init__(self) -> None:
        # Key and identities of what it was computed from -> those objects, which so stay alive, and the result.
        self._kept: dict[tuple[object, ...], tuple[tuple[object, ...], Any]] = {}

    def get(self, key: object, parts: tuple[object, ...], compute: Callable[[], T]) -> T:
        """Return what is computed from these parts, an earlier result where they are the same objects."""
        identity = key, *map(id, parts)
        if identity not in self._kept:
            self._kept[identity] = parts, compute()
        result: T = self._kept[identity][1]
        return result


def nothing_to_release() -> None:
    """Release nothing: the tensors of a pair are no views of files."""


@dataclass(frozen=True)
class Pair:
    """Reference a, model b and the calibration text both are run on.

    Attributes:
        spec: the permutation spec of both.
        a, b: tensors by canonical name, equal names and shapes.
        config: a's config as a mapping; b's differs only in keys that do not change shapes.
        written_name: canonical name -> the name transformers gives it.
        batches: tokenised calibration text; empty when there is no tokenizer.
        settings: of the matcher.
        text: facts about the batches and the tokenizer that made them.
        device: where models run and large products are computed; the tensors of the pair stay on their device.
        merged: both models' tensors as they are merged, if a and b are in canonical form; else None.
        shared: of a pair that several matchers align: what they compute alike.
        release_pages: lets the pages of both models' files go that were touched; they are read again when they are used.
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
    shared: Shared | None = field(default=None, repr=False, compare=False)
    release_pages: Callable[[], None] = field(default=nothing_to_release, repr=False, compare=False)

    def once(self, key: object, compute: Callable[[], T]) -> T:
        """Return what is computed from the tensors and the text: an earlier result, where matchers share the pair."""
        if self.shared is None:
            return compute()
        return self.shared.get(key, (self.spec, self.a, self.b, self.batches), compute)

    @property
    def as_merged(self) -> Pair:
        """The pair with the weights that are merged."""
        return self if self.merged is None else replace(self, a=self.merged[0], b=self.merged[1], merged=None)

    @cached_property
    def canonical(self) -> tuple[Mapping[str, Tensor], Mapping[str, Tensor]]:
        """The tensors of both models without weights that have no effect on the outputs, computed once."""
        self.release_pages()
        a, b = (canonical_weights(self.spec, self.config, tensors) for tensors in (self.a, self.b))
        self.release_pages()  # half of them are of tensors that nobody reads until the canonical ones are let go
        return a, b

    def release_canonical(self) -> None:
        """Let the canonical tensors go: they hold the memory of half a model or more, and are computed anew if asked for."""
        self.__dict__.pop("canonical", None)

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {name: tuple(tensor.shape) for name, tensor in self.a.items()}

    @property
    def movable(self) -> tuple[str, ...]:
        """Axes that a matcher may permute, in the order of the table."""
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
    """Return batches evenly spaced from first to last with about so many tokens together; at least one."""
    size = sum(next(iter(batch.values())).shape[:2].numel() for batch in batches)
    count = min(len(batches), max(1, round(len(batches) * tokens / max(size, 1))))
    return tuple(batches[(2 * k + 1) * len(batches) // (2 * count)] for k in range(count))


def in_dtype(batch: Batch, dtype: torch.dtype) -> Batch:
    """Return the batch with its floating-point tensors (pixels) in the dtype of a model."""
    return {name: tensor.to(dtype) if tensor.is_floating_point() else tensor for name, tensor in batch.items()}


class Measurements:
    """What a matcher measured on a pair's text, until it is released: it takes the memory of a model or more.

    Attributes:
        correlations: of a's units with those of b as it was, by view; None once released.
        outputs: of both models as they were on each batch; None once released, or if they were too large to keep.
    """

    def __init__(self, correlations: Mapping[View, Tensor], outputs: Outputs | None) -> None:
        self.correlations: Mapping[View, Tensor] | None = correlations
        self.outputs = outputs

    def release(self) -> None:
        """Let both go, whoever still holds an alignment with them."""
        self.correlations = self.outputs = None


@dataclass(frozen=True)
class Alignment:
    """A permutation of b's units, maps after it, and the objective they reached.

    Attributes:
        permutation: apply it to b.
        maps: axis -> the map that acts after the permutation, as in `merge.symmetry.transform`; most matchers have none.
        reference_maps: the same for a, if a moves too.
        kinds: the kinds of axes that were allowed to move.
        objective: the value maximised, in [-1, 1]: at the identity, then after each sweep; never decreasing. Of `learned`,
            minus the loss on held-out texts: at its start, then after each better step.
        measured: on the pair's text, where the matcher ran the models there; compared with no other.
        notes: for the user.
    """

    permutation: Permutation
    kinds: tuple[str, ...]
    objective: tuple[float, ...]
    maps: Mapping[str, Tensor] = field(default_factory=dict)
    reference_maps: Mapping[str, Tensor] = field(default_factory=dict)
    measured: Measurements | None = field(default=None, repr=False, compare=False)
    notes: tuple[str, ...] = ()

    @property
    def transform(self) -> Transform:
        return Transform(self.permutation, self.maps)


def as_transform(moved: Permutation | Transform) -> Transform:
    """Return a permutation as a transform without maps; a transform as it is."""
    return moved if isinstance(moved, Transform) else Transform(moved, {})


# From the kinds of axes that may move to the alignment that is best over them.
Matcher = Callable[[frozenset[str]], Alignment]


def check_text(pair: Pair, what: str) -> None:
    """Raise AlignmentError unless the pair has calibration text; `what` needs it."""
    if not pair.batches:
        raise AlignmentError(f"{what} needs calibration text and a tokenizer. Use --align weights without.")


def check_kinds(pair: Pair, kinds: frozenset[str]) -> None:
    """Raise UsageError for a kind of axis that the architecture does not have."""
    unknown = sorted(kinds - set(pair.kinds()))
    if unknown:
        raise UsageError(f"{pair.spec.family} has no axes {unknown[0]!r}.{nearest(unknown[0], pair.kinds())}")


# Last words of the kinds of axes (CLIP has text_residual) that are streams between the layers, or inside a layer.
STREAM = frozenset({"residual", "embedding"})


INSIDE = frozenset({"heads", "ffn", "talking"})


def streams(kinds: Collection[str]) -> frozenset[str]:
    """Return the kinds of axes that are streams between the layers."""
    return frozenset(kind for kind in kinds if _word(kind) in STREAM)


def head_kinds(kinds: Collection[str]) -> frozenset[str]:
    """Return the kinds of axes that are neither streams nor inside layers: those that the task head reads."""
    return frozenset(kind for kind in kinds if _word(kind) not in STREAM | INSIDE)


def _word(kind: str) -> str:
    return kind.rsplit("_", 1)[-1]


def in_canonical_form(pair: Pair) -> Pair:
    """Return the pair with both models in canonical form: without weights that have no effect on the outputs."""
    a, b = pair.canonical
    return replace(pair, a=a, b=b, merged=(pair.a, pair.b))
