"""HANS files: the pairs, in the published layout or as JSON lines, and published predictions on them."""

from __future__ import annotations

from pathlib import Path

from evals.heuristics.files import read_pairs, read_predictions
from evals.heuristics.grammar import LABELS, generate
from evals.heuristics.scores import fold
from evals.tasks.labels import NLI_ALIASES
from evals.tasks.task import EvalTask, Rows

__all__ = ["HANS", "fold", "read_pairs", "read_predictions"]


def _read(path: Path | None, seed: int) -> Rows:
    """Return the HANS pairs of a file, or generate 1,000 evaluation pairs of each of the 30 subcases."""
    pairs = generate(seed=seed) if path is None else read_pairs(path)
    data = f"generated from the HANS grammar, evaluation half, seed {seed}" if path is None else path.name
    return Rows(
        texts=tuple((pair.premise, pair.hypothesis) for pair in pairs),
        gold=tuple(LABELS.index(pair.label) for pair in pairs),
        labels=LABELS,
        data=f"{data}, {len(pairs):,} pairs",
        split="evaluation",
        ids=tuple(pair.pair_id for pair in pairs),
        extra=tuple(pairs),
    )


HANS = EvalTask(
    "hans",
    LABELS,
    _read,
    "hans",
    coarse={"entailment": "entailment", "neutral": "non-entailment", "contradiction": "non-entailment"},
    aliases=NLI_ALIASES,
    source="generated from its grammar",
)
