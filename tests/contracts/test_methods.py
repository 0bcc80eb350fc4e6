"""The battery every merge method faces: its formula derived again in numpy, and the laws no merge may break."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from formulas import averages, data, geometry, task_vectors
from formulas.case import Case
from tiny import bert_config, random_tensors
from torch import Tensor

from merge.errors import UsageError
from merge.methods import METHODS, make_method
from merge.methods.context import EMPTY, TensorContext
from merge.symmetry.architectures.bert import bert
from merge.symmetry.permutation import Permutation, apply, random
from merge.symmetry.spec import PermutationSpec

CASES: dict[str, Case] = {**averages.CASES, **geometry.CASES, **task_vectors.CASES, **data.CASES}
BOUNDS = {torch.float32: 1e-5, torch.float64: 1e-10}


def drawn(shape: tuple[int, ...], count: int, dtype: torch.dtype = torch.float64, seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype) for _ in range(count)]


def inputs(
    case: Case, shape: tuple[int, ...], dtype: torch.dtype = torch.float64
) -> tuple[list[Tensor], Tensor | None]:
    """Return a tensor of every model, and of the base if the method takes one."""
    *tensors, base = drawn(shape, case.models + 1, dtype)
    return tensors, None if case.kind.base == "none" else base


@pytest.fixture(params=CASES)
def case(request: pytest.FixtureRequest) -> Case:
    return CASES[request.param]


def only(wanted: Callable[[Case], bool]) -> pytest.MarkDecorator:
    """Collect a test for the wanted cases alone: one that has nothing to assert of a case must not pass on it."""
    return pytest.mark.parametrize("case", [name for name, each in CASES.items() if wanted(each)], indirect=True)


def test_every_method_is_in_this_battery() -> None:
    """A method cannot be listed without being tested, with two models and with five, and every setting is set somewhere."""
    assert {case.method for case in CASES.values()} == set(METHODS)
    for name, kind in METHODS.items():
        cases = [case for case in CASES.values() if case.method == name]
        tried = {key for case in cases for key in case.settings}
        assert tried == {field.name for field in dataclasses.fields(kind)}, name
        for count in (2, 5):
            if not any(case.models == count for case in cases):
                with pytest.raises(UsageError, match="exactly"):
                    make_method(name, {}, [None] * count)


def test_every_method_says_what_it_needs() -> None:
    """The engine asks these of every method; a method that says nothing would be taken for one that needs nothing."""
    for name, kind in METHODS.items():
        assert kind.base in ("required", "optional", "none"), name
        assert isinstance(kind.order_matters, bool), name
        assert isinstance(kind.random, bool), name
        assert kind.statistics in (None, "fisher", "gram"), name


def test_the_result_is_the_formula(case: Case) -> None:
    """On a matrix, a vector and a tensor of three axes, in both precisions; the control is that the formula reads the models."""
    for shape, dtype in itertools.product(((7, 5), (11,), (2, 3, 4)), BOUNDS):
        tensors, base = inputs(case, shape, dtype)
        merged = case.make()(tensors, base, case.context(shape, dtype=dtype))
        expected = case.expected(tensors, base)
        assert np.abs(merged.double().numpy() - expected).max() < BOUNDS[dtype], (shape, dtype)
        other = [tensor + 1 for tensor in tensors]
        assert np.abs(case.expected(other, base) - expected).max() > 1e-3, (shape, dtype)


def test_shape_and_dtype_survive(case: Case) -> None:
    """Tensors without axes and without entries too."""
    for shape, dtype in itertools.product(((7, 5), (11,), (1,), (), (0, 4), (3, 1, 2)), BOUNDS):
        tensors, base = inputs(case, shape, dtype)
        merged = case.make()(tensors, base, case.context(shape, dtype=dtype))
        assert (tuple(merged.shape), merged.dtype) == (shape, dtype)
        assert bool(torch.isfinite(merged).all()), (shape, dtype)


def test_merging_a_model_with_itself_gives_it_back(case: Case) -> None:
    """Up to rounding; exactly for the plain average of two."""
    tensors, base = inputs(case, (9, 4), torch.float32)
    merged = case.make()([tensors[0]] * case.models, base, case.context((9, 4), dtype=torch.float32))
    assert torch.allclose(merged, tensors[0], rtol=1e-6, atol=1e-6) != bool(case.not_itself)
    if case.models == 2 and case.method == "linear" and not case.settings:
        assert torch.equal(merged, tensors[0])


@only(lambda case: case.kind.base == "required")
def test_models_that_never_left_the_base_merge_to_the_base(case: Case) -> None:
    """Task vectors of zero add up to zero, whatever is trimmed, dropped or scaled."""
    base = drawn((9, 4), 1, torch.float32)[0]
    merged = case.make()([base.clone() for _ in range(case.models)], base, case.context((9, 4), dtype=torch.float32))
    assert torch.allclose(merged, base, rtol=0, atol=1e-6)


def test_inputs_are_not_written_to_nor_returned(case: Case) -> None:
    """Inputs are memory-mapped files, shared by every other step."""
    tensors, base = inputs(case, (4, 3))
    given = [*tensors, *([] if base is None else [base])]
    before = [tensor.clone() for tensor in given]
    merged = case.make()(tensors, base, case.context((4, 3)))
    merged.fill_(7.0)
    assert all(torch.equal(old, new) for old, new in zip(before, given, strict=True))


def reversed_case(case: Case) -> Case:
    """Return the case with its models, and what is set for each of them, the other way round."""
    turned = {key: list(reversed(v)) if isinstance(v, list) else v for key, v in case.settings.items()}
    return dataclasses.replace(case, settings=turned)


def test_the_order_of_models_matters_only_where_the_formula_says_so(case: Case) -> None:
    tensors, base = inputs(case, (9, 4))
    context, back = case.context((9, 4)), reversed_case(case)
    turned = dataclasses.replace(
        context, generators=tuple(reversed(case.context((9, 4)).generators)), statistics=context.statistics[::-1]
    )
    merged = case.make()(tensors, base, context)
    other = back.make()(list(reversed(tensors)), base, turned)
    middle = case.method == "slerp" and not case.settings  # the midpoint is the midpoint from both ends
    assert torch.allclose(merged, other, rtol=0, atol=1e-10) == (middle or not case.kind.order_matters)


def test_the_same_seed_gives_the_same_bits_and_another_seed_others(case: Case) -> None:
    tensors, base = inputs(case, (30, 20), torch.float32)
    first, again, other = (
        case.make()(tensors, base, case.context((30, 20), seed, torch.float32)) for seed in (0, 0, 1)
    )
    assert torch.equal(first, again)
    keeps_all = case.settings.get("density") == 1.0
    assert torch.equal(first, other) != (case.kind.random and not keeps_all)


@only(lambda case: case.make().elementwise)
def test_an_elementwise_method_may_be_run_on_pieces(case: Case) -> None:
    """The engine merges large tensors piece by piece: same bits, random masks included."""
    method, shape = case.make(), (50, 7)
    tensors, base = inputs(case, shape, torch.float32)
    thresholds = _thresholds(method, tensors, base)
    whole = dataclasses.replace(case.context(shape, dtype=torch.float32), thresholds=thresholds)
    merged = method(tensors, base, whole).flatten()
    drawing = case.context(shape, dtype=torch.float32).generators  # one stream through all pieces
    for a, b in ((0, 64), (64, 65), (65, 350)):
        part = TensorContext("a.weight", drawing, thresholds, tuple(s.flatten()[a:b] for s in whole.statistics))
        piece = method([t.flatten()[a:b] for t in tensors], None if base is None else base.flatten()[a:b], part)
        assert torch.equal(piece, merged[a:b])


def _thresholds(method: Any, tensors: list[Tensor], base: Tensor | None) -> tuple[float, ...]:
    kept = method.kept_fractions(len(tensors))
    if kept is None or base is None:
        return ()
    sizes = [np.sort(np.abs((tensor - base).numpy().ravel()))[::-1] for tensor in tensors]
    return tuple(float(size[max(int(f * size.size), 1) - 1]) for size, f in zip(sizes, kept, strict=True))


@cache
def permuted_models() -> tuple[PermutationSpec, Permutation, list[dict[str, Tensor]], list[dict[str, Tensor]]]:
    """Return a spec, an element, as many models as any case takes, and the same in the other basis."""
    config = bert_config()
    spec = bert(config)
    models = [random_tensors(config, seed, torch.float64) for seed in range(1 + max(c.models for c in CASES.values()))]
    shapes = {name: tuple(tensor.shape) for name, tensor in models[0].items()}
    p = random(spec, shapes, torch.Generator().manual_seed(0))
    return spec, p, models, [apply(spec, p, model) for model in models]


@only(lambda case: not case.kind.random and not case.kind.statistics)
def test_a_merge_commutes_with_a_permutation_of_units(case: Case) -> None:
    """Merging in another basis gives the merge in that basis: for every tensor of a model, the same numbers.

    Element-wise methods do because each entry is merged alone; others because norms, ranks and inner products keep no
    order. Random masks are drawn by position, so there the law holds for their distribution only.
    """
    spec, p, all_models, all_turned = permuted_models()
    count, method = case.models + (case.kind.base != "none"), case.make()
    models, turned = all_models[:count], all_turned[:count]
    shapes = {name: tuple(tensor.shape) for name, tensor in models[0].items()}

    def merge(found: list[dict[str, Tensor]], name: str) -> Tensor:
        base = None if case.kind.base == "none" else found[-1][name]
        return method([model[name] for model in found[: case.models]], base, EMPTY)

    merged = {name: merge(models, name) for name in shapes}
    after = apply(spec, p, merged)
    moved, off = 0, 0
    for name in shapes:
        off += not torch.allclose(merge(turned, name), after[name], rtol=0, atol=1e-10)
        moved += not torch.equal(after[name], merged[name])
    assert moved > 30
    assert bool(off) == bool(case.bound)


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


@pytest.mark.parametrize("lam", [0.25, 0.5])
def test_slerp_may_take_zeros_for_orthogonal(lam: float) -> None:
    """As mergekit does: a quarter of the way the other tensor counts by the sine of a quarter of a right angle."""
    a = drawn((6, 5), 1)[0]
    method = make_method("slerp", {"lam": lam, "zeros": "orthogonal"}, [None, None])
    assert torch.allclose(method([torch.zeros_like(a), a]), np.sin(lam * np.pi / 2) * a, atol=1e-12)
    assert torch.allclose(method([a, torch.zeros_like(a)]), np.sin((1 - lam) * np.pi / 2) * a, atol=1e-12)


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


@pytest.mark.parametrize(
    "settings", [{"scorer": "score {model}"}, {"temperature": 5.0}], ids=["greedy_soup", "cocktail"]
)
def test_weights_that_were_not_found_are_not_taken_to_be_equal(settings: dict[str, Any]) -> None:
    """A merge whose search was left out would look like one: it is refused."""
    name = "greedy_soup" if "scorer" in settings else "cocktail"
    with pytest.raises(UsageError, match=f"{name}: .* not been .*Give weights"):
        make_method(name, settings, [None, None])(drawn((6, 5), 2))
    assert make_method(name, settings, [1.0, 1.0])(drawn((6, 5), 2)).shape == (6, 5)


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
    ("slerp", {"t": 0.5}, 2, "no setting 't'. It is 'lam' here"),
    ("slerp", {}, 3, "exactly two models, found 3"),
    ("uniform_soup", {"weights": [1, 2]}, 2, "no setting 'weights'"),
    ("nuslerp", {}, 3, "exactly two models, found 3. Use --method multislerp"),
    ("nuslerp", {"weights": [1]}, 2, "1 weights for 2 models"),
    ("nuslerp", {"weights": [1, -1]}, 2, "weights .* sum to 0"),
    ("nuslerp", {"vectors": "row"}, 2, "vectors must be tensor or rows or columns, found 'row'"),
    ("multislerp", {"weights": [1, 2, 3]}, 2, "3 weights for 2 models"),
    ("multislerp", {"weights": [1, -1]}, 2, "sum to 0 and cannot be normalised"),
    ("multislerp", {"normalize": "no"}, 2, "normalize must be true or false"),
    ("karcher", {"weights": [2, -1]}, 2, "karcher: weights must be a number of at least 0, found -1"),
    ("karcher", {"weights": [0, 0]}, 2, "weights .* sum to 0"),
    ("karcher", {"arithmetic": "float32"}, 2, "arithmetic must be float64 or tensor"),
    ("arcee_fusion", {"arithmetic": 1}, 1, "arithmetic must be float64 or tensor"),
    ("karcher", {"tol": 0}, 2, "tol must be a number above 0"),
    ("karcher", {"max_iter": 0}, 2, "max_iter must be a number of at least 1"),
    ("karcher", {"max_iter": 2.5}, 2, "max_iter must be a whole number, found 2.5"),
    ("nearswap", {"t": -0.1}, 2, "t must be a number of at least 0"),
    ("nearswap", {}, 1, "exactly two models, found 1"),
    ("passthrough", {}, 2, "exactly one model, found 2"),
    ("passthrough", {"scale": "x"}, 1, "scale must be a finite number, found 'x'"),
    ("model_stock", {}, 1, "needs at least two models besides the base, found 1"),
    ("model_stock", {"filter_wise": 1}, 2, "filter_wise must be true or false"),
    ("arcee_fusion", {}, 2, "exactly one model into its base, found 2"),
    ("iso_c", {"scale": float("nan")}, 2, "scale must be a finite number"),
    ("wudi", {"ridge": -1}, 2, "ridge must be a number of at least 0"),
    ("ram", {"epsilon": -1}, 2, "epsilon must be a number of at least 0"),
    ("ramplus_tl", {"r": -1}, 2, "r must be a number of at least 0"),
    ("ramplus_tl", {"alpha": -1}, 2, "alpha must be a number of at least 0"),
    ("ramplus_tl", {"epsilon": None}, 2, "epsilon must be a number of at least 0"),
    ("linear", {"weights": [1e308, 1e308]}, 2, "weights must be finite numbers, found 1e\\+308"),
    ("linear", {"weights": [10**400, 1]}, 2, "weights must be finite numbers, found 1000"),
    ("slerp", {"lam": 10**400}, 2, "lam must be .*, found 1000.*\\.\\.\\."),
    ("ties", {"density": 10**400}, 2, "density must be a number from 0 to 1, found 1000"),
    ("sleep", {}, 2, "unknown method 'sleep'. Did you mean 'slerp'"),
    ("Della-Linear", {}, 2, "unknown method 'Della-Linear'. It is della with elect=false here"),
    ("mean", {}, 2, "unknown method 'mean'. It is linear here"),
    ("task_arithmetic", {"weights": [1, -1], "normalize": True}, 2, "weights .* sum to 0"),
    ("task_arithmetic", {"weights": [1]}, 2, "1 weights for 2 models"),
    ("task_arithmetic", {"scale": "big"}, 2, "scale must be a finite number, found 'big'"),
    ("task_arithmetic", {"lambda": 0.5}, 2, "no setting 'lambda'. It is 'scale' here"),
    ("ties", {"density": -0.1}, 2, "density must be a number from 0 to 1, found -0.1"),
    ("ties", {"density": [0.5, 1.5]}, 2, "density must be a number from 0 to 1, found 1.5"),
    ("ties", {"exact_count": True}, 2, "exact_count and rescale concern the entries of a tensor. Set trim=tensor too"),
    ("ties", {"rescale": "l1"}, 2, "Set trim=tensor too"),
    ("ties", {"rescale": True}, 2, "rescale must be none or l1"),
    ("breadcrumbs", {"rescale": "l2"}, 2, "rescale must be none or l1"),
    ("ties", {"exact_count": 1}, 2, "exact_count must be true or false"),
    ("breadcrumbs", {"exact_count": "no"}, 2, "exact_count must be true or false"),
    ("sce", {"exact_count": 0}, 2, "exact_count must be true or false"),
    ("sce", {"floor": -1}, 2, "floor must be a number of at least 0"),
    ("slerp", {"line_above": 2}, 2, "line_above must be a number from 0 to 1"),
    ("slerp", {"zeros": "none"}, 2, "zeros must be parallel or orthogonal"),
    ("model_stock", {"floor": None}, 2, "floor must be a number of at least 0"),
    ("model_stock", {"as_stored": 1}, 2, "as_stored must be true or false"),
    ("nuslerp", {"as_stored": 1}, 2, "as_stored must be true or false"),
    ("della", {"as_stored": 1}, 2, "as_stored must be true or false"),
    ("arcee_fusion", {"as_stored": 1}, 1, "as_stored must be true or false"),
    ("ties", {"density": [0.5]}, 2, "1 density for 2 models"),
    (
        "ties",
        {"weights": [2, -1]},
        2,
        "must not be negative when agreeing models are averaged, found -1. Set normalize=false",
    ),
    ("ties", {"trim": "layer"}, 2, "trim must be model or tensor, found 'layer'"),
    ("ties", {"k": 20}, 2, "no setting 'k'"),
    ("dare_linear", {"density": 1.1}, 2, "density must be a number from 0 to 1"),
    ("dare_linear", {"rescale": True}, 2, "rescale must be probability or l1 or none, found True"),
    ("dare_ties", {"weights": [2, -1]}, 2, "must not be negative"),
    ("dare_ties", {"drop_rate": 0.9}, 2, "no setting 'drop_rate'"),
    ("della", {"density": 0.1}, 2, "found density 0.1 and epsilon 0.15. Choose a smaller epsilon"),
    ("della", {"density": [0.5, 0.9]}, 2, "found density 0.9 and epsilon 0.15"),
    ("della", {"epsilon": 0.6}, 2, "epsilon must be a number from 0 to 0.5, found 0.6"),
    ("della", {"epsilon": [0.1, 0.1, 0.1]}, 2, "3 epsilon for 2 models"),
    ("della", {"elect": "yes"}, 2, "elect must be true or false"),
    ("breadcrumbs", {"gamma": -0.1}, 2, "gamma must be a number from 0 to 1"),
    ("breadcrumbs", {"gamma": [0.1]}, 2, "1 gamma for 2 models"),
    ("breadcrumbs", {"elect": True, "normalize": True, "weights": [2, -1]}, 2, "must not be negative"),
    ("sce", {"select": 0}, 2, "select must be a number above 0 to 1, found 0"),
    ("sce", {"weights": [1, 1]}, 2, "no setting 'weights'"),
    ("magmax", {"scale": float("inf")}, 2, "scale must be a finite number"),
    ("consensus", {"k": 3}, 2, "k=3 of 2 models. Set k to 2 or less"),
    ("consensus", {"k": 1.5}, 2, "whole number, found 1.5"),
    ("consensus", {"k": 0}, 2, "k must be a number of at least 1, found 0"),
    ("consensus", {"tall_lambda": -1}, 2, "tall_lambda must be a number of at least 0"),
    ("consensus", {"tall_lambda": [0.2, 0.3, 0.4]}, 2, "3 tall_lambda for 2 models"),
    ("fisher", {"weights": [2, -1]}, 2, "fisher: weights must be a number of at least 0, found -1"),
    ("fisher", {"weights": [1]}, 2, "1 weights for 2 models"),
    ("fisher", {"floor": -1}, 2, "floor must be a number of at least 0"),
    ("regmean", {"alpha": 1.1}, 2, "alpha must be a number from 0 to 1, found 1.1"),
    ("regmean", {"weights": [1, 1]}, 2, "no setting 'weights'"),
    ("greedy_soup", {}, 2, "needs a scorer, a command that scores a model"),
    (
        "greedy_soup",
        {"scorer": "score"},
        2,
        "scorer must contain {model}, which is replaced by the candidate's folder; found 'score'",
    ),
    ("greedy_soup", {"scorer": "score '{model}"}, 2, "cannot be split into words: No closing quotation"),
    ("greedy_soup", {"scorer": 3}, 2, "scorer must be text, found 3"),
    ("greedy_soup", {"scorer": "s {model}", "metric": " "}, 2, "metric must be text, found ' '"),
    (
        "greedy_soup",
        {"scorer": "s {model}", "results": "r.json"},
        2,
        "metric must be task/score, such as mnli/accuracy; found None",
    ),
    ("greedy_soup", {"scorer": "s {model}", "results": "r.json", "metric": "accuracy"}, 2, "found 'accuracy'"),
    ("greedy_soup", {"results": "basins.json", "metric": "mnli/accuracy"}, 2, "Leave out metric, or give a scorer"),
    (
        "greedy_soup",
        {"results": "basins.json", "lower_is_better": True},
        2,
        "Leave out lower_is_better, or give a scorer",
    ),
    ("greedy_soup", {"scorer": "s {model}", "lower_is_better": "loss"}, 2, "lower_is_better must be true or false"),
    ("greedy_soup", {"weights": [1, 0, 1]}, 2, "3 weights for 2 models"),
    ("greedy_soup", {"weights": [0, 0]}, 2, "weights .* sum to 0"),
    ("cocktail", {"temperature": 0}, 2, "temperature must be a number above 0, found 0"),
    ("cocktail", {"weights": [1]}, 2, "1 weights for 2 models"),
    ("cocktail", {"tau": 5}, 2, "no setting 'tau'"),
]


@pytest.mark.parametrize(("method", "settings", "models", "expected"), BAD)
def test_a_bad_setting_is_refused_by_name(method: str, settings: dict[str, Any], models: int, expected: str) -> None:
    with pytest.raises(UsageError, match=expected):
        make_method(method, settings, [None] * models)


def test_weights_beside_the_models_are_the_setting() -> None:
    assert make_method("linear", {}, [2.0, 1.0]) == make_method("linear", {"weights": [2.0, 1.0]}, [None, None])
    with pytest.raises(UsageError, match="slerp takes no model weights"):
        make_method("slerp", {}, [1.0, 1.0])
    with pytest.raises(UsageError, match="others have none"):
        make_method("linear", {}, [1.0, None])
    with pytest.raises(UsageError, match="Give them once"):
        make_method("linear", {"weights": [1, 2]}, [1.0, 2.0])


def test_a_method_is_a_frozen_record() -> None:
    """Settings cannot change between two tensors of one merge."""
    for name in METHODS:
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(METHODS[name](), name, 1)  # any name will do: some methods have no setting
