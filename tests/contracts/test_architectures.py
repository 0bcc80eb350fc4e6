"""The battery every architecture table faces, with every task head: exact on all axes, wrong as soon as one is fixed."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch
from tiny import bert_config, random_tensors

from merge.architectures import ARCHITECTURES, spec_for
from merge.architectures.bert import HEADS
from merge.errors import SpecError
from merge.inputs import random_inputs
from merge.model import build, set_weights
from merge.permutation import apply, apply_axes, inverse, random, restrict
from merge.spec import PermutationSpec, parse

CASES: dict[str, dict[str, Any]] = {head: bert_config(head) for head in HEADS}
CASES["BertForMaskedLM untied"] = bert_config("BertForMaskedLM", tie_word_embeddings=False)
# Softmax cancels what the key bias adds, so its order, alone, can never show.
INERT = "attention.self.key.bias"
BOUND = 1e-9


def canonical(config: dict[str, Any], tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {
        n if n.startswith(("bert.", "cls.", "classifier.", "qa_outputs.")) else f"bert.{n}": t
        for n, t in tensors.items()
    }


def written(config: dict[str, Any], tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {n.removeprefix("bert.") if config["architectures"] == ["BertModel"] else n: t for n, t in tensors.items()}


@cache
def skeleton(case: str) -> Any:
    """One model a case; its weights are overwritten for every version that is run."""
    return build(CASES[case], random_tensors(CASES[case], 0), torch.float64)


def outputs(config: dict[str, Any], tensors: dict[str, torch.Tensor], names: Any) -> list[dict[str, torch.Tensor]]:
    model = skeleton(next(case for case in CASES if CASES[case] is config))
    set_weights(model, written(config, tensors))
    with torch.inference_mode():
        return [{name: model(**batch)[name] for name in names} for batch in random_inputs(config)]


def difference(config: dict[str, Any], spec: PermutationSpec, p: Any, tensors: Any, reference: Any) -> float:
    """Largest difference of any output of the re-based model, in standard deviations of that output."""
    worst = 0.0
    for old, new in zip(reference, outputs(config, apply(spec, p, tensors), spec.outputs), strict=True):
        for name, line in spec.outputs.items():
            expected = apply_axes(parse(line), p, old[name])
            worst = max(worst, float((new[name] - expected).abs().max() / expected.std()))
    return worst


@pytest.fixture(params=CASES, scope="module")
def case(request: pytest.FixtureRequest) -> tuple[dict[str, Any], PermutationSpec, dict[str, torch.Tensor], Any]:
    config = CASES[request.param]
    spec = spec_for(config)
    tensors = canonical(config, random_tensors(config, 0))
    return config, spec, tensors, outputs(config, tensors, spec.outputs)


def shapes(tensors: dict[str, torch.Tensor]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in tensors.items()}


def test_every_registered_family_is_in_this_battery() -> None:
    """A family cannot be listed without being tested."""
    assert {config["model_type"] for config in CASES.values()} == set(ARCHITECTURES)


def test_a_random_element_of_all_axes_keeps_the_outputs(case: Any) -> None:
    config, spec, tensors, reference = case
    for seed in range(3):
        p = random(spec, shapes(tensors), torch.Generator().manual_seed(seed))
        assert difference(config, spec, p, tensors, reference) < BOUND


def test_a_random_element_of_each_axis_alone_keeps_the_outputs(case: Any) -> None:
    config, spec, tensors, reference = case
    p = random(spec, shapes(tensors), torch.Generator().manual_seed(9))
    for axis in p.indices:
        alone = restrict(p, [axis])
        assert not alone.is_identity
        assert difference(config, spec, alone, tensors, reference) < BOUND


def test_fixing_any_one_axis_in_one_line_breaks_the_outputs(case: Any) -> None:
    """The negative control of the whole table: no line and no axis of it is idle, the key bias excepted by name."""
    config, spec, tensors, reference = case
    p = random(spec, shapes(tensors), torch.Generator().manual_seed(5))
    broken, tried = [], 0
    for name in tensors:
        axes = parse(spec.lines[name])
        for dim, axis in enumerate(axes):
            if axis.fixed:
                continue
            words = ["-" if d == dim or a.fixed else _spelt(a.names) for d, a in enumerate(axes)]
            lines = {**spec.lines, name: " ".join(words)}
            mutant = PermutationSpec(spec.family, lines, spec.sizes, spec.taps, spec.outputs, spec.named)
            tried += 1
            if difference(config, mutant, p, tensors, reference) > 1e-3:
                broken.append((name, dim))
            else:
                assert name.endswith(INERT)
    assert tried - len(broken) == config["num_hidden_layers"]


def _spelt(names: tuple[str, ...]) -> str:
    return names[0] if len(names) == 1 else f"({' '.join(names)})"


def test_mixing_rows_of_different_heads_breaks_the_outputs() -> None:
    """Why heads are split axes: a free permutation of the rows is what tools that ignore heads apply."""
    config = CASES["BertForSequenceClassification"]
    spec, tensors = spec_for(config), random_tensors(config, 0)
    lines = {
        name: line.replace("(heads0 qk0)", "qk0").replace("(heads0 qk0')", "qk0") for name, line in spec.lines.items()
    }
    free = PermutationSpec(spec.family, lines, spec.sizes, spec.taps, spec.outputs, spec.named)
    p = random(free, shapes(tensors), torch.Generator().manual_seed(0))
    assert difference(config, free, restrict(p, ["qk0"]), tensors, outputs(config, tensors, spec.outputs)) > 1e-3


def test_round_trip_gives_every_tensor_back_bit_for_bit(case: Any) -> None:
    _, spec, tensors, _ = case
    p = random(spec, shapes(tensors), torch.Generator().manual_seed(6))
    back = apply(spec, inverse(p), apply(spec, p, tensors))
    assert all(torch.equal(back[name], tensors[name]) for name in tensors)


def test_every_tap_carries_its_axis(case: Any) -> None:
    """Re-basing moves the activations at every tap exactly as the axis moves: what activation matching relies on."""
    from merge.alignment.activations import _record

    config, spec, tensors, _ = case
    p = random(spec, shapes(tensors), torch.Generator().manual_seed(7))
    seen = []
    for version in (tensors, apply(spec, p, tensors)):
        model = build(config, written(config, version), torch.float64)
        sites = {site: None for axis, sites in spec.taps.items() if axis in p.indices for site in sites}
        with _record(model, sites) as found, torch.inference_mode():
            model(**random_inputs(config)[0])
        seen.append(found)
    checked = 0
    for axis, sites in spec.taps.items():
        if axis not in p.indices:
            continue
        line = f"({p.outer[axis]} {axis})" if axis in p.outer else axis
        for site in sites:
            moved = apply_axes(parse("- " * (seen[0][site].ndim - 1) + line), p, seen[0][site])
            assert torch.allclose(moved, seen[1][site], atol=1e-10)
            assert not torch.allclose(seen[0][site], seen[1][site], atol=1e-3)
            checked += 1
    assert checked >= 5 * config["num_hidden_layers"]


def test_an_unknown_family_or_head_is_refused_by_name() -> None:
    with pytest.raises(SpecError, match="no permutation table for model type 'bertt'. Did you mean 'bert'"):
        spec_for({"model_type": "bertt"})
    with pytest.raises(SpecError, match="no task head 'BertForSequenceClasification'"):
        spec_for(bert_config("BertForMaskedLM") | {"architectures": ["BertForSequenceClasification"]})
