"""Trace: the factors of every dimension of every tensor of a model, read off runs that give it every input.

A dispatch mode records each operation of a run. Then, for the operations that an output depends on, the factors of
the inputs are carried over to the outputs (`derive.operations` has the rules); factors that no rule covers are fixed,
with the operation's name as the reason. The mode also runs the model in float64 throughout, where its own code would go
through float32: a proof to 1e-9 needs that.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from merge.checkpoints.hooks import watching
from merge.symmetry.architectures.derive.factors import Factor, fix, fixed, size, unite
from merge.symmetry.architectures.derive.operations import RULES, pointwise
from merge.symmetry.architectures.derive.views import Labels
from merge.symmetry.forward.call import Run, call

SHORT = (torch.float32, torch.float16, torch.bfloat16)
# Operations that take only the shape of their input and make a tensor of constants.
SHAPE_ONLY = ("zeros_like", "ones_like", "full_like", "empty_like", "new_zeros", "new_ones", "new_full", "new_empty")


@dataclass(frozen=True)
class Step:
    """One operation of the run: its name, its arguments, its input and output tensors, and what it returned."""

    name: str
    pointwise: bool
    args: Any
    kwargs: Mapping[str, Any]
    inputs: Sequence[Tensor]
    outputs: Sequence[Tensor]
    out: Any


class Tape:
    """The operations of a run that involve parameters, directly or not.

    `dependent` holds the identities of the parameters and of all tensors computed from them. The steps keep these tensors
    alive: the identity of a tensor that is gone could be given to another.
    """

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        self.steps: list[Step] = []
        self.dependent = {id(tensor) for tensor in tensors.values()}

    def record(self, func: Any, args: Any, kwargs: Mapping[str, Any], out: Any) -> None:
        """Record one operation, if one of its inputs depends on a parameter."""
        inputs, name = list(_tensors((args, tuple(kwargs.values())))), func.overloadpacket.__name__
        if name not in SHAPE_ONLY and any(id(tensor) in self.dependent for tensor in inputs):
            outputs = list(_tensors((out,)))
            self.steps.append(Step(name, torch.Tag.pointwise in func.tags, args, kwargs, inputs, outputs, out))
            self.dependent |= {id(tensor) for tensor in outputs}

    def needed(self, outputs: Mapping[str, Tensor]) -> tuple[list[Step], set[int]]:
        """Return the steps that the outputs depend on, and the identities of all tensors that they depend on."""
        live, steps = {id(tensor) for tensor in outputs.values()}, []
        for step in reversed(self.steps):
            if any(id(tensor) in live for tensor in step.outputs):
                live |= {id(tensor) for tensor in step.inputs}
                steps.append(step)
        return steps[::-1], live


class InFloat64(TorchDispatchMode):
    """Runs every operation in float64 where the code asks for a shorter float, and records it if there is a tape.

    `casts` counts the activations that the code would have cast.
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


class FactorTracker:
    """Carries factors through the steps of a run.

    `labels` holds the factors of each dimension of each tensor, by the tensor's identity; `unknown` the operations
    without rule.
    """

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        self.labels: dict[int, Labels] = {}
        self.unknown: set[str] = set()
        for tensor in tensors.values():
            dims = [Factor(n) for n in tensor.shape]
            for dim in dims:
                dim.contexts = [tuple(other for other in dims if other is not dim)]
            self.labels[id(tensor)] = [[dim] for dim in dims]

    def forget(self, tensors: Mapping[str, Tensor]) -> None:
        """Forget the activations of a run: the identity of a tensor that is gone could be given to another."""
        self.labels = {id(tensor): self.labels[id(tensor)] for tensor in tensors.values()}

    def factors_of(self, tensor: Tensor) -> Labels:
        """Return the factors of each dimension; those of a constant are free where its values do not change along them."""
        if id(tensor) not in self.labels:
            out: Labels = []
            for dim, count in enumerate(tensor.shape):
                constant = count == 1 or not tensor.numel() or bool((tensor == tensor.narrow(dim, 0, 1)).all())
                out.append([Factor(count, free=True) if constant else fixed(count, "constants of the model's code")])
            self.labels[id(tensor)] = out
        return self.labels[id(tensor)]

    def follow(self, step: Step) -> None:
        """Set the factors of the outputs of a step; where no rule applies, fix those of its inputs and outputs."""
        inputs = {id(tensor): self.factors_of(tensor) for tensor in step.inputs}
        rule = RULES.get(step.name) or (pointwise if step.pointwise else None)
        try:
            outputs = None if rule is None else rule(inputs, step.args, step.kwargs, step.out)
        except (IndexError, ValueError, TypeError, KeyError):  # an overload with its arguments at other positions
            outputs = None
        shapes = [tuple(tensor.shape) for tensor in step.outputs]
        if outputs is None or [tuple(size(d) for d in dims) for dims in outputs] != shapes[: len(outputs)]:
            self.unknown.add(step.name)
            why = f"operation {step.name} is not one that can be followed"
            fix((factor for dims in inputs.values() for dim in dims for factor in dim), why)
            outputs = [[[fixed(n, why)] for n in shape] for shape in shapes]
        for tensor, dims in zip(step.outputs, outputs, strict=False):
            self.labels[id(tensor)] = dims


