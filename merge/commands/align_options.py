"""The flags of an alignment, which merge-models and evaluate-models barrier share."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import click

from merge.alignment.matchers import BY
from merge.commands.terminal import NAMES

F = TypeVar("F", bound=Callable[..., Any])

# Flag -> key of the recipe's align entry; as click names them.
FLAGS = {
    "align": "by",
    "text": "text",
    "text_column": "text_column",
    "axes": "axes",
    "samples": "samples",
    "residual": "residual",
    "basis": "basis",
    "canonical": "canonical",
    "restarts": "restarts",
    "steps": "steps",
    "both": "both",
    "reference": "reference",
    "apply": "apply",
    "repair": "repair",
}


def align_options(command: F) -> F:
    """Return the command with the flags of an alignment."""
    count = click.IntRange(min=1)
    for option in reversed(
        (
            click.option(
                "--align",
                metavar="[BY]",
                is_flag=False,
                flag_value="auto",
                help=f"Align to the first model by: {', '.join(BY)} (auto also without a value), none.  "
                "[default: none]",
            ),
            click.option("--text", help="Calibration text: .txt, .jsonl, .csv, .tsv (or .gz), or a Hub dataset id."),
            click.option(
                "--text-column", type=NAMES, metavar="COL[,COL]", help="Column of --text to read; two for text pairs."
            ),
            click.option(
                "--axes",
                type=NAMES,
                metavar="KIND,...",
                help="Kinds of axes that move, such as residual, heads, ffn, pooler.  [default: chosen]",
            ),
            click.option("--samples", type=count, help="Calibration texts drawn from --text.  [default: 512]"),
            click.option(
                "--residual",
                type=click.Choice(["permutation", "rotation", "identity"]),
                help="How the stream between the layers moves; rotation for pre-LN models.  [default: chosen]",
            ),
            click.option(
                "--basis",
                type=click.Choice(["permutation", "orthogonal"]),
                help="How units inside heads move.  [default: permutation]",
            ),
            click.option(
                "--canonical",
                type=click.Choice(["undo", "keep"]),
                help="Keep the canonical weights that are matched.  [default: undo]",
            ),
            click.option(
                "--restarts",
                type=click.IntRange(min=0),
                help="More runs of weight matching, each from the best so far, disturbed.  [default: 0]",
            ),
            click.option("--steps", type=count, help="Steps of learned alignment and of annealing.  [default: 200]"),
            click.option("--both", is_flag=True, default=None, help="Let learned alignment move the reference too."),
            click.option("--reference", metavar="MODEL", help="Which model the others go to.  [default: the first]"),
            click.option(
                "--apply",
                metavar="FILE",
                multiple=True,
                help="Repeat the alignment in a transform.safetensors; again for each further model that moves.",
            ),
            click.option(
                "--repair",
                is_flag=True,
                default=None,
                help="Set every unit's mean and spread in the merge to those of the models.",
            ),
        )
    ):
        command = option(command)
    return command


def align_entry(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the `align` entry of a recipe that these flags set."""
    return {key: options[flag] for flag, key in FLAGS.items() if options[flag] not in (None, ())}
