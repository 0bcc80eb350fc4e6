"""Runs without torch: plain averages of stored tensors, byte for byte what they are with it."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from tiny import bert_config, random_tensors, save_checkpoint
from torch import Tensor

import merge.checkpoints.weights.arrays
import merge.run.outputs
import merge.run.run
from merge.checkpoints.open import open_checkpoint
from merge.checkpoints.weights.arrays import NUMPY, TORCH, Arrays, TorchArrays, fits_numpy
from merge.checkpoints.weights.read import StoredTensor, as_array, torch_letters
from merge.errors import CheckpointError, OutputError
from merge.methods.linear import Linear
from merge.methods.passthrough import Passthrough
from merge.methods.task_arithmetic import TaskArithmetic
from merge.recipe.recipe import make_recipe
from merge.run.options import RunOptions
from merge.run.report import Report
from merge.run.run import run

DTYPES = {"F16": torch.float16, "BF16": torch.bfloat16, "F32": torch.float32, "F64": torch.float64}


def every_half(dtype: torch.dtype) -> Tensor:
    """Return all 65536 numbers of 16 bits."""
    return torch.arange(1 << 16).to(torch.uint16).view(dtype)


def same_bytes(array: NDArray[Any], tensor: Tensor) -> bool:
    return bytes(NUMPY.raw(array)) == bytes(TORCH.raw(tensor))


@pytest.mark.parametrize("letters", ["F16", "BF16"])
def test_all_numbers_of_16_bits_come_back_from_float32_and_float64(letters: str) -> None:
    """Widening is exact, so narrowing is its inverse; NaN, which a merge never narrows, is left out."""
    tensor = every_half(DTYPES[letters])
    tensor = tensor[~tensor.isnan()]
    for wide in ("F32", "F64"):
        widened = NUMPY.widen(as_array(tensor, letters), wide)
        assert same_bytes(widened, tensor.to(DTYPES[wide]))
        assert same_bytes(NUMPY.cast(widened, letters), tensor)


@pytest.mark.parametrize("letters", ["F16", "BF16"])
def test_half_way_goes_to_the_even_neighbour_as_in_torch(letters: str) -> None:
    """Between every two neighbours: half way, and one step of float32 to either side."""
    tensor = every_half(DTYPES[letters])
    exact = tensor[tensor.isfinite()].double().sort().values.unique()
    middle = ((exact[1:] + exact[:-1]) / 2).float()
    up, down = (torch.nextafter(middle, torch.tensor(end)) for end in (math.inf, -math.inf))
    for single in (middle, up, down):
        assert same_bytes(NUMPY.cast(single.numpy(), letters), single.to(DTYPES[letters]))
    narrow = NUMPY.cast(middle.numpy(), letters).view("u2")
    normal = exact[:-1].abs() > 1e-3  # smaller middles of bfloat16 are no float32
    assert (narrow[normal.numpy()] % 2 == 0).all()
    assert (NUMPY.cast(up.numpy(), letters).view("u2")[normal.numpy()] % 2 == 1).any()


@pytest.mark.parametrize("letters", list(DTYPES))
def test_random_float32_and_float64_are_cast_as_torch_casts_them(letters: str) -> None:
    """Float64 reaches 16 bits through float32; so it does in torch, and a direct cast would round some otherwise."""
    generator = torch.Generator().manual_seed(0)
    drawn = torch.randn(20_000, generator=generator, dtype=torch.float64)
    drawn = torch.cat([drawn * scale for scale in (1e-42, 1e-8, 1e-5, 1.0, 1e4)])
    drawn = torch.cat([drawn, torch.tensor([1 + 2**-11 + 2**-40, 1 + 2**-8 + 2**-40], dtype=torch.float64)])
    for tensor in (drawn, drawn.float()):
        assert same_bytes(NUMPY.cast(tensor.numpy(), letters), tensor.to(DTYPES[letters]))
    direct = drawn.numpy().astype("<f2")
    assert not same_bytes(direct, drawn.half())


@pytest.mark.parametrize("letters", list(DTYPES))
def test_one_nan_or_infinity_is_found_among_the_largest_numbers(letters: str) -> None:
    largest = torch.finfo(DTYPES[letters]).max
    for arrays in (NUMPY, TORCH):
        for wrong in (math.nan, math.inf, -math.inf):
            tensor = torch.tensor([largest, -largest, 0.0, 1.0] * 5, dtype=DTYPES[letters])
            assert arrays.is_finite(of_kind(arrays, tensor))
            tensor[7] = wrong
            assert not arrays.is_finite(of_kind(arrays, tensor))
        assert arrays.is_finite(of_kind(arrays, torch.empty(0, dtype=DTYPES[letters])))


def of_kind(arrays: Arrays, tensor: Tensor) -> Any:
    return tensor if arrays is TORCH else as_array(tensor, torch_letters()[tensor.dtype])


@pytest.mark.parametrize("tensor", [torch.ones(3), torch.ones(2, 1, dtype=torch.bfloat16), torch.tensor(1), torch.tensor(
    [True, False]), torch.ones(2, dtype=torch.uint8)], ids=lambda t: str(t.dtype))  # fmt: skip
def test_both_kinds_say_the_same_of_a_tensor(tensor: Tensor) -> None:
    array = of_kind(NUMPY, tensor)
    assert NUMPY.dtype(array) == TORCH.dtype(tensor)
    assert array.shape == tuple(tensor.shape)
    assert same_bytes(array, tensor)
    for arrays in (NUMPY, TORCH):
        one = of_kind(arrays, tensor)
        assert arrays.equal(one, of_kind(arrays, tensor.clone()))
        assert not arrays.equal(one, of_kind(arrays, torch.zeros_like(tensor)))
        assert not arrays.equal(one, of_kind(arrays, tensor.to(torch.float64)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_formulas_give_the_same_bits_for_every_length(dtype: torch.dtype) -> None:
    """Vector units work in blocks and finish the rest one by one; neither may fuse a product into a sum."""
    generator = torch.Generator().manual_seed(1)
    methods = [
        Linear((0.3, 0.5, 1 / 7)),
        Linear((0.3, -0.5, 1 / 7), normalize=False),
        TaskArithmetic((0.3, 0.7, 1 / 3), scale=0.4),
        TaskArithmetic((0.3, 0.7, 1 / 3), normalize=True),
    ]
    for length in (*range(1, 34), 127, 1000, 4099):
        tensors = [torch.randn(length, generator=generator, dtype=dtype) for _ in range(4)]
        for method in methods:
            theirs = method(tensors[:3], tensors[3])
            ours = method([t.numpy() for t in tensors[:3]], tensors[3].numpy())  # type: ignore[misc, arg-type]
            assert same_bytes(ours, theirs)  # type: ignore[arg-type]
        assert same_bytes(Passthrough(0.3)([tensors[0].numpy()]), tensors[0] * 0.3)  # type: ignore[arg-type, list-item]
    once = (tensors[0].double() * 0.3 + tensors[1].double() * 0.7).float()
    rounded = Linear((0.3, 0.7))([tensor.float().numpy() for tensor in tensors[:2]])  # type: ignore[misc]
    assert not same_bytes(rounded, once)  # type: ignore[arg-type]


def test_numpy_suits_files_it_can_map_and_casts_that_are_few() -> None:
    plain = StoredTensor("f", "w", (1 << 29,), "F32", 8)
    assert fits_numpy([plain], [("F32", (1 << 40,))])
    assert not fits_numpy([plain, StoredTensor("f.bin", "w", (1,), "F32")], [])
    for dtype, limited in (("F16", True), ("BF16", False)):
        assert fits_numpy([StoredTensor("f", "w", (1 << 28,), dtype, 8)], [(dtype, (1 << 28,))])
        assert fits_numpy([StoredTensor("f", "w", (1 << 28,), dtype, 8)], [(dtype, (1 + (1 << 28),))]) is not limited


def folders(tmp_path: Path, count: int = 3, dtype: torch.dtype = torch.float32) -> list[Path]:
    """Return tiny checkpoints of one dtype: without a model built for each, which takes longer than everything else."""
    made = []
    for k in range(count):
        folder = tmp_path / f"m{k}"
        folder.mkdir(parents=True)
        (folder / "config.json").write_text(json.dumps(bert_config()), encoding="utf-8")
        save_file(random_tensors(bert_config(), k, dtype), folder / "model.safetensors", {"format": "pt"})
        made.append(folder)
    return made


class Kinds:
    """Which arrays the runs of a test worked on; `forced` ones are torch's."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.seen: list[Arrays] = []
        self.forced = False
        choose = merge.run.outputs._arrays

        def chosen(*args: Any) -> Arrays:
            self.seen.append(TORCH if self.forced else choose(*args))
            return self.seen[-1]

        monkeypatch.setattr(merge.run.outputs, "_arrays", chosen)

    def outputs(self, tmp_path: Path, *models: Path, **more: Any) -> list[dict[str, bytes]]:
        """Return every file of a run as it comes, and of one on torch's tensors."""
        found = []
        for self.forced in (False, True):
            output = tmp_path / "out"
            recipe = make_recipe({"models": [str(m) for m in models], "output": str(output), **more})
            run(recipe, force=True, options=RunOptions(threads=2))
            found.append({p.name: p.read_bytes() for p in output.iterdir()})
            assert {"model.safetensors", "merge.json", "config.json"} <= found[-1].keys()
        return found


