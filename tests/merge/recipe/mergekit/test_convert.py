"""mergekit's files as recipes: what each says here, derived by hand, every warning and every refusal with its place."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import pytest
import yaml

from merge.errors import RecipeError
from merge.methods import METHODS, OTHER_NAMES, OTHER_SETTINGS
from merge.recipe.gradient import value_at
from merge.recipe.mergekit.counterparts import ALL_PARAMETERS, COUNTERPARTS, PAST_KEYS
from merge.recipe.mergekit.document import Document
from merge.recipe.mergekit.parameters import stretched
from merge.recipe.read import ONLY_MERGEKIT, is_mergekit, read_any
from merge.recipe.recipe import Recipe, make_recipe, read_recipe


def written(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "merge.yml"
    path.write_text(text, encoding="utf-8")
    return path


def converted(tmp_path: Path, text: str) -> Recipe:
    return read_any(written(tmp_path, text))[0]


def warnings(tmp_path: Path, text: str) -> str:
    return "\n".join(read_any(written(tmp_path, text))[1])


def of_models(method: str, parameters: str = "{}", base: str | None = "base", **per_model: str) -> str:
    """Return a mergekit file of models a, b (and others named), with their parameters in YAML."""
    own = {"a": "{weight: 1}", "b": "{weight: 1}"} | per_model
    lines = ["models:", *(f"  - {{model: {name}, parameters: {text}}}" for name, text in own.items())]
    lines += [f"merge_method: {method}", *([f"base_model: {base}"] if base else []), f"parameters: {parameters}"]
    return "\n".join(lines) + "\n"


def slerp(t: str, more: str = "") -> str:
    return f"models: [{{model: a}}, {{model: b}}]\nmerge_method: slerp\nbase_model: a\nparameters: {{t: {t}}}\n{more}"


PLAIN = slerp("0.5")
# mergekit's slerp in our words.
LINE = {"line_above": 0.9995, "zeros": "orthogonal"}
SLICED = """\
slices:
  - sources: [{model: a, layer_range: [0, 2]}]
  - sources: [{model: b, layer_range: [1, 3]}, {model: a, layer_range: [2, 4]}]
