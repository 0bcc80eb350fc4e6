"""Trace: what the dimensions of every tensor of a model are made of, read off one run.

A dispatch mode records each operation of the run. Of those that an output depends on, the factors of the inputs are carried
over to the outputs (`derive.operations` says how); what no rule covers is fixed, with the operation's name as
the reason. The mode also runs the model in float64 throughout, where its code goes through float32 for a while: a proof to
1e-9 needs that.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from merge.checkpoints.hooks import watching
from merge.symmetry.architectures.derive.factors import Factor, fix, fixed, size
from merge.symmetry.architectures.derive.operations import RULES, pointwise
from merge.symmetry.architectures.derive.views import Labels

SHORT = (torch.float32, torch.float16, torch.bfloat16)
# They make a tensor of constants: what they are given lends its shape only.
SHAPES = ("zeros_like", "ones_like", "full_like", "empty_like", "new_zeros", "new_ones", "new_full", "new_empty")


@dataclass(frozen=True)
class Step:
    """One operation of the run: its name, how it was called, and the tensors that went in and came out."""

    name: str
    pointwise: bool
    args: Any
    kwargs: Mapping[str, Any]
    given: Sequence[Tensor]
    made: Sequence[Tensor]
    out: Any


class Tape:
    """Holds every operation on parameters and on what came of them; `learned` are the identities of all these tensors."""

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        self.steps: list[Step] = []
        self.learned = {id(tensor) for tensor in tensors.values()}

    def record(self, func: Any, args: Any, kwargs: Mapping[str, Any], out: Any) -> None:
        """Take in one operation, if anything learned went into it."""
        given, name = list(_tensors((args, tuple(kwargs.values())))), func.overloadpacket.__name__
        if name not in SHAPES and any(id(tensor) in self.learned for tensor in given):
            made = list(_tensors((out,)))
            self.steps.append(Step(name, torch.Tag.pointwise in func.tags, args, kwargs, given, made, out))
            self.learned |= {id(tensor) for tensor in made}

    def needed(self, outputs: Mapping[str, Tensor]) -> tuple[list[Step], set[int]]:
        """Return the steps that outputs depend on, and the identities of all tensors they do."""
        live, steps = {id(tensor) for tensor in outputs.values()}, []
        for step in reversed(self.steps):
            if any(id(tensor) in live for tensor in step.made):
                live |= {id(tensor) for tensor in step.given}
                steps.append(step)
        return steps[::-1], live


class InFloat64(TorchDispatchMode):
    """Runs every operation in float64 where the code asks for less, and records it if there is a tape.

    `casts` counts the activations that were to be cast.
    """

    def __init__(self, tape: Tape | None = None) -> None:
        super().__init__()
        self.tape, self.casts = tape, 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if kwargs.get("dtype") in SHORT:
            self.casts += func.overloadpacket.__name__ == "_to_copy" and args[0].dtype == torch.float64
            kwargs["dtype"] = torch.float64
        out = func(*args, **kwargs)
        if isinstance(out, Tensor) and out.dtype in SHORT:
            out = out.double()
        if self.tape is not None:
            self.tape.record(func, args, kwargs, out)
        return out


class Following:
    """Carries factors through the steps of a run; `labels` holds, by identity, the dimensions of each tensor."""

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        self.labels: dict[int, Labels] = {}
        self.unknown: set[str] = set()
        for tensor in tensors.values():
            dims = [Factor(n) for n in tensor.shape]
            for dim in dims:
                dim.contexts = [tuple(other for other in dims if other is not dim)]
            self.labels[id(tensor)] = [[dim] for dim in dims]

    def of(self, tensor: Tensor) -> Labels:
        """Return the factors of each dimension; a constant's are free where its values do not change along them."""
        if id(tensor) not in self.labels:
            out: Labels = []
            for dim, count in enumerate(tensor.shape):
                even = count == 1 or bool((tensor == tensor.narrow(dim, 0, 1)).all())
                out.append([Factor(count, free=True) if even else fixed(count, "constants of the model's code")])
            self.labels[id(tensor)] = out
        return self.labels[id(tensor)]

    def take(self, step: Step) -> None:
        """Label what a step made; where no rule knows how, fix all that went in."""
        known = {id(tensor): self.of(tensor) for tensor in step.given}
        rule = RULES.get(step.name) or (pointwise if step.pointwise else None)
        try:
            found = None if rule is None else rule(known, step.args, step.kwargs, step.out)
        except (IndexError, ValueError, TypeError, KeyError):  # an overload whose arguments lie elsewhere
            found = None
        shapes = [tuple(tensor.shape) for tensor in step.made]
        if found is None or [tuple(size(d) for d in dims) for dims in found] != shapes[: len(found)]:
            self.unknown.add(step.name)
            why = f"operation {step.name} is not one that can be followed"
            fix((factor for dims in known.values() for dim in dims for factor in dim), why)
            found = [[[fixed(n, why)] for n in shape] for shape in shapes]
        for tensor, dims in zip(step.made, found, strict=False):
            self.labels[id(tensor)] = dims


