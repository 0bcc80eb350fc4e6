"""Scores of edited models by a command: each candidate is written, scored by its folder, and removed again."""

from __future__ import annotations

import shlex
import tempfile
from pathlib import Path

from merge.errors import UsageError
from merge.layers.assembly import Assembly
from merge.layers.compare import AssemblyScore
from merge.layers.edit import write_assembly
from merge.methods.greedy_soup import MODEL
from merge.run.search.greedy_soup import run_scorer


def layer_scorer(command: str, metric: str | None = None, lower_is_better: bool = False) -> AssemblyScore:
    """Return the score of an edited model by a command: larger is better.

    Args:
        command: run without a shell; {model} is replaced by the folder. The score is the last line of its output if that is
            a number, or the value of `metric` if the output is JSON.
        lower_is_better: whether the score is negated.
    Raises:
        UsageError: the command does not name {model}, or cannot be split into words.
    """
    try:
        words = shlex.split(command)
    except ValueError as error:
        raise UsageError(f"scorer {command!r} cannot be split into words: {error}.") from error
    if not any(MODEL in word for word in words):
        raise UsageError(
            f"scorer must contain {MODEL}, which is replaced by the candidate's folder; found {command!r}."
        )

    def score(assembly: Assembly) -> float:
        with tempfile.TemporaryDirectory() as place:
            folder = Path(place) / "candidate"
            write_assembly(assembly, folder)
            value = run_scorer(words, folder, metric, f"a candidate of {len(assembly.plan.layers)} layers")
        return -value if lower_is_better else value

    return score
