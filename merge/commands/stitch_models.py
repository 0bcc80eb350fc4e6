"""The stitch-models command: the bottom layers of one model, a fitted map, the top layers of another."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import click

from merge.commands.layer_options import text_options
from merge.commands.sections import SectionedCommand
from merge.commands.terminal import MAX_COUNT, common_options, set_verbosity, start
from merge.errors import UsageError

HELP = {"help_option_names": ["-h", "--help"]}
# The tables of merge.layers.stitching.kinds, here without loading pydantic, for which --help does not wait; a test compares them.
MAPS = ("identity", "scale", "permutation", "orthogonal", "low-rank", "affine", "affine+norm")
REFINEMENTS = ("none", "feature", "kl", "task")
TOKENS = ("same", "offsets")

SECTIONS = {
    "Stitch": ("at", "kind", "rank", "ridge", "tokens"),
    "Text": ("text", "text_column", "samples", "seed"),
    "Refinement": ("refine", "steps", "rate", "label_column"),
    "Output": ("output", "force", "dry_run", "revision", "as_json", "quiet", "verbose"),
}

EPILOG = """\b
Maps (x is the state of a token after the layers of A):
  identity      x as it is
  scale         every unit times its own factor, plus a constant
  permutation   the units of x in another order: A's units are reordered, no layer is added
  orthogonal    x rotated, plus a constant
  low-rank      x W + c, with W of --rank
  affine        x W + c
  affine+norm   x W + c fitted before the norm that wrote B's state

\b
Examples:
  stitch-models a/ b/ --at 3:4 --map affine --text sample.txt -o out
  stitch-models a/ a/ --at 3:3 --map identity -o same
  stitch-models a/ b/ --at 4:1 --map affine+norm --text sample.txt --refine kl --steps 60
  stitch-models a/ b/ --at 6:6 --text train.jsonl --refine task --label-column label
  stitch-models a/ b/ --at 3:3 --match-tokens offsets --text sample.txt --dry-run
"""


@click.command("stitch-models", cls=SectionedCommand, sections=SECTIONS, epilog=EPILOG, context_settings=HELP)
@click.version_option(package_name="merge-models", prog_name="stitch-models")
@click.argument("a")
@click.argument("b")
@click.option(
    "--at",
    required=True,
    metavar="K:M",
    help="The first K layers of A, then the layers of B from M on, counted from 0.",
)
@click.option(
    "--map",
    "kind",
    type=click.Choice(MAPS),
    default="affine",
    show_default=True,
    help="Family of the map between them.",
)
@click.option("--rank", type=click.IntRange(min=1), help="Rank of --map low-rank.  [default: an eighth of the units]")
@click.option("--ridge", type=float, help="Pull of a fit towards the best rotation.  [default: by held-out text]")
@click.option(
    "--match-tokens",
    "tokens",
    type=click.Choice(TOKENS),
    default="same",
    show_default=True,
    help="same: both models read the same tokens; offsets: those of two tokenizers are matched by the characters they cover.",
)
@text_options
@click.option(
    "--refine",
    type=click.Choice(REFINEMENTS),
    default="none",
    show_default=True,
    help="Train the fitted map: to B's state, to B's outputs, or to labels.",
)
@click.option("--steps", type=click.IntRange(1, MAX_COUNT), help="Steps of --refine.  [default: 100]")
@click.option("--rate", type=float, help="Rate of its optimiser, Adam.  [default: 0.001]")
@click.option("--label-column", metavar="COL", help="Column of --text with class names, for --refine task.")
@click.option("-o", "--output", default="stitched", show_default=True, help="Folder to write.")
@click.option("--force", is_flag=True, help="Replace the output folder if it is a checkpoint.")
@click.option("--dry-run", is_flag=True, help="Check both models and show the plan; fit and write nothing.")
@click.option("--revision", help="Hub revision of both models.")
@common_options
def stitch_command(a: str, b: str, **options: Any) -> None:
    """Stitch the bottom layers of A to the top layers of B, with a fitted map between them (Bansal et al. 2021).

    The result is a standard checkpoint for from_pretrained: embeddings and tokenizer of A, class, head and
    sentence-transformers modules of B. The map is fitted on --text in closed form, and takes a layer of its own where it
    cannot be written without one. What no standard layer can hold is refused, with the reason; evaluate-models stitch
    measures every stitch without writing it.
    """
    set_verbosity(options["verbose"], options["quiet"])
    from merge.commands.layer_options import opened, text_source
    from merge.commands.layer_report import edit_text
    from merge.disk.staging import output_notes
    from merge.layers.record import edit_facts
    from merge.layers.stitching.kinds import RATE, StitchSettings, parse_cut
    from merge.layers.stitching.stitch import stitch_models

    _check_read(options)
    settings = StitchSettings(
        parse_cut(options["at"]),
        options["kind"],
        text_source(options),
        options["rank"],
        options["ridge"],
        options["refine"],
        options["steps"] or 100,
        RATE if options["rate"] is None else options["rate"],
        options["tokens"],
        options["label_column"],
    )
    output = Path(options["output"]).expanduser()
    bottom, top = opened([a, b], options["revision"])
    output_notes(output, options["force"], [bottom.folder, top.folder], options["dry_run"])
    report = stitch_models(bottom, top, settings, output, options["force"], options["dry_run"])
    if not options["quiet"]:
        for note in report.notes:
            click.echo(f"note: {note}", err=True)
    if options["as_json"]:
        written = None if options["dry_run"] else options["output"]
        click.echo(json.dumps({"output": written, **edit_facts(report)}, indent=2))
    else:
        click.echo(edit_text(report, options["dry_run"]))


def _check_read(options: dict[str, Any]) -> None:
    """Stop at options that nothing reads."""
    text = [
        f"--{name.replace('_', '-')}"
        for name in ("text", "text_column", "samples", "seed")
        if options[name] is not None
    ]
    if text and options["kind"] == "identity":
        raise UsageError(f"{', '.join(text)}: --map identity fits nothing. Leave the text out.")
    refined = [f"--{name}" for name in ("steps", "rate") if options[name] is not None]
    if refined and options["refine"] == "none":
        raise UsageError(f"{', '.join(refined)} belongs to --refine. Give one: --refine feature, kl or task.")


def stitch_main() -> None:
    """Run stitch-models."""
    start(stitch_command, "stitch-models", sys.argv[1:])
