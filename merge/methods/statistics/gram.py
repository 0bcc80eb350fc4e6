"""Gram matrices: the second moments X'X / rows of the inputs of every linear layer, without padding."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from merge.checkpoints.checkpoint import Checkpoint
from merge.checkpoints.hooks import PaddingError, token_mask, token_rows, watching
from merge.errors import CheckpointError
from merge.methods.statistics.fisher import load_model
from merge.methods.statistics.record import StatisticsError
from merge.progress import track

if TYPE_CHECKING:
    from torch import Tensor

    from merge.checkpoints.inputs import Batch

MAX_SUM_BYTES = 2**31  # float64 sums held at once; layers beyond that are measured in further passes over the text


def measure_gram(checkpoint: Checkpoint, batches: Sequence[Batch]) -> dict[str, Tensor]:
    """Return X'X / rows for the weight of every linear layer, by canonical name.

    A row is a token that is not padding, or a text for layers that read one row a text (pooler, classifier). Products are
    float32, summed over batches in float64. A layer used several times sums over all uses. There is none for a weight that
    is an embedding table too (a tied decoder: the regression would speak of one of its two uses), nor for a layer that the
    model's outputs do not use. Memory: 8 bytes times the sum of d_in^2 while measuring (BERT-base: 1.2 GB), half kept.

    Returns:
        Float32 tensors (d_in, d_in), symmetric.
    Raises:
        StatisticsError: padding cannot be identified in the input of a layer.
        CheckpointError: an activation is not finite.
    Source: Jin et al. 2023, arXiv:2212.09849, equations 2 and 3.
    """
    import torch

    model = load_model(checkpoint)
    layers = linear_layers(model, checkpoint)
    passes = list(_passes({name: _width(layer) for name, layer in layers.items()}))
    out: dict[str, Tensor] = {}
    for number, names in enumerate(passes, start=1):
        label = "measuring Gram matrices" + (f", part {number} of {len(passes)}" if len(passes) > 1 else "")
        sums = {name: _Sum() for name in names}
        sites = {f"{checkpoint.written_name(name).removesuffix('.weight')}:in": sums[name] for name in names}
        with torch.inference_mode():
            for batch in track(batches, label):
                with watching(model, sites, _Products(sites, token_mask(batch))):
                    model(**batch)
        out |= {name: total.mean(checkpoint, name) for name, total in sums.items() if total.rows}
    return {name: out[name] for name in layers if name in out}


def linear_layers(model: Any, checkpoint: Checkpoint) -> dict[str, Any]:
    """Return the linear modules by the canonical name of their weight, without those that share it with another module."""
    canonical = {checkpoint.written_name(name): name for name in checkpoint.tensors}
    owners: dict[int, int] = {}
    for module in model.modules():
        for parameter in module.parameters(recurse=False):
            owners[id(parameter)] = owners.get(id(parameter), 0) + 1
    return {
        canonical[f"{path}.weight"]: module
        for path, module in model.named_modules()
        if _is_linear(module) and f"{path}.weight" in canonical and owners[id(module.weight)] == 1
    }


def _is_linear(module: Any) -> bool:
    from torch import nn
    from transformers.pytorch_utils import Conv1D

    return isinstance(module, nn.Linear | Conv1D)


def _width(module: Any) -> int:
    from torch import nn

    return int(module.in_features if isinstance(module, nn.Linear) else module.weight.shape[0])


def _passes(widths: Mapping[str, int]) -> Iterator[list[str]]:
    """Yield groups of layers whose float64 sums fit into MAX_SUM_BYTES; a layer too large on its own is a group."""
    group: list[str] = []
    used = 0
    for name, width in widths.items():
        size = 8 * width * width
        if group and used + size > MAX_SUM_BYTES:
            yield group
            group, used = [], 0
        group.append(name)
        used += size
    if group:
        yield group


class _Sum:
    """A running sum of X'X in float64, and of its rows."""

    def __init__(self) -> None:
        self.rows = 0
        self.total: Tensor | None = None

    def add(self, product: Tensor, rows: int) -> None:
        # A copy from the start, because the product is shared with other layers.
        self.total = product.double().clone() if self.total is None else self.total.add_(product)
        self.rows += rows

    def mean(self, checkpoint: Checkpoint, name: str) -> Tensor:
        assert self.total is not None
        if not self.total.isfinite().all():
            raise CheckpointError(f"{checkpoint.source}: the inputs of {name} are not finite. This model is broken.")
        return ((self.total + self.total.T) / (2 * self.rows)).float()


class _Products:
    """Hook that adds X'X of each layer's input to its sum, computed once for layers with the same input (query, key, value)."""

    def __init__(self, sums: Mapping[str, _Sum], mask: Tensor | None) -> None:
        self.sums, self.mask = sums, mask
        self.read: Tensor | None = None

    def __call__(self, site: str, read: Tensor) -> None:
        if read is not self.read:
            rows = _rows(read, self.mask, site)
            self.read, self.product, self.rows = read, rows.T @ rows, len(rows)
        self.sums[site].add(self.product, self.rows)


def _rows(read: Tensor, mask: Tensor | None, site: str) -> Tensor:
    try:
        return token_rows(read, mask)
    except PaddingError as error:
        raise StatisticsError(
            f"the inputs of layer {site.removesuffix(':in')}: {error}. Merge this architecture by another method."
        ) from error
