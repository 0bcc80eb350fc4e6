"""Lines: the factors of a traced model written in the notation of the tables, under names that a user knows.

The notation cannot express every symmetry (one order shared by all heads, parts of different sizes). Factors that it
cannot express are fixed, with the reason, until every line can be written.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from merge.symmetry.architectures.derive.factors import Dimension, Factor, contexts, fix, flat, size
from merge.symmetry.architectures.derive.trace import Trace

# Words of a module's path that do not tell what the module is for.
PLAIN_WORDS = {"weight", "bias", "dense", "linear", "proj", "layer", "layers", "self", "output", "out_proj", "model"}


class Inexpressible(Exception):
    """Raised for factors whose symmetry the notation cannot express."""

    def __init__(self, factors: Iterable[Factor], why: str) -> None:
        super().__init__(why)
        self.factors, self.why = tuple(factors), why


@dataclass(frozen=True)
class Item:
    """One item of a line: the levels of a split axis, outermost first (None: fixed order), and parts one after another."""

    levels: tuple[Factor | None, ...] = ()
    parts: tuple[Item, ...] = ()

    @property
    def single(self) -> Factor | None:
        """The factor of an item that is one name."""
        return self.levels[0] if len(self.levels) == 1 and not self.parts else None

    def nested(self) -> Iterator[tuple[Factor, Factor]]:
        """Yield (outermost, inside) for every name inside the blocks of another."""
        if self.levels and self.levels[0] is not None:
            inside = (*self.levels[1:], *(level for part in self.parts for level in part.levels))
            yield from ((self.levels[0], level) for level in inside if level is not None)
        else:
            for part in self.parts:
                yield from part.nested()

    def names(self) -> Iterator[Factor]:
        """Yield every factor that has a name: those that may be permuted."""
        yield from (level for level in self.levels if level is not None)
        for part in self.parts:
            yield from part.names()

    def write(self, name: Mapping[Factor, str]) -> str:
        """Return the item in the notation."""
        words = [name[level] if level is not None else "-" for level in self.levels]
        if self.parts:
            words.append(f"[{' | '.join(part.write(name) for part in self.parts)}]")
        return f"({' '.join(words)})" if len(words) > 1 else "".join(words) or "-"


def item_of(dimension: Dimension) -> Item:
    """Return the item of the notation for a dimension.

    Raises:
        Inexpressible: there is none; holds the factors that have to be fixed.
    """
    leaves = flat(dimension)
    if all(_is_unmovable(f) for f in leaves):
        return Item()
    first, *rest = leaves
    if first.parts and not first.fixed:
        parts = tuple(item_of(factors) for factors in _parts(first, rest))
        if any(part.parts for part in parts):
            raise Inexpressible(leaves, "parts inside parts")
        return Item(parts=parts) if any(part.levels for part in parts) else Item()
    if first.fixed:
        raise Inexpressible(rest, "it lies inside blocks that may not move")
    if rest and rest[0].parts and not rest[0].fixed:
        inside = tuple(item_of(factors) for factors in _parts(rest[0], rest[1:]))
        if any(part.parts or len(part.levels) > 1 for part in inside):
            raise Inexpressible(rest, "parts of a block that are themselves split")
        _check_contexts(first, [part.single for part in inside])
        return Item((first,), inside) if any(part.levels for part in inside) else Item((first, None))
    while rest and _is_unmovable(rest[-1]):
        rest.pop()
    levels = [first, *rest, *([None] if size(dimension) != size([first, *rest]) else [])]
    if len(levels) > 3 or any(_is_unmovable(f) for f in rest):
        raise Inexpressible(rest, "blocks inside blocks inside blocks")
    _check_contexts(first, levels[1:])
    return Item(tuple(levels))


def _is_unmovable(factor: Factor) -> bool:
    """Return whether a factor needs no name: its order is fixed, or all its units are equal."""
    return bool(factor.fixed) or factor.free


def _parts(factor: Factor, rest: Sequence[Factor]) -> list[list[Factor]]:
    """Return the factors of each part of a factor that is cut, with the copies of the rest inside it."""
    roots = [{f.root: copy for f, copy in part.inside.items()} for part in factor.parts]
    if len({part.stop - part.start for part in factor.parts}) > 1:
        raise Inexpressible([factor, *rest], "parts of different sizes")
    if any(f.members > 1 for f in rest if any(f in copies for copies in roots)):
        raise Inexpressible([factor, *rest], "units used both together and in parts")
    return [[*p.factors, *(copies.get(f, f) for f in rest)] for p, copies in zip(factor.parts, roots, strict=True)]


def _check_contexts(outer: Factor, inside: Iterable[Factor | None]) -> None:
    shared = [f for f in inside if f is not None and outer not in contexts(f)]
    if shared:
        raise Inexpressible(shared, "one order would have to serve all blocks")


@dataclass(frozen=True)
class Table:
    """The lines of a traced model.

    Attributes:
        lines: tensor -> notation.
        outputs: output -> notation.
        sizes: number of blocks by outer and middle axis.
        names: factor -> the name of its axis.
        inner: factor inside blocks -> the factor of those blocks.
    """

    lines: Mapping[str, str]
    outputs: Mapping[str, str]
    sizes: Mapping[str, int]
    names: Mapping[Factor, str]
    inner: Mapping[Factor, Factor]


def write_table(trace: Trace, labels: Factor | None = None) -> Table:
    """Return every line of a trace, after fixing what the notation cannot express.

    Args:
        labels: the factor of the classes, if it is known; its axis is named `labels`.
    """
    items, outputs, inner = _expressible_items(trace)
    outer = dict.fromkeys(inner.values())
    middles = dict.fromkeys(
        level for line in items.values() for i in line for level in i.levels[1:-1] if level is not None
    )
    names = _names(items, inner, list(middles), labels)
    lines = {name: _line(line, inner, names) for name, line in items.items()}
    sizes = {names[f]: f.size for f in (*outer, *_blocks(items), *middles) if f in names}
    written = {name: " ".join(i.write(names) for i in line) for name, line in outputs.items()}
    return Table(lines, written, sizes, names, inner)


Lines = tuple[dict[str, list[Item]], dict[str, list[Item]], dict[Factor, Factor]]


def _expressible_items(trace: Trace) -> Lines:
    """Return the items as `_items` does, fixing factors until all items can be expressed."""
    while True:
        try:
            return _items(trace)
        except Inexpressible as fault:
            stuck = all(factor.root.fixed for factor in fault.factors)
            fix(fault.factors, fault.why)
        assert not stuck, "fixing these factors does not make the line expressible"


def _items(trace: Trace) -> Lines:
    """Return the items of every tensor and of every output, and inner factor -> outer factor.

    Raises:
        Inexpressible: a line cannot be written, or a factor is inside blocks of two kinds.
    """
    items = {name: [item_of(dim) for dim in dims] for name, dims in trace.tensors.items()}
    outputs = {name: [item_of(dim) for dim in dims] for name, dims in trace.outputs.items()}
    inner: dict[Factor, Factor] = {}
    for item in (i for line in (*items.values(), *outputs.values()) for i in line):
        for outer, inside in item.nested():
            if inner.setdefault(inside, outer) is not outer:
                raise Inexpressible([inside], "it lies inside blocks of two kinds")
    # A weight with a dimension for heads: the factor after a dimension of blocks may be inside them, `{heads qk}`, if
    # it is so wherever it occurs.
    alone: dict[Factor, set[Factor | None]] = {}
    for line in (*items.values(), *outputs.values()):
        for before, item in zip([Item(), *line], line, strict=False):
            if (x := item.single) is not None and x not in inner.values():
                o = before.single
                alone.setdefault(x, set()).add(o if o is not None and o in contexts(x) and o not in inner else None)
    for x, preceding in alone.items():
        if x in inner and preceding != {inner[x]}:
            raise Inexpressible([x], "it is used both inside blocks and alone")
        if len(preceding) == 1 and (o := next(iter(preceding))) is not None and o not in alone.keys() & inner.keys():
            inner[x] = o
    chained = [x for x, o in inner.items() if o in inner]
    if chained:
        raise Inexpressible(chained, "blocks inside blocks")
    return items, outputs, inner


def _blocks(items: Mapping[str, list[Item]]) -> Iterator[Factor]:
    """Yield the outermost factor of every split axis."""
    for item in (i for line in items.values() for top in line for i in (top, *top.parts)):
        if item.levels and item.levels[0] is not None and (len(item.levels) > 1 or item.parts):
            yield item.levels[0]


def _line(line: Sequence[Item], inner: Mapping[Factor, Factor], names: Mapping[Factor, str]) -> str:
    words: list[str] = []
    for before, item in zip([Item(), *line], line, strict=False):
        x, o = item.single, before.single
        if x is not None and o is not None and inner.get(x) is o:
            words[-1] = f"{{{names[o]} {names[x]}}}"
        else:
            words.append(item.write(names))
    return " ".join(words)


def _names(
    items: Mapping[str, list[Item]], inner: Mapping[Factor, Factor], middles: Sequence[Factor], labels: Factor | None
) -> dict[Factor, str]:
    """Return a name for every factor that may be permuted: what it is for, and the number of its layer."""
    tensors_of: dict[Factor, list[str]] = {}
    for tensor, line in items.items():
        for factor in (f for item in line for f in item.names()):
            tensors_of.setdefault(factor, []).append(tensor)
    plain = [f for f in tensors_of if f not in inner and f not in inner.values()]
    # The residual stream is the axis of the most tensors.
    stream = max(plain, key=lambda f: len(tensors_of[f]), default=None)
    heads = {*inner.values(), *_blocks(items)}
    names: dict[Factor, str] = {}
    for factor, tensors in tensors_of.items():
        layer = _layer(tensors)
        if factor is labels:
            word, layer = "labels", ""
        elif factor is stream:
            word, layer = "residual", ""
        elif factor in heads:
            word = "heads"
        elif factor in middles:
            word = "queries"
        elif factor in inner:
            word = "qk" if factor.scored else "v"
        else:
            others = [f for f in plain if f is not stream and layer and _layer(tensors_of[f]) == layer]
            word = "ffn" if len(others) == 1 else _word(next((t for t in tensors if "embed" in t), tensors[0]))
        number = layer.rsplit(".", 1)[-1]
        names[factor] = _unused(word, number, tensors[0], set(names.values()))
    return names


def _layer(tensors: Sequence[str]) -> str:
    """Return the path of the layer that all these tensors are in, such as `encoder.layer.3`; empty if there is none."""
    paths = {match[0] if (match := re.match(r"(?:.*?\.)??\d+(?=\.)", name)) else "" for name in tensors}
    return paths.pop() if len(paths) == 1 else ""


def _word(tensor: str) -> str:
    """Return the last word of a tensor's name that tells what its module is for."""
    words = [w for w in tensor.split(".") if not w.isdigit() and w not in PLAIN_WORDS]
    return re.sub(r"\W|\d+$", "", words[-1]) if words else "axis"


def _unused(word: str, number: str, tensor: str, taken: set[str]) -> str:
    """Return the word and number as a name; if it is taken, with another word of the tensor's path before it."""
    words = [w for w in tensor.split(".") if w not in PLAIN_WORDS and not w.isdigit()]
    choices = [word, *(f"{w}_{word}" for w in words), *(f"{word}_{'x' * k}" for k in range(1, len(taken) + 2))]
    return next(f"{choice}{number}" for choice in choices if f"{choice}{number}" not in taken)
