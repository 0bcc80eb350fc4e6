"""The evaluate-models command: hans, glue, barrier."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from merge.errors import UsageError
from merge.terminal import common_options, progress, set_verbosity, start

if TYPE_CHECKING:
    from evals.paths.line import Curve
    from evals.task import EvalTask, Rows

SETTINGS = {"help_option_names": ["-h", "--help"]}


@click.group(context_settings=SETTINGS)
@click.version_option(package_name="merge-models", prog_name="evaluate-models")
def evaluate() -> None:
    """Measure models: scores on a task, the loss barrier between two models, a page with the curves.

    \b
    Examples:
      evaluate-models hans merged/ a/ b/ -o report
      evaluate-models glue mnli merged/ a/ b/ --data dev_matched.tsv -o report
      evaluate-models barrier a/ b/ --task mnli --align activations --text train.jsonl -o report
    """


def _data_options(command: Callable[..., Any]) -> Callable[..., Any]:
    for option in (
        click.option(
            "--data",
            type=click.Path(path_type=Path),
            help="File or folder of rows; else the task's own source.",
        ),
        click.option(
            "--labels", metavar="NAME,...", help="Class names in the order of the logits."
        ),
        click.option("--limit", type=click.IntRange(min=1), help="Evaluate on this many rows drawn at random."),
        click.option("--seed", type=int, default=0, show_default=True, help="Seed of the draw and of generated rows."),
        click.option(
            "-o", "--output", type=click.Path(path_type=Path), help="Folder for results.json, figures and the page."
        ),
        click.option("--force", is_flag=True, help="Compute again what results.json already holds."),
    ):
        command = option(command)
    return command


@evaluate.command(context_settings=SETTINGS)
@click.argument("models", nargs=-1)
@click.option(
    "--predictions", type=click.Path(path_type=Path), help="Score a prediction file (pairID,gold_label) instead."
)
@click.option(
    "--format", "form", type=click.Choice(["table", "official"]), default="table", show_default=True, help="Text form."
)
@click.option("--detail", is_flag=True, help="Also print accuracy per subcase and per template.")
@_data_options
@common_options
def hans(models: tuple[str, ...], predictions: Path | None, form: str, **options: Any) -> None:
    """Score MODELS on HANS: by which strategy do they infer?

    Without --data the 30 subcases are generated from the HANS grammar, 1,000 pairs each. Models with three NLI labels
    are folded after the argmax, as the official scorer does.

    \b
    Examples:
      evaluate-models hans merged/ a/ b/ -o report
      evaluate-models hans a/ --data heuristics_evaluation_set.txt
      evaluate-models hans --predictions bert_preds.txt
    """
    set_verbosity(options["verbose"])
    if predictions is not None:
        if models:
            raise UsageError("--predictions scores a file; it takes no models.")
        _score_predictions(predictions, options, form)
        return
    records = _score_all("hans", models, options)
    if form == "official":
        from evals.hans_scores import HansTable, official_text

        for record in records:
            click.echo(official_text(HansTable.from_json(record["hans"])))
        return
    _show(records, options, "hans")


@evaluate.command(context_settings=SETTINGS)
@click.argument("task")
@click.argument("models", nargs=-1)
@_data_options
@common_options
def glue(task: str, models: tuple[str, ...], **options: Any) -> None:
    """Score MODELS on a GLUE TASK: mnli, sst2.

    \b
    Example:
      evaluate-models glue mnli merged/ a/ b/ --data validation_matched.jsonl -o report
    """
    set_verbosity(options["verbose"])
    _show(_score_all(task, models, options), options, "scores")


@evaluate.command(context_settings=SETTINGS)
@click.argument("a")
@click.argument("b")
@click.option("--task", required=True, help="hans, mnli, sst2.")
@click.option("--align", metavar="BY", help="Also align b to a (activations, weights) and measure the aligned path.")
@click.option("--text", help="Calibration text for --align; see merge-models --help.")
@click.option("--text-column", metavar="COL[,COL]", help="Column of --text to read; two for text pairs.")
@click.option(
    "--axes", metavar="KIND,...", help="Kinds of axes that move: residual, heads, ffn, pooler.  [default: chosen]"
)
@click.option("--samples", type=int, help="Calibration texts drawn from --text.  [default: 512]")
@click.option(
    "--points", type=click.IntRange(min=3), default=11, show_default=True, help="Points on the line, ends included."
)
@_data_options
@common_options
def barrier(a: str, b: str, **options: Any) -> None:
    """Measure the loss along the straight line from A to B: barrier, epsilon, convexity gap.

    \b
    Example:
      evaluate-models barrier a/ b/ --task hans --align activations --text train.jsonl -o report
    """
    set_verbosity(options["verbose"])
    _show([_barrier(a, b, options)], options, "barrier")


def main() -> None:
    """Run evaluate-models."""
    start(evaluate, "evaluate-models", sys.argv[1:])


def _rows(name: str, options: dict[str, Any]) -> tuple[EvalTask, Rows]:
    from evals.tasks import find_task

    task = find_task(name)
    rows = task.read(options["data"], options["seed"]).sample(options["limit"], options["seed"])
    return task, rows


def _stated_labels(options: dict[str, Any]) -> tuple[str, ...] | None:
    if options["labels"] is None:
        return None
    return tuple(part.strip() for part in options["labels"].split(","))


def _score_all(name: str, models: Sequence[str], options: dict[str, Any]) -> list[dict[str, Any]]:
    """Score every model on the task's rows, taking from the results folder what it already holds."""
    from evals.measure import score_key, score_model
    from evals.predict import match_labels
    from evals.report import add_result, find, load_results
    from merge.checkpoint import open_checkpoint

    if not models:
        raise UsageError("no models given. Example: evaluate-models hans merged/ a/ b/")
    task, rows = _rows(name, options)
    stated, shown = _stated_labels(options), progress(options["quiet"])
    checkpoints = [open_checkpoint(model) for model in models]
    for checkpoint in checkpoints:
        match_labels(task, checkpoint, stated)
    known = load_results(options["output"]) if options["output"] and not options["force"] else []
    records = []
    for checkpoint in checkpoints:
        record = find(known, score_key(checkpoint, task, rows, stated))
        if record is None:
            record = score_model(checkpoint, task, rows, stated, shown)
            if options["output"]:
                add_result(options["output"], record)
        records.append(record)
    return records


