"""The merge-models statistics command: measure the statistics of one model into a file."""

from __future__ import annotations

import json
from pathlib import Path

import click

from merge.commands.sections import SectionedCommand
from merge.commands.terminal import NAMES, common_options, set_verbosity


@click.command(cls=SectionedCommand, context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("model")
@click.option(
    "--kind",
    type=click.Choice(["fisher", "gram"]),
    required=True,
    help="fisher for --method fisher, gram for --method regmean.",
)
@click.option(
    "--text", help="Text: .txt, .jsonl, .csv, .tsv (or .gz), or a Hub dataset id.  [default: a built-in text]"
)
@click.option("--text-column", type=NAMES, metavar="COL[,COL]", help="Column of --text; two for text pairs.")
@click.option("--samples", type=int, default=512, show_default=True, help="Number of texts drawn from --text.")
@click.option("--seed", type=int, default=0, show_default=True, help="Seed of all random choices.")
@click.option("--revision", help="Hub revision of the model.")
@click.option("-o", "--output", type=click.Path(path_type=Path), required=True, help="File to write (.safetensors).")
@click.option("--force", is_flag=True, help="Replace the output file.")
@common_options
def statistics_command(
    model: str,
    kind: str,
    text: str | None,
    text_column: tuple[str, ...] | None,
    samples: int,
    seed: int,
    revision: str | None,
    output: Path,
    force: bool,
    as_json: bool,
    quiet: bool,
    verbose: bool,
) -> None:
    """Measure the statistics of MODEL that data-based merge methods need, on text without labels.

    \b
    Examples:
      merge-models statistics a/ --kind fisher --text train.jsonl -o a-fisher.safetensors
      merge-models statistics org/a --kind gram --text train.jsonl -o a-gram.safetensors
    """
    set_verbosity(verbose, quiet)
    from merge.checkpoints.open import open_encoder
    from merge.methods.statistics.on_text import check_output, measure_on_text
    from merge.methods.statistics.record import write_statistics
    from merge.text.source import TextSource

    check_output(output, force)
    source = TextSource(text, text_column, samples, seed)
    encoder = open_encoder(model, revision)
    check_output(output, force, encoder.folder)
    statistics, notes = measure_on_text(encoder, kind, source)
    if not quiet:
        for note in notes:
            click.echo(f"note: {note}", err=True)
    write_statistics(output, statistics)
    if as_json:
        click.echo(
            json.dumps({"output": str(output), "tensors": len(statistics.tensors), **statistics.to_json()}, indent=2)
        )
    else:
        size = f"{output.stat().st_size:,} bytes"
        click.echo(f"{output}: {kind} of {len(statistics.tensors)} tensors of {model} on {statistics.text} ({size})")
