"""The commands that score models on a task: score, glue, hans; and tasks, which lists them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from evals.answers import SETTINGS, data_options, json_text, known_results, listed, read_rows, show, stored_result
from merge.errors import UsageError, nearest
from merge.terminal import common_options, progress, set_verbosity

if TYPE_CHECKING:
    from evals.task import EvalTask


@click.command(context_settings=SETTINGS)
@click.argument("models", nargs=-1)
@click.option(
    "--predictions", type=click.Path(path_type=Path), help="Score a prediction file (pairID,gold_label) instead."
)
@click.option(
    "--format", "form", type=click.Choice(["table", "official"]), default="table", show_default=True, help="Text form."
)
@click.option("--detail", is_flag=True, help="Also print accuracy per subcase and per template.")
@data_options
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
    from evals.tasks import find_task

    set_verbosity(options["verbose"])
    if form == "official" and options["as_json"]:
        raise UsageError("--format official and --json are two forms of one answer; choose one.")
    if predictions is not None:
        _score_predictions(predictions, models, options, form)
        return
    if form == "official" and len(models) > 1:
        raise UsageError(f"--format official prints the scores of one model without its name; found {len(models)}.")
    show(_score_all(find_task("hans"), models, options), options, form if form == "official" else "hans")


@click.command(context_settings=SETTINGS)
@click.argument("task")
@click.argument("models", nargs=-1)
@data_options
@common_options
def glue(task: str, models: tuple[str, ...], **options: Any) -> None:
    """Score MODELS on a GLUE TASK.

    cola, sst2, mrpc, qqp, stsb, mnli (matched), mnli_mismatched, qnli, rte, wnli; on their development sets. --data takes
    GLUE's own folders and files (dev.tsv) as well as .jsonl, .csv and .parquet.

    \b
    Examples:
      evaluate-models glue mnli merged/ a/ b/ --data validation_matched.jsonl -o report
      evaluate-models glue cola merged/ a/ b/ --data glue_data/
    """
    from evals.tasks import GLUE, TASK_FILE, TASKS

    set_verbosity(options["verbose"])
    if task not in GLUE:
        elsewhere = task in TASKS or task.lower().endswith(TASK_FILE)
        advice = f" evaluate-models score {task} takes it." if elsewhere else " For others: evaluate-models tasks."
        raise UsageError(f"unknown task {task!r} of GLUE.{nearest(task, GLUE)}{advice}")
    show(_score_all(GLUE[task], models, options), options, "scores")


@click.command(context_settings=SETTINGS)
@click.argument("task")
@click.argument("models", nargs=-1)
@data_options
@common_options
def score(task: str, models: tuple[str, ...], **options: Any) -> None:
    """Score MODELS on a TASK: one that evaluate-models tasks lists, or a file of your own (.yaml).

    \b
    A task file holds:
      name: reviews
      data: reviews.csv            # or a Hub dataset: org/name:config/split
      columns: [text]              # two for a pair
      label_column: stars
      labels: [bad, good]          # or regression: true
      metric: accuracy             # f1, matthews_correlation, pearson
      aliases: {negative: bad}     # another name of a class
      coarse: {awful: bad}         # a finer class

    \b
    Examples:
      evaluate-models score paws_qqp merged/ a/ b/ --data dev_and_test.tsv -o report
      evaluate-models score reviews.yaml merged/ a/ b/
      evaluate-models score snli a/ --labels contradiction,entailment,neutral
    """
    from evals.tasks import find_task

    set_verbosity(options["verbose"])
    found = find_task(task)
    show(_score_all(found, models, options), options, "hans" if found.name == "hans" else "scores")


@click.command(context_settings=SETTINGS)
@common_options
def tasks(**options: Any) -> None:
    """List the tasks: their classes in integer order, their scores, and where their rows come from.

    \b
    Examples:
      evaluate-models tasks
      evaluate-models tasks --json
    """
    from evals.tables import Row, plain_table
    from evals.task import METRICS
    from evals.tasks import TASKS

    set_verbosity(options["verbose"])
    listing = [
        {"name": t.name, "labels": list(t.labels), "metrics": list(METRICS[t.metric]), "source": t.source}
        for t in TASKS.values()
    ]
    if options["as_json"]:
        click.echo(json_text(listing))
        return
    rows: list[Row] = [["task", "labels", "scores", "source"]]
    for t in TASKS.values():
        rows.append([t.name, ", ".join(t.labels) or "a number", ", ".join(METRICS[t.metric]), t.source])
    click.echo(plain_table(rows))
    if not options["quiet"]:
        click.echo(
            "note: --data FILE reads any of them from a file; --data in the last column: it has no other", err=True
        )


def _score_all(task: EvalTask, models: Sequence[str], options: dict[str, Any]) -> list[dict[str, Any]]:
    """Score every model on the task's rows, taking from the results folder what it already holds."""
    if not models:
        raise UsageError("no models given. Example: evaluate-models hans merged/ a/ b/")
    stated, shown = listed(options["labels"], "--labels"), progress(options["quiet"])
    if task.regression and stated is not None:
        raise UsageError(f"--labels names classes; {task.name} asks for a number and has none. Leave it out.")

    from evals.measure import named, score_key, score_model
    from evals.predict import match_labels
    from evals.predictions import has_predictions
    from evals.report import add_result
    from merge.checkpoint import open_checkpoint

    checkpoints = [open_checkpoint(model) for model in models]
    for checkpoint in checkpoints:
        match_labels(task, checkpoint, stated)
    known = known_results(options)
    rows = read_rows(task, options)
    records: list[dict[str, Any]] = []
    for checkpoint in checkpoints:
        said = {"model": named(checkpoint), "data": rows.data, "split": rows.split}
        record = stored_result([*known, *records], score_key(checkpoint, task, rows, stated), said, options["output"])
        if record is None or (options["output"] and not has_predictions(options["output"], record)):
            record = score_model(checkpoint, task, rows, stated, shown, options["output"], options["seed"])
            if options["output"]:
                add_result(options["output"], record)
        records.append(record)
    return records


def _score_predictions(path: Path, models: Sequence[str], options: dict[str, Any], form: str) -> None:
    from evals.hans_scores import gold_by_position, official_text
    from evals.hans_scores import score as score_pairs
    from evals.tables import hans_rows, part_rows, plain_table
    from evals.tasks.hans import read_pairs, read_predictions

    flags = [f"--{name}" for name in ("labels", "limit", "output", "force") if options[name]]
    if models or flags:
        said = ["models"] * bool(models) + flags
        raise UsageError(f"--predictions scores a file; it takes no {', '.join(said)}.")
    pairs = gold_by_position() if options["data"] is None else read_pairs(options["data"])
    table = score_pairs(pairs, read_predictions(path))
    if options["data"] is None and not options["quiet"]:
        click.echo(
            "note: gold labels by pairID (1,000 a subcase, published order); --data gives the file itself", err=True
        )
    if options["as_json"]:
        click.echo(json_text(table.to_json()))
    elif form == "official":
        click.echo(official_text(table), nl=False)
    else:
        record = {"model": {"name": path.name}, "hans": table.to_json()}
        click.echo(plain_table(hans_rows([record])))
        if options["detail"]:
            click.echo(plain_table(part_rows([record], "subcases")))
        if table.templates and options["detail"]:
            click.echo(plain_table(part_rows([record], "templates")))
