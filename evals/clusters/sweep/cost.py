"""What a sweep will cost, from one point of its first pair; and what was stored before."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class Cost:
    """The work of a sweep, and how long it takes.

    Attributes:
        models, pairs: how many there are; a pair counts once for each of its lines.
        models_left, pairs_left: those that are measured now; the others are stored.
        points: between the endpoints of a pair.
        rows: of the task.
        tokens: of the rows.
        diagnostic_tokens: of all diagnostics that are measured now.
        alignments: of a pair, or of a model to the reference, that are left.
        read_seconds: to read the models of a pair; measured on the first, as are the next two.
        align_seconds: of one alignment.
        point_seconds: of one point.
        processes: that share the work.
        reads: how many times a model is read for the pairs, at most.
        worker_bytes: of weights that a process holds at most.
    """

    models: int
    pairs: int
    models_left: int
    pairs_left: int
    points: int
    rows: int
    tokens: int
    diagnostic_tokens: int
    alignments: int
    read_seconds: float
    align_seconds: float
    point_seconds: float
    processes: int
    reads: int
    worker_bytes: int

    @property
    def forward_seconds(self) -> float:
        """Seconds of forward passes alone, on one process."""
        passes = self.models_left + self.pairs_left * self.points + self.diagnostic_tokens / max(self.tokens, 1)
        return passes * self.point_seconds

    @property
    def seconds(self) -> float:
        """Seconds of the whole sweep."""
        other = self.pairs_left * self.read_seconds + self.alignments * self.align_seconds
        return (self.forward_seconds + other) / self.processes

    def to_json(self) -> dict[str, Any]:
        """Return the record that --dry-run prints with --json."""
        return {**asdict(self), "forward_seconds": self.forward_seconds, "seconds": self.seconds}

    def lines(self) -> list[str]:
        """Return the estimate in words."""
        stored = self.models - self.models_left, self.pairs - self.pairs_left
        work = f"{self.models:,} models, {self.pairs:,} pairs x {self.points} points between them, {self.rows:,} rows"
        if any(stored):
            work += f"; stored already: {stored[0]:,} models, {stored[1]:,} pairs"
        if not self.pairs_left and not self.models_left:
            return [work, "nothing is left to measure"]
        aligning = f", {self.align_seconds:.2g} s to align one" if self.alignments else ""
        several = "1 process" if self.processes == 1 else f"{self.processes} processes"
        return [
            work,
            f"estimate: {spoken(self.seconds)} on {several}; measured on the first pair: {self.point_seconds:.2g} s a point, "
            f"{self.read_seconds:.2g} s to read a pair{aligning}. Forward passes alone are {spoken(self.forward_seconds)} of one "
            "process",
            f"models are read at most {self.reads:,} times for the pairs; each process holds up to "
            f"{self.worker_bytes / 1e6:,.0f} MB of weights",
        ]


def spoken(seconds: float) -> str:
    """Return a time in the unit that people use for it."""
    if seconds < 120:
        return f"{seconds:.0f} s" if seconds >= 10 else f"{seconds:.1f} s"
    if seconds < 7200:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h" if seconds < 72 * 3600 else f"{seconds / 86400:.0f} days"


def token_count(batches: Sequence[Any]) -> int:
    """Return how many tokens batches hold, padding included."""
    return sum(batch["input_ids"].numel() for batch in batches)