merge_method: linear
parameters: {weight: 1}
"""

# mergekit's document -> the recipe it is, written down by hand from mergekit's documentation of both sides.
SAME: dict[str, tuple[str, dict[str, Any]]] = {
    "linear": (
        of_models("linear", "{normalize: false}", base=None, a="{weight: 0.3}", b="{weight: 2}"),
        {
            "models": [{"model": "a", "weight": 0.3}, {"model": "b", "weight": 2}],
            "method": "linear",
            "settings": {"normalize": False},
        },
    ),
    "linear, where the base is one of the models": (
        of_models("linear", "{weight: 2}", base="base", a="{weight: 1}", b="{weight: 3}"),
        {
            "models": [{"model": "base", "weight": 2}, {"model": "a", "weight": 1}, {"model": "b", "weight": 3}],
            "method": "linear",
        },
    ),
    "slerp, whose base is the end at 0": (
        "models: [{model: a}, {model: b}]\nmerge_method: slerp\nbase_model: b\nparameters: {t: 0.25}",
        {"models": ["b", "a"], "method": "slerp", "settings": {"lam": 0.25, **LINE}},
    ),
    "slerp, whose base is not listed": (
        "models: [{model: a}]\nmerge_method: slerp\nbase_model: b\nparameters: {t: 0.25}",
        {"models": ["b", "a"], "method": "slerp", "settings": {"lam": 0.25, **LINE}},
    ),
    "nearswap": (
        "models: [{model: a}]\nmerge_method: nearswap\nbase_model: b\nparameters: {t: 0.01}",
        {"models": ["b", "a"], "method": "nearswap", "settings": {"t": 0.01}},
    ),
    "arcee_fusion": (
        "models: [{model: a}, {model: b}]\nmerge_method: arcee_fusion\nbase_model: b",
        {
            "models": ["a"],
            "method": "arcee_fusion",
            "settings": {"arithmetic": "tensor", "as_stored": True},
            "base": "b",
        },
    ),
    "task arithmetic, a negative weight, lambda": (
        of_models("task_arithmetic", "{lambda: 0.7}", b="{weight: -0.5}"),
        {
            "models": [{"model": "a", "weight": 1}, {"model": "b", "weight": -0.5}],
            "method": "task_arithmetic",
            "settings": {"scale": 0.7},
            "base": "base",
        },
    ),
    "ties without density keeps everything": (
        of_models("ties"),
        {
            "models": [{"model": "a", "weight": 1}, {"model": "b", "weight": 1}],
            "method": "ties",
            "settings": {"density": 1.0, "trim": "tensor", "exact_count": True},
            "base": "base",
        },
    ),
    "ties, where the base is listed too": (
        of_models("ties", a="{weight: 1, density: 0.5}", b="{weight: 1, density: 0.2}", base="{}"),
        {},
    ),
    "dare_linear": (
        of_models("dare_linear", "{density: 0.4}"),
        {
            "models": [{"model": "a", "weight": 1}, {"model": "b", "weight": 1}],
            "method": "dare_linear",
            "settings": {"density": 0.4, "rescale": "l1"},
            "base": "base",
        },
    ),
    "dare_ties sums by default": (
        of_models("dare_ties", "{density: 0.4, rescale: false}"),
        {
            "models": [{"model": "a", "weight": 1}, {"model": "b", "weight": 1}],
            "method": "dare_ties",
            "settings": {"density": 0.4, "normalize": False, "rescale": "none"},
            "base": "base",
        },
    ),
    "della": (
        of_models("della", "{density: 0.4, epsilon: 0.1}"),
        {
            "models": [{"model": "a", "weight": 1}, {"model": "b", "weight": 1}],
            "method": "della",
            "settings": {"density": 0.4, "epsilon": 0.1, "rescale": "l1", "as_stored": True},
            "base": "base",
        },
    ),
    "della, where a model is kept whole": (
        of_models("della", a="{weight: 1, density: 0.4}"),
        {
            "models": [{"model": "a", "weight": 1}, {"model": "b", "weight": 1}],
            "method": "della",
            "settings": {"density": [0.4, 1.0], "epsilon": [0.15, 0.0], "rescale": "l1", "as_stored": True},
            "base": "base",
        },
    ),
    "della_linear": (
        of_models("della_linear", "{density: 0.5}"),
        {
            "models": [{"model": "a", "weight": 1}, {"model": "b", "weight": 1}],
            "method": "della",
            "settings": {"normalize": False, "rescale": "l1", "elect": False, "as_stored": True},
            "base": "base",
        },
    ),
    "breadcrumbs": (
        of_models("breadcrumbs", "{density: 0.9, gamma: 0.02}"),
        {
            "models": [{"model": "a", "weight": 1}, {"model": "b", "weight": 1}],
            "method": "breadcrumbs",
            "settings": {"density": 0.9, "gamma": 0.02, "exact_count": True},
            "base": "base",
        },
    ),
    "breadcrumbs_ties": (
        of_models("breadcrumbs_ties", "{density: 0.9}"),
        {
            "models": [{"model": "a", "weight": 1}, {"model": "b", "weight": 1}],
            "method": "breadcrumbs",
            "settings": {"density": 0.9, "elect": True, "exact_count": True},
            "base": "base",
        },
    ),
    "sce": (
        "models: [{model: a}, {model: b}]\nmerge_method: sce\nbase_model: base\nparameters: {select_topk: 0.1}",
        {
            "models": ["a", "b"],
            "method": "sce",
            "settings": {"select": 0.1, "exact_count": True, "floor": 1e-6},
            "base": "base",
        },
    ),
    "model_stock": (
        "models: [{model: a}, {model: b}]\nmerge_method: model_stock\nbase_model: base\nparameters: {filter_wise: true}",
        {
            "models": ["a", "b"],
            "method": "model_stock",
            "settings": {"filter_wise": True, "floor": 1e-6, "as_stored": True},
            "base": "base",
        },
    ),
    "nuslerp of rows, with a base": (
        of_models("nuslerp", "{nuslerp_flatten: false}", b="{weight: 3}"),
        {
            "models": [{"model": "a", "weight": 1}, {"model": "b", "weight": 3}],
            "method": "nuslerp",
            "settings": {"vectors": "rows", "as_stored": True},
            "base": "base",
        },
    ),
    "nuslerp of columns, without a base": (
        of_models("nuslerp", "{nuslerp_flatten: false, nuslerp_row_wise: true}", base=None),
        {
            "models": [{"model": "a", "weight": 1}, {"model": "b", "weight": 1}],
            "method": "nuslerp",
            "settings": {"vectors": "columns", "as_stored": True},
        },
    ),
    "nuslerp as it is": (
        of_models("nuslerp", "{nuslerp_row_wise: true}", base=None),
        {"models": [{"model": "a", "weight": 1}, {"model": "b", "weight": 1}], "method": "nuslerp"},
    ),
    "multislerp": (
        of_models("multislerp", "{normalize_weights: false}", base=None),
        {
            "models": [{"model": "a", "weight": 1}, {"model": "b", "weight": 1}],
            "method": "multislerp",
            "settings": {"normalize": False},
        },
    ),
    "karcher": (
        "models: [{model: a}, {model: b}]\nmerge_method: karcher",
        {
            "models": ["a", "b"],
            "method": "karcher",
            "settings": {"max_iter": 10, "tol": 1e-5, "arithmetic": "tensor"},
        },
    ),
    "ram": (
        "models: [{model: a}, {model: b}]\nmerge_method: ram\nbase_model: base\nparameters: {epsilon: 0.001}",
        {"models": ["a", "b"], "method": "ram", "settings": {"epsilon": 0.001}, "base": "base"},
    ),
    "ramplus_tl": (
        "models: [{model: a}, {model: b}]\nmerge_method: ramplus_tl\nbase_model: base\nparameters: {r: 0.2, alpha: 0.3}",
        {"models": ["a", "b"], "method": "ramplus_tl", "settings": {"r": 0.2, "alpha": 0.3}, "base": "base"},
    ),
    "passthrough of slices": (
        "slices: [{sources: [{model: a, layer_range: [0, 3]}]}, {sources: [{model: b, layer_range: [2, 3]}]}]\n"
        "merge_method: passthrough",
        {
            "models": ["a", "b"],
            "method": "passthrough",
            "slices": [
                {"sources": [{"model": "a", "layers": "0-2"}]},
                {"sources": [{"model": "b", "layers": "2"}]},
            ],
        },
    ),
    "passthrough with a scale for one kind of tensor": (
        "slices: [{sources: [{model: a, layer_range: [0, 3], parameters: "
        "{scale: [{filter: output.dense, value: 0.5}, {value: 1}]}}]}]\nmerge_method: passthrough",
        {
            "models": ["a"],
            "method": "passthrough",
            "slices": [{"sources": [{"model": "a", "layers": "0-2"}]}],
            "overrides": [{"tensors": "*output.dense*", "settings": {"scale": 0.5}}],
        },
    ),
    "slices of other models have settings of their own": (
        SLICED,
        {
            "models": ["a", "b"],
            "method": "linear",
            "slices": [
                {"sources": [{"model": "a", "layers": "0-1"}], "method": "passthrough"},
                {
                    "sources": [{"model": "b", "layers": "1-2"}, {"model": "a", "layers": "2-3"}],
                    "settings": {"weights": [1, 1]},
                },
            ],
        },
    ),
    "revisions": (
        "models: [{model: org/a@v1}, {model: b}]\nmerge_method: model_stock\nbase_model: org/base@main",
        {
            "models": [{"model": "org/a", "revision": "v1"}, "b"],
            "method": "model_stock",
            "settings": {"floor": 1e-6},
            "base": {"model": "org/base", "revision": "main"},
        },
    ),
    "gradients": (
        of_models("ties", a="{weight: 1, density: [1, 0.7, 0.1]}", b="{weight: [0, 0.3, 1], density: 0.5}"),
        {
            "models": [{"model": "a", "weight": 1}, {"model": "b", "weight": {"gradient": [0, 0.3, 1], "outside": 0}}],
            "method": "ties",
            "settings": {
                "density": [{"gradient": [1, 0.7, 0.1], "outside": 1}, 0.5],
                "trim": "tensor",
                "exact_count": True,
            },
            "base": "base",
        },
    ),
    "a gradient of one point is a number": (
        slerp("[0.25]"),
        {"models": ["a", "b"], "method": "slerp", "settings": {"lam": 0.25, **LINE}},
    ),
    "filters: mergekit's first is our last": (
        slerp("[{filter: self, value: [0, 1]}, {filter: output, value: 0.3}, {value: 0.4}]"),
        {
            "models": ["a", "b"],
            "method": "slerp",
            "settings": {"lam": 0.4, **LINE},
            "overrides": [
                {"tensors": "*output*", "settings": {"lam": 0.3}},
                {"tensors": "*self*", "settings": {"lam": {"gradient": [0, 1], "outside": 0}}},
            ],
        },
    ),
    "ties, rescaled": (
        of_models("ties", "{density: 0.4, rescale: true}"),
        {
            "models": [{"model": "a", "weight": 1}, {"model": "b", "weight": 1}],
            "method": "ties",
            "settings": {"density": 0.4, "trim": "tensor", "exact_count": True, "rescale": "l1"},
            "base": "base",
        },
    ),
    "the filter * is every tensor": (
        slerp('[{filter: "*", value: 0.4}]'),
        {"models": ["a", "b"], "method": "slerp", "settings": {"lam": 0.4, **LINE}},
    ),
    "one condition without a list": (
        slerp("{filter: null, value: 0.4}"),
        {"models": ["a", "b"], "method": "slerp", "settings": {"lam": 0.4, **LINE}},
    ),
    "a filter of one model": (
        of_models("task_arithmetic", b="{weight: [{filter: mlp, value: 0.5}, {value: 0}]}"),
        {
            "models": [{"model": "a", "weight": 1}, {"model": "b", "weight": 0}],
            "method": "task_arithmetic",
            "overrides": [{"tensors": "*mlp*", "settings": {"weights": [1, 0.5]}}],
            "base": "base",
        },
    ),
    "dtype is that of the output too": (
        slerp("0.2", "dtype: float32"),
        {
            "models": ["a", "b"],
            "method": "slerp",
            "settings": {"lam": 0.2, **LINE},
            "dtype": "float32",
            "out_dtype": "float32",
        },
    ),
    "dtype and out_dtype": (
        slerp("0.2", "dtype: torch.float64\nout_dtype: bfloat16"),
        {
            "models": ["a", "b"],
            "method": "slerp",
            "settings": {"lam": 0.2, **LINE},
            "dtype": "float64",
            "out_dtype": "bfloat16",
        },
    ),
    "half precision": (
        slerp("0.2", "dtype: bfloat16"),
        {"models": ["a", "b"], "method": "slerp", "settings": {"lam": 0.2, **LINE}, "out_dtype": "bfloat16"},
    ),
    "tokenizer_source: union": (
        slerp("0.2", "tokenizer_source: union"),
        {"models": ["a", "b"], "method": "slerp", "settings": {"lam": 0.2, **LINE}, "tokenizer": "union"},
    ),
    "tokenizer of a base that is one of the models": (
        slerp("0.2", "tokenizer: {source: base}"),
        {"models": ["a", "b"], "method": "slerp", "settings": {"lam": 0.2, **LINE}, "tokenizer": "a"},
    ),
    "tokenizer of a base that is none of them": (
        of_models("model_stock", a="{}", b="{}") + "tokenizer_source: base\n",
        {
            "models": ["a", "b"],
            "method": "model_stock",
            "settings": {"floor": 1e-6},
            "base": "base",
            "tokenizer": "base",
        },
    ),
    "tokenizer of a model": (
        slerp("0.2", "tokenizer_source: b"),
        {"models": ["a", "b"], "method": "slerp", "settings": {"lam": 0.2, **LINE}, "tokenizer": "b"},
    ),
}
SAME["ties, where the base is listed too"] = (
    of_models("ties", "{density: 0.5}", base="b"),
    {
        "models": [{"model": "a", "weight": 1}],
        "method": "ties",
        "settings": {"density": 0.5, "trim": "tensor", "exact_count": True},
        "base": "b",
    },
)


@pytest.mark.parametrize("name", SAME)
def test_a_mergekit_file_is_this_recipe(name: str, tmp_path: Path) -> None:
    """And our own YAML of it reads back to the same record, as the output folder's recipe.yaml must."""
    text, expected = SAME[name]
    recipe = converted(tmp_path, text)
    assert recipe == make_recipe(expected)
    assert recipe.output == "merged"
    (tmp_path / "recipe.yaml").write_text(recipe.to_yaml(), encoding="utf-8")
    assert read_any(tmp_path / "recipe.yaml") == (recipe, ())


