"""A case of the architecture battery: a tiny model with all its parameters random, its table, and its outputs."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
from families import canonical_tensors, written_name
from torch import Tensor

from merge.checkpoints.structure import structure_of
from merge.checkpoints.transformers_model import build, set_weights
from merge.symmetry.architectures import ARCHITECTURES, spec_for
from merge.symmetry.permutation import Permutation, apply, apply_axes, random
from merge.symmetry.spec import PermutationSpec, parse

# Every tests/families*.py defines CASES, INERT and inputs(config); the battery takes every such file.
TABLES = [import_module(path.stem) for path in sorted(Path(__file__).parent.glob("families*.py"))]
CASES = {name: (config, table) for table in TABLES for name, config in table.CASES.items()}

Outputs = list[dict[str, Tensor]]


@dataclass(frozen=True)
class Case:
    """A tiny model with all its parameters random, its table, and its outputs on a few batches.

    Attributes:
        inert: patterns of mutants, `tensor line`, that are declared not to show in the outputs.
        elsewhere: the lines that are also the family's first case's, on which they are broken one by one.
    """

    config: Mapping[str, Any]
    spec: PermutationSpec
    tensors: Mapping[str, Tensor]
    model: Any
    batches: tuple[Mapping[str, Tensor], ...]
    reference: Outputs
    inert: tuple[str, ...] = ()
    elsewhere: Mapping[str, str] = field(default_factory=dict)

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {name: tuple(tensor.shape) for name, tensor in self.tensors.items()}

    def random(self, seed: int) -> Permutation:
        """Return a random element that moves every axis: of three labels, one draw in six would leave all in place."""
        generator = torch.Generator().manual_seed(seed)
        while True:
            p = random(self.spec, self.shapes, generator)
            if all(moved for moved, _ in p.moved().values()):
                return p

    def set(self, tensors: Mapping[str, Tensor]) -> None:
        """Give the model these tensors and leave the others."""
        structure = structure_of(self.config)
        set_weights(self.model, {written_name(structure, name): tensor for name, tensor in tensors.items()})

    def expected(self, p: Permutation) -> Outputs:
        """Return the first outputs, moved as the spec says that outputs move."""
        lines = self.spec.outputs
        return [{name: apply_axes(parse(lines[name]), p, old[name]) for name in lines} for old in self.reference]

    def off(self, expected: Outputs, batches: int | None = None) -> float:
        """Return the largest difference of any output from the expected, in standard deviations of that output."""
        outputs = outputs_of(self.model, self.spec, self.batches[:batches])
        worst = [
            (float((new[name] - value).abs().max()), float(value.std()))
            for new, old in zip(outputs, expected[:batches], strict=True)
            for name, value in old.items()
        ]
        assert worst
        return max(error / spread for error, spread in worst)

    def difference(self, p: Permutation, spec: PermutationSpec | None = None) -> float:
        """Return how far the model re-based by p, as the spec (or another) says, is from itself."""
        self.set(apply(spec or self.spec, p, self.tensors))
        return self.off(self.expected(p))


def outputs_of(model: Any, spec: PermutationSpec, batches: tuple[Mapping[str, Tensor], ...]) -> Outputs:
    """Return the outputs that the spec names, for each batch."""
    with torch.inference_mode():
        return [{name: output[name] for name in spec.outputs} for output in (model(**batch) for batch in batches)]


def make(config: Mapping[str, Any], table: Any) -> Case:
    """Return the case of a config in one of TABLES."""
    structure, spec, tensors = structure_of(config), spec_for(config), canonical_tensors(config, 0)
    dtype = getattr(torch, spec.dtype)
    model = build(config, {written_name(structure, name): tensor for name, tensor in tensors.items()}, dtype)
    batches = table.inputs(config)[:2]
    idle = [table.INERT.get(key, {}) for key in (config["model_type"], config["architectures"][0])]
    inert = tuple(pattern for patterns in idle for pattern in patterns)
    first = first_of(config["model_type"])[0]
    elsewhere = {} if first is config else spec_for(first).lines
    kept = {n: line for n, line in elsewhere.items() if not any(re.search(p, f"{n} {line}") for p in idle[1])}
    return Case(config, spec, tensors, model, batches, outputs_of(model, spec, batches), inert, kept)


def first_of(model_type: str) -> tuple[Mapping[str, Any], Any]:
    """Return the case that stands for a family."""
    return next((config, table) for config, table in CASES.values() if config["model_type"] == model_type)


# A family's first case, and the variants whose tables differ in kind: the others have lines of these.
FIRST = {name: next(n for n, (c, _) in CASES.items() if c is first_of(name)[0]) for name in ARCHITECTURES}
VARIANTS = (
    "BertForMaskedLM",
    "BertForPreTraining",
    "bert untied",
    "electra untied",
    "ElectraForMaskedLM",
    "electra without summary",
    "DistilBertForMaskedLM",
    "AlbertForMaskedLM",
    "albert in one group",
    "llama tied",
    "modernbert with biases",
    "modernbert untied",
    "deberta talking",
    "deberta-v2 own positions",
    "deberta-v2 content only",
    "RoFormerForMultipleChoice",
    "roformer rotary values",
    "ViTModel",
    "beit shared relative",
)
STANDING = (*FIRST.values(), *VARIANTS)


@cache
def standing_case(name: str) -> Case:
    """Return one of STANDING, made once for all batteries: each of their tests gives the model its tensors first."""
    return make(*CASES[name])


# Every case; those that repeat on one more head what the others show are for make check.
ALL_CASES = [pytest.param(name, marks=() if name in STANDING else pytest.mark.slow) for name in CASES]
