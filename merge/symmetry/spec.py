"""PermutationSpec: one line of named axes for each tensor, in the notation of `merge.symmetry.notation`.

    encoder.layer.0.attention.self.query.weight   (heads0 qk0) residual'
    encoder.layer.0.intermediate.dense.weight     ffn0 residual'
    embeddings.word_embeddings.weight             - residual

A name is an axis that may be permuted, `-` one whose order is fixed; `(outer inner)` is split into blocks, each with an
inner order of its own; `[a | b]` has parts one after another. The group of an axis states which maps act on it besides
permutations.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

from merge.errors import SpecError, nearest
from merge.symmetry.notation import TensorAxis, View, parse
from merge.symmetry.rewrites import NO_REWRITES, Rewrites

__all__ = ["PermutationSpec", "TensorAxis", "nearest_line", "parse"]


MAX_FAULTS_SHOWN = 8


@dataclass(frozen=True)
class PermutationSpec:
    """The axes of every tensor of an architecture, the activations that live on them, and those of its outputs.

    Attributes:
        family: the architecture's name, for messages.
        lines: canonical tensor name -> notation; lines of tensors that a checkpoint lacks are no error.
        sizes: outer axis -> number of blocks (heads), middle axis -> number in each; all other sizes are read off the
            tensors.
        taps: the last axis of an activation, in the notation (an inner axis may be alone) -> the modules where it can
            be hooked: `module:in` or `module:out`; then `:time` where activations are (tokens, texts, units), or `:all`
            where no padding mask applies.
        outputs: output name of the model -> notation; an output on a movable axis is transformed with it.
        named: axes whose order is given by label names, never by matching.
        bound: largest difference of any output that a transform may make, in standard deviations of that output. It is
            rounding alone, which is larger where the model itself computes in float32.
        dtype: in which outputs are compared; float32 where the model runs in no other.
        groups: axis without the layer's number -> name in `merge.symmetry.groups.GROUPS`; "permutation" by default.
        folded: the groups that change once every gain on these axes is exactly one
            (`merge.symmetry.transform.folded_spec`).
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
        """Return the kind of an axis that users name: without the layer's number; `heads` for axes inside heads."""
        outer = self.outer.get(axis, axis)
        return outer.rstrip("0123456789")

    def group(self, axis: str) -> str:
        """Return the name of the group that acts on an axis."""
        return self.groups.get(axis.rstrip("0123456789"), "permutation")

    @cached_property
    def outer(self) -> dict[str, str]:
        """Inner axis -> the outer axis whose blocks it orders."""
        outer_of: dict[str, str] = {}
        for line in self.lines.values():
            for outer, inner in (nested for axis in parse(line) for nested in axis.nested()):
                if outer_of.setdefault(inner, outer) != outer:
                    raise SpecError(
                        f'{self.family} table: axis "{inner}" is inside blocks of "{outer_of[inner]}" and of "{outer}".'
                    )
        return outer_of

    def sites(self) -> dict[str, TensorAxis]:
        """Return site -> the last axis of the activation there."""
        out: dict[str, TensorAxis] = {}
        for line, sites in self.taps.items():
            whole = f"({self.outer[line]} {line})" if line in self.outer else line
            out |= dict.fromkeys(sites, parse(whole)[0])
        return out

    def views(self, tensor: str, shape: tuple[int, ...]) -> tuple[tuple[View, ...], ...]:
        """Return, for each item of the tensor's line, the views along it.

        Raises:
            SpecError: the line does not fit the shape.
        """
        axes, dim, out = self.axes(tensor), 0, []
        if sum(axis.span for axis in axes) != len(shape):
            count = sum(axis.span for axis in axes)
            raise SpecError(f"{tensor} has shape {shape}, but its line {self.lines[tensor]!r} names {count} axes.")
        for axis in axes:
            try:
                out.append(axis.views(shape[dim : dim + axis.span], self.sizes))
            except SpecError as error:
                raise SpecError(f"{tensor}: {error}") from error
            dim += axis.span
        return tuple(out)

    def fit(self, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
        """Return axis -> shape of its index array, once every tensor is covered by a line that fits its shape.

        The shape is (n,) for a plain or an outer axis, (blocks, n) for an axis inside blocks: an order for each block.

        Raises:
            SpecError: a tensor has no line, another rank, or a size that contradicts its axis; all faults at once.
        """
        sizes: dict[str, tuple[int, ...]] = {}
        first_tensor: dict[str, str] = {}
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
                if sizes.setdefault(axis, size) != size:
                    faults.append(
                        f'{name} has shape {shape}, but axis "{axis}" already has size {sizes[axis]} (from {first_tensor[axis]}).'
                    )
                first_tensor.setdefault(axis, name)
        if faults:
            more = [f"... and {len(faults) - MAX_FAULTS_SHOWN} more."] if len(faults) > MAX_FAULTS_SHOWN else []
            raise SpecError(f"{self.family} spec does not fit: " + " ".join(faults[:MAX_FAULTS_SHOWN] + more))
        return sizes


def nearest_line(name: str, lines: Mapping[str, str]) -> str:
    """Return ' Did you mean X?' for the nearest tensor of the table, or nothing."""
    return nearest(name, lines).split(" Known:")[0]
