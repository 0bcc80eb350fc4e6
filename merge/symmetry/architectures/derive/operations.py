"""Rules: for each operation of torch, the factors of its outputs, given those of its inputs.

A rule takes the factors of the inputs by the identity of each tensor, the arguments of the call, and the output. It
returns the factors of each dimension of each output, or None where it does not apply. A rule unites what the operation
pairs, fixes what it distinguishes by position, and notes what it sums away. Batch and position are fixed from the
start.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from merge.symmetry.architectures.derive.factors import fix, fixed, flat, lose, size, unite
from merge.symmetry.architectures.derive.views import VIEWS, Inputs, Labels, Rule, regroup

POSITIONS = "places of an image or a text"


def pointwise(inputs: Inputs, args: Any, kwargs: Any, out: Any) -> list[Labels] | None:
    """Broadcast: dimensions of the inputs that are paired are permuted alike."""
    tensors = [v for v in (*args, *kwargs.values()) if isinstance(v, Tensor)]
    return [_broadcast(inputs, tensors, out)] if isinstance(out, Tensor) else None


def _broadcast(inputs: Inputs, tensors: Sequence[Tensor], out: Tensor) -> Labels:
    dims: Labels = []
    for back in range(out.ndim, 0, -1):
        paired = [inputs[id(t)][-back] for t in tensors if t.ndim >= back and t.shape[-back] != 1]
        for other in paired[1:]:
            unite(paired[0], other, "an elementwise operation")
        dims.append(paired[0] if paired else [])
    return dims


def _same(inputs: Inputs, args: Any, kwargs: Any, out: Any) -> list[Labels] | None:
    return [inputs[id(args[0])]]


def _dims(args: Any, kwargs: Any) -> list[int]:
    """Return the dimensions that a reduction sums over."""
    dims = args[1] if len(args) > 1 else kwargs.get("dim")
    count = args[0].ndim
    if dims is None or dims == []:
        return list(range(count))
    return [d % count for d in (dims if isinstance(dims, list | tuple) else [dims])]


def _reduce(inputs: Inputs, args: Any, kwargs: Any, out: Any) -> list[Labels]:
    """Sum, mean, maximum: the dimensions summed over go, and no order that stays may depend on them."""
    dims, removed = inputs[id(args[0])], _dims(args, kwargs)
    kept = [dim for d, dim in enumerate(dims) if d not in removed]
    for d in removed:
        lose(dims[d], kept)
    first = out[0] if isinstance(out, tuple) else out
    labels = [[] if d in removed else dim for d, dim in enumerate(dims)] if first.ndim == len(dims) else kept
    return [labels] * (len(out) if isinstance(out, tuple) else 1)


def _softmax(inputs: Inputs, args: Any, kwargs: Any, out: Tensor) -> list[Labels]:
    dims = inputs[id(args[0])]
    over = args[1] % len(dims)
    lose(dims[over], [dim for d, dim in enumerate(dims) if d != over])
    return [dims]


def _layer_norm(inputs: Inputs, args: Any, kwargs: Any, out: Any) -> list[Labels]:
    dims = inputs[id(args[0])]
    for weight in (w for w in args[2:4] if w is not None):
        for mine, its in zip(dims[-weight.ndim :], inputs[id(weight)], strict=True):
            unite(mine, its, "a normalisation")
    over = len(dims) - len(args[1])
    for d in range(over, len(dims)):
        lose(dims[d], [dim for e, dim in enumerate(dims) if e != d])
    return [dims, *([[] if d >= over else dim for d, dim in enumerate(dims)],) * 2]


def _matmul(inputs: Inputs, args: Any, kwargs: Any, out: Tensor) -> list[Labels]:
    return [_multiply(inputs[id(args[0])], inputs[id(args[1])])]


def _multiply(a: Labels, b: Labels) -> Labels:
    """Return the dimensions of a batched matrix product; what is summed over is lost to what stays."""
    *batch, rows, inner = a
    *other, its, columns = b
    for mine, its_batch in zip(batch, other, strict=True):
        unite(mine, its_batch, "a batched product")
        for factor in flat(inner) if flat(mine) else ():
            factor.scored = True
    unite(inner, its, "a matrix product")
    dims = [*batch, rows, columns]
    lose(inner, dims)
    return dims


def _add_matmul(inputs: Inputs, args: Any, kwargs: Any, out: Tensor) -> list[Labels]:
    dims = _multiply(inputs[id(args[1])], inputs[id(args[2])])
    bias = inputs[id(args[0])]
    for mine, its, n in zip(dims[len(dims) - len(bias) :], bias, args[0].shape, strict=True):
        if n != 1:
            unite(mine, its, "a bias")
    return [dims]


def _dot(inputs: Inputs, args: Any, kwargs: Any, out: Tensor) -> list[Labels]:
    *kept, inner = inputs[id(args[0])]
    unite(inner, inputs[id(args[1])][0], "a product")
    lose(inner, kept)
    return [kept]


def _embedding(inputs: Inputs, args: Any, kwargs: Any, out: Tensor) -> list[Labels]:
    rows, *rest = inputs[id(args[0])]
    fix(rows, "rows are looked up by number")
    lose(rows, rest)
    return [[*([fixed(n, "batch or position")] for n in args[1].shape), *rest]]


def _index(inputs: Inputs, args: Any, kwargs: Any, out: Tensor) -> list[Labels] | None:
    dims, indexed = inputs[id(args[0])], [d for d, i in enumerate(args[1]) if i is not None]
    if indexed != list(range(indexed[0], indexed[-1] + 1)):
        return None
    kept = [dim for d, dim in enumerate(dims) if d not in indexed]
    for dim in (dims[d] for d in indexed):
        fix(dim, "units are looked up by number")
        lose(dim, kept)
    new = out.ndim - len(kept)
    looked_up: Labels = [[fixed(n, "batch or position")] for n in out.shape[indexed[0] : indexed[0] + new]]
    return [dims[: indexed[0]] + looked_up + dims[indexed[-1] + 1 :]]


def _gather(inputs: Inputs, args: Any, kwargs: Any, out: Tensor) -> list[Labels]:
    """Look up along one dimension; along the others the table and the numbers are paired."""
    dims, numbers, along = inputs[id(args[0])], inputs[id(args[2])], args[1] % out.ndim
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


def _convolution(inputs: Inputs, args: Any, kwargs: Any, out: Tensor) -> list[Labels] | None:
    """Channels are summed over inside each group; positions are fixed."""
    image, weight, groups = inputs[id(args[0])], inputs[id(args[1])], args[8]
    if args[6]:  # transposed: the weight's dimensions are in another order
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
        unite(channels, inputs[id(args[2])][0], "a bias")
    positions = [f for dim in (*image[2:], *weight[2:]) for f in dim]
    fix(positions, POSITIONS)
    lose(positions, [channels])
    lose(weight[1], [channels, image[0]])
    return [[image[0], channels, *([fixed(n, POSITIONS)] for n in out.shape[2:])]]


def _batch_norm(inputs: Inputs, args: Any, kwargs: Any, out: Sequence[Tensor]) -> list[Labels]:
    dims = inputs[id(args[0])]
    for tensor in (t for t in args[1:5] if t is not None):
        unite(dims[1], inputs[id(tensor)][0], "a normalisation")
    return [dims]


def _pool(ndim: int) -> Rule:
    """Return the rule for pooling or interpolation along the last `ndim` dimensions, positions of an image or a text."""

    def rule(inputs: Inputs, args: Any, kwargs: Any, out: Any) -> list[Labels]:
        dims, first = inputs[id(args[0])], out[0] if isinstance(out, tuple) else out
        fix((f for dim in dims[-ndim:] for f in dim), POSITIONS)
        for position in dims[-ndim:]:
            lose(position, dims[:-ndim])
        return [[*dims[:-ndim], *([fixed(n, POSITIONS)] for n in first.shape[-ndim:])]]

    return rule


def _ordered(inputs: Inputs, args: Any, kwargs: Any, out: Tensor) -> list[Labels]:
    along = args[1] if isinstance(args[1], list | tuple) else [args[1]]
    for d in along:
        fix(inputs[id(args[0])][d], "its order is used")
    return [inputs[id(args[0])]]


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
    "index_select": lambda inputs, args, kwargs, out: _index(
        inputs, (args[0], [*(None,) * (args[1] % args[0].ndim), args[2]]), kwargs, out
    ),
    "_local_scalar_dense": lambda inputs, args, kwargs, out: [],
}
