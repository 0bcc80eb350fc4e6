"""The battery every method faces in the engine: dtypes, ranks, threads, order of models, layout of files."""

from __future__ import annotations

import dataclasses
import itertools
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pytest
import torch
from contracts.test_methods import CASES, only
from formulas.case import Case, statistics
from quick import quick_on
from torch import Tensor

import merge.run.engine.engine
from merge.checkpoints.weights.arrays import NUMPY, TORCH, Array, Arrays, check_device
from merge.checkpoints.weights.read import as_array, torch_letters
from merge.errors import CheckpointError, MismatchError, OutputError, UsageError
from merge.machine import in_threads
from merge.methods import make_method
from merge.methods.context import TensorContext, mask_generators
from merge.run.engine.engine import Engine
from merge.run.engine.job import Input, Job

SHAPES = {"scalar": (), "vector": (13,), "matrix": (9, 7), "cube": (2, 3, 4), "empty": (0, 4), "large": (40, 25)}
DTYPES = [torch.bfloat16, torch.float16, torch.float32, torch.float64]


def drawn(shapes: Mapping[str, tuple[int, ...]], seed: int, dtype: torch.dtype) -> dict[str, Tensor]:
    """Return one model: a tensor of each shape, and integers that all models share."""
    generator = torch.Generator().manual_seed(seed)
    model = {n: torch.randn(s, generator=generator, dtype=torch.float64).to(dtype) for n, s in shapes.items()}
    return model | {"integers": torch.arange(6).reshape(2, 3)}


def given(case: Case, dtype: torch.dtype = torch.float32) -> tuple[list[dict[str, Tensor]], dict[str, Tensor] | None]:
    *models, base = (drawn(SHAPES, seed, dtype) for seed in range(case.models + 1))
    return models, None if case.kind.base == "none" else base


def merged(
    case: Case,
    models: Sequence[Mapping[str, Tensor]],
    base: Mapping[str, Tensor] | None,
    out: torch.dtype | None = None,
    threads: int = 1,
    seed: int = 0,
    order: Sequence[int] | None = None,
    arrays: Arrays = TORCH,
    turned: bool = False,
) -> dict[str, Tensor]:
    """Return what the engine writes, put together from its pieces.

    Args:
        turned: the tensors are stored as (inputs, outputs), and the jobs are those that the schedule makes of them then.
    """
    order = range(len(models)) if order is None else order
    found = {
        name: statistics(case.kind.statistics, tuple(tensor.T.shape if turned else tensor.shape), len(models))
        for name, tensor in models[0].items()
    }
    if turned and case.kind.statistics == "fisher":  # it is stored as the weight is
        found = {name: tuple(one.T.contiguous() for one in each) for name, each in found.items()}

    def stored(model: Mapping[str, Tensor]) -> Callable[[str], Array]:
        if arrays is TORCH:
            return model.__getitem__
        return lambda name: as_array(model[name], torch_letters()[model[name].dtype])

    inputs = tuple(
        Input(
            f"m{k}",
            stored(models[k]),
            f"key {k}",
            lambda kind, name, k=k: found[name][k].float() if found[name] else None,
        )
        for k in order
    )
    settings = {key: [v[k] for k in order] if isinstance(v, list) else v for key, v in case.settings.items()}
    method = make_method(case.method, settings, [None] * len(models))
    own = None if base is None else Input("base", stored(base))
    transposed = turned and (method.random or not method.elementwise)
    jobs = [
        Job(n, method, tuple((k, n) for k in range(len(models))), None if base is None else n, transposed)
        for n in models[0]
    ]
    dtypes = {n: out if out is not None and t.is_floating_point() else t.dtype for n, t in models[0].items()}
    written = {n: torch.full(t.shape, 77, dtype=dtypes[n]) for n, t in models[0].items()}

    letters = {name: torch_letters()[dtype] for name, dtype in dtypes.items()}

    def write(name: str, piece: Array, start: int) -> None:
        assert arrays.dtype(piece) == letters[name]
        raw = bytearray(arrays.raw(piece))
        first = start * dtypes[name].itemsize
        if raw:
            bits(written[name])[first : first + len(raw)] = torch.frombuffer(raw, dtype=torch.uint8)

    Engine(inputs, own, seed=seed, arrays=arrays).run(jobs, write, letters, threads)
    return written