def test_every_method_of_mergekit_is_in_the_table() -> None:
    """The negative control of the table: a method without a document would be converted unseen."""
    asked = {yaml.safe_load(text)["merge_method"] for text, _ in SAME.values()}
    assert asked == set(COUNTERPARTS)


def test_every_counterpart_names_settings_that_its_method_has() -> None:
    """Names in a table drift from the dataclasses they name; nuslerp's two flags are turned into one of its own."""
    for name, counterpart in COUNTERPARTS.items():
        fields = {field.name for field in dataclasses.fields(METHODS[counterpart.method])}
        named = {p.setting for p in counterpart.parameters if p.setting} | set(counterpart.settings)
        assert named - fields <= ({"flatten", "columns"} if name == "nuslerp" else set()), name


# --- precedence -----------------------------------------------------------------------------------------------------

NAMES = [
    f"bert.encoder.layer.{i}.{part}"
    for i in range(3)
    for part in (
        "attention.self.query.weight",
        "attention.output.dense.bias",
        "output.dense.weight",
        "output.LayerNorm.bias",
    )
] + ["bert.embeddings.word_embeddings.weight", "classifier.weight"]


def looked_up(scopes: list[Any], name: str) -> Any:
    """Return the value of a parameter by mergekit's rule: nearest scope first, in it the first filter that matches."""
    for scope in scopes:
        for rule in scope if isinstance(scope, list) else [{"value": scope}]:
            if rule.get("filter") in (None, "*") or rule["filter"] in name:
                return rule["value"]
    raise AssertionError(f"no value for {name}")


