"""The edit-layers command: drop, reorder or stack layers of one checkpoint."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from merge.commands.prune import COMMANDS as PRUNE_COMMANDS
from merge.commands.terminal import NAMES, common_options, set_verbosity, start
from merge.errors import UsageError
from merge.layers.plans.numbers import format_layers, parse_layers
from merge.layers.plans.plan import LayerPlan
from merge.layers.plans.positions import STRATEGIES

if TYPE_CHECKING:
    from merge.checkpoints.checkpoint import Checkpoint
    from merge.layers.record import EditReport
    from merge.layers.strategies.importance import LayerImportance

EPILOG = """\b
Examples:
  edit-layers drop m/ --strategy symmetric --count 4 -o smaller
  edit-layers drop m/ --layers 9-11
  edit-layers drop m/ --strategy contribution --count 2 --text train.jsonl
  edit-layers reorder m/ --order 0,2,1,3
  edit-layers stack m/ --layers 0-7,4-11 --dry-run
  edit-layers prune-heads m/ --heads 0:1,3 2:5
"""
HELP = {"help_option_names": ["-h", "--help"]}
TEXT_OPTIONS = ("text", "text_column", "samples", "seed")


def _options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options that all edits share."""
    for option in reversed(
        (
            click.option(
                "--stack", default="", help="List of layers, in models with two: text or vision, encoder or decoder."
            ),
            click.option("--revision", help="Hub revision of the model."),
            click.option("-o", "--output", default="edited", show_default=True, help="Folder to write."),
            click.option("--force", is_flag=True, help="Replace the output folder if it is a checkpoint."),
            click.option(
                "--dry-run", is_flag=True, help="Show the plan and the changes to config.json; write nothing."
            ),
            common_options,
        )
    ):
        command = option(command)
    return command


@click.group(epilog=EPILOG, context_settings=HELP, no_args_is_help=False)
@click.version_option(package_name="merge-models", prog_name="edit-layers")
def edit_command() -> None:
    """Drop, reorder or repeat layers of one transformer model.

    Layers are counted from 0 and copied byte for byte; config.json is updated to match. The result is a standard
    checkpoint for from_pretrained; a sentence-transformers folder keeps its modules.
    """


for prune_command in PRUNE_COMMANDS:
    edit_command.add_command(prune_command)


@edit_command.command("drop", context_settings=HELP)
@click.argument("model")
@click.option("--layers", help="Layers to drop, such as 9-11,3, counted from 0.")
@click.option("--strategy", metavar="NAME", help=f"Rule that selects the layers: {', '.join(STRATEGIES)}.")
@click.option("--count", type=int, help="With --strategy: number of layers to drop.")
@click.option("--text", help="Text for contribution: .txt, .jsonl, .csv, .tsv (or .gz), or a Hub dataset id.")
@click.option("--text-column", type=NAMES, metavar="COL[,COL]", help="Column of --text; two for text pairs.")
@click.option("--samples", type=int, help="Number of texts drawn from --text.  [default: 512]")
@click.option("--seed", type=int, help="Seed of the draw.  [default: 0]")
@_options
def drop_command(model: str, **options: Any) -> None:
    """Drop layers of MODEL, given by number or selected by a strategy.

    \b
    top           the last layers
    bottom        the first layers
    odd, even     every other layer, from the top down; numbers counted from 1
    symmetric     the middle layers; equally many are kept below and above
    contribution  the layers that change the sentence token least on --text

    The strategies are those of Sajjad et al. (2023), who fine-tune the model after dropping. Without fine-tuning,
    compare scores first: a fine-tuned model often needs its top layers most.

    \b
    Examples:
      edit-layers drop m/ --strategy top --count 4 -o smaller
      edit-layers drop m/ --layers 9-11,3
    """
    from merge.layers.stacks import layer_count

    strategy, named = options["strategy"], options["layers"]
    if (strategy is None) == (named is None):
        raise UsageError("give the layers to drop, either --layers 9-11 or --strategy top --count 3.")
    if (strategy is None) != (options["count"] is None):
        raise UsageError("--strategy and --count must be given together. Example: --strategy top --count 3.")
    unused = [f"--{name.replace('_', '-')}" for name in TEXT_OPTIONS if options[name] is not None]
    if unused and strategy != "contribution":
        verb = "has" if len(unused) == 1 else "have"
        raise UsageError(f"{', '.join(unused)} {verb} no effect without --strategy contribution.")

    def plan(checkpoint: Checkpoint) -> tuple[LayerPlan, LayerImportance | None]:
        from merge.layers.strategies.choose import drop_plan
        from merge.text.source import TextSource

        stack = options["stack"]
        if named is not None:
            total = layer_count(checkpoint.config, stack)
            return LayerPlan.without(parse_layers(named, total), total, stack), None
        source = TextSource(
            options["text"],
            options["text_column"],
            512 if options["samples"] is None else options["samples"],
            options["seed"] or 0,
        )
        return drop_plan(checkpoint, strategy, options["count"], source, stack)

    _edit(model, plan, options)


