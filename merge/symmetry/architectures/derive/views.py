"""Views: what the dimensions of a tensor are made of after it is reshaped, cut up or put together.

Rules as in `merge.symmetry.architectures.derive.operations`, for the operations that compute nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor

from merge.symmetry.architectures.derive.factors import Factor, cut, divide, fix, fixed, flat, joined, lose, size, unite

Labels = list[list[Factor]]
Known = Mapping[int, Labels]
Rule = Callable[[Known, Any, Any, Any], list[Labels] | None]


def _free(count: int) -> list[Factor]:
    return [Factor(count, free=True)] if count != 1 else []


def _view(known: Known, args: Any, kwargs: Any, out: Tensor) -> list[Labels] | None:
    factors = flat([f for dim in known[id(args[0])] for f in dim])
    found = regroup(factors, out.shape) or regroup(_merged(factors), out.shape)
    if found is None:
        why = "a view across units of different kinds"
        fix(factors, why)
        found = [[fixed(n, why)] for n in out.shape]
    return [found]


def regroup(factors: Sequence[Factor], shape: Sequence[int]) -> Labels | None:
    """Return the same row-major units as dimensions of other sizes, splitting factors where a border falls inside one."""
    left, dims = list(factors)[::-1], []
    for wanted in shape:
        dim: list[Factor] = []
        while size(dim) < wanted:
            factor, missing = left.pop(), wanted // size(dim)
            if factor.size > missing:
                if missing * size(dim) != wanted or not divide(factor, missing):
                    return None
                left += flat([factor])[::-1]
                continue
            dim.append(factor)
        if size(dim) != wanted:
            return None
        dims.append(dim)
    return dims


def _merged(factors: Sequence[Factor]) -> list[Factor]:
    """Return the factors with neighbours that are fixed taken together, as a shift along positions needs."""
    out: list[Factor] = []
    for factor in factors:
        if out and out[-1].fixed and factor.fixed:
            out[-1] = fixed(out[-1].size * factor.size, factor.fixed)
        else:
            out.append(factor)
    return out


def _transpose(known: Known, args: Any, kwargs: Any, out: Tensor) -> list[Labels]:
    dims = list(known[id(args[0])])
    i, j = (args[1], args[2]) if len(args) > 1 else (0, -1)
    if dims:
        dims[i], dims[j] = dims[j], dims[i]
    return [dims]


def _permute(known: Known, args: Any, kwargs: Any, out: Tensor) -> list[Labels]:
    return [[known[id(args[0])][d] for d in args[1]]]


def _unsqueeze(known: Known, args: Any, kwargs: Any, out: Tensor) -> list[Labels]:
    dims = list(known[id(args[0])])
    dims.insert(args[1] % out.ndim, [])
    return [dims]


def _squeeze(known: Known, args: Any, kwargs: Any, out: Tensor) -> list[Labels]:
    chosen = range(args[0].ndim) if len(args) == 1 else args[1] if isinstance(args[1], list | tuple) else [args[1]]
    gone = {d % args[0].ndim for d in chosen if args[0].shape[d] == 1}
    return [[dim for d, dim in enumerate(known[id(args[0])]) if d not in gone]]


def _expand(known: Known, args: Any, kwargs: Any, out: Tensor) -> list[Labels]:
    dims: Labels = [[] for _ in range(out.ndim - args[0].ndim)] + list(known[id(args[0])])
    return [[dim if size(dim) == n else _free(n) for dim, n in zip(dims, out.shape, strict=True)]]


def _repeat(known: Known, args: Any, kwargs: Any, out: Tensor) -> list[Labels]:
    dims: Labels = [[] for _ in range(out.ndim - args[0].ndim)] + list(known[id(args[0])])
    return [[[*_free(times), *dim] for dim, times in zip(dims, args[1], strict=True)]]


def _slice(dims: Labels, along: int, start: int, stop: int, drop: bool = False) -> Labels:
    """Return the dimensions of units [start, stop) along one of them; what lies inside becomes that part's own."""
    factors = flat(dims[along])
    if not drop and (start, stop) == (0, size(factors)):
        return dims
    inside: Mapping[Factor, Factor] = {}
    rest = size(factors[1:])
    if not factors:
        piece: list[Factor] = []
    elif start % rest or stop % rest:
        fix(factors, "a slice across units of different kinds")
        piece = [fixed(stop - start, "a slice across units of different kinds")]
    else:
        part = cut(factors[0], start // rest, stop // rest, "a slice")
        inside = part.inside
        piece = [*part.factors, *factors[1:]]
        if factors[0].fixed and drop:
            lose([factors[0]], [dim for d, dim in enumerate(dims) if d != along])
    out = [piece if d == along else dim for d, dim in enumerate(dims)]
    roots = {f.root: copy for f, copy in inside.items()}
    out = [[roots.get(f, f) for f in flat(dim)] for dim in out]
    return [dim for d, dim in enumerate(out) if not (drop and d == along)]


def _slice_rule(known: Known, args: Any, kwargs: Any, out: Tensor) -> list[Labels] | None:
    asked: list[Any] = [*args[1:], *(0, None, None, 1)[len(args) - 1 :]]
    dims, along = known[id(args[0])], asked[0] % out.ndim
    start, stop, step = slice(*asked[1:]).indices(args[0].shape[along])
    if step == 1:
        return [_slice(dims, along, start, stop)] if out.numel() else None
    why = "every so many units are taken"
    fix(dims[along], why)
    return [[[fixed(out.shape[along], why)] if d == along else dim for d, dim in enumerate(dims)]]


def _select(known: Known, args: Any, kwargs: Any, out: Tensor) -> list[Labels]:
    along = args[1] % args[0].ndim
    at = args[2] % args[0].shape[along]
    return [_slice(known[id(args[0])], along, at, at + 1, drop=True)]


def _split(known: Known, args: Any, kwargs: Any, out: Sequence[Tensor]) -> list[Labels]:
    along = (args[2] if len(args) > 2 else kwargs.get("dim", 0)) % args[0].ndim
    found, start = [], 0
    for piece in out:
        found.append(_slice(known[id(args[0])], along, start, start + piece.shape[along]))
        start += piece.shape[along]
    return found


def _unbind(known: Known, args: Any, kwargs: Any, out: Sequence[Tensor]) -> list[Labels]:
    along = (args[1] if len(args) > 1 else 0) % args[0].ndim
    return [_slice(known[id(args[0])], along, k, k + 1, drop=True) for k in range(len(out))]


def _cat(known: Known, args: Any, kwargs: Any, out: Tensor) -> list[Labels]:
    given = [known[id(t)] for t in args[0] if t.numel()]
    return [_join(given, (args[1] if len(args) > 1 else kwargs.get("dim", 0)) % out.ndim)]


def _stack(known: Known, args: Any, kwargs: Any, out: Tensor) -> list[Labels]:
    along = (args[1] if len(args) > 1 else kwargs.get("dim", 0)) % out.ndim
    return [_join([[*known[id(t)][:along], [], *known[id(t)][along:]] for t in args[0]], along)]


def _join(given: Sequence[Labels], along: int) -> Labels:
    dims: Labels = []
    for d in range(len(given[0])):
        if d == along:
            dims.append([joined([labels[d] for labels in given])] if len(given) > 1 else given[0][d])
            continue
        for labels in given[1:]:
            unite(given[0][d], labels[d], "a concatenation")
        dims.append(given[0][d])
    return dims


def _pad(known: Known, args: Any, kwargs: Any, out: Tensor) -> list[Labels]:
    dims = known[id(args[0])]
    changed = [d for d, dim in enumerate(dims) if size(dim) != out.shape[d]]
    for d in changed:
        fix(dims[d], "padded")
    return [[[fixed(out.shape[d], "padded")] if d in changed else dim for d, dim in enumerate(dims)]]


VIEWS: dict[str, Rule] = {
    **dict.fromkeys(("view", "_unsafe_view", "reshape", "_reshape_alias"), _view),
    **dict.fromkeys(("split", "split_with_sizes", "unsafe_split"), _split),
    "t": lambda known, args, kwargs, out: _transpose(known, args[:1], kwargs, out),
    "transpose": _transpose,
    "permute": _permute,
    "unsqueeze": _unsqueeze,
    "squeeze": _squeeze,
    "expand": _expand,
    "repeat": _repeat,
    "slice": _slice_rule,
    "select": _select,
    "unbind": _unbind,
    "cat": _cat,
    "stack": _stack,
    "constant_pad_nd": _pad,
}