def ours(recipe: Recipe, key: str, name: str) -> Any:
    """Return a setting by our rule: the recipe's, then every override that matches, the last one counts."""
    weights = [entry.weight for entry in recipe.models]
    value = weights if key == "weights" and None not in weights else recipe.settings.get(key)
    for override in recipe.overrides:
        if any(fnmatchcase(name, pattern) for pattern in override.tensors):
            value = override.settings.get(key, value)
    return value


FILTERS = {
    "disjoint": [{"filter": "attention", "value": 1.0}, {"filter": "embeddings", "value": 2.0}, {"value": 3.0}],
    "crossing": [{"filter": "output", "value": 1.0}, {"filter": "attention", "value": 2.0}, {"value": 3.0}],
    "crossing the other way": [
        {"filter": "attention", "value": 1.0},
        {"filter": "output", "value": 2.0},
        {"value": 3.0},
    ],
    "the narrow one first": [
        {"filter": "output.dense", "value": 1.0},
        {"filter": "output", "value": 2.0},
        {"value": 3.0},
    ],
    "the narrow one never counts": [
        {"filter": "output", "value": 1.0},
        {"filter": "output.dense", "value": 2.0},
        {"value": 3.0},
    ],
    "one layer": [
        {"filter": "layer.1.", "value": 1.0},
        {"filter": "bias", "value": 2.0},
        {"filter": "*", "value": 3.0},
    ],
    "all through": [{"filter": f"layer.{i}.", "value": i + 1.0} for i in range(3)] + [{"value": 9.0}],
}


@pytest.mark.parametrize("filters", FILTERS)
def test_overrides_choose_as_mergekits_filters_do(filters: str, tmp_path: Path) -> None:
    """For every tensor of a BERT, by both rules written out."""
    rules = FILTERS[filters]
    text = of_models(
        "linear", yaml.safe_dump({"weight": rules}, default_flow_style=True).strip(), base=None, a="{}", b="{}"
    )
    recipe = converted(tmp_path, text)
    found = [ours(recipe, "weights", name) for name in NAMES]
    assert found == [[looked_up([rules], name)] * 2 for name in NAMES]
    assert found != [[looked_up([list(reversed(rules[:-1])) + rules[-1:]], name)] * 2 for name in NAMES] or filters in (
        "disjoint",
        "all through",
    )
    assert "follows only" not in warnings(tmp_path, text)


def test_a_models_own_parameters_go_before_the_files(tmp_path: Path) -> None:
    """A model's filters go first; where none of them matches the file's are asked."""
    own, shared = [{"filter": "attention", "value": 1.0}], [{"filter": "output", "value": 2.0}, {"value": 3.0}]
    text = of_models(
        "linear",
        "{weight: [{filter: output, value: 2.0}, {value: 3.0}]}",
        base=None,
        a="{weight: [{filter: attention, value: 1.0}]}",
        b="{}",
    )
    recipe = converted(tmp_path, text)
    for name in NAMES:
        expected = [looked_up([own, shared], name), looked_up([shared], name)]
        if "attention" in name and "output" in name:  # the case that the warning is about
            assert expected == [1.0, 2.0]
            assert ours(recipe, "weights", name) == [1.0, 3.0]
        else:
            assert ours(recipe, "weights", name) == expected
    assert "contains 'output' and 'attention' follows only 'attention'" in warnings(tmp_path, text)


def test_a_slices_parameters_go_between_its_sources_and_the_files(tmp_path: Path) -> None:
    text = """\
slices:
  - sources: [{model: a, layer_range: [0, 2], parameters: {weight: 5}}, {model: b, layer_range: [0, 2]}]
    parameters: {weight: 4, normalize: false}
  - sources: [{model: a, layer_range: [2, 4]}, {model: b, layer_range: [2, 4]}]
merge_method: linear
parameters: {weight: 3}
"""
    first, second = converted(tmp_path, text).slices or ()
    assert first.settings == {"weights": [5, 4], "normalize": False}
    assert second.settings == {"weights": [3, 3]}


