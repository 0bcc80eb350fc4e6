"""Alignment options, shared by merge-models and evaluate-models barrier."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeVar, cast

import click

from merge.alignment.matchers import BY
from merge.commands.terminal import MAX_COUNT, NAMES

F = TypeVar("F", bound=Callable[..., Any])

# Option, by click's name -> key of the recipe's `align` entry.
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
    "line": "line",
    "reference": "reference",
    "apply": "apply",
    "repair": "repair",
}


OPTIONS: tuple[Callable[[Callable[..., Any]], Callable[..., Any]], ...] = (
    click.option(
        "--align",
        metavar="[BY]",
        is_flag=False,
        flag_value="auto",
        help=f"Align to the first model by: {', '.join(BY)} (auto if no value is given), none.  [default: none]",
    ),
    click.option("--text", help="Calibration text: .txt, .jsonl, .csv, .tsv (or .gz), or a Hub dataset id."),
    click.option("--text-column", type=NAMES, metavar="COL[,COL]", help="Column of --text; two for text pairs."),
    click.option(
        "--axes",
        type=NAMES,
        metavar="KIND,...",
        help="Kinds of axes to align, such as residual, heads, ffn, pooler.  [default: chosen automatically]",
    ),
    click.option(
        "--samples", type=click.IntRange(min=1), help="Number of calibration texts drawn from --text.  [default: 512]"
    ),
    click.option(
        "--residual",
        type=click.Choice(["permutation", "rotation", "identity"]),
        help="Alignment of the residual stream; rotation for pre-LN models only.  [default: chosen automatically]",
    ),
    click.option(
        "--basis",
        type=click.Choice(["permutation", "orthogonal"]),
        help="Alignment inside attention heads.  [default: permutation]",
    ),
    click.option(
        "--canonical",
        type=click.Choice(["undo", "keep"]),
        help="Keep or undo the canonical form in which weights are matched.  [default: undo]",
    ),
    click.option(
        "--restarts",
        type=click.IntRange(0, MAX_COUNT),
        help="Further runs of weight matching from perturbations of the best one.  [default: 0]",
    ),
    click.option(
        "--steps",
        type=click.IntRange(1, MAX_COUNT),
        help="Steps of the learned and annealing alignments.  [default: 200]",
    ),
    click.option("--both", is_flag=True, default=None, help="Let the learned alignment change the reference too."),
    click.option(
        "--line",
        is_flag=True,
        default=None,
        help="Let the learned alignment lower the loss along the whole line between the models, not near its middle alone.",
    ),
    click.option(
        "--reference", metavar="MODEL", help="The model that the others are aligned to.  [default: the first]"
    ),
    click.option(
        "--apply",
        metavar="FILE",
        multiple=True,
        help="Apply the alignment in a transform.safetensors instead; once per aligned model.",
    ),
    click.option(
        "--repair",
        is_flag=True,
        default=None,
        help="Rescale the merged units to the mean and variance of the models' units.",
    ),
)


def align_options(command: F) -> F:
    """Add the alignment options to a command."""
    return align_options_but()(command)


def align_options_but(*left_out: str) -> Callable[[F], F]:
    """Return what adds the alignment options to a command, but those of these names, such as "reference"."""
    kept = [option for option, flag in zip(OPTIONS, FLAGS, strict=True) if flag not in left_out]

    def add(command: F) -> F:
        decorated: Any = command
        for option in reversed(kept):
            decorated = option(decorated)
        return cast(F, decorated)

    return add


def with_align_value(arguments: Sequence[str]) -> list[str]:
    """Return the arguments with `--align a/ b/` written as `--align=auto a/ b/`: a model is no way to align.

    A word after --align is its value if it is, or resembles, a way to align; one that only resembles it is an error that
    names the nearest, unless there is such a folder.
    """
    ways, out = (*BY, "none"), list(arguments)
    for at, (word, following) in enumerate(pairwise(arguments)):
        if word == "--align" and following not in ways:
            resembles = difflib.get_close_matches(following, ways, n=1, cutoff=0.5)
            if "/" in following or Path(following).is_dir() or not (resembles or following.startswith("-")):
                out[at] = "--align=auto"
    return out


def align_entry(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the `align` entry of a recipe that these flags set."""
    return {key: options[flag] for flag, key in FLAGS.items() if options.get(flag) not in (None, ())}
