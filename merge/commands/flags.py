"""Convert command-line flags to a recipe."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from merge.commands.align_options import FLAGS, align_entry
from merge.commands.imports import uncollected
from merge.commands.terminal import NUMBERS
from merge.errors import RecipeError, UsageError

if TYPE_CHECKING:
    from merge.recipe.recipe import Recipe

# fmt: off
RECIPE_FLAGS = (
    "base", "base_lacks", "extra_tensors", "heads", "config", "method", "settings", "weights", *FLAGS, "statistics",
    "statistics_text",
    "statistics_column", "label_column", "statistics_samples", "tokenizer", "seed", "dtype", "out_dtype", "revision",
)
# fmt: on
READERS_OF_TEXT = ("fisher", "regmean", "cocktail")


def recipe_of_flags(models: tuple[str, ...], options: dict[str, Any]) -> Recipe:
    """Return the recipe of the command-line flags or of --recipe FILE, in which only --output may be overridden.

    Args:
        models: in the order given.
        options: the command's options by parameter name.
    Raises:
        UsageError, RecipeError: flags contradict each other, or values do not fit.
    """
    with uncollected():
        return _recipe_of_flags(models, options)


def _recipe_of_flags(models: tuple[str, ...], options: dict[str, Any]) -> Recipe:
    from merge.recipe.recipe import make_recipe

    models, options = _recipe_as_argument(models, options)
    given = [name for name in (*RECIPE_FLAGS, "last", "ema") if options[name] not in (None, ())]
    if options["recipe_file"] is not None:
        return _recipe_of_file(["models", *given] if models else given, options)
    if not models:
        raise UsageError("no models given. Example: merge-models a/ b/ --align activations. See merge-models --help.")
    models, options = _averaged_run(models, options)
    settings = [_setting(text) for text in options["settings"]]
    if options["weights"] is not None:
        settings.append(("weights", options["weights"]))
    repeated = {key for key, _ in settings if [k for k, _ in settings].count(key) > 1}
    if repeated:
        raise UsageError(f"setting {', '.join(sorted(repeated))} is given twice. Give it once.")
    align, label_column = align_entry(options), options["label_column"]
    if set(align) == {"text"} and options["method"] in READERS_OF_TEXT:
        raise UsageError(
            f"--text is for an alignment. The text that {options['method']} reads is --statistics-text FILE."
        )
    if align.get("by") == "learned" and label_column is not None:
        align, label_column = {**align, "label_column": label_column}, None
    own, files = _statistics(models, options["statistics"])
    statistics = {
        "text": options["statistics_text"],
        "files": files or None,
        "text_column": options["statistics_column"],
        "label_column": label_column,
        "samples": options["statistics_samples"],
    }
    record = {
        "models": [
            {"model": m, "revision": r} | ({"statistics": own[m]} if m in own else {})
            for m, r in zip(models, _revisions(models, options["revision"]), strict=True)
        ],
        "base": options["base"],
        "base_lacks": options["base_lacks"],
        "extra_tensors": options["extra_tensors"],
        "heads": options["heads"],
        "config": options["config"],
        # A single model with --apply is only transformed.
        "method": "passthrough"
        if options["method"] is None and len(models) == 1 and "apply" in align
        else options["method"],
        "settings": dict(settings),
        "align": align,
        "statistics": {k: v for k, v in statistics.items() if v is not None} or None,
        "tokenizer": options["tokenizer"],
        "dtype": options["dtype"],
        "out_dtype": options["out_dtype"],
        "seed": options["seed"],
        "output": options["output"],
    }
    return make_recipe({k: v for k, v in record.items() if v is not None})


def _recipe_of_file(given: list[str], options: dict[str, Any]) -> Recipe:
    from merge.recipe.read import read_any
    from merge.recipe.recipe import make_recipe

    if given:
        raise UsageError(f"--recipe sets everything; it cannot be combined with {', '.join(given)}, only with -o.")
    recipe, warnings = read_any(options["recipe_file"])
    for warning in warnings if not options["quiet"] else ():
        click.echo(f"note: {warning}", err=True)
    if options["output"] is None:
        return recipe
    return make_recipe({**recipe.model_dump(exclude_unset=True), "output": options["output"]})


def _recipe_as_argument(models: tuple[str, ...], options: dict[str, Any]) -> tuple[tuple[str, ...], dict[str, Any]]:
    """Read `RECIPE.yaml [OUTPUT]`, the arguments of mergekit-yaml, as --recipe RECIPE.yaml -o OUTPUT."""
    first = Path(models[0]).expanduser() if models else None
    if first is None or first.suffix not in (".yaml", ".yml") or first.is_dir() or options["recipe_file"] is not None:
        return models, options
    if len(models) > 2 or (len(models) == 2 and options["output"] is not None):
        raise UsageError(
            f"{models[0]} is a recipe, which states its models; after it comes at most the output, found {' '.join(models[1:])}."
        )
    output = models[1] if len(models) == 2 else options["output"]
    return (), {**options, "recipe_file": first, "output": output}


def _averaged_run(models: tuple[str, ...], options: dict[str, Any]) -> tuple[tuple[str, ...], dict[str, Any]]:
    """Return the checkpoints that --last and --ema choose, and the options with their weights."""
    last, ema = options["last"], options["ema"]
    if last is None and ema is None:
        return models, options
    from merge.run.plan.training_run import run_average

    if ema is not None and options["weights"] is not None:
        raise UsageError("--ema sets the weights of the checkpoints; give it without --weights.")
    if ema is not None and options["method"] not in (None, "linear"):
        raise UsageError(
            f"--ema is an average (--method linear), and --method is {options['method']}. Give one of them."
        )
    chosen = run_average(models, last, ema)
    for note in chosen.notes if not options["quiet"] else ():
        click.echo(f"note: {note}", err=True)
    return chosen.models, {**options, "weights": options["weights"] if chosen.weights is None else chosen.weights}


def _revisions(models: tuple[str, ...], revisions: tuple[str, ...]) -> tuple[str | None, ...]:
    if len(revisions) <= 1:
        return (revisions or (None,)) * len(models)
    if len(revisions) != len(models):
        raise UsageError(f"{len(revisions)} revisions for {len(models)} models. Give one for all, or one for each.")
    return revisions


def _statistics(models: Sequence[str], given: Sequence[str]) -> tuple[dict[str, str], list[str]]:
    """Return model -> its text or statistics file, and the statistics files that name no model.

    A model is named as it was typed, by its path in another spelling, or by the name of its folder.

    Raises:
        UsageError: a model is not one of those given, or named twice, or a text names no model.
    """
    own: dict[str, str] = {}
    files: list[str] = []
    for value in given:
        splits = [(value[:i], value[i + 1 :]) for i, letter in enumerate(value) if letter == "="]
        named = [(model, text) for name, text in splits for model in _named(name, models)]
        if not named and value.endswith(".safetensors") and (Path(value).exists() or not splits):
            files.append(value)
            continue
        if not named:
            what = f"{splits[0][0]!r} is not one of the models" if splits else f"{value!r} names no model"
            raise UsageError(
                f"--statistics: {what}. Write MODEL=FILE with one of {', '.join(models)}, or --statistics-text FILE for one text "
                "for all."
            )
        for model, text in named[:1]:
            if not text:
                raise UsageError(f"--statistics {value}: expected a file after {model}=.")
            if model in own:
                raise UsageError(f"--statistics is given twice for {model}. Give it once.")
            own[model] = text
    return own, files


def _named(name: str, models: Sequence[str]) -> list[str]:
    """Return the model that a name means, as a list of one; empty if none or several."""
    matches = [model for model in dict.fromkeys(models) if name == model]
    matches = matches or [m for m in dict.fromkeys(models) if os.path.normpath(name) == os.path.normpath(m)]
    matches = matches or [m for m in dict.fromkeys(models) if name == Path(os.path.normpath(m)).name]
    return matches if len(matches) == 1 else []


def _setting(text: str) -> tuple[str, Any]:
    from merge.recipe.yaml_document import read_value

    key, equals, value = text.partition("=")
    if not equals or not key:
        raise UsageError(f"--set expects KEY=VALUE, found {text!r}. Example: --set lam=0.3")
    if "," in value and not value.lstrip().startswith(("[", '"', "'")):
        return key, NUMBERS.split(value, f"--set {key}")
    try:
        return key, read_value(value)
    except RecipeError as error:
        raise RecipeError(f"--set {key}: {error}") from error
