"""The notation: the named axes of a tensor as one line of text, an item for each dimension, separated by spaces.

-                      an axis whose order is fixed (vocabulary, positions)
residual               an axis that may be permuted; the axes of this name are permuted alike in every tensor
(heads0 qk0)           a split axis: blocks `heads0`, and inside each block units `qk0` in an order of its own
(heads0 -)             blocks that may be permuted, units inside whose order is fixed
(heads0 -turn0)        the same, but signs, scales and rotations act on the units under the name turn0 (rotary
                       queries and keys)
(heads0 queries0 v0)   three levels (grouped queries): key/value heads, the query heads of each, and units whose order
                       depends on the key/value head alone; `(heads0 queries0 -)` where that order is fixed
[a | b | c]            equal parts one after another, each an item itself (queries, keys and values in one tensor)
(heads0 [qk0 | v0])    the same inside every block
{heads0 qk0}           two dimensions of the tensor: the outer and the inner level of a split axis (weights with a
                       dimension for heads)

A mark behind a name gives the axis its role, which matters for maps (signs, scales, rotations) and not for
permutations:

residual               role `out`: the tensor writes the axis and takes the map itself
residual'              role `in`: the tensor reads the axis and takes the inverse transpose of the map
residual=              role `=`: the axis is permuted and takes no map: gains of a norm, gates

encoder.layer.0.attention.self.query.weight   (heads0 qk0) residual'
encoder.layer.0.intermediate.dense.weight     ffn0 residual'
embeddings.word_embeddings.weight             - residual
layers.0.attn.Wqkv.weight                     [(heads0 -) | (heads0 -) | (heads0 v0)] residual'
layer.0.rel_attn.o                            residual {heads0 v0}'
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from math import prod

from merge.errors import SpecError

_TOKEN = re.compile(r"-?[A-Za-z_][A-Za-z_0-9]*['=]?|-|[)\]}]['=]?|[(\[{|]")
_ROLES = {"'": "in", "=": "="}
MAX_LINES = 2**16  # whose items a process remembers: a hundred or two a model, of its own names in a derived spec
_CLOSING = {"(": ")", "[": "]", "{": "}"}


@dataclass(frozen=True)
class View:
    """The positions of units along an axis: unit (i, j, ...) is at offset + i * strides[0] + j * strides[1] + ...

    Attributes:
        names: an axis name for each level, outermost first; the last is `-` where the order of that level is fixed.
        shape: number of units at each level.
        strides, offset: in positions along the axis.
        map_only: the name under which maps act on the last level where its order is fixed; else empty.
        role: of the last level: `out`, `in` or `=`.
    """

    names: tuple[str, ...]
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    offset: int = 0
    map_only: str = ""
    role: str = "out"

    @property
    def movable(self) -> tuple[str, ...]:
        """The names of the levels that may be permuted."""
        return tuple(name for name in self.names if name != "-")

    @property
    def map_axis(self) -> str:
        """The name under which maps act on the last level; empty where none does."""
        return self.map_only if self.names[-1] == "-" else self.names[-1]

    def map_shape(self) -> tuple[int, ...]:
        """Return the shape of a diagonal map on the last level: (n,), or (blocks, n) inside the outermost blocks."""
        return self.shape if len(self.shape) == 1 else (self.shape[0], self.shape[-1])

    def index_shapes(self) -> dict[str, tuple[int, ...]]:
        """Return axis -> shape of its index array: (n,) for the outermost level, (blocks, n) for those inside it."""
        outermost = self.shape[:1]
        return {
            name: outermost if level == 0 else (*outermost, self.shape[level])
            for level, name in enumerate(self.names)
            if name != "-"
        }


def contiguous(names: tuple[str, ...], shape: tuple[int, ...]) -> View:
    """Return the view that fills an axis alone."""
    return View(names, shape, tuple(prod(shape[level + 1 :]) for level in range(len(shape))))


@dataclass(frozen=True)
class TensorAxis:
    """One item of a line: no name (fixed order), one name, or the names of a split axis, outermost first.

    Attributes:
        names: the last is `-` where blocks may be permuted and the order inside them is fixed.
        roles: `out`, `in` or `=` for each name.
        parts: the parts one after another: inside every block of the names, or along the whole axis where there are
            none.
        span: the number of dimensions of the tensor that the item stands for.
        map_only: the name under which maps act on units whose order is fixed (`-turn0`); its role is the last one.
    """

    names: tuple[str, ...] = ()
    roles: tuple[str, ...] = ()
    parts: tuple[TensorAxis, ...] = ()
    span: int = 1
    map_only: str = ""

    @property
    def fixed(self) -> bool:
        return not self.names and not self.parts

    def axis_names(self) -> list[str]:
        """Return the name of every axis that may be permuted, those inside parts included."""
        return [name for name in self.names if name != "-"] + [n for part in self.parts for n in part.axis_names()]

    def nested(self) -> list[tuple[str, str]]:
        """Return (outer, inner) for every name inside the blocks of another."""
        if not self.names:
            return [pair for part in self.parts for pair in part.nested()]
        inside = (*self.names[1:], self.map_only, *(n for part in self.parts for n in (*part.names, part.map_only)))
        return [(self.names[0], name) for name in inside if name not in ("-", "")]

    def views(self, sizes: tuple[int, ...], counts: Mapping[str, int]) -> tuple[View, ...]:
        """Return the views along the axis; together they cover every position once.

        Args:
            sizes: of the tensor's dimensions that this item stands for.
            counts: axis -> number of its blocks, for the outer levels of split axes.
        Raises:
            SpecError: a count is missing, or the axis does not split evenly.
        """
        if self.span == 2:
            counts = {**counts, self.names[0]: sizes[0]}
        return tuple(_views_inside(self, View((), (), ()), prod(sizes), counts))


def _views_inside(axis: TensorAxis, outer: View, size: int, counts: Mapping[str, int]) -> Iterator[View]:
    """Yield the views of an item that fills `size` positions inside every block of `outer`."""
    names, shape, strides = outer.names, outer.shape, outer.strides
    for blocks in axis.names if axis.parts else axis.names[:-1]:
        if blocks not in counts:
            raise SpecError(f'the number of blocks of axis "{blocks}" is not stated in the spec.')
        if size % counts[blocks]:
            raise SpecError(f'axis of size {size} does not split into {counts[blocks]} blocks ("{blocks}").')
        size //= counts[blocks]
        names, shape, strides = (*names, blocks), (*shape, counts[blocks]), (*strides, size)
    if not axis.parts:
        last = axis.names[-1] if axis.names else "-"
        role = axis.roles[-1] if axis.roles else "out"
        yield View((*names, last), (*shape, size), (*strides, 1), outer.offset, axis.map_only, role)
        return
    if size % len(axis.parts):
        raise SpecError(f"axis of size {size} does not split into {len(axis.parts)} equal parts.")
    size //= len(axis.parts)
    for k, part in enumerate(axis.parts):
        yield from _views_inside(part, View(names, shape, strides, outer.offset + k * size), size, counts)


@lru_cache(maxsize=MAX_LINES)
def parse(line: str) -> tuple[TensorAxis, ...]:
    """Return the items of a line of notation, in order.

    Raises:
        SpecError: the line is not in the notation; the message shows where reading stopped.
    """
    reader, axes = _Reader(line), []
    while reader.word:
        axes.append(reader.item())
    return tuple(axes)


class _Reader:
    """Reads a line word by word.

    `word` is the next word, empty at the end of the line; `position` is behind it; `glued` says that no space precedes
    it.
    """

    def __init__(self, line: str) -> None:
        self.line, self.position, self.word, self.glued = line, 0, "", False
        self._next()

    def _next(self) -> str:
        """Return the word read last, and read the next one."""
        previous, begin = self.word, self.position
        rest = self.line[begin:]
        self.position += len(rest) - len(rest.lstrip())
        self.glued = self.position == begin
        match = _TOKEN.match(self.line, self.position)
        self.word = match[0] if match else ""
        if not match and self.position < len(self.line):
            self._fail("-, a name or a bracket", self.line[self.position :])
        self.position += len(self.word)
        return previous

    def _fail(self, expected: str, rest: str | None = None) -> None:
        shown = self.line[self.position - len(self.word) :].strip() if rest is None else rest
        raise SpecError(f"axis notation {self.line!r} is malformed at {shown!r}. Expected: {expected}.")

    def item(self) -> TensorAxis:
        """Read -, name, (outer inner), (outer middle inner), (outer [..]), [..] or {outer inner}."""
        if self.glued and self.position > len(self.word):
            self._fail("a space before it")
        if self.word == "[":
            return TensorAxis(parts=self._parts(nested=False))
        if self.word in ("(", "{"):
            return self._split()
        return self._name()

    def _name(self) -> TensorAxis:
        if self.word == "-":
            self._next()
            return TensorAxis()
        if not self.word.removeprefix("-")[:1].isidentifier():
            self._fail("-, name, (outer inner), (outer middle inner), [part | part] or {outer inner}")
        word = self._next()
        name, roles = word.strip("-'="), (_ROLES.get(word[-1], "out"),)
        return TensorAxis(roles=roles, map_only=name) if word.startswith("-") else TensorAxis((name,), roles)

    def _split(self) -> TensorAxis:
        opening = self._next()
        closing, max_levels = _CLOSING[opening], 3 if opening == "(" else 2
        names: list[str] = []
        roles: list[str] = []
        map_only = ""
        parts: tuple[TensorAxis, ...] = ()
        while self.word[:1] != closing:
            if parts or names[-1:] == ["-"] or len(names) == max_levels or self.word == "":
                self._fail(f"a {closing} here")
            if self.word == "[" and opening == "(" and names:
                parts = self._parts(nested=True)
                continue
            level = self._name()
            if level.fixed and not names:
                self._fail("the name of the blocks before -")
            names += level.names or ("-",)
            roles += level.roles or ("out",)
            map_only = level.map_only
        if len(names) < 2 and not parts:
            self._fail("the name of the order inside, or -")
        if mark := self._next()[1:]:
            roles = [_ROLES[mark]] * len(roles)
        return TensorAxis(tuple(names), tuple(roles), parts, 1 if opening == "(" else 2, map_only)

    def _parts(self, nested: bool) -> tuple[TensorAxis, ...]:
        """Read [part | part]; inside a split axis a part is - or a name, elsewhere it may be a split axis too."""
        self._next()
        parts: list[TensorAxis] = []
        while True:
            parts.append(self._split() if self.word == "(" and not nested else self._name())
            if self.word == "]" and len(parts) > 1:
                self._next()
                return tuple(parts)
            if self.word != "|":
                self._fail("| and another part" if len(parts) == 1 else "| or ]")
            self._next()
