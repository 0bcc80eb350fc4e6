"""--apply and what rewrites models for it: a run repeated from its files, files that were tampered with, and bits kept."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
from families import canonical_tensors, written_name
from families_more import CASES
from random_transforms import random_transform
from safetensors.torch import load_file, save_file
from tiny import bert_config, random_tensors, save_checkpoint, write_text
from torch import Tensor

from merge import entry
from merge.alignment.choice.auto import folded_pair
from merge.alignment.pair import Pair
from merge.checkpoints.inputs import random_inputs
from merge.checkpoints.structure import structure_of
from merge.checkpoints.transformers_model import build
from merge.errors import AlignmentError, SpecError, UsageError
from merge.recipe.recipe import make_recipe, read_recipe
from merge.run.run import run
from merge.symmetry import canonical
from merge.symmetry.architectures import spec_for
from merge.symmetry.canonical import Folded, fold_norms
from merge.symmetry.permutation import identity
from merge.symmetry.transform import Transform, apply_transform, restrict_transform
from merge.symmetry.transform_files import load_transform, read_header, save_transform

BERT = bert_config(num_hidden_layers=1)
GPT2 = {**CASES["GPT2LMHeadModel"], "n_layer": 1}
ROTATION = {"by": "weights", "residual": "rotation", "samples": 32}
INSIDE_HEADS = {"by": "weights", "residual": "permutation", "basis": "orthogonal", "samples": 32}


@pytest.fixture(scope="module")
def berts(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, ...]:
    root = tmp_path_factory.mktemp("berts")
    return tuple(save_checkpoint(root / name, BERT, seed=k, tokenizer=False) for k, name in enumerate("abc"))


@pytest.fixture(scope="module")
def halves(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, ...]:
    """Return two GPT-2 in bfloat16."""
    root = tmp_path_factory.mktemp("halves")
    drawn = (random_tensors(GPT2, seed, torch.bfloat16) for seed in (0, 1))
    return tuple(
        save_checkpoint(root / name, GPT2, tensors=tensors, tokenizer=False)
        for name, tensors in zip("ab", drawn, strict=True)
    )


def merged(models: tuple[Path, ...], output: Path, align: Mapping[str, object], **more: object) -> bytes:
    """Merge and return the bytes of the weights."""
    record = {"models": [str(model) for model in models], "output": str(output), "align": dict(align), **more}
    run(make_recipe(record))
    return (output / "model.safetensors").read_bytes()


# ---- several models ----


@pytest.mark.slow
def test_each_of_three_models_is_moved_by_its_own_file(berts: tuple[Path, ...], tmp_path: Path) -> None:
    """Given in the models' order they repeat the merge to the byte; in another order they are another merge."""
    first = merged(berts, tmp_path / "first", {"by": "weights"})
    files = [str(tmp_path / "first" / f"transform-{k}.safetensors") for k in (1, 2)]
    assert merged(berts, tmp_path / "again", {"apply": files}) == first
    assert merged(berts, tmp_path / "turned", {"apply": files[::-1]}) != first
    with pytest.raises(UsageError, match="^2 models move, and 1 transforms are to be applied"):
        merged(berts, tmp_path / "one", {"apply": files[:1]})
    assert not (tmp_path / "one").exists()


@pytest.mark.slow
def test_the_base_has_a_file_of_its_own_which_comes_last(berts: tuple[Path, ...], tmp_path: Path) -> None:
    """Task vectors are taken in the reference's basis, so a base that moves otherwise is another merge."""
    more = {"base": str(berts[2]), "method": "task_arithmetic"}
    first = merged(berts[:2], tmp_path / "first", {"by": "weights"}, **more)
    files = [str(tmp_path / "first" / name) for name in ("transform.safetensors", "transform-base.safetensors")]
    assert merged(berts[:2], tmp_path / "again", {"apply": files}, **more) == first
    assert merged(berts[:2], tmp_path / "turned", {"apply": files[::-1]}, **more) != first
    with pytest.raises(UsageError, match="^2 models move, and 1 transforms are to be applied"):
        merged(berts[:2], tmp_path / "one", {"apply": files[:1]}, **more)


