"""The figure of a simplex record: losses inside the growing simplexes, and the likelihood of ensembles over their cost."""

from __future__ import annotations

from typing import TYPE_CHECKING

from evals.report.svg import short
from evals.results.store import Record
from merge.publish.figures import COLOURS, INK, MARKERS, RULE, figure_settings

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def simplex_figure(record: Record) -> Figure:
    """Return two panels: the losses of drawn points by dimension, and NLL over passes of every ensemble."""
    from matplotlib.figure import Figure

    ensembles = record["ensembles"][0]["rows"]
    with figure_settings():
        figure = Figure(figsize=(10.4, 4.4 + 0.14 * len(ensembles)), layout="constrained")
        left, right = figure.subplots(1, 2, squeeze=False)[0]
        for at, simplex in enumerate(record["simplexes"]):
            colour, marker, grown = COLOURS[at % len(COLOURS)], MARKERS[at % len(MARKERS)], simplex["dimensions"]
            dimensions = [each["dimension"] for each in grown]
            label = f"{short(simplex['name'], 30)}: low up to dimension {simplex['low_loss_dimension']}"
            left.plot(
                dimensions, [each["largest"] for each in grown], color=colour, marker=marker, label=label, zorder=3
            )
            for each in grown:
                left.plot(
                    [each["dimension"]] * len(each["drawn"]), each["drawn"], ".", color=colour, markersize=3, zorder=2
                )
            left.axhline(simplex["bound"], color=colour, linestyle=":", linewidth=0.9)
        left.set(xlabel="dimension", ylabel="largest loss (dots: drawn points; dotted: bound)")
        left.xaxis.get_major_locator().set_params(integer=True)
        left.legend(loc="upper left", fontsize=8)
        names = [short(each["name"], 40) for each in ensembles]
        places = range(len(ensembles))[::-1]
        right.hlines(list(places), 0, [e["nll"] for e in ensembles], color=RULE, zorder=1)
        right.plot([each["nll"] for each in ensembles], list(places), "o", color=INK, markersize=5, zorder=3)
        for place, each in zip(places, ensembles, strict=True):
            note = f"{each['passes']} pass{'es' if each['passes'] > 1 else ''}, accuracy {each['accuracy']:.3f}"
            right.annotate(
                note, (each["nll"], place), xytext=(6, 0), textcoords="offset points", va="center", fontsize=7.5
            )
        right.set_yticks(list(places), names)
        right.set_xlim(0, 1.6 * max(each["nll"] for each in ensembles))
        right.set(xlabel="negative log-likelihood")
        right.grid(axis="y", visible=False)
        train = record["train"]
        how = f"{train['steps']} steps a vertex on {train['rows']:,} rows"
        title = f"{record['task']}, {record['split']}, n = {record['n']:,}; {how}"
        figure.suptitle(title, x=0.012, ha="left", fontsize=9)
        return figure
