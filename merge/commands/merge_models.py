"""The merge-models command: merges by default; push, card, verify and statistics are commands by name."""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path
from typing import Any

import click

from merge.commands.align_options import FLAGS, align_options, with_align_value
from merge.commands.flags import recipe_of_flags
from merge.commands.publish import card_command, push_command, push_folder, verify_command
from merge.commands.recipes import recipes_command
from merge.commands.sections import SectionedCommand
from merge.commands.statistics import statistics_command
from merge.commands.terminal import NAMES, NUMBERS, common_options, set_verbosity, start
from merge.errors import UsageError, closest
from merge.methods import METHODS, OTHER_SETTINGS
from merge.run.report_text import report_text

EPILOG = """\b
Examples:
  merge-models a/ b/ --align activations --text train.jsonl -o merged
  merge-models a/ b/ c/ --weights 2,1,1 -o soup
  merge-models a/ b/ --method slerp --set lam=0.3
  merge-models run/checkpoint-* --last 5 -o averaged
  merge-models --recipe recipes/align.yaml
  merge-models org/a org/b --align weights --push-to-hub me/merged --private
  merge-models ./push b/            # a model folder with the name of a command
"""


SECTIONS = {
    "What to merge": (
        "recipe_file", "method", "settings", "weights", "last", "ema", "base", "base_lacks", "heads", "config", "extra_tensors",
        "tokenizer", "revision",
    ),
    "Alignment": tuple(FLAGS),
    "Statistics": ("statistics", "statistics_text", "statistics_column", "label_column", "statistics_samples"),
    "Output": (
        "output", "force", "out_dtype", "dry_run", "print_recipe", "as_json", "push_to_hub", "private", "recheck",
    ),
    "Run": ("seed", "dtype", "threads", "device", "quiet", "verbose"),
}  # fmt: skip