@pytest.fixture(params=CASES)
def case(request: pytest.FixtureRequest) -> Case:
    return CASES[request.param]


# A method has several cases, with two models and with five, with one setting and another: quick are those of two models.
QUICK = [name for name, case in CASES.items() if case.models == 2]
QUICK += [name for name, case in CASES.items() if not any(CASES[q].method == case.method for q in QUICK)]
QUICK_ON_EVERY_METHOD = pytest.mark.parametrize("case", quick_on(QUICK, CASES), indirect=True)


def is_arithmetic(case: Case) -> bool:
    return case.make().takes_numpy


@QUICK_ON_EVERY_METHOD
def test_every_rank_and_dtype_is_merged_in_float32_or_better_and_cast_once(case: Case) -> None:
    """What is written is the method's own result in float32 (float64 for float64), rounded once; integers pass through."""
    for dtype in DTYPES:
        check_ranks(case, dtype)


def check_ranks(case: Case, dtype: torch.dtype) -> None:
    """Assert that every rank is the method's own result, rounded once."""
    models, base = given(case, dtype)
    written = merged(case, models, base)
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    method = case.make()
    for name, shape in SHAPES.items():
        context = TensorContext(
            name,
            mask_generators(0, name, [f"key {k} {name}" for k in range(case.models)]) if case.kind.random else (),
            statistics=tuple(s.float() for s in statistics(case.kind.statistics, shape, case.models)),
        )
        alone = _without_ranks(case, models, base, name)
        expected = method(
            [m[name].to(wide) for m in models],
            None if base is None else base[name].to(wide),
            dataclasses.replace(context, thresholds=alone),
        )
        assert written[name].dtype == dtype
        close = 1e-12 if dtype == torch.float64 else 1e-6 if dtype == torch.float32 else torch.finfo(dtype).eps
        assert torch.allclose(written[name].double(), expected.double(), rtol=close, atol=close), (name, dtype)
    assert torch.equal(written["integers"], models[0]["integers"])
    assert written["integers"].dtype == torch.int64


def _without_ranks(
    case: Case, models: Sequence[Mapping[str, Tensor]], base: Mapping[str, Tensor] | None, name: str
) -> tuple[float, ...]:
    """Return the thresholds over the whole model, by a sort."""
    kept = case.make().kept_fractions(case.models)
    if kept is None or base is None:
        return ()
    wide = torch.float64 if base[name].dtype == torch.float64 else torch.float32
    found = []
    for model, fraction in zip(models, kept, strict=True):
        everything = torch.cat([(model[n].to(wide) - base[n].to(wide)).abs().flatten() for n in SHAPES])
        order = torch.sort(everything, descending=True).values
        found.append(0.0 if fraction == 1 else float(order[max(int(fraction * len(order)), 1) - 1]))
    return tuple(found)


