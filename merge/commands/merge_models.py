"""The merge-models command: merge (the default), push, card, verify."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import click

from merge.commands.align_options import align_options
from merge.commands.flags import recipe_of_flags
from merge.commands.publish import _push, card_command, push_command, verify_command
from merge.commands.statistics import statistics_command
from merge.commands.terminal import NAMES, NUMBERS, common_options, set_verbosity, start
from merge.errors import UsageError
from merge.methods import METHODS
from merge.run.report_text import report_text

EPILOG = """\b
Examples:
  merge-models a/ b/ --align activations --text train.jsonl -o merged
  merge-models a/ b/ c/ --weights 2,1,1 -o soup
  merge-models a/ b/ --method slerp --set lam=0.3
  merge-models --recipe recipes/align.yaml
  merge-models org/a org/b --align weights --push-to-hub me/merged --private

\b
More commands:
  merge-models push FOLDER ORG/NAME     put a merged folder on the Hub
  merge-models card FOLDER --results F  write evaluation results into its card
  merge-models verify FOLDER            is it still what its manifest says?
  merge-models statistics MODEL         measure what fisher and regmean need, into a file
"""


@click.command(epilog=EPILOG, context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("models", nargs=-1)
@click.option(
    "--recipe", "recipe_file", type=click.Path(path_type=Path), help="Read everything from a YAML recipe instead."
)
@click.option("--method", metavar="NAME", help=f"How to merge: {', '.join(METHODS)}.  [default: linear]")
@click.option("--set", "settings", metavar="KEY=VALUE", multiple=True, help="A setting of the method; repeat for more.")
@click.option("--base", metavar="MODEL", help="The model the others were fine-tuned from, for methods of task vectors.")
@click.option("--base-lacks", metavar="RULE", help="What becomes of tensors the base lacks: average or reference.")
@click.option(
    "--heads", metavar="RULE", help="Task heads: average, reference, drop or keep-all.  [default: labels must be equal]"
)
@click.option("--weights", type=NUMBERS, metavar="W,W,...", help="One weight per model, as --set weights=... would.")
@align_options
@click.option(
    "--statistics-text", metavar="TEXT", help="Text that fisher, regmean or cocktail read.  [default: our own]"
)
@click.option(
    "--statistics-column", type=NAMES, metavar="COL[,COL]", help="Column of --statistics-text to read; two for pairs."
)
@click.option(
    "--label-column",
    metavar="COL",
    help="Column of class names, for cocktail (in --statistics-text) and learned alignment (in --text).",
)
@click.option("--statistics-samples", type=int, help="Texts drawn from --statistics-text.  [default: 512]")
@click.option(
    "--tokenizer", metavar="SOURCE", help="Whose vocabulary: reference, base, union or a model.  [default: all agree]"
)
@click.option("--seed", type=int, help="Seed of everything random.  [default: 0]")
@click.option("--dtype", help="Arithmetic: float32 or float64.  [default: float32, float64 where a model is]")
@click.option("--out-dtype", help="What to write: float32, float16, bfloat16, float64.  [default: as the models are]")
@click.option("--revision", multiple=True, help="Hub revision; once for all models, or once for each.")
@click.option("-o", "--output", help="Folder to write.  [default: merged]")
@click.option("--threads", type=click.IntRange(min=1), help="Threads that merge tensors.  [default: one per core]")
@click.option(
    "--device",
    default="cpu",
    help="Where tensors are merged and models run (cpu, cuda, cuda:1); --repair and transport stay on the CPU.  [default: cpu]",
)
@click.option("--recheck", is_flag=True, help="Load the result with transformers even if its layout is known to load.")
@click.option("--force", is_flag=True, help="Replace the output folder if it is a checkpoint.")
@click.option("--dry-run", is_flag=True, help="Check, align and prove, but write nothing.")
@click.option("--print-recipe", is_flag=True, help="Print the recipe that these flags spell, and stop.")
@click.option("--push-to-hub", metavar="ORG/NAME", help="Push the result to the Hub afterwards.")
@click.option("--private", is_flag=True, help="With --push-to-hub: a private repository.")
@click.version_option(package_name="merge-models", prog_name="merge-models")
@common_options
def merge_command(models: tuple[str, ...], **options: Any) -> None:
    """Align, merge and prove transformer models of one architecture.

    MODELS are checkpoint folders or Hub ids (org/name); the first is the reference that others are aligned to. The
    result is a standard checkpoint that from_pretrained loads.
    """
    set_verbosity(options["verbose"], options["quiet"])
    if options["private"] and not options["push_to_hub"]:
        raise UsageError("--private belongs to --push-to-hub ORG/NAME.")
    if options["push_to_hub"]:
        from merge.checkpoints.hub.download import check_id

        check_id(options["push_to_hub"])
    recipe = recipe_of_flags(models, options)
    if options["push_to_hub"] and recipe.heads == "keep-all":
        raise UsageError(
            "--push-to-hub pushes one model, and --heads keep-all writes several. Push each: merge-models push."
        )
    if options["print_recipe"]:
        click.echo(recipe.to_yaml(), nl=False)
        return
    from merge.run.manifest import report_facts
    from merge.run.options import RunOptions
    from merge.run.run import run

    run_options = RunOptions(options["threads"], options["device"], options["recheck"])
    report = run(recipe, options["force"], options["dry_run"], run_options)
    if not options["quiet"]:
        for note in report.notes:
            click.echo(f"note: {note}", err=True)
    if options["as_json"]:
        facts = {k: v for k, v in report_facts(report).items() if k != "recipe_yaml"}
        click.echo(json.dumps({"output": None if options["dry_run"] else recipe.output, **facts}, indent=2))
    else:
        click.echo(report_text(report, options["dry_run"]))
    if options["push_to_hub"] and options["dry_run"]:
        click.echo(f"would push {recipe.output} to {options['push_to_hub']} once it is written", err=True)
    elif options["push_to_hub"]:
        # With --json nothing but the report goes to stdout.
        _push(
            Path(recipe.output).expanduser(),
            options["push_to_hub"],
            options["private"] or None,
            None,
            err=options["as_json"],
        )


COMMANDS = {
    "push": push_command,
    "card": card_command,
    "verify": verify_command,
    "statistics": statistics_command,
}


def main() -> None:
    """Run merge-models: a first word that names a command runs it, anything else is a merge."""
    arguments = sys.argv[1:]
    if arguments and arguments[0] in COMMANDS:
        start(COMMANDS[arguments[0]], f"merge-models {arguments[0]}", arguments[1:])
    else:
        start(merge_command, "merge-models", arguments)
