"""A live model whose layers run as a plan says: left out, repeated, reordered or edited, without a change of its weights.

A model of L layers calls its layers L times in a pass; call k is *slot* k. A plan lists, for each slot, the layers that run in
it: none where the layer is dropped, two where one is repeated. The model's own code runs around the slots, so that embeddings,
masks and heads are what they always are. Each layer keeps the inputs that it has in the whole model beside the states (masks,
positions, the type of its attention), whichever slot it runs in.

The slots before the first one that a plan changes return what they gave in the whole model, so that they are not run again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from evals.surgery.sublayers import Edit, LayerKind, Watched, edited, layer_kind
from merge.errors import UsageError
from merge.layers.activations import LiveLayers, live_layers

if TYPE_CHECKING:
    from merge.checkpoints.inputs import Batch


@dataclass(frozen=True)
class Step:
    """One layer as it runs in a slot.

    Attributes:
        layer: its index in the whole model.
        edit: of what its sublayers write.
        instead: computes the states after it from those before it; the layer itself does not run.
    """

    layer: int
    edit: Edit | None = None
    instead: Callable[[Tensor], Tensor] | None = None


Plan = tuple[tuple[Step, ...], ...]


def order_plan(order: Sequence[int]) -> Plan:
    """Return the plan that runs one layer in each slot, in this order."""
    return tuple((Step(layer),) for layer in order)


def first_change(plan: Plan) -> int:
    """Return the first slot in which a plan differs from the whole model; the number of slots where none does."""
    return next((slot for slot, steps in enumerate(plan) if steps != (Step(slot),)), len(plan))


@dataclass(frozen=True)
class Call:
    """What the whole model gave a layer beside the states, and what the layer returned."""

    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    output: Any

    def states(self) -> Tensor:
        """Return the states that the layer wrote."""
        return _states_of_output(self.output)


@dataclass(frozen=True)
class Pass:
    """One forward pass.

    Attributes:
        result: of the model's code.
        states: what the last slot gave.
        calls: one a layer; empty for a pass that follows a plan.
        seen: what each layer read and wrote, where that was asked for.
    """

    result: Any
    states: Tensor
    calls: tuple[Call, ...] = ()
    seen: tuple[Watched, ...] = ()


@dataclass
class SlottedModel:
    """A live model in evaluation mode, run by plans.

    Attributes:
        model: a transformers model, or a pipeline of sentence embeddings.
        live: its layers.
        kind: the sublayers of a layer; None where the table does not have them.
        passes: how many layers have run so far.
    """

    model: Any
    live: LiveLayers
    kind: LayerKind | None
    passes: int = field(default=0)

    @property
    def total(self) -> int:
        return self.live.total

    @property
    def shared(self) -> bool:
        """Whether several layers share one module (ALBERT)."""
        return len(self.live.names) < self.total

    def module(self, layer: int) -> Any:
        """Return the module of a layer; of ALBERT that of its group."""
        at = int(layer / (self.total / len(self.live.names)))
        return self.live.model.base_model.get_submodule(f"{self.live.path}.{self.live.names[at]}")

    def same_weights(self, a: int, b: int) -> bool:
        """Return whether two layers are one module, so that their order changes nothing."""
        return self.module(a) is self.module(b)

    def whole(self, batch: Batch, watch: bool = False) -> Pass:
        """Run the whole model, and keep what each layer was given and returned.

        Args:
            watch: keep what each sublayer read and wrote too.
        """
        calls: list[Call] = []
        seen: list[Watched] = []

        def run(slot: int, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
            if watch:
                assert self.kind is not None
                with edited(self.module(slot), self.kind, read_states(args, kwargs), Edit()) as watched:
                    output = forward(*args, **kwargs)
                seen.append(watched.ended(_states_of_output(output)))
            else:
                output = forward(*args, **kwargs)
            calls.append(Call(args, kwargs, _copied(output)))
            return output

        with self._slots(run):
            result = self.model(**batch)
        return Pass(result, calls[-1].states(), tuple(calls), tuple(seen))

    def follow(self, batch: Batch, plan: Plan, calls: Sequence[Call], cached: bool = True) -> Pass:
        """Run the model by a plan.

        Args:
            calls: of the whole model on this batch.
            cached: return what slots before the first change gave in the whole model, instead of running them again.
        """
        first, last = first_change(plan) if cached else 0, list[Tensor]()

        def run(slot: int, _forward: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
            if slot < first:
                output = _copied(calls[slot].output)
            else:
                states = read_states(args, kwargs)
                for step in plan[slot]:
                    states = self._step(step, states, calls[step.layer])
                output = _with_states(calls[slot].output, states)
            if slot == self.total - 1:
                last.append(_states_of_output(output))
            return output

        with self._slots(run):
            result = self.model(**batch)
        return Pass(result, last[0])

    def run(self, batch: Batch, run: Callable[..., Any]) -> Pass:
        """Run the model with `run(slot, forward, args, kwargs)` in place of each layer; it returns what the layer would."""
        last = list[Tensor]()

        def answer(slot: int, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
            output = run(slot, forward, args, dict(kwargs))
            if slot == self.total - 1:
                last.append(_states_of_output(output))
            return output

        with self._slots(answer):
            result = self.model(**batch)
        return Pass(result, last[0])

    def _step(self, step: Step, states: Tensor, call: Call) -> Tensor:
        if step.instead is not None:
            return step.instead(states)
        args, kwargs = _given(call, states)
        module = self.module(step.layer)
        self.passes += 1
        forward = type(module).forward.__get__(module)
        if step.edit is None:
            return _states_of_output(forward(*args, **kwargs))
        assert self.kind is not None
        with edited(module, self.kind, states, step.edit):
            return _states_of_output(forward(*args, **kwargs))

    @contextmanager
    def _slots(self, run: Callable[..., Any]) -> Iterator[None]:
        """Let `run(slot, forward, args, kwargs)` answer every call of a layer inside the block."""
        modules = list(dict.fromkeys(self.module(layer) for layer in range(self.total)))
        slot = 0

        def answer(module: Any) -> Callable[..., Any]:
            def forward(*args: Any, **kwargs: Any) -> Any:
                nonlocal slot
                at, slot = slot, slot + 1
                return run(at, self._counted(type(module).forward.__get__(module)), args, kwargs)

            return forward

        for module in modules:
            module.forward = answer(module)
        try:
            yield
        finally:
            for module in modules:
                del module.forward
        if slot != self.total:
            raise UsageError(
                f"{type(self.model).__name__} ran {slot} layers in one pass, and its config has {self.total}: its layers cannot "
                "be left out or reordered one by one."
            )

    def _counted(self, forward: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*args: Any, **kwargs: Any) -> Any:
            self.passes += 1
            return forward(*args, **kwargs)

        return counted


def slotted(model: Any, stack: str = "") -> SlottedModel:
    """Return a live model as one that plans run; its config is told not to cache keys, which plans would mix up.

    Raises:
        UsageError: the family is not in the table of layers.
    """
    model.config.use_cache = False
    live = live_layers(model, stack)
    return SlottedModel(model, live, layer_kind(model.config.to_dict(), stack))


def read_states(args: Sequence[Any], kwargs: Mapping[str, Any]) -> Tensor:
    """Return the states among the inputs of a layer: the first one, or the one named hidden_states."""
    states: Tensor = args[0] if args else kwargs["hidden_states"]
    return states


def _given(call: Call, states: Tensor) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return the inputs of a layer with other states."""
    if call.args:
        return (states, *call.args[1:]), dict(call.kwargs)
    return (), {**call.kwargs, "hidden_states": states}


def _states_of_output(output: Any) -> Tensor:
    states: Tensor = output[0] if isinstance(output, tuple) else output
    return states


def _with_states(output: Any, states: Tensor) -> Any:
    return (states, *output[1:]) if isinstance(output, tuple) else states


def _copied(output: Any) -> Any:
    """Return an output whose states are a copy: some models add to them in place."""
    states = _states_of_output(output)
    return _with_states(output, states.clone() if isinstance(states, torch.Tensor) else states)