@click.command(
    cls=SectionedCommand,
    sections=SECTIONS,
    epilog=EPILOG,
    context_settings={"help_option_names": ["-h", "--help"]},
)
@click.argument("models", nargs=-1)
@click.option(
    "--recipe", "recipe_file", type=click.Path(path_type=Path), help="Read all settings from a YAML recipe instead."
)
@click.option("--method", metavar="NAME", help=f"Merge method: {', '.join(METHODS)}.  [default: linear]")
@click.option("--set", "settings", metavar="KEY=VALUE", multiple=True, help="A setting of the method; may be repeated.")
@click.option(
    "--base", metavar="MODEL", help="The model that the others were fine-tuned from, for task-vector methods."
)
@click.option("--base-lacks", metavar="RULE", help="Rule for tensors missing from the base: average or reference.")
@click.option(
    "--extra-tensors",
    metavar="RULE",
    help="Rule for tensors that the models' class does not have: keep or drop.  [default: merge those that all have]",
)
@click.option(
    "--heads",
    metavar="RULE",
    help="Rule for task heads: average, reference, drop or keep-all.  [default: labels must be equal]",
)
@click.option(
    "--config",
    metavar="RULE",
    help="Rule for settings that decide outputs and differ (pooling, prompts, ...): reference.  [default: must be equal]",
)
@click.option(
    "--weights", type=NUMBERS, metavar="W,W,...", help="One weight per model; the same as --set weights=W,W,..."
)
@click.option(
    "--last",
    type=int,
    metavar="N",
    help="Average the last N checkpoints of a training run, by their steps: MODELS are checkpoint-* folders, or the run.",
)
@click.option(
    "--ema",
    type=float,
    metavar="DECAY",
    help="Average a run's checkpoints by an exponential moving average in place of equal weights.",
)
@align_options
@click.option(
    "--statistics",
    metavar="[MODEL=]FILE",
    multiple=True,
    help="For fisher and regmean: MODEL=FILE is text of that model's task, or its file of merge-models statistics, which needs "
    "no MODEL=. May be repeated.",
)
@click.option(
    "--statistics-text",
    metavar="TEXT",
    help="One text for all models, for fisher, regmean or cocktail; built-in is the package's own.",
)
@click.option(
    "--statistics-column", type=NAMES, metavar="COL[,COL]", help="Column of --statistics-text; two for text pairs."
)
@click.option(
    "--label-column",
    metavar="COL",
    help="Column of class names, for cocktail (in --statistics-text) and learned alignment (in --text).",
)
@click.option("--statistics-samples", type=int, help="Number of texts drawn from --statistics-text.  [default: 512]")
@click.option(
    "--tokenizer",
    metavar="SOURCE",
    help="Source of the vocabulary: reference, base, union or a model.  [default: must be equal]",
)
@click.option("--seed", type=int, help="Seed of all random choices.  [default: 0]")
@click.option(
    "--dtype", help="Dtype of the arithmetic: float32 or float64.  [default: float32, or float64 if a model is]"
)
@click.option(
    "--out-dtype", help="Dtype of the output: float32, float16, bfloat16, float64.  [default: that of the models]"
)
@click.option("--revision", multiple=True, help="Hub revision: one for all models, or one per model.")
@click.option("-o", "--output", help="Folder to write.  [default: merged]")
@click.option(
    "--threads",
    type=click.IntRange(min=1),
    help="Number of threads.  [default: one per core; to align at most 8]",
)
@click.option(
    "--device",
    default="cpu",
    help="Device for merging and running models (cpu, cuda, cuda:1); --repair and transport use the CPU.  [default: cpu]",
)
@click.option(
    "--recheck",
    is_flag=True,
    help="Load the result with transformers even if the same layout loaded before.",
)
@click.option("--force", is_flag=True, help="Replace the output folder if it is a checkpoint.")
@click.option("--dry-run", is_flag=True, help="Check and align the models, but write nothing.")
@click.option("--print-recipe", is_flag=True, help="Print the YAML recipe equal to these flags, and stop.")
@click.option("--push-to-hub", metavar="ORG/NAME", help="Upload the result to the Hub.")
@click.option("--private", is_flag=True, help="With --push-to-hub: create a private repository.")
@click.version_option(package_name="merge-models", prog_name="merge-models")
@common_options
def merge_command(models: tuple[str, ...], **options: Any) -> None:
    """Align and merge transformer models of one architecture.

    MODELS are checkpoint folders or Hub ids (org/name); the others are aligned to the first, the reference. The result
    is a standard checkpoint for from_pretrained. RECIPE.yaml in place of MODELS is a recipe.

    \b
    More commands (merge-models NAME --help):
      recipes      list or print the recipes that come with the package
      push         upload a merged folder to the Hub
      card         write evaluation results into a model card
      verify       check a merged folder against its manifest
      statistics   measure what fisher and regmean read, into a file
    """
    set_verbosity(options["verbose"], options["quiet"])
    check_first_word(models)
    if options["private"] and not options["push_to_hub"]:
        raise UsageError("--private has no effect without --push-to-hub ORG/NAME.")
    if options["push_to_hub"]:
        from merge.checkpoints.hub.download import check_id

        check_id(options["push_to_hub"])
    recipe = recipe_of_flags(models, options)
    if options["push_to_hub"] and recipe.heads == "keep-all":
        raise UsageError(
            "--push-to-hub uploads one model, but --heads keep-all writes several. Upload each with merge-models push."
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
        # With --json, stdout holds only the report.
        push_folder(
            Path(recipe.output).expanduser(),
            options["push_to_hub"],
            options["private"] or None,
            None,
            err=options["as_json"],
        )


def check_first_word(models: tuple[str, ...]) -> None:
    """Stop where the first argument is no folder, and nearly the name of a command.

    Raises:
        UsageError: names the command.
    """
    first = models[0] if models else ""
    if first == "help" and not Path(first).exists():
        raise UsageError("merge-models has no command help. See merge-models --help, or merge-models NAME --help.")
    if first and "/" not in first and (hint := closest(first, COMMANDS)) and not Path(first).exists():
        raise UsageError(f"{first} is neither a folder nor a command.{hint}")


def setting_hint(option: str) -> str | None:
    """Return advice for an unknown option that is a setting of a method, such as --density, or another tool's name of one."""
    key = option.removeprefix("--").replace("-", "_")
    ours = OTHER_SETTINGS.get(key)
    hints = []
    for name, says in ((key, f"{key} is a setting of"), (ours, f"{key} is called {ours} in")):
        methods = [
            each for each, method in METHODS.items() if name in {field.name for field in dataclasses.fields(method)}
        ]
        if methods:
            hints.append(f"{says} {', '.join(methods)}: write --set {name}=VALUE.")
    return " ".join(hints) or None


COMMANDS = {
    "push": push_command,
    "card": card_command,
    "verify": verify_command,
    "recipes": recipes_command,
    "statistics": statistics_command,
}


def main() -> None:
    """Run merge-models: the command that the first argument names, else a merge."""
    arguments = sys.argv[1:]
    if arguments and arguments[0] in COMMANDS:
        start(COMMANDS[arguments[0]], f"merge-models {arguments[0]}", arguments[1:])
    else:
        start(merge_command, "merge-models", with_align_value(arguments), hint=setting_hint)
