"""The edit-layers command: drop, reorder, stack and plan layers, repair what is missing, and compare the results."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import click

from merge.commands.apply_layers import write_edit
from merge.commands.layer_options import (
    SECTIONS,
    check_text_is_read,
    drop_settings,
    repair_options,
    score_options,
    text_options,
)
from merge.commands.prune import COMMANDS as PRUNE_COMMANDS
from merge.commands.sections import SectionedCommand, SectionedGroup
from merge.commands.terminal import common_options, start
from merge.errors import UsageError
from merge.layers.plans.numbers import format_layers, parse_layers
from merge.layers.plans.plan import LayerPlan
from merge.layers.strategies.table import STRATEGIES

if TYPE_CHECKING:
    from merge.checkpoints.checkpoint import Checkpoint
    from merge.layers.strategies.importance import LayerImportance

EPILOG = """\b
Examples:
  edit-layers drop m/ --strategy symmetric --count 4 -o smaller
  edit-layers drop m/ --layers 9-11
  edit-layers drop m/ --strategy contribution --count 2 --text train.jsonl
  edit-layers reorder m/ --order 0,2,1,3
  edit-layers stack m/ --layers 0-7,4-11 --dry-run
  edit-layers prune-heads m/ --heads 0:1,3 2:5
  edit-layers apply A=m/ B=n/ --plan 'A[0-3], B[4-5]' --repair auto -o spliced
  edit-layers compare m/ --strategy top,block-influence,greedy --count 1,2