@edit_command.command("reorder", context_settings=HELP)
@click.argument("model")
@click.option("--order", required=True, help="All layers in the new order, such as 0,2,1,3-11.")
@_options
def reorder_command(model: str, order: str, **options: Any) -> None:
    """Change the order of the layers of MODEL.

    \b
    Example:
      edit-layers reorder m/ --order 0,2,1,3-11
    """
    from merge.layers.stacks import layer_count

    def plan(checkpoint: Checkpoint) -> tuple[LayerPlan, None]:
        total = layer_count(checkpoint.config, options["stack"])
        layers = parse_layers(order, total)
        missing = [layer for layer in range(total) if layer not in layers]
        repeated = sorted({layer for layer in layers if layers.count(layer) > 1})
        if missing:
            raise UsageError(
                f"--order {order} lacks layers {format_layers(missing)}. Use edit-layers drop to drop layers."
            )
        if repeated:
            raise UsageError(
                f"--order {order} names layer {repeated[0]} twice. Use edit-layers stack to repeat layers."
            )
        return LayerPlan.keep(layers, options["stack"]), None

    _edit(model, plan, options)


@edit_command.command("stack", context_settings=HELP)
@click.argument("model")
@click.option("--layers", required=True, help="The layers of the new model in order, such as 0-7,4-11.")
@_options
def stack_command(model: str, layers: str, **options: Any) -> None:
    """Build a model from layers of MODEL, in any order and with repetitions.

    \b
    Example:
      edit-layers stack m/ --layers 0-7,4-11      # 12 layers become 16
    """
    from merge.layers.stacks import layer_count

    def plan(checkpoint: Checkpoint) -> tuple[LayerPlan, None]:
        total = layer_count(checkpoint.config, options["stack"])
        return LayerPlan.keep(parse_layers(layers, total), options["stack"]), None

    _edit(model, plan, options)


def edit_main() -> None:
    """Run edit-layers."""
    start(edit_command, "edit-layers", sys.argv[1:])


def _edit(
    model: str, make_plan: Callable[[Checkpoint], tuple[LayerPlan, LayerImportance | None]], options: dict[str, Any]
) -> None:
    """Open the model, write the edited checkpoint and print the report."""
    from merge.checkpoints.open import open_checkpoint
    from merge.disk.staging import output_notes
    from merge.layers.edit import edit_layers
    from merge.layers.record import edit_facts

    set_verbosity(options["verbose"], options["quiet"])
    output = Path(options["output"]).expanduser()
    checkpoint = open_checkpoint(model, options["revision"])
    output_notes(output, options["force"], [checkpoint.folder], options["dry_run"])
    plan, importance = make_plan(checkpoint)
    report = edit_layers(checkpoint, plan, output, options["force"], options["dry_run"], importance)
    if not options["quiet"]:
        for note in report.notes:
            click.echo(f"note: {note}", err=True)
    if options["as_json"]:
        written = None if options["dry_run"] else options["output"]
        click.echo(json.dumps({"output": written, **edit_facts(report)}, indent=2))
    else:
        click.echo(edit_text(report, options["dry_run"]))


def edit_text(report: EditReport, dry_run: bool) -> str:
    """Return the report of an edit as text for the terminal."""
    from merge.layers.plans.text import format_plan

    plan, lines = report.plan, []
    if report.importance:
        lines.append(f"contribution, 1 - cosine of a layer's input and output, on {report.importance.text}")
        for layer, score in enumerate(report.importance.scores):
            lines.append(f"  layer {layer:<3} {score:.4f}{'  <- dropped' if layer in report.dropped else ''}")
    if plan.copies and len(report.assembly.models) == 1:
        shown = format_layers([layer for ((_, layer),) in plan.layers])
    else:
        shown = format_plan(plan, report.made.names)
    lines.append(f"{report.checkpoint.source}: {report.total} layers -> {len(plan.layers)}: {shown}")
    if report.dropped:
        lines.append(f"  dropped: {format_layers(report.dropped)} ({len(report.tensors.left_out)} tensors left out)")
    lines += [f"  {sentence}" for sentence in report.made.sentences]
    for key, (before, after) in report.changed.items():
        lines.append(f"  config.json: {key}: {json.dumps(before)} -> {json.dumps(after)}")
    computed = len(report.tensors.sources) - report.copied
    outcome = (
        "nothing written (dry run)" if dry_run else f"wrote {report.output} ({report.bytes:,} bytes), which reloads"
    )
    done = f"{report.copied} tensors copied byte for byte{f', {computed} computed' if computed else ''}"
    lines.append(f"{done}: {outcome}; {report.seconds:.1f} s")
    return "\n".join(lines)
