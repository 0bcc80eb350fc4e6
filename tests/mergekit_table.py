"""Write docs/mergekit.md: every kind of mergekit file, and what became of it.

make mergekit-table
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

INTRODUCTION = """\
`merge-models --recipe merge.yml` reads mergekit configurations. Each row is one kind of file as people publish it (model
cards, mergekit's examples, issues, dumps of its tools), run by both tools on four tiny models of one start:

- *same result*: every tensor of the output is that of mergekit 0.1.5, up to rounding;
- *runs, difference named*: it runs, and a note before the merge says what differs from mergekit's result;
- *refused, reason named*: one line with its place in the file, before a model is opened.

Where the two tools differ by design, the file gets the settings that equal mergekit: `trim` and `exact_count` of `ties`,
`floor` of `sce` and `model_stock`, `line_above` of `slerp`, `as_stored` for the rows of GPT-2's weights.
[methods.md](methods.md) says what each means. The files are in `tests/parity/kinds.py`; `tests/parity/test_real_deltas.py`
compares every shared method on fine-tunes of a real encoder and on task vectors full of ties."""


def write(path: Path, rows: Sequence[dict[str, str]]) -> None:
    """Write the page from the rows of a test run."""
    counts = Counter(row["outcome"] for row in rows)
    shown = ", ".join(f"{counts[outcome]} {outcome}" for outcome in counts)
    lines = [
        "# mergekit files",
        "",
        INTRODUCTION,
        "",
        f"**{len(rows)} kinds of file: {shown}.** Written by `make mergekit-table`.",
        "",
        "| kind of file | outcome | what is said |",
        "| --- | --- | --- |",
    ]
    lines += [f"| {row['kind']} | {row['outcome']} | {_cell(row['words'])} |" for row in rows]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def _cell(text: str) -> str:
    return text.replace("|", "\\|")
