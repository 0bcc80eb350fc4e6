"""Write docs/layouts.md: every layout of a repository with every command.

make layouts-table
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from layouts.shelf import ENCODERS, FILES, SENTENCES, STUDIES

COLUMNS = {
    "merge": "merge",
    "weights": "align by weights: proof",
    "activations": "align by activations: proof",
    "drop": "drop a layer",
    "score": "score",
    "push": "push, card",
}
PARTS = {"Encoders": ENCODERS, "Embedding models and cross-encoders": SENTENCES, "Files": FILES}
INTRODUCTION = """\
Checkpoints as real repositories have them: names of tensors, missing and extra tensors, files, tokenizers, configs of every
version. For each layout two tiny models are written that way (`tests/layouts/shelf.py`), and every command reads them:
`merge-models a b`, with `--align weights`, with `--align activations --text`, `edit-layers drop`, `evaluate-models score`, and
`merge-models push --dry-run` of the merge. ✓ means that the result equals what was worked out from the weights that the layout
was made of, and that transformers loads all of it; for an alignment the figure is the error of its proof in standard deviations
of the outputs. Otherwise the cell is the line that the command ends with.

A tensor that the class does not have (a pooler beside a masked language model) is merged where all models have it and nothing is
aligned, else left out, and that is said: `--extra-tensors keep` or `drop` decides."""


STUDIED = """\
## Studies and edits

The same layouts with every other command that reads weights: `evaluate-models`, and from stitch-models on, what writes a
model (`edit-layers` with its own commands). ✓ means that every number, or every tensor that was written, is that of a folder with
the same weights, tokenizer and pipeline as `save_pretrained` writes it today. A number in brackets is the line below with which
the command ends on both: the folder has no classes for the task, no tokenizer, not all weights of its class, or layers that
share what layers of two models cannot."""


def studies(cells: Mapping[tuple[str, str], str]) -> list[str]:
    """Return the table of studies and edits, and below it each line that one of them ends with."""
    numbers: dict[str, int] = {}
    rows = [f"| layout | {' | '.join(STUDIES)} |", "| --- " * (1 + len(STUDIES)) + "|"]
    for name in {**ENCODERS, **SENTENCES, **FILES}:
        outcomes = [cells.get((name, command), "not run").removeprefix("refused: ") for command in STUDIES]
        told = [o if o in ("✓", "not run") else f"[{numbers.setdefault(o, len(numbers) + 1)}]" for o in outcomes]
        rows.append(f"| {name} | {' | '.join(told)} |")
    return ["", STUDIED, "", *rows, "", *(f"- [{number}] {line}" for line, number in numbers.items()), ""]


def write(path: Path, rows: Sequence[dict[str, str]]) -> None:
    """Write the page from the rows of a test run."""
    cells = {(row["layout"], row["command"]): row["outcome"] for row in rows}
    others = {key: outcome for key, outcome in cells.items() if key[1] in STUDIES}
    cells = {key: outcome for key, outcome in cells.items() if key not in others}
    right = sum(outcome.startswith("✓") for outcome in cells.values())
    lines = ["# Layouts", "", INTRODUCTION, ""]
    lines += [f"{len(cells)} cells, {right} right, {len(cells) - right} refused. Written by `make layouts-table`.", ""]
    for title, layouts in PARTS.items():
        lines += [
            f"## {title}",
            "",
            f"| layout | like | {' | '.join(COLUMNS.values())} |",
            "| --- " * (2 + len(COLUMNS)) + "|",
        ]
        for name, layout in layouts.items():
            outcomes = [cells.get((name, command), "not run").replace("|", "\\|") for command in COLUMNS]
            lines.append(f"| {name} | {layout.like} | {' | '.join(outcomes)} |")
        lines.append("")
    lines += studies(others)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines), encoding="utf-8")
