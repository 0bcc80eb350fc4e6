"""Arguments as people type them: a recipe in place of models, --align before models, a setting as an option, help in sections."""

from __future__ import annotations

import sys
from pathlib import Path

import click
import pytest
import yaml

from evals.tasks import ALIASES, TASKS, find_task
from merge.checkpoints.hub.canonical_ids import CANONICAL_IDS
from merge.checkpoints.hub.download import check_id
from merge.commands.align_options import with_align_value
from merge.commands.edit_layers import edit_main
from merge.commands.merge_models import SECTIONS, main, merge_command
from merge.commands.recipes import recipe_folder

ROOT = Path(__file__).parents[3]


def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, *arguments: str) -> tuple[int, str, str]:
    """Return exit code, stdout and stderr of merge-models, or of edit-layers if that is the first word."""
    command, start = ("edit-layers", edit_main) if arguments[:1] == ("edit-layers",) else ("merge-models", main)
    words = arguments[1:] if command == "edit-layers" else arguments
    monkeypatch.setattr(sys, "argv", [command, *words])
    code = 0
    try:
        start()
    except SystemExit as stop:
        code = int(stop.code or 0)
    out, err = capsys.readouterr()
    return code, out, err


@pytest.mark.parametrize(
    ("typed", "read"),
    [
        (["--align", "a/", "b/"], ["--align=auto", "a/", "b/"]),
        (["--align", "org/a", "org/b"], ["--align=auto", "org/a", "org/b"]),
        (["--align", "model_1", "model_2"], ["--align=auto", "model_1", "model_2"]),
        (["--align", "weights", "a/", "b/"], ["--align", "weights", "a/", "b/"]),
        (["a/", "b/", "--align", "none"], ["a/", "b/", "--align", "none"]),
        (["a/", "b/", "--align", "wieghts"], ["a/", "b/", "--align", "wieghts"]),
        (["a/", "b/", "--align", "-o", "out"], ["a/", "b/", "--align", "-o", "out"]),
        (["a/", "b/", "--align"], ["a/", "b/", "--align"]),
        (["--align=weights", "a/", "b/"], ["--align=weights", "a/", "b/"]),
    ],
)
def test_align_does_not_take_a_model_as_its_value(typed: list[str], read: list[str]) -> None:
    assert with_align_value(typed) == read


def test_a_folder_named_like_a_misspelt_way_is_a_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "weight").mkdir()
    assert with_align_value(["--align", "weight", "b"]) == ["--align=auto", "weight", "b"]


def test_a_recipe_as_first_argument_is_read_and_the_second_is_the_output(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """mergekit-yaml conf.yml out; the control is the same recipe by --recipe."""
    recipe = str(ROOT / "recipes" / "ties.yaml")
    by_option = run(capsys, monkeypatch, "--recipe", recipe, "-o", "out", "--print-recipe")
    by_argument = run(capsys, monkeypatch, recipe, "out", "--print-recipe")
    assert by_argument == by_option
    assert by_argument[0] == 0
    assert yaml.safe_load(by_argument[1])["output"] == "out"
    code, _, err = run(capsys, monkeypatch, recipe, "out", "b/")
    assert (code, err.count("\n")) == (2, 1)
    assert "found out b/" in err


@pytest.mark.parametrize(
    ("words", "advice"),
    [
        (["a", "b", "--density", "0.3"], "--set density=VALUE"),
        (["a", "b", "--lambda", "0.3"], "lambda is called scale in task_arithmetic, ties,"),
        (["a", "b", "--t", "0.3"], "t is called lam in slerp: write --set lam=VALUE"),
        (["help"], "has no command help. See merge-models --help"),
        (["a", "b", "--method", "fisher", "--text", "t.txt"], "that fisher reads is --statistics-text FILE"),
        (["a", "b", "--statistics-text", "t.txt"], "is read by fisher, regmean and cocktail alone, not by linear"),
        (["a", "b", "--lam", "0.3"], "--set lam=VALUE"),
        (["a", "b", "--alin"], "--align"),
        (["edit-layers", "drop", "m", "--bogus"], "See edit-layers drop --help"),
        (["edit-layers"], "Missing command"),
        (["push", "m"], "See merge-models push --help"),
        (["a", "b", "--dtype", "float16"], "dtype: expected 'float32' or 'float64', found 'float16'"),
        (["a", "b", "--heads", "best"], "heads: expected"),
        (["a", "b", "-o", ""], "output: must not be empty"),
        (["recipes", "tise"], "Did you mean 'ties'?"),
        (["statistcs", "a"], "neither a folder nor a command. Did you mean 'statistics'?"),
    ],
)
def test_a_wrong_argument_gets_advice_that_fits_in_one_line(
    words: list[str], advice: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    code, out, err = run(capsys, monkeypatch, *words)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert advice in err


def test_every_option_is_in_one_section_of_the_help() -> None:
    names = [name for names in SECTIONS.values() for name in names]
    context = click.Context(merge_command)
    options = {p.name for p in merge_command.get_params(context) if isinstance(p, click.Option)}
    assert len(names) == len(set(names))
    assert {name for name in options - set(names) if "help" not in name} == {"version"}
    help_text = merge_command.get_help(context)
    assert [help_text.index(f"\n{title}:\n") for title in SECTIONS] == sorted(
        help_text.index(f"\n{title}:\n") for title in SECTIONS
    )
    assert help_text.index("\n    push ") < help_text.index("\nWhat to merge:\n")


def test_the_recipes_of_the_package_are_listed_and_printed(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a clone they lie beside the package; the wheel holds them inside it."""
    listed = run(capsys, monkeypatch, "recipes")[1].splitlines()
    names = sorted(path.stem for path in (ROOT / "recipes").glob("*.y*ml"))
    assert [line.split()[0] for line in listed] == names
    assert len(names) > 15
    assert run(capsys, monkeypatch, "recipes", "ties")[1] == (recipe_folder() / "ties.yaml").read_text(encoding="utf-8")
    assert run(capsys, monkeypatch, "recipes", "schema")[1].startswith("{")
    outputs = [
        yaml.safe_load(path.read_text(encoding="utf-8")).get("output") for path in recipe_folder().glob("*.yaml")
    ]
    assert len(set(outputs)) == len(outputs)  # one run does not stop at the output of another


def test_names_that_the_hub_and_glue_use_are_known() -> None:
    assert find_task("mnli_matched") is TASKS["mnli"]
    assert find_task("SST-2") is TASKS["sst2"]
    assert set(ALIASES.values()) <= set(TASKS)
    assert not set(ALIASES) & set(TASKS)
    assert CANONICAL_IDS["bert-base-uncased"] == "google-bert/bert-base-uncased"
    for repo_id in CANONICAL_IDS.values():
        check_id(repo_id)
    assert not any("/" in name for name in CANONICAL_IDS)
