"""The sublayers of a layer: what attention and the feed-forward part read and write, and edits of what they write.

    norms last (BERT)     m = LN(x + A(x)),  y = LN(m + F(m))
    norms first (GPT-2)   m = x + A(x),      y = m + F(m)
    parallel (GPT-NeoX)   y = x + A(x) + F(x)

A and F include a norm of their own where the family has it before or after them. An edit gives what is written instead of A(x)
or F(m); a norm that comes last can be passed by, so that the stream crosses the sublayer unchanged.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from merge.errors import UsageError
from merge.layers.parts import parts_of

ATTENTION, FFN = "attention", "ffn"
SUBLAYERS = (ATTENTION, FFN)

# (what a sublayer writes, the stream that it reads) -> what is written instead.
Write = Callable[[Tensor, Tensor], Tensor]

# Norms of what a sublayer writes, before it is added to the stream, where a family has them.
SANDWICH = {ATTENTION: "post_attention_layernorm", FFN: "post_feedforward_layernorm"}


@dataclass(frozen=True)
class LayerKind:
    """Where the sublayers of a family are, by paths below a layer.

    Attributes:
        writes: sublayer -> the module whose output is added to the stream; of XLNet's attention a bare parameter.
        projections: sublayer -> the output projection in it, the same but where a norm comes after the projection (Gemma 2).
        norms: sublayer -> the norm that comes last in it; none where norms come first.
        parallel: whether both sublayers read the states before the layer.
    """

    writes: Mapping[str, str]
    projections: Mapping[str, str]
    norms: Mapping[str, str]
    parallel: bool = False

    @property
    def norm_last(self) -> bool:
        return bool(self.norms)


@dataclass(frozen=True)
class Edit:
    """An edit of a layer.

    Attributes:
        attention, ffn: what the sublayer writes instead; as it is when None.
        bypassed: the sublayers whose last norm is passed by.
    """

    attention: Write | None = None
    ffn: Write | None = None
    bypassed: tuple[str, ...] = ()

    def write(self, sublayer: str) -> Write | None:
        """Return the edit of one sublayer."""
        return self.attention if sublayer == ATTENTION else self.ffn


@dataclass(frozen=True)
class Watched:
    """What the sublayers of one layer read and wrote, in the shape of the states.

    Attributes:
        before, middle, after: the stream.
        attention, ffn: what was added to it.
    """

    before: Tensor
    attention: Tensor
    middle: Tensor
    ffn: Tensor
    after: Tensor


class _Watch:
    """The streams of a layer while it runs."""

    def __init__(self, before: Tensor, kind: LayerKind) -> None:
        self.before, self._kind = before, kind
        self.written: dict[str, Tensor] = {}
        self._normed: Tensor | None = None

    def source(self, sublayer: str) -> Tensor:
        """Return the stream that a sublayer reads."""
        if sublayer == ATTENTION or self._kind.parallel:
            return self.before
        return self.middle

    @property
    def middle(self) -> Tensor:
        if self._normed is not None:
            return self._normed
        return self.before if self._kind.parallel else self.before + self.written[ATTENTION]

    def norm(self, sublayer: str, output: Tensor) -> None:
        if sublayer == ATTENTION:
            self._normed = output

    def ended(self, after: Tensor) -> Watched:
        """Return what the layer read and wrote."""
        return Watched(self.before, self.written[ATTENTION], self.middle, self.written[FFN], after)


def layer_kind(config: Mapping[str, Any], stack: str = "") -> LayerKind | None:
    """Return where a model's sublayers are; None where the table of parts has no layers of that form, or they read an encoder."""
    try:
        parts = parts_of(config, stack)
    except UsageError:
        return None
    if parts.cross is not None:
        return None
    projections = {ATTENTION: parts.mix, FFN: parts.down}
    writes = SANDWICH if parts.sandwich else projections
    norms = {}
    if parts.mix_norm is not None and parts.norm is not None:
        norms = {ATTENTION: parts.mix_norm, FFN: parts.norm}
    parallel = str(config["model_type"]) == "gpt_neox" and bool(config.get("use_parallel_residual", True))
    return LayerKind(writes, projections, norms, parallel)


