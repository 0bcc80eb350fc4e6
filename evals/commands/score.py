"""The commands that score models on a task: score, glue, hans; and tasks, which lists them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from evals.commands.options import (
    check_formats,
    data_options,
    eval_options,
    model_options,
    sectioned_command,
    table_option,
    threads_option,
)
from evals.commands.show import show, show_tables
from evals.results.json_text import json_text
from evals.run.choose_tasks import ALL
from evals.run.options import DTYPES, EvalOptions
from evals.run.scoring import Scored, score_all
from merge.checkpoints.weights.arrays import check_device
from merge.commands.terminal import NAMES, common_options, set_verbosity
from merge.errors import UsageError, nearest

if TYPE_CHECKING:
    from evals.tasks.task import EvalTask


def score_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options of every command that scores models."""
    command = click.option(
        "--dtype",
        type=click.Choice(DTYPES),
        default="float32",
        show_default=True,
        help="Precision of the models; below float32 a note gives how many predictions that changes.",
    )(command)
    for add in (threads_option, model_options, data_options, table_option, common_options):
        command = add(command)
    return command


def _score(
    tasks: Sequence[EvalTask], models: Sequence[str], options: EvalOptions, all_tasks: bool = False
) -> list[Scored]:
    """Open the models and score them; print a note for each task that is left out."""
    if not models:
        raise UsageError("no models given. Example: evaluate-models hans merged/ a/ b/")
    check_device(options.device)

    from merge.checkpoints.open import open_encoder

    scored, left_out = score_all(tasks, [open_encoder(model) for model in models], options, all_tasks)
    for line in left_out if not options.quiet else ():
        click.echo(f"note: {line}", err=True)
    return scored


@sectioned_command()
@click.argument("models", nargs=-1)
@click.option(
    "--predictions", type=click.Path(path_type=Path), help="Score a prediction file (pairID,gold_label) instead."
)
@click.option(
    "--format",
    "form",
    type=click.Choice(["table", "official"]),
    default="table",
    show_default=True,
    help="Text format.",
)
@click.option("--detail", is_flag=True, help="Also print accuracy per subcase and per template.")
@click.option(
    "--write-predictions",
    "written",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Also write the model's predictions in the format of the authors' scorer.",
)
@score_options
def hans(models: tuple[str, ...], predictions: Path | None, form: str, written: Path | None, **options: Any) -> None:
    """Score MODELS on HANS: do shared words pass for entailment?

    Without --data the 30 subcases are generated from the HANS grammar, 1,000 pairs each. Models with three NLI labels
    are folded after the argmax, as the official scorer does.

    \b
    Examples:
      evaluate-models hans merged/ a/ b/ -o report
      evaluate-models hans a/ --data heuristics_evaluation_set.txt
      evaluate-models hans a/ --write-predictions preds.txt
      evaluate-models hans --predictions preds.txt
      evaluate-models hans --predictions numbers.txt --labels entailment,neutral,contradiction
    """
    set_verbosity(options["verbose"], options["quiet"])
    from evals.tasks import find_task

    shared, official = eval_options(options), form == "official"
    check_formats(shared, official)
    if predictions is not None:
        _check_scores_a_file(models, shared, written)
        _score_predictions(predictions, shared, official)
        return
    if official and len(models) > 1:
        raise UsageError(f"--format official prints the scores of one model without its name; found {len(models)}.")
    if written is not None and len(models) > 1:
        raise UsageError(f"--write-predictions writes those of one model; found {len(models)}.")
    task = find_task("hans")
    scored = _score([task], models, shared)
    if written is not None:
        from evals.heuristics.scores import write_predictions

        table = scored[0].predictions(shared.output)
        write_predictions(written, table.ids, [task.labels[k] for k in table.predicted.tolist()])
        if not shared.quiet:
            click.echo(f"wrote {written}", err=True)
    show([entry.record for entry in scored], shared, "official" if official else "hans")


