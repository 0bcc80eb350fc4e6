"""edit-layers apply, and what every edit does with a plan: open the models, write the result, print the report."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from merge.commands.layer_options import align_entry, check_text_is_read, named_models, opened, repair_settings
from merge.commands.terminal import set_verbosity
from merge.errors import UsageError
from merge.layers.plans.plan import LayerPlan

if TYPE_CHECKING:
    from merge.checkpoints.checkpoint import Checkpoint
    from merge.layers.strategies.importance import LayerImportance


def apply_plan(models: tuple[str, ...], text_of_plan: str | None, align: str | None, options: dict[str, Any]) -> None:
    """Read the plan, typed or of a recipe, and write what it makes of the models."""
    from merge.layers.plans.text import parse_plan
    from merge.layers.stacks import layer_count

    typed_plan: str | None = None
    if len(models) == 1 and models[0].endswith((".yaml", ".yml", ".json")) and Path(models[0]).is_file():
        from merge.recipe.layer_recipe import read_layer_recipe

        if text_of_plan is not None or align is not None:
            raise UsageError(f"{models[0]} holds the plan and the alignment; leave out --plan and --align.")
        recipe = read_layer_recipe(Path(models[0]))
        names, paths, align = list(recipe.models), list(recipe.models.values()), recipe.align
        context = click.get_current_context()
        typed = {name for name in options if context.get_parameter_source(name) is ParameterSource.COMMANDLINE}
        options |= {name: value for name, value in recipe.stated().items() if name not in typed}
        plan = recipe.layer_plan()
    elif text_of_plan is None and models and models[0].endswith((".yaml", ".yml", ".json")):
        raise UsageError(f"recipe {models[0]} cannot be read: there is no such file.")
    elif text_of_plan is None:
        raise UsageError("give a plan. Example: edit-layers apply m/ --plan 'A[0-3], A[8-11]'")
    else:
        from merge.recipe.layer_recipe import plan_of_file

        names, paths = named_models(models)
        read = plan_of_file(text_of_plan, names, options["stack"])
        typed_plan = None if read else text_of_plan
        plan = read or parse_plan(text_of_plan, names, options["stack"])
    fitted = any(making is not None and making.kind == "affine" for making in plan.makings)
    check_text_is_read(options, fitted or align is not None)

    def make_plan(checkpoints: list[Checkpoint]) -> tuple[LayerPlan, None]:
        if typed_plan is not None:  # once more, as the models say which numbers are too large
            totals = [layer_count(model.config, options["stack"]) for model in checkpoints]
            parse_plan(typed_plan, names, options["stack"], totals=totals)
        return plan, None

    write_edit(names, paths, make_plan, options, align)


def write_edit(
    names: list[str],
    paths: list[str],
    make_plan: Callable[[list[Checkpoint]], tuple[LayerPlan, LayerImportance | None]],
    options: dict[str, Any],
    align: str | None,
) -> None:
    """Open the models, write the edited checkpoint and print the report."""
    set_verbosity(options["verbose"], options["quiet"])
    from merge.commands.layer_report import edit_text
    from merge.disk.staging import output_notes
    from merge.layers.edit import edit_layers
    from merge.layers.record import edit_facts
    from merge.layers.strategies.choose import strategy_notes

    output = Path(options["output"]).expanduser()
    checkpoints = opened(paths, options["revision"])
    output_notes(output, options["force"], [checkpoint.folder for checkpoint in checkpoints], options["dry_run"])
    plan, importance = make_plan(checkpoints)
    entry = None if align is None else align_entry(align, options)
    settings = repair_settings(options)
    report = edit_layers(
        checkpoints, plan, output, options["force"], options["dry_run"], importance, names, settings, entry
    )
    strategy = options.get("strategy")
    notes = (*report.notes, *(strategy_notes(strategy, options["heal_steps"] > 0) if strategy else ()))
    if not options["quiet"]:
        for note in notes:
            click.echo(f"note: {note}", err=True)
    if options["as_json"]:
        written = None if options["dry_run"] else options["output"]
        click.echo(json.dumps({"output": written, **edit_facts(report)}, indent=2))
    else:
        click.echo(edit_text(report, options["dry_run"]))