@contextmanager
def edited(layer: Any, kind: LayerKind, before: Tensor, edit: Edit) -> Iterator[_Watch]:
    """Edit what the sublayers of a layer write while it runs once inside the block; yield the streams that are seen.

    Args:
        before: the states that the layer reads.
    """
    watch = _Watch(before, kind)

    def written(sublayer: str, value: Tensor) -> Tensor:
        """Return what is written instead, in the shape in which the module gives it."""
        source, write = watch.source(sublayer), edit.write(sublayer)
        shaped = value.reshape(source.shape)
        shaped = shaped if write is None else write(shaped, source)
        watch.written[sublayer] = shaped
        return value if write is None else shaped.reshape(value.shape)

    with ExitStack() as stack:
        for sublayer, path in kind.writes.items():
            module = _module(layer, path)
            if module is not None:
                hook = _output_hook(partial(written, sublayer))
                stack.callback(module.register_forward_hook(hook).remove)
        for sublayer, path in kind.norms.items():
            norm = _module(layer, path)
            if _module(layer, kind.writes[sublayer]) is None:
                adds = _sum_hook(watch, sublayer, written)
                stack.callback(norm.register_forward_pre_hook(adds).remove)
            hook = _norm_hook(watch, sublayer, sublayer in edit.bypassed)
            stack.callback(norm.register_forward_hook(hook).remove)
        yield watch


def _module(layer: Any, path: str) -> Any:
    """Return a module below a layer; None where the path is that of a bare parameter."""
    above, _, name = path.rpartition(".")
    return getattr(layer.get_submodule(above), "_modules", {}).get(name)


def _output_hook(answer: Callable[[Tensor], Tensor]) -> Callable[..., Any]:
    def hook(_module: Any, _args: Any, output: Any) -> Any:
        if isinstance(output, tuple):
            return (answer(output[0]), *output[1:])
        return answer(output)

    return hook


def _sum_hook(watch: _Watch, sublayer: str, written: Callable[[str, Tensor], Tensor]) -> Callable[..., Any]:
    """Return the hook of a norm that reads the sum of stream and write, where no module gives the write alone."""

    def hook(_module: Any, args: tuple[Any, ...]) -> Any:
        source, both = watch.source(sublayer), args[0]
        write = both - source
        instead = written(sublayer, write)
        return args if instead is write else (source + instead, *args[1:])

    return hook


def _norm_hook(watch: _Watch, sublayer: str, bypassed: bool) -> Callable[..., Any]:
    def hook(_module: Any, args: tuple[Any, ...], output: Tensor) -> Tensor:
        result: Tensor = args[0] if bypassed else output
        watch.norm(sublayer, result)
        return result

    return hook


# ---- edits ----


def nothing(write: Tensor, _source: Tensor) -> Tensor:
    """Write zeros: the sublayer adds nothing to the stream."""
    return torch.zeros_like(write)


def skip_only(write: Tensor, _source: Tensor) -> Tensor:
    """Let gradients pass the sublayer by its skip connection alone."""
    return write.detach()


def branch_only(write: Tensor, source: Tensor) -> Tensor:
    """Let gradients pass the sublayer by what it writes alone: that of the skip connection is taken back."""
    result: Tensor = _WithoutSkip.apply(write, source)
    return result


class _WithoutSkip(torch.autograd.Function):
    """The write unchanged; its gradient goes to the write, and with the other sign to the stream that it is added to."""

    @staticmethod
    def forward(ctx: Any, write: Tensor, source: Tensor) -> Tensor:
        return write.view_as(write)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        return gradients[0], -gradients[0]
