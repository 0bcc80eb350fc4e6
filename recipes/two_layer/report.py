"""The tables of the study as text."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from two_layer.study import PUBLISHED, REDUCTIONS


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return columns of equal width, the first to the left and the others to the right."""
    body = [list(head), *map(list, rows)]
    widths = [max(len(row[k]) for row in body) for k in range(len(head))]
    lines = [
        "  ".join(
            cell.ljust(w) if k == 0 else cell.rjust(w) for k, (cell, w) in enumerate(zip(row, widths, strict=True))
        )
        for row in body
    ]
    return "\n".join(line.rstrip() for line in lines)


def number(value: float) -> str:
    """Return a number with four decimals: 0 where it is rounding."""
    return f"{value:.4f}" if abs(value) >= 5e-5 else "0"


def spread(pair: Sequence[float]) -> str:
    """Return mean ± standard deviation."""
    return f"{number(pair[0])} ± {number(pair[1])}"


def zoo_text(records: Sequence[Mapping[str, Any]]) -> str:
    """Return the table of the networks of each width, and of what is left of them without redundancy."""
    names = [name for name in ("reduced", "reduced, published code") if name in records[0]]
    head = [
        "width",
        "test loss",
        "accuracy",
        *(f"{n.removeprefix('reduced, ')}: {w}" for n in names for w in ("units", "loss")),
    ]
    rows = [
        [
            str(r["width"]),
            spread(r["loss"]),
            f"{r['accuracy'][0]:.4f} ± {r['accuracy'][1]:.4f}",
            *(c for n in names for c in (f"{r[n]['units'][0]:.0f} ± {r[n]['units'][1]:.0f}", spread(r[n]["loss"]))),
        ]
        for r in records
    ]
    known = [
        f"published, width {width}: loss {row['loss']}, reduced to {row['reduced units']} units with loss {row['reduced loss']}"
        for width, row in PUBLISHED.items()
        if names and any(r["width"] == width for r in records)
    ]
    return "\n".join([table(head, rows), *known])


def units_text(records: Sequence[Mapping[str, Any]]) -> str:
    """Return on how many test rows two networks of each width differ, and how many units carry a network."""
    head = ["width", "rows two predict differently", "units with .95 of the strength"]
    rows = [
        [str(r["width"]), spread(r["disagreement"]), f"{r['strong units'][0]:.0f} ± {r['strong units'][1]:.0f}"]
        for r in records
    ]
    return table(head, rows)


def lines_text(records: Sequence[Mapping[str, Any]]) -> str:
    """Return barriers and clusters of each width: whole networks, then reduced ones."""
    head = [
        "width, networks",
        "naive barrier",
        "matched barrier",
        "epsilon, matched",
        "clusters: naive",
        "matched",
        "by rows",
    ]
    rows = []
    for record in records:
        for name, part in [("whole", record), *((n, record[n]) for n in REDUCTIONS if n in record)]:
            found = [part[how]["clusters"] for how in ("naive", "matched")]
            rows.append(
                [
                    f"{record['width']}, {name}",
                    spread(part["naive"]["barrier"]),
                    spread(part["matched"]["barrier"]),
                    spread(part["matched"]["epsilon"]),
                    *(str(each["distances"]["clusters"]) for each in found),
                    f"{found[0]['rows']['clusters']}, {found[1]['rows']['clusters']}",
                ]
            )
    return table(head, rows)


def rows_text(records: Sequence[Mapping[str, Any]]) -> str:
    """Return records as a table; pairs of numbers are mean and standard deviation."""
    head = list(records[0])

    def cell(value: Any) -> str:
        if isinstance(value, float):
            return number(value)
        return spread(value) if isinstance(value, Sequence) and not isinstance(value, str) else str(value)

    return table(head, [[cell(record[key]) for key in head] for record in records])


def blocks_text(record: Mapping[str, Any]) -> str:
    """Return mean epsilon between networks of each two kinds, naive and matched."""
    kinds = record["kinds"]
    parts = []
    for how, blocks in record["epsilon"].items():
        parts.append(
            table([f"epsilon, {how}", *kinds], [[k, *map(number, row)] for k, row in zip(kinds, blocks, strict=True)])
        )
    return "\n\n".join(parts)


def averages_text(name: str, record: Mapping[str, Any]) -> str:
    """Return how the checkpoints of a run are connected and what their average is worth."""
    moved = record["share of units that matching moves"]
    return (
        f"{name}: losses of ten checkpoints {number(min(record['losses']))} to {number(max(record['losses']))}, of their average "
        f"{number(record['average'])}; epsilon between checkpoints {spread(record['epsilon'])}; matching to the first moves "
        f"{moved[0]:.0%} of the units after an epoch and {moved[-1]:.0%} after nine, and "
        f"{record['the same for another run']:.0%} of those of another run"
    )
