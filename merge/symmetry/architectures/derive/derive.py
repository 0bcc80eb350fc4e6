"""Derived tables: the spec of a model that has no table written by hand, read off one run of it and proved on others.

The model is built with random parameters and run once while the factors of every dimension are followed (`trace`); what
may be permuted is written in the notation (`lines`). Then comes the proof that every table must pass: a random
permutation of all axes at once keeps the outputs in float64. If it does not, the axes that fail alone are fixed; if
none fails alone, or nothing is left to permute, there is no spec.

Roles (`in`, `out`, `=`) are not derived, because permutations do not distinguish them. So every axis has the group of
permutations, and no maps act on it.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from merge.checkpoints.structure import Structure, structure_of
from merge.disk.documents import parse_json
from merge.errors import MergeError, SpecError, brief, one_line
from merge.symmetry.architectures.derive.factors import Factor, fix, flat, size
from merge.symmetry.architectures.derive.lines import Inexpressible, Table, item_of, write_table
from merge.symmetry.architectures.derive.specimen import Specimen, refusal, specimen_of
from merge.symmetry.architectures.derive.taps import taps_of
from merge.symmetry.architectures.derive.trace import Trace, follow
from merge.symmetry.permutation import Permutation, apply, apply_axes, random, restrict
from merge.symmetry.spec import PermutationSpec, parse

# Largest difference of an output, in standard deviations: in the proof, which is in float64 throughout; and in a merge,
# where the model's own code may go through float32.
BOUND = 1e-9
CAST_BOUND = 1e-4
# What a change of the function comes to at least.
BROKEN = 1e-6
# Endings of outputs whose units may be permuted; those of all others (classes, tokens, scores) have a meaning by
# position.
HIDDEN_OUTPUTS = ("hidden_state", "hidden_states", "pooler_output", "embeds")
CLASSIFIERS = ("ForSequenceClassification", "ForTokenClassification", "ForImageClassification")
MAX_DERIVED = 64  # specs that a process remembers
MAX_REASON = 120  # characters of a reason in a message
UNREAD = "no run reads it"
# Reasons that hold in every model, which a note leaves out.
EXPECTED_REASONS = (UNREAD, "rows are looked up by number", "the order of this output has a meaning")


@dataclass(frozen=True)
class Derived:
    """A derived spec, with its proof and what the run could not show.

    Attributes:
        spec: proved on random parameters.
        error: the largest difference of any output in the proof, in standard deviations.
        fixed: reason -> `tensor[dimension]` of everything whose order is fixed for this reason.
        unread: tensors that no output depends on in any run; all axes that they could have are fixed.
    """

    spec: PermutationSpec
    error: float
    fixed: Mapping[str, tuple[str, ...]]
    unread: tuple[str, ...]

    @property
    def note(self) -> str:
        """One sentence for the report: where the table is from, and what the run could not show."""
        reasons = _reasons(self.fixed)
        kinds = sorted({self.spec.kind(axis) for line in self.spec.lines for axis in _mentions(self.spec, line)})
        return (
            f"{self.spec.family.split()[0]} has no permutation table; one was derived from a run of the model and proved on "
            f"random parameters (outputs differ by {self.error:.1g} standard deviations): axes {', '.join(kinds)}"
            + (f". {reasons}" if reasons else "")
            + (f". Read by no output: {', '.join(self.unread[:3])}" if self.unread else "")
        )


def derive(config: Mapping[str, Any]) -> Derived:
    """Return a spec for a model that has no table, proved on random parameters, with what the proof could not show.

    Computed once for each config; of MAX_DERIVED a process remembers the results.

    Raises:
        SpecError: the model cannot be run on inputs made up for it, or the proof fails; the message says which.
    """
    return _derive(json.dumps(config, sort_keys=True))


@lru_cache(maxsize=MAX_DERIVED)
def _derive(config: str) -> Derived:
    structure = structure_of(parse_json(config, "config.json", SpecError))
    specimen = specimen_of(structure).with_all_inputs()
    _check_inputs(specimen)
    try:
        # The second of the usual batches is for the proof alone.
        trace = follow(specimen.model, specimen.model_tensors(), specimen.batches[0], *specimen.others.runs)
        return prove_trace(specimen, trace, specimen.outputs(specimen.tensors))
    except MergeError:
        raise
    # Operations of a kind that no rule was written for.
    except Exception as error:
        raise refusal(structure, f"its run cannot be followed: {one_line(error)}") from error


def _check_inputs(specimen: Specimen) -> None:
    """Raise SpecError if forward takes an input that no run could give: nothing shows what it does to the axes."""
    refused = specimen.others.refused
    if refused:
        reasons = "; ".join(f"{name} ({brief(why, MAX_REASON)})" for name, why in refused.items())
        raise refusal(
            specimen.structure, f"its forward method takes inputs that no run of it could be given: {reasons}"
        )


def prove_trace(specimen: Specimen, trace: Trace, reference: list[dict[str, Tensor]]) -> Derived:
    """Return the proved spec of a trace; axes that change the outputs when permuted alone are fixed on the way.

    Raises:
        SpecError: all axes together change the outputs, and none does alone.
    """
    structure = specimen.structure
    fix((f for name in trace.unread for dim in trace.tensors[name] for f in dim), UNREAD)
    labels = _fix_outputs(trace, structure)
    while True:
        table = write_table(trace, labels)
        if _fix_unread(trace, table, int(structure.settings.get("vocab_size") or 0)):
            continue
        spec = _spec(specimen, trace, table)
        if not set(table.names.values()) - spec.named:
            raise refusal(structure, f"nothing in it can be moved. {_reasons(_unmoved(trace)[0])}")
        error, failing = _prove(spec, specimen, reference)
        if error <= BOUND:
            _check_power(spec, specimen, reference)
            return Derived(spec, error, *_unmoved(trace))
        if not failing:
            break
        fix((f for f, name in table.names.items() if name in failing), "moving it changes the outputs")
    raise refusal(structure, f"a random permutation changes its outputs by {error:.2g} standard deviations")


def _fix_unread(trace: Trace, table: Table, vocab_size: int) -> bool:
    """Fix every axis that a tensor which no run reads could have, and return whether there was one.

    Nothing shows which units such a tensor reads when it is read; it can be those of an axis whose size fits into one
    of its dimensions. A dimension as long as the vocabulary is of tokens.
    """
    for name in trace.unread:
        why = f"no run reads {name}, which may read them"
        lengths = [size(its) for its in trace.tensors[name] if size(its) > 1]
        for dims in trace.tensors.values():
            for dim in dims:
                movable = [factor for factor in flat(dim) if factor in table.names]
                sizes = {size(dim), *(factor.size for factor in movable)}
                if movable and any(
                    n == length or (length != vocab_size and length % n == 0) for length in lengths for n in sizes
                ):
                    fix(movable, why)
    return any(factor.root.fixed for factor in table.names)


def _fix_outputs(trace: Trace, structure: Structure) -> Factor | None:
    """Fix the outputs whose order has a meaning; return the factor of the classes, if label names give its order."""
    labels = None
    for name, dims in trace.outputs.items():
        if name == "logits" and structure.architecture.endswith(CLASSIFIERS):
            leaves = flat(dims[-1])
            if len(leaves) == 1 and not leaves[0].fixed and leaves[0].size == len(structure.label_names):
                labels = leaves[0]
                continue
        if not name.endswith(HIDDEN_OUTPUTS):
            fix([f for dim in dims for f in dim], f"the order of this output has a meaning: {name}")
        for dim in dims:
            try:
                item_of(dim)
            except Inexpressible as fault:
                fix(fault.factors, str(fault))
    return labels


def _spec(specimen: Specimen, trace: Trace, table: Table) -> PermutationSpec:
    """Return the spec of a table; the order of integer tensors is fixed in every dimension."""
    structure = specimen.structure
    integers = {
        name: " ".join("-" * t.ndim) for name, t in specimen.model_tensors().items() if name not in specimen.tensors
    }
    names = set(table.names.values())
    return PermutationSpec(
        family=f"{structure.config['model_type']} (derived)",
        lines={**table.lines, **integers},
        sizes=table.sizes,
        taps=taps_of(specimen, trace, table),
        outputs=table.outputs,
        named=frozenset({"labels"} & names),
        bound=CAST_BOUND if trace.casts else BOUND,
    )


def _prove(
    spec: PermutationSpec, specimen: Specimen, reference: list[dict[str, Tensor]]
) -> tuple[float, frozenset[str]]:
    """Return the largest difference that a random permutation of all axes makes, and the axes that alone make one."""
    p = _moving(spec, specimen)
    error = _difference(spec, specimen, reference, p)
    if error <= BOUND:
        return error, frozenset()
    alone = {axis: _difference(spec, specimen, reference, restrict(p, [axis])) for axis in p.indices}
    return error, frozenset(axis for axis, value in alone.items() if not value <= BOUND)


def _check_power(spec: PermutationSpec, specimen: Specimen, reference: list[dict[str, Tensor]]) -> None:
    """Raise SpecError if the outputs show no change where half of the tensors are left behind: such a proof is empty."""
    p = _moving(spec, specimen)
    moved = apply(spec, p, specimen.tensors)
    changed = [name for name, tensor in moved.items() if not torch.equal(tensor, specimen.tensors[name])]
    behind = moved | {name: specimen.tensors[name] for name in changed[::2]}
    if not _distance(spec, specimen.outputs(behind), reference, p) > BROKEN:
        raise refusal(
            specimen.structure, "its outputs on random inputs do not show whether its units are in their places"
        )


def _moving(spec: PermutationSpec, specimen: Specimen) -> Permutation:
    """Return a random element of the group of every axis."""
    shapes = {name: tuple(tensor.shape) for name, tensor in specimen.tensors.items()}
    return random(spec, shapes, torch.Generator().manual_seed(0))


def _difference(spec: PermutationSpec, specimen: Specimen, reference: list[dict[str, Tensor]], p: Permutation) -> float:
    """Return the largest difference of any output of the permuted model, in standard deviations of that output."""
    return _distance(spec, specimen.outputs(apply(spec, p, specimen.tensors)), reference, p)


def _distance(
    spec: PermutationSpec, outputs: list[dict[str, Tensor]], reference: list[dict[str, Tensor]], p: Permutation
) -> float:
    """Return the largest difference of any output from that of the model itself, permuted likewise."""
    worst = 0.0
    for old, new in zip(reference, outputs, strict=True):
        for name, value in old.items():
            expected = apply_axes(parse(spec.outputs[name]), p, value).double()
            spread = expected.std().clamp_min(torch.finfo(torch.float64).tiny)
            difference = float((new[name].double() - expected).abs().max() / spread)
            worst = max(worst, torch.inf if math.isnan(difference) else difference)
    return worst


def _unmoved(trace: Trace) -> tuple[dict[str, tuple[str, ...]], tuple[str, ...]]:
    """Return reason -> the dimensions that are fixed for it, and the tensors that no output depends on."""
    dimensions: dict[str, list[str]] = {}
    for name, dims in trace.tensors.items():
        for d, dim in enumerate(dims):
            for why in dict.fromkeys(f.fixed for f in flat(dim) if f.fixed):
                dimensions.setdefault(why, []).append(f"{name}[{d}]")
    return {why: tuple(axes) for why, axes in dimensions.items()}, trace.unread


def _reasons(fixed: Mapping[str, tuple[str, ...]]) -> str:
    """Return the reasons for fixed orders as a sentence, without those that hold in every model."""
    special = {why: axes for why, axes in fixed.items() if not why.startswith(EXPECTED_REASONS)}
    text = "; ".join(f"{len(axes)} axes ({why}), such as {axes[0]}" for why, axes in special.items())
    return f"Not moved: {text}" if text else ""


def _mentions(spec: PermutationSpec, tensor: str) -> list[str]:
    return [name for axis in spec.axes(tensor) for name in axis.axis_names()]
