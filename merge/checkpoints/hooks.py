"""Hooks: the activations of a model's modules during its forward passes, and their rows that are not padding.

A *site* is one side of a module: "encoder.layer.0.output.dense:in" is its first input, "encoder.layer.0:out" its first
output. A third word says in which order rows lie there: "time" for positions before texts, "all" where no row is padding.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

from merge.errors import MergeError

if TYPE_CHECKING:
    from jaxtyping import Bool, Float
    from torch import Tensor

See = Callable[[str, "Tensor"], None]


class PaddingError(MergeError):
    """The rows of an activation cannot be told apart from padding."""


@contextmanager
def watching(model: Any, sites: Iterable[str], see: See, first: bool = False) -> Iterator[None]:
    """Call `see(site, activation)` for every site that a forward pass inside the block comes to, in the order it does.

    The activation is the model's tensor, not a copy; some models add to it in place later on. What a module reads or gives
    that is no tensor is not shown. An exception in `see` ends the forward pass.

    Args:
        model: a transformers model; modules are named from it, with or without the prefix of its base model.
        first: show the first run of each module alone, of those that run more than once inside the block (DeBERTa's
            queries and keys read the tokens, then positions), instead of every run.
    Raises:
        KeyError: a site names no module of the model.
    """
    modules, prefix = dict(model.named_modules()), f"{getattr(model, 'base_model_prefix', '')}."
    shown: set[str] = set()

    def show(site: str, value: Any) -> None:
        import torch

        if isinstance(value, torch.Tensor) and not (first and site in shown):
            shown.add(site)
            see(site, value)

    with ExitStack() as stack:
        for site in sites:
            path, side = site.split(":")[:2]
            module = modules[path if path in modules else path.removeprefix(prefix)]
            hook = _input_hook(site, module, show) if side == "in" else _output_hook(site, show)
            register = module.register_forward_pre_hook if side == "in" else module.register_forward_hook
            stack.callback(register(hook, with_kwargs=True).remove)
        yield


def _input_hook(site: str, module: Any, show: Callable[[str, Any], None]) -> Callable[..., None]:
    name = next(iter(inspect.signature(module.forward).parameters), "")

    def hook(_module: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        show(site, args[0] if args else kwargs.get(name))

    return hook


def _output_hook(site: str, show: Callable[[str, Any], None]) -> Callable[..., None]:
    def hook(_module: Any, _args: tuple[Any, ...], _kwargs: Mapping[str, Any], output: Any) -> None:
        show(site, output[0] if isinstance(output, tuple) and output else output)

    return hook


def token_mask(batch: Mapping[str, Tensor]) -> Bool[Tensor, "texts length"] | None:
    """Return which tokens of a batch are not padding; None for a batch without an attention mask, as of images."""
    from merge.checkpoints.inputs import attended

    return attended(batch) if "attention_mask" in batch else None


def one_logit_a_token(logits: Tensor, architecture: str) -> bool:
    """Return whether logits are one number for each token, shape (texts, length), and not classes of each text.

    So are those of discriminators (ElectraForPreTraining): whether a token was replaced.
    """
    return logits.ndim == 2 and architecture.endswith("ForPreTraining")


def token_rows(
    activation: Tensor, mask: Bool[Tensor, "texts length"] | None, order: str = ""
) -> Float[Tensor, "rows units"]:
    """Return an activation as rows of units: one for each token of the mask, or one for each text where it is pooled.

    Args:
        activation: (texts, length, ..., units), where further axes are rows as well; (texts, units), pooled; or
            (texts * length, units).
        mask: the tokens to keep, as `token_mask` returns them; every row is kept if None.
        order: as a site's third word states it: "time" for (length, texts, ..., units), "all" to keep every row.
    Raises:
        PaddingError: the activation has another shape.
    """
    if mask is None or order == "all":
        return activation.flatten(0, -2)
    if order == "time" and activation.ndim > 2:
        activation = activation.transpose(0, 1)
    mask = mask.to(activation.device)
    if activation.ndim > 2 and activation.shape[:2] == mask.shape:
        return activation[mask].flatten(0, -2)
    if activation.ndim == 2 and len(activation) == len(mask):
        return activation
    if activation.ndim == 2 and len(activation) == mask.numel():
        return activation[mask.reshape(-1)]
    raise PaddingError(
        f"expected one row a token or a text of a batch of shape {tuple(mask.shape)}, found a tensor of shape "
        f"{tuple(activation.shape)}, whose padding cannot be told apart"
    )
