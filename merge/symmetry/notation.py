"""Notation: the named axes of a tensor as one line of text, one item for each axis of the tensor, separated by spaces:

-                      an axis that may not move (vocabulary, positions)
residual               an axis that may be permuted; every axis of this name moves alike
(heads0 qk0)           a split axis: blocks `heads0`, each with an inner order `qk0` of its own
(heads0 -)             blocks that move, with an order inside that may not
(heads0 -turn0)        the same, but signs, scales and rotations act inside under the name turn0 (rotary queries and keys)
(heads0 queries0 v0)   three levels (grouped queries): key/value heads, the query heads of each, and an order inside
                       that depends on the key/value head alone; `(heads0 queries0 -)` where it may not move
[a | b | c]            equal parts laid end to end, each an item of its own (fused queries, keys and values)
(heads0 [qk0 | v0])    the parts of every block
{heads0 qk0}           two axes of the tensor: the outer and the inner of a split axis (weights with an axis for heads)
residual'              the axis takes the inverse transpose (role `in`); for permutations the two coincide
residual=              the axis is permuted, but takes no sign, scale or rotation (role `=`): gains of a norm, gates

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
from functools import cache
from math import prod

from merge.errors import SpecError

_TOKEN = re.compile(r"-?[A-Za-z_][A-Za-z_0-9]*['=]?|-|[)\]}]['=]?|[(\[{|]")
_ROLES = {"'": "in", "=": "="}
_CLOSING = {"(": ")", "[": "]", "{": "}"}


@dataclass(frozen=True)
class View:
    """Where the units of one run of names lie along an axis: unit (i, j, ..) at offset + i * strides[0] + j * strides[1] ..

    Attributes:
        names: one for each level, outermost first; the last is `-` where that order may not move.
        shape: units at each level.
        strides, offset: in places of the axis.
        turn: the name under which maps act on the last level where its order may not move; else empty.
        role: of the last level: `out`, `in` or `=`.
    """

    names: tuple[str, ...]
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    offset: int = 0
    turn: str = ""
    role: str = "out"

    @property
    def moving(self) -> tuple[str, ...]:
        return tuple(name for name in self.names if name != "-")

    @property
    def acting(self) -> str:
        """The name under which maps act on the last level; empty where nothing does."""
        return self.turn if self.names[-1] == "-" else self.names[-1]

    def map_shape(self) -> tuple[int, ...]:
        """Return the shape of a diagonal map on the last level: (n,), or (blocks, n) inside the blocks of the outermost."""
        return self.shape if len(self.shape) == 1 else (self.shape[0], self.shape[-1])

    def index_shapes(self) -> dict[str, tuple[int, ...]]:
        """Return axis -> shape of its index array: (n,) for the outermost, (blocks, n) for what is inside its blocks."""
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
    """One item of a line: no name (fixed), one name, or those of a split axis from outside in; a role for each name.

    Attributes:
        names: `-` is the last one where blocks move and the order inside them does not.
        roles: `out`, `in` or `=` for each name.
        parts: what lies end to end: in every block of the names, or along the axis where there are none.
        span: how many axes of the tensor it stands for.
        turn: the name under which maps act on what may not be permuted (`-turn0`); its role is the last one.
    """

    names: tuple[str, ...] = ()
    roles: tuple[str, ...] = ()
    parts: tuple[TensorAxis, ...] = ()
    span: int = 1
    turn: str = ""

    @property
    def fixed(self) -> bool:
        return not self.names and not self.parts

    def mentions(self) -> list[str]:
        """Return every name of an axis that may move, those of the parts included."""
        return [name for name in self.names if name != "-"] + [name for part in self.parts for name in part.mentions()]

    def nested(self) -> list[tuple[str, str]]:
        """Return (outer, inner) for every name inside the blocks of another."""
        if not self.names:
            return [pair for part in self.parts for pair in part.nested()]
        inside = (*self.names[1:], self.turn, *(name for part in self.parts for name in (*part.names, part.turn)))
        return [(self.names[0], name) for name in inside if name not in ("-", "")]

    def views(self, sizes: tuple[int, ...], counts: Mapping[str, int]) -> tuple[View, ...]:
        """Return the runs of units along the axis; together they hold every place once.

        Args:
            sizes: of the tensor's axes this item stands for.
            counts: axis -> number of its blocks, for the outer levels of split axes.
        Raises:
            SpecError: a count is not known, or the axis does not split evenly.
        """
        if self.span == 2:
            counts = {**counts, self.names[0]: sizes[0]}
        return tuple(_lay(self, View((), (), ()), prod(sizes), counts))


def _lay(axis: TensorAxis, into: View, size: int, counts: Mapping[str, int]) -> Iterator[View]:
    """Yield the views of an item that fills `size` places inside every block of `into`."""
    names, shape, strides = into.names, into.shape, into.strides
    for outer in axis.names if axis.parts else axis.names[:-1]:
        if outer not in counts:
            raise SpecError(f'the number of blocks of axis "{outer}" is not stated in the spec.')
        if size % counts[outer]:
            raise SpecError(f'axis of size {size} does not split into {counts[outer]} blocks ("{outer}").')
        size //= counts[outer]
        names, shape, strides = (*names, outer), (*shape, counts[outer]), (*strides, size)
    if not axis.parts:
        last = axis.names[-1] if axis.names else "-"
        role = axis.roles[-1] if axis.roles else "out"
        yield View((*names, last), (*shape, size), (*strides, 1), into.offset, axis.turn, role)
        return
    if size % len(axis.parts):
        raise SpecError(f"axis of size {size} does not split into {len(axis.parts)} equal parts.")
    size //= len(axis.parts)
    for k, part in enumerate(axis.parts):
        yield from _lay(part, View(names, shape, strides, into.offset + k * size), size, counts)


@cache
def parse(line: str) -> tuple[TensorAxis, ...]:
    """Return the axes a line of notation names, in order.

    Raises:
        SpecError: the line is not in the notation; the message shows where reading stopped.
    """
    reader, axes = _Reader(line), []
    while reader.word:
        axes.append(reader.item())
    return tuple(axes)


class _Reader:
    """Reads a line word by word; `word` is the next one, empty at the end."""

    def __init__(self, line: str) -> None:
        self.line, self.at, self.word, self.glued = line, 0, "", False
        self._next()

    def _next(self) -> str:
        taken, begin = self.word, self.at
        rest = self.line[begin:]
        self.at += len(rest) - len(rest.lstrip())
        self.glued = self.at == begin
        found = _TOKEN.match(self.line, self.at)
        self.word = found[0] if found else ""
        if not found and self.at < len(self.line):
            self._fail("-, a name or a bracket", self.line[self.at :])
        self.at += len(self.word)
        return taken

    def _fail(self, expected: str, where: str | None = None) -> None:
        shown = self.line[self.at - len(self.word) :].strip() if where is None else where
        raise SpecError(f"axis notation {self.line!r} is malformed at {shown!r}. Expected: {expected}.")

    def item(self) -> TensorAxis:
        """Read -, name, (outer inner), (outer middle inner), (outer [..]), [..] or {outer inner}."""
        if self.glued and self.at > len(self.word):
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
        return TensorAxis(roles=roles, turn=name) if word.startswith("-") else TensorAxis((name,), roles)

    def _split(self) -> TensorAxis:
        opening = self._next()
        closing, most = _CLOSING[opening], 3 if opening == "(" else 2
        names: list[str] = []
        roles: list[str] = []
        turn = ""
        parts: tuple[TensorAxis, ...] = ()
        while self.word[:1] != closing:
            if parts or names[-1:] == ["-"] or len(names) == most or self.word == "":
                self._fail(f"a {closing} here")
            if self.word == "[" and opening == "(" and names:
                parts = self._parts(nested=True)
                continue
            read = self._name()
            if read.fixed and not names:
                self._fail("the name of the blocks before -")
            names += read.names or ("-",)
            roles += read.roles or ("out",)
            turn = read.turn
        if len(names) < 2 and not parts:
            self._fail("the name of the order inside, or -")
        if mark := self._next()[1:]:
            roles = [_ROLES[mark]] * len(roles)
        return TensorAxis(tuple(names), tuple(roles), parts, 1 if opening == "(" else 2, turn)

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