def test_a_slice_of_one_source_is_a_copy(tmp_path: Path) -> None:
    """A weighted mean of one is itself, whatever the weight; a weighted sum is not."""
    text = SLICED.replace("{weight: 1}", "{weight: 0.5}")
    assert [part.settings for part in converted(tmp_path, text).slices or ()] == [{}, {"weights": [0.5, 0.5]}]
    text = SLICED.replace("{weight: 1}", "{weight: 0.5, normalize: false}")
    first, second = converted(tmp_path, text).slices or ()
    assert (first.method, first.settings) == ("passthrough", {"scale": 0.5})
    assert (second.method, second.settings) == (None, {"weights": [0.5, 0.5], "normalize": False})


def test_one_slice_is_the_whole_recipe(tmp_path: Path) -> None:
    """Most files of slerp are written so; their filters become overrides as those of models do."""
    text = """\
slices:
  - sources: [{model: a, layer_range: [0, 4]}, {model: b, layer_range: [0, 4]}]
    parameters: {t: [{filter: self, value: 0.1}, {value: 0.2}]}
merge_method: slerp
base_model: b
parameters: {t: 0.9}
"""
    recipe = converted(tmp_path, text)
    assert [entry.model for entry in recipe.models] == ["b", "a"]
    assert recipe.settings == {"lam": 0.2, **LINE}
    assert [(o.tensors, o.settings) for o in recipe.overrides] == [(("*self*",), {"lam": 0.1})]
    assert recipe.slices is not None
    assert recipe.slices[0].settings == {}
    assert [(s.model, s.layers) for s in recipe.slices[0].sources or ()] == [("b", "0-3"), ("a", "0-3")]


def test_filters_of_a_slice_hold_in_that_slice(tmp_path: Path) -> None:
    """As mergekit-evolve writes them: every slice with filters and values of its own."""
    text = """\
slices:
  - sources:
      - {model: a, layer_range: [0, 2], parameters: {weight: [{filter: self, value: 0.3}, {value: 0.1}]}}
      - {model: b, layer_range: [0, 2], parameters: {weight: 1}}
  - sources:
      - {model: a, layer_range: [2, 4], parameters: {weight: [{filter: output, value: 0.5}, {value: 0.2}]}}
      - {model: b, layer_range: [2, 4], parameters: {weight: 1}}
merge_method: linear
"""
    recipe = converted(tmp_path, text)
    first, second = recipe.slices or ()
    assert (first.settings, second.settings) == ({"weights": [0.1, 1]}, {"weights": [0.2, 1]})
    assert [(o.tensors, o.settings) for o in first.overrides] == [(("*self*",), {"weights": [0.3, 1]})]
    assert [(o.tensors, o.settings) for o in second.overrides] == [(("*output*",), {"weights": [0.5, 1]})]
    assert recipe.overrides == ()


# What mergekit reads as one thing, written as other tools write it.
WRITTEN_OTHERWISE = {
    "flags as numbers": (of_models("ties", "{int8_mask: 1.0, normalize: 1.0}"), of_models("ties", "{normalize: true}")),
    "flags as text": (of_models("ties", '{normalize: "yes"}'), of_models("ties", "{normalize: true}")),
    "a flag for every layer": (of_models("ties", "{normalize: [true, true]}"), of_models("ties", "{normalize: true}")),
    "numbers as text": (slerp('"0.5"'), PLAIN),
    "a mapping for a model": (
        PLAIN.replace("{model: b}", "{model: {model: {path: b, revision: null}, lora: null}}"),
        PLAIN,
    ),
    "a mapping for the base": (PLAIN.replace("base_model: a", "base_model: {model: {path: a}}"), PLAIN),
    "a mapping with a revision": (
        PLAIN.replace("{model: b}", "{model: {model: {path: b, revision: v1}}}"),
        PLAIN.replace("{model: b}", "{model: b@v1}"),
    ),
    "the module of a model that has one": (
        "modules: {default: {models: [{model: a}, {model: b}]}}\nmerge_method: karcher",
        "models: [{model: a}, {model: b}]\nmerge_method: karcher",
    ),
    "slices in a module": (
        "modules: {default: {"
        + SLICED.splitlines()[0]
        + " ["
        + ", ".join(line.strip().removeprefix("- ").join("{}") for line in SLICED.splitlines()[1:3])
        + "]}}\nmerge_method: linear\nparameters: {weight: 1}",
        SLICED,
    ),
    "parameters of a module": (
        "modules: {default: {models: [{model: a}, {model: b}], parameters: {weight: 2}}}\n"
        "merge_method: linear\nparameters: {weight: 1}",
        "models: [{model: a}, {model: b}]\nmerge_method: linear\nparameters: {weight: 2}",
    ),
    "the method again in a slice": (
        SLICED.replace("- sources: [{model: b", "- merge_method: linear\n    sources: [{model: b"),
        SLICED,
    ),
}


@pytest.mark.parametrize("name", WRITTEN_OTHERWISE)
def test_one_meaning_is_one_recipe_however_it_is_written(name: str, tmp_path: Path) -> None:
    otherwise, plainly = WRITTEN_OTHERWISE[name]
    assert converted(tmp_path, otherwise) == converted(tmp_path, plainly)


def test_a_gradient_may_begin_at_a_density_of_zero(tmp_path: Path) -> None:
    recipe = converted(tmp_path, of_models("ties", a="{weight: 1, density: [0, 1]}"))
    assert recipe.settings["density"] == [{"gradient": [0, 1], "outside": 0}, 1.0]


def test_a_linear_merge_of_one_model_is_a_copy(tmp_path: Path) -> None:
    recipe = converted(tmp_path, "models: [{model: a, parameters: {weight: 3}}]\nmerge_method: linear")
    assert (recipe.method, recipe.settings) == ("passthrough", {})
    recipe = converted(
        tmp_path,
        of_models("linear", "{normalize: false}", None, a="{weight: 3}").replace(
            "  - {model: b, parameters: {weight: 1}}\n", ""
        ),
    )
    assert (recipe.method, recipe.settings) == ("passthrough", {"scale": 3})


