"""The page docs/symmetries.md: what acts on the axes of every family, how exact it is, and what does not act.

make symmetries-table
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from merge.symmetry.groups import GROUPS

COLUMNS = ("family", "case", "axis", "group", "error")
WRONG = ("claim", "case", "error")


def write(path: Path, rows: Sequence[dict[str, str]]) -> None:
    """Write the page of a run's rows: those that name a group, and those that name what is wrong."""
    kept, broken = [row for row in rows if "group" in row], [row for row in rows if "claim" in row]
    families = {row["family"] for row in kept}
    lines = [
        "# Symmetries",
        "",
        "Written by `make symmetries-table`: tiny models with every parameter random, gains and biases too, with padding and",
        "segments, in float64 (Llama and its kin, ModernBERT, DeBERTa v1 and XLNet compute in float32 themselves). A random",
        "element of the group acts on all the axes of a kind; error is the largest difference of any output from what it",
        "was, in standard deviations of that output. A case is a model's class, or a config of it that the tests name.",
        "",
        f"{len(families)} families, {len(kept)} axes, {len({row['group'] for row in kept})} groups.",
        "",
        "## Groups",
        "",
        "Every group acts on top of the permutations of its axis, but for those of rotary positions, whose order is fixed.",
        "",
        "| group | what it is, and why |",
        "| --- | --- |",
        *(f"| {name} | {group.description} |" for name, group in GROUPS.items()),
        "",
        "## What acts",
        "",
        *_table(COLUMNS, kept),
        "",
        "## What does not",
        "",
        "Each of these is near to one of the above, and another function.",
        "",
        *_table(WRONG, broken),
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def _table(columns: Sequence[str], rows: Sequence[dict[str, str]]) -> list[str]:
    body = sorted({f"| {' | '.join(row[column] for column in columns)} |" for row in rows})
    return [f"| {' | '.join(columns)} |", f"| {' | '.join('---' for _ in columns)} |", *body]
