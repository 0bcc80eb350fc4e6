"""The evaluate-models command; each of its commands has a module of its own."""

from __future__ import annotations

import sys

import click

from evals.answers import SETTINGS
from evals.barrier_command import barrier
from evals.compare_command import compare
from evals.score_command import glue, hans, score, tasks
from merge.terminal import start


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
      evaluate-models compare report mnli
      evaluate-models barrier a/ b/ --task mnli --align activations --text train.jsonl -o report
      evaluate-models tasks
    """


for _command in (score, glue, hans, compare, barrier, tasks):
    evaluate.add_command(_command)


def main() -> None:
    """Run evaluate-models."""
    start(evaluate, "evaluate-models", sys.argv[1:])