def _score_predictions(path: Path, options: dict[str, Any], form: str) -> None:
    from evals.hans_scores import gold_by_position, official_text, score
    from evals.tables import hans_rows, part_rows, plain_table
    from evals.tasks.hans import read_pairs, read_predictions

    pairs = gold_by_position() if options["data"] is None else read_pairs(options["data"])
    table = score(pairs, read_predictions(path))
    if options["data"] is None and not options["quiet"]:
        click.echo(
            "note: gold labels by pairID (1,000 a subcase, published order); --data gives the file itself", err=True
        )
    if options["as_json"]:
        click.echo(json.dumps(table.to_json(), indent=2))
    elif form == "official":
        click.echo(official_text(table))
    else:
        record = {"model": {"name": path.name}, "hans": table.to_json()}
        click.echo(plain_table(hans_rows([record])))
        if options["detail"]:
            click.echo(plain_table(part_rows([record], "subcases")))
        if table.templates and options["detail"]:
            click.echo(plain_table(part_rows([record], "templates")))


def _barrier(a: str, b: str, options: dict[str, Any]) -> dict[str, Any]:
    """Measure the naive line and, if asked, the aligned one; store the record."""
    import torch

    from evals.measure import barrier_record, build_written, measure_line, record_key
    from evals.predict import encode_rows, match_labels
    from evals.report import add_result, find, load_results
    from merge.bases import find_bases, finite_tensors
    from merge.checkpoint import open_checkpoint
    from merge.permutation import apply
    from merge.preflight import preflight
    from merge.recipe import make_recipe

    begun = time.monotonic()
    align = _align_entry(options)
    task, rows = _rows(options["task"], options)
    pair = open_checkpoint(a), open_checkpoint(b)
    notes = list(preflight(pair, dtype="float32"))
    stated, shown = _stated_labels(options), progress(options["quiet"])
    columns = match_labels(task, pair[0], stated)
    recipe = make_recipe({"models": [a, b], "align": align, "seed": options["seed"]})
    key = record_key(
        "barrier",
        task.name,
        rows.hash,
        *(c.content_hash for c in pair),
        options["points"],
        align,
        stated and list(stated),
    )
    known = load_results(options["output"]) if options["output"] and not options["force"] else []
    if (found := find(known, key)) is not None:
        return found
    bases = find_bases(recipe, pair, shown)
    encoded = encode_rows(pair[0], rows)
    model, gold = build_written(pair[0]), torch.tensor(rows.gold)
    start_a, end = ({c.written_name(n): t for n, t in finite_tensors(c).items()} for c in pair)
    by_written = {pair[1].written_name(n): n for n in pair[1].tensors}
    paths = [("naive", bases.labels[1])]
    if bases.aligned:
        paths.append((f"aligned ({recipe.align.by}; {bases.aligned[0].choice.kept.name})", bases.permutations[1]))
    curves: list[Curve] = []
    for name, permutation in paths:
        tensors = end
        if permutation is not None and bases.spec is not None:
            moved = apply(bases.spec, permutation, {by_written[w]: t for w, t in end.items()})
            tensors = {pair[1].written_name(n): t for n, t in moved.items()}
        curves.append(
            measure_line(name, start_a, tensors, model, encoded, gold, task, columns, options["points"], shown)
        )
    notes += bases.notes
    if encoded.cut:
        notes.append(f"{encoded.cut} rows are longer than the models take; only their start was read")
    alignment = bases.aligned[0].to_json() if bases.aligned else None
    record = barrier_record(key, task, rows, pair, curves, alignment, notes, time.monotonic() - begun)
    if options["output"]:
        add_result(options["output"], record)
    return record