# ---- what a file and a recipe remember ----


@pytest.mark.slow
def test_kept_canonical_weights_are_kept_again(berts: tuple[Path, ...], tmp_path: Path) -> None:
    """The file says so itself; without that entry the same orders act on weights as they were given."""
    first = merged(berts[:2], tmp_path / "first", {"by": "weights", "canonical": "keep"})
    file = tmp_path / "first" / "transform.safetensors"
    facts = dict(read_header(file).facts)
    assert facts.pop("canonical") == "keep"
    assert merged(berts[:2], tmp_path / "again", {"apply": str(file)}) == first
    save_file(load_file(file), tmp_path / "undo.safetensors", metadata={"transform": json.dumps(facts)})
    assert merged(berts[:2], tmp_path / "undone", {"apply": str(tmp_path / "undo.safetensors")}) != first


def save_rotated_pair(folder: Path) -> None:
    """Save a tiny GPT-2 as a, and as b the same with its norms folded and its residual stream rotated."""
    config = {**CASES["gpt2 untied"], "n_layer": 1}
    spec, a = spec_for(config), canonical_tensors(config, 0, torch.float32)
    pair = folded_pair(Pair(spec, a, a, config, str))
    drawn = random_transform(pair.spec, pair.shapes, torch.Generator().manual_seed(1))
    turn = Transform(identity(pair.spec, pair.shapes), restrict_transform(drawn, ["residual"]).maps)
    b = apply_transform(pair.spec, turn, fold_norms(spec, config, a).tensors)
    structure = structure_of(config)
    for name, tensors in (("a", a), ("b", b)):
        named = {written_name(structure, n): t for n, t in tensors.items()}
        save_checkpoint(folder / name, config, tensors=named)


@pytest.mark.slow
def test_a_rotation_that_auto_chose_is_left_to_it_in_the_recipe(tmp_path: Path) -> None:
    """What is written asks what was asked, and so does the same; a rotation that a user asked for stays written."""
    save_rotated_pair(tmp_path)
    align = {"by": "auto", "basis": "permutation", "text": str(write_text(tmp_path / "text.txt", 12))}
    models = [str(tmp_path / name) for name in "ab"]
    report = run(make_recipe({"models": models, "align": align, "output": str(tmp_path / "out")}))
    assert report.rebased.aligned[0].choice.kept.rotated
    assert "residual" not in (tmp_path / "out" / "recipe.yaml").read_text(encoding="utf-8")
    manifest = json.loads((tmp_path / "out" / "merge.json").read_text(encoding="utf-8"))
    assert "residual" not in manifest["recipe"]["align"]
    again = run(read_recipe(tmp_path / "out" / "recipe.yaml").model_copy(update={"output": str(tmp_path / "again")}))
    assert again.rebased.aligned[0].choice.kept.rotated
    first, second = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("out", "again"))
    assert first == second


# ---- files that were tampered with ----

SPEC = spec_for(BERT)
SHAPES = {name: tuple(tensor.shape) for name, tensor in random_tensors(BERT, 0).items()}
FACTS: dict[str, Any] = {"format": 1, "family": "bert", "outer": {"qk0": "heads0", "v0": "heads0"}}
ORDER = torch.arange(40)
FFN = "permutation/ffn0"

