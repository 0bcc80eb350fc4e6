"""The options that the studies of edited models share: what they are judged on, and how results are printed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import click

from evals.commands.options import data_options, model_options, table_option, threads_option
from evals.commands.show import TERMINAL_WIDTH, show_record
from evals.run.options import EvalOptions
from merge.commands.terminal import NAMES, common_options

if TYPE_CHECKING:
    from evals.run.inside.subject import Asked


def study_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add what every study of one model's layers takes: --task or --text, --score, --stack, --only, and the common options."""
    for add in (common_options, table_option, threads_option, model_options, data_options):
        command = add(command)
    for option in (
        click.option("--only", type=NAMES, metavar="PART,...", help="Parts of the study.  [default: all]"),
        click.option("--stack", default="", help="encoder or decoder, where a model has both."),
        click.option("--score", help="Score of the task that tables and figures lead with.  [default: its first]"),
        click.option("--samples", type=click.IntRange(min=1), help="Texts drawn from --text.  [default: 512]"),
        click.option("--text-column", type=NAMES, metavar="COL[,COL]", help="Column of --text; two for text pairs."),
        click.option(
            "--text",
            help="Text without labels: .txt, .jsonl, .csv, .tsv or a Hub dataset id.  [default: the package's own]",
        ),
        click.option("--task", help="A task: evaluate-models tasks lists them, or a TASK.yaml; else --text is read."),
    ):
        command = option(command)
    return command


def asked_of(options: Mapping[str, Any], shared: EvalOptions) -> Asked:
    """Return what a study is judged on.

    Raises:
        UsageError: rows and text do not fit one another, or there is no such task.
    """
    from evals.run.inside.subject import Asked, check_asked
    from evals.tasks import find_task
    from merge.text.source import TextSource

    samples = 512 if options["samples"] is None else options["samples"]
    text = TextSource(options["text"], options["text_column"], samples, options["seed"])
    task = None if options["task"] is None else find_task(options["task"])
    asked = Asked(task, text, options["stack"], options["score"])
    given = [f"--{n.replace('_', '-')}" for n in ("text", "text_column", "samples") if options[n] is not None]
    check_asked(asked, shared, given)
    return asked


def show_study(record: dict[str, Any], options: EvalOptions) -> None:
    """Show the record of lesions or of linear fits."""
    from evals.report.surgery.section import write_surgery_report
    from evals.report.surgery.tables import TABLES, cost_lines
    from evals.report.surgery.verdict import verdict_lines

    tables = list(TABLES[record["kind"]](record).values())
    lines = verdict_lines(record), cost_lines(record)
    show_record(record, options, tables, write_surgery_report, *lines, width=TERMINAL_WIDTH)
