"""Build transformers models from a config and tensors, and read or set their weights."""

from __future__ import annotations

import contextlib
import functools
import itertools
from collections.abc import Callable, Iterator, Mapping
from copy import deepcopy
from typing import TYPE_CHECKING, Any

from merge.checkpoints.weights.skeletons import from_skeleton, keep_skeleton, skeleton_key
from merge.errors import CheckpointError, closest, one_line

if TYPE_CHECKING:
    import torch
    from torch import Tensor

# The one model type that is not transformers' own (merge.checkpoints.mlp).
MLP = "mlp"
# Families whose forward pass seeds the random numbers of the process, and draws them.
RANDOM_FORWARD = {"big_bird", "bigbird_pegasus", "reformer", "vit_mae", "yoso"}


def model_class(config: Mapping[str, Any]) -> Any:
    """Return the transformers class that the config names as its architecture.

    Raises:
        CheckpointError: no architecture is named, or transformers has no class of that name.
    """
    import transformers

    names = config.get("architectures") or []
    if not isinstance(names, list) or len(names) != 1 or not isinstance(names[0], str):
        raise CheckpointError(f"config.json must name one architecture, found {names!r}. Add the model's class name.")
    if config.get("model_type") == MLP:
        from merge.checkpoints.mlp import MLPForSequenceClassification

        if names[0] == MLPForSequenceClassification.__name__:
            return MLPForSequenceClassification
    cls = getattr(transformers, names[0], None)
    if not (isinstance(cls, type) and issubclass(cls, transformers.PreTrainedModel)):
        class_names = [
            n for n in transformers.__all__ if ("For" in n or n.endswith("Model")) and not n.startswith("Auto")
        ]
        raise CheckpointError(f"transformers has no model class {names[0]!r}.{closest(names[0], class_names)}")
    return cls


def base_architecture(config: Mapping[str, Any]) -> str:
    """Return the class of a family's model without a head.

    Raises:
        CheckpointError: transformers has none for this model_type.
    """
    from transformers.models.auto.modeling_auto import MODEL_MAPPING_NAMES

    name = MODEL_MAPPING_NAMES.get(str(config.get("model_type")))
    if name is None:
        raise CheckpointError(
            f"config.json names no architecture, and model_type {config.get('model_type')!r} has no base model."
        )
    return str(name[0] if isinstance(name, tuple) else name)


def model_config(config: Mapping[str, Any]) -> Any:
    """Return the transformers config object of a config.json."""
    import transformers
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    name = str(config.get("model_type"))
    if name == MLP:
        import merge.checkpoints.mlp  # noqa: F401 (registers it with transformers)
    if name not in CONFIG_MAPPING:
        raise CheckpointError(
            f"transformers has no model_type {name!r} (in config.json).{closest(name, CONFIG_MAPPING)}"
        )
    try:
        return transformers.AutoConfig.for_model(**config)
    # Config code raises errors of many kinds: ValueError, TypeError, KeyError, a validation error of the Hub's library.
    except Exception as error:
        raise CheckpointError(f"config.json is not one transformers understands: {one_line(error)}") from error


def complete_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return config.json with the family's defaults for keys that it leaves out (num_hidden_layers, vocab_size)."""
    import transformers

    general = transformers.PreTrainedConfig().to_dict()
    stated = model_config(config).to_dict()
    return {**config, **{k: v for k, v in stated.items() if k not in config and k not in general and v is not None}}


def meta_model(config: Mapping[str, Any], tensors: int | None = None) -> Any:
    """Return the model on the meta device: names, shapes and ties, no values.

    Args:
        tensors: the number that its weights hold; a model of many more modules is not built to its end.
    Raises:
        CheckpointError: the config names no class, or none that can be built from it.
    """
    import torch

    cls, settings = model_class(config), model_config(config)
    try:
        with torch.device("meta"), loading(), _bounded(tensors):
            return cls(settings)
    except CheckpointError:
        raise
    # Model code raises errors of many kinds: ValueError, KeyError (an unknown hidden_act), RuntimeError (a size below 0).
    except Exception as error:
        reason = f"{type(error).__name__}: {one_line(error)}"
        raise CheckpointError(f"{cls.__name__} cannot be built from config.json ({reason})") from error


@contextlib.contextmanager
def _bounded(tensors: int | None) -> Iterator[None]:
    """Stop inside the block where far more modules are built than a number of tensors can be the weights of."""
    from torch.nn.modules.module import register_module_module_registration_hook

    if tensors is None:
        yield
        return
    built, bound = itertools.count(1), 2000 + 20 * tensors

    def count(_module: Any, _name: str, _part: Any) -> None:
        if next(built) > bound:
            raise CheckpointError(
                f"config.json describes a model of over {bound} modules, but the weights hold {tensors} tensors. Correct "
                "config.json, or copy it again."
            )

    handle = register_module_module_registration_hook(count)
    try:
        yield
    finally:
        handle.remove()


