"""The plot of an alignment's match quality: how alike matched units are in each layer, against what chance makes of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from merge.publish.figures import COLOURS, INK, MARKERS, figure_settings, rendered

if TYPE_CHECKING:
    from matplotlib.axes import Axes

FILE = "alignment.png"


def save_alignment_plot(folder: Path, aligned: Sequence[Mapping[str, Any]]) -> None:
    """Write alignment.png: a panel for each model that was aligned.

    Args:
        aligned: records of alignments as the manifest has them, with their `quality`.
    """
    from matplotlib.figure import Figure

    with figure_settings():
        figure = Figure(figsize=(7.2, 3.6 * len(aligned)), layout="constrained")
        for axes, record in zip(figure.subplots(len(aligned), squeeze=False)[:, 0], aligned, strict=True):
            draw_quality(axes, record)
    (folder / FILE).write_bytes(rendered(figure, "png"))


def draw_quality(axes: Axes, record: Mapping[str, Any]) -> None:
    """Draw one alignment: a line over the layers for each sort of axis, a dashed level for what is in no layer.

    What matching makes of shuffled scores is drawn thin and dotted in the same colour; random units are the grey zero line.
    """
    quality, sorts = record["quality"], dict[str, list[Mapping[str, Any]]]()
    for one in quality["axes"]:
        sorts.setdefault(sort_of(one["axis"]), []).append(one)
    layers = sorted({one["layer"] for one in quality["axes"] if one["layer"] is not None})
    ends = (layers[0] - 0.5, layers[-1] + 0.5) if layers else (-0.5, 0.5)
    for at, (sort, found) in enumerate(sorts.items()):
        colour, marker = COLOURS[at % len(COLOURS)], MARKERS[at % len(MARKERS)]
        if found[0]["layer"] is None:
            axes.plot(ends, [found[0]["score"]] * 2, color=colour, linestyle="--", linewidth=1.4, label=sort)
            axes.plot(ends, [found[0]["shuffled"]] * 2, color=colour, linestyle=":", linewidth=0.9)
            continue
        where = [one["layer"] for one in found]
        axes.plot(where, [one["score"] for one in found], color=colour, marker=marker, linewidth=1.6, label=sort)
        axes.plot(
            where,
            [one["shuffled"] for one in found],
            color=colour,
            marker=marker,
            markersize=4,
            markerfacecolor="white",
            linestyle=":",
            linewidth=0.9,
        )
    axes.plot(ends, [0, 0], color=INK, linewidth=0.8)
    axes.plot([], [], color=INK, linestyle=":", linewidth=0.9, label="shuffled scores, matched")
    axes.set(xlabel="layer", ylabel=quality["measure"], xlim=ends, ylim=(min(0, *_scores(quality)) - 0.02, 1.02))
    axes.set_xticks(layers)
    before, after = quality["distance"]
    axes.set_title(
        f"{_short(record['model'])} aligned to {_short(record['reference'])} by {record['by']}\n"
        f"distance of gauge-fixed weights {before:.3f} → {after:.3f}",
        loc="left",
        fontsize=9,
    )
    axes.legend(loc="upper left", bbox_to_anchor=(1.01, 1), borderaxespad=0)


def sort_of(axis: str) -> str:
    """Return the names of an axis without the numbers of layers: heads qk."""
    return " ".join(word.rstrip("0123456789") for word in axis.split())


def _scores(quality: Mapping[str, Any]) -> list[float]:
    return [one[what] for one in quality["axes"] for what in ("score", "shuffled")]


def _short(name: str, most: int = 36) -> str:
    return name if len(name) <= most else "…" + name[-(most - 1) :]
