"""The merge-models command: merge (the default), push, card, verify."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from merge.align_options import FLAGS, align_entry, align_options
from merge.errors import OutputError, RecipeError, UsageError
from merge.methods import METHODS
from merge.statistics_command import statistics_command
from merge.terminal import common_options, progress, set_verbosity, start

if TYPE_CHECKING:
    from merge.aligned import Aligned
    from merge.recipe import Recipe
    from merge.report import Report

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
@click.option("--weights", metavar="W,W,...", help="One weight per model, as --set weights=... would.")
@align_options
@click.option(
    "--statistics-text", metavar="TEXT", help="Text that fisher, regmean or cocktail read.  [default: our own]"
)
@click.option("--statistics-column", metavar="COL[,COL]", help="Column of --statistics-text to read; two for pairs.")
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
@click.option("--device", default="cpu", help="Where the arithmetic is done: cpu, cuda, cuda:1.  [default: cpu]")
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
    set_verbosity(options["verbose"])
    if options["private"] and not options["push_to_hub"]:
        raise UsageError("--private belongs to --push-to-hub ORG/NAME.")
    if options["push_to_hub"]:
        from merge.hub import check_id

        check_id(options["push_to_hub"])
    recipe = _recipe(models, options)
    if options["push_to_hub"] and recipe.heads == "keep-all":
        raise UsageError(
            "--push-to-hub pushes one model, and --heads keep-all writes several. Push each: merge-models push."
        )
    if options["print_recipe"]:
        click.echo(recipe.to_yaml(), nl=False)
        return
    from merge.report import report_facts
    from merge.run import Means, run

    means = Means(options["threads"], options["device"], options["recheck"], progress(options["quiet"]))
    report = run(recipe, options["force"], options["dry_run"], means)
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


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("folder", type=click.Path(path_type=Path))
@click.argument("repo_id", metavar="ORG/NAME")
@click.option("--private/--public", default=None, help="Visibility of a new repository.  [default: the account's]")
@click.option("--revision", help="Branch to commit to; made if it does not exist.")
@click.option("--dry-run", is_flag=True, help="Show files, sizes, target and card; send nothing.")
def push_command(folder: Path, repo_id: str, private: bool | None, revision: str | None, dry_run: bool) -> None:
    """Put a merged FOLDER on the Hub as ORG/NAME, in one commit.

    \b
    Example:
      merge-models push merged/ me/my-merge --private --dry-run
    """
    if dry_run:
        _show_push(folder, repo_id, private)
    else:
        _push(folder, repo_id, private, revision)


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--results", type=click.Path(path_type=Path), required=True, help="A results.json of evaluate-models.")
def card_command(folder: Path, results: Path) -> None:
    """Write evaluation results into the card (README.md) of a merged FOLDER.

    \b
    Example:
      merge-models card merged/ --results report/results.json
    """
    from merge.card import add_results

    count = add_results(folder, results)
    click.echo(f"{folder / 'README.md'}: {count} results")


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
def verify_command(folder: Path, as_json: bool) -> None:
    """Recompute the hashes of a merged FOLDER and of its inputs, and compare them with merge.json.

    Exits 1 if a file was changed, is missing or was added, or if an input that is found is not what was merged.

    \b
    Example:
      merge-models verify merged/
    """
    from merge.verify import verify

    found = verify(folder)
    if as_json:
        click.echo(json.dumps({"holds": found.holds, "files": found.files, "inputs": found.inputs}, indent=2))
    else:
        for kind, states in (("file", found.files), ("input", found.inputs)):
            for name, state in states.items():
                click.echo(f"{kind}  {state:<19}  {name}")
    if not found.holds:
        raise OutputError(f"{folder} is not what its manifest says, or an input has become another model.")


# fmt: off
RECIPE_FLAGS = (
    "base", "base_lacks", "heads", "method", "settings", "weights", *FLAGS, "statistics_text",
    "statistics_column", "label_column", "statistics_samples", "tokenizer", "seed", "dtype", "out_dtype", "revision",
)
# fmt: on
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


def _recipe(models: tuple[str, ...], options: dict[str, Any]) -> Recipe:
    """Build the recipe from flags, or read it; --output, and nothing else, may change what a file says."""
    from merge.mergekit_yaml import read_any
    from merge.recipe import make_recipe

    given = [name for name in RECIPE_FLAGS if options[name] not in (None, ())]
    if options["recipe_file"] is not None:
        if models or given:
            said = ["models", *given] if models else given
            raise UsageError(
                f"--recipe holds the whole run; it cannot be mixed with {', '.join(said)}. Only -o may be added."
            )
        recipe, warnings = read_any(options["recipe_file"])
        for warning in warnings if not options["quiet"] else ():
            click.echo(f"note: {warning}", err=True)
        return (
            recipe
            if options["output"] is None
            else make_recipe({**recipe.model_dump(exclude_unset=True), "output": options["output"]})
        )
    if not models:
        raise UsageError("no models given. Example: merge-models a/ b/ --align activations. See merge-models --help.")
    settings = [_setting(text) for text in options["settings"]]
    if options["weights"] is not None:
        settings.append(("weights", _listed(options["weights"], "--weights", number=True)))
    twice = {key for key, _ in settings if [k for k, _ in settings].count(key) > 1}
    if twice:
        raise UsageError(f"setting {', '.join(sorted(twice))} is given twice. Give it once.")
    align, label_column = align_entry(options), options["label_column"]
    if align.get("by") == "learned" and label_column is not None:
        align, label_column = {**align, "label_column": label_column}, None
    column = options["statistics_column"]
    statistics = {
        "text": options["statistics_text"],
        "text_column": None if column is None else _listed(column, "--statistics-column"),
        "label_column": label_column,
        "samples": options["statistics_samples"],
    }
    record = {
        "models": [
            {"model": m, "revision": r} for m, r in zip(models, _revisions(models, options["revision"]), strict=True)
        ],
        "base": options["base"],
        "base_lacks": options["base_lacks"],
        "heads": options["heads"],
        # One model that is moved, and nothing else, is not merged.
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


def _revisions(models: tuple[str, ...], revisions: tuple[str, ...]) -> tuple[str | None, ...]:
    if len(revisions) <= 1:
        return (revisions or (None,)) * len(models)
    if len(revisions) != len(models):
        raise UsageError(f"{len(revisions)} revisions for {len(models)} models. Give one for all, or one for each.")
    return revisions


def _setting(text: str) -> tuple[str, Any]:
    from merge.strict_yaml import read_value

    key, equals, value = text.partition("=")
    if not equals or not key:
        raise UsageError(f"--set expects KEY=VALUE, found {text!r}. Example: --set lam=0.3")
    if "," in value and not value.lstrip().startswith(("[", '"', "'")):
        return key, _listed(value, f"--set {key}", number=True)
    try:
        return key, read_value(value)
    except RecipeError as error:
        raise RecipeError(f"--set {key}: {error}") from error


def _number(text: str) -> Any:
    """Return the number a text spells, or the text."""
    try:
        return float(text)
    except ValueError:
        return text


def _listed(text: str, option: str, number: bool = False) -> tuple[Any, ...]:
    parts = [part.strip() for part in text.split(",")]
    values = [_number(part) for part in parts] if number else parts
    if "" in parts or (number and any(isinstance(value, str) for value in values)):
        raise UsageError(f"{option} expects {'numbers' if number else 'names'} separated by commas, found {text!r}.")
    return tuple(values)


def _push(folder: Path, repo_id: str, private: bool | None, revision: str | None, err: bool = False) -> None:
    from merge.hub import plan_push, push

    url = push(plan_push(folder, repo_id, private), message="Upload merge made with merge-models", revision=revision)
    click.echo(f"pushed: {url}", err=err)


def _show_push(folder: Path, repo_id: str, private: bool | None) -> None:
    from merge.hub import plan_push

    plan = plan_push(folder, repo_id, private)
    total = sum(size for _, size in plan.files)
    click.echo(
        f"would push {len(plan.files)} files, {total:,} bytes, to {plan.repo_id} ({plan.visibility}), in one commit:"
    )
    for name, size in plan.files:
        click.echo(f"  {size:>14,}  {name}")
    click.echo(f"README.md:\n{plan.card}")


def report_text(report: Report, dry_run: bool) -> str:
    """Return what a run did, for the terminal."""
    lines = []
    for aligned in report.bases.aligned:
        lines += _aligned_text(aligned)
    if report.bases.calibration:
        lines.append(f"calibration text: {report.bases.calibration}")
    done = (
        "nothing written (dry run)"
        if dry_run
        else f"wrote {report.recipe.output} ({report.bytes:,} bytes), which reloads"
    )
    names = ", ".join(c.source for c in report.checkpoints)
    lines.append(
        f"merged {names} by {report.recipe.method}: {len(report.schedule.jobs)} tensors, {done}; {report.seconds:.1f} s"
    )
    return "\n".join(lines)


def _aligned_text(aligned: Aligned) -> list[str]:
    choice, kept = aligned.choice, aligned.choice.kept
    to = "" if aligned.reference == aligned.source else f" to {aligned.reference}"
    lines = [f"aligned {aligned.source}{to} by {aligned.by}"]
    if choice.common:
        return [*lines, f"  {choice.start}"]
    if choice.score:
        head, *body = choice.table()
        widths = [max(map(len, column)) for column in zip(head, *body, strict=True)]
        for row, candidate in zip((head, *body), (None, *choice.candidates), strict=True):
            cells = "  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True))
            lines.append(f"  {cells}  <- kept" if candidate is kept else f"  {cells}".rstrip())
    else:
        lines.append(f"  axes that move: {kept.name} (not scored)")
    objective = kept.alignment.objective
    if objective:
        unit = "mean correlation of matched units" if kept.by == "activations" else "objective per sweep"
        lines.append(f"  {unit}: {' -> '.join(f'{value:.4f}' for value in objective)}")
    moved = ", ".join(f"{kind} {m} of {n}" for kind, (m, n) in aligned.moved.items())
    proof = aligned.proof
    lines.append(f"  units that changed place: {moved}")
    lines += [f"  {line}" for line in (aligned.quality.table() if aligned.quality else ())]
    lines.append(
        f"  proof: {aligned.source} aligned equals itself to {proof.error:.1e} standard deviations of its "
        f"{', '.join(proof.outputs)} (bound {proof.bound:g}, float64, {proof.texts} texts)"
    )
    if aligned.transform.is_identity:
        lines.append("  nothing had to move: the models already share a basis, as fine-tunes of one start do")
    return lines