METADATA = {
    "not JSON": ("{format", "its metadata cannot be read"),
    "a list": ("[]", "entry 'transform' of its metadata"),
    "no format": (json.dumps({k: v for k, v in FACTS.items() if k != "format"}), "entry 'format' of its metadata"),
    "no outer": (json.dumps({k: v for k, v in FACTS.items() if k != "outer"}), "entry 'outer' of its metadata"),
    "outer a number": (json.dumps({**FACTS, "outer": {"qk0": 3}}), "entry 'outer' of its metadata"),
    "outer of no axis": (json.dumps({**FACTS, "outer": {"qk9": "heads0"}}), "blocks of axis 'qk9'; bert has none"),
    "outer in no axis": (json.dumps({**FACTS, "outer": {"qk0": "heads9"}}), "axis 'heads9' of its metadata has no index array"),
    "a path": (json.dumps({**FACTS, "reference": "../x.safetensors"}), "entry 'reference' of its metadata must be the name"),
    "no name": (json.dumps({**FACTS, "reference": ""}), "entry 'reference' of its metadata must be the name"),
    "the folder above": (json.dumps({**FACTS, "reference": ".."}), "entry 'reference' of its metadata must be the name"),
    "a number": (json.dumps({**FACTS, "reference": 3}), "entry 'reference' of its metadata"),
}  # fmt: skip

TENSORS = {
    "no slash": ("ffn0", ORDER),
    "an unknown part": ("order/ffn0", ORDER),
    "no axis": ("map/", ORDER.double()),
    "out of range": (FFN, ORDER + 1),
    "below zero": (FFN, ORDER - 1),
    "twice": (FFN, ORDER.clamp(max=38)),
    "of floats": (FFN, ORDER.float()),
    "a number": (FFN, torch.tensor(0)),
}


@pytest.fixture
def transform(tmp_path: Path) -> Path:
    """Return the file of a random transform, which loads as it is."""
    file, drawn = tmp_path / "t.safetensors", random_transform(SPEC, SHAPES, torch.Generator().manual_seed(0))
    save_transform(SPEC, drawn, file)
    assert dict(read_header(file).facts) == FACTS
    loaded = load_transform(SPEC, file).permutation.indices
    assert all(torch.equal(loaded[axis], index) for axis, index in drawn.permutation.indices.items())
    return file


@pytest.mark.parametrize("case", METADATA)
def test_malformed_metadata_is_one_line_that_names_the_file(case: str, transform: Path) -> None:
    """Whatever it is that does not fit; rewritten with what it had before, the file loads again."""
    found, (text, said) = load_file(transform), METADATA[case]
    save_file(found, transform, metadata={"transform": text})
    refused(transform, said)
    save_file(found, transform, metadata={"transform": json.dumps(FACTS)})
    assert load_transform(SPEC, transform).maps


@pytest.mark.parametrize("case", TENSORS)
def test_a_tensor_that_is_no_order_is_one_line_that_names_it_and_the_file(case: str, transform: Path) -> None:
    """Indices would otherwise take units twice, or fail far from here; another order of them all is taken."""
    found, (name, tensor) = load_file(transform), TENSORS[case]
    save_file({**found, name: tensor}, transform, metadata={"transform": json.dumps(FACTS)})
    refused(transform, f"'{name}' is neither an index array of an axis nor a map")
    save_file({**found, FFN: ORDER.flip(0)}, transform, metadata={"transform": json.dumps(FACTS)})
    assert torch.equal(load_transform(SPEC, transform).permutation.indices["ffn0"], ORDER.flip(0))


def refused(file: Path, said: str) -> None:
    with pytest.raises(SpecError) as caught:
        load_transform(SPEC, file)
    assert str(caught.value).startswith(str(file))
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


# ---- models rewritten ----


def logits(folder: Path) -> Tensor:
    """Return what a causal model says to random tokens, run in float64."""
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    model = build(config, load_file(folder / "model.safetensors"), torch.float64)
    with torch.inference_mode():
        return torch.stack([model(**batch).logits for batch in random_inputs(config)])


