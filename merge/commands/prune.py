"""edit-layers prune-heads, prune-neurons and prune-embeddings: fewer heads, neurons or tokens in one checkpoint."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from merge.commands.sections import SectionedCommand
from merge.commands.terminal import NAMES, common_options, set_verbosity
from merge.errors import UsageError

if TYPE_CHECKING:
    from merge.checkpoints.checkpoint import Checkpoint
    from merge.layers.pruning.prune import Choice
    from merge.layers.pruning.write import PruneReport
    from merge.text.source import TextSource

HELP = {"help_option_names": ["-h", "--help"]}
# Sections of --help: title -> parameter names. Those of no section say what is removed.
SECTIONS = {
    "What to remove": (),
    "Text": ("text", "text_column", "samples", "seed", "loss", "label_column"),
    "Output": ("output", "force", "dry_run", "as_json"),
    "Run": ("revision", "quiet", "verbose"),
}
SCORE_NAMES = ("gate-gradient", "lesion", "activation", "weight-norm")
LOSS_NAMES = ("own", "masked", "labels")
TEXT_OPTIONS = ("text", "text_column", "samples", "seed", "loss", "label_column")
DEFAULT_SAMPLES = 128
DEFAULT_TOLERANCE = 1e-6

SCORE_HELP = f"Remove the units with the lowest score: {', '.join(SCORE_NAMES)}."
LOSS_HELP = "Loss of gate-gradient: own (no labels), masked (masked words) or labels.  [default: own]"
REDUNDANT_HELP = (
    "Remove neurons that nothing reads, or that have another's input weights, and give it their outgoing weights."
)
UNKNOWN_HELP = "Drop tokens even if a character of theirs has no token of its own; other texts may become unknown."
WHOLE_TEXT_HELP = "Text whose tokens stay, read whole: .txt, .jsonl, .csv, .tsv (or .gz), or a Hub dataset id."


def _command(name: str, short_help: str) -> Callable[[Callable[..., Any]], click.Command]:
    """Return a decorator that makes a function a command."""
    return click.command(name, cls=SectionedCommand, sections=SECTIONS, short_help=short_help, context_settings=HELP)


def _options(*options: Callable[..., Any]) -> Callable[..., Any]:
    """Return a decorator that adds options in their order, then those that all three commands share."""
    shared: tuple[Callable[..., Any], ...] = (
        click.option("--revision", help="Hub revision of the model."),
        click.option("-o", "--output", default="pruned", show_default=True, help="Folder to write."),
        click.option("--force", is_flag=True, help="Replace the output folder if it is a checkpoint."),
        click.option("--dry-run", is_flag=True, help="Show what would be removed; write nothing."),
        common_options,
    )

    def add(command: Callable[..., Any]) -> Callable[..., Any]:
        for option in reversed((*options, *shared)):
            command = option(command)
        return command

    return add


def _unit_options(what: str, one: str) -> tuple[Callable[..., Any], ...]:
    """Return the options that choose heads or neurons by a score."""
    return (
        click.option("--score", metavar="NAME", help=SCORE_HELP),
        click.option("--count", type=int, help=f"With --score: number of {what} to remove."),
        click.option("--share", type=float, help=f"With --score: share of the {what} to remove, such as 0.25."),
        click.option("--per-layer", is_flag=True, help="Count or share is of each layer, not of all together."),
        click.option(
            "--protect", metavar="LAYERS", help=f"With --score: layers that keep every {one}, such as 0,10-11."
        ),
        click.option(
            "--shrink", is_flag=True, help=f"Cut the {what} out, so that the model is smaller; else zero them."
        ),
        click.option("--stack", default="", help="Text or vision, in models with both."),
        click.option("--text", help="Text for the score: .txt, .jsonl, .csv, .tsv (or .gz), or a Hub dataset id."),
        click.option("--text-column", type=NAMES, metavar="COL[,COL]", help="Column of --text; two for text pairs."),
        click.option("--samples", type=int, help=f"Texts drawn from --text.  [default: {DEFAULT_SAMPLES}]"),
        click.option("--seed", type=int, help="Seed of everything random.  [default: 0]"),
        click.option("--loss", metavar="NAME", help=LOSS_HELP),
        click.option("--label-column", help="Column of class names in --text, for --loss labels."),
    )


@_command("prune-heads", "Remove attention heads, listed or by a score.")
@click.argument("model")
@click.argument("more", nargs=-1, metavar="")
@click.option(
    "--heads", multiple=True, metavar="LAYER:HEADS", help="Heads to remove, such as 0:1,3 2:5; counted from 0."
)
@_options(*_unit_options("heads", "head"))
def heads_command(model: str, more: tuple[str, ...], heads: tuple[str, ...], **options: Any) -> None:
    """Remove attention heads of MODEL, listed or with the lowest score.

    The output of a removed head is zeroed in the weights that read it: the model keeps its size and computes exactly what
    it would with that output multiplied by zero. With --shrink heads are cut out, in families whose config states the size
    of a head (Llama, Mistral, Qwen, ViT, ...) and with as many in every layer; BERT cannot say it.

    \b
    gate-gradient  what a gate on the head would change, to second order, without labels; a backward pass a text
    lesion         divergence from the full model without the head, one at a time; a run of the text a head
    activation     mean norm of what the head adds to the residual stream
    weight-norm    norms of the head's weights; reads no text

    The first two are meant for use without training afterwards, the others before it.

    \b
    Examples:
      edit-layers prune-heads m/ --heads 0:1,3 2:5 -o fewer
      edit-layers prune-heads m/ --score gate-gradient --count 12 --text sample.txt --protect 0
      edit-layers prune-heads llama/ --score lesion --count 2 --per-layer --shrink
    """
    _units(model, "heads", _listed(heads, more, "heads"), None, options)


@_command("prune-neurons", "Remove feed-forward neurons, listed or by a score.")
@click.argument("model")
@click.argument("more", nargs=-1, metavar="")
@click.option(
    "--neurons",
    multiple=True,
    metavar="FILE|LAYER:NEURONS",
    help="Neurons to remove, such as 0:1,3 2:0-99; or a file of such lines, or of JSON.",
)
@click.option("--redundant", is_flag=True, help=REDUNDANT_HELP)
@click.option(
    "--tolerance", type=float, help=f"With --redundant: largest relative difference.  [default: {DEFAULT_TOLERANCE:g}]"
)
@_options(*_unit_options("neurons", "neuron"))
def neurons_command(
    model: str,
    more: tuple[str, ...],
    neurons: tuple[str, ...],
    redundant: bool,
    tolerance: float | None,
    **options: Any,
) -> None:
    """Remove feed-forward neurons of MODEL: listed, redundant, or with the lowest score.

    The output of a removed neuron is zeroed in the weights that read it. With --shrink neurons are cut out and the width in
    config.json is that of the widest layer that is left; narrower layers are filled up with zeros. Scores: see
    edit-layers prune-heads --help.

    \b
    Examples:
      edit-layers prune-neurons m/ --score gate-gradient --share 0.25 --per-layer --shrink -o narrower
      edit-layers prune-neurons m/ --neurons 0:1,3 2:0-99
      edit-layers prune-neurons m/ --redundant --shrink
    """
    if tolerance is not None and not redundant:
        raise UsageError("--tolerance has no effect without --redundant.")
    limit = None if not redundant else DEFAULT_TOLERANCE if tolerance is None else tolerance
    _units(model, "neurons", _listed(neurons, more, "neurons"), limit, options)


@_command("prune-embeddings", "Trim the vocabulary to the tokens of a text.")
@click.argument("model")
@_options(
    click.option("--text", required=True, help=WHOLE_TEXT_HELP),
    click.option("--text-column", type=NAMES, metavar="COL[,COL]", help="Column of --text; two for text pairs."),
    click.option("--allow-unknown", is_flag=True, help=UNKNOWN_HELP),
)
def embeddings_command(model: str, text: str, **options: Any) -> None:
    """Trim the vocabulary of MODEL to the tokens of a text.

    Special tokens and all tokens of one character or byte stay too, so that other texts can still be read, in smaller
    pieces. The tokenizer, the embeddings, the rows of a language model's head and the ids in the configs follow; outputs on
    the text are what they were, which is checked before anything is written.

    \b
    Example:
      edit-layers prune-embeddings xlm-roberta/ --text german.jsonl --text-column sentence -o german
    """
    from merge.text.source import TextSource

    def prune(checkpoint: Checkpoint, output: Path) -> PruneReport:
        from merge.layers.pruning.embeddings import prune_embeddings

        source = TextSource(text, options["text_column"])
        more = (options["allow_unknown"], options["force"], options["dry_run"])
        return prune_embeddings(checkpoint, source, output, *more)

    _run(model, prune, options)


COMMANDS = (heads_command, neurons_command, embeddings_command)


def _listed(given: tuple[str, ...], more: tuple[str, ...], what: str) -> dict[int, tuple[int, ...]] | None:
    """Return the units of --heads or --neurons; further ones may follow as arguments, as in --heads 0:1,3 2:5."""
    from merge.layers.pruning.selection import parse_units, read_units

    if more and not given:
        raise UsageError(f"unexpected argument {more[0]!r}. Lists are given as --{what} 0:1,3 2:5.")
    if not given:
        return None
    files = [text for text in given if Path(text).expanduser().is_file()]
    if files and (len(given) > 1 or more):
        raise UsageError(f"--{what} takes one file, or lists such as 0:1,3 2:5; found both or several.")
    return read_units(Path(files[0]).expanduser(), what) if files else parse_units([*given, *more], what)


def _units(
    model: str, kind: str, listed: dict[int, tuple[int, ...]] | None, redundant: float | None, options: dict[str, Any]
) -> None:
    """Prune heads or neurons."""
    choice = _choice(listed, redundant, options)
    from merge.layers.pruning.prune import check_choice, prune_units

    check_choice(kind, choice)

    def prune(checkpoint: Checkpoint, output: Path) -> PruneReport:
        more = (options["shrink"], options["stack"], options["force"], options["dry_run"])
        return prune_units(checkpoint, kind, choice, output, *more)

    _run(model, prune, options)


def _choice(listed: dict[int, tuple[int, ...]] | None, redundant: float | None, options: dict[str, Any]) -> Choice:
    """Return how units are chosen.

    Raises:
        UsageError: an option has no effect.
    """
    from merge.layers.plans.numbers import parse_layers
    from merge.layers.pruning.prune import Choice

    score = options["score"]
    unused = [f"--{name.replace('_', '-')}" for name in TEXT_OPTIONS if options[name] is not None]
    if unused and score in (None, "weight-norm"):
        without = "a --score" if score is None else "a score that reads text"
        raise UsageError(f"{', '.join(unused)} {'has' if len(unused) == 1 else 'have'} no effect without {without}.")
    of_gradient = [f"--{n.replace('_', '-')}" for n in ("loss", "label_column") if options[n] is not None]
    if of_gradient and score != "gate-gradient":
        raise UsageError(f"{of_gradient[0]} has no effect without --score gate-gradient.")
    return Choice(
        listed=listed,
        redundant=redundant,
        score=score,
        count=options["count"],
        share=options["share"],
        per_layer=options["per_layer"],
        protected=() if options["protect"] is None else parse_layers(options["protect"]),
        source=_source(options),
        loss=options["loss"] or "own",
        label_column=options["label_column"],
    )


def _source(options: dict[str, Any]) -> TextSource:
    from merge.text.source import TextSource

    samples = DEFAULT_SAMPLES if options["samples"] is None else options["samples"]
    return TextSource(options["text"], options["text_column"], samples, options["seed"] or 0)


def _run(model: str, prune: Callable[[Checkpoint, Path], PruneReport], options: dict[str, Any]) -> None:
    """Open the model, write the pruned checkpoint and print the report."""
    set_verbosity(options["verbose"], options["quiet"])
    from merge.checkpoints.open import open_checkpoint
    from merge.disk.staging import output_notes
    from merge.layers.pruning.write import prune_facts, report_text

    output = Path(options["output"]).expanduser()
    checkpoint = open_checkpoint(model, options["revision"])
    output_notes(output, options["force"], [checkpoint.folder], options["dry_run"])
    report = prune(checkpoint, output)
    if not options["quiet"]:
        for note in report.notes:
            click.echo(f"note: {note}", err=True)
    if options["as_json"]:
        written = None if options["dry_run"] else options["output"]
        click.echo(json.dumps({"output": written, **prune_facts(report)}, indent=2))
    else:
        click.echo(report_text(report))
