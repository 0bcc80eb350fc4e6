"""PermutationSpec: one line of named axes for each tensor.

Notation, one item for each axis of the tensor, separated by spaces:

    -                 an axis that may not move (vocabulary, positions)
    residual          an axis that may be permuted; every axis of this name moves alike
    (heads0 qk0)      a split axis: blocks `heads0`, each with an inner order `qk0` of its own
    residual'         the axis takes the inverse transpose (role `in`); for permutations the two coincide

    encoder.layer.0.attention.self.query.weight   (heads0 qk0) residual'
    encoder.layer.0.intermediate.dense.weight     ffn0 residual'
    embeddings.word_embeddings.weight             - residual
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache

from merge.errors import SpecError, nearest

_NAME = r"[A-Za-z_][A-Za-z_0-9]*'?"
_ITEM = re.compile(
    rf"\s*(?:(?P<fixed>-)|(?P<plain>{_NAME})|\(\s*(?P<outer>{_NAME})\s+(?P<inner>{_NAME})\s*\)(?P<prime>'?))(?=\s|$)"
)


@dataclass(frozen=True)
class TensorAxis:
    """One axis of one tensor: no name (fixed), one name, or (outer, inner); a role for each name."""

    names: tuple[str, ...] = ()
    roles: tuple[str, ...] = ()

    @property
    def fixed(self) -> bool:
        return not self.names

    @property
    def block(self) -> str | None:
        """The inner name of a split axis, else the plain name; None when fixed. One coordinate of the descent."""
        return self.names[-1] if self.names else None


@cache
def parse(line: str) -> tuple[TensorAxis, ...]:
    """Return the axes a line of notation names, in order.

    Raises:
        SpecError: the line is not in the notation; the message shows where reading stopped.
    """
    axes, at = [], 0
    while at < len(line.rstrip()):
        found = _ITEM.match(line, at)
        if not found:
            raise SpecError(
                f"axis notation {line!r} is malformed at {line[at:].strip()!r}. Expected: -, name or (outer inner)."
            )
        if found["fixed"]:
            axes.append(TensorAxis())
        else:
            names = [found["plain"]] if found["plain"] else [found["outer"], found["inner"]]
            roles = tuple("in" if n.endswith("'") or found["prime"] else "out" for n in names)
            axes.append(TensorAxis(tuple(n.rstrip("'") for n in names), roles))
        at = found.end()
    return tuple(axes)


@dataclass(frozen=True)
class PermutationSpec:
    """The axes of every tensor of an architecture, the activations that live on them, and those of its outputs.

    Attributes:
        family: the architecture's name, for messages.
        lines: canonical tensor name -> notation; tensors a checkpoint does not have are not an error.
        sizes: outer axis -> number of blocks (heads); the only sizes not read off the tensors.
        taps: axis -> sites `module:in` or `module:out` whose last dimension is that axis.
        outputs: output name of the model -> notation; an output on a movable axis moves with it.
        named: axes whose order is given by names (labels), never by matching.
    """

    family: str
    lines: Mapping[str, str]
    sizes: Mapping[str, int] = field(default_factory=dict)
    taps: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    outputs: Mapping[str, str] = field(default_factory=dict)
    named: frozenset[str] = frozenset()

    def axes(self, tensor: str) -> tuple[TensorAxis, ...]:
        """Return the axes of one tensor."""
        return parse(self.lines[tensor])

    def kind(self, axis: str) -> str:
        """Return the word a user knows an axis by: its name without the layer number; heads for what is inside heads."""
        outer = self.outer.get(axis, axis)
        return outer.rstrip("0123456789")

    @property
    def outer(self) -> dict[str, str]:
        """Inner axis -> the outer axis whose blocks it orders."""
        split = (axis for line in self.lines.values() for axis in parse(line) if len(axis.names) == 2)
        return {axis.names[1]: axis.names[0] for axis in split}

    def fit(self, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
        """Return axis -> shape of its index array, after checking that the spec covers these tensors.

        A plain or outer axis has shape (n,); an inner axis has shape (blocks, n): an order for each block.

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
            axes = self.axes(name)
            if len(axes) != len(shape):
                faults.append(f"{name} has shape {shape}, but its line {self.lines[name]!r} names {len(axes)} axes.")
                continue
            for axis, size in zip(axes, shape, strict=True):
                for word, wanted in self._index_shapes(axis, size, name, faults).items():
                    if found.setdefault(word, wanted) != wanted:
                        faults.append(
                            f'{name} has shape {shape}, but axis "{word}" already has size {found[word]} (from {said_by[word]}).'
                        )
                    said_by.setdefault(word, name)
        if faults:
            shown = faults[:8] + ([f"... and {len(faults) - 8} more."] if len(faults) > 8 else [])
            raise SpecError(f"{self.family} spec does not fit: " + " ".join(shown))
        return found

    def _index_shapes(self, axis: TensorAxis, size: int, tensor: str, faults: list[str]) -> dict[str, tuple[int, ...]]:
        if axis.fixed:
            return {}
        if len(axis.names) == 1:
            return {axis.names[0]: (size,)}
        outer, inner = axis.names
        blocks = self.sizes.get(outer)
        if blocks is None:
            faults.append(f'{tensor}: the number of blocks of axis "{outer}" is not stated in the spec.')
            return {}
        if size % blocks:
            faults.append(f'{tensor}: axis of size {size} does not split into {blocks} blocks ("{outer}").')
            return {}
        return {outer: (blocks,), inner: (blocks, size // blocks)}


def nearest_line(name: str, lines: Mapping[str, str]) -> str:
    """Return ' Did you mean X?' for the nearest tensor of the table, or nothing."""
    hint = nearest(name, lines).split(" Known:")[0]
    return f"{hint}" if hint else ""
