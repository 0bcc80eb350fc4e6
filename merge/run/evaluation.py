"""Evaluate a merge: evaluate-models scores the result and its inputs, and the scores are written into its card."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from merge.checkpoints.checkpoint import Checkpoint
from merge.errors import MergeError, TaskError, first_line
from merge.progress import track
from merge.publish.card_results import add_results
from merge.recipe.entries import EvaluationEntry
from merge.recipe.recipe import Recipe

# merge never imports evals: it starts the command as a user would, with this Python and the package beside this one.
START = "import sys; sys.path.append(sys.argv.pop(1)); from merge.entry import evaluate_models; evaluate_models()"


class EvaluationError(MergeError):
    """The merge was written, but it could not be evaluated."""


def check_evaluation(recipe: Recipe) -> None:
    """Stop before anything is merged where the data of an evaluation does not exist.

    Raises:
        TaskError: a path does not exist.
    """
    for entry in recipe.evaluation:
        if entry.data is not None and not Path(entry.data).exists():
            raise TaskError(
                f"evaluation on {entry.task}: {entry.data}: there is no such file or folder. Check the path."
            )


def evaluate(recipe: Recipe, models: Sequence[Checkpoint]) -> tuple[str, ...]:
    """Score the merge and its inputs on every task of the recipe, write the scores into its card, and return notes.

    The report, results.json and a page, is written to the folder `<output>-report`; scores that it has are not measured again.

    Raises:
        EvaluationError: evaluate-models fails; the merge stays as it is.
    """
    if not recipe.evaluation:
        return ()
    output = Path(recipe.output).expanduser()
    report = report_folder(output)
    inputs = dict.fromkeys(m.source if m.commit is None else str(m.folder) for m in models)
    for entry in track(recipe.evaluation, "evaluating"):
        command = _command(entry, recipe.seed, report, [str(output), *inputs])
        try:
            done = subprocess.run(
                command, stdin=subprocess.DEVNULL, capture_output=True, encoding="utf-8", errors="replace", check=False
            )
        except (OSError, ValueError) as error:
            raise EvaluationError(
                f"{output} is written, but its evaluation on {entry.task} cannot be started: {first_line(error)}"
            ) from error
        if done.returncode != 0:
            message = next((line for line in reversed(done.stderr.splitlines()) if line.strip()), "(nothing)")
            raise EvaluationError(
                f"{output} is written, but its evaluation on {entry.task} failed (exit {done.returncode}): {message.strip()}"
            )
    try:
        add_results(output, report / "results.json")
    except MergeError as error:
        raise EvaluationError(f"{output} is written and evaluated, but its card was not: {error}") from error
    tasks = ", ".join(entry.task for entry in recipe.evaluation)
    return (f"evaluated on {tasks}: scores are in {output / 'README.md'} and {report / 'index.html'}",)


def report_folder(output: Path) -> Path:
    """Return the folder beside the output that its report is written to."""
    return output.with_name(f"{output.name}-report")


def _command(entry: EvaluationEntry, seed: int, report: Path, models: Sequence[str]) -> list[str]:
    """Return the evaluate-models command of one task."""
    options = ["-q", "-o", str(report), "--seed", str(seed)]
    if entry.data is not None:
        options += ["--data", entry.data]
    if entry.limit is not None:
        options += ["--limit", str(entry.limit)]
    if entry.labels is not None:
        options += ["--labels", ",".join(entry.labels)]
    root = str(Path(__file__).resolve().parents[2])
    words = ["hans", *options, "--"] if entry.task == "hans" else ["score", *options, "--", entry.task]
    return [sys.executable, "-P", "-c", START, root, *words, *models]