def _tensors(values: Sequence[Any]) -> Any:
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, list | tuple):
            yield from _tensors(value)


@dataclass(frozen=True)
class Site:
    """An activation that goes into a module with weights, or comes out of any: `place` is `in` or `out`."""

    module: str
    place: str
    kind: str
    shape: tuple[int, ...]
    last: Sequence[Factor]


@dataclass(frozen=True)
class Trace:
    """What one run showed.

    Attributes:
        tensors: name -> the factors of each dimension.
        outputs: output -> the same.
        sites: activations that outputs depend on, at modules without modules of their own, in the order they ran.
        unread: tensors that no output depends on.
        unknown: operations that could not be followed.
        casts: how many activations the model's own code would have cast to a shorter float.
    """

    tensors: Mapping[str, Labels]
    outputs: Mapping[str, Labels]
    sites: Sequence[Site] = field(default_factory=list)
    unread: tuple[str, ...] = ()
    unknown: tuple[str, ...] = ()
    casts: int = 0


def follow(model: Any, tensors: Mapping[str, Tensor], batch: Mapping[str, Tensor]) -> Trace:
    """Return what the dimensions of these tensors of the model are made of, from one run on one batch."""
    tensors = {name: tensor for name, tensor in tensors.items() if tensor.is_floating_point()}
    tape = Tape(tensors)
    mode = InFloat64(tape)
    seen: list[tuple[str, str, str, Tensor]] = []

    leaves = {
        name: module for name, module in model.named_modules() if name and not any(True for _ in module.children())
    }
    sites_watched = [f"{name}:out" for name in leaves]
    sites_watched += [f"{name}:in" for name, module in leaves.items() if any(True for _ in module.parameters())]

    def see(site: str, value: Tensor) -> None:
        if value.ndim > 1:
            name, side = site.split(":")
            seen.append((name, side, type(leaves[name]).__name__, value))

    with watching(model, sites_watched, see), torch.no_grad(), mode:
        outputs = run(model, batch)
    steps, live = tape.needed(outputs)
    following = Following(tensors)
    for step in steps:
        following.take(step)
    sites = [
        Site(module, place, kind, tuple(value.shape), following.of(value)[-1])
        for module, place, kind, value in seen
        if id(value) in live & tape.learned
    ]
    return Trace(
        tensors={name: following.of(tensor) for name, tensor in tensors.items()},
        outputs={name: following.of(value) for name, value in outputs.items()},
        sites=sites,
        unread=tuple(name for name, tensor in tensors.items() if id(tensor) not in live),
        unknown=tuple(sorted(following.unknown)),
        casts=mode.casts,
    )


def run(model: Any, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the outputs of a model that are tensors."""
    return {name: value for name, value in model(**batch).items() if isinstance(value, Tensor)}
