"""The recipe's JSON schema accepts what recipes may say, refuses what they may not, and is the file in recipes/."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from merge.errors import RecipeError
from merge.methods import METHODS
from merge.recipe.layer_recipe import LayerRecipe
from merge.recipe.recipe import Recipe, make_recipe
from merge.recipe.schema import described, recipe_schema, schema_text
from merge.text.source import Record

FILE = Path(__file__).parents[3] / "recipes" / "recipe.schema.json"
SCHEMA = recipe_schema()
VALIDATOR = jsonschema.Draft202012Validator(SCHEMA)


def faults(values: dict[str, Any]) -> str:
    return "\n".join(error.message for error in VALIDATOR.iter_errors(values))


def test_the_file_is_the_schema() -> None:
    """When it is not: python -m merge.recipe.schema recipes/recipe.schema.json."""
    assert FILE.read_text(encoding="utf-8") == schema_text()
    jsonschema.Draft202012Validator.check_schema(json.loads(schema_text()))


def test_the_module_writes_the_file_and_loads_nothing_heavy(tmp_path: Path) -> None:
    code = (
        "import runpy, sys; sys.argv = ['schema', sys.argv[1]]; runpy.run_module('merge.recipe.schema', "
        "run_name='__main__'); print(sorted({'torch', 'transformers', 'numpy'} & set(sys.modules)))"
    )
    target = tmp_path / "schema.json"
    done = subprocess.run([sys.executable, "-c", code, str(target)], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
    assert target.read_text(encoding="utf-8") == schema_text()


RIGHT: list[dict[str, Any]] = [
    {"models": ["a", "b"]},
    {"models": [{"model": "a", "weight": 2}, {"model": "b", "weight": {"gradient": [0, 1]}, "revision": "main"}]},
    {"models": ["a", "b"], "settings": {"normalize": False, "weights": [1, {"gradient": [0, 0.5]}]}},
    {"models": ["a", "b"], "method": "slerp", "settings": {"lam": {"gradient": [0, 1]}}},
    {"models": ["a", "b"], "method": "ties", "base": "c", "base_lacks": "average", "settings": {"density": [0.2, 0.5]}},
    {"models": ["a"], "method": "ties", "base": {"model": "c", "revision": "v1"}, "settings": {"trim": "tensor"}},
    {"models": ["a", "b"], "overrides": [{"tensors": "classifier.*", "settings": {"weights": [1, 0]}}]},
    {"models": ["a", "b"], "overrides": [{"tensors": ["a*", "b*"], "method": "slerp", "settings": {"lam": 0.1}}]},
    {"models": ["a"], "method": "passthrough", "slices": [{"layers": 3}, {"layers": "0-2", "settings": {"scale": 2}}]},
    {"models": ["a", "b"], "slices": "A[0-1], merge(A2, B2)"},
    {"models": ["a", "b"], "slices": ["A[0-1]", {"layers": "merge(A2, B2)", "method": "slerp"}]},
    {"models": ["a"], "method": "passthrough", "slices": [{"sources": [{"model": "a", "layers": 1}]}]},
    {"models": ["a", "b"], "align": {"by": "activations", "text": "t.txt", "text_column": ["a", "b"], "axes": "ffn"}},
    {"models": ["a", "b"], "statistics": {"samples": 3}, "tokenizer": "union", "dtype": "float64", "seed": 3},
    {"models": ["a", "b"], "evaluation": [{"task": "mnli", "limit": 10}], "out_dtype": "float16", "output": "x"},
]

# A recipe that no reader accepts, and a part of what the schema says of it.
WRONG: list[tuple[dict[str, Any], str]] = [
    ({}, "'models' is a required property"),
    ({"models": []}, "[] should be non-empty"),
    ({"models": ["a", "b"], "methd": "linear"}, "'methd' was unexpected"),
    ({"models": ["a", "b"], "method": "liner"}, "'liner' is not one of"),
    ({"models": ["a", {"model": "b", "weigth": 1}]}, "not valid under any of the given schemas"),
    ({"models": ["a", {"model": "b", "weight": "x"}]}, "not valid under any of the given schemas"),
    ({"models": ["a", "b"], "settings": {"lam": 0.5}}, "'lam' was unexpected"),
    ({"models": ["a", "b"], "method": "slerp", "settings": {"normalize": True}}, "'normalize' was unexpected"),
    ({"models": ["a", "b"], "method": "slerp", "settings": {"lam": "half"}}, "'half' is not valid"),
    ({"models": ["a", "b"], "method": "slerp", "settings": {"lam": {"gradient": []}}}, "is not valid under any"),
    ({"models": ["a", "b"], "settings": {"normalize": "no"}}, "'no' is not of type 'boolean'"),
    ({"models": ["a", "b"], "settings": {"weights": 2}}, "2 is not valid under any"),
    ({"models": ["a", "b"], "overrides": [{"settings": {}}]}, "'tensors' is a required property"),
    (
        {"models": ["a", "b"], "overrides": [{"tensors": "*", "method": "slerp", "settings": {"normalize": True}}]},
        "'normalize' was unexpected",
    ),
    ({"models": ["a", "b"], "method": "ties"}, "'base' is a required property"),
    ({"models": ["a", "b"], "slices": [{"layers": "0-1", "sources": []}]}, "is not valid under any of the given schemas"),
    ({"models": ["a", "b"], "slices": [{}]}, "is not valid under any of the given schemas"),
    ({"models": ["a", "b"], "slices": []}, "[] is not valid under any"),
    ({"models": ["a", "b"], "align": {"by": "activation"}}, "'activation' is not one of"),
    ({"models": ["a", "b"], "align": {"samples": 0, "by": "weights"}}, "0 is less than or equal to the minimum of 0"),
    ({"models": ["a", "b"], "base_lacks": "drop", "method": "ties", "base": "c"}, "'drop' is not valid under any"),
    ({"models": ["a", "b"], "out_dtype": "int8"}, "'int8' is not valid under any"),
    ({"models": ["a", "b"], "seed": -1}, "-1 is less than the minimum"),
    ({"models": ["a", "b"], "evaluation": [{"limit": 3}]}, "'task' is a required property"),
]  # fmt: skip


@pytest.mark.parametrize("values", RIGHT)
def test_what_a_recipe_may_say_fits(values: dict[str, Any]) -> None:
    """The reader takes it too: the schema is no wider here."""
    make_recipe(values)
    assert faults(values) == ""


@pytest.mark.parametrize(("values", "expected"), WRONG)
def test_what_a_recipe_may_not_say_does_not_fit(values: dict[str, Any], expected: str) -> None:
    """The reader refuses it too: the schema is no narrower here."""
    with pytest.raises(RecipeError):
        make_recipe(values)
    assert expected in faults(values)


@pytest.mark.parametrize("name", METHODS)
def test_every_setting_of_a_method_is_there_with_its_default_and_what_it_means(name: str) -> None:
    settings = SCHEMA["$defs"][f"settings of {name}"]
    fields = {field.name: field.default for field in dataclasses.fields(METHODS[name])}
    assert {key: part["default"] for key, part in settings["properties"].items()} == fields
    assert settings["description"] == str(METHODS[name].__doc__).splitlines()[0]
    for key, part in settings["properties"].items():
        assert part["description"].strip(), key
        own = {"models": ["a", "b"], "base": "c", "method": name, "settings": {key: part["default"]}}
        assert faults(own) == ""
        assert "was unexpected" in faults({**own, "settings": {key + "x": part["default"]}})


def test_every_key_of_the_recipe_is_in_the_schema() -> None:
    """Keys of nested records too; the records are found by themselves, so that a new one cannot be forgotten.

    A recipe of layers is a file of its own, of `edit-layers`.
    """
    schema = SCHEMA
    assert schema["properties"].keys() == Recipe.model_fields.keys()
    records = [record for record in Record.__subclasses__() if record not in (Recipe, LayerRecipe)]
    assert len(records) >= 8
    for record in records:
        assert schema["$defs"][record.__name__]["properties"].keys() == record.model_fields.keys()


def test_descriptions_are_read_from_docstrings() -> None:
    class Documented:
        """Return it.

        Attributes:
            one: first line
                and second.
            two, three: both.
        Source: nowhere.
        """

    assert described(Documented) == {"one": "first line and second.", "two": "both.", "three": "both."}
    assert described(type("Empty", (), {"__doc__": "Nothing."})) == {}
