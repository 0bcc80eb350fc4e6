"""Read a recipe file: one of ours, or a mergekit configuration."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from merge.recipe.recipe import Recipe, validated
from merge.recipe.yaml_document import read_document

# Keys that our recipes do not have: a file with one of them and without `method` is a mergekit configuration. They are
# listed, since importing what reads such files would double the time of an error in a recipe of ours.
ONLY_MERGEKIT = frozenset({"base_model", "chat_template", "merge_method", "modules", "parameters", "tokenizer_source"})


def is_mergekit(values: Mapping[str, Any]) -> bool:
    """Return whether a YAML mapping is a mergekit configuration instead of our recipe."""
    return "merge_method" in values or ("method" not in values and not ONLY_MERGEKIT.isdisjoint(values))


def read_any(path: Path) -> tuple[Recipe, tuple[str, ...]]:
    """Read a recipe or mergekit configuration, and return it with a warning for every difference from mergekit.

    Raises:
        RecipeError: each fault as file:line:column: message.
    """
    values, root = read_document(path)
    if not is_mergekit(values):
        return validated(values, path, root), ()
    from merge.recipe.mergekit.convert import recipe_of_mergekit

    return recipe_of_mergekit(values, path, root)
