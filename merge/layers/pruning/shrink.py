"""Smaller tensors: heads and neurons cut out of a model, where config.json can say how many are left.

A config has one number of heads and one width for all layers. Heads can be cut where their size is an entry of its own
(`head_dim`: Llama, Qwen, ViT), the same number in every layer; neurons in nearly every family, to the widest layer's
number. Narrower layers keep removed neurons with weights of zero, which add nothing.

Whether a config can say it is not listed here but asked: transformers builds the model of the new config, and its shapes
must be those that are left.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from merge.checkpoints.checkpoint import Checkpoint
from merge.checkpoints.structure import structure_of
from merge.errors import CheckpointError, UsageError, one_line
from merge.layers.pruning.selection import Removal
from merge.symmetry.architectures import spec_for

if TYPE_CHECKING:
    from jaxtyping import Int
    from torch import Tensor

    from merge.layers.pruning.units import UnitLayer

HEAD_COUNTS = ("num_attention_heads", "n_head", "n_heads", "num_heads")
WIDTHS = (
    "intermediate_size", "hidden_dim", "n_inner", "d_inner", "d_ff", "ffn_dim", "encoder_ffn_dim", "decoder_ffn_dim", "dff",
)  # fmt: skip

Shapes = Mapping[str, tuple[int, ...]]
Change = Callable[["Tensor"], "Tensor"]


@dataclass(frozen=True)
class Shrunk:
    """What is left of a model.

    Attributes:
        config: config.json with the new numbers.
        shapes: canonical name -> shape, of the tensors that shrink.
        changes: canonical name -> what makes the smaller tensor of the old one.
        padded: layer -> removed neurons that it keeps at zero, as another layer is wider.
    """

    config: Mapping[str, Any]
    shapes: Shapes
    changes: Mapping[str, Change]
    padded: Mapping[int, tuple[int, ...]]


@dataclass(frozen=True, eq=False)
class _Kept:
    """The units of an axis that stay: blocks, and for grouped queries the queries of each block that stays."""

    blocks: Int[Tensor, " blocks"]
    queries: Int[Tensor, "blocks queries"] | None = None


def shrink_heads(checkpoint: Checkpoint, layers: Sequence[UnitLayer], removal: Removal) -> Shrunk:
    """Return the model without its removed heads.

    Raises:
        UsageError: layers would have different numbers of heads, key/value heads different numbers of queries, or the
            config of the family cannot say it.
    """
    kept = {layer.number: _kept_heads(layer, removal.get(layer.number, ())) for layer in layers}
    counts = {
        number: each.blocks.numel() * (1 if each.queries is None else each.queries.shape[1])
        for number, each in kept.items()
    }
    fewest, most = min(counts, key=counts.__getitem__), max(counts, key=counts.__getitem__)
    if counts[fewest] != counts[most] or len({len(each.blocks) for each in kept.values()}) > 1:
        raise UsageError(
            f"a config has one number of heads for all layers, but layer {fewest} would keep {counts[fewest]} and layer {most} "
            f"{counts[most]}. Remove as many of every layer (--per-layer), or leave --shrink out: their outputs are zeroed."
        )
    axes = _by_axis(layers, kept)
    inner = _inner(checkpoint, layers)
    part = inner[1]
    blocks, heads = len(kept[fewest].blocks), counts[fewest]
    stated = {key: heads for key in HEAD_COUNTS if key in part}
    if "num_key_value_heads" in part or layers[0].group > 1:
        stated["num_key_value_heads"] = blocks
    size = layers[0].readers[0].positions.shape[1]
    if isinstance(part.get("head_dim"), int):
        stated["head_dim"] = size
    shapes, changes = _gathered(checkpoint, axes)
    config, reason = _that_fits(checkpoint, inner, (stated, {**stated, "head_dim": size}), shapes)
    if config is None:
        if not reason or _ignores_head_size(checkpoint, inner, size):
            reason = "the config of the family has no entry for the size of a head (head_dim), which is width / heads"
        raise UsageError(
            f"heads of {checkpoint.model_type} models cannot be cut out, {heads} left of {layers[0].count}: {reason}. Leave "
            "--shrink out: their outputs are zeroed, which computes the same."
        )
    return Shrunk(config, shapes, changes, {})


def shrink_neurons(checkpoint: Checkpoint, layers: Sequence[UnitLayer], removal: Removal) -> Shrunk:
    """Return the model with narrower feed-forward layers, all as wide as the widest that is left.

    Raises:
        UsageError: a layer keeps all its neurons, or the config of the family has no entry for the width.
    """
    import torch

    left = {layer.number: layer.count - len(removal.get(layer.number, ())) for layer in layers}
    width, widest = max(left.values()), max(left, key=left.__getitem__)
    if width == max(layer.count for layer in layers):
        raise UsageError(
            f"a config has one width for all layers, and layer {widest} keeps all its {width} neurons. Remove some of every "
            "layer (--per-layer), or leave --shrink out: their outputs are zeroed."
        )
    kept, padded = {}, {}
    for layer in layers:
        gone = removal.get(layer.number, ())
        spare = gone[: width - left[layer.number]]
        if spare:
            padded[layer.number] = tuple(spare)
        kept[layer.number] = _Kept(torch.tensor([u for u in range(layer.count) if u not in set(gone) - set(spare)]))
    shapes, changes = _gathered(checkpoint, _by_axis(layers, kept))
    inner = _inner(checkpoint, layers)
    known = {*inner[1], *checkpoint.structure.known}
    config, _ = _that_fits(checkpoint, inner, [{key: width} for key in WIDTHS if key in known], shapes)
    if config is None:
        raise UsageError(
            f"neurons of {checkpoint.model_type} models cannot be cut out: the config of the family has no entry for the width "
            "of its feed-forward layers. Leave --shrink out: their outputs are zeroed, which computes the same."
        )
    return Shrunk(config, shapes, changes, padded)


def _kept_heads(layer: UnitLayer, gone: Sequence[int]) -> _Kept:
    """Return the heads that stay; a key/value head goes when all its queries do.

    Raises:
        UsageError: key/value heads would have different numbers of queries.
    """
    import torch

    stays = torch.ones(layer.count, dtype=torch.bool)
    stays[list(gone)] = False
    if layer.group == 1:
        return _Kept(stays.nonzero()[:, 0])
    grid = stays.reshape(-1, layer.group)
    queries = grid.sum(1)
    blocks = queries.nonzero()[:, 0]
    if len(queries[blocks].unique()) > 1:
        raise UsageError(
            f"layer {layer.number}: {layer.group} query heads share a key/value head, and those would keep "
            f"{', '.join(map(str, queries.tolist()))}. To shrink the model, remove whole groups (such as 0-{layer.group - 1}) or "
            "as many of each; or leave --shrink out."
        )
    return _Kept(blocks, torch.stack([grid[b].nonzero()[:, 0] for b in blocks]))


def _by_axis(layers: Sequence[UnitLayer], kept: Mapping[int, _Kept]) -> dict[str, _Kept]:
    """Return axis -> what is kept.

    Raises:
        UsageError: layers share an axis of heads (MPNet's relative positions) and would keep different ones.
    """
    import torch

    axes: dict[str, _Kept] = {}
    for layer in layers:
        first = axes.setdefault(layer.axis, kept[layer.number])
        if not torch.equal(first.blocks, kept[layer.number].blocks):
            raise UsageError(
                f"all layers share one order of heads, so that the same heads must go in each; layer {layer.number} differs. "
                "Leave --shrink out: their outputs are zeroed."
            )
    return axes


def _gathered(
    checkpoint: Checkpoint, axes: Mapping[str, _Kept]
) -> tuple[dict[str, tuple[int, ...]], dict[str, Change]]:
    """Return the shapes of the tensors that shrink, and what shrinks them."""
    spec = spec_for(checkpoint.config)
    shapes: dict[str, tuple[int, ...]] = {}
    changes: dict[str, Change] = {}
    for name, old in checkpoint.encoder.shapes.items():
        cuts, dim = [], 0
        for axis, views in zip(spec.axes(name), spec.views(name, old), strict=True):
            size = 1
            for length in old[dim : dim + axis.span]:
                size *= length
            index = _index(views, axes, size)
            if index is not None:
                cuts.append((dim, axis.span, index))
            dim += axis.span
        if cuts:
            new = list(old)
            for at, span, index in cuts:
                new[at] = len(index)
                for inside in range(at + 1, at + span):
                    new[at] //= old[inside]
            shapes[name], changes[name] = tuple(new), _selecting(cuts, tuple(new))
    return shapes, changes


def _index(views: Sequence[Any], axes: Mapping[str, _Kept], size: int) -> Int[Tensor, " kept"] | None:
    """Return the positions along an item that stay, ascending; None for all."""
    import torch

    from merge.symmetry.permutation import unit_positions

    mine = [view for view in views if view.names[0] in axes]
    if not mine:
        return None
    stays = torch.ones(size, dtype=torch.bool)
    for view in mine:
        positions, kept = unit_positions(view), axes[view.names[0]]
        stays[positions.reshape(-1)] = False
        chosen = positions[kept.blocks]
        if len(view.shape) == 3 and kept.queries is not None:
            chosen = torch.stack([block[queries] for block, queries in zip(chosen, kept.queries, strict=True)])
        stays[chosen.reshape(-1)] = True
    return stays.nonzero()[:, 0]


def _selecting(cuts: Sequence[tuple[int, int, Any]], shape: tuple[int, ...]) -> Change:
    def select(tensor: Tensor) -> Tensor:
        for dim, span, index in reversed(cuts):
            tensor = tensor.flatten(dim, dim + span - 1).index_select(dim, index)
        return tensor.reshape(shape)

    return select


def _inner(checkpoint: Checkpoint, layers: Sequence[UnitLayer]) -> tuple[str, Mapping[str, Any]]:
    """Return the part of the config that describes the layers: its key ("" for the whole), and its entries."""
    side, _, rest = layers[0].axis.rpartition("_")
    key = f"{side}_config" if rest and side else ""
    whole = checkpoint.config
    return (key, whole[key]) if key in whole else ("", whole)


def _that_fits(
    checkpoint: Checkpoint, inner: tuple[str, Mapping[str, Any]], choices: Sequence[Mapping[str, Any]], shapes: Shapes
) -> tuple[dict[str, Any] | None, str]:
    """Return the first config whose model has these shapes, and all others as they are; None where there is none.

    Beside it why transformers builds no model of any of them; empty where it builds one of other shapes.
    """
    encoder, reason = checkpoint.encoder, ""
    planned = {encoder.written_name(name): shape for name, shape in {**encoder.shapes, **shapes}.items()}
    for config in _configs(checkpoint, inner, choices):
        try:
            structure = structure_of(config)
        except CheckpointError as error:
            reason = one_line(error).removesuffix(".")
            continue
        same_names = structure.shapes.keys() == checkpoint.structure.shapes.keys()
        if same_names and all(structure.shapes.get(name, shape) == shape for name, shape in planned.items()):
            return config, ""
    return None, reason


def _ignores_head_size(checkpoint: Checkpoint, inner: tuple[str, Mapping[str, Any]], size: int) -> bool:
    """Return whether the size of a head, doubled in the config, changes no shape of the model."""
    (config,) = _configs(checkpoint, inner, [{"head_dim": 2 * size}])
    try:
        return structure_of(config).shapes == checkpoint.structure.shapes
    except CheckpointError:
        return True


def _configs(
    checkpoint: Checkpoint, inner: tuple[str, Mapping[str, Any]], choices: Sequence[Mapping[str, Any]]
) -> Iterator[dict[str, Any]]:
    key, part = inner
    for stated in choices:
        changed = {**part, **stated}
        yield {**checkpoint.config, key: changed} if key else changed
