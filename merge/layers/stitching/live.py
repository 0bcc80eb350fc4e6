"""A stitch as it runs: the layers of B read mapped states of A in place of their own.

Nothing is built or written: hooks on the live B run A on the same inputs up to its cut, and replace what B's next layer reads.
So any map between any two models of one tokenizer can be measured, also those that no checkpoint can hold.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from merge.checkpoints.hooks import watching
from merge.errors import UsageError
from merge.layers.activations import EnoughError, LiveLayers


@dataclass(frozen=True)
class Halves:
    """The two models of a stitch, live.

    Attributes:
        bottom, top: A and B; their parameters are not changed.
        at: states of both, as in `StitchSettings`.
    """

    bottom: LiveLayers
    top: LiveLayers
    at: tuple[int, int]


@contextmanager
def stitched(halves: Halves, mapping: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """Let every forward pass of the top model inside the block be one of the stitched model.

    Args:
        mapping: states of the bottom model, with the units as their last axis -> states of the top model.
    """
    top, cut = halves.top, halves.at[1]
    base = top.model.base_model
    layers = [base.get_submodule(f"{top.path}.{name}") for name in top.names]
    if not layers:
        raise UsageError("a model without layers cannot be stitched.")
    inputs: dict[str, Tensor] = {}
    state = {"events": 0}

    def begin(_module: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        names = list(inspect.signature(base.forward).parameters)
        given = {**dict(zip(names, args, strict=False)), **kwargs}
        inputs.clear()
        inputs.update({name: value for name, value in given.items() if isinstance(value, Tensor)})
        state["events"] = 0

    def replaced(original: Tensor) -> Tensor:
        mapped = mapping(_bottom_state(halves, inputs))
        if halves.bottom.order != top.order:
            mapped = mapped.transpose(0, 1)
        if original.ndim == 3 and mapped.ndim == 3 and original.shape[1] < mapped.shape[1]:
            mapped = mapped[:, : original.shape[1]]  # the last layer may be asked for the first token alone
        return mapped.to(original.dtype).reshape(*original.shape[:-1], mapped.shape[-1])

    def before(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        number, state["events"] = state["events"], state["events"] + 1
        if number != cut:
            return None
        if args:
            return (replaced(args[0]), *args[1:]), kwargs
        name = next(iter(inspect.signature(module.forward).parameters))
        return args, {**kwargs, name: replaced(kwargs[name])}

    def after(_module: Any, _args: Any, _kwargs: Any, output: Any) -> Any:
        if not state["events"] == cut == top.total:
            return None
        if isinstance(output, tuple):
            return (replaced(output[0]), *output[1:])
        return replaced(output)

    with ExitStack() as stack:
        stack.callback(base.register_forward_pre_hook(begin, with_kwargs=True).remove)
        for layer in layers:
            stack.callback(layer.register_forward_pre_hook(before, with_kwargs=True).remove)
            stack.callback(layer.register_forward_hook(after, with_kwargs=True).remove)
        yield


def _bottom_state(halves: Halves, inputs: Mapping[str, Tensor]) -> Tensor:
    """Run the bottom model up to its cut and return that state, padding included."""
    live, cut = halves.bottom, halves.at[0]
    known = inspect.signature(live.model.base_model.forward).parameters
    kept = {name: value for name, value in inputs.items() if name in known}
    sites = [f"{live.path}.{name}:{side}" for name in live.names for side in ("in", "out")]
    seen: list[Tensor] = []
    events = 0

    def see(_site: str, activation: Tensor) -> None:
        nonlocal events
        layer, after = divmod(events, 2)
        events += 1
        if layer + after == cut and (not after or cut == live.total):
            seen.append(activation)
            raise EnoughError

    with torch.no_grad(), suppress(EnoughError), watching(live.model.base_model, sites, see):
        live.model.base_model(**kept)
    return seen[0]
