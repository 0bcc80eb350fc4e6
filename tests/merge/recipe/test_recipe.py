"""One record, whether typed as flags or read from YAML; every fault says where it is and what was meant."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from merge.commands.flags import recipe_of_flags
from merge.commands.merge_models import merge_command
from merge.errors import RecipeError, UsageError
from merge.recipe.recipe import Recipe, make_recipe, read_recipe
from merge.recipe.yaml_document import read_value


def from_flags(*arguments: str) -> Recipe:
    """Return the recipe of a command line, as merge-models reads it."""
    options = merge_command.make_context("merge-models", list(arguments)).params
    return recipe_of_flags(options.pop("models"), options)


def from_yaml(folder: Path, text: str) -> Recipe:
    path = folder / "recipe.yaml"
    path.write_text(text, encoding="utf-8")
    return read_recipe(path)


SAME = {
    "plain": (["a", "b"], "models: [a, b]"),
    "weights": (["a", "b", "c", "--weights", "2,1,1"], "models: [a, b, c]\nsettings: {weights: [2, 1, 1]}"),
    "set": (["a", "b", "--set", "weights=2,1", "--set", "normalize=false"],
            "models: [a, b]\nsettings: {weights: [2, 1], normalize: false}"),
    "slerp": (["a", "b", "--method", "slerp", "--set", "lam=1e-3"], "models: [a, b]\nmethod: slerp\nsettings: {lam: 0.001}"),
    "align": (["a", "b", "--align", "activations", "--text", "t.jsonl", "--text-column", "premise,hypothesis",
               "--axes", "ffn,heads", "--samples", "64"],
              "models: [a, b]\nalign: {by: activations, text: t.jsonl, text_column: [premise, hypothesis],"
              " axes: [ffn, heads], samples: 64}"),
    "one name": (["a", "b", "--align", "weights", "--text", "t.csv", "--text-column", "s", "--axes", "ffn"],
                 "models: [a, b]\nalign: {by: weights, text: t.csv, text_column: s, axes: ffn}"),
    "rest": (["o/a", "o/b", "--out-dtype", "bfloat16", "--seed", "7", "-o", "x y/ü", "--revision", "v1", "--revision", "v2"],
             "models: [{model: o/a, revision: v1}, {model: o/b, revision: v2}]\nout_dtype: bfloat16\nseed: 7\noutput: x y/ü"),
}  # fmt: skip


@pytest.mark.parametrize("case", SAME)
def test_flags_and_yaml_build_the_same_record(case: str, tmp_path: Path) -> None:
    flags, text = SAME[case]
    assert from_flags(*flags) == from_yaml(tmp_path, text)


@pytest.mark.parametrize("case", SAME)
def test_a_recipe_written_is_the_recipe_read(case: str, tmp_path: Path) -> None:
    """What is printed, saved beside a merge and shown on its card runs as the same merge."""
    recipe = from_flags(*SAME[case][0])
    assert from_yaml(tmp_path, recipe.to_yaml()) == recipe


def test_weights_beside_the_models_survive_the_round_trip(tmp_path: Path) -> None:
    """And numbers that YAML 1.1 would not read back as numbers."""
    recipe = make_recipe({"models": [{"model": "a", "weight": 1e-7}, {"model": "b", "weight": 1e22}]})
    assert [entry.weight for entry in from_yaml(tmp_path, recipe.to_yaml()).models] == [1e-7, 1e22]


def test_what_is_not_set_is_left_out_of_the_text() -> None:
    assert from_flags("a", "b").to_yaml() == "models:\n- a\n- b\n"


def test_a_recipe_cannot_be_changed() -> None:
    with pytest.raises(ValidationError):
        from_flags("a", "b").seed = 3  # type: ignore[misc]


FAULTS = {
    "unknown key": ("models: [a, b]\nmodel: x\n", "2:1: model: unknown key. Did you mean 'models'?"),
    "unknown key of align": (
        "models: [a, b]\nalign: {by: weights, txt: x}",
        "2:22: align.txt: unknown key. Did you mean 'text'?",
    ),
    "unknown key of a model": (
        "models:\n- a\n- model: b\n  wieght: 3",
        "4:3: models.1.wieght: unknown key. Did you mean 'weight'?",
    ),
    "duplicate key": ("models: [a, b]\nseed: 1\nseed: 2", "3:1: key 'seed' is given twice"),
    "duplicate deeper": ("models: [a, b]\nalign: {by: none, by: weights}", "2:19: key 'by' is given twice"),
    "list as key": ("models: [a, b]\n? [a]\n: 3", "2:3: a key must be a name"),
    "number as key": ("models: [a, b]\n1: 2", ": 1: a key must be text"),
    "models of a wrong type": ("models: 5", "1:1: models: expected a list"),
    "a model of a wrong type": ("models: [a, 5]", "1:13: models.1: expected keys and values"),
    "a model that YAML takes for false": (
        "models: [a, {model: no}]",
        "1:14: models.1.model: expected text; put it in quotes",
    ),
    "text for a number": ("models: [a, b]\nseed: many", "2:1: seed: expected a whole number"),
    "true for a number": ("models: [a, b]\nseed: true", "2:1: seed: expected a whole number"),
    "a fraction": (
        "models: [a, b]\nalign: {by: weights, samples: 1.5}",
        "2:22: align.samples: expected a whole number",
    ),
    "text for a weight": ("models: [{model: a, weight: x}, b]", "1:21: models.0.weight: expected a number"),
    "a number for an output": ("models: [a, b]\noutput: 5", "2:1: output: expected text"),
    "a negative seed": ("models: [a, b]\nseed: -1", "2:1: seed: expected a number of at least 0, found -1"),
    "no samples": (
        "models: [a, b]\nalign: {by: weights, samples: 0}",
        "2:22: align.samples: expected a number above 0, found 0",
    ),
    "unknown method": ("models: [a, b]\nmethod: liner", "2:1: method: unknown method 'liner'. Did you mean 'linear'?"),
    "unknown aligner": (
        "models: [a, b]\nalign: {by: weigts}",
        "2:9: align.by: unknown alignment 'weigts'. Did you mean 'weights'?",
    ),
    "a weight too long for a float": (
        f"models: [{{model: a, weight: {10**400}}}, b]",
        "1:21: models.0.weight: expected a finite number, found 1000",
    ),
    "a gradient too long for a float": (
        f"models: [a, b]\nsettings: {{weights: {{gradient: [{10**400}, 1]}}}}",
        "a gradient is written {gradient: [first, ..., last]} with finite numbers; found",
    ),
    "unknown setting": (
        "models: [a, b]\nmethod: slerp\nsettings: {lamb: 1}",
        "3:1: method slerp has no setting 'lamb'. Did you mean 'lam'?",
    ),
    "unknown dtype": ("models: [a, b]\ndtype: float31", "2:1: dtype: expected 'float32' or 'float64', found 'float31'"),
    "a bad setting": (
        "models: [a, b]\nmethod: slerp\nsettings: {lam: 2}",
        "3:1: slerp: lam must be a number from 0 to 1, found 2",
    ),
    "three weights for two": ("models: [a, b]\nsettings: {weights: [1, 2, 3]}", "2:1: linear: 3 weights for 2 models"),
    "a number for weights": ("models: [a, b]\nsettings: {weights: 2}", "2:1: linear: weights must be a list"),
    "one weight of two": (
        "models: [a, {model: b, weight: 3}]",
        "1:1: models: some models have a weight and others have none",
    ),
    "weights twice": (
        "models: [{model: a, weight: 1}, {model: b, weight: 3}]\nsettings: {weights: [1, 2]}",
        "2:1: weights are given both with the models and in settings",
    ),
    "weights for slerp": (
        "method: slerp\nmodels: [{model: a, weight: 1}, {model: b, weight: 3}]",
        "method slerp takes no model weights",
    ),
    "three for slerp": ("models: [a, b, c]\nmethod: slerp", "slerp merges exactly two models, found 3"),
    "one model": ("models: [a]", "1:1: method linear needs at least two models, found one"),
    "an empty name": ("models: [a, '']", "1:13: models.1.model: must not be empty"),
    "no models": ("method: linear", "1:1: models: is required"),
    "text without alignment": ("models: [a, b]\nalign: {text: x}", "2:1: align: text belongs to an alignment"),
    "samples without alignment": (
        "models: [a, b]\nalign: {by: none, samples: 9}",
        "2:1: align: samples belongs to an alignment",
    ),
    "three columns": ("models: [a, b]\nalign: {by: weights, text_column: [a, b, c]}", "2:22: align.text_column"),
    "an empty file": ("", "1:1: a recipe is a mapping of keys (models, method, ...), found an empty file"),
    "a list": ("- a\n- b", "1:1: a recipe is a mapping of keys (models, method, ...), found a list"),
    "an open bracket": ("models: [a, b\n", "2:1: expected ',' or ']'"),
    "a tab": ("models:\n\t- a", "2:1: found character '\\t'"),
    "two documents": ("models: [a, b]\n---\nseed: 1", "2:1: a second document begins here"),
    "a code tag": ("models: !!python/object/apply:os.system [a]", "1:9: could not determine a constructor"),
    "a tag that does not fit": ("models: [a, b]\nseed: !!int x", "1:1: a YAML tag (!!int, !!float, ...) does not fit"),
    "an unknown anchor": ("models: *x", "1:9: found undefined alias"),
    "a control character": ("models: [a, b]\nmethod: \x00", "2:9: character 0 is not allowed"),
}


@pytest.mark.parametrize("case", FAULTS)
def test_a_fault_is_placed_by_file_line_and_column(case: str, tmp_path: Path) -> None:
    """So that an editor jumps to it; an unknown name is told the nearest that is known."""
    text, expected = FAULTS[case]
    with pytest.raises(RecipeError) as caught:
        from_yaml(tmp_path, text)
    message = str(caught.value)
    assert re.match(rf"{re.escape(str(tmp_path / 'recipe.yaml'))}:\d+:\d+: ", message)
    assert expected in message
    assert "\n" not in message


def test_all_faults_are_in_one_message(tmp_path: Path) -> None:
    with pytest.raises(RecipeError) as caught:
        from_yaml(tmp_path, "models: 5\nmethod: liner\nsede: 3\n")
    lines = str(caught.value).splitlines()
    assert [line.removeprefix(f"{tmp_path / 'recipe.yaml'}:")[:4] for line in lines] == ["1:1:", "2:1:", "3:1:"]


def test_a_file_that_cannot_be_read_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "latin").write_bytes(b"models: [\xe9]")
    for path in (tmp_path / "absent", tmp_path, tmp_path / "latin"):
        with pytest.raises(RecipeError, match="cannot be read") as caught:
            read_recipe(path)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("number", ["1e-3", "1E-3", "0.001", ".001", "1.e-3", "+1e-03"])
def test_numbers_are_numbers_however_they_are_spelt(number: str, tmp_path: Path) -> None:
    """In YAML 1.1 as PyYAML reads it, 1e-3 is text."""
    recipe = from_yaml(tmp_path, f"models: [a, b]\nmethod: slerp\nsettings: {{lam: {number}}}")
    assert recipe.settings == {"lam": 0.001}
    assert read_value(number) == 0.001


def test_names_that_look_like_numbers_stay_text(tmp_path: Path) -> None:
    """A date, a version and a name with an e in it; in quotes, anything."""
    text = "models: [{model: 2024-01-31, revision: v1e3}, {model: run-1e-3, revision: '5e3'}]\noutput: 1e3-steps"
    recipe = from_yaml(tmp_path, text)
    assert [(m.model, m.revision) for m in recipe.models] == [("2024-01-31", "v1e3"), ("run-1e-3", "5e3")]
    assert recipe.output == "1e3-steps"
    assert from_yaml(tmp_path, recipe.to_yaml()) == recipe


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (["a", "b", "--set", "lam"], "--set expects KEY=VALUE, found 'lam'"),
        (["a", "b", "--set", "=3"], "--set expects KEY=VALUE, found '=3'"),
        (["a", "b", "--set", "lam=[1"], "--set lam: '[1' is not valid YAML"),
        (["a", "b", "--set", "lam=1", "--set", "lam=2"], "setting lam is given twice"),
        (["a", "b", "--set", "weights=1,2", "--weights", "3,4"], "setting weights is given twice"),
        (["a", "b", "--weights", "1,x"], "--weights expects numbers separated by commas, found '1,x'"),
        (["a", "b", "--weights", ""], "--weights expects numbers"),
        (["a", "b", "--weights", "1,nan"], "weights must be finite numbers, found nan"),
        (["a", "b", "--weights", "1,-1"], "sum to 0 and cannot be normalised"),
        (["a", "b", "--weights", "1"], "1 weights for 2 models"),
        (["a", "b", "--axes", "ffn,"], "--axes expects names separated by commas"),
        (["a", "b", "--axes", "ffn"], "axes belongs to an alignment"),
        (["a", "b", "--text", "t"], "text belongs to an alignment"),
        (["a", "b", "--method", ""], "unknown method ''"),
        (["a", "b", "--method", "slrp"], "Did you mean 'slerp'?"),
        (["a", "b", "--align", "activation"], "Did you mean 'activations'?"),
        (["a", "b", "--revision", "x", "--revision", "y", "--revision", "z"], "3 revisions for 2 models"),
        (["a"], "at least two models, found one"),
        ([], "no models given"),
        (["--recipe", "r", "a"], "cannot be combined with models"),
        (["--recipe", "r", "--seed", "0"], "cannot be combined with seed"),
        (["--recipe", "r", "--set", "lam=1", "--dtype", "float32"], "cannot be combined with settings, dtype"),
    ],
)
def test_a_faulty_flag_is_one_line(flags: list[str], expected: str) -> None:
    with pytest.raises(UsageError) as caught:
        from_flags(*flags)
    assert expected in str(caught.value)
    assert "\n" not in str(caught.value)


def test_output_alone_may_be_added_to_a_recipe(tmp_path: Path) -> None:
    """Everything else stays as the file says, what it leaves unsaid included."""
    path = tmp_path / "r.yaml"
    path.write_text("models: [a, b]\nsettings: {weights: [1, 2]}\noutput: x\n", encoding="utf-8")
    recipe = from_flags("--recipe", str(path), "-o", "elsewhere")
    expected: dict[str, Any] = {"models": ["a", "b"], "settings": {"weights": [1, 2]}, "output": "elsewhere"}
    assert recipe == make_recipe(expected)
    with pytest.raises(RecipeError, match="output"):
        from_flags("--recipe", str(path), "-o", "")


@pytest.mark.parametrize(
    ("option", "value", "by", "readers"),
    [
        ("restarts", 3, "activations", ("weights", "auto", "learned")),
        ("restarts", 3, "transport", ("weights",)),
        ("steps", 50, "weights", ("learned", "sinkhorn", "annealing")),
        ("both", True, "auto", ("learned",)),
    ],
)
def test_an_option_that_a_matcher_does_not_read_is_refused(
    option: str, value: object, by: str, readers: tuple[str, ...]
) -> None:
    """It would be ignored without a word; the matchers that read it take it."""
    record = {"models": ["a", "b"], "output": "out"}
    with pytest.raises(RecipeError, match=f"{option} has no effect with by: {by}. Leave it out, or use .*{readers[0]}"):
        make_recipe({**record, "align": {"by": by, option: value}})
    for reader in readers:
        assert getattr(make_recipe({**record, "align": {"by": reader, option: value}}).align, option) == value


def test_by_learned_finds_maps_and_no_permutations_alone() -> None:
    """Asked for those it would find maps all the same; said nothing, or asked for maps, it is taken."""
    record = {"models": ["a", "b"], "output": "out"}
    with pytest.raises(RecipeError, match="by: learned moves units .* Leave out basis: permutation"):
        make_recipe({**record, "align": {"by": "learned", "basis": "permutation"}})
    assert make_recipe({**record, "align": {"by": "learned", "basis": "orthogonal"}}).align.basis == "orthogonal"
    assert make_recipe({**record, "align": {"by": "learned"}}).align.basis is None
    assert make_recipe({**record, "align": {"by": "weights", "basis": "permutation"}}).align.basis == "permutation"


@pytest.mark.parametrize(
    "more", [{"models": ["a", "b", "c"]}, {"base": "c", "method": "task_arithmetic"}], ids=["three", "a base"]
)
def test_both_ends_move_where_there_are_two(more: dict[str, Any]) -> None:
    """The reference cannot go to meet two; the same models go with a reference that stays."""
    record = {"models": ["a", "b"], "output": "out"}
    align = {"by": "learned", "both": True}
    assert make_recipe({**record, "align": align}).align.both
    with pytest.raises(RecipeError, match="both moves the reference towards one other model"):
        make_recipe({**record, **more, "align": align})
    assert not make_recipe({**record, **more, "align": {"by": "learned"}}).align.both