@QUICK_ON_EVERY_METHOD
def test_threads_pieces_and_the_order_of_models_leave_every_bit_as_it_is(
    case: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Models that the formula tells apart by their order keep it; all others may be given in any."""
    models, base = given(case)
    first = merged(case, models, base)
    monkeypatch.setattr(merge.run.engine.engine, "PIECE", 47)
    tried: list[tuple[Sequence[int] | None, int]] = [(None, 1), (None, 3)]
    if not case.kind.order_matters:
        tried += [(order, 3) for order in itertools.islice(itertools.permutations(range(case.models)), 1, 4)]
    for order, threads in tried:
        again = merged(case, models, base, threads=threads, order=order)
        assert all(torch.equal(first[name], again[name]) for name in first), (order, threads)


@only(is_arithmetic)
@pytest.mark.parametrize("dtype", quick_on(DTYPES[::2], DTYPES), ids=str)
def test_numpy_gives_the_bits_that_torch_gives(case: Case, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a method says so, of every dtype; no other method may be asked.

    The cast is the engine's own and knows no method: one is written in every dtype, and each other one in its own and in
    one more. How a tensor is cut does not depend on what it is cast to: every second dtype is written in small pieces.
    """
    models, base = given(case, dtype)
    other = DTYPES[(DTYPES.index(dtype) + 1 + list(CASES.values()).index(case) % 3) % len(DTYPES)]
    outputs = (None, *DTYPES) if case is CASES["linear of two"] else (None, other)
    for piece, out in zip(itertools.cycle((47, merge.run.engine.engine.PIECE)), outputs, strict=False):
        monkeypatch.setattr(merge.run.engine.engine, "PIECE", piece)
        theirs = merged(case, models, base, out)
        ours = merged(case, models, base, out, threads=2, arrays=NUMPY)
        assert all(torch.equal(bits(theirs[name]), bits(ours[name])) for name in theirs), (piece, out)
    assert not torch.equal(bits(ours["large"]), bits(ours["large"] * 2))


def bits(tensor: Tensor) -> Tensor:
    return tensor.reshape(-1).view(torch.uint8)


def test_methods_that_need_no_torch_are_these() -> None:
    """Plain averages are what start-up weighs on; whoever adds a method decides, and the battery compares the bits."""
    found = {case.kind.name for case in CASES.values() if is_arithmetic(case)}
    averages = {"cocktail", "greedy_soup", "linear", "passthrough", "task_arithmetic", "uniform_soup"}
    assert found == averages | {"slerp", "ties"}
    assert sum(is_arithmetic(case) for case in CASES.values()) >= len(found)


def test_another_seed_draws_other_masks(case: Case) -> None:
    models, base = given(case)
    same = torch.equal(merged(case, models, base)["large"], merged(case, models, base, seed=1)["large"])
    assert same != (case.kind.random and case.settings.get("density") != 1.0)


# How the engine may go through a tensor -> a method with a base that it goes through so, and the arrays.
PATHS: dict[str, tuple[str, Arrays]] = {
    "numpy, in pieces": ("task_arithmetic", NUMPY),
    "torch, in pieces": ("task_arithmetic", TORCH),
    "torch, whole": ("model_stock", TORCH),
    "torch, entries ranked over the model": ("ties", TORCH),
}


@pytest.mark.parametrize("wrong", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("where", ["m1", "base"])
@pytest.mark.parametrize("path", PATHS)
def test_an_input_that_is_not_finite_is_an_error_by_name(path: str, where: str, wrong: float) -> None:
    """No method sees it: the engine refuses it first. Methods that drop entries would drop a NaN and say nothing."""
    name, arrays = PATHS[path]
    case = next(each for each in CASES.values() if each.method == name and each.models == 2)
    method = case.make()
    assert method.elementwise == (path != "torch, whole")
    assert (method.kept_fractions(2) is not None) == path.endswith("ranked over the model")
    models, base = given(case)
    assert base is not None
    {"m1": models[1], "base": base}[where]["matrix"][3, 2] = wrong
    with pytest.raises(CheckpointError, match=f"{where}: matrix holds NaN"):
        merged(case, models, base, arrays=arrays)


@only(lambda case: case.models > 1)
def test_integers_that_differ_are_an_error(case: Case) -> None:
    models, base = given(case)
    models[1]["integers"] = models[1]["integers"] + 1
    for arrays in (TORCH, NUMPY) if is_arithmetic(case) else (TORCH,):
        with pytest.raises(MismatchError, match="integer tensor integers differs between m0 and m1"):
            merged(case, models, base, arrays=arrays)


@pytest.mark.parametrize("arrays", [TORCH, NUMPY], ids=["torch", "numpy"])
def test_what_does_not_fit_into_a_narrower_dtype_is_an_error(arrays: Arrays) -> None:
    """Not an infinity in a file that loads: 65520 is the first that float16 rounds up to one."""
    case = CASES["linear of two"]

    def models(value: float, dtype: torch.dtype = torch.float32) -> list[dict[str, Tensor]]:
        return [{"w": torch.full((3,), value, dtype=dtype)}] * 2

    for value, dtype in ((65519.0, torch.float16), (1e5, torch.bfloat16), (3.38e38, torch.bfloat16)):
        assert torch.isfinite(merged(case, models(value), None, dtype, arrays=arrays)["w"]).all()
    assert merged(case, models(3e38, torch.float64), None, torch.float32, arrays=arrays)["w"].isfinite().all()
    with pytest.raises(OutputError, match="w does not fit into float16. .*--out-dtype bfloat16"):
        merged(case, models(65520.0), None, torch.float16, arrays=arrays)
    with pytest.raises(OutputError, match="w does not fit into bfloat16. .*--out-dtype float64"):
        merged(case, models(3.4e38), None, torch.bfloat16, arrays=arrays)
    with pytest.raises(OutputError, match="w does not fit into float32. .*--out-dtype float64"):
        merged(case, models(1e39, torch.float64), None, torch.float32, arrays=arrays)
    with pytest.raises(OutputError, match="w: the merge holds NaN or infinity"):
        merged(CASES["linear summed"], models(3e38), None, arrays=arrays)


def test_a_device_that_is_not_there_is_one_line() -> None:
    check_device("cpu")
    for device in ("cuda:99", "warp", "xla"):  # torch lists 2,000 characters of dispatch keys for xla
        with pytest.raises(UsageError, match=f"--device {device} cannot be used: ") as caught:
            check_device(device)
        assert len(str(caught.value)) < 250


def test_an_error_in_one_thread_stops_the_rest() -> None:
    """What has not begun is not begun: five seconds of work end at once."""
    done: list[Any] = []

    def fail() -> None:
        raise MismatchError("here")

    def work() -> None:
        time.sleep(0.01)
        done.append(1)

    with pytest.raises(MismatchError, match="here"):
        in_threads([fail, *[work] * 500], 1, "x")
    assert len(done) < 500


# Methods whose formula treats the rows of a matrix otherwise than its columns.
READ_ROWS = {"nuslerp", "model_stock", "arcee_fusion", "della", "wudi", "regmean"}


def test_a_weight_stored_the_other_way_round_merges_to_the_same(case: Case) -> None:
    """GPT-2's Conv1D stores (inputs, outputs): the merge is the transpose of that of Linear weights, bit for bit."""
    models, base = given(case)
    models, base = [{"matrix": m["matrix"]} for m in models], None if base is None else {"matrix": base["matrix"]}
    turned = [{"matrix": m["matrix"].T.contiguous()} for m in models]
    turned_base = None if base is None else {"matrix": base["matrix"].T.contiguous()}
    linear = merged(case, models, base)["matrix"]
    conv1d = merged(case, turned, turned_base, turned=True)["matrix"]
    assert torch.equal(conv1d.T, linear)


@only(lambda case: not case.kind.random and not case.kind.statistics)
def test_without_the_turn_methods_by_rows_give_other_numbers(case: Case) -> None:
    """The control of the turn: the methods that tell rows from columns are these, and for the others nothing depends on it."""
    models, base = given(case)
    turned = [{"matrix": m["matrix"].T.contiguous()} for m in models]
    turned_base = None if base is None else {"matrix": base["matrix"].T.contiguous()}
    models, base = [{"matrix": m["matrix"]} for m in models], None if base is None else {"matrix": base["matrix"]}
    linear, as_it_is = merged(case, models, base)["matrix"], merged(case, turned, turned_base)["matrix"]
    by_rows = case.method in READ_ROWS and not (case.method == "nuslerp" and case.settings.get("vectors") is None)
    by_rows = by_rows and not (case.method == "model_stock" and not case.settings.get("filter_wise"))
    assert torch.allclose(as_it_is.T, linear, rtol=0, atol=1e-6) != by_rows