@pytest.fixture
def kinds(monkeypatch: pytest.MonkeyPatch) -> Kinds:
    return Kinds(monkeypatch)


WAYS: dict[str, dict[str, Any]] = {
    "linear": {},
    "weights": {"settings": {"weights": [0.3, 0.5, 1 / 7]}},
    "soup": {"method": "uniform_soup"},
    "float16": {"out_dtype": "float16"},
    "bfloat16": {"out_dtype": "bfloat16"},
    "float64": {"dtype": "float64", "out_dtype": "float64"},
    "overrides": {
        "overrides": [
            {"tensors": ["*attention*"], "settings": {"weights": [3, 2, 1]}},
            {"tensors": ["classifier.*"], "method": "uniform_soup"},
        ]
    },
}


@pytest.mark.parametrize(("way", "letters"), [*((way, "F32") for way in WAYS), *(("weights", d) for d in DTYPES)])
def test_a_run_without_torch_writes_the_same_bytes(way: str, letters: str, kinds: Kinds, tmp_path: Path) -> None:
    """Weights, card and manifest with its hashes; another weight gives other bytes."""
    models = folders(tmp_path, dtype=DTYPES[letters])
    ours, theirs = kinds.outputs(tmp_path, *models, **WAYS[way])
    assert ours == theirs
    assert kinds.seen == [NUMPY, TORCH]
    turned, _ = kinds.outputs(tmp_path, models[0], *models[:2], **WAYS[way])
    assert turned["model.safetensors"] != ours["model.safetensors"]


