"""A model from a kept skeleton is the model that transformers builds: modules, settings, ties, buffers, outputs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from architecture_case import CASES, STANDING, outputs_of
from families import UNLIKE, canonical_tensors, written_name
from quick import quick_on
from tiny import bert_config, random_tensors

from merge.checkpoints.structure import structure_of
from merge.checkpoints.transformers_model import build
from merge.checkpoints.weights import skeletons
from merge.errors import CheckpointError
from merge.symmetry.architectures import spec_for

QUICK = {next((n for n in CASES if CASES[n][0]["model_type"] == family), "") for family in UNLIKE}


@pytest.fixture(autouse=True)
def none_kept(monkeypatch: pytest.MonkeyPatch) -> dict[Any, Any]:
    """No skeleton is there, and those of these tests are gone afterwards."""
    kept: dict[Any, Any] = {}
    monkeypatch.setattr(skeletons, "SKELETONS", kept)
    return kept


def described(model: Any) -> dict[str, Any]:
    """Return all that makes a model what it is: the state of every module, and which names are one tensor."""
    out: dict[str, Any] = {}
    for name, module in model.named_modules():
        out[name] = {key: _plain(value) for key, value in vars(module).items() if key != "_modules"}
        out[name]["class"] = type(module)
    tensors = {
        **dict(model.named_parameters(remove_duplicate=False)),
        **dict(model.named_buffers(remove_duplicate=False)),
    }
    first: dict[int, str] = {}
    out["same tensor"] = {name: first.setdefault(id(tensor), name) for name, tensor in tensors.items()}
    out["config"] = model.config.to_dict()
    return out


def _plain(value: Any) -> Any:
    """Return a value that can be compared."""
    if isinstance(value, torch.nn.Module):
        return "module"
    if isinstance(value, torch.Tensor):
        kind = (
            type(value),
            value.dtype,
            value.requires_grad,
            value.is_leaf,
            {k: str(v) for k, v in vars(value).items()},
        )
        return kind, value.tolist()
    if isinstance(value, Mapping):
        return [(str(key), _plain(part)) for key, part in value.items()]
    if isinstance(value, list | tuple):
        return [_plain(part) for part in value]
    if callable(getattr(value, "to_dict", None)):
        return value.to_dict()
    return value if isinstance(value, bool | int | float | str | type(None) | torch.dtype) else type(value)


@pytest.mark.parametrize("case", quick_on(QUICK, STANDING))
def test_the_second_model_of_a_kind_is_what_transformers_builds(case: str, none_kept: dict[Any, Any]) -> None:
    """Of other weights than the skeleton is of; and the model of the first is left as it is."""
    config, table = CASES[case]
    structure, spec = structure_of(config), spec_for(config)
    dtype = torch.float32  # some classes state it for a few of their parameters, which are cast then
    first, second = (
        {written_name(structure, name): tensor for name, tensor in canonical_tensors(config, seed).items()}
        for seed in (0, 1)
    )
    expected = build(config, second, dtype)
    none_kept.clear()
    before = build(config, first, dtype)
    assert len(none_kept) == 1
    model = build(config, second, dtype)
    assert described(model) == described(expected) != described(before)
    batch = table.inputs(config)[0]
    batches = ({name: t.to(dtype) if t.is_floating_point() else t for name, t in batch.items()},)
    for left, right in zip(outputs_of(model, spec, batches), outputs_of(expected, spec, batches), strict=True):
        assert all(torch.equal(left[name], right[name]) for name in spec.outputs)


def test_a_model_shares_memory_with_its_own_weights_alone() -> None:
    """As the caller asks: copied or not, and with no other model of the same skeleton."""
    config = bert_config()
    weights = random_tensors(config, 0, torch.float32)
    one, copied, shared = build(config, weights), build(config, weights), build(config, weights, copied=False)
    name = "classifier.weight"
    places = [model.get_parameter(name).data_ptr() for model in (one, copied, shared)]
    assert len({*places, weights[name].data_ptr()}) == 3
    assert places[2] == weights[name].data_ptr()
    one.bert.embeddings.position_ids += 1
    one.config.num_labels = 7
    for model in (copied, build(config, weights)):
        assert model.bert.embeddings.position_ids[0].tolist() == list(range(32))
        assert model.config.num_labels == 3


def test_a_fault_is_a_fault_again() -> None:
    """Weights of other names, shapes or dtypes are of no skeleton."""
    config = bert_config()
    weights = random_tensors(config, 0, torch.float32)
    build(config, weights)
    name = "classifier.weight"
    for other, message in (
        ({n: t for n, t in weights.items() if n != name}, "missing classifier.weight"),
        ({**weights, "more": weights[name]}, "unexpected more"),
        ({**weights, name: weights[name].T}, r"classifier.weight is \(24, 3\), not \(3, 24\)"),
    ):
        for _ in range(2):
            with pytest.raises(CheckpointError, match=message):
                build(config, other)
    mixed = build(config, {**weights, name: weights[name].double()})
    assert mixed.get_parameter(name).dtype == torch.float32
    assert build(config, weights, torch.float64).get_parameter(name).dtype == torch.float64
    assert build({**config, "hidden_act": "relu"}, weights).config.hidden_act == "relu"


def test_few_skeletons_are_kept(monkeypatch: pytest.MonkeyPatch, none_kept: dict[Any, Any]) -> None:
    """The oldest makes room; none is kept of a model that cannot be pickled, or whose buffers are large."""
    monkeypatch.setattr(skeletons, "MAX_SKELETONS", 2)
    weights = random_tensors(bert_config(), 0, torch.float32)
    for act in ("gelu", "relu", "silu"):
        build(bert_config(hidden_act=act), weights)
    assert len(none_kept) == 2
    assert not any("'gelu'" in repr(key) for key in none_kept)
    most = sum(each.nbytes for each in none_kept.values())
    monkeypatch.setattr(skeletons, "MAX_SKELETONS", 9)
    monkeypatch.setattr(skeletons, "MAX_KEPT_BYTES", most + 100)
    build(bert_config(hidden_act="gelu"), weights)
    assert len(none_kept) == 2
    assert any("'gelu'" in repr(key) for key in none_kept)
    assert not any("'relu'" in repr(key) for key in none_kept)
    model = build(bert_config(), weights)
    none_kept.clear()
    state = dict(model.named_parameters())
    model.lately = lambda: None
    skeletons.keep_skeleton("unpicklable", model, state)
    del model.lately
    monkeypatch.setattr(skeletons, "MAX_BUFFER_BYTES", 8)
    skeletons.keep_skeleton("large", model, state)
    assert none_kept == {}
    monkeypatch.setattr(skeletons, "MAX_BUFFER_BYTES", 2**20)
    skeletons.keep_skeleton("kept", model, state)
    assert list(none_kept) == ["kept"]