def build(
    config: Mapping[str, Any], tensors: Mapping[str, Tensor], dtype: torch.dtype | None = None, copied: bool = True
) -> Any:
    """Return the model with these tensors, in evaluation mode.

    Args:
        config: config.json as a mapping.
        tensors: by the names that transformers writes for this class.
        dtype: of the model; that of the tensors if None.
        copied: whether the tensors are copied. A model that is only run may share them where the dtype is the same;
            memory-mapped tensors are then in memory once.
    Raises:
        CheckpointError: a tensor is missing, left over or of another shape.
    """
    weights = {name: tensor.to(dtype or tensor.dtype, copy=copied) for name, tensor in tensors.items()}
    dtype = dtype or next(iter(weights.values())).dtype
    key = skeleton_key(config, weights, dtype)
    if (kept := from_skeleton(key, weights)) is not None:
        return kept
    settings = model_config(config)
    settings.dtype = dtype
    with loading():
        model, info = model_class(config).from_pretrained(
            None,
            config=settings,
            state_dict=weights,
            output_loading_info=True,
            dtype=dtype,
            ignore_mismatched_sizes=True,  # for its report; it is an error below
        )
    faults = loading_faults(info)
    if faults:
        raise CheckpointError(f"{type(model).__name__} does not take these tensors: {'; '.join(faults)}")
    keep_skeleton(key, model.eval(), weights)
    return model


def runs_beside_others(model: Any) -> bool:
    """Return whether a model on the CPU may run in a thread beside other models: it draws no random numbers of the process."""
    import torch

    if not isinstance(model, torch.nn.Module) or any(p.device.type != "cpu" for p in model.parameters()):
        return False
    config: Any = model.config
    return config.model_type not in RANDOM_FORWARD


def twin(model: Any, share_buffers: bool = False) -> Any:
    """Return a model of the same class on the memory of the same weights, whose parameters and modules are its own.

    Some modules keep state of their own during a forward pass: two threads need two of them.
    """
    import torch

    own = {id(p): torch.nn.Parameter(p.data, requires_grad=p.requires_grad) for p in model.parameters()}
    buffers = {id(buffer): buffer for buffer in model.buffers()} if share_buffers else {}
    return deepcopy(model, {**own, **buffers})


def on_device(model: Any, device: str) -> Any:
    """Return the model on a device; its inputs are moved there, and its outputs back to the inputs' device."""
    from accelerate.hooks import AlignDevicesHook, add_hook_to_module

    return add_hook_to_module(model.to(device), AlignDevicesHook(device, io_same_device=True))


def loading_faults(info: Mapping[str, Any]) -> list[str]:
    """Return the keys that transformers reported as missing, unexpected or of another shape while loading."""
    kinds = {"missing_keys": "missing", "unexpected_keys": "unexpected"}
    faults = [f"{word} {', '.join(sorted(info[key]))}" for key, word in kinds.items() if info[key]]
    faults += [f"{name} is {tuple(found)}, not {tuple(due)}" for name, found, due in sorted(info["mismatched_keys"])]
    return faults + [str(message) for message in info.get("error_msgs", ())]


def set_weights(model: Any, tensors: Mapping[str, Tensor]) -> None:
    """Copy tensors into a model's parameters and buffers in place; names as `build` takes them."""
    import torch

    state = model.state_dict()
    with torch.no_grad():
        for name, tensor in tensors.items():
            state[name].copy_(tensor)


@contextlib.contextmanager
def loading() -> Iterator[None]:
    """Be quiet, and draw no initial values for tensors on the meta device, which hold none.

    transformers builds a model there before it loads the weights, and torch then runs every draw in Python: of a model
    with few and small tensors these take a third to a half of the time. Tensors on other devices are drawn as always.
    """
    from torch.nn import init

    names = ("kaiming_uniform_", "normal_", "ones_", "uniform_", "zeros_")
    functions = {name: getattr(init, name) for name in names}
    for name, function in functions.items():
        setattr(init, name, _drawn_if_real(function))
    try:
        with quiet():
            yield
    finally:
        for name, function in functions.items():
            setattr(init, name, function)


def _drawn_if_real(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return an initialisation that leaves tensors on the meta device as they are."""

    @functools.wraps(function)
    def wrapped(tensor: Tensor, *arguments: Any, **named: Any) -> Any:
        return tensor if tensor.is_meta else function(tensor, *arguments, **named)

    return wrapped


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep transformers' progress bars and reports off the terminal; the caller raises faults instead."""
    from transformers.utils import logging

    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    loud = level != logging.ERROR  # to set a level, even the same one, takes longer the more loggers there are
    if loud:
        logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if loud:
            logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()