def test_task_arithmetic_and_a_scaled_copy_too(kinds: Kinds, tmp_path: Path) -> None:
    base, *models = folders(tmp_path)
    ours, theirs = kinds.outputs(
        tmp_path, *models, base=str(base), method="task_arithmetic", settings={"scale": 0.4, "weights": [0.3, 0.7]}
    )
    assert ours == theirs
    ours, theirs = kinds.outputs(tmp_path, base, method="passthrough", settings={"scale": 0.3})
    assert ours == theirs
    assert kinds.seen == [NUMPY, TORCH] * 2


def test_shards_and_tensors_at_odd_places_are_read_as_they_lie(
    kinds: Kinds, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A header may end anywhere, so that no number stands at a multiple of its size; two shards are one model."""
    monkeypatch.setattr(merge.run.engine.engine, "PIECE", 100)
    a, b = folders(tmp_path, 2)
    whole, _ = kinds.outputs(tmp_path, a, b)
    raw = (a / "model.safetensors").read_bytes()
    length = int.from_bytes(raw[:8], "little")
    (a / "model.safetensors").write_bytes(
        (length + 1).to_bytes(8, "little") + raw[8 : 8 + length] + b" " + raw[8 + length :]
    )
    tensors = load_file(b / "model.safetensors")
    (b / "model.safetensors").unlink()
    shards = {f"model-0000{k + 1}-of-00002.safetensors": dict(list(tensors.items())[k::2]) for k in range(2)}
    for name, part in shards.items():
        save_file(part, b / name, {"format": "pt"})
    placed = {"weight_map": {name: shard for shard, part in shards.items() for name in part}}
    (b / "model.safetensors.index.json").write_text(json.dumps(placed), encoding="utf-8")
    opened = open_checkpoint(str(a))
    assert any(not opened.array(name).flags.aligned for name in opened.tensors)
    again, theirs = kinds.outputs(tmp_path, a, b)
    assert again["model.safetensors"] == whole["model.safetensors"] == theirs["model.safetensors"]
    assert kinds.seen == [NUMPY, TORCH] * 2


def to_pickle(folder: Path) -> None:
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


def turn_labels(folder: Path) -> None:
    config = bert_config(labels=("contradiction", "entailment", "neutral"))
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")


def leave(folder: Path) -> None:
    """Change nothing."""


@pytest.mark.parametrize(
    ("change", "more", "expected"),
    [
        (leave, {}, NUMPY),
        (to_pickle, {}, TORCH),
        (turn_labels, {}, TORCH),
        (leave, {"method": "slerp"}, NUMPY),
        (leave, {"method": "multislerp"}, TORCH),
        (leave, {"overrides": [{"tensors": ["classifier.*"], "method": "multislerp"}]}, TORCH),
        (leave, {"align": {"by": "weights"}}, TORCH),
    ],
)
def test_what_needs_torch_gets_it(
    change: Callable[[Path], None], more: Mapping[str, Any], expected: Arrays, kinds: Kinds, tmp_path: Path
) -> None:
    """Pickles, labels in another order, other formulas for all tensors or for some, alignment."""
    a, b = folders(tmp_path, 2)
    change(b)
    ours, theirs = kinds.outputs(tmp_path, a, b, **more)
    assert kinds.seen == [expected, TORCH]
    assert ours["model.safetensors"] == theirs["model.safetensors"]


def test_another_device_is_torch_s(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Which arrays a run works on, asked where it would write."""
    a, b = folders(tmp_path, 2)
    chosen: list[Arrays] = []

    def write(folder: Path, report: Report, options: RunOptions, hashes: object) -> Report:
        chosen.append(merge.run.outputs._arrays(report, options))
        return report

    monkeypatch.setattr(merge.run.run, "write_outputs", write)
    monkeypatch.setattr(merge.run.run, "check_device", lambda device: None)
    for device in ("cpu", "cuda:1"):
        recipe = make_recipe({"models": [str(a), str(b)], "output": str(tmp_path / device)})
        run(recipe, options=RunOptions(device=device))
    assert chosen == [NUMPY, TorchArrays("cuda:1")]


def spoil(folder: Path, value: float) -> None:
    tensors = load_file(folder / "model.safetensors")
    tensors["classifier.bias"][1] = value
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})