def _align_entry(options: dict[str, Any]) -> dict[str, Any]:
    entry = {
        "by": options["align"],
        "text": options["text"],
        "text_column": options["text_column"] and options["text_column"].split(","),
        "axes": options["axes"] and options["axes"].split(","),
        "samples": options["samples"],
    }
    return {key: value for key, value in entry.items() if value}


def _show(records: Sequence[dict[str, Any]], options: dict[str, Any], kind: str) -> None:
    """Print the results, and rewrite figures and page of the results folder."""
    from evals.tables import barrier_rows, hans_rows, part_rows, plain_table, score_rows

    if not options["quiet"]:
        for note in dict.fromkeys(note for record in records for note in record["notes"]):
            click.echo(f"note: {note}", err=True)
    if options["as_json"]:
        click.echo(json.dumps(list(records), indent=2))
    else:
        first = records[0]
        click.echo(f"{first['task']}: {first['data']}")
        rows = {"hans": hans_rows, "scores": score_rows, "barrier": barrier_rows}[kind](records)
        click.echo(plain_table(rows))
        for part in ("subcases", "templates") if kind == "hans" and options["detail"] else ():
            click.echo(plain_table(part_rows(records, part)))
    if options["output"]:
        _illustrate(options["output"], records, kind, options["quiet"])


def _illustrate(folder: Path, records: Sequence[dict[str, Any]], kind: str, quiet: bool) -> None:
    from evals.plots import barrier_plot, hans_plot
    from evals.report import load_results, write_page

    made: list[Path] = []
    if kind == "barrier":
        for record in records:
            made += barrier_plot(record, folder / f"barrier-{_short(record)}")
    if kind == "hans":
        made += hans_plot([r for r in load_results(folder) if r["kind"] == "scores" and r.get("hans")], folder / "hans")
    made.append(write_page(folder))
    if not quiet:
        click.echo("wrote " + ", ".join(str(path) for path in [folder / "results.json", *made]), err=True)


def _short(record: dict[str, Any]) -> str:
    return f"{record['task']}-{record['key'].rsplit('-', 1)[-1][:8]}"
