"""The battery every recipe in recipes/ faces: it opens with its own command, and it runs and does what it says."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path

import jsonschema
import pytest
import torch
from safetensors.torch import load_file
from tiny import NLI, WORDS, bert_config, empty_cache, save_checkpoint, save_tokenizer, write_text
from torch import Tensor

from merge.methods import WEIGHED
from merge.recipe.read import read_any
from merge.recipe.recipe import Recipe, make_recipe, read_recipe
from merge.run.run import run

FOLDER = Path(__file__).parents[2] / "recipes"
RECIPES = sorted([*FOLDER.glob("*.yaml"), *FOLDER.glob("*.yml")])
BY_NAME = {path.stem: path for path in RECIPES}
ABOUT = """\
align ties task_arithmetic dare_ties gradient frankenmerge fisher regmean model_stock union_tokenizer encoder_only mergekit
greedy_soup cocktail multi_task embedding_models auto learned universe
"""


def tensors(folder: Path) -> dict[str, Tensor]:
    return load_file(folder / "model.safetensors")


def written(recipe: Recipe, folder: Path) -> Path:
    """Return the folder of the first model that a recipe writes; with heads: keep-all each model has one of its own."""
    output = folder / recipe.output
    return output / Path(recipe.models[0].model).name if recipe.heads == "keep-all" else output


def make_inputs(recipe: Recipe, folder: Path) -> None:
    """Write tiny models, the base and the text under the names that the recipe uses.

    Recipes with slices are about BERTs of twelve layers. A base is a pretrained model, without a classifier. Where
    vocabularies are united each model has a word of its own.
    """
    layers = 12 if recipe.slices is not None else 1 if recipe.align.by in SLOW else 3
    for seed, entry in enumerate(recipe.models):
        own = recipe.tokenizer == "union"
        words = [*WORDS, f"word{seed}"] if own else WORDS
        config = bert_config(num_hidden_layers=layers, vocab_size=5 + len(words))
        save_checkpoint(folder / entry.model, config, seed=seed, tokenizer=not own)
        if own:
            save_tokenizer(folder / entry.model, words)
    if recipe.base is not None:
        save_checkpoint(folder / recipe.base.model, bert_config("BertModel", num_hidden_layers=layers), seed=99)
    own = {entry.statistics.text for entry in recipe.models if entry.statistics is not None}
    for text in {recipe.align.text, recipe.statistics.text, *own} - {None}:
        write_text(folder / str(text))
    if recipe.method in WEIGHED:
        write_labelled(folder)


def write_labelled(folder: Path) -> None:
    """Write labelled pairs, and an evaluate-models that answers at once: half of them right, whatever the model."""
    rows = [{"premise": f"the {WORDS[k]} saw", "hypothesis": "a doctor", "label": NLI[k % 3]} for k in range(9)]
    (folder / "labelled.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    command = folder / "bin" / "evaluate-models"
    command.parent.mkdir()
    command.write_text('#!/bin/sh\necho \'[{"task": "mnli", "scores": {"accuracy": 0.5}}]\'\n', encoding="utf-8")
    command.chmod(0o755)


def ran(name: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Recipe, dict[str, Tensor]]:
    """Run a recipe in a folder on tiny models; return it and what it wrote."""
    monkeypatch.chdir(folder)
    monkeypatch.setenv("MERGE_MODELS_CACHE", str(empty_cache(folder / "cache")))
    recipe, _ = read_any(BY_NAME[name])
    if recipe.align.by != "none":  # the texts and steps that tiny models need
        few = {"samples": 32, **({"steps": 10} if recipe.align.by == "learned" else {})}
        recipe = recipe.model_copy(update={"align": recipe.align.model_copy(update=few)})
    monkeypatch.setenv("PATH", str(folder / "bin"), prepend=os.pathsep)
    make_inputs(recipe, folder)
    run(recipe)
    return recipe, tensors(written(recipe, folder))


def test_the_recipes_are_all_here() -> None:
    """A battery over an empty folder would pass on nothing."""
    assert set(ABOUT.split()) <= set(BY_NAME)
    assert len(RECIPES) >= 14


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.name)
def test_a_recipe_opens_with_its_command_and_says_what_it_shows(path: Path) -> None:
    first, second = path.read_text(encoding="utf-8").splitlines()[:2]
    assert first == f"# merge-models --recipe recipes/{path.name}"
    assert second.startswith("# ")
    assert second.endswith(".")
    assert len(second) <= 150


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.name)
def test_a_recipe_fits_the_schema_that_editors_check_it_with(path: Path) -> None:
    """mergekit's file is no recipe of ours, and fits it as little as it should."""
    from merge.recipe.yaml_document import read_document

    schema = json.loads((FOLDER / "recipe.schema.json").read_text(encoding="utf-8"))
    fits = jsonschema.Draft202012Validator(schema).is_valid(read_document(path)[0])
    assert fits == (path.suffix == ".yaml")


