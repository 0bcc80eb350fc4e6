"""The battery every recipe in recipes/ faces: it opens with its own command, and it runs."""

from __future__ import annotations

from pathlib import Path

import pytest
from safetensors.torch import load_file
from tiny import save_checkpoint, write_text

from merge.recipe import make_recipe, read_recipe
from merge.run import run

RECIPES = sorted((Path(__file__).parents[2] / "recipes").glob("*.yaml"))


def test_there_are_recipes() -> None:
    """A battery over an empty folder would pass on nothing."""
    assert len(RECIPES) >= 3


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.name)
def test_a_recipe_opens_with_its_command_and_says_what_it_shows(path: Path) -> None:
    first, second = path.read_text(encoding="utf-8").splitlines()[:2]
    assert first == f"# merge-models --recipe recipes/{path.name}"
    assert second.startswith("# ")
    assert second.endswith(".")


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.name)
def test_a_recipe_runs_on_tiny_models(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With tiny models under the names it uses, and text under the name it uses; what it writes is a merge of all of them."""
    monkeypatch.chdir(tmp_path)
    recipe = read_recipe(path)
    for seed, entry in enumerate(recipe.models):
        save_checkpoint(tmp_path / entry.model, seed=seed)
    if recipe.align.text is not None:
        write_text(tmp_path / recipe.align.text)
    run(recipe)
    merged = load_file(tmp_path / recipe.output / "model.safetensors")
    for entry in recipe.models:
        assert (
            load_file(tmp_path / entry.model / "model.safetensors")["classifier.weight"] != merged["classifier.weight"]
        ).any()
    written = read_recipe(tmp_path / recipe.output / "recipe.yaml")
    assert written == recipe == make_recipe(recipe.model_dump(exclude_unset=True))
