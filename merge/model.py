"""From a config and tensors to a transformers model in memory, and back."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from merge.errors import CheckpointError, nearest

if TYPE_CHECKING:
    import torch
    from torch import Tensor


def model_class(config: Mapping[str, Any]) -> Any:
    """Return the transformers class that the config names as its architecture.

    Raises:
        CheckpointError: no architecture is named, or transformers has no class of that name.
    """
    import transformers

    names = config.get("architectures") or []
    if len(names) != 1:
        raise CheckpointError(f"config.json must name one architecture, found {names!r}. Add the model's class name.")
    found = getattr(transformers, names[0], None)
    if found is None:
        known = [name for name in dir(transformers) if name.startswith(names[0][:4]) and "For" in name]
        raise CheckpointError(f"transformers has no class {names[0]!r}.{nearest(names[0], known) if known else ''}")
    return found


def model_config(config: Mapping[str, Any]) -> Any:
    """Return the transformers config object of a config.json."""
    import transformers

    try:
        return transformers.AutoConfig.for_model(**config)
    except (ValueError, TypeError) as error:
        raise CheckpointError(f"config.json is not one transformers understands: {first_line(error)}") from error


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message, for a message of ours that quotes it."""
    text = str(error).strip()
    return text.splitlines()[0] if text else type(error).__name__


def meta_model(config: Mapping[str, Any]) -> Any:
    """Return the model without memory: names, shapes and ties, no values."""
    import torch

    with torch.device("meta"), quiet():
        return model_class(config)(model_config(config))


def build(config: Mapping[str, Any], tensors: Mapping[str, Tensor], dtype: torch.dtype | None = None) -> Any:
    """Return the model with these tensors, in evaluation mode.

    Args:
        config: config.json as a mapping.
        tensors: by the names that transformers writes for this class; copied, never aliased.
        dtype: of the model; the tensors' own if None.
    Raises:
        CheckpointError: a tensor is missing, left over or of another shape.
    """
    settings = model_config(config)
    weights = {
        name: tensor.clone() if dtype is None else tensor.to(dtype, copy=True) for name, tensor in tensors.items()
    }
    settings.dtype = dtype or next(iter(weights.values())).dtype
    with quiet():
        model, info = model_class(config).from_pretrained(
            None, config=settings, state_dict=weights, output_loading_info=True, dtype=settings.dtype
        )
    faults = loading_faults(info)
    if faults:
        raise CheckpointError(f"{type(model).__name__} does not take these tensors: {'; '.join(faults)}")
    return model.eval()


def loading_faults(info: Mapping[str, Any]) -> list[str]:
    """Return what transformers said was missing, left over or of another shape while loading."""
    kinds = {"missing_keys": "missing", "unexpected_keys": "unexpected", "mismatched_keys": "of another shape"}
    return [f"{word} {', '.join(sorted(map(str, info[key])))}" for key, word in kinds.items() if info[key]] + [
        str(message) for message in info.get("error_msgs", ())
    ]


def set_weights(model: Any, tensors: Mapping[str, Tensor]) -> None:
    """Copy tensors into a model's parameters and buffers in place; names as `build` takes them."""
    import torch

    own = model.state_dict()
    with torch.no_grad():
        for name, tensor in tensors.items():
            own[name].copy_(tensor)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep transformers' loading bars and reports off the terminal; faults are raised by the caller instead."""
    from transformers.utils import logging

    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()