@pytest.mark.parametrize("offset", [0, 2, 5])
def test_a_gradient_over_a_slice_has_its_values_at_the_layers_of_the_slice(offset: int) -> None:
    """mergekit starts every slice anew at the first value; ours runs from the first layer of the model to its last."""
    points, length, total = [0.2, 1.0, 0.4], 4, 9
    setting = stretched([{"gradient": points}, 0.7], offset, length, total)
    assert setting[1] == 0.7
    for i in range(length):
        mergekit = value_at({"gradient": points}, i / (length - 1))
        assert value_at(setting[0], (offset + i) / (total - 1)) == pytest.approx(mergekit, abs=1e-12)
    assert value_at({"gradient": points}, (offset + 1) / (total - 1)) != pytest.approx(
        value_at({"gradient": points}, 1 / (length - 1)), abs=1e-3
    )
    assert stretched({"gradient": points}, offset, 1, total) == 0.4
    assert stretched({"gradient": points}, 0, 0, 0) == {"gradient": points}
    outside = {"gradient": points, "outside": 0.2}
    assert stretched(outside, offset, length, total)["outside"] == 0.2
    assert stretched(outside, offset, 1, total) == {"gradient": [0.4], "outside": 0.2}


# --- warnings -------------------------------------------------------------------------------------------------------

WARNED: list[tuple[str, str, str]] = [
    # what is said, the file that is told so, and one that is not
    ("random masks differ", of_models("dare_ties", "{density: 0.5}"), of_models("dare_ties")),
    ("random masks differ", of_models("della_linear", "{density: 0.5}"), of_models("della_linear")),
    ("models weigh alike in tensors", of_models("sce", a="{}", b="{}"), PLAIN),
    ("drifts towards one of them", of_models("karcher", base=None, a="{}", b="{}"), PLAIN),
    ("mergekit samples a million", "models: [{model: a}]\nmerge_method: arcee_fusion\nbase_model: b", PLAIN),
    ("dtype bfloat16: only the result is rounded", slerp("0.5", "dtype: bfloat16"), slerp("0.5", "dtype: float32")),
    (
        "merged in float32; mergekit by default computes in their dtype",
        of_models("ties"),
        of_models("ties") + "dtype: float32\n",
    ),
    ("merged in float32; mergekit by default computes in their dtype", of_models("ties"), PLAIN),
    ("int8_mask is left out", of_models("ties", "{int8_mask: true}"), of_models("ties")),
    ("eps is left out", of_models("multislerp", "{eps: 1e-9}", None), of_models("ties")),
    ("density is left out", of_models("task_arithmetic", "{density: 0.5}"), of_models("task_arithmetic")),
    ("normalize is not a parameter of slerp", slerp("0.5, normalize: true"), PLAIN),
    ("normalize of a is left out", of_models("linear", base=None, a="{weight: 1, normalize: true}"), PLAIN),
    ("weight of b is left out: a base_model has no task vector", of_models("ties", base="b"), of_models("ties")),
    ("items after a value for all tensors", slerp("[{value: 0.5}, {filter: self, value: 1}]"), PLAIN),
    ("filter 'self*query' is left out", slerp("[{filter: self*query, value: 1}, {value: 0.5}]"), PLAIN),
    ("chat_template auto is left out", slerp("0.5", "chat_template: auto"), PLAIN),
    ("chat_template chatml is left out", slerp("0.5", "chat_template: chatml"), PLAIN),
    ("chat_template text is left out", slerp("0.5", 'chat_template: "{{ messages[0].content }}"'), PLAIN),
    ("name is left out: mergekit 0.1.5 does not read it", slerp("0.5", "name: mine"), PLAIN),
    ("allow_negative_weights is left out", slerp("0.5", "allow_negative_weights: true"), PLAIN),
    ("smooth is left out: mergekit 0.1.5 has no such", of_models("sce", "{smooth: false}", a="{}", b="{}"), PLAIN),
    ("a union of WordPiece", slerp("0.5", "tokenizer_source: union"), slerp("0.5", "tokenizer_source: b")),
    ("rows of the embedding table that no token names", slerp("0.5", "tokenizer_source: b"), PLAIN),
    ("a token that a model lacks", slerp("0.5", "tokenizer_source: b"), PLAIN),
    (
        "filters 'layer.3.' use layer numbers of the result",
        "slices: [{sources: [{model: a, layer_range: [2, 4], parameters: "
        "{scale: [{filter: layer.3., value: 0.5}, {value: 1}]}}]}]\nmerge_method: passthrough",
        "slices: [{sources: [{model: a, layer_range: [0, 4], parameters: "
        "{scale: [{filter: layer.3., value: 0.5}, {value: 1}]}}]}]\nmerge_method: passthrough",
    ),
    ("in mergekit from the base_model", of_models("ties"), PLAIN),
    ("from an arbitrary model", of_models("linear", base=None), PLAIN),
    ("labels are matched by name", PLAIN, "models: [a, b]"),
]


@pytest.mark.parametrize(("said", "told", "not_told"), WARNED)
def test_a_difference_is_named_where_there_is_one(said: str, told: str, not_told: str, tmp_path: Path) -> None:
    """Once, in one line; and not where the file gives no reason for it."""
    assert sum(said in line for line in warnings(tmp_path, told).splitlines()) == 1
    assert said not in warnings(tmp_path, not_told)


def test_filters_of_one_list_need_no_warning(tmp_path: Path) -> None:
    """A tensor that holds two of them follows the first in both tools; two lists with other filters may not agree."""
    one = slerp("[{filter: self, value: 0.1}, {filter: query, value: 0.2}, {value: 0.3}]")
    assert "follows only" not in warnings(tmp_path, one)
    two = of_models(
        "linear",
        base=None,
        a="{weight: [{filter: self, value: 0.1}, {value: 1}]}",
        b="{weight: [{filter: query, value: 0.2}, {value: 1}]}",
    )
    assert "follows only" in warnings(tmp_path, two)


