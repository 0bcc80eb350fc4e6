"""Write docs/architectures.md: every family and task head, merged, reloaded, aligned and proved.

make architectures-table
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

COLUMNS = ("family", "head", "linear, reloads", "by weights: proof", "by activations: proof")


INTRODUCTION = """\
The models that merge-models knows tensor by tensor. Each row is one class of transformers: two tiny models of it with every
parameter random went all the way, in `tests/contracts/test_family_table.py`:

1. merged by `linear`, then loaded again by `from_pretrained` and run;
2. the second aligned to the first on all axes, by weights and by activations;
3. proved: *proof* is the largest difference of any output of the aligned model from its output before, in standard deviations
   of that output (float64; XLNet, DeBERTa v1, Llama and their kin compute in float32 themselves).

A row that looks the same as another is another config: tied or untied, another activation, shared layers. A family that is not
here is merged all the same, and aligned by a table that is derived from a run of the model and proved likewise, or refused with
the reason. What may be moved in each, and why, is in [symmetries.md](symmetries.md)."""


def write(path: Path, rows: Sequence[dict[str, str]]) -> None:
    """Write the page from the rows of a test run."""
    families = {row["family"] for row in rows}
    lines = [
        "# Architectures",
        "",
        INTRODUCTION,
        "",
        f"{len(families)} families, {len({row['head'] for row in rows})} classes. Written by `make architectures-table`.",
        "",
        f"| {' | '.join(COLUMNS)} |",
        f"| {' | '.join('---' for _ in COLUMNS)} |",
    ]
    lines += [f"| {' | '.join(row[column] for column in COLUMNS)} |" for row in sorted(rows, key=_order)]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def _order(row: dict[str, str]) -> tuple[str, str, str]:
    return row["family"], row["head"], row["case"]
