"""edit-layers as it is typed: checkpoints whose layers were dropped, reordered and repeated, byte for byte."""

from __future__ import annotations

import errno
import hashlib
import json
import logging
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
import yaml
from layered import FAMILY, STACK, checkpoint_of, difference, sliced_model
from quick import quick_on
from safetensors.torch import load_file, save_file
from sentence import TEXTS, dense_of, embeddings, needs_library, save_sentence, write_json
from tiny import bert_config, random_tensors, save_checkpoint, write_text

from merge.checkpoints.open import open_checkpoint
from merge.checkpoints.transformers_model import build, model_class
from merge.commands.edit_layers import edit_main
from merge.errors import CheckpointError, OutputError
from merge.layers.edit import edit_layers
from merge.layers.plans.plan import LayerPlan
from merge.publish.push import plan_push
from merge.recipe.recipe import make_recipe
from merge.run.run import run as merge_run


@dataclass(frozen=True)
class Answer:
    """What a command left: exit code, stdout, stderr."""

    code: int
    out: str
    err: str


Run = Callable[..., Answer]
LAYERS = 6


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("store")
    save_checkpoint(folder / "m", bert_config(num_hidden_layers=LAYERS))
    write_text(folder / "text.txt", 24)
    return folder


@pytest.fixture
def place(store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a fresh working folder with a checkpoint m of six layers in it."""
    shutil.copytree(store / "m", tmp_path / "m")
    shutil.copy(store / "text.txt", tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def run(place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[Run]:
    """Return a function that runs edit-layers in this process."""

    def run_here(*arguments: str) -> Answer:
        monkeypatch.setattr(sys, "argv", ["edit-layers", *arguments])
        code = 0
        capsys.readouterr()
        try:
            edit_main()
        except SystemExit as stop:
            code = int(stop.code or 0)
        captured = capsys.readouterr()
        return Answer(code, captured.out, captured.err)

    handler, level = signal.getsignal(signal.SIGTERM), logging.getLogger().level
    yield run_here
    signal.signal(signal.SIGTERM, handler)
    logging.getLogger().setLevel(level)


def stored_bytes(path: Path) -> dict[str, tuple[str, bytes]]:
    """Return name -> (dtype, bytes) of a safetensors file, read by its format and not by the library."""
    whole = path.read_bytes()
    length = int.from_bytes(whole[:8], "little")
    header = json.loads(whole[8 : 8 + length])
    data = whole[8 + length :]
    return {
        name: (entry["dtype"], data[slice(*entry["data_offsets"])])
        for name, entry in header.items()
        if name != "__metadata__"
    }


def expected_bytes(before: dict[str, tuple[str, bytes]], order: list[int]) -> dict[str, tuple[str, bytes]]:
    """Return what a BERT with its layers in another order stores: by string surgery on names."""
    found = {}
    for name, value in before.items():
        layer = re.match(r"(.*encoder\.layer\.)(\d+)(\..*)", name)
        if layer is None:
            found[name] = value
        else:
            found |= {f"{layer[1]}{new}{layer[3]}": value for new, old in enumerate(order) if old == int(layer[2])}
    return found


EDITS = {
    ("drop", "--strategy", "top", "--count", "2"): [0, 1, 2, 3],
    ("drop", "--strategy", "bottom", "--count", "1"): [1, 2, 3, 4, 5],
    ("drop", "--strategy", "odd", "--count", "2"): [0, 1, 3, 5],
    ("drop", "--strategy", "even", "--count", "2"): [0, 1, 2, 4],
    ("drop", "--strategy", "symmetric", "--count", "4"): [0, 5],
    ("drop", "--layers", "1-2,5"): [0, 3, 4],
    ("reorder", "--order", "5,0-4"): [5, 0, 1, 2, 3, 4],
    ("stack", "--layers", "0-3,2-5"): [0, 1, 2, 3, 2, 3, 4, 5],
    ("stack", "--layers", "2"): [2],
}


@pytest.mark.parametrize("arguments", EDITS, ids=" ".join)
def test_layers_are_copied_byte_for_byte(arguments: tuple[str, ...], run: Run, place: Path) -> None:
    """Into a checkpoint that from_pretrained loads without a word, with the input untouched."""
    order = EDITS[arguments]
    before = {path.name: path.read_bytes() for path in (place / "m").iterdir()}
    answer = run(arguments[0], "m", *arguments[1:], "-o", "out")
    assert (answer.code, answer.err.count("Error")) == (0, 0), answer.err
    assert stored_bytes(place / "out/model.safetensors") == expected_bytes(
        stored_bytes(place / "m/model.safetensors"), order
    )
    config, old = (json.loads((place / f / "config.json").read_text()) for f in ("out", "m"))
    assert config["num_hidden_layers"] == len(order)
    assert {k: v for k, v in old.items() if k != "num_hidden_layers"}.items() <= config.items()
    _, info = transformers.AutoModelForSequenceClassification.from_pretrained("out", output_loading_info=True)
    assert not any(info.values())
    assert (place / "out/tokenizer.json").read_bytes() == before["tokenizer.json"]
    assert {path.name: path.read_bytes() for path in (place / "m").iterdir()} == before
    manifest = json.loads((place / "out/edit.json").read_text())
    assert [entry["from"][0]["layer"] for entry in manifest["layers"]] == order
    assert [entry["layer"] for entry in manifest["layers"]] == list(range(len(order)))
    assert manifest["dropped"] == [layer for layer in range(LAYERS) if layer not in order]
    assert {int(name.split(".")[3]) for name in manifest["left_out"]} == set(manifest["dropped"])
    for name, digest in manifest["files"].items():
        assert hashlib.sha256((place / "out" / name).read_bytes()).hexdigest() == digest


@pytest.mark.parametrize(
    "kind",
    quick_on(
        ("albert", "modernbert", "vit", "t5"),
        ("albert", "modernbert", "gpt2", "qwen2", "xlnet", "vit", "t5", "deberta-v2"),
    ),
)
def test_the_written_model_computes_what_its_layers_computed(kind: str, tmp_path: Path) -> None:
    """From the disk to the disk, against the list of modules sliced by hand."""
    checkpoint, order = checkpoint_of(kind), [0, 3, 2]
    report = edit_layers(checkpoint, LayerPlan.keep(order, STACK.get(kind, "")), tmp_path / "out")
    model = model_class(checkpoint.config).from_pretrained(tmp_path / "out")
    dtype = torch.float32 if kind == "xlnet" else torch.float64
    assert difference(model.to(dtype).eval(), sliced_model(checkpoint, order)) < 1e-10
    assert report.dropped == (1,)
    assert open_checkpoint(str(tmp_path / "out")).config == report.config
    assert FAMILY[kind]


def test_contribution_is_measured_said_and_written(run: Run, place: Path) -> None:
    """The layers dropped are those with the least score of the table that is printed."""
    answer = run("drop", "m", "--strategy", "contribution", "--count", "2", "--text", "text.txt", "-o", "out")
    assert answer.code == 0, answer.err
    scores = [float(x) for x in re.findall(r"layer \d+ +(\d\.\d{4})", answer.out)]
    dropped = [int(x) for x in re.findall(r"layer (\d+) +\d\.\d{4}  <- dropped", answer.out)]
    assert len(scores) == LAYERS
    assert dropped == sorted(sorted(range(LAYERS), key=scores.__getitem__)[:2])
    manifest = json.loads((place / "out/edit.json").read_text())
    assert manifest["dropped"] == dropped
    assert [round(score, 4) for score in manifest["contribution"]["scores"]] == scores
    assert "24 of 24 lines" in manifest["contribution"]["text"]


def test_a_dry_run_says_all_and_writes_nothing(run: Run, place: Path) -> None:
    before = sorted(place.rglob("*"))
    answer = run("drop", "m", "--layers", "4", "--dry-run")
    assert answer.code == 0
    assert "m: 6 layers -> 5: 0-3,5" in answer.out
    assert "dropped: 4 (16 tensors left out)" in answer.out
    assert "config.json: num_hidden_layers: 6 -> 5" in answer.out
    assert "nothing written (dry run)" in answer.out
    assert sorted(place.rglob("*")) == before


def test_json_alone_goes_to_stdout_and_quiet_silences_the_rest(run: Run, place: Path) -> None:
    answer = run("drop", "m", "--strategy", "top", "--count", "1", "--json", "-q")
    facts = json.loads(answer.out)
    assert (facts["output"], facts["dropped"], facts["config"]) == ("edited", [5], {"num_hidden_layers": [6, 5]})
    assert answer.err == ""
    loud = run("drop", "m", "--strategy", "top", "--count", "1", "--force")
    assert "copying tensors" in loud.err


def test_the_same_edit_twice_gives_the_same_bytes(run: Run, place: Path) -> None:
    for name in ("x/out", "y/out"):
        assert run("stack", "m", "--layers", "0-3,2-5", "-o", name).code == 0
    for path in (place / "x/out").iterdir():
        assert path.read_bytes() == (place / "y/out" / path.name).read_bytes()


BAD = {
    "no strategy and no layers": (["drop", "m"], "give the layers to drop"),
    "both": (["drop", "m", "--layers", "1", "--strategy", "top", "--count", "1"], "give the layers to drop"),
    "no count": (["drop", "m", "--strategy", "top"], "--strategy and --count must be given together"),
    "count alone": (["drop", "m", "--layers", "1", "--count", "1"], "--strategy and --count must be given together"),
    "unknown strategy": (["drop", "m", "--strategy", "botom", "--count", "1"], "Did you mean 'bottom'"),
    "count too large": (
        ["drop", "m", "--strategy", "top", "--count", "6"],
        "cannot drop 6 of 6 layers: expected 1 to 5",
    ),
    "count too large to measure": (
        ["drop", "m", "--strategy", "contribution", "--count", "9"],
        "cannot drop 9 of 6 layers",
    ),
    "symmetric": (["drop", "m", "--strategy", "symmetric", "--count", "3"], "leaves 3, an odd number"),
    "out of range": (["drop", "m", "--layers", "5-6"], "there is no layer 6; the model has 6, 0 to 5"),
    "not layers": (["drop", "m", "--layers", "five"], "found 'five'"),
    "all": (["drop", "m", "--layers", "0-5"], "all 6 layers would be dropped"),
    "twice": (["drop", "m", "--layers", "1,1"], "layer 1 is listed twice among the layers to drop"),
    "text for nothing": (
        ["drop", "m", "--layers", "1", "--text", "text.txt"],
        "--text has no effect without --strategy contribution",
    ),
    "a plan's file is missing": (["apply", "m", "--plan", "none.json"], "--plan none.json: there is no such file"),
    "a recipe is missing": (["apply", "none.yaml"], "recipe none.yaml cannot be read: there is no such file"),
    "no value": (
        ["drop", "m", "--layers"],
        "Option '--layers' requires an argument. See edit-layers drop --help.",
    ),
    "order lacks": (["reorder", "m", "--order", "0,2,1,3"], "lacks layers 4-5. Use edit-layers drop to drop layers"),
    "order repeats": (
        ["reorder", "m", "--order", "0-5,1"],
        "names layer 1 twice. Use edit-layers stack to repeat layers",
    ),
    "stack out of range": (["stack", "m", "--layers", "0-9"], "there is no layer 6"),
    "stack of a family without": (
        ["stack", "m", "--layers", "0", "--stack", "text"],
        "only one list of layers, not 'text'",
    ),
    "output exists": (["drop", "m", "--layers", "1", "-o", "taken"], "output taken exists"),
    "output is the input": (["drop", "m", "--layers", "1", "-o", "m", "--force"], "output m is, or holds, the input"),
    "no such folder": (["drop", "nowhere", "--layers", "1"], "nowhere: no such folder"),
    "unknown command": (["dorp", "m"], "No such command 'dorp'"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_input_is_one_clear_line_and_nothing_is_written(case: str, run: Run, place: Path) -> None:
    (place / "taken").mkdir()
    before = sorted(place.rglob("*"))
    arguments, said = BAD[case]
    answer = run(*arguments)
    assert answer.code in (1, 2)
    assert answer.out == ""
    assert said in answer.err
    assert answer.err.count("\n") == 1
    assert sorted(place.rglob("*")) == before


def test_force_replaces_a_checkpoint(run: Run, place: Path) -> None:
    assert run("drop", "m", "--layers", "1").code == 0
    assert run("drop", "m", "--layers", "1,2").code == 1
    assert run("drop", "m", "--layers", "1,2", "--force").code == 0
    assert json.loads((place / "edited/config.json").read_text())["num_hidden_layers"] == 4


def test_dtypes_old_names_and_shards_of_the_input_do_not_matter(run: Run, place: Path) -> None:
    """bfloat16 stays, bit for bit; LayerNorm.gamma is written as transformers writes it."""
    tensors = {name: t.to(torch.bfloat16) for name, t in load_file(place / "m/model.safetensors").items()}
    old = {re.sub(r"LayerNorm\.weight$", "LayerNorm.gamma", name): tensor for name, tensor in tensors.items()}
    old = {re.sub(r"LayerNorm\.bias$", "LayerNorm.beta", name): tensor for name, tensor in old.items()}
    save_file(old, place / "m/model.safetensors", metadata={"format": "pt"})
    answer = run("drop", "m", "--layers", "0-1")
    assert answer.code == 0, answer.err
    assert "old names gamma and beta" in answer.err
    written = load_file(place / "edited/model.safetensors")
    assert {t.dtype for t in written.values()} == {torch.bfloat16}
    name = "bert.encoder.layer.{}.output.LayerNorm.weight"
    assert torch.equal(written[name.format(0)], tensors[name.format(2)])
    assert not torch.equal(written[name.format(0)], tensors[name.format(0)])


def test_side_files_go_along_but_not_the_story_of_the_input(run: Run, place: Path) -> None:
    """Modules of sentence-transformers are kept; a manifest of how the input was made would be untrue of the output."""
    (place / "m/1_Pooling").mkdir()
    (place / "m/1_Pooling/config.json").write_text('{"pooling_mode_mean_tokens": true}')
    for name in ("merge.json", "recipe.yaml", "edit.json", "modules.json"):
        (place / "m" / name).write_text("[]")
    answer = run("drop", "m", "--layers", "0")
    assert answer.code == 0, answer.err
    assert "not copied from m: edit.json, merge.json, recipe.yaml" in answer.err
    assert (place / "edited/1_Pooling/config.json").is_file()
    assert (place / "edited/modules.json").read_text() == "[]"
    assert not (place / "edited/merge.json").exists()
    assert json.loads((place / "edited/edit.json").read_text())["format"] == 1


def test_a_sentence_transformers_folder_goes_along_whole(run: Run, place: Path) -> None:
    """Every file of the pipeline is the input's, weights of modules too; only the encoder, its config and the card differ."""
    folder = save_sentence(place / "s", layers=4, prompts={"query": "the "})
    answer = run("drop", "s", "--layers", "1,2", "-o", "out")
    assert answer.code == 0, answer.err
    assert "not copied" not in answer.err
    before, after = (
        {p.relative_to(f).as_posix(): p.read_bytes() for p in f.rglob("*") if p.is_file()}
        for f in (folder, place / "out")
    )
    assert {name for name in after if before.get(name) != after[name]} == {
        "config.json",
        "model.safetensors",
        "README.md",
        "edit.json",
    }
    assert before.keys() <= after.keys()
    assert {"2_Dense/model.safetensors", "1_Pooling/config.json", "modules.json"} <= after.keys()
    assert stored_bytes(place / "out/2_Dense/model.safetensors") == stored_bytes(folder / "2_Dense/model.safetensors")
    manifest = json.loads(after["edit.json"])
    dense = hashlib.sha256(before["2_Dense/model.safetensors"]).hexdigest()
    assert manifest["files"]["2_Dense/model.safetensors"] == dense
    assert manifest["models"][0]["files"]["2_Dense/model.safetensors"] == dense
    assert manifest["models"][0]["content_hash"] == open_checkpoint("s").encoder.content_hash
    assert not any("Dense" in name for name in manifest["left_out"])


@pytest.mark.slow
@needs_library
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_the_library_embeds_with_an_edited_folder_as_the_layers_sliced_by_hand(tmp_path: Path) -> None:
    """Mean, dense layer, tanh and normalisation behind the list of modules cut by hand, to 1e-5; uncut it is far off."""
    from sentence_transformers import SentenceTransformer

    folder = save_sentence(tmp_path / "s", layers=4)
    edit_layers(open_checkpoint(str(folder)), LayerPlan.keep([0, 3]), tmp_path / "out")
    model = build(json.loads((folder / "config.json").read_text()), load_file(folder / "model.safetensors"))
    whole = embeddings(model, folder, dense_of(folder))
    model.encoder.layer = torch.nn.ModuleList([model.encoder.layer[0], model.encoder.layer[3]])
    wanted = embeddings(model, folder, dense_of(folder))
    library = SentenceTransformer(str(tmp_path / "out"), device="cpu", local_files_only=True)
    found = library.encode(TEXTS, convert_to_tensor=True)
    assert found.shape == wanted.shape
    assert torch.allclose(found, wanted, atol=1e-5)
    assert (found - whole).abs().max() > 1e-2


def test_a_pickled_module_is_written_as_safetensors_and_the_pickle_left(run: Run, place: Path) -> None:
    """Whether it is all there is or lies beside the safetensors, where that it is left is said."""
    folder = save_sentence(place / "s")
    torch.save(dense_of(folder), folder / "2_Dense/pytorch_model.bin")
    before = stored_bytes(folder / "2_Dense/model.safetensors")
    beside = run("drop", "s", "--layers", "0", "-o", "beside")
    assert "not copied from s: 2_Dense/pytorch_model.bin" in beside.err
    (folder / "2_Dense/model.safetensors").unlink()
    alone = run("drop", "s", "--layers", "0", "-o", "alone")
    assert (alone.code, "not copied" in alone.err) == (0, False)
    for name in ("beside", "alone"):
        assert stored_bytes(place / name / "2_Dense/model.safetensors") == before
        assert not (place / name / "2_Dense/pytorch_model.bin").exists()


def test_a_module_that_weighs_every_layer_by_its_place_is_refused(place: Path) -> None:
    """It would be loaded, and mix other layers than it was trained on; without it the same folder is edited."""
    folder = save_sentence(place / "s")
    listed = json.loads((folder / "modules.json").read_text())
    kind = "sentence_transformers.models.WeightedLayerPooling"
    write_json(folder / "modules.json", [*listed, {"idx": 4, "name": "4", "path": "4_Weighted", "type": kind}])
    write_json(folder / "4_Weighted/config.json", {"num_hidden_layers": 2, "layer_start": 0})
    save_file({"layer_weights": torch.ones(3)}, folder / "4_Weighted/model.safetensors")
    with pytest.raises(CheckpointError, match="4_Weighted: WeightedLayerPooling has a weight for each layer's place"):
        edit_layers(open_checkpoint("s"), LayerPlan.keep([1]), place / "out")
    sliced = {"models": ["s", "s"], "slices": [{"layers": "1"}], "output": "out"}
    with pytest.raises(CheckpointError, match="4_Weighted: WeightedLayerPooling has a weight for each layer's place"):
        merge_run(make_recipe(sliced))
    assert not (place / "out").exists()
    write_json(folder / "modules.json", listed)
    assert edit_layers(open_checkpoint("s"), LayerPlan.keep([1]), place / "out").dropped == (0,)


def test_the_card_states_what_was_done_and_the_licence_of_the_input(run: Run, place: Path) -> None:
    """Without a card a folder cannot be pushed; a licence that no one stated is not made up."""
    assert run("stack", "m", "--layers", "0-3,2-5", "-o", "bare").code == 0
    (place / "m/README.md").write_text("---\nlicense: mit\n---\n# m\n")
    assert run("drop", "m", "--layers", "0", "-o", "out").code == 0
    bare, stated = (yaml.safe_load((place / f / "README.md").read_text().split("---")[1]) for f in ("bare", "out"))
    assert "license" not in bare
    assert (stated["license"], stated["pipeline_tag"]) == ("mit", "text-classification")
    assert "base_model" not in stated  # a local folder is no Hub id
    assert (
        "8 layers, taken from the 6 of m in this order (counted from 0): 0-3,2-5."
        in (place / "bare/README.md").read_text()
    )
    assert plan_push(place / "out", "me/out", None).card.startswith("---")


def test_several_sources_of_a_layer_are_averaged(run: Run, place: Path) -> None:
    """A weighted mean of two layers is computed, all other tensors are copied; both are counted, and the card has the plan."""
    answer = run("apply", "m", "--plan", "A0, mean(0.25*A1, 0.75*A2), A[3-5]", "-o", "out")
    assert answer.code == 0, answer.err
    before, after = load_file(place / "m/model.safetensors"), load_file(place / "out/model.safetensors")
    name = "bert.encoder.layer.{}.output.dense.weight"
    due = 0.25 * before[name.format(1)].float() + 0.75 * before[name.format(2)].float()
    assert torch.allclose(after[name.format(1)].float(), due, atol=1e-6)
    assert torch.equal(after[name.format(2)], before[name.format(3)])
    manifest = json.loads((place / "out/edit.json").read_text())
    assert (manifest["computed"], manifest["plan"]) == (16, "A[0], mean(0.25*A1, 0.75*A2), A[3-5]")
    assert "by the plan `A[0], mean(0.25*A1, 0.75*A2), A[3-5]`" in (place / "out/README.md").read_text()
    assert "16 computed" in answer.out


def test_a_permutation_and_its_inverse_give_the_bytes_back(run: Run, place: Path) -> None:
    """By the plan of an edit.json too, which is a plan like any other."""
    assert run("apply", "m", "--plan", "A[2,0,3,1,5,4]", "-o", "there").code == 0
    assert stored_bytes(place / "there/model.safetensors") != stored_bytes(place / "m/model.safetensors")
    assert run("apply", "there", "--plan", "A[1,3,0,2,5,4]", "-o", "back").code == 0
    assert stored_bytes(place / "back/model.safetensors") == stored_bytes(place / "m/model.safetensors")
    assert run("apply", "m", "--plan", "there/edit.json", "-o", "again").code == 0
    assert (place / "again/model.safetensors").read_bytes() == (place / "there/model.safetensors").read_bytes()


def test_a_recipe_does_what_its_flags_do(run: Run, place: Path) -> None:
    (place / "layers.yaml").write_text("models: {M: m, N: m}\nplan: M[0-1], mean(M2, N3), N[4-5]\noutput: by_recipe\n")
    assert run("apply", "layers.yaml").code == 0
    assert run("apply", "M=m", "N=m", "--plan", "M[0-1], mean(M2, N3), N[4-5]", "-o", "by_flags").code == 0
    files = [place / folder / "model.safetensors" for folder in ("by_recipe", "by_flags")]
    assert files[0].read_bytes() == files[1].read_bytes()


# What is typed, and what the one line says.
REFUSED = {
    ("apply", "m", "--plan", "A[0-9]"): "there is no layer 9 of A, which has layers 0 to 5",
    ("apply", "m", "--plan", "A[0-3], A[]"): "plan, character 11: expected the number of a layer, found ']'",
    ("apply", "m"): "give a plan",
    ("apply", "A=m", "A=m", "--plan", "A0"): "two models are named A",
    ("apply", "m", "--plan", "A0, A3", "--repair", "seam", "--samples", "1"): "needs at least five texts",
    ("apply", "m", "--plan", "A0, A3", "--align", "weights"): "this plan has one model",
    ("apply", "m", "--plan", "A0, affine(A1->A3)"): "twice the hidden size, 48; this model has 40",
    ("apply", "m", "--plan", "A0, A3", "--ridge", "1"): "--ridge has no effect without --repair",
    ("apply", "m", "--plan", "A0, A3", "--repair", "seam", "--ridge", "-1"): "a finite number of at least 0",
    ("drop", "m", "--strategy", "greedy", "--count", "2", "--protect", "0-4"): "cannot drop 2 of 6 layers, 5 of them",
    ("drop", "m", "--strategy", "symmetric", "--count", "4", "--protect", "2"): "layer 2, which is protected",
    ("drop", "m", "--strategy", "top", "--count", "1", "--score", "rsa"): "belongs to --strategy one-shot",
    ("drop", "m", "--strategy", "greedy", "--count", "1", "--scorer", "cat"): "scorer must contain {model}",
    ("compare", "m"): "there is nothing to compare",
    ("compare", "m", "--plan", "A0", "--report", "x.txt"): "ends in .json or .csv",
}


@pytest.mark.parametrize("arguments", REFUSED, ids=" ".join)
def test_what_cannot_be_done_is_one_line_and_nothing_is_written(
    arguments: tuple[str, ...], run: Run, place: Path
) -> None:
    before = sorted(place.rglob("*"))
    answer = run(*arguments)
    errors = [line for line in answer.err.splitlines() if line.startswith("edit-layers:")]
    assert answer.code in (1, 2)
    assert len(errors) == 1
    assert REFUSED[arguments] in errors[0]
    assert sorted(place.rglob("*")) == before


def test_the_place_of_a_mistake_has_a_caret(run: Run) -> None:
    lines = run("apply", "m", "--plan", "A[0-3], A[], B[5]").err.splitlines()
    assert lines[-2:] == ["  A[0-3], A[], B[5]", "  " + " " * 10 + "^"]


def test_a_full_disk_is_known_before(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Repeated layers take more room than the input did."""
    checkpoint = open_checkpoint("m")
    size = sum(tensor.nbytes for tensor in checkpoint.tensors.values())
    usage: Any = shutil._ntuple_diskusage(2 * size, size, size)  # type: ignore[attr-defined]
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    assert edit_layers(checkpoint, LayerPlan.keep(range(6)), place / "fits", dry_run=True).bytes == 0
    with pytest.raises(OutputError, match=f"has {size:,} bytes free, but this needs "):
        edit_layers(checkpoint, LayerPlan.keep([0, 1, 2, 3, 4, 5, 5]), place / "out", dry_run=True)


def test_a_full_disk_costs_the_report_of_a_comparison_and_not_its_table(
    run: Run, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path, *_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    words = ("compare", "m", "--plan", "A[0-4]", "--text", "text.txt", "--report", "r.csv", "-q")
    sound = run(*words)
    assert sound.code == 0
    assert (place / "r.csv").exists()  # the control
    monkeypatch.setattr("merge.disk.atomic.write_atomic", full)
    answer = run(*words)
    assert (answer.code, answer.err.count("\n")) == (1, 1)
    assert "r.csv cannot be written: [Errno 28] No space left on device" in answer.err
    assert "A[0-4]" in answer.out


def test_a_model_that_lacks_a_weight_is_refused_before_anything_is_written(place: Path) -> None:
    """A tensor of the kept layers is not in the file: from_pretrained would fill it with random numbers."""
    tensors = load_file(place / "m/model.safetensors")
    name = "bert.encoder.layer.{}.output.dense.bias"
    lacking = {key: tensor for key, tensor in tensors.items() if key != name.format(1)}
    save_file(lacking, place / "m/model.safetensors", metadata={"format": "pt"})
    with pytest.raises(
        CheckpointError, match=r"lacks 1 weights of its class .*: bert.encoder.layer.1.output.dense.bias"
    ):
        edit_layers(open_checkpoint("m"), LayerPlan.keep([1, 2]), place / "out")
    assert not (place / "out").exists()


def test_a_head_and_ties_are_kept(tmp_path: Path) -> None:
    """A masked language model's decoder is its embedding table, stored once before and after."""
    config = bert_config("BertForMaskedLM", num_hidden_layers=3)
    folder = save_checkpoint(tmp_path / "m", config, tensors=random_tensors(config, 1, torch.float32))
    edit_layers(open_checkpoint(str(folder)), LayerPlan.keep([2, 0]), tmp_path / "out")
    before, after = (stored_bytes(f / "model.safetensors") for f in (folder, tmp_path / "out"))
    assert after == expected_bytes(before, [2, 0])
    assert "cls.predictions.bias" in after
    assert "cls.predictions.decoder.weight" not in after


def test_help_is_light_and_shows_examples() -> None:
    """No torch, no transformers; each command's help has an example of it."""
    code = (
        "import sys\nfrom merge.commands.edit_layers import edit_command\n"
        "for words in ([], ['drop'], ['reorder'], ['stack']):\n"
        "    edit_command.main([*words, '--help'], standalone_mode=False)\n"
        "assert not {'torch', 'transformers', 'numpy', 'safetensors'} & set(sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=Path(__file__).parents[3])
    assert done.returncode == 0, done.stderr
    for name in ("drop", "reorder", "stack"):
        assert done.stdout.count(f"edit-layers {name} m/") >= 2


def test_a_note_that_two_steps_make_is_said_once(run: Run, store: Path, tmp_path: Path) -> None:
    """A search and a refit read one text, which is short: the control is the search alone, with the same note."""
    text = ("--text", str(store / "text.txt"))
    drop = ("drop", str(store / "m"), "--strategy", "block-influence", "--count", "1", *text)
    for name, more in (("plain", ()), ("refitted", ("--repair", "seam"))):
        assert run(*drop, *more, "-o", str(tmp_path / name)).code == 0
        notes = json.loads((tmp_path / name / "edit.json").read_text(encoding="utf-8"))["notes"]
        assert sum("the sample is small" in note for note in notes) == 1, name