@pytest.mark.parametrize(
    ("align", "folds"),
    [(ROTATION, True), (INSIDE_HEADS, False)],
    ids=["residual stream", "inside heads"],
)
@pytest.mark.slow
def test_half_precision_models_are_rotated_in_single_precision(
    align: dict[str, Any], folds: bool, halves: tuple[Path, ...], tmp_path: Path
) -> None:
    """A merge is written as its models were. Moved alone and written wider, b says what it said; rounded it does not."""
    merged(halves, tmp_path / "out", align)
    weights = load_file(tmp_path / "out" / "model.safetensors")
    assert ("lm_head.weight" in weights) == folds
    assert read_header(tmp_path / "out" / "transform.safetensors").maps
    assert {tensor.dtype for tensor in weights.values()} == {torch.bfloat16}
    assert json.loads((tmp_path / "out" / "config.json").read_text(encoding="utf-8"))["dtype"] == "bfloat16"
    own, off = logits(halves[1]), {}
    alone = {"align": {"apply": str(tmp_path / "out" / "transform.safetensors")}, "method": "passthrough"}
    for dtype in ("float32", "bfloat16"):
        merged(halves[1:], tmp_path / dtype, out_dtype=dtype, **alone)
        off[dtype] = float((logits(tmp_path / dtype) - own).abs().max() / own.std())
    assert off["float32"] < 1e-5
    assert off["bfloat16"] > 1e-3


def test_a_model_that_folding_changed_is_refused(
    halves: tuple[Path, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One bias a little off, and nothing is left behind, hidden folders included; folded as it should be, it is merged."""
    right, name = canonical.fold_norms, "transformer.h.0.mlp.c_fc.bias"
    spoilt = 0.01

    def folded(*given: Any) -> Folded:
        found = right(*given)
        return replace(found, tensors={**found.tensors, name: found.tensors[name] + spoilt})

    monkeypatch.setattr(canonical, "fold_norms", folded)
    with pytest.raises(AlignmentError, match="rewritten for the alignment it is not the model it was") as caught:
        merged(halves, tmp_path / "out", ROTATION)
    assert str(caught.value).startswith(f"{halves[0]}: ")
    assert list(tmp_path.iterdir()) == []
    spoilt = 0.0
    assert merged(halves, tmp_path / "out", ROTATION)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


# ---- the commands' start ----

COMMANDS: dict[str, tuple[Callable[[], None], str]] = {
    "merge-models": (entry.merge_models, "_merge_main"),
    "edit-layers": (entry.edit_layers, "_edit_main"),
    "stitch-models": (entry.stitch_models, "_stitch_main"),
    "evaluate-models": (entry.evaluate_models, "_evaluate_main"),
}


@pytest.mark.parametrize("command", COMMANDS)
def test_an_interrupt_while_modules_are_read_is_one_line(
    command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """And the exit code of one that comes later; what is read undisturbed is run, once."""
    start, reader = COMMANDS[command]

    def interrupted() -> Callable[[], None]:
        raise KeyboardInterrupt

    monkeypatch.setattr(entry, reader, interrupted)
    with pytest.raises(SystemExit) as stopped:
        start()
    assert stopped.value.code == 130
    said = capsys.readouterr()
    assert (said.out, said.err.count("\n")) == ("", 1)
    assert said.err.startswith(f"{command}: interrupted")
    ran: list[str] = []
    monkeypatch.setattr(entry, reader, lambda: lambda: ran.append(command))
    start()
    assert ran == [command]
    assert capsys.readouterr().err == ""


def test_the_console_scripts_name_functions_that_exist() -> None:
    """Those of the commands' start, one for each; their readers return what is there too."""
    text = (Path(__file__).parents[3] / "pyproject.toml").read_text(encoding="utf-8")
    scripts = tomllib.loads(text)["project"]["scripts"]
    assert scripts.keys() == COMMANDS.keys()
    for command, place in scripts.items():
        module, _, name = place.partition(":")
        start, reader = COMMANDS[command]
        assert getattr(import_module(module), name) is start
        assert callable(getattr(entry, reader)())
