"""A transformers model whose layers are in a wide dtype only while they run: its memory is that of one layer.

What repeats in a model, the entries of its module lists, and its input embeddings hold nearly all of its weights. Before such
a layer runs, its weights are read from a mapping and cast; after it, they are let go: they are not a number until it runs
again, so that code which reads them past the layer's forward cannot give a plausible output. All else is cast once, as the
tables that some models read without running them (relative positions of DeBERTa). A weight that a layer shares with another
is not the layer's own, and stays. Of a table of embeddings only the rows that a run looks up are read.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import wraps
from typing import Any

import torch
from torch import Tensor, nn

from merge.checkpoints.transformers_model import build, twin
from merge.symmetry.transform import rows_of


def streamed_model(
    config: Mapping[str, Any],
    stored: Mapping[str, Tensor],
    weights: Mapping[str, Tensor],
    dtype: torch.dtype,
) -> Any:
    """Return the model with these weights in a dtype, in evaluation mode.

    Args:
        stored: tensors of the same names and shapes that the model is built on: shared, not copied, so memory-mapped ones
            cost nothing.
        weights: those that it runs with, by the names that transformers writes; each is read whenever its layer runs.
    """
    return streamed_models(config, stored, [weights], dtype)[0]


def streamed_models(
    config: Mapping[str, Any], stored: Mapping[str, Tensor], weights: Sequence[Mapping[str, Tensor]], dtype: torch.dtype
) -> list[Any]:
    """Return a model for each of these weights, as `streamed_model`; transformers builds it once."""
    narrow = next((tensor.dtype for tensor in stored.values() if tensor.is_floating_point()), dtype)
    model = build(config, stored, narrow, copied=False)
    models = [model, *(twin(model) for _ in weights[1:])]
    return [_streamed(twin, config, each, dtype) for twin, each in zip(models, weights, strict=True)]


def _streamed(model: Any, config: Mapping[str, Any], weights: Mapping[str, Tensor], dtype: torch.dtype) -> Any:
    """Return a model that runs with these weights, each read whenever its layer runs."""
    names: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(name)
    source = {key: next((name for name in shared if name in weights), None) for key, shared in names.items()}
    if None in source.values():  # stored under another name than that of the module
        return build(config, dict(weights), dtype)
    layers, own = _layers_of_weights(model, _input_embeddings(model)), dict[nn.Module, list[tuple[str, nn.Parameter]]]()
    for parameter in model.parameters():
        name, holders = source[id(parameter)], layers[id(parameter)]
        assert name is not None
        if len(holders) == 1 and holders[0] is not None:
            own.setdefault(holders[0], []).append((name, parameter))
        else:
            parameter.data = _wide(weights[name], dtype)
    for name, buffer in model.named_buffers():
        buffer.data = _wide(weights.get(name, buffer.data), dtype)
    wide = _WideTensors(dtype)
    for layer, parameters in own.items():
        _run_between(layer, _reader(parameters, weights, wide), _releaser(parameters, wide))
    return model


def _run_between(layer: nn.Module, read: Callable[[nn.Module, Any], None], release: Callable[[], None]) -> None:
    """Let a layer read its weights before it runs and release them after: also where a model calls `forward` (SqueezeBERT)."""
    run = layer.forward

    @wraps(run)
    def forward(*args: Any, **kwargs: Any) -> Any:
        read(layer, args)
        try:
            return run(*args, **kwargs)
        finally:
            release()

    layer.forward = forward


def _wide(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    return tensor.to(dtype) if tensor.is_floating_point() else tensor


def _input_embeddings(model: Any) -> nn.Module | None:
    try:
        embeddings = model.get_input_embeddings()
    except (AttributeError, NotImplementedError):
        return None
    return embeddings if isinstance(embeddings, nn.Embedding) else None


def _layers_of_weights(model: nn.Module, embeddings: nn.Module | None) -> dict[int, list[nn.Module | None]]:
    """Return the identity of a parameter -> the outermost layers that hold it, None for none."""
    layers: dict[int, list[nn.Module | None]] = {}

    def visit(module: nn.Module, layer: nn.Module | None) -> None:
        for parameter in module.parameters(recurse=False):
            holders = layers.setdefault(id(parameter), [])
            if not any(holder is layer for holder in holders):
                holders.append(layer)
        for child in module.children():
            repeated = isinstance(module, nn.ModuleList) and not isinstance(child, nn.ModuleList)
            visit(child, child if layer is None and (repeated or child is embeddings) else layer)

    visit(model, None)
    return layers


class _WideTensors:
    """Memory for the weights of one layer: layers of one kind use the same, as fresh memory costs more than the cast."""

    def __init__(self, dtype: torch.dtype) -> None:
        self.dtype = dtype
        self._free: dict[torch.Size, list[Tensor]] = {}

    def take(self, tensor: Tensor) -> Tensor:
        """Return a tensor in the wide dtype."""
        if not tensor.is_floating_point():
            return tensor
        with torch.inference_mode(False), torch.no_grad():  # memory of inference mode cannot be written outside it
            return self._memory(tensor.shape).copy_(tensor)

    def take_rows(self, shape: torch.Size, numbers: Tensor, rows: Tensor) -> Tensor:
        """Return a table in the wide dtype in which these rows are filled; nothing may read the others."""
        with torch.inference_mode(False), torch.no_grad():
            return self._memory(shape).index_copy_(0, numbers.clone(), rows.to(self.dtype))

    def _memory(self, shape: torch.Size) -> Tensor:
        free = self._free.get(shape)
        return free.pop() if free else torch.empty(shape, dtype=self.dtype)

    def give_back(self, wide: Tensor) -> None:
        """Let the memory of a tensor be used again."""
        if wide.dtype == self.dtype:
            self._free.setdefault(wide.shape, []).append(wide)


def _reader(
    parameters: Sequence[tuple[str, nn.Parameter]], weights: Mapping[str, Tensor], wide: _WideTensors
) -> Callable[[nn.Module, Any], None]:
    def read(layer: nn.Module, inputs: Any) -> None:
        # Another class of embeddings may look up other rows than those of its inputs.
        if type(layer) is nn.Embedding and inputs and layer.weight.is_floating_point():
            ((name, parameter),), numbers = parameters, inputs[0].unique()
            parameter.data = wide.take_rows(parameter.shape, numbers, rows_of(weights, name, numbers))
            return
        for name, parameter in parameters:
            parameter.data = wide.take(weights[name])

    return read


def _releaser(parameters: Sequence[tuple[str, nn.Parameter]], wide: _WideTensors) -> Callable[[], None]:
    absent = [torch.full((), torch.nan, dtype=wide.dtype).expand(p.shape) for _, p in parameters]
    unusable = [a if p.is_floating_point() else p.data for a, (_, p) in zip(absent, parameters, strict=True)]
    for (_, parameter), data in zip(parameters, unusable, strict=True):
        parameter.data = data

    def release() -> None:
        for (_, parameter), data in zip(parameters, unusable, strict=True):
            wide.give_back(parameter.data)
            parameter.data = data

    return release
