"""The Python API: live models, folders and their mixtures give the same bytes; models given are not changed."""

from __future__ import annotations

import copy
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file
from sentence import needs_library, save_sentence
from tiny import bert_config, save_checkpoint, write_text
from torch import Tensor

import merge
from merge.checkpoints.inputs import load_tokenizer
from merge.errors import CheckpointError, MergeError, MismatchError, OutputError, UsageError
from merge.run.results import WrittenModel
from merge.symmetry.architectures import spec_for
from merge.symmetry.permutation import apply, random, restrict

SENTENCES = ["the doctor saw a lawyer .", "a lawyer quietly helped the doctor .", "who saw the river ."] * 70


@pytest.fixture
def folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Path]:
    monkeypatch.chdir(tmp_path)
    a = save_checkpoint(tmp_path / "a", seed=0)
    return a, plant(a, tmp_path / "b")


def plant(source: Path, target: Path) -> Path:
    """Write a checkpoint near the source's, in another order of units: aligning it moves units."""
    opened = merge.load(source)
    spec = spec_for(opened.config)
    p = random(spec, opened.shapes, torch.Generator().manual_seed(1))
    noise = torch.Generator().manual_seed(2)
    near = {n: t + 0.01 * torch.randn(t.shape, generator=noise) for n, t in opened.state_dict().items()}
    moved = apply(spec, restrict(p, set(p.indices) - spec.named), near)
    return save_checkpoint(target, opened.config, tensors={opened.written_name(n): t for n, t in moved.items()})


def live(folder: Path) -> Any:
    return transformers.AutoModelForSequenceClassification.from_pretrained(folder)


def weights(model: Path | WrittenModel) -> dict[str, Tensor]:
    return load_file((model if isinstance(model, Path) else model.folder) / "model.safetensors")