# These search for an alignment for seconds; `make check` runs them.
SLOW = ("auto", "learned", "universe")


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow if name in SLOW else ()) for name in BY_NAME]
)
def test_a_recipe_runs_on_tiny_models(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What it writes is none of the models, and the recipe beside it is the recipe that was run, found weights filled in."""
    recipe, merged = ran(name, tmp_path, monkeypatch)
    for entry in recipe.models:
        own = tensors(tmp_path / entry.model)
        assert any(n not in own or own[n].shape != t.shape or not torch.equal(own[n], t) for n, t in merged.items())
    again = read_recipe(written(recipe, tmp_path) / "recipe.yaml")
    found = {key: v for key, v in again.settings.items() if key == "weights" and recipe.method in WEIGHED}
    assert len(found) == (recipe.method in WEIGHED)
    filled = recipe.model_copy(update={"settings": {**recipe.settings, **found}})
    assert again == filled
    assert recipe == make_recipe(recipe.model_dump(exclude_unset=True))


def named(parts: Mapping[str, Tensor], *words: str) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in parts.items() if all(word in name for word in words)}


def test_frankenmerge_holds_eight_layers_of_a_and_six_of_b(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bit for bit: embeddings and the lower eight layers are a's, the others and the head are b's."""
    _, merged = ran("frankenmerge", tmp_path, monkeypatch)
    a, b = tensors(tmp_path / "a"), tensors(tmp_path / "b")
    made = {i: named(merged, f"encoder.layer.{i}.") for i in range(15)}
    assert [len(part) for part in made.values()] == [len(made[0])] * 14 + [0]
    for i in range(14):
        origin, layer = (a, i) if i < 8 else (b, i - 2)
        for name, tensor in made[i].items():
            assert torch.equal(tensor, origin[name.replace(f"layer.{i}.", f"layer.{layer}.")])
    assert all(torch.equal(tensor, a[name]) for name, tensor in named(merged, "embeddings").items())
    assert torch.equal(merged["classifier.weight"], b["classifier.weight"])
    config = json.loads((tmp_path / "stacked" / "config.json").read_text(encoding="utf-8"))
    assert config["num_hidden_layers"] == 14


def test_encoder_only_keeps_the_classifier_of_a(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, merged = ran("encoder_only", tmp_path, monkeypatch)
    a, b = tensors(tmp_path / "a"), tensors(tmp_path / "b")
    for name, tensor in merged.items():
        if name.startswith("classifier."):
            assert torch.equal(tensor, a[name])
        else:
            assert torch.allclose(tensor, (a[name] + b[name]) / 2, atol=1e-7)
            assert not torch.equal(tensor, a[name])


def test_task_arithmetic_takes_away_what_b_learned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """base + 0.4 ((a - base) - (b - base)) = base + 0.4 (a - b); the head, which the base lacks, is the reference's."""
    _, merged = ran("task_arithmetic", tmp_path, monkeypatch)
    a, b, base = (tensors(tmp_path / name) for name in ("a", "b", "base"))
    for name, tensor in merged.items():
        if name.startswith("classifier."):
            assert torch.equal(tensor, a[name])
        else:
            expected = base[name.removeprefix("bert.")] + 0.4 * (a[name] - b[name])
            assert torch.allclose(tensor, expected, atol=1e-6)


def test_union_tokenizer_knows_the_words_of_both(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A word that only one model has keeps that model's embedding; words of both are averaged."""
    _, merged = ran("union_tokenizer", tmp_path, monkeypatch)
    words = json.loads((tmp_path / "united" / "tokenizer.json").read_text(encoding="utf-8"))["model"]["vocab"]
    key = "bert.embeddings.word_embeddings.weight"
    a, b = tensors(tmp_path / "a")[key], tensors(tmp_path / "b")[key]
    assert len(words) == len(merged[key]) == len(a) + 1
    assert torch.allclose(merged[key][words["word0"]], a[-1], atol=1e-6)
    assert torch.allclose(merged[key][words["word1"]], b[-1], atol=1e-6)
    assert torch.allclose(merged[key][words["doctor"]], (a[words["doctor"]] + b[words["doctor"]]) / 2, atol=1e-6)
