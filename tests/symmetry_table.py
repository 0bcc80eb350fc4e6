"""Write docs/symmetries.md: the groups, the group of every axis of every family with its error, and what is no symmetry.

make symmetries-table
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from merge.symmetry.groups import GROUPS

COLUMNS = ("family", "case", "axis", "group", "error")
WRONG = ("claim", "case", "error")

INTRODUCTION = """\
# Symmetries

Two models can compute the same function with very different weights. Reorder the hidden units of a feed-forward layer, in
the weights that write them and in those that read them, and no output changes. Averaging two models unit by unit only makes
sense once such differences are removed, so merge-models has to know, for every architecture, exactly which changes of the
weights leave the function alone. This page lists them, and the tests that print it prove each one.

## How to read it

Every dimension of every tensor has a named *axis*:

| axis | units |
| --- | --- |
| residual | the residual stream, one order for the whole model |
| heads | attention heads; a head moves as a block of query, key, value and output weights |
| qk, v | units inside a head: those that queries and keys share, those that values and the output projection share |
| ffn | hidden units of a feed-forward layer |
| hidden | hidden units of a layer of a plain multi-layer perceptron |
| embedding | units of word embeddings that are narrower than the residual stream |
| pooler, classifier, transform, ... | hidden units of the pooler or of a task head |
| labels | classes; matched by their names, never by their weights |

On every axis a *group* acts: its units may be permuted, and a map of the group may be applied to them. The tensors that write
the axis take the map G, those that read it the inverse transpose, so that what they compute together stays the same:

    scores of a head      q^T k = (G q)^T (G^-T k)
    values of a head      W_O W_V = (W_O G^-1) (G W_V)
    a ReLU layer          W_2 relu(W_1 x) = (W_2 S^-1) relu(S W_1 x)        for positive scales S

Which group that is depends on what the model does with the units. GELU acts on each unit alone and commutes with
permutations only; tanh is odd and lets signs pass; between two matrix products every invertible map is free."""

PROOF = """\
A random element of the group acts on all the axes of a kind. *Error* is the largest change of any output, in standard
deviations of that output. The models are tiny, with every parameter random, gains and biases too, with padding and segments,
in float64 (Llama and its kin, ModernBERT, DeBERTa v1 and XLNet compute in float32 themselves). A *case* is a model's class, or
a config that the tests name. *Gains folded* means that the gains of the norms were multiplied into the weights that read them
first: only then can the residual stream be rotated."""

NEAR_MISSES = """\
Each of these is close to one of the above and changes the function: the error shows by how much. They are the negative
controls of the table."""


def write(path: Path, rows: Sequence[dict[str, str]]) -> None:
    """Write the page from the rows of a test run: those that name a group, and those that name a false claim."""
    proved, broken = [row for row in rows if "group" in row], [row for row in rows if "claim" in row]
    families = {row["family"] for row in proved}
    lines = [
        INTRODUCTION,
        "",
        "## Groups",
        "",
        "Besides the maps, all groups permute the units, except `none` and the three of rotary positions, whose order is fixed.",
        "",
        "| group | maps, and what leaves them free |",
        "| --- | --- |",
        *(f"| {name} | {group.description} |" for name, group in GROUPS.items()),
        "",
        "## What acts on each axis",
        "",
        PROOF,
        "",
        f"{len(families)} families, {len(proved)} axes, {len({row['group'] for row in proved})} groups. Written by "
        "`make symmetries-table`.",
        "",
        *_table(COLUMNS, proved),
        "",
        "## What does not",
        "",
        NEAR_MISSES,
        "",
        *_table(WRONG, broken),
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def _table(columns: Sequence[str], rows: Sequence[dict[str, str]]) -> list[str]:
    body = sorted({f"| {' | '.join(row[column] for column in columns)} |" for row in rows})
    return [f"| {' | '.join(columns)} |", f"| {' | '.join('---' for _ in columns)} |", *body]
