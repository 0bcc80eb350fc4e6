"""Runs: calls of a model's forward method that between them give every input that it takes.

Nothing is known of most models but the names of their inputs. So values are made up for all inputs at once; where the
model refuses them, inputs are added one after another, and what does not go with the others gets a run of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import product
from typing import Any

import torch
from torch import Tensor

from merge.symmetry.forward.call import NoStateError, Run
from merge.symmetry.forward.parameters import EMBEDDED, PARTS, Parameters, parameters_of
from merge.symmetry.forward.values import Facts, guesses

MAX_GUESSES = 6  # of the values of inputs that belong together


@dataclass(frozen=True)
class Runs:
    """Calls that give a forward method what it takes.

    Attributes:
        runs: beside those with the inputs that are usual.
        refused: input that no call could give -> what the model said.
    """

    runs: tuple[Run, ...] = ()
    refused: Mapping[str, str] = field(default_factory=dict)


NO_RUNS = Runs()


def settings_of(model: Any) -> dict[str, Any]:
    """Return the settings of the vision and text parts of a model's config, and its own over them."""
    own = model.config.to_dict()
    parts = (dict(own.get(part) or {}) for part in ("vision_config", "text_config", "encoder", "decoder"))
    return {key: value for part in (*parts, own) for key, value in part.items()}


def find_runs(model: Any, usual: Mapping[str, Any], attempt: Callable[[Run], str | None]) -> Runs:
    """Return runs that give every input of the model's forward method which is not among the usual ones.

    Args:
        model: in the dtype that it is run in.
        usual: a batch of the inputs that the model is run on anyway.
        attempt: returns what went wrong with a run, None where it works.
    """
    parameters, config = parameters_of(model), settings_of(model)
    search = _Search(parameters, _facts(config, usual), usual, attempt)
    inputs = [name for name in parameters.inputs if name not in usual]
    search.give(inputs)
    search.embed()
    search.remember()
    search.switch()
    lacking = {name for name, setting in PARTS.items() if not config.get(setting)}
    return Runs(tuple(search.runs), {name: why for name, why in search.refused.items() if name not in lacking})


def completed(model: Any, usual: Mapping[str, Any], attempt: Callable[[Run], str | None]) -> dict[str, Any] | None:
    """Return a batch with all inputs that the model may need beside the usual ones; None where none is found."""
    parameters = parameters_of(model)
    search = _Search(parameters, _facts(settings_of(model), usual), usual, attempt)
    missing = [name for name in parameters.inputs if name not in usual]
    words = dict.fromkeys(name.split("_")[0] for name in missing)
    for names in (missing, *([n for n in missing if n.split("_")[0] == word] for word in words)):
        base = dict(search.usual)
        if search.extend(names, base) is None:
            return base
    return None


def _facts(config: Mapping[str, Any], usual: Mapping[str, Any]) -> Facts:
    tokens = next((v for k, v in usual.items() if k in ("input_ids", "decoder_input_ids")), None)
    first = tokens if tokens is not None else next(v for v in usual.values() if isinstance(v, Tensor))
    length, texts = (tokens.shape[-1], tokens.shape[:-1].numel()) if tokens is not None else (1, len(first))
    return Facts(texts, length, config, torch.Generator().manual_seed(5))