@sectioned_command(short_help="Score MODELS on a task of GLUE, on several, or on all that fit.")
@click.argument("task")
@click.argument("models", nargs=-1)
@score_options
def glue(task: str, models: tuple[str, ...], **options: Any) -> None:
    """Score MODELS on a GLUE TASK, on several (TASK,TASK), or on all whose labels fit (all).

    cola, sst2, mrpc, qqp, stsb, mnli (matched), mnli_mismatched, qnli, rte, wnli; on their development sets. --data takes
    GLUE's own folders and files (dev.tsv) as well as .jsonl, .csv and .parquet; for several tasks, a folder with one for each.

    \b
    Examples:
      evaluate-models glue mnli merged/ a/ b/ --data validation_matched.jsonl -o report
      evaluate-models glue cola merged/ a/ b/ --data glue_data/
      evaluate-models glue all merged/ a/ b/ --data glue_data/ --table markdown
    """
    set_verbosity(options["verbose"], options["quiet"])
    from evals.tasks import GLUE, TASK_FILE, TASKS

    shared = eval_options(options)
    check_formats(shared)
    names = tuple(GLUE) if task == ALL else NAMES.split(task, "TASK")
    for name in names:
        if name not in GLUE:
            elsewhere = name in TASKS or name.lower().endswith(TASK_FILE)
            advice = f" evaluate-models score {name} takes it." if elsewhere else " For others: evaluate-models tasks."
            raise UsageError(f"unknown task {name!r} of GLUE.{nearest(name, GLUE)}{advice}")
    scored = _score([GLUE[name] for name in dict.fromkeys(names)], models, shared, task == ALL)
    show([entry.record for entry in scored], shared, "scores")


@sectioned_command(short_help="Score MODELS on any task, or on a file of your own.")
@click.argument("task")
@click.argument("models", nargs=-1)
@score_options
def score(task: str, models: tuple[str, ...], **options: Any) -> None:
    """Score MODELS on a TASK: one that evaluate-models tasks lists, or a file of your own (.yaml).

    Give several as TASK,TASK, or `all` for every task whose labels fit; --data is then a folder with one for each.

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
    set_verbosity(options["verbose"], options["quiet"])
    from evals.tasks import TASKS, find_task

    shared = eval_options(options)
    check_formats(shared)
    names = tuple(TASKS) if task == ALL else NAMES.split(task, "TASK")
    tasks = [find_task(name) for name in dict.fromkeys(names)]
    records = [entry.record for entry in _score(tasks, models, shared, task == ALL)]
    show(records, shared, "hans" if all(record.get("hans") for record in records) else "scores")


@sectioned_command(short_help="List the tasks and their classes.")
@table_option
@common_options
def tasks(**options: Any) -> None:
    """List the tasks: their classes in integer order, their scores, and where their rows come from.

    \b
    Examples:
      evaluate-models tasks
      evaluate-models tasks --json
    """
    set_verbosity(options["verbose"], options["quiet"])
    from evals.report.table_text import Row
    from evals.tasks import TASKS
    from evals.tasks.task import METRICS

    shared = eval_options(options)
    check_formats(shared)
    listing = [
        {"name": t.name, "labels": list(t.labels), "metrics": list(METRICS[t.metric]), "source": t.source}
        for t in TASKS.values()
    ]
    if shared.as_json:
        click.echo(json_text(listing))
        return
    rows: list[Row] = [["task", "labels", "scores", "source"]]
    for t in TASKS.values():
        rows.append([t.name, ", ".join(t.labels) or "a number", ", ".join(METRICS[t.metric]), t.source])
    show_tables([rows], shared.table)
    if not shared.quiet:
        click.echo(
            "note: --data FILE reads the rows of any task from a file; a task whose source is --data has no other",
            err=True,
        )


def _check_scores_a_file(models: Sequence[str], options: EvalOptions, written: Path | None) -> None:
    """Stop where --predictions meets models, or options of running one."""
    ignored = {
        "models": models,
        "--limit": options.limit,
        "--max-length": options.max_length,
        "--output": options.output,
        "--force": options.force,
        "--write-predictions": written,
    }
    if given := [name for name, value in ignored.items() if value]:
        raise UsageError(f"--predictions scores a file; it takes no {', '.join(given)}.")


def _score_predictions(path: Path, options: EvalOptions, official: bool) -> None:
    """Score a prediction file and print its table; nothing is stored."""
    from evals.heuristics.files import read_pairs, read_predictions
    from evals.heuristics.scores import gold_by_position, name_predictions, official_text
    from evals.heuristics.scores import score as score_pairs
    from evals.report.tables import hans_rows, part_rows

    pairs = gold_by_position() if options.data is None else read_pairs(options.data)
    table = score_pairs(pairs, name_predictions(read_predictions(path), options.labels, str(path)))
    if options.data is None and not options.quiet:
        click.echo(
            "note: gold labels are those of the published file, by pairID (1,000 pairs a subcase); --data reads another file",
            err=True,
        )
    if options.as_json:
        click.echo(json_text(table.to_json()))
    elif official:
        click.echo(official_text(table), nl=False)
    else:
        record = {"model": {"name": path.name}, "hans": table.to_json()}
        parts = ["subcases", *(["templates"] if table.templates else [])] if options.detail else []
        show_tables([hans_rows([record]), *(part_rows([record], part) for part in parts)], options.table)
