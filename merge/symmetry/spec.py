"""PermutationSpec: one line of named axes for each tensor, in the notation of `merge.symmetry.notation`.

    encoder.layer.0.attention.self.query.weight   (heads0 qk0) residual'
    encoder.layer.0.intermediate.dense.weight     ffn0 residual'
    embeddings.word_embeddings.weight             - residual

A name is an axis that may be permuted, `-` one that may not; `(outer inner)` is split into blocks, each with an inner
order of its own; `[a | b]` has parts end to end. What acts on an axis besides permutations is said by its group.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

from merge.errors import SpecError, nearest
from merge.symmetry.notation import TensorAxis, View, parse
from merge.symmetry.rewrites import NO_REWRITES, Rewrites

__all__ = ["PermutationSpec", "TensorAxis", "nearest_line", "parse"]


@dataclass(frozen=True)
class PermutationSpec:
    """The axes of every tensor of an architecture, the activations that live on them, and those of its outputs.

    Attributes:
        family: the architecture's name, for messages.
        lines: canonical tensor name -> notation; tensors a checkpoint does not have are not an error.
        sizes: outer axis -> number of blocks (heads), middle axis -> number in each; the only sizes not read off the tensors.
        taps: the last axis of an activation, in the notation (an inner axis may stand alone) -> its sites, `module:in` or
            `module:out`; `:time` behind it where activations are (tokens, texts, units), `:all` where no mask applies.
        outputs: output name of the model -> notation; an output on a movable axis moves with it.
        named: axes whose order is given by names (labels), never by matching.
        bound: how far outputs of a re-based model may differ, in standard deviations: rounding only, which is more where
            the model itself computes in float32.
        dtype: in which outputs are compared; float32 where the model runs in nothing else.
        groups: axis without its layer's number -> name in `merge.symmetry.groups.GROUPS`; "permutation" where none is given.
        folded: the groups that differ once every gain on these axes is exactly one (`merge.symmetry.transform.folded_spec`).
        rewrites: how the weights can change without the function changing; nothing is claimed by default.
    """

    family: str
    lines: Mapping[str, str]
    sizes: Mapping[str, int] = field(default_factory=dict)
    taps: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    outputs: Mapping[str, str] = field(default_factory=dict)
    named: frozenset[str] = frozenset()
    bound: float = 1e-9
    dtype: str = "float64"
    groups: Mapping[str, str] = field(default_factory=dict)
    folded: Mapping[str, str] = field(default_factory=dict)
    rewrites: Rewrites = NO_REWRITES

    def axes(self, tensor: str) -> tuple[TensorAxis, ...]:
        """Return the axes of one tensor."""
        return parse(self.lines[tensor])

    def kind(self, axis: str) -> str:
        """Return the word a user knows an axis by: its name without the layer number; heads for what is inside heads."""
        outer = self.outer.get(axis, axis)
        return outer.rstrip("0123456789")

    def group(self, axis: str) -> str:
        """Return the name of the group that acts on an axis."""
        return self.groups.get(axis.rstrip("0123456789"), "permutation")

    @cached_property
    def outer(self) -> dict[str, str]:
        """Inner axis -> the outer axis whose blocks it orders."""
        found: dict[str, str] = {}
        for line in self.lines.values():
            for outer, inner in (nested for axis in parse(line) for nested in axis.nested()):
                if found.setdefault(inner, outer) != outer:
                    raise SpecError(f'{self.family} table: axis "{inner}" lies in "{found[inner]}" and in "{outer}".')
        return found

    def sites(self) -> dict[str, TensorAxis]:
        """Return site -> what stands along the last axis of the activation there."""
        out: dict[str, TensorAxis] = {}
        for line, sites in self.taps.items():
            spelt = f"({self.outer[line]} {line})" if line in self.outer else line
            out |= dict.fromkeys(sites, parse(spelt)[0])
        return out

    def views(self, tensor: str, shape: tuple[int, ...]) -> tuple[tuple[View, ...], ...]:
        """Return, for each item of the tensor's line, the views along it.

        Raises:
            SpecError: the line does not fit the shape.
        """
        axes, at, out = self.axes(tensor), 0, []
        if sum(axis.span for axis in axes) != len(shape):
            count = sum(axis.span for axis in axes)
            raise SpecError(f"{tensor} has shape {shape}, but its line {self.lines[tensor]!r} names {count} axes.")
        for axis in axes:
            try:
                out.append(axis.views(shape[at : at + axis.span], self.sizes))
            except SpecError as error:
                raise SpecError(f"{tensor}: {error}") from error
            at += axis.span
        return tuple(out)

    def fit(self, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
        """Return axis -> shape of its index array, after checking that the spec covers these tensors.

        A plain or outer axis has shape (n,); an axis inside its blocks has shape (blocks, n): an order for each block.

        Raises:
            SpecError: a tensor has no line, another rank, or a size that contradicts its axis; all faults at once.
        """
        found: dict[str, tuple[int, ...]] = {}
        said_by: dict[str, str] = {}
        faults: list[str] = []
        for name, shape in shapes.items():
            if name not in self.lines:
                faults.append(f"tensor {name} {shape} has no line.{nearest_line(name, self.lines)}")
                continue
            try:
                views = [view for along in self.views(name, shape) for view in along]
            except SpecError as error:
                faults.append(str(error))
                continue
            for axis, size in (pair for view in views for pair in view.index_shapes().items()):
                if found.setdefault(axis, size) != size:
                    faults.append(
                        f'{name} has shape {shape}, but axis "{axis}" already has size {found[axis]} (from {said_by[axis]}).'
                    )
                said_by.setdefault(axis, name)
        if faults:
            shown = faults[:8] + ([f"... and {len(faults) - 8} more."] if len(faults) > 8 else [])
            raise SpecError(f"{self.family} spec does not fit: " + " ".join(shown))
        return found


def nearest_line(name: str, lines: Mapping[str, str]) -> str:
    """Return ' Did you mean X?' for the nearest tensor of the table, or nothing."""
    hint = nearest(name, lines).split(" Known:")[0]
    return f"{hint}" if hint else ""