"""
HELP = {"help_option_names": ["-h", "--help"]}

# Sections of the list of commands.
GROUPS = {
    "Layers": ("drop", "reorder", "stack", "apply", "compare"),
    "Heads, neurons and tokens": ("prune-heads", "prune-neurons", "prune-embeddings"),
}


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
            repair_options,
            common_options,
        )
    ):
        command = option(command)
    return command


@click.group(cls=SectionedGroup, sections=GROUPS, epilog=EPILOG, context_settings=HELP, no_args_is_help=False)
@click.version_option(package_name="merge-models", prog_name="edit-layers")
def edit_command() -> None:
    """Drop, reorder, repeat, splice and merge layers of transformer models, and repair what is missing.

    Layers are counted from 0 and copied byte for byte, unless a plan merges or a repair fits them; config.json is updated to
    match. The result is a standard checkpoint for from_pretrained; a sentence-transformers folder keeps its modules.
    """


def _command(name: str, short_help: str) -> Callable[[Callable[..., Any]], click.Command]:
    """Return a decorator that adds a function to edit-layers as a command."""
    settings = {"cls": SectionedCommand, "sections": SECTIONS, "context_settings": HELP}
    return edit_command.command(name, short_help=short_help, **settings)


for prune_command in PRUNE_COMMANDS:
    edit_command.add_command(prune_command)


@_command("drop", "Drop layers, listed or selected by a strategy.")
@click.argument("model")
@click.option("--layers", help="Layers to drop, such as 9-11,3, counted from 0.")
@click.option("--strategy", metavar="NAME", help=f"Rule that selects the layers: {', '.join(STRATEGIES)}.")
@click.option("--count", type=int, help="With --strategy: number of layers to drop.")
@click.option("--protect", metavar="LAYERS", help="Layers that are never dropped, such as 0,11.")
@click.option("--beam", type=click.IntRange(min=1), help="Candidates that beam keeps in a round.  [default: 4]")
@score_options
@text_options
@_options
def drop_command(model: str, **options: Any) -> None:
    """Drop layers of MODEL, given by number or selected by a strategy.

    \b
    For models that are trained afterwards (Sajjad et al. 2023):
      top, bottom       the last layers; the first layers
      odd, even         every other layer, from the top down; numbers counted from 1
      symmetric         the middle layers; equally many are kept below and above
      contribution      the layers that change the sentence token least on --text
    For models that are used as they are:
      block-influence   the layers that turn the tokens of --text least
      relative-norm     the layers that add least to them
      angular           the block of neighbours with the smallest angle across it
      linear-fit        the block of neighbours that an affine map replaces best
      one-shot, greedy, beam, exhaustive
                        a search by --score, on --text, or by --scorer

    A fine-tuned model that is not trained again often needs its top layers most: compare first.

    \b
    Examples:
      edit-layers drop m/ --strategy top --count 4 -o smaller
      edit-layers drop m/ --strategy greedy --count 3 --text sample.txt --repair auto
      edit-layers drop m/ --strategy beam --count 2 --scorer 'evaluate-models glue sst2 {model} --json -q' --metric sst2/accuracy
      edit-layers drop m/ --layers 9-11,3
    """
    from merge.layers.plans.numbers import parse_layers
    from merge.layers.stacks import layer_count
    from merge.layers.strategies.table import strategy_named

    strategy, named = options["strategy"], options["layers"]
    if (strategy is None) == (named is None):
        raise UsageError("give the layers to drop, either --layers 9-11 or --strategy top --count 3.")
    if (strategy is None) != (options["count"] is None):
        raise UsageError("--strategy and --count must be given together. Example: --strategy top --count 3.")
    reads = "nothing" if strategy is None else strategy_named(strategy).reads
    check_text_is_read(options, reads != "nothing")
    scored = [f"--{name.replace('_', '-')}" for name in ("score", "scorer", "beam") if options[name] is not None]
    if scored and reads != "scores":
        raise UsageError(f"{', '.join(scored)} belongs to --strategy one-shot, greedy, beam and exhaustive.")
    if options["protect"] is not None and strategy is None:
        raise UsageError("--protect belongs to --strategy; with --layers leave the layers out that are to stay.")

    def plan(checkpoint: Checkpoint) -> tuple[LayerPlan, LayerImportance | None]:
        from merge.layers.strategies.choose import drop_plan

        total = layer_count(checkpoint.config, options["stack"])
        if named is not None:
            return LayerPlan.without(parse_layers(named, total), total, options["stack"]), None
        return drop_plan(checkpoint, drop_settings(options, strategy, options["count"], checkpoint))

    _edit(model, plan, options)


@_command("reorder", "Change the order of layers.")
@click.argument("model")
@click.option("--order", required=True, help="All layers in the new order, such as 0,2,1,3-11.")
@text_options
@_options
def reorder_command(model: str, order: str, **options: Any) -> None:
    """Change the order of the layers of MODEL.

    \b
    Example:
      edit-layers reorder m/ --order 0,2,1,3-11
    """
    from merge.layers.stacks import layer_count

    check_text_is_read(options, False)

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


@_command("stack", "Take layers in any order, with repetitions.")
@click.argument("model")
@click.option("--layers", required=True, help="The layers of the new model in order, such as 0-7,4-11.")
@text_options
@_options
def stack_command(model: str, layers: str, **options: Any) -> None:
    """Build a model from layers of MODEL, in any order and with repetitions.

    \b
    Example:
      edit-layers stack m/ --layers 0-7,4-11      # 12 layers become 16
    """
    from merge.layers.stacks import layer_count

    check_text_is_read(options, False)

    def plan(checkpoint: Checkpoint) -> tuple[LayerPlan, None]:
        total = layer_count(checkpoint.config, options["stack"])
        return LayerPlan.keep(parse_layers(layers, total), options["stack"]), None

    _edit(model, plan, options)


@_command("apply", "Build a model by a plan of layers of several models.")
@click.argument("models", nargs=-1, required=True)
@click.option(
    "--plan",
    "text_of_plan",
    metavar="PLAN",
    help="The layers of the new model in order; or a .json file of a plan, such as the edit.json of an edit.",
)
@click.option(
    "--align", metavar="BY", help="Align every model to the first before layers are taken: auto, weights, ..."
)
@text_options
@_options
def apply_command(models: tuple[str, ...], text_of_plan: str | None, align: str | None, **options: Any) -> None:
    """Build a model by a plan of layers of MODELS, named A, B, ... or as A=PATH; or by a recipe (.yaml, .json).

    \b
    A[0-3]           layers 0 to 3 of model A; A[3-0] downwards, A[5,7] those two
    A[3]*2           layer 3 twice
    mean(A1, B1)     the mean of two layers; mean(0.7*A1, 0.3*B1) with weights
    laco(A[2-4])     layers 3 and 4 collapsed into layer 2 (LaCo, by its formula)
    zero(A[3])       a copy that writes nothing yet (LLaMA Pro)
    A[3]-attention   layer 3 without its attention; A[3]-ffn without its feed-forward part
    affine(A2->A5)   a layer fitted on --text in place of layers 2 to 4

    \b
    Examples:
      edit-layers apply m/ --plan 'A[0-1], affine(A2->A5), A[5]' --text sample.txt
      edit-layers apply A=m/ B=n/ --plan 'A[0-3], B[4-5]' --align weights --repair auto -o spliced
      edit-layers apply m/ --plan 'A[0-7], A[4-11]'
      edit-layers apply layers.yaml
    """
    from merge.commands.apply_layers import apply_plan

    apply_plan(models, text_of_plan, align, options)


@_command("compare", "Print a table of plans and strategies with their scores.")
@click.argument("models", nargs=-1, required=True)
@click.option(
    "--plan", "plans", metavar="PLAN", multiple=True, help="A plan to compare, as apply takes it; repeatable."
)
@click.option(
    "--strategy", "strategies", metavar="NAME,...", help="Strategies to compare, with --count; all of them: all."
)
@click.option("--count", "counts", metavar="N,...", help="How many layers strategies drop, such as 1,2,3.")
@click.option("--protect", metavar="LAYERS", help="Layers that strategies never drop.")
@click.option("--beam", type=click.IntRange(min=1), help="Candidates that beam keeps in a round.  [default: 4]")
@click.option("--stack", default="", help="List of layers, in models with two.")
@click.option("--revision", help="Hub revision of the models.")
@click.option(
    "--report", "reports", multiple=True, metavar="FILE", help="Write the table as .json or .csv; repeatable."
)
@click.option("--plot", metavar="FILE", help="Write a figure of score against layers, .png or .svg.")
@score_options
@text_options
@repair_options
@common_options
def compare_command(models: tuple[str, ...], **options: Any) -> None:
    """Print a table of plans and strategies: layers, parameters, speed, score, % of full, % above no layer at all.

    Nothing is written but the reports that are asked for. Without --scorer no labels are needed: the score is the agreement
    with the full model on --text. With --repair, every plan is shown plain and repaired.

    \b
    Examples:
      edit-layers compare m/ --strategy top,symmetric,greedy --count 1,2 --text sample.txt --report table.csv
      edit-layers compare m/ --plan 'A[0,1,5]' --repair seam --scorer 'python score.py {model}'
    """
    from merge.commands.compare_layers import compare

    compare(models, options)


def edit_main() -> None:
    """Run edit-layers."""
    start(edit_command, "edit-layers", sys.argv[1:])


def _edit(
    model: str, make_plan: Callable[[Checkpoint], tuple[LayerPlan, LayerImportance | None]], options: dict[str, Any]
) -> None:
    """Open the model, write the edited checkpoint and print the report."""
    write_edit(["A"], [model], lambda checkpoints: make_plan(checkpoints[0]), options, None)
