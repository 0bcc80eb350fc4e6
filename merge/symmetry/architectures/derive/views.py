"""Rules for operations that compute nothing: the dimensions of a tensor after it is reshaped, cut up or put together.

Rules are as in `merge.symmetry.architectures.derive.operations`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor

from merge.symmetry.architectures.derive.factors import Factor, cut, divide, fix, fixed, flat, joined, lose, size, unite

# The factors of each dimension of a tensor; of each input of an operation, by identity; a rule for an operation.
Labels = list[list[Factor]]
Inputs = Mapping[int, Labels]
Rule = Callable[[Inputs, Any, Any, Any], list[Labels] | None]


def _free(count: int) -> list[Factor]:
    return [Factor(count, free=True)] if count != 1 else []


def _view(inputs: Inputs, args: Any, kwargs: Any, out: Tensor) -> list[Labels] | None:
    factors = flat([f for dim in inputs[id(args[0])] for f in dim])
    dims = regroup(factors, out.shape) or regroup(_merge_fixed(factors), out.shape)
    if dims is None:
        why = "a view across units of different kinds"
        fix(factors, why)
        dims = [[fixed(n, why)] for n in out.shape]
    return [dims]


def regroup(factors: Sequence[Factor], shape: Sequence[int]) -> Labels | None:
    """Return the same row-major units as dimensions of this shape, splitting a factor where a border falls inside it.

    None where a factor cannot be split there.
    """
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


def _merge_fixed(factors: Sequence[Factor]) -> list[Factor]:
    """Return the factors with fixed neighbours merged into one, which a shift along positions needs."""
    out: list[Factor] = []
    for factor in factors:
        if out and out[-1].fixed and factor.fixed:
            out[-1] = fixed(out[-1].size * factor.size, factor.fixed)
        else:
            out.append(factor)
    return out


def _transpose(inputs: Inputs, args: Any, kwargs: Any, out: Tensor) -> list[Labels]:
    dims = list(inputs[id(args[0])])
    i, j = (args[1], args[2]) if len(args) > 1 else (0, -1)
    if dims:
        dims[i], dims[j] = dims[j], dims[i]
    return [dims]


def _permute(inputs: Inputs, args: Any, kwargs: Any, out: Tensor) -> list[Labels]:
    return [[inputs[id(args[0])][d] for d in args[1]]]


def _unsqueeze(inputs: Inputs, args: Any, kwargs: Any, out: Tensor) -> list[Labels]:
    dims = list(inputs[id(args[0])])
    dims.insert(args[1] % out.ndim, [])
    return [dims]


def _squeeze(inputs: Inputs, args: Any, kwargs: Any, out: Tensor) -> list[Labels]:
    chosen = range(args[0].ndim) if len(args) == 1 else args[1] if isinstance(args[1], list | tuple) else [args[1]]
    removed = {d % args[0].ndim for d in chosen if args[0].shape[d] == 1}
    return [[dim for d, dim in enumerate(inputs[id(args[0])]) if d not in removed]]


def _expand(inputs: Inputs, args: Any, kwargs: Any, out: Tensor) -> list[Labels]:
    dims: Labels = [[] for _ in range(out.ndim - args[0].ndim)] + list(inputs[id(args[0])])
    return [[dim if size(dim) == n else _free(n) for dim, n in zip(dims, out.shape, strict=True)]]


def _repeat(inputs: Inputs, args: Any, kwargs: Any, out: Tensor) -> list[Labels]:
    dims: Labels = [[] for _ in range(out.ndim - args[0].ndim)] + list(inputs[id(args[0])])
    return [[[*_free(times), *dim] for dim, times in zip(dims, args[1], strict=True)]]


def _slice(dims: Labels, along: int, start: int, stop: int, drop: bool = False) -> Labels:
    """Return the dimensions of units [start, stop) along one of them; factors inside the units become the part's copies.

    With `drop` the dimension itself goes, as where one unit is selected.
    """
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


def _slice_rule(inputs: Inputs, args: Any, kwargs: Any, out: Tensor) -> list[Labels] | None:
    settings: list[Any] = [*args[1:], *(0, None, None, 1)[len(args) - 1 :]]
    dims, along = inputs[id(args[0])], settings[0] % out.ndim
    start, stop, step = slice(*settings[1:]).indices(args[0].shape[along])
    if step == 1:
        return [_slice(dims, along, start, stop)] if out.numel() else None
    why = "every so many units are taken"
    fix(dims[along], why)
    return [[[fixed(out.shape[along], why)] if d == along else dim for d, dim in enumerate(dims)]]


def _select(inputs: Inputs, args: Any, kwargs: Any, out: Tensor) -> list[Labels]:
    along = args[1] % args[0].ndim
    unit = args[2] % args[0].shape[along]
    return [_slice(inputs[id(args[0])], along, unit, unit + 1, drop=True)]


def _split(inputs: Inputs, args: Any, kwargs: Any, out: Sequence[Tensor]) -> list[Labels]:
    along = (args[2] if len(args) > 2 else kwargs.get("dim", 0)) % args[0].ndim
    pieces, start = [], 0
    for piece in out:
        pieces.append(_slice(inputs[id(args[0])], along, start, start + piece.shape[along]))
        start += piece.shape[along]
    return pieces


def _unbind(inputs: Inputs, args: Any, kwargs: Any, out: Sequence[Tensor]) -> list[Labels]:
    along = (args[1] if len(args) > 1 else 0) % args[0].ndim
    return [_slice(inputs[id(args[0])], along, k, k + 1, drop=True) for k in range(len(out))]


def _cat(inputs: Inputs, args: Any, kwargs: Any, out: Tensor) -> list[Labels]:
    joined_inputs = [inputs[id(t)] for t in args[0] if t.numel()]
    return [_join(joined_inputs, (args[1] if len(args) > 1 else kwargs.get("dim", 0)) % out.ndim)]


def _stack(inputs: Inputs, args: Any, kwargs: Any, out: Tensor) -> list[Labels]:
    along = (args[1] if len(args) > 1 else kwargs.get("dim", 0)) % out.ndim
    return [_join([[*inputs[id(t)][:along], [], *inputs[id(t)][along:]] for t in args[0]], along)]


def _join(tensors: Sequence[Labels], along: int) -> Labels:
    dims: Labels = []
    for d in range(len(tensors[0])):
        if d == along:
            dims.append([joined([labels[d] for labels in tensors])] if len(tensors) > 1 else tensors[0][d])
            continue
        for labels in tensors[1:]:
            unite(tensors[0][d], labels[d], "a concatenation")
        dims.append(tensors[0][d])
    return dims


def _pad(inputs: Inputs, args: Any, kwargs: Any, out: Tensor) -> list[Labels]:
    dims = inputs[id(args[0])]
    changed = [d for d, dim in enumerate(dims) if size(dim) != out.shape[d]]
    for d in changed:
        fix(dims[d], "padded")
    return [[[fixed(out.shape[d], "padded")] if d in changed else dim for d, dim in enumerate(dims)]]


VIEWS: dict[str, Rule] = {
    **dict.fromkeys(("view", "_unsafe_view", "reshape", "_reshape_alias"), _view),
    **dict.fromkeys(("split", "split_with_sizes", "unsafe_split"), _split),
    "t": lambda inputs, args, kwargs, out: _transpose(inputs, args[:1], kwargs, out),
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
