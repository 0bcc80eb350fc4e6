"""The figure of compared plans: one line a strategy, its points the rows of the table."""

from __future__ import annotations

from merge.layers.compare import Comparison, Row


def row(label: str, layers: int, score: float) -> Row:
    return Row(label, "A[0]", layers, 10, 1.0, 1.0, score, 1.0, 1.0, 1.0, 1.0)


ROWS = (
    row("full model", 4, 1.0), row("top 1", 3, 0.4), row("top 1, auto", 3, 0.9), row("top 2", 2, 0.2),
    row("top 2, auto", 2, 0.8), row("A[0], A[3]", 2, 0.5), row("no layer", 0, 0.1),
)  # fmt: skip


def test_a_strategy_is_one_line_of_its_counts_and_a_repair_another() -> None:
    (axes,) = Comparison(ROWS, "cosine", "text.txt", ()).plot().axes
    lines = {line.get_label(): line for line in axes.lines}
    points = {name: list(zip(line.get_xdata(), line.get_ydata(), strict=True)) for name, line in lines.items()}
    floor = points.pop("no layer")
    assert {y for _, y in floor} == {0.1}
    assert points == {
        "full model": [(4, 1.0)],
        "top": [(2, 0.2), (3, 0.4)],
        "top, auto": [(2, 0.8), (3, 0.9)],
        "A[0], A[3]": [(2, 0.5)],
    }
    assert lines["top"].get_color() == lines["top, auto"].get_color() != lines["full model"].get_color()
    assert {name: line.get_linestyle() for name, line in lines.items() if line.get_linestyle() == "-"} == {
        "top, auto": "-"
    }
    assert all(float(tick).is_integer() for tick in axes.get_xticks())
