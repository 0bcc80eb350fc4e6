"""The commands that score models on a task: score, glue, hans; and tasks, which lists them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import click

from evals.commands.choose_tasks import ALL
from evals.commands.options import SETTINGS, check_forms, data_options, listed, model_options, table_option
from evals.commands.scoring import score_all
from evals.commands.show import json_text, show, show_tables
from merge.commands.terminal import common_options, set_verbosity
from merge.errors import UsageError, nearest

DTYPES = ("float32", "bfloat16", "float16")


def score_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options of every command that scores models."""
    command = click.option(
        "--dtype",
        type=click.Choice(DTYPES),
        default="float32",
        show_default=True,
        help="What models compute in; below float32 a note says how many decisions that changes.",
    )(command)
    for add in (model_options, data_options, table_option, common_options):
        command = add(command)
    return command


@click.command(context_settings=SETTINGS)
@click.argument("models", nargs=-1)
@click.option(
    "--predictions", type=click.Path(path_type=Path), help="Score a prediction file (pairID,gold_label) instead."
)
@click.option(
    "--format", "form", type=click.Choice(["table", "official"]), default="table", show_default=True, help="Text form."
)
@click.option("--detail", is_flag=True, help="Also print accuracy per subcase and per template.")
@click.option(
    "--write-predictions",
    "written",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Also write the model's predictions as the authors' scorer reads them.",
)
@score_options
def hans(models: tuple[str, ...], predictions: Path | None, form: str, written: Path | None, **options: Any) -> None:
    """Score MODELS on HANS: by which strategy do they infer?

    Without --data the 30 subcases are generated from the HANS grammar, 1,000 pairs each. Models with three NLI labels
    are folded after the argmax, as the official scorer does.

    \b
    Examples:
      evaluate-models hans merged/ a/ b/ -o report
      evaluate-models hans a/ --data heuristics_evaluation_set.txt
      evaluate-models hans a/ --write-predictions preds.txt
      evaluate-models hans --predictions preds.txt
    """
    from evals.tasks import find_task

    set_verbosity(options["verbose"], options["quiet"])
    check_forms(options, official=form == "official")
    if predictions is not None:
        _score_predictions(predictions, models, {**options, "write-predictions": written}, form)
        return
    if form == "official" and len(models) > 1:
        raise UsageError(f"--format official prints the scores of one model without its name; found {len(models)}.")
    if written is not None and len(models) > 1:
        raise UsageError(f"--write-predictions writes those of one model; found {len(models)}.")
    task = find_task("hans")
    scored = score_all([task], models, options)
    if written is not None:
        from evals.heuristics.scores import write_predictions

        table = scored[0].predictions(options["output"])
        write_predictions(written, table.ids, [task.labels[k] for k in table.predicted.tolist()])
        if not options["quiet"]:
            click.echo(f"wrote {written}", err=True)
    show([one.record for one in scored], options, form if form == "official" else "hans")


@click.command(context_settings=SETTINGS, short_help="Score MODELS on a task of GLUE, on several, or on all that fit.")
@click.argument("task")
@click.argument("models", nargs=-1)
@score_options
def glue(task: str, models: tuple[str, ...], **options: Any) -> None:
    """Score MODELS on a GLUE TASK, on several (TASK,TASK), or on all whose labels fit (all).

    cola, sst2, mrpc, qqp, stsb, mnli (matched), mnli_mismatched, qnli, rte, wnli; on their development sets. --data takes
    GLUE's own folders and files (dev.tsv) as well as .jsonl, .csv and .parquet; for several tasks, the folder of theirs.

    \b
    Examples:
      evaluate-models glue mnli merged/ a/ b/ --data validation_matched.jsonl -o report
      evaluate-models glue cola merged/ a/ b/ --data glue_data/
      evaluate-models glue all merged/ a/ b/ --data glue_data/ --table markdown
    """
    from evals.tasks import GLUE, TASK_FILE, TASKS

    set_verbosity(options["verbose"], options["quiet"])
    check_forms(options)
    names = tuple(GLUE) if task == ALL else listed(task, "TASK") or ()
    for name in names:
        if name not in GLUE:
            elsewhere = name in TASKS or name.lower().endswith(TASK_FILE)
            advice = f" evaluate-models score {name} takes it." if elsewhere else " For others: evaluate-models tasks."
            raise UsageError(f"unknown task {name!r} of GLUE.{nearest(name, GLUE)}{advice}")
    scored = score_all([GLUE[name] for name in dict.fromkeys(names)], models, options, task == ALL)
    show([one.record for one in scored], options, "scores")


@click.command(context_settings=SETTINGS, short_help="Score MODELS on any task, or on a file of your own.")
@click.argument("task")
@click.argument("models", nargs=-1)
@score_options
def score(task: str, models: tuple[str, ...], **options: Any) -> None:
    """Score MODELS on a TASK: one that evaluate-models tasks lists, or a file of your own (.yaml).

    Several are TASK,TASK, and all whose labels fit are `all`; --data is then a folder of their folders.

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
    from evals.tasks import TASKS, find_task

    set_verbosity(options["verbose"], options["quiet"])
    check_forms(options)
    names = tuple(TASKS) if task == ALL else listed(task, "TASK") or ()
    found = [find_task(name) for name in dict.fromkeys(names)]
    records = [one.record for one in score_all(found, models, options, task == ALL)]
    show(records, options, "hans" if all(record.get("hans") for record in records) else "scores")


@click.command(context_settings=SETTINGS, short_help="List the tasks and their classes.")
@table_option
@common_options
def tasks(**options: Any) -> None:
    """List the tasks: their classes in integer order, their scores, and where their rows come from.

    \b
    Examples:
      evaluate-models tasks
      evaluate-models tasks --json
    """
    from evals.report.tables import Row
    from evals.tasks import TASKS
    from evals.tasks.task import METRICS

    set_verbosity(options["verbose"], options["quiet"])
    check_forms(options)
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
    show_tables([rows], options["table"])
    if not options["quiet"]:
        click.echo(
            "note: --data FILE reads any of them from a file; --data in the last column: it has no other", err=True
        )


def _score_predictions(path: Path, models: Sequence[str], options: dict[str, Any], form: str) -> None:
    from evals.heuristics.files import read_pairs, read_predictions
    from evals.heuristics.scores import gold_by_position, official_text
    from evals.heuristics.scores import score as score_pairs
    from evals.report.tables import hans_rows, part_rows

    flags = [f"--{name}" for name in ("labels", "limit", "output", "force", "write-predictions") if options[name]]
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
        parts = ["subcases", *(["templates"] if table.templates else [])] if options["detail"] else []
        show_tables([hans_rows([record]), *(part_rows([record], part) for part in parts)], options["table"])
