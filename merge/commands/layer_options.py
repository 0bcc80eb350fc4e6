"""Options that the edits of layers share: text, repair, alignment, scores."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from merge.commands.terminal import MAX_COUNT, NAMES
from merge.errors import UsageError

if TYPE_CHECKING:
    from merge.alignment.settings import AlignEntry
    from merge.checkpoints.checkpoint import Checkpoint
    from merge.layers.compare import AssemblyScore
    from merge.layers.repair.repair import RepairSettings
    from merge.layers.strategies.choose import DropSettings
    from merge.text.source import TextSource

Command = Callable[..., Any]
TEXT_OPTIONS = ("text", "text_column", "samples", "seed")
KINDS = ("none", "auto", "seam", "affine")
MEASURES = ("cosine", "rsa", "kl")
# Sections of every edit's --help: title -> parameter names. Those of no section say which layers.
SECTIONS = {
    "Layers": (),
    "Score": ("score", "scorer", "metric", "lower_is_better"),
    "Text": ("text", "text_column", "samples", "seed"),
    "Repair": ("repair", "ridge", "heal_steps", "heal_rate"),
    "Output": ("output", "force", "dry_run", "reports", "plot", "as_json"),
    "Run": ("revision", "quiet", "verbose"),
}


def decorated(command: Command, options: Sequence[Callable[[Command], Command]]) -> Command:
    """Add options to a command, in their order."""
    for option in reversed(options):
        command = option(command)
    return command


def text_options(command: Command) -> Command:
    """Add --text and how it is drawn."""
    return decorated(
        command,
        (
            click.option(
                "--text", help="Text to measure, fit and heal on: .txt, .jsonl, .csv, .tsv, or a Hub dataset id."
            ),
            click.option(
                "--text-column", type=NAMES, metavar="COL[,COL]", help="Column of --text; two for text pairs."
            ),
            click.option("--samples", type=click.IntRange(min=1), help="Texts drawn from --text.  [default: 512]"),
            click.option("--seed", type=click.IntRange(min=0), help="Seed of the draw.  [default: 0]"),
        ),
    )


def repair_options(command: Command) -> Command:
    """Add --repair, --ridge and --heal-steps."""
    return decorated(
        command,
        (
            click.option(
                "--repair",
                type=click.Choice(KINDS),
                default="none",
                show_default=True,
                help="For missing layers: seam refits the layer below, affine fits a layer in their place, auto refits where "
                "that brings held-out text nearer to the full model.",
            ),
            click.option(
                "--ridge", type=float, help="Pull of fits towards the old weights.  [default: by held-out text]"
            ),
            click.option(
                "--heal-steps", type=click.IntRange(0, MAX_COUNT), default=0, help="Steps of distillation afterwards."
            ),
            click.option(
                "--heal-rate", type=float, default=2e-4, show_default=True, help="Rate of its optimiser, AdamW."
            ),
        ),
    )


def score_options(command: Command) -> Command:
    """Add the options of scores."""
    return decorated(
        command,
        (
            click.option(
                "--score",
                type=click.Choice(MEASURES),
                help="Score without labels: agreement with the full model.  [default: cosine]",
            ),
            click.option(
                "--scorer", help="Command that prints a candidate's score; {model} is replaced by its folder."
            ),
            click.option("--metric", help="Key of the score, where the scorer prints JSON, such as mnli/accuracy."),
            click.option("--lower-is-better", is_flag=True, help="The scorer prints a loss."),
        ),
    )


def text_source(options: Mapping[str, Any]) -> TextSource:
    from merge.text.source import TextSource

    samples = 512 if options.get("samples") is None else options["samples"]
    return TextSource(options.get("text"), options.get("text_column"), samples, options.get("seed") or 0)


def repair_settings(options: Mapping[str, Any]) -> RepairSettings:
    from merge.layers.repair.repair import RepairSettings

    return RepairSettings(
        options["repair"], text_source(options), options["ridge"], options["heal_steps"], options["heal_rate"]
    )


def scorer_of(options: Mapping[str, Any]) -> AssemblyScore | None:
    """Return the score by a command; None where there is none, and the label-free one is meant."""
    from merge.run.search.layer_scorer import layer_scorer

    if options["scorer"] is None:
        if options["metric"] is not None or options["lower_is_better"]:
            raise UsageError("--metric and --lower-is-better say how the output of --scorer is read. Give a --scorer.")
        return None
    if options["score"] is not None:
        raise UsageError("--score is a score without labels, --scorer a command. Give one of them.")
    return layer_scorer(options["scorer"], options["metric"], options["lower_is_better"])


def check_text_is_read(options: Mapping[str, Any], reads: bool) -> None:
    """Stop at options of text that nothing reads."""
    healed = options["repair"] != "none" or options["heal_steps"]
    unused = [f"--{name.replace('_', '-')}" for name in TEXT_OPTIONS if options[name] is not None]
    if unused and not (healed or reads):
        verb = "has" if len(unused) == 1 else "have"
        raise UsageError(
            f"{', '.join(unused)} {verb} no effect without --strategy contribution or another that measures, --repair or "
            "--heal-steps."
        )
    if options["ridge"] is not None and options["repair"] == "none" and not reads:
        raise UsageError("--ridge has no effect without --repair.")


def named_models(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """Return the names and the paths of models typed as `A=path`, or as paths, which are then A, B, ...

    Raises:
        UsageError: a name is taken twice, or some models have names and others none.
    """
    from merge.layers.plans.text import model_letter

    names, paths = [], []
    for number, argument in enumerate(arguments):
        match = None if Path(argument).is_dir() else re.fullmatch(r"([A-Za-z_]+)=(.+)", argument)
        names.append(match[1] if match else model_letter(number))
        paths.append(match[2] if match else argument)
    if doubled := sorted({name for name in names if names.count(name) > 1}):
        raise UsageError(f"two models are named {doubled[0]}. Name every model: A=m/ B=n/.")
    return names, paths


def opened(paths: Sequence[str], revision: str | None) -> list[Checkpoint]:
    from merge.checkpoints.open import open_checkpoint

    return [open_checkpoint(path, revision) for path in paths]


def align_entry(by: str, options: Mapping[str, Any]) -> AlignEntry:
    """Return the settings of an alignment; its text is the same that layers are fitted on."""
    from pydantic import ValidationError

    from merge.alignment.settings import AlignEntry

    stated = {name: options[name] for name in ("text", "text_column", "samples") if options.get(name) is not None}
    try:
        return AlignEntry(by=by, **stated)
    except ValidationError as error:
        raise UsageError(f"--align: {error.errors()[0]['msg'].removeprefix('Value error, ')}") from None


def drop_settings(options: Mapping[str, Any], strategy: str, count: int, checkpoint: Checkpoint) -> DropSettings:
    """Return how layers to drop are selected; candidates are scored by the command where one is given."""
    from merge.layers.assembly import assemble
    from merge.layers.plans.numbers import parse_layers
    from merge.layers.plans.plan import LayerPlan
    from merge.layers.strategies.choose import DropSettings
    from merge.layers.strategies.search import BEAM

    scorer = scorer_of(options)
    protected = () if options["protect"] is None else parse_layers(options["protect"])

    def score(plan: LayerPlan) -> float:
        assert scorer is not None
        return scorer(assemble([checkpoint.with_extra()], plan))

    return DropSettings(
        strategy,
        count,
        text_source(options),
        options["stack"],
        protected,
        None if scorer is None else score,
        options["score"] or "cosine",
        options["beam"] or BEAM,
    )
