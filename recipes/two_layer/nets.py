"""Many multi-layer perceptrons of one size as one stack of tensors: run, trained and interpolated by batched products.

A stack has the tensors of `MLPForSequenceClassification` by the same names, with one more axis in front: the networks. A
network with one output is a classifier of two classes whose loss is binary cross-entropy.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy, layer_norm

Nets = dict[str, Tensor]


@dataclass(frozen=True)
class Data:
    """Rows and their classes, for training and for test.

    Attributes:
        classes: how many; two are told apart by one output.
    """

    name: str
    train: Tensor
    train_gold: Tensor
    test: Tensor
    test_gold: Tensor
    classes: int

    @property
    def outputs(self) -> int:
        return 1 if self.classes == 2 else self.classes


@dataclass(frozen=True)
class Training:
    """How networks are trained.

    Attributes:
        optimizer: AdamW, RMSprop, SGD or Adagrad of torch, which treat every number by itself, so a stack as single networks.
        schedule: cosine (to 0, by the epoch) or one_cycle (by the step).
        init: default (torch's own), normal or uniform (Kaiming's, of the weights).
    """

    epochs: int = 100
    rate: float = 0.01
    decay: float = 0.01
    batch: int = 256
    optimizer: str = "AdamW"
    schedule: str = "cosine"
    init: str = "default"


def depth_of(nets: Mapping[str, Tensor]) -> int:
    """Return the number of hidden layers."""
    return sum(name.endswith(".dense.weight") for name in nets)


def logits(nets: Mapping[str, Tensor], rows: Tensor) -> Tensor:
    """Return the outputs of every network, shape (networks, rows, outputs).

    Args:
        rows: (rows, inputs) for all networks, or (networks, rows, inputs).
    """
    count = len(nets["classifier.bias"])
    hidden = rows if rows.ndim == 3 else rows.expand(count, *rows.shape)
    for i in range(depth_of(nets)):
        weight, bias = nets[f"layers.{i}.dense.weight"], nets[f"layers.{i}.dense.bias"]
        hidden = torch.baddbmm(bias[:, None], hidden, weight.mT)
        if f"layers.{i}.norm.weight" in nets:
            gain, shift = nets[f"layers.{i}.norm.weight"], nets[f"layers.{i}.norm.bias"]
            hidden = layer_norm(hidden, hidden.shape[-1:]) * gain[:, None] + shift[:, None]
        hidden = hidden.relu()
    return torch.baddbmm(nets["classifier.bias"][:, None], hidden, nets["classifier.weight"].mT)


def losses(outputs: Tensor, gold: Tensor) -> Tensor:
    """Return the mean loss of every network over the rows.

    Args:
        outputs: (networks, rows, outputs).
        gold: (rows,) or (networks, rows).
    """
    gold = gold.expand(outputs.shape[:2])
    if outputs.shape[-1] == 1:
        return binary_cross_entropy_with_logits(outputs[..., 0], gold.to(outputs.dtype), reduction="none").mean(1)
    return cross_entropy(outputs.mT, gold, reduction="none").mean(1)


def predicted(outputs: Tensor) -> Tensor:
    """Return the class that every network predicts for every row, shape (networks, rows)."""
    return (outputs[..., 0] > 0).long() if outputs.shape[-1] == 1 else outputs.argmax(-1)


def accuracies(outputs: Tensor, gold: Tensor) -> Tensor:
    """Return the accuracy of every network."""
    return (predicted(outputs) == gold).double().mean(1)


@torch.inference_mode()
def scores(nets: Mapping[str, Tensor], data: Data) -> tuple[Tensor, Tensor]:
    """Return the test loss and the test accuracy of every network."""
    outputs = logits(nets, data.test)
    return losses(outputs, data.test_gold).double(), accuracies(outputs, data.test_gold)


def initial(count: int, data: Data, width: int, depth: int, norm: bool, training: Training, seed: int) -> Nets:
    """Return untrained networks: torch's own initialisation of linear layers, or Kaiming's of their weights."""
    generator = torch.Generator().manual_seed(seed)
    sizes = [data.train.shape[1], *[width] * depth, data.outputs]
    names = [*(f"layers.{i}.dense" for i in range(depth)), "classifier"]
    nets: Nets = {}
    for name, fan_in, units in zip(names, sizes[:-1], sizes[1:], strict=True):

        def drawn(*shape: int, fan_in: int = fan_in) -> Tensor:
            return (2 * torch.rand((count, *shape), generator=generator) - 1) * fan_in**-0.5

        nets[f"{name}.weight"], nets[f"{name}.bias"] = drawn(units, fan_in), drawn(units)
        if training.init == "normal":
            nets[f"{name}.weight"] = torch.randn((count, units, fan_in), generator=generator) * (2 / fan_in) ** 0.5
        elif training.init == "uniform":
            nets[f"{name}.weight"] = nets[f"{name}.weight"] * 6**0.5
        if norm and name != "classifier":
            part = name.replace("dense", "norm")
            nets |= {f"{part}.weight": torch.ones(count, units), f"{part}.bias": torch.zeros(count, units)}
    return nets


def train(
    nets: Mapping[str, Tensor],
    data: Data,
    training: Training,
    seed: int,
    each_epoch: Callable[[int, Nets], Any] | None = None,
    shared: bool = False,
) -> Nets:
    """Return the networks after training; every network has its own order of the rows.

    Args:
        each_epoch: called after each epoch with its number, from 1, and the networks.
        shared: whether all networks have one order of the rows.
    """
    generator = torch.Generator().manual_seed(seed)
    parameters = {name: tensor.clone().requires_grad_() for name, tensor in nets.items()}
    count, rows = len(nets["classifier.bias"]), len(data.train)
    steps = -(-rows // training.batch)
    optimizer = getattr(torch.optim, training.optimizer)(
        list(parameters.values()),
        lr=training.rate,
        weight_decay=training.decay,
        **({"momentum": 0.9} if training.optimizer == "SGD" else {}),
    )
    scheduler = _scheduler(optimizer, training, steps)
    for epoch in range(1, training.epochs + 1):
        order = torch.rand((1 if shared else count, rows), generator=generator).argsort(1).expand(count, rows)
        for batch in order.split(training.batch, 1):
            optimizer.zero_grad()
            losses(logits(parameters, data.train[batch]), data.train_gold[batch]).sum().backward()
            optimizer.step()
            if training.schedule == "one_cycle":
                scheduler.step()
        if training.schedule == "cosine":
            scheduler.step()
        if each_epoch is not None:
            each_epoch(epoch, {name: tensor.detach().clone() for name, tensor in parameters.items()})
    return {name: tensor.detach() for name, tensor in parameters.items()}


def _scheduler(optimizer: Any, training: Training, steps: int) -> Any:
    if training.schedule == "one_cycle":
        cycled = training.optimizer in ("AdamW", "SGD")
        return torch.optim.lr_scheduler.OneCycleLR(
            optimizer, training.rate, epochs=training.epochs, steps_per_epoch=steps, cycle_momentum=cycled
        )
    if training.schedule == "cosine":
        return torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, training.epochs)
    return torch.optim.lr_scheduler.ConstantLR(optimizer, 1.0)


def zoo(
    count: int, data: Data, width: int, training: Training, seed: int = 0, depth: int = 1, norm: bool = False
) -> Nets:
    """Return `count` networks trained from their own starts, each in its own order of the rows."""
    return train(initial(count, data, width, depth, norm, training, seed), data, training, seed + 1)


def one(nets: Mapping[str, Tensor], number: int) -> Nets:
    """Return one network's tensors."""
    return {name: tensor[number] for name, tensor in nets.items()}


def chosen(nets: Mapping[str, Tensor], numbers: Any) -> Nets:
    """Return a stack of some of the networks."""
    return {name: tensor[torch.as_tensor(numbers)] for name, tensor in nets.items()}


def stacked(single: list[Nets]) -> Nets:
    """Return a stack of single networks."""
    return {name: torch.stack([net[name] for net in single]) for name in single[0]}
