"""The evaluate-models command; each of its commands has a module of its own."""

from __future__ import annotations

import sys

import click

from evals.commands.advice import with_fitting_advice
from evals.commands.barrier import barrier
from evals.commands.basins import basins
from evals.commands.compare import compare
from evals.commands.curve import curve
from evals.commands.features import features
from evals.commands.lesion import lesion
from evals.commands.line import line
from evals.commands.linearity import linearity
from evals.commands.monotonic import monotonic
from evals.commands.options import SETTINGS
from evals.commands.plane import plane
from evals.commands.score import glue, hans, score, tasks
from evals.commands.similarity import similarity
from evals.commands.simplex import simplex
from evals.commands.stitch import stitch
from evals.predict.process_group import end_with_launcher, exit_process, has_joined, join_group, rank_and_size
from evals.predict.workers import release_workers, run_worker
from merge.commands.align_options import with_align_value
from merge.commands.sections import SectionedGroup
from merge.commands.terminal import start

INTERRUPTED = 130

EPILOG = """\b
Examples:
  evaluate-models hans merged/ a/ b/ -o report
  evaluate-models glue mnli merged/ a/ b/ --data dev_matched.tsv -o report
  evaluate-models score paws_wiki merged/ a/ b/ -o report
  evaluate-models score mytask.yaml merged/ a/ b/
  evaluate-models glue all merged/ a/ b/ --data glue_data/ --table markdown
  evaluate-models compare report mnli
  evaluate-models barrier a/ b/ --task mnli --align activations --text train.jsonl -o report
  evaluate-models line a/ b/ --task mnli --also hans --head both --head A -o report
  evaluate-models basins zoo/* --task mnli --diagnostic hans:hans_lo -o report
  evaluate-models plane a/ b/ c/ --task mnli -o report
  evaluate-models curve a/ b/ --task mnli --train train.jsonl --data dev.jsonl -o report
  evaluate-models simplex a/ b/ --task mnli --train train.jsonl --data dev.jsonl -o report
  evaluate-models monotonic pretrained/ run/ --task mnli -o report
  evaluate-models features a/ b/ --text sample.txt --align weights -o report
  evaluate-models similarity a/ b/ --text sample.txt -o report
  evaluate-models lesion model/ --task mnli --limit 500 -o report
  evaluate-models linearity model/ --text sentences.txt -o report
  evaluate-models stitch a/ b/ --task mnli --text sample.txt -o report
  evaluate-models tasks
  torchrun --standalone --nproc-per-node 4 --no-python evaluate-models hans merged/ a/ b/ -o report
"""
SECTIONS = {
    "Scores": ("score", "glue", "hans", "compare", "tasks"),
    "Between models": ("barrier", "line", "basins", "plane", "monotonic", "curve", "simplex"),
    "Inside models": ("features", "similarity", "stitch", "lesion", "linearity"),
}


@click.group(cls=SectionedGroup, sections=SECTIONS, epilog=EPILOG, context_settings=SETTINGS, no_args_is_help=False)
@click.version_option(package_name="merge-models", prog_name="evaluate-models")
def evaluate() -> None:
    """Evaluate models: scores on tasks, comparisons, the loss barrier between two models; with a page of tables and figures."""
    join_group()


for _command in (
    score,
    glue,
    hans,
    compare,
    barrier,
    line,
    basins,
    plane,
    monotonic,
    curve,
    simplex,
    features,
    similarity,
    lesion,
    linearity,
    stitch,
    tasks,
):
    evaluate.add_command(with_fitting_advice(_command))


def main() -> None:
    """Run evaluate-models; of several processes rank 0 runs the command, and the others work for it."""
    rank, size = rank_and_size()
    end_with_launcher()
    if size == 1:
        start(evaluate, "evaluate-models", with_align_value(sys.argv[1:]))
    else:
        exit_process(run_worker() if rank else _run_rank_0())


def _run_rank_0() -> int:
    """Run the command with the other processes as workers; return the exit code."""
    code: int | str | None = 0
    try:
        start(evaluate, "evaluate-models", with_align_value(sys.argv[1:]))
    except SystemExit as stop:
        code = stop.code
    # After an interruption the workers may be in the middle of a job; torchrun ends them.
    if code != INTERRUPTED and has_joined():
        release_workers()
    return code if isinstance(code, int) else int(code is not None)