@pytest.mark.parametrize(
    ("value", "more", "error", "message"),
    [
        (math.nan, {}, CheckpointError, "m1: classifier.bias holds NaN or infinity"),
        (1e6, {"out_dtype": "float16"}, OutputError, "classifier.bias does not fit into float16"),
        (3e38, {"settings": {"weights": [1, 2], "normalize": False}}, OutputError, "the merge holds NaN or infinity"),
    ],
)
def test_errors_are_torch_s_too(
    value: float, more: dict[str, Any], error: type[Exception], message: str, kinds: Kinds, tmp_path: Path
) -> None:
    """And numpy's warnings, which are errors here, do not come first."""
    models = folders(tmp_path, 2)
    spoil(models[1], value)
    said = []
    for kinds.forced in (False, True):
        with pytest.raises(error, match=message) as caught:
            run(make_recipe({"models": [str(m) for m in models], "output": str(tmp_path / "out"), **more}))
        said.append(str(caught.value))
    assert said[0] == said[1]
    assert kinds.seen == [NUMPY, TORCH]
    assert not (tmp_path / "out").exists()


START = """
import sys
from merge.commands.merge_models import main
try:
    main()
finally:
    print(*(name in sys.modules for name in ("torch", "transformers")))
"""


def imported(*words: str) -> str:
    """Return which of torch and transformers a merge-models command has imported when it ends."""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", START, *words], capture_output=True, text=True, check=True
    )
    return done.stdout.splitlines()[-1]


@pytest.mark.slow
def test_a_second_run_of_a_layout_imports_no_torch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first asks transformers what the config means and whether the result loads; both are remembered."""
    monkeypatch.setenv("MERGE_MODELS_CACHE", str(tmp_path / "cache"))
    a, b, base = (str(save_checkpoint(tmp_path / name, seed=k)) for k, name in enumerate(("a", "b", "base")))
    out = str(tmp_path / "out")
    run(make_recipe({"models": [a, b], "output": out}))
    assert imported(a, b, "-q", "-o", out, "--force") == "False False"
    sums = ("--method", "task_arithmetic", "--base", base, "--set", "scale=0.4")
    assert imported(a, b, "-q", "-o", out, "--force", *sums) == "False False"
    # The control: a method that computes in torch.
    assert imported(a, b, "-q", "-o", out, "--force", "--method", "nuslerp").startswith("True")
