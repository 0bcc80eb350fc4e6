"""Operations: for each operation of torch, what the dimensions of its outputs are made of, given those of its inputs.

A rule takes the labels of the inputs by identity, the call, and the output, and returns the dimensions of each output,
or None where it does not know. Rules unite what an operation pairs, fix what it tells apart by position, and note what
it sums away. Batches and positions are fixed from the start.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from merge.symmetry.architectures.derive.factors import fix, fixed, flat, lose, size, unite
from merge.symmetry.architectures.derive.views import VIEWS, Known, Labels, Rule, regroup

PLACES = "places of an image or a text"


def pointwise(known: Known, args: Any, kwargs: Any, out: Any) -> list[Labels] | None:
    """Broadcast: dimensions of the inputs that meet move alike."""
    given = [v for v in (*args, *kwargs.values()) if isinstance(v, Tensor)]
    return [_meet(known, given, out)] if isinstance(out, Tensor) else None


def _meet(known: Known, given: Sequence[Tensor], out: Tensor) -> Labels:
    dims: Labels = []
    for back in range(out.ndim, 0, -1):
        meeting = [known[id(t)][-back] for t in given if t.ndim >= back and t.shape[-back] != 1]
        for other in meeting[1:]:
            unite(meeting[0], other, "an elementwise operation")
        dims.append(meeting[0] if meeting else [])
    return dims


def _same(known: Known, args: Any, kwargs: Any, out: Any) -> list[Labels] | None:
    return [known[id(args[0])]]


def _dims(args: Any, kwargs: Any, at: int = 1) -> list[int]:
    dims = args[at] if len(args) > at else kwargs.get("dim")
    count = args[0].ndim
    if dims is None or dims == []:
        return list(range(count))
    return [d % count for d in (dims if isinstance(dims, list | tuple) else [dims])]


def _reduce(known: Known, args: Any, kwargs: Any, out: Any) -> list[Labels]:
    """Sum, mean, largest: the dimensions summed over go, and nothing that stays may depend on their order."""
    dims, gone = known[id(args[0])], _dims(args, kwargs)
    kept = [dim for d, dim in enumerate(dims) if d not in gone]
    for d in gone:
        lose(dims[d], kept)
    first = out[0] if isinstance(out, tuple) else out
    labels = [[] if d in gone else dim for d, dim in enumerate(dims)] if first.ndim == len(dims) else kept
    return [labels] * (len(out) if isinstance(out, tuple) else 1)


def _softmax(known: Known, args: Any, kwargs: Any, out: Tensor) -> list[Labels]:
    dims = known[id(args[0])]
    over = args[1] % len(dims)
    lose(dims[over], [dim for d, dim in enumerate(dims) if d != over])
    return [dims]


def _layer_norm(known: Known, args: Any, kwargs: Any, out: Any) -> list[Labels]:
    dims = known[id(args[0])]
    for weight in (w for w in args[2:4] if w is not None):
        for mine, its in zip(dims[-weight.ndim :], known[id(weight)], strict=True):
            unite(mine, its, "a normalisation")
    over = len(dims) - len(args[1])
    for d in range(over, len(dims)):
        lose(dims[d], [dim for e, dim in enumerate(dims) if e != d])
    return [dims, *([[] if d >= over else dim for d, dim in enumerate(dims)],) * 2]


def _matmul(known: Known, args: Any, kwargs: Any, out: Tensor) -> list[Labels]:
    return [_multiply(known[id(args[0])], known[id(args[1])])]


def _multiply(a: Labels, b: Labels) -> Labels:
    """Batches, then rows by columns; what is summed over is lost to what stays."""
    *batch, rows, inner = a
    *other, its, columns = b
    for one, two in zip(batch, other, strict=True):
        unite(one, two, "a batched product")
        for factor in flat(inner) if flat(one) else ():
            factor.scored = True
    unite(inner, its, "a matrix product")
    dims = [*batch, rows, columns]
    lose(inner, dims)
    return dims


def _add_matmul(known: Known, args: Any, kwargs: Any, out: Tensor) -> list[Labels]:
    dims = _multiply(known[id(args[1])], known[id(args[2])])
    bias = known[id(args[0])]
    for mine, its, n in zip(dims[len(dims) - len(bias) :], bias, args[0].shape, strict=True):
        if n != 1:
            unite(mine, its, "a bias")
    return [dims]


def _dot(known: Known, args: Any, kwargs: Any, out: Tensor) -> list[Labels]:
    *kept, inner = known[id(args[0])]
    unite(inner, known[id(args[1])][0], "a product")
    lose(inner, kept)
    return [kept]


def _embedding(known: Known, args: Any, kwargs: Any, out: Tensor) -> list[Labels]:
    rows, *rest = known[id(args[0])]
    fix(rows, "rows are looked up by number")
    lose(rows, rest)
    return [[*([fixed(n, "batch or position")] for n in args[1].shape), *rest]]


def _index(known: Known, args: Any, kwargs: Any, out: Tensor) -> list[Labels] | None:
    dims, at = known[id(args[0])], [d for d, i in enumerate(args[1]) if i is not None]
    if at != list(range(at[0], at[-1] + 1)):
        return None
    picked = [dims[d] for d in at]
    kept = [dim for d, dim in enumerate(dims) if d not in at]
    for dim in picked:
        fix(dim, "units are looked up by number")
        lose(dim, kept)
    new = out.ndim - len(kept)
    looked_up: Labels = [[fixed(n, "batch or position")] for n in out.shape[at[0] : at[0] + new]]
    return [dims[: at[0]] + looked_up + dims[at[-1] + 1 :]]


def _gather(known: Known, args: Any, kwargs: Any, out: Tensor) -> list[Labels]:
    """Look up along one dimension; along the others the table and the numbers go side by side."""
    dims, numbers, along = known[id(args[0])], known[id(args[2])], args[1] % out.ndim
    for d, (mine, its) in enumerate(zip(dims, numbers, strict=True)):
        if d == along or size(mine) != size(its):
            fix([*mine, *its], "units are looked up by number")
        else:
            unite(mine, its, "a lookup")
    return [
        [
            its if d == along or size(mine) != size(its) else mine
            for d, (mine, its) in enumerate(zip(dims, numbers, strict=True))
        ]
    ]


def _convolution(known: Known, args: Any, kwargs: Any, out: Tensor) -> list[Labels] | None:
    """Channels are summed over inside each group; places are fixed."""
    image, weight, groups = known[id(args[0])], known[id(args[1])], args[8]
    if args[6]:  # transposed: the weight's axes lie the other way
        return None
    channels = weight[0]
    if groups == 1:
        unite(image[1], weight[1], "a convolution")
    else:
        split = [regroup(flat(dim), (groups, size(dim) // groups)) for dim in (image[1], channels)]
        if split[0] is None or split[1] is None:
            return None
        unite(split[0][0], split[1][0], "groups of a convolution")
        unite(split[0][1], weight[1], "a convolution")
    if args[2] is not None:
        unite(channels, known[id(args[2])][0], "a bias")
    places = [f for dim in (*image[2:], *weight[2:]) for f in dim]
    fix(places, PLACES)
    lose(places, [channels])
    lose(weight[1], [channels, image[0]])
    return [[image[0], channels, *([fixed(n, PLACES)] for n in out.shape[2:])]]


def _batch_norm(known: Known, args: Any, kwargs: Any, out: Sequence[Tensor]) -> list[Labels]:
    dims = known[id(args[0])]
    for tensor in (t for t in args[1:5] if t is not None):
        unite(dims[1], known[id(tensor)][0], "a normalisation")
    return [dims]


def _pool(places: int) -> Rule:
    """Return the rule of what averages, picks or interpolates along the last axes, places of an image or a text."""

    def rule(known: Known, args: Any, kwargs: Any, out: Any) -> list[Labels]:
        dims, first = known[id(args[0])], out[0] if isinstance(out, tuple) else out
        fix((f for dim in dims[-places:] for f in dim), PLACES)
        for place in dims[-places:]:
            lose(place, dims[:-places])
        return [[*dims[:-places], *([fixed(n, PLACES)] for n in first.shape[-places:])]]

    return rule


def _ordered(known: Known, args: Any, kwargs: Any, out: Tensor) -> list[Labels]:
    along = args[1] if isinstance(args[1], list | tuple) else [args[1]]
    for d in along:
        fix(known[id(args[0])][d], "its order is used")
    return [known[id(args[0])]]


RULES: dict[str, Rule] = {
    **VIEWS,
    **dict.fromkeys(("_to_copy", "clone", "alias", "detach", "detach_", "contiguous", "lift_fresh"), _same),
    **dict.fromkeys(("masked_fill", "masked_fill_", "copy_", "fill_", "zero_"), pointwise),
    **dict.fromkeys(("sum", "mean", "amax", "amin", "var", "std", "var_mean", "logsumexp"), _reduce),
    **dict.fromkeys(("_softmax", "_log_softmax"), _softmax),
    **dict.fromkeys(("mm", "bmm"), _matmul),
    **dict.fromkeys(("addmm", "baddbmm"), _add_matmul),
    **dict.fromkeys(("mv", "dot"), _dot),
    **dict.fromkeys(("cumsum", "flip", "roll"), _ordered),
    **dict.fromkeys(("upsample_nearest2d", "upsample_bilinear2d", "upsample_bicubic2d"), _pool(2)),
    **dict.fromkeys(("avg_pool2d", "_adaptive_avg_pool2d", "max_pool2d_with_indices"), _pool(2)),
    **dict.fromkeys(("upsample_linear1d", "avg_pool1d", "max_pool1d"), _pool(1)),
    **dict.fromkeys(("native_batch_norm", "_native_batch_norm_legit_no_training"), _batch_norm),
    "native_layer_norm": _layer_norm,
    "embedding": _embedding,
    "index": _index,
    "gather": _gather,
    "convolution": _convolution,
    "index_select": lambda known, args, kwargs, out: _index(
        known, (args[0], [*(None,) * (args[1] % args[0].ndim), args[2]]), kwargs, out
    ),
    "_local_scalar_dense": lambda known, args, kwargs, out: [],
}