class _Search:
    """Collects runs; `base` grows by every input that goes with those before it."""

    def __init__(
        self,
        parameters: Parameters,
        facts: Facts,
        usual: Mapping[str, Any],
        attempt: Callable[[Run], str | None],
    ) -> None:
        self.parameters, self.facts, self.attempt = parameters, facts, attempt
        self.usual, self.base = dict(usual), dict(usual)
        self.runs: list[Run] = []
        self.refused: dict[str, str] = {}

    def values(self, names: Sequence[str]) -> Iterator[dict[str, Any]]:
        """Yield values of several inputs, one guess of each; of the inputs of which there is none, nothing."""
        known = {name: list(self._guesses(name)) for name in names}
        names = [name for name in names if known[name]]
        for number, guess in enumerate(product(*(known[name] for name in names))):
            if number == MAX_GUESSES:
                break
            yield dict(zip(names, guess, strict=True))

    def _guesses(self, name: str) -> Iterator[Any]:
        """Yield values of one input: as long as what the decoder reads, and by choices where the model has choices."""
        facts, tokens = self.facts, self.usual.get("decoder_input_ids")
        if name.startswith("decoder_") and tokens is not None:
            facts = replace(facts, length=tokens.shape[-1])
        tokens = self.usual.get("input_ids")
        for value in guesses(name, facts):
            if isinstance(value, Tensor) and tokens is not None and tokens.ndim == 3 and len(value) == facts.texts:
                yield value.reshape(*tokens.shape[:2], *value.shape[1:])
            yield value

    def give(self, names: Sequence[str]) -> None:
        """Find runs that give these inputs: all in one, those of one word together, or each with what it goes with."""
        unknown = [name for name in names if not any(True for _ in self._guesses(name))]
        self.refused |= dict.fromkeys(unknown, "nothing is known of its values")
        left = [name for name in names if name not in unknown]
        self.extend(left, self.base)
        groups = [[n for n in left if n.split("_")[0] == word] for word in dict.fromkeys(n.split("_")[0] for n in left)]
        for group in groups:
            self.extend([n for n in group if n not in self.base], self.base)
        waiting = [name for name in left if name not in self.base]
        while self._any_extends(waiting):
            waiting = [name for name in waiting if name not in self.base]
        if self.base.keys() != self.usual.keys():
            self.runs.append(Run(dict(self.base)))
        for name in (name for name in waiting if name not in self.base):
            self._alone(name)

    def _any_extends(self, names: Sequence[str]) -> bool:
        """Try to add each of these inputs alone; return whether one was added, with which others may go now."""
        before = len(self.base)
        for name in names:
            if name not in self.base:
                self.extend([name], self.base)
        return len(self.base) > before

    def extend(self, names: Sequence[str], base: dict[str, Any]) -> str | None:
        """Add these inputs to the base if the model takes them; return what it said otherwise."""
        said: str | None = "nothing to give"
        if not names:
            return said
        for values in self.values(names):
            said = self.attempt(Run({**base, **values}))
            if said is None:
                base |= values
                return None
        return said

    def _alone(self, name: str) -> None:
        """Find a run that gives an input which does not go with the others: beside the usual ones, or instead of one."""
        said = None
        for without in ("", "attention_mask", "pixel_values", "input_ids"):
            usual = {n: v for n, v in self.usual.items() if n != without}
            if without and len(usual) == len(self.usual):
                continue
            fault = self.extend([name], usual)
            if fault is None:
                self.runs.append(Run(usual))
                return
            said = said or fault
        self.refused[name] = str(said)

    def embed(self) -> None:
        """Find runs that give vectors instead of tokens."""
        for name in self.parameters.embedded:
            for base in (self.base, self.usual):
                if EMBEDDED[name] not in base:
                    continue
                run = Run(base, (name,))
                if self._keep(name, run):
                    break

    def remember(self) -> None:
        """Find runs that go on after others; a model that returns no state takes none."""
        for name in self.parameters.states:
            usual = self.usual
            less = {n: v for n, v in usual.items() if n not in ("attention_mask", "position_ids")}
            for base in (usual, less):
                if self._keep(name, Run(base, (), name)):
                    break

    def switch(self) -> None:
        """Find runs with each other switch turned."""
        for name, default in self.parameters.switches.items():
            for base in (self.base, self.usual):
                if self._keep(name, Run({**base, name: not default})):
                    break

    def _keep(self, name: str, run: Run) -> bool:
        """Keep a run if it works, and return whether it does."""
        try:
            fault = self.attempt(run)
        except NoStateError:
            return True
        if fault is None:
            self.runs.append(run)
            self.refused.pop(name, None)
            return True
        self.refused.setdefault(name, fault)
        return False
