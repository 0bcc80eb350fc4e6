"""Skeletons: models that transformers has built, kept without their weights, from which the next ones of their kind are made.

Of what transformers does to build a model, nothing but the values of its weights depends on the weights. It takes 20
milliseconds for two small layers, and a copy of a kept skeleton takes less than one.
"""

from __future__ import annotations

import pickle
import threading
from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from io import BytesIO
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from torch import Tensor

MAX_SKELETONS = 256
MAX_BUFFER_BYTES = 2**20
MAX_KEPT_BYTES = 2**26
# Those of this process; where there are too many, or they take too much memory, the oldest makes room.
SKELETONS: dict[Hashable, Skeleton] = {}
KEEPING = threading.Lock()


@dataclass(frozen=True)
class Weight:
    """What a model holds of one of its weights, besides the values.

    Attributes:
        name: as `build` takes it.
        is_copied: transformers copies its values.
        is_parameter: and no buffer that is stored.
        requires_grad: whether it is trained.
        notes: attributes that transformers gave the parameter.
    """

    name: str
    is_copied: bool
    is_parameter: bool
    requires_grad: bool
    notes: Mapping[str, Any]


@dataclass(frozen=True)
class Skeleton:
    """A model without its weights.

    Attributes:
        pickled: the modules, in which a number stands for each tensor.
        weights: number -> weight.
        buffers: number -> value of a tensor that is no weight: it follows from the config.
    """

    pickled: bytes
    weights: Mapping[int, Weight]
    buffers: Mapping[int, Tensor]

    @property
    def nbytes(self) -> int:
        return len(self.pickled) + sum(value.nbytes for value in self.buffers.values())


def skeleton_key(config: Mapping[str, Any], weights: Mapping[str, Tensor], dtype: torch.dtype) -> Hashable:
    """Return what a model's structure follows from: its config, its dtype, and names, shapes and dtypes of its weights."""
    return repr(dict(config)), dtype, tuple((name, t.shape, t.dtype) for name, t in weights.items())


def keep_skeleton(key: Hashable, model: Any, weights: Mapping[str, Tensor]) -> None:
    """Keep a model's skeleton if every parameter of it is one of the weights as they are, under the same name.

    transformers copies the bias of a head that writes tokens. A model is not kept whose weights it has converted, or whose
    modules cannot be pickled.
    """
    import torch

    owned = dict(model.named_parameters(remove_duplicate=False)) | dict(model.named_buffers(remove_duplicate=False))
    names: dict[int, str] = {}
    copied = set()
    for name, weight in weights.items():
        tensor = owned.get(name)
        if tensor is None or id(tensor) in names or _kind(tensor) != _kind(weight):
            return
        if tensor.data_ptr() != weight.data_ptr():
            if tensor is not _head_bias(model) or tensor.tolist() != weight.tolist():
                return
            copied.add(name)
        names[id(tensor)] = name
    if any(id(parameter) not in names or type(parameter) is not torch.nn.Parameter for parameter in model.parameters()):
        return
    file = BytesIO()
    pickler = _Pickler(file)
    try:
        pickler.dump(model)
    # Modules that hold what cannot be pickled raise errors of many kinds.
    except (pickle.PicklingError, AttributeError, TypeError, NotImplementedError, RuntimeError):
        return
    held = {
        n: Weight(
            names[id(t)], names[id(t)] in copied, isinstance(t, torch.nn.Parameter), t.requires_grad, dict(vars(t))
        )
        for n, t in enumerate(pickler.tensors)
        if id(t) in names
    }
    buffers = {n: t.detach().clone() for n, t in enumerate(pickler.tensors) if n not in held}
    if sum(t.nbytes for t in buffers.values()) > MAX_BUFFER_BYTES:
        return
    skeleton = Skeleton(file.getvalue(), held, buffers)
    with KEEPING:
        nbytes = skeleton.nbytes + sum(each.nbytes for each in SKELETONS.values())
        while SKELETONS and (len(SKELETONS) >= MAX_SKELETONS or nbytes > MAX_KEPT_BYTES):
            nbytes -= SKELETONS.pop(next(iter(SKELETONS))).nbytes
        SKELETONS[key] = skeleton


def from_skeleton(key: Hashable, weights: Mapping[str, Tensor]) -> Any:
    """Return a model on the memory of these weights, as transformers built the one of this key; None where none is kept."""
    import torch

    skeleton = SKELETONS.get(key)
    if skeleton is None:
        return None
    tensors = {n: value.clone() for n, value in skeleton.buffers.items()}
    for number, weight in skeleton.weights.items():
        tensor = weights[weight.name].detach().clone() if weight.is_copied else weights[weight.name].detach()
        if weight.is_parameter:
            tensor = torch.nn.Parameter(tensor, requires_grad=weight.requires_grad)
        vars(tensor).update(weight.notes)
        tensors[number] = tensor
    return _Unpickler(BytesIO(skeleton.pickled), tensors).load()


def _head_bias(model: Any) -> Any:
    try:
        return getattr(model.get_output_embeddings(), "bias", None)
    except NotImplementedError:  # a model that reads no tokens
        return None


def _kind(tensor: Tensor) -> tuple[Any, ...]:
    return tensor.shape, tensor.stride(), tensor.dtype


class _Pickler(pickle.Pickler):
    """Writes the number of each tensor in its place, in the order of `tensors`."""

    def __init__(self, file: BytesIO) -> None:
        super().__init__(file, protocol=pickle.HIGHEST_PROTOCOL)
        self.tensors: list[Tensor] = []
        self._numbers: dict[int, int] = {}

    def persistent_id(self, value: Any) -> int | None:
        import torch

        if not isinstance(value, torch.Tensor):
            return None
        if id(value) not in self._numbers:
            self._numbers[id(value)] = len(self.tensors)
            self.tensors.append(value)
        return self._numbers[id(value)]


class _Unpickler(pickle.Unpickler):
    """Puts the tensor of each number in its place."""

    def __init__(self, file: BytesIO, tensors: Mapping[int, Tensor]) -> None:
        super().__init__(file)
        self._tensors = tensors

    def persistent_load(self, number: Any) -> Tensor:
        return self._tensors[number]