def equal(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize(
    "options",
    [
        {},
        pytest.param({"align": {"by": "weights", "samples": 32}}, marks=pytest.mark.slow),
        {"method": "slerp", "lam": 0.3},
        {"weights": [3, 1]},
    ],
)
def test_live_models_merge_as_their_folders_do(folders: tuple[Path, Path], options: dict[str, Any]) -> None:
    """Bit for bit, and mixed as well; another setting gives other weights (negative control)."""
    a, b = folders
    expected = weights(merge.merge([a, b], **options))
    assert equal(weights(merge.merge([live(a), live(b)], **options)), expected)
    assert equal(weights(merge.merge([live(a), str(b)], **options)), expected)
    assert equal(weights(merge.merge([merge.load(a), live(b)], **options)), expected)
    assert not equal(weights(merge.merge([a, b], method="slerp", lam=0.45)), expected)


@pytest.mark.slow
def test_the_function_writes_what_the_command_writes(folders: tuple[Path, Path], tmp_path: Path) -> None:
    """All files but the card and the records that name the output are equal to the last byte."""
    from click.testing import CliRunner

    from merge.commands.merge_models import merge_command

    a, b = folders
    arguments = [str(a), str(b), "--align", "weights", "--seed", "3", "-o", str(tmp_path / "by-command")]
    assert CliRunner().invoke(merge_command, arguments).exit_code == 0
    merge.merge([a, b], align="weights", seed=3, output=tmp_path / "by-function")
    files = {path.name for path in (tmp_path / "by-command").iterdir()}
    assert files == {path.name for path in (tmp_path / "by-function").iterdir()}
    same = files - {"README.md", "merge.json", "recipe.yaml"}
    assert {"model.safetensors", "config.json", "transform.safetensors"} <= same
    for name in same:
        assert (tmp_path / "by-command" / name).read_bytes() == (tmp_path / "by-function" / name).read_bytes(), name


@pytest.mark.slow
def test_the_models_given_are_not_changed(folders: tuple[Path, Path]) -> None:
    """Weights, config, mode and gradients; `save_pretrained` by itself changes the config (negative control)."""
    a, b = map(live, folders)
    a.train()
    a.config.dtype, a.config.architectures = None, None
    before = copy.deepcopy(a.state_dict()), a.config.to_dict(), a.training
    merge.merge([a, b], align="weights")
    assert equal(a.state_dict(), before[0])
    assert (a.config.to_dict(), a.training) == before[1:]
    a.save_pretrained(folders[0].parent / "saved")
    assert a.config.to_dict() != before[1]


def test_the_result_is_a_live_model_of_the_same_class(folders: tuple[Path, Path]) -> None:
    a, b = folders
    merged = merge.merge([live(a), b])
    assert type(merged.model) is transformers.BertForSequenceClassification
    expected = {name: (weights(a)[name] + weights(b)[name]) / 2 for name in weights(a)}
    assert all(torch.allclose(merged.model.state_dict()[name], expected[name], atol=1e-7) for name in expected)
    assert merged.model is merged.model  # loaded once


def test_weights_and_settings_reach_the_merge(folders: tuple[Path, Path]) -> None:
    """Weights 3 and 1 give (3 a + b) / 4, in the dtype that is asked for; not the plain average (negative control)."""
    a, b = folders
    merged = merge.merge([live(a), b], weights=[3, 1], heads="reference", dtype="float64", out_dtype="float64", seed=5)
    recipe = merged.report.recipe
    assert (recipe.heads, recipe.dtype, recipe.out_dtype, recipe.seed) == ("reference", "float64", "float64", 5)
    name = "bert.embeddings.word_embeddings.weight"
    left, right, result = (weights(model)[name].double() for model in (a, b, merged))
    assert weights(merged)[name].dtype == torch.float64
    assert torch.allclose(result, (3 * left + right) / 4, atol=1e-12)
    assert not torch.allclose(result, (left + right) / 2, atol=1e-3)


@pytest.mark.slow
def test_text_in_memory_is_text_in_a_file(folders: tuple[Path, Path], tmp_path: Path) -> None:
    """Sentences, pairs and rows: the alignment they give is that of a file with the same lines."""
    a, b = folders
    file = tmp_path / "lines.txt"
    file.write_text("".join(f"{line}\n" for line in SENTENCES))
    expected = weights(merge.merge([a, b], align="activations", text=file))
    for text in (SENTENCES, [{"text": line} for line in SENTENCES]):
        assert equal(weights(merge.merge([a, b], align="activations", text=text)), expected)
    pairs = [(line, line) for line in SENTENCES]
    by_pairs = merge.merge([a, b], align="activations", text=pairs)
    assert "text_a + text_b" in str(by_pairs.report.rebased.calibration)


@pytest.mark.slow
def test_a_live_model_reads_text_with_the_tokenizer_it_is_given(folders: tuple[Path, Path]) -> None:
    a, b = folders
    expected = weights(merge.merge([a, b], align="activations", text=SENTENCES))
    pair = [(live(folder), load_tokenizer(folder)) for folder in folders]
    assert equal(weights(merge.merge(pair, align="activations", text=SENTENCES)), expected)
    without = [live(folder) for folder in folders]
    for model in without:
        model.config.name_or_path = ""
        model.name_or_path = ""
    with pytest.raises(MergeError, match="BertForSequenceClassification-1 has no tokenizer"):
        merge.merge(without, align="activations", text=SENTENCES)


@pytest.mark.slow
def test_a_live_model_reads_text_with_the_tokenizer_of_the_folder_it_came_from(folders: tuple[Path, Path]) -> None:
    """The notes say so."""
    merged = merge.merge(map_live(folders), align="activations", text=SENTENCES)
    assert equal(weights(merged), weights(merge.merge(folders, align="activations", text=SENTENCES)))
    assert f"its tokenizer is that of {folders[0]}" in " ".join(merged.notes)


def test_a_method_with_a_base(folders: tuple[Path, Path], tmp_path: Path) -> None:
    base = save_checkpoint(tmp_path / "base", seed=9)
    options = {"method": "ties", "density": 0.5}
    expected = weights(merge.merge(folders, base=base, **options))
    assert equal(weights(merge.merge(map_live(folders), base=live(base), **options)), expected)


def map_live(folders: tuple[Path, Path]) -> list[Any]:
    return [live(folder) for folder in folders]


def test_a_recipe_is_run_as_the_command_runs_it(folders: tuple[Path, Path], tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("models: [a, b]\nmethod: slerp\nsettings: {lam: 0.3}\noutput: out\n")
    merged = merge.merge(recipe=recipe)
    assert equal(weights(merged), weights(merge.merge(folders, method="slerp", lam=0.3)))
    assert not (tmp_path / "out").exists()  # nothing is written unless asked
    merge.merge(recipe=recipe, output="out")
    assert (tmp_path / "out" / "model.safetensors").exists()
    with pytest.raises(UsageError, match="recipe holds the whole run"):
        merge.merge(folders, recipe=recipe)


def test_save_writes_whole_folders_and_overwrites_none(folders: tuple[Path, Path], tmp_path: Path) -> None:
    merged = merge.merge(folders)
    assert merged.checkpoint.source == "merged"  # not the path of the workspace
    assert merge.merge(folders, output=tmp_path / "named").checkpoint.source == str(tmp_path / "named")
    out = merged.save(tmp_path / "out")
    assert equal(weights(out), weights(merged))
    assert type(live(out)) is transformers.BertForSequenceClassification
    with pytest.raises(OutputError, match="exists"):
        merged.save(out)
    merged.save(out, force=True)


def test_the_workspace_goes_away_with_the_result(folders: tuple[Path, Path]) -> None:
    merged = merge.merge(folders)
    folder = merged.folder
    assert folder.is_dir()
    del merged
    assert not folder.exists()


def test_keep_all_gives_a_folder_for_each_model(folders: tuple[Path, Path], tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "b", bert_config(labels=("yes", "no")), seed=1)
    merged = merge.merge(folders, heads="keep-all")
    assert list(merged.folders) == ["a", "b"]
    assert all((folder / "config.json").is_file() for folder in merged.folders.values())
    with pytest.raises(UsageError, match="wrote 2 models"):
        _ = merged.model


@pytest.mark.slow
def test_an_aligned_model_is_the_same_function_in_the_others_order(folders: tuple[Path, Path]) -> None:
    """Outputs agree to rounding, weights do not; merging the aligned model equals merging with alignment."""
    a, b = folders
    aligned = merge.align(live(b), to=a, by="weights")
    ids = torch.tensor([[2, 5, 7, 9, 3]])
    with torch.no_grad():
        assert torch.allclose(aligned.model(ids).logits, live(b)(ids).logits, atol=1e-5)
    assert not equal(weights(aligned), weights(b))
    assert not aligned.transform.is_identity
    assert aligned.proof.error <= aligned.proof.bound
    assert aligned.quality is not None
    merged = merge.merge([a, aligned.checkpoint])
    together = merge.merge([a, b], align="weights")
    pairs = zip(weights(merged).values(), weights(together).values(), strict=True)
    assert all(torch.allclose(x, y, atol=1e-6) for x, y in pairs)


def test_edit_keeps_drops_and_picks_layers(folders: tuple[Path, Path], tmp_path: Path) -> None:
    """The kept layer's weights are the input's; a strategy picks as its command does."""
    a, _ = folders
    edited = merge.edit(live(a), "1")
    assert edited.model.config.num_hidden_layers == 1
    source, result = weights(a), weights(edited)
    name = "bert.encoder.layer.{}.output.dense.weight"
    assert torch.equal(result[name.format(0)], source[name.format(1)])
    assert equal(weights(merge.edit(a, drop="0")), result)
    assert equal(weights(merge.edit(a, strategy="bottom", count=1)), result)
    measured = merge.edit(a, strategy="contribution", count=1, text=write_text(tmp_path / "text.txt"))
    assert measured.report.importance is not None
    for wrong in ({}, {"layers": "0", "drop": "1"}):
        with pytest.raises(UsageError, match="give one of layers"):
            merge.edit(a, **wrong)
    with pytest.raises(UsageError, match="belong together"):
        merge.edit(a, strategy="top")


@needs_library
def test_live_sentence_transformers_go_in_and_come_out(tmp_path: Path) -> None:
    """Embeddings of the result are those of the folders' merge; the models given embed as before."""
    from sentence_transformers import SentenceTransformer

    a, b = (save_sentence(tmp_path / name, seed=seed) for seed, name in enumerate("ab"))
    models = [SentenceTransformer(str(folder), device="cpu") for folder in (a, b)]
    before = models[0].encode(SENTENCES[:3])
    merged = merge.merge(models)
    folders_merge = merge.merge([a, b])
    by_folder = SentenceTransformer(str(folders_merge.folder), device="cpu")
    assert type(merged.model) is SentenceTransformer
    assert (merged.model.encode(SENTENCES[:3]) == by_folder.encode(SENTENCES[:3])).all()
    assert (models[0].encode(SENTENCES[:3]) == before).all()
    assert not (merged.model.encode(SENTENCES[:3]) == before).all()


@pytest.mark.slow
def test_results_show_themselves_as_text_html_and_json(folders: tuple[Path, Path]) -> None:
    """A notebook shows a table; names with markup in them are shown as text."""
    import json

    merged = merge.merge(folders, align="weights")
    html = merged._repr_html_()
    assert "BertForSequenceClassification" in html
    assert str(folders[1]) in html
    assert json.loads(json.dumps(merged.to_json()))["method"] == "linear"
    assert "proof" in str(merged)
    assert merged.plot().axes
    edited = merge.edit(folders[0], "0")
    assert "2 layers -> 1" in str(edited)
    with pytest.raises(UsageError, match="nothing was matched"):
        merge.merge(folders).plot()


def test_bad_input_is_one_clear_line(folders: tuple[Path, Path], tmp_path: Path) -> None:
    a, b = folders
    other = save_checkpoint(tmp_path / "c", bert_config(hidden_size=32), seed=1)
    with pytest.raises(UsageError, match="no models given"):
        merge.merge([])
    with pytest.raises(UsageError, match="expected a list of models"):
        merge.merge(str(a))
    with pytest.raises(CheckpointError, match="no such folder"):
        merge.merge([a, "nowhere"])
    with pytest.raises(MismatchError):
        merge.merge([a, other])
    with pytest.raises(UsageError, match="expected a folder, a Hub id"):
        merge.merge([a, torch.nn.Linear(2, 2)])
    with pytest.raises(UsageError, match="Did you mean 'ties'"):
        merge.merge([a, b], method="tie")
    with pytest.raises(UsageError, match="no setting 'densty'"):
        merge.merge([a, b], base=a, method="ties", densty=0.2)
    with pytest.raises(UsageError, match="text 0: expected a sentence"):
        merge.merge([a, b], align="activations", text=[3])
    with pytest.raises(UsageError, match="found none"):
        merge.merge([a, b], align="activations", text=[])
    with pytest.raises(UsageError, match="align moves one model"):
        merge.align(b, to=a, by="learned", both=True)
    with pytest.raises(AttributeError, match="Public names: MergeError"):
        _ = merge.merged


def test_the_import_is_light() -> None:
    """`import merge` reads no heavy library, nor do its public names by themselves."""
    program = (
        "import sys, merge, evals; assert callable(merge.merge) and merge.__version__; "
        "print(sorted({'torch', 'transformers', 'numpy', 'matplotlib'} & {*sys.modules}))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
