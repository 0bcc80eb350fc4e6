"""The battery every merge method faces: its formula derived again in numpy, and the laws no merge may break."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from tiny import bert_config, random_tensors
from torch import Tensor

from merge.architectures.bert import bert
from merge.errors import UsageError
from merge.methods import METHODS, Method, make_method
from merge.permutation import apply, random

Arrays = Sequence[np.ndarray[Any, Any]]


def linear(arrays: Arrays, weights: Sequence[float] | None = None, normalize: bool = True) -> Any:
    """The weighted mean, as numpy has it."""
    chosen = np.ones(len(arrays)) if weights is None else np.asarray(weights, float)
    return np.average(arrays, axis=0, weights=chosen) if normalize else np.tensordot(chosen, np.stack(arrays), 1)


def slerp(arrays: Arrays, lam: float = 0.5) -> Any:
    """The rotation of a towards b in the plane of the two: a by Gram-Schmidt, then cos and sin along that plane.

    A rotation of the unit vectors by lam times their angle; lengths are mixed as slerp's own formula mixes them.
    """
    a, b = (x.astype(float).ravel() for x in arrays)
    unit_a, unit_b = a / np.linalg.norm(a), b / np.linalg.norm(b)
    angle = 2 * np.arctan2(np.linalg.norm(unit_a - unit_b), np.linalg.norm(unit_a + unit_b))
    across = unit_b - (unit_a @ unit_b) * unit_a
    across /= np.linalg.norm(across)
    # The part of b's length at each lam: what remains of sin(lam w) b / sin(w) once b is split along a and across.
    length_a, length_b = np.linalg.norm(a), np.linalg.norm(b)
    share = np.sin(lam * angle) / np.sin(angle)
    along = length_a * (np.cos(lam * angle) - share * np.cos(angle)) + share * length_b * np.cos(angle)
    return (along * unit_a + share * length_b * np.sin(angle) * across).reshape(arrays[0].shape)


@dataclasses.dataclass(frozen=True)
class Case:
    """A method with settings, how many models it takes, and the formula that it must equal."""

    method: str
    settings: Mapping[str, Any]
    models: int
    formula: Callable[..., Any]
    keeps_itself: bool = True  # weights that do not sum to 1 scale the model, by name of the setting

    def make(self) -> Method:
        return make_method(self.method, self.settings, [None] * self.models)


CASES = {
    "linear of two": Case("linear", {}, 2, linear),
    "linear of five": Case("linear", {}, 5, linear),
    "linear weighted": Case("linear", {"weights": [2, 1, 0.5]}, 3, linear),
    "linear negative": Case("linear", {"weights": [1.5, -0.5]}, 2, linear),
    "linear summed": Case("linear", {"weights": [1, 0.3], "normalize": False}, 2, linear, keeps_itself=False),
    "slerp half way": Case("slerp", {}, 2, slerp),
    "slerp near a": Case("slerp", {"lam": 0.1}, 2, slerp),
    "slerp near b": Case("slerp", {"lam": 0.9}, 2, slerp),
}
BOUNDS = {torch.float32: 1e-5, torch.float64: 1e-10}


def drawn(shape: tuple[int, ...], count: int, dtype: torch.dtype = torch.float64, seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype) for _ in range(count)]


@pytest.fixture(params=CASES)
def case(request: pytest.FixtureRequest) -> Case:
    return CASES[request.param]


def test_every_method_is_in_this_battery() -> None:
    """A method cannot be listed without being tested, and every setting of it is set somewhere."""
    assert {case.method for case in CASES.values()} == set(METHODS)
    for name, method in METHODS.items():
        tried = {key for case in CASES.values() if case.method == name for key in case.settings}
        assert tried == {field.name for field in dataclasses.fields(method)}


@pytest.mark.parametrize("dtype", BOUNDS, ids=str)
@pytest.mark.parametrize("shape", [(7, 5), (11,), (2, 3, 4)])
def test_the_result_is_the_formula(case: Case, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    tensors = drawn(shape, case.models, dtype)
    expected = case.formula([tensor.numpy() for tensor in tensors], **case.settings)
    merged = case.make()(tensors)
    assert np.abs(merged.numpy() - expected).max() < BOUNDS[dtype]
    other = case.formula([tensor.numpy() for tensor in reversed(tensors)], **case.settings)
    assert (
        case.settings in ({}, {"weights": None}) or np.abs(merged.numpy() - other).max() > 1e-3
    )  # it tells the models apart


@pytest.mark.parametrize("dtype", BOUNDS, ids=str)
@pytest.mark.parametrize("shape", [(7, 5), (11,), (1,), (), (0, 4), (3, 1, 2)])
def test_shape_and_dtype_survive(case: Case, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    """Tensors without axes and without entries too."""
    merged = case.make()(drawn(shape, case.models, dtype))
    assert (tuple(merged.shape), merged.dtype) == (shape, dtype)
    assert bool(torch.isfinite(merged).all())


def test_merging_a_model_with_itself_gives_it_back(case: Case) -> None:
    """Up to the rounding of the weights; exactly where they are powers of two."""
    tensor = drawn((9, 4), 1, torch.float32)[0]
    merged = case.make()([tensor] * case.models)
    if not case.keeps_itself:
        assert not torch.allclose(merged, tensor)
        return
    assert torch.allclose(merged, tensor, rtol=1e-6, atol=0)
    if case.models == 2 and not case.settings:
        assert torch.equal(merged, tensor)


def test_inputs_are_not_written_to_nor_returned(case: Case) -> None:
    """Inputs are memory-mapped files, shared by every other step."""
    tensors = drawn((4, 3), case.models)
    before = [tensor.clone() for tensor in tensors]
    merged = case.make()(tensors)
    merged.fill_(7.0)
    assert all(torch.equal(old, new) for old, new in zip(before, tensors, strict=True))


def test_a_merge_commutes_with_a_permutation_of_units(case: Case) -> None:
    """Merging in another basis gives the merge in that basis: for every tensor of a model, exactly the same numbers.

    Element-wise methods do because each entry is merged alone; slerp because norms and inner products keep no order.
    """
    config = bert_config()
    models = [random_tensors(config, seed, torch.float64) for seed in range(case.models)]
    spec, method = bert(config), case.make()
    shapes = {name: tuple(tensor.shape) for name, tensor in models[0].items()}
    p = random(spec, shapes, torch.Generator().manual_seed(0))
    merged = {name: method([model[name] for model in models]) for name in shapes}
    turned = [apply(spec, p, model) for model in models]
    after = apply(spec, p, merged)
    moved = 0
    for name in shapes:
        assert torch.allclose(method([model[name] for model in turned]), after[name], rtol=0, atol=1e-12)
        moved += not torch.equal(after[name], merged[name])
    assert moved > 30


@pytest.mark.parametrize("lam", [0.0, 1.0, 0, 1])
def test_the_ends_of_slerp_are_the_models(lam: float) -> None:
    tensors = drawn((6, 5), 2, torch.float32)
    assert torch.equal(make_method("slerp", {"lam": lam}, [None, None])(tensors), tensors[round(lam)])


def test_a_weight_of_zero_leaves_a_model_out() -> None:
    tensors = drawn((6, 5), 2, torch.float32)
    assert torch.equal(make_method("linear", {"weights": (1, 0)}, [None, None])(tensors), tensors[0])
    assert torch.equal(make_method("linear", {}, [0.0, 3.0])(tensors), tensors[1])


@pytest.mark.parametrize("factor", [0.0, 1.0, 3.0, -1.0, -2.0, 1 + 1e-9])
@pytest.mark.parametrize("lam", [0.25, 0.5])
def test_slerp_without_an_angle_is_the_straight_line(factor: float, lam: float) -> None:
    """Zero, parallel and antiparallel tensors have no plane to turn in; dividing by sin 0 would give NaN."""
    a = drawn((6, 5), 1)[0]
    method = make_method("slerp", {"lam": lam}, [None, None])
    for pair in ([a, factor * a], [factor * a, a]):
        merged = method(pair)
        assert torch.allclose(merged, (1 - lam) * pair[0] + lam * pair[1], atol=1e-12)


@pytest.mark.parametrize("angle", [2e-4, 0.9e-4, 1.1e-4])
def test_slerp_is_continuous_where_the_fallback_begins(angle: float) -> None:
    """Below the small angle the line is the arc up to angle squared."""
    a = torch.tensor([1.0, 0.0], dtype=torch.float64)
    b = torch.tensor([np.cos(angle), np.sin(angle)], dtype=torch.float64)
    merged = make_method("slerp", {"lam": 0.3}, [None, None])([a, b])
    assert torch.allclose(
        merged, torch.tensor([np.cos(0.3 * angle), np.sin(0.3 * angle)], dtype=torch.float64), atol=1e-8
    )


def test_slerp_keeps_the_length_that_linear_loses() -> None:
    """The reason for it: half way between two orthogonal unit vectors the chord is shorter by sqrt(2)."""
    pair = [torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0])]
    assert float(make_method("slerp", {}, [None, None])(pair).norm()) == pytest.approx(1.0, abs=1e-6)
    assert float(make_method("linear", {}, [None, None])(pair).norm()) == pytest.approx(0.5**0.5, abs=1e-6)


BAD = [
    ("linear", {"weights": [1, "x"]}, 2, "weights must be finite numbers, found 'x'"),
    ("linear", {"weights": [1, True]}, 2, "weights must be finite numbers, found True"),
    ("linear", {"weights": [1, float("inf")]}, 2, "weights must be finite numbers, found inf"),
    ("linear", {"weights": 2}, 2, "weights must be a list"),
    ("linear", {"weights": 0}, 2, "weights must be a list"),
    ("linear", {"weights": "1,2"}, 2, "weights must be a list"),
    ("linear", {"weights": {"a": 1}}, 2, "weights must be a list"),
    ("linear", {"weights": [1, -1]}, 2, "weights .* sum to 0"),
    ("linear", {"weights": []}, 2, "weights .* sum to 0"),
    ("linear", {"weights": [], "normalize": False}, 2, "0 weights for 2 models"),
    ("linear", {"weights": [1, 2, 3]}, 2, "3 weights for 2 models"),
    ("linear", {"normalize": 1}, 2, "normalize must be true or false, found 1"),
    ("linear", {"normalise": True}, 2, "no setting 'normalise'. Did you mean 'normalize'"),
    ("slerp", {"lam": 1.5}, 2, "lam must be a number from 0 to 1, found 1.5"),
    ("slerp", {"lam": -0.1}, 2, "lam must be a number from 0 to 1"),
    ("slerp", {"lam": float("nan")}, 2, "lam must be a number from 0 to 1"),
    ("slerp", {"lam": True}, 2, "lam must be a number from 0 to 1, found True"),
    ("slerp", {"lam": "half"}, 2, "lam must be a number from 0 to 1, found 'half'"),
    ("slerp", {"lam": None}, 2, "lam must be a number from 0 to 1"),
    ("slerp", {"t": 0.5}, 2, "no setting 't'"),
    ("slerp", {}, 3, "exactly two models, found 3"),
    ("sleep", {}, 2, "unknown method 'sleep'. Did you mean 'slerp'"),
]


@pytest.mark.parametrize(("method", "settings", "models", "expected"), BAD)
def test_a_bad_setting_is_refused_by_name(method: str, settings: dict[str, Any], models: int, expected: str) -> None:
    with pytest.raises(UsageError, match=expected):
        make_method(method, settings, [None] * models)


def test_weights_beside_the_models_are_the_setting() -> None:
    assert make_method("linear", {}, [2.0, 1.0]) == make_method("linear", {"weights": [2.0, 1.0]}, [None, None])
    with pytest.raises(UsageError, match="slerp takes no weights"):
        make_method("slerp", {}, [1.0, 1.0])
    with pytest.raises(UsageError, match="others have none"):
        make_method("linear", {}, [1.0, None])
    with pytest.raises(UsageError, match="Give them once"):
        make_method("linear", {"weights": [1, 2]}, [1.0, 2.0])


def test_a_method_is_a_frozen_record() -> None:
    """Settings cannot change between two tensors of one merge."""
    for name in METHODS:
        method = make_method(name, {}, [None, None])
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(method, dataclasses.fields(METHODS[name])[0].name, 1)
