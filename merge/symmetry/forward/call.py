"""Call: a model's forward method with values of its inputs, some of which the model itself makes first."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from inspect import signature
from typing import Any

import torch
from torch import Tensor

from merge.checkpoints.transformers_model import quiet
from merge.errors import one_line
from merge.symmetry.forward.parameters import EMBEDDED, STATES


@dataclass(frozen=True)
class Run:
    """One call of forward.

    Attributes:
        values: by name.
        embedded: inputs of vectors, which the model's table of embeddings makes of the tokens among the values.
        state: what an earlier call with the same values returns and this one is given; empty without.
    """

    values: Mapping[str, Any]
    embedded: tuple[str, ...] = ()
    state: str = ""

    @property
    def given(self) -> frozenset[str]:
        """The parameters that the call gives."""
        made = {EMBEDDED[name] for name in self.embedded}
        return frozenset({*self.values, *self.embedded, *([self.state] if self.state else [])} - made)


class NoStateError(Exception):
    """The model returns no state of this kind, so that it takes none."""


def call(model: Any, run: Run | Mapping[str, Any]) -> dict[str, Tensor]:
    """Return the outputs of a call that are tensors, by name."""
    if not isinstance(run, Run):
        run = Run(run)
    values = dict(run.values)
    for name in run.embedded:
        tokens = values.pop(EMBEDDED[name]).to(next(model.parameters()).device)
        vectors = _table(model, name)(tokens)
        values[name] = vectors[0] if isinstance(vectors, tuple) else vectors
    if run.state:
        values = _after(model, values, run.state)
    return {name: value for name, value in model(**values).items() if isinstance(value, Tensor)}


def _table(model: Any, name: str) -> Any:
    """Return the model's table of embeddings; of its decoder, where it has one of its own, for what the decoder reads."""
    if name.startswith("decoder_"):
        decoder = model.get_decoder()
        table = decoder.get_input_embeddings() if decoder is not None else None
        if table is not None:
            return table
    return model.get_input_embeddings()


def _after(model: Any, values: dict[str, Any], state: str) -> dict[str, Any]:
    """Return the values of the call that goes on after an earlier one, with the state that it left.

    Raises:
        NoStateError: it left none.
    """
    switch = {STATES[state]: True} if STATES[state] in signature(model.forward).parameters else {}
    first, second = (values, values) if state == "encoder_outputs" else _halves(values)
    out = model(**{**first, **switch})
    if state == "encoder_outputs":
        hidden = out.get("encoder_last_hidden_state")
        if hidden is None:
            raise NoStateError(state)
        return {**{n: v for n, v in values.items() if n not in ("input_ids", "inputs_embeds")}, state: (hidden,)}
    kept = out.get(state)
    if kept is None:
        raise NoStateError(state)
    return {**second, state: kept, **switch}


def _halves(values: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the values for the first half of a text and for the rest; of what the decoder reads, where there is one.

    A mask tells of the whole text in the call for the rest too.
    """
    tokens = values.get("decoder_input_ids", values.get("input_ids"))
    word = "decoder_" if "decoder_input_ids" in values else ""
    if tokens is None:
        return dict(values), dict(values)
    length = tokens.shape[-1]

    def part(name: str, value: Any, start: int, stop: int) -> Any:
        is_of_text = isinstance(value, Tensor) and value.ndim > 1 and value.shape[1] == length and name.startswith(word)
        return value[:, start:stop] if is_of_text else value

    first = {name: part(name, value, 0, length // 2) for name, value in values.items()}
    rest = {
        name: value if name == f"{word}attention_mask" else part(name, value, length // 2, length)
        for name, value in values.items()
    }
    return first, rest


def fault_of(model: Any, run: Run) -> str | None:
    """Return why a call fails, None where it gives finite outputs.

    Raises:
        NoStateError: the call goes on after one that leaves no state.
    """
    return attempted(model, run)[0]


def attempted(model: Any, run: Run) -> tuple[str | None, dict[str, Tensor]]:
    """Return why a call fails, None where it gives finite outputs, and its outputs.

    Raises:
        NoStateError: the call goes on after one that leaves no state.
    """
    try:
        with quiet(), torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            outputs = call(model, run)
    except NoStateError:
        raise
    # Model code raises errors of any type on values that it does not take.
    except Exception as error:  # noqa: BLE001
        return f"{type(error).__name__}: {one_line(error)}", {}
    infinite = [name for name, out in outputs.items() if not bool(torch.isfinite(out).all())]
    return f"its output {infinite[0]} is not finite" if infinite else None, outputs
