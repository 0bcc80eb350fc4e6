"""Items: the factors of a traced model written in the notation of tables, under names a user knows.

Not every symmetry can be said in the notation (one order shared by all heads, parts of different sizes); what cannot is
fixed, with the reason, until every line can be written.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from merge.symmetry.architectures.derive.factors import Dimension, Factor, contexts, fix, flat, size
from merge.symmetry.architectures.derive.trace import Trace

# Words of a module's path that say nothing of what it does.
PLAIN_WORDS = {"weight", "bias", "dense", "linear", "proj", "layer", "layers", "self", "output", "out_proj", "model"}


class Unsayable(Exception):
    """Factors whose freedom the notation has no words for."""

    def __init__(self, factors: Iterable[Factor], why: str) -> None:
        super().__init__(why)
        self.factors, self.why = tuple(factors), why


@dataclass(frozen=True)
class Item:
    """One item of a line: the levels of a split axis from outside in (None: may not move), and parts laid end to end."""

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
        """Yield every factor that moves."""
        yield from (level for level in self.levels if level is not None)
        for part in self.parts:
            yield from part.names()

    def write(self, name: Mapping[Factor, str]) -> str:
        """Return the item in the notation."""
        words = [name[level] if level is not None else "-" for level in self.levels]
        if self.parts:
            words.append(f"[{' | '.join(part.write(name) for part in self.parts)}]")
        return f"({' '.join(words)})" if len(words) > 1 else "".join(words) or "-"


def item(dimension: Dimension) -> Item:
    """Return the item for a dimension.

    Raises:
        Unsayable: the notation has no item for it; names what has to be fixed.
    """
    leaves = flat(dimension)
    if all(_still(f) for f in leaves):
        return Item()
    first, *rest = leaves
    if first.parts and not first.fixed:
        parts = tuple(item(factors) for factors in _parts(first, rest))
        if any(part.parts for part in parts):
            raise Unsayable(leaves, "parts inside parts")
        return Item(parts=parts) if any(part.levels for part in parts) else Item()
    if first.fixed:
        raise Unsayable(rest, "it lies inside blocks that may not move")
    if rest and rest[0].parts and not rest[0].fixed:
        inside = tuple(item(factors) for factors in _parts(rest[0], rest[1:]))
        if any(part.parts or len(part.levels) > 1 for part in inside):
            raise Unsayable(rest, "parts of a block that are themselves split")
        _check_contexts(first, [part.single for part in inside])
        return Item((first,), inside) if any(part.levels for part in inside) else Item((first, None))
    while rest and _still(rest[-1]):
        rest.pop()
    levels = [first, *rest, *([None] if size(dimension) != size([first, *rest]) else [])]
    if len(levels) > 3 or any(_still(f) for f in rest):
        raise Unsayable(rest, "blocks inside blocks inside blocks")
    _check_contexts(first, levels[1:])
    return Item(tuple(levels))


def _still(factor: Factor) -> bool:
    return bool(factor.fixed) or factor.free


def _parts(factor: Factor, rest: Sequence[Factor]) -> list[list[Factor]]:
    """Return the factors of each part of a factor that is cut, with what became of the rest inside it."""
    roots = [{f.root: copy for f, copy in part.inside.items()} for part in factor.parts]
    if len({part.stop - part.start for part in factor.parts}) > 1:
        raise Unsayable([factor, *rest], "parts of different sizes")
    if any(f.members > 1 for f in rest if any(f in known for known in roots)):
        raise Unsayable([factor, *rest], "units used both together and in parts")
    return [[*p.factors, *(known.get(f, f) for f in rest)] for p, known in zip(factor.parts, roots, strict=True)]


def _check_contexts(outer: Factor, inside: Iterable[Factor | None]) -> None:
    shared = [f for f in inside if f is not None and outer not in contexts(f)]
    if shared:
        raise Unsayable(shared, "one order would have to serve all blocks")


@dataclass(frozen=True)
class Table:
    """The lines of a traced model.

    Attributes:
        lines: tensor -> notation.
        outputs: output -> notation.
        sizes: number of blocks by outer and middle axis.
        names: factor -> the name of its axis.
        inner: factor -> the factor whose blocks it orders.
    """

    lines: Mapping[str, str]
    outputs: Mapping[str, str]
    sizes: Mapping[str, int]
    names: Mapping[Factor, str]
    inner: Mapping[Factor, Factor]


def write_table(trace: Trace, labels: Factor | None = None) -> Table:
    """Return every line of a trace, fixing first what cannot be said.

    Args:
        labels: the classes' factor, whose name is given.
    """
    items, outputs, inner = _settled(trace)
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


def _settled(trace: Trace) -> Lines:
    """Return what `_items` does, fixing what cannot be said until all can."""
    while True:
        try:
            return _items(trace)
        except Unsayable as fault:
            stuck = all(factor.root.fixed for factor in fault.factors)
            fix(fault.factors, fault.why)
        assert not stuck, "a fault that fixing does not mend"


def _items(trace: Trace) -> Lines:
    """Return the items of every tensor and output, and each inner factor's outer one.

    Raises:
        Unsayable: some line cannot be written, or a factor lies in two kinds of blocks.
    """
    items = {name: [item(dim) for dim in dims] for name, dims in trace.tensors.items()}
    outputs = {name: [item(dim) for dim in dims] for name, dims in trace.outputs.items()}
    inner: dict[Factor, Factor] = {}
    for one in (i for line in (*items.values(), *outputs.values()) for i in line):
        for outer, inside in one.nested():
            if inner.setdefault(inside, outer) is not outer:
                raise Unsayable([inside], "it lies inside blocks of two kinds")
    alone: dict[Factor, set[Factor | None]] = {}
    for line in (*items.values(), *outputs.values()):
        for before, one in zip([Item(), *line], line, strict=False):
            if (x := one.single) is not None and x not in inner.values():
                o = before.single
                alone.setdefault(x, set()).add(o if o is not None and o in contexts(x) and o not in inner else None)
    for x, seen in alone.items():
        if x in inner and seen != {inner[x]}:
            raise Unsayable([x], "it is used both inside blocks and alone")
        if len(seen) == 1 and (o := next(iter(seen))) is not None and o not in alone.keys() & inner.keys():
            inner[x] = o
    chained = [x for x, o in inner.items() if o in inner]
    if chained:
        raise Unsayable(chained, "blocks inside blocks")
    return items, outputs, inner


def _blocks(items: Mapping[str, list[Item]]) -> Iterator[Factor]:
    for one in (i for line in items.values() for top in line for i in (top, *top.parts)):
        if one.levels and one.levels[0] is not None and (len(one.levels) > 1 or one.parts):
            yield one.levels[0]


def _line(line: Sequence[Item], inner: Mapping[Factor, Factor], names: Mapping[Factor, str]) -> str:
    words: list[str] = []
    for before, one in zip([Item(), *line], line, strict=False):
        x, o = one.single, before.single
        if x is not None and o is not None and inner.get(x) is o:
            words[-1] = f"{{{names[o]} {names[x]}}}"
        else:
            words.append(one.write(names))
    return " ".join(words)


def _names(
    items: Mapping[str, list[Item]], inner: Mapping[Factor, Factor], middles: Sequence[Factor], labels: Factor | None
) -> dict[Factor, str]:
    """Return a name for every factor that moves: the part it plays, and the number of its layer."""
    seen: dict[Factor, list[str]] = {}
    for tensor, line in items.items():
        for factor in (f for one in line for f in one.names()):
            seen.setdefault(factor, []).append(tensor)
    plain = [f for f in seen if f not in inner and f not in inner.values()]
    stream = max(plain, key=lambda f: len(seen[f]), default=None)
    heads = {*inner.values(), *_blocks(items)}
    names: dict[Factor, str] = {}
    for factor, tensors in seen.items():
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
            others = [f for f in plain if f is not stream and layer and _layer(seen[f]) == layer]
            word = "ffn" if len(others) == 1 else _word(next((t for t in tensors if "embed" in t), tensors[0]))
        number = layer.rsplit(".", 1)[-1]
        names[factor] = _unused(word, number, tensors[0], set(names.values()))
    return names


def _layer(tensors: Sequence[str]) -> str:
    """Return the path of the layer all these tensors are in, such as `encoder.layer.3`, or nothing."""
    paths = {found[0] if (found := re.match(r"(?:.*?\.)??\d+(?=\.)", name)) else "" for name in tensors}
    return paths.pop() if len(paths) == 1 else ""


def _word(tensor: str) -> str:
    words = [w for w in tensor.split(".") if not w.isdigit() and w not in PLAIN_WORDS]
    return re.sub(r"\W|\d+$", "", words[-1]) if words else "axis"


def _unused(word: str, number: str, tensor: str, taken: set[str]) -> str:
    """Return the name, told apart from those taken by a word of the tensor's path."""
    words = [w for w in tensor.split(".") if w not in PLAIN_WORDS and not w.isdigit()]
    choices = [word, *(f"{w}_{word}" for w in words), *(f"{word}_{'x' * k}" for k in range(1, len(taken) + 2))]
    return next(f"{choice}{number}" for choice in choices if f"{choice}{number}" not in taken)
