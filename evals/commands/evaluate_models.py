"""The evaluate-models command; each of its commands has a module of its own."""

from __future__ import annotations

import sys

import click

from evals.commands.barrier import barrier
from evals.commands.compare import compare
from evals.commands.options import SETTINGS
from evals.commands.score import glue, hans, score, tasks
from evals.predict.crew import dismiss, serve
from evals.predict.rendezvous import end_with_launcher, leave, meet, met, world
from merge.commands.terminal import start

INTERRUPTED = 130


@click.group(context_settings=SETTINGS, no_args_is_help=False)
@click.version_option(package_name="merge-models", prog_name="evaluate-models")
def evaluate() -> None:
    """Measure models: scores on a task, the loss barrier between two models, a page with the curves.

    \b
    Examples:
      evaluate-models hans merged/ a/ b/ -o report
      evaluate-models glue mnli merged/ a/ b/ --data dev_matched.tsv -o report
      evaluate-models score paws_wiki merged/ a/ b/ -o report
      evaluate-models score mytask.yaml merged/ a/ b/
      evaluate-models glue all merged/ a/ b/ --data glue_data/ --table markdown
      evaluate-models compare report mnli
      evaluate-models barrier a/ b/ --task mnli --align activations --text train.jsonl -o report
      evaluate-models tasks
      torchrun --standalone --nproc-per-node 4 --no-python evaluate-models hans merged/ a/ b/ -o report
    """
    meet()


for _command in (score, glue, hans, compare, barrier, tasks):
    evaluate.add_command(_command)


def main() -> None:
    """Run evaluate-models; of several processes the first runs it, and the others do as it says."""
    rank, size = world()
    end_with_launcher()
    if size == 1:
        start(evaluate, "evaluate-models", sys.argv[1:])
    else:
        leave(serve() if rank else _lead())


def _lead() -> int:
    """Run the command as the first of several processes; return the exit code."""
    code: int | str | None = 0
    try:
        start(evaluate, "evaluate-models", sys.argv[1:])
    except SystemExit as stop:
        code = stop.code
    if code != INTERRUPTED and met():  # interrupted, the others may be waiting for more than leave
        dismiss()
    return code if isinstance(code, int) else int(code is not None)
