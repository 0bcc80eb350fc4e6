"""What a page and a folder show of a sweep over many models: the verdict first, then pictures and tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evals.report.basins import tables
from evals.report.basins.heatmap import heatmap_figure
from evals.report.basins.pair_curves import Curve, curves_figure
from evals.report.basins.prediction import prediction_figure
from evals.report.basins.scatter import Axis, scatter_figure
from evals.report.table_text import show

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from evals.report.table_text import Row

Record = Mapping[str, Any]
PLACES = {"inside": "inside clusters", "between": "between clusters"}


def basins_section(record: Record, analysis: Record, prefix: str) -> dict[str, Any]:
    """Return the values of the page's section for one kind of line, naive or aligned.

    Args:
        record: of the sweep.
        analysis: of the lines, as `Analysis.to_json` has it.
        prefix: of the ids in the figures.
    """
    from markupsafe import Markup

    from evals.report.svg import inline_svg

    figures = {
        name: Markup(inline_svg(figure, f"{prefix}-{name}", label))
        for name, (figure, label) in basins_figures(analysis).items()
    }
    folded = {"Models": tables.member_rows(record, analysis), "Methods of clustering": tables.method_rows(analysis)}
    if analysis["verification"]:
        folded["Averages that were measured"] = tables.verified_rows(analysis)
    return {
        "record": record,
        "line": analysis["line"],
        "barrier": analysis["settings"]["barrier_summary"],
        "tolerance": analysis["settings"]["tolerance"],
        "verdict": analysis["verdict"],
        "clusters": tables.cluster_rows(analysis),
        "strategies": tables.strategy_rows(analysis) if analysis["strategies"] else [],
        "averages": tables.average_rows(analysis),
        "figures": figures,
        "folded": folded,
        "notes": analysis["notes"],
    }


def basins_figures(analysis: Record) -> dict[str, tuple[Figure, str]]:
    """Return name -> figure and its description: heatmap, curves, a scatter for each diagnostic, predictions."""
    summary, names = analysis["settings"]["summary"], analysis["models"]
    heatmap = heatmap_figure(
        names, _floats(analysis["matrices"][summary]["values"]), analysis["linkage"], analysis["labels"], summary
    )
    figures = {
        "heatmap": (heatmap, f"The {summary} of every pair, in the order of the dendrogram."),
        "curves": (curves_figure(_panels(analysis), analysis["lam"]), "Loss along the lines of the extreme pairs."),
    }
    for at, strategy in enumerate(analysis["strategies"]):
        label = f"{strategy['diagnostic']} of every model over its cluster coordinate."
        if figure := _scatter(analysis, strategy):
            figures[f"scatter{at}"] = (figure, label)
    if analysis["verification"]:
        figures["averages"] = (_predictions(analysis), "Measured over predicted loss of averages.")
    return figures


def _floats(values: Sequence[Sequence[float | None]]) -> list[list[float]]:
    return [[float("nan") if value is None else value for value in row] for row in values]


def _panels(analysis: Record) -> dict[str, list[Curve]]:
    """Return the curves of the nearest and the farthest pair inside clusters, and between them."""
    summary, names = analysis["settings"]["summary"], analysis["models"]
    panels: dict[str, list[Curve]] = {}
    for pair in analysis["extremes"]:
        i, j = pair["models"]
        where = PLACES[pair["where"]] if len(analysis["clusters"]) > 1 else "all models"
        name = f"{pair['extreme']}: {names[i]} → {names[j]}, {summary} {show(pair['distance'])}"
        panels.setdefault(where, []).append({"name": name, "loss": pair["loss"]})
    return panels


def _scatter(analysis: Record, strategy: Record) -> Figure | None:
    """Return the scatter of a diagnostic; None without a cluster coordinate."""
    if analysis["embedding"] is None:
        return None
    name, test = strategy["diagnostic"], strategy["pearson"]
    note = "" if test is None else f"Pearson {test['value']:.2f}, permutation p {_p(test['p'])}"
    sizes = [f"{tables.cluster_name(k)} ({len(models)})" for k, models in enumerate(analysis["clusters"])]
    x = Axis("cluster coordinate (negative: nearer to the larger)", analysis["embedding"]["coordinate"])
    y = Axis(name, analysis["diagnostics"][name])
    return scatter_figure(analysis["models"], x, y, analysis["labels"], sizes, note)


def _p(p: float) -> str:
    return "< .001" if p < 0.001 else f"= {f'{p:.3f}'.removeprefix('0')}"


def _predictions(analysis: Record) -> Figure:
    """Return predicted against measured losses; the best predicted average, the best measured one and that of all are named."""
    verification, ranking = analysis["verification"], analysis["ranking"]
    averages = {tuple(each["models"]): {**each, "count": len(each["models"])} for each in verification["subsets"]}
    special: dict[tuple[int, ...], str] = {}
    for name, models in (
        ("best predicted", ranking["subsets"][0]["models"] if ranking["subsets"] else []),
        ("best measured", verification["best"]),
        ("all", range(len(analysis["models"]))),
    ):
        if (at := tuple(models)) in averages:
            special[at] = f"{special[at]}, {name}" if at in special else name
    order = verification["rank_correlation"]
    note = f"{len(averages)} averages, largest error {abs(verification['largest_error']):.3f}"
    note += "" if order is None else f", rank correlation {order:.2f}"
    return prediction_figure(list(averages.values()), {name: averages[at] for at, name in special.items()}, note)


def basins_tables(record: Record, analysis: Record) -> dict[str, list[Row]]:
    """Return name of a CSV file -> its table."""
    named = {"clusters": tables.cluster_rows(analysis), "models": tables.member_rows(record, analysis)}
    if analysis["strategies"]:
        named["strategies"] = tables.strategy_rows(analysis)
    named["averages"] = tables.average_rows(analysis)
    if analysis["verification"]:
        named["verified"] = tables.verified_rows(analysis)
    return named


def write_basins_report(record: Record, analyses: Sequence[Record], folder: Path) -> list[Path]:
    """Write the pictures (png and svg) and tables (csv) of every kind of line, and return their paths.

    Raises:
        OSError: the folder is not writable.
    """
    from evals.report.svg import save_figure
    from evals.report.table_text import csv_table
    from merge.disk.atomic import write_atomic

    made: list[Path] = []
    for analysis in analyses:
        end = f"-{analysis['line']}" if len(analyses) > 1 else ""
        for name, (figure, _) in basins_figures(analysis).items():
            made += save_figure(figure, folder / f"basins-{name}{end}")
        for name, rows in basins_tables(record, analysis).items():
            path = folder / f"basins-{name}{end}.csv"
            write_atomic(path, csv_table(rows))
            made.append(path)
    return made
