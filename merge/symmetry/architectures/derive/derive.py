"""Derived tables: the spec of a model that has no table by hand, read off one run of it and proved on others.

The model is built with random parameters, run once while every dimension is followed (`trace`), and what may move is
written in the notation (`items`). Then the proof every table faces: a random element on all axes at once keeps the
outputs in float64. If it does not, the axes that fail alone are fixed; if none does, or nothing is left that moves,
there is no spec. Roles (`in`, `out`, `=`) are not derived: a permutation does not tell them apart. So every axis has the
group of permutations, and nothing else acts on it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor

from merge.checkpoints.structure import Structure, structure_of
from merge.errors import one_line
from merge.symmetry.architectures.derive.factors import Factor, fix, flat
from merge.symmetry.architectures.derive.lines import Table, Unsayable, item, write_table
from merge.symmetry.architectures.derive.specimen import Specimen, refusal, specimen_of
from merge.symmetry.architectures.derive.taps import taps_of
from merge.symmetry.architectures.derive.trace import Trace, follow
from merge.symmetry.permutation import Permutation, apply, apply_axes, random, restrict
from merge.symmetry.spec import PermutationSpec, parse

BOUND = 1e-9  # of the proof, in float64 throughout
CAST_BOUND = 1e-4  # of the run's own proof, where the model's code goes through float32
# Outputs whose units have no meaning of their own; those of all others (classes, tokens, scores) keep their order.
BASES = ("hidden_state", "hidden_states", "pooler_output", "embeds")
CLASSIFIERS = ("ForSequenceClassification", "ForTokenClassification", "ForImageClassification")
UNREAD = "no output reads it"
# What every model has, and no note need say.
EXPECTED = (UNREAD, "rows are looked up by number", "the order of this output has a meaning")


@dataclass(frozen=True)
class Derived:
    """A spec that no hand wrote, and what is known of it.

    Attributes:
        spec: proved on random parameters.
        error: the largest difference of any output in the proof, in standard deviations.
        fixed: reason -> `tensor[axis]` of every axis that stays where it is for this reason.
        unread: tensors that no output depends on in the run: all their axes are fixed.
    """

    spec: PermutationSpec
    error: float
    fixed: Mapping[str, tuple[str, ...]]
    unread: tuple[str, ...]

    @property
    def note(self) -> str:
        """One sentence for a report: where the table came from, and what it could not see."""
        listed = _reasons(self.fixed)
        kinds = sorted({self.spec.kind(axis) for line in self.spec.lines for axis in _mentions(self.spec, line)})
        return (
            f"{self.spec.family.split()[0]} has no permutation table; one was derived from a run of the model and proved on "
            f"random parameters (outputs differ by {self.error:.1g} standard deviations): axes {', '.join(kinds)}"
            + (f". {listed}" if listed else "")
            + (f". Read by no output: {', '.join(self.unread[:3])}" if self.unread else "")
        )


def derive(config: Mapping[str, Any]) -> Derived:
    """Return a spec for a model that has no table, proved on random parameters, with what the proof could not show.

    Computed once for each config.

    Raises:
        SpecError: the model cannot be run on inputs made up for it, or the proof fails; the message says which.
    """
    return _derive(json.dumps(config, sort_keys=True))


@cache
def _derive(config: str) -> Derived:
    structure = structure_of(json.loads(config))
    specimen = specimen_of(structure)
    try:
        reference = specimen.outputs(specimen.tensors)
    # Model code fails in its own words on inputs it does not take.
    except Exception as error:
        raise refusal(structure, f"it does not run on random inputs: {one_line(error)}") from error
    loose = [name for name, out in reference[0].items() if not bool(torch.isfinite(out).all())]
    if loose:
        raise refusal(structure, f"its output {loose[0]} is not finite on random inputs")
    trace = follow(specimen.model, specimen.own(), specimen.batches[0])
    return settle(specimen, trace, reference)


def settle(specimen: Specimen, trace: Trace, reference: list[dict[str, Tensor]]) -> Derived:
    """Return the spec of a trace once it is proved, fixing on the way what alone changes the outputs.

    Raises:
        SpecError: all axes together change the outputs, and none does alone.
    """
    structure = specimen.structure
    fix((f for name in trace.unread for dim in trace.tensors[name] for f in dim), UNREAD)
    labels = _settle_outputs(trace, structure)
    while True:
        table = write_table(trace, labels)
        spec = _spec(specimen, trace, table)
        if not set(table.names.values()) - spec.named:
            raise refusal(structure, f"nothing in it can be moved. {_reasons(_unmoved(trace)[0])}")
        error, failing = _prove(spec, specimen, reference)
        if error <= BOUND:
            return Derived(spec, error, *_unmoved(trace))
        if not failing:
            break
        fix((f for f, name in table.names.items() if name in failing), "moving it changes the outputs")
    raise refusal(structure, f"a random permutation changes its outputs by {error:.2g} standard deviations")


def _settle_outputs(trace: Trace, structure: Structure) -> Factor | None:
    """Fix the outputs whose order has a meaning; return the factor of the classes where their names give the order."""
    labels = None
    for name, dims in trace.outputs.items():
        if name == "logits" and structure.architecture.endswith(CLASSIFIERS):
            leaves = flat(dims[-1])
            if len(leaves) == 1 and not leaves[0].fixed and leaves[0].size == len(structure.label_names):
                labels = leaves[0]
                continue
        if not name.endswith(BASES):
            fix([f for dim in dims for f in dim], f"the order of this output has a meaning: {name}")
        for dim in dims:
            try:
                item(dim)
            except Unsayable as fault:
                fix(fault.factors, str(fault))
    return labels


def _spec(specimen: Specimen, trace: Trace, table: Table) -> PermutationSpec:
    """Return the spec of a table; integer tensors are fixed along every axis."""
    structure = specimen.structure
    still = {name: " ".join("-" * t.ndim) for name, t in specimen.own().items() if name not in specimen.tensors}
    names = set(table.names.values())
    return PermutationSpec(
        family=f"{structure.config['model_type']} (derived)",
        lines={**table.lines, **still},
        sizes=table.sizes,
        taps=taps_of(specimen, trace, table),
        outputs=table.outputs,
        named=frozenset({"labels"} & names),
        bound=CAST_BOUND if trace.casts else BOUND,
    )


def _prove(
    spec: PermutationSpec, specimen: Specimen, reference: list[dict[str, Tensor]]
) -> tuple[float, frozenset[str]]:
    """Return the largest difference a random element on all axes makes, and the axes that alone make one."""
    shapes = {name: tuple(tensor.shape) for name, tensor in specimen.tensors.items()}
    p = random(spec, shapes, torch.Generator().manual_seed(0))
    error = _difference(spec, specimen, reference, p)
    if error <= BOUND:
        return error, frozenset()
    alone = {axis: _difference(spec, specimen, reference, restrict(p, [axis])) for axis in p.indices}
    return error, frozenset(axis for axis, value in alone.items() if not value <= BOUND)


def _difference(spec: PermutationSpec, specimen: Specimen, reference: list[dict[str, Tensor]], p: Permutation) -> float:
    """Return the largest difference of any output of the re-based model, in standard deviations of that output."""
    worst = 0.0
    for old, new in zip(reference, specimen.outputs(apply(spec, p, specimen.tensors)), strict=True):
        for name, line in spec.outputs.items():
            expected = apply_axes(parse(line), p, old[name])
            spread = expected.std().clamp_min(torch.finfo(torch.float64).tiny)
            difference = float((new[name] - expected).abs().max() / spread)
            worst = max(worst, difference if difference == difference else torch.inf)
    return worst


def _unmoved(trace: Trace) -> tuple[dict[str, tuple[str, ...]], tuple[str, ...]]:
    """Return reason -> the tensors' axes that are fixed for it, and the tensors no output depends on."""
    found: dict[str, list[str]] = {}
    for name, dims in trace.tensors.items():
        for d, dim in enumerate(dims):
            for why in dict.fromkeys(f.fixed for f in flat(dim) if f.fixed):
                found.setdefault(why, []).append(f"{name}[{d}]")
    return {why: tuple(axes) for why, axes in found.items()}, trace.unread


def _reasons(fixed: Mapping[str, tuple[str, ...]]) -> str:
    """Return what is fixed and why, without what is fixed in every model."""
    unseen = {why: axes for why, axes in fixed.items() if not why.startswith(EXPECTED)}
    listed = "; ".join(f"{len(axes)} axes ({why}), such as {axes[0]}" for why, axes in unseen.items())
    return f"Not moved: {listed}" if listed else ""


def _mentions(spec: PermutationSpec, tensor: str) -> list[str]:
    return [name for axis in spec.axes(tensor) for name in axis.axis_names()]
