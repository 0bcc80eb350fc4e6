"""The command that leaves out, edits, reorders and repeats the layers of a model: lesion."""

from __future__ import annotations

from typing import Any

import click

from evals.commands.options import check_formats, eval_options, sectioned_command
from evals.commands.study_options import asked_of, show_study, study_options
from merge.commands.terminal import MAX_COUNT, set_verbosity
from merge.errors import UsageError


@sectioned_command(short_help="Leave out, reorder and repeat the layers of a model.")
@click.argument("model")
@click.option(
    "--layers", metavar="LAYERS", help="Layers left out and repeated one at a time, such as 0-3,7.  [default: all]"
)
@click.option(
    "--order", "orders", multiple=True, metavar="LAYERS", help="A further order of all layers, such as 1,0,2-5."
)
@click.option(
    "--draws",
    type=click.IntRange(1, MAX_COUNT),
    default=5,
    show_default=True,
    help="Random sets for each number of dropped layers.",
)
@click.option("--reorders", type=click.IntRange(0, MAX_COUNT), default=24, show_default=True, help="Random orders.")
@click.option(
    "--paths",
    type=click.IntRange(1, MAX_COUNT),
    default=8,
    show_default=True,
    help="Paths of each length whose gradient is followed.",
)
@click.option(
    "--path-texts",
    type=click.IntRange(min=1),
    default=16,
    show_default=True,
    help="Texts whose gradients are followed.",
)
@study_options
def lesion(model: str, **options: Any) -> None:
    """Leave out, edit, reorder and repeat the layers of MODEL, and score what is left, without training.

    Each layer and each of its sublayers is left out alone (of a family whose norms come last, with its norm kept and with its
    norm bypassed), then k layers at random, layers in other orders against Kendall's tau, and each layer twice. Paths through the
    residual stream are counted by length, and the gradient that comes through them is measured. With --task edited models are
    scored; with --text they are compared with the whole model (cosine of embeddings, KL of the head).

    Layers before the first edit are not run again. The output says how many layers ran and how many would have, and that the
    outputs are the same bit for bit. Parts of --only: layers, sublayers, random, orders, duplicates, paths.

    Source: Veit et al. 2016, arXiv:1605.06431.

    \b
    Examples:
      evaluate-models lesion model/ --task mnli --data dev.jsonl --limit 500 -o report
      evaluate-models lesion model/ --text sentences.txt --only layers,sublayers
      evaluate-models lesion model/ --task sst2 --only orders --order 1,0,2-11
    """
    set_verbosity(options["verbose"], options["quiet"])
    from evals.run.inside.lesion import measure_lesions
    from evals.surgery.lesion import PARTS, LesionSettings
    from merge.checkpoints.open import open_encoder
    from merge.layers.plans.numbers import parse_layers

    shared = eval_options(options)
    check_formats(shared)
    asked = asked_of(options, shared)
    parts = PARTS if options["only"] is None else options["only"]
    if options["orders"] and "orders" not in parts:
        raise UsageError("--order has no effect where --only leaves orders out.")
    settings = LesionSettings(
        parts=parts,
        layers=options["layers"],
        orders=tuple(map(parse_layers, options["orders"])),
        **{name: options[name] for name in ("draws", "reorders", "paths", "path_texts", "seed")},
    )
    show_study(measure_lesions(open_encoder(model), asked, settings, shared), shared)