# --- refusals -------------------------------------------------------------------------------------------------------

REFUSED: list[tuple[str, str, str]] = [
    ("merge_method: liner\nmodels: [{model: a}]", "1:1", "unknown mergekit method 'liner'. Did you mean 'linear'?"),
    ("models: [{model: a}]\nbase_model: b", "1:1", "merge_method: is required"),
    (PLAIN + "out_dtpye: float16", "5:1", "out_dtpye: unknown key. Did you mean 'out_dtype'?"),
    ("models:\n  - {model: a, wieght: 1}\nmerge_method: linear", "2:16", "unknown key. Known: model, parameters."),
    (
        "slices:\n  - sources: [{model: a, layer_rnage: [0, 1]}]\nmerge_method: passthrough",
        "2:15",
        "layer_rnage: unknown key. Did you mean 'layer_range'?",
    ),
    ("slices: [{sources: []}]\nmerge_method: linear", "1:11", "a slice needs sources"),
    ("slices:\n  - source: []\nmerge_method: passthrough", "2:5", "source: unknown key. Did you mean 'sources'?"),
    (PLAIN + "tokenizer: {soruce: union}", "5:13", "unknown key. Did you mean 'source'?"),
    (of_models("ties", "{densitty: 0.5}"), "6:14", "no parameter 'densitty'. Did you mean 'density'?"),
    (slerp("[{fitler: self, value: 1}]"), "4:19", "unknown key 'fitler'. Did you mean 'filter'?"),
    (slerp("[{filter: self}]"), "4:18", "expected {filter: ..., value: ...}"),
    (slerp("[{filter: 3, value: 1}]"), "4:19", "a filter must be text"),
    (slerp("[0, {value: 1}]"), "4:18", "expected {filter: ..., value: ...}, found 0"),
    (slerp("[]"), "4:14", "a gradient is a list of finite numbers, found []"),
    (slerp("[0, yes]"), "4:14", "a gradient is a list of finite numbers"),
    (slerp("half"), "4:14", "t must be a finite number, found 'half'"),
    (slerp(".nan"), "4:14", "t must be a finite number, found nan"),
    (slerp("true"), "4:14", "t must be a finite number, found True"),
    (slerp("1.5"), "4:1", "lam must be a number from 0 to 1, found 1.5"),
    (slerp("[{filter: self, value: 0.5}]"), "4:14", "t is required for the tensors that no filter matches"),
    (
        of_models("linear", "{normalize: [true, false]}", None),
        "5:14",
        "normalize must be true or false, the same for all",
    ),
    (of_models("linear", "{normalize: 2}", None), "5:14", "normalize must be true or false"),
    (of_models("linear", base=None, b="{}"), "3:16", "weight of b is required"),
    (
        "modules: {text: {models: [{model: a}]}, vision: {models: [{model: b}]}}\nmerge_method: linear",
        "1:1",
        "modules text, vision: parts of a model merged separately have no counterpart",
    ),
    ("modules: {default: {}}\nmerge_method: linear", "1:11", "give either models or slices"),
    (
        "modules: {default: {models: [{model: a}]}}\nmodels: [{model: a}]\nmerge_method: linear",
        "1:1",
        "give either models, slices or modules",
    ),
    (
        "slices:\n  - merge_method: slerp\n    sources: [{model: a, layer_range: [0, 1]}]\nmerge_method: passthrough",
        "2:5",
        "mergekit takes no method of a slice",
    ),
    (PLAIN + "---\n" + PLAIN, "5:1", "a second document begins here; a file holds one recipe"),
    (
        "models: [{model: {model: {path: a}, override_architecture: B}}]\nmerge_method: linear",
        "1:11",
        "override_architecture has no counterpart",
    ),
    ("merge_method: linear", "1:1", "give either models or slices"),
    (PLAIN + "slices: [{sources: [{model: a, layer_range: [0, 1]}]}]", "5:1", "give either models or slices"),
    ("models: [{model: a+lora}]\nmerge_method: linear", "1:11", "LoRA adapter (model+lora); merge it into its model"),
    ("models: [{model: a@b@c}]\nmerge_method: linear", "1:11", "'a@b@c' is not a model"),
    ('models: [{model: "a@"}]\nmerge_method: linear', "1:11", "'a@' is not a model"),
    ("models: [{model: {path: a}}]\nmerge_method: linear", "1:11", "expected a model: text, or the mapping"),
    ("models: [{model: 3}]\nmerge_method: linear", "1:11", "expected text"),
    ("models: [{model: a}, {model: a}]\nmerge_method: karcher", "1:22", "a is listed twice among the models"),
    ("models: [{model: a}, {model: b}]\nmerge_method: slerp\nparameters: {t: 1}", "2:1", "slerp needs a base_model"),
    ("models: [{model: a}]\nmerge_method: ties\nbase_model: a", "1:10", "the base_model is the only model"),
    (
        "models: [{model: a}, {model: b}, {model: c}]\nmerge_method: slerp\nbase_model: a\nparameters: {t: 1}",
        "4:1",
        "exactly two",
    ),
    (PLAIN + "dtype: int8", "5:1", "unknown dtype 'int8'. Known: bfloat16, float16, float32, float64."),
    (PLAIN + "out_dtype: flaot16", "5:1", "unknown dtype 'flaot16'. Did you mean 'float16'?"),
    (PLAIN + "tokenizer: {source: base, tokens: {x: {source: a}}}", "5:27", "tokenizer.tokens has no counterpart"),
    (
        PLAIN + "tokenizer: {source: base, pad_to_multiple_of: 8}",
        "5:27",
        "tokenizer.pad_to_multiple_of has no counterpart",
    ),
    (PLAIN + "tokenizer: {source: a}\ntokenizer_source: a", "5:1", "mean the same"),
    (PLAIN + "tokenizer_source: c", "5:1", "tokenizer 'c' is not one of the models"),
    (of_models("linear", base=None) + "tokenizer_source: base", "6:1", "tokenizer base needs a base_model"),
    (SLICED.replace("[0, 2]", "[2, 2]"), "2:26", "[2, 2] contains no layer"),
    (SLICED.replace("[2, 4]", "[2, 5]"), "3:59", "3 layers, but the slice's first source has 2"),
    (SLICED.replace("[0, 2]", "[0, 1.5]"), "2:43", "expected a whole number"),
    (SLICED.replace("model: b", "model: a@v2"), "3:15", "a is listed with two revisions"),
    (
        SLICED.replace("sources: [{model: a", "residual_weight: 1\n    sources: [{model: a"),
        "2:5",
        "residual_weight has no",
    ),
    (
        SLICED.replace("sources: [{model: a", "base_model: c\n    sources: [{model: a"),
        "2:5",
        "a slice with another base_model",
    ),
    (
        SLICED.replace("linear", "ties\nbase_model: a"),
        "2:15",
        "the base_model is the only model",
    ),
    (
        SLICED.replace("linear", "ties\nbase_model: c"),
        "2:15",
        "base_model c is not among the sources of this slice",
    ),
    (
        "slices: [{sources: [{model: b, layer_range: [1, 3]}, {model: a, layer_range: [2, 4]}]}]\n"
        "merge_method: ties\nbase_model: a",
        "1:21",
        "task vectors between different layers",
    ),
    (
        SLICED.replace("linear", "passthrough").replace("{weight: 1}", "{scale: [{filter: x, value: 1}, {value: 2}]}"),
        "4:1",
        "passthrough takes exactly one model, found 2",
    ),
    (
        of_models(
            "linear",
            base=None,
            a="{weight: [{filter: x, value: 1}, {filter: y, value: 2}, {value: 3}]}",
            b="{weight: [{filter: y, value: 1}, {filter: x, value: 2}, {value: 3}]}",
        ),
        "5:1",
        "filters 'x', 'y' have different orders in two lists",
    ),
]