def _tensors(values: Sequence[Any]) -> Any:
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, list | tuple):
            yield from _tensors(value)


@dataclass(frozen=True)
class Site:
    """The input of a module with weights, or the output of any module.

    Attributes:
        module: its path.
        side: `in` or `out`.
        kind: the class of the module.
        shape: of the activation.
        last: the factors of its last dimension.
    """

    module: str
    side: str
    kind: str
    shape: tuple[int, ...]
    last: Sequence[Factor]


@dataclass(frozen=True)
class Trace:
    """The factors read off some runs.

    Attributes:
        tensors: name -> the factors of each dimension.
        outputs: output -> the same.
        sites: activations of the first run that outputs depend on, at modules without submodules, in its order.
        unread: tensors that no output of any run depends on.
        unknown: operations without a rule.
        casts: number of activations that the model's own code would have cast to a shorter float.
    """

    tensors: Mapping[str, Labels]
    outputs: Mapping[str, Labels]
    sites: Sequence[Site] = field(default_factory=list)
    unread: tuple[str, ...] = ()
    unknown: tuple[str, ...] = ()
    casts: int = 0


def follow(model: Any, tensors: Mapping[str, Tensor], *runs: Run | Mapping[str, Any]) -> Trace:
    """Return the factors of these tensors of the model, from these runs together."""
    tensors = {name: tensor for name, tensor in tensors.items() if tensor.is_floating_point()}
    tracker, read, casts = FactorTracker(tensors), set[str](), 0
    outputs: dict[str, Labels] = {}
    sites: list[Site] = []
    for number, run in enumerate(runs):
        tape = Tape(tensors)
        mode = InFloat64(tape)
        seen, activations = _watched_run(model, run, mode)
        steps, live = tape.needed(seen)
        for step in steps:
            tracker.follow(step)
        for name, value in seen.items():
            _same_output(outputs, name, tracker.factors_of(value))
        if number == 0:
            sites = [
                Site(module, side, kind, tuple(value.shape), tracker.factors_of(value)[-1])
                for module, side, kind, value in activations
                if id(value) in live & tape.dependent
            ]
        read |= {name for name, tensor in tensors.items() if id(tensor) in live}
        casts += mode.casts
        tracker.forget(tensors)
    return Trace(
        tensors={name: tracker.factors_of(tensor) for name, tensor in tensors.items()},
        outputs=outputs,
        sites=sites,
        unread=tuple(name for name in tensors if name not in read),
        unknown=tuple(sorted(tracker.unknown)),
        casts=casts,
    )


def _watched_run(
    model: Any, run: Run | Mapping[str, Any], mode: InFloat64
) -> tuple[dict[str, Tensor], list[tuple[str, str, str, Tensor]]]:
    """Return the outputs of a run, and (module, side, class, value) of what its modules read and give."""
    activations: list[tuple[str, str, str, Tensor]] = []
    # Only modules without submodules: the others hand through what these compute.
    leaves = {n: m for n, m in model.named_modules() if n and not any(True for _ in m.children())}
    watched = [f"{name}:out" for name in leaves]
    watched += [f"{name}:in" for name, module in leaves.items() if any(True for _ in module.parameters())]

    def keep(site: str, value: Tensor) -> None:
        if value.ndim > 1:
            name, side = site.split(":")
            activations.append((name, side, type(leaves[name]).__name__, value))

    with watching(model, watched, keep), torch.no_grad(), mode:
        outputs = call(model, run)
    return outputs, activations


def _same_output(outputs: dict[str, Labels], name: str, dims: Labels) -> None:
    """Note the factors of an output; an output that several runs give moves alike in all of them."""
    known = outputs.setdefault(name, dims)
    if known is dims:
        return
    why = f"output {name} has another shape in another run"
    if len(known) != len(dims):
        fix((f for dim in (*known, *dims) for f in dim), why)
        return
    for mine, its in zip(known, dims, strict=True):
        if size(mine) == size(its):
            unite(mine, its, f"output {name} in several runs")
        else:
            fix([*mine, *its], why)