@pytest.mark.parametrize(("text", "where", "expected"), REFUSED)
def test_what_has_no_counterpart_is_refused_with_its_place(
    text: str, where: str, expected: str, tmp_path: Path
) -> None:
    path = written(tmp_path, text)
    with pytest.raises(RecipeError) as raised:
        read_any(path)
    assert str(raised.value).startswith(f"{path}:{where}: ")
    assert expected in str(raised.value)


def test_all_faults_of_form_are_in_one_message(tmp_path: Path) -> None:
    path = written(tmp_path, PLAIN + "normalise: true\nout_dtpye: float16\n")
    with pytest.raises(RecipeError) as raised:
        read_any(path)
    assert [line.split(": ")[1] for line in str(raised.value).splitlines()] == ["normalise", "out_dtpye"]


# --- which file is whose --------------------------------------------------------------------------------------------


def test_a_recipe_of_ours_is_read_as_it_was(tmp_path: Path) -> None:
    path = written(tmp_path, "models: [a, b]\nmethod: slerp\nsettings: {lam: 0.3}\n")
    assert read_any(path) == (read_recipe(path), ())
    bad = written(tmp_path, "models: [a, b]\nmethod: slerp\nbase_model: a\n")
    with pytest.raises(RecipeError, match="base_model: unknown key"):
        read_any(bad)


def test_reading_a_mergekit_file_loads_nothing_heavy(tmp_path: Path) -> None:
    """A fault in a recipe is told at once, before torch and transformers are imported."""
    path = written(tmp_path, PLAIN)
    code = (
        "import sys; from pathlib import Path; from merge.recipe.read import read_any; read_any(Path(sys.argv[1])); "
        "print(sorted({'torch', 'transformers', 'numpy'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_a_file_is_mergekits_by_its_keys() -> None:
    """The list of its keys is what its record has, and neither ours nor our older files."""
    assert frozenset(Document.model_fields) - frozenset(Recipe.model_fields) - PAST_KEYS == ONLY_MERGEKIT
    assert is_mergekit({"merge_method": "linear", "models": []})
    assert is_mergekit({"models": [], "base_model": "a"})
    assert not is_mergekit({"models": ["a"], "method": "linear", "base_model": "a"})
    assert not is_mergekit({"models": ["a"], "slices": [], "dtype": "float32", "tokenizer": "union"})
    assert {"merge_method", "base_model", "tokenizer_source", "parameters"} <= set(Document.model_fields)
    assert {"weight", "density", "t", "lambda", "int8_mask"} <= ALL_PARAMETERS


def test_mergekits_names_of_methods_and_settings_are_known_as_advice() -> None:
    """Whoever types the name of a mergekit file as a flag is told the name here: that of the counterpart."""
    for name, counterpart in COUNTERPARTS.items():
        if name not in METHODS:
            method, _, setting = OTHER_NAMES[name].partition(" with ")
            key, _, value = setting.partition("=")
            assert (method, counterpart.settings[key]) == (counterpart.method, value == "true"), name
    theirs = {
        p.name: p.setting for c in COUNTERPARTS.values() for p in c.parameters if p.kind == "number" and p.setting
    }
    renamed = {name: ours for name, ours in theirs.items() if name != ours}
    assert renamed.items() <= {**OTHER_SETTINGS, "t": theirs["t"]}.items()
    assert {METHODS["slerp"].__dataclass_fields__.keys() >= {OTHER_SETTINGS["t"]}} == {True}
