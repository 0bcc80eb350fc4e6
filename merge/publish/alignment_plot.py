"""Plot of match quality: the similarity of matched units in each layer, compared with matches by chance."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from merge.publish.figures import COLOURS, INK, MARKERS, figure_settings, rendered

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

FILE = "alignment.png"


def save_alignment_plot(folder: Path, aligned: Sequence[Mapping[str, Any]]) -> None:
    """Write alignment.png, with one panel per aligned model.

    Args:
        aligned: alignment records of the manifest (merge.json), with their `quality`.
    """
    (folder / FILE).write_bytes(rendered(quality_figure(aligned), "png"))


def quality_figure(aligned: Sequence[Mapping[str, Any]]) -> Figure:
    """Return the figure: a panel for each model that was aligned; `aligned` as in `save_alignment_plot`."""
    from matplotlib.figure import Figure

    with figure_settings():
        figure = Figure(figsize=(7.2, 3.6 * len(aligned)), layout="constrained")
        for axes, record in zip(figure.subplots(len(aligned), squeeze=False)[:, 0], aligned, strict=True):
            draw_quality(axes, record)
    return figure


def draw_quality(axes: Axes, record: Mapping[str, Any]) -> None:
    """Draw one alignment: a line over the layers for each kind of axis, a dashed level for an axis outside the layers.

    The score of matching shuffled scores is a thin dotted line of the same colour; random units are the grey zero line.
    """
    quality, kinds = record["quality"], dict[str, list[Mapping[str, Any]]]()
    for axis in quality["axes"]:
        kinds.setdefault(kind_of(axis["axis"]), []).append(axis)
    layers = sorted({axis["layer"] for axis in quality["axes"] if axis["layer"] is not None})
    ends = (layers[0] - 0.5, layers[-1] + 0.5) if layers else (-0.5, 0.5)
    for number, (kind, records) in enumerate(kinds.items()):
        colour, marker = COLOURS[number % len(COLOURS)], MARKERS[number % len(MARKERS)]
        if records[0]["layer"] is None:
            axes.plot(ends, [records[0]["score"]] * 2, color=colour, linestyle="--", linewidth=1.4, label=kind)
            axes.plot(ends, [records[0]["shuffled"]] * 2, color=colour, linestyle=":", linewidth=0.9)
            continue
        xs = [r["layer"] for r in records]
        axes.plot(xs, [r["score"] for r in records], color=colour, marker=marker, linewidth=1.6, label=kind)
        axes.plot(
            xs,
            [r["shuffled"] for r in records],
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
        f"distance of canonical weights {before:.3f} → {after:.3f}",
        loc="left",
        fontsize=9,
    )
    axes.legend(loc="upper left", bbox_to_anchor=(1.01, 1), borderaxespad=0)


def kind_of(axis: str) -> str:
    """Return the kind of an axis, its names without layer numbers: "heads qk"."""
    return " ".join(word.rstrip("0123456789") for word in axis.split())


def _scores(quality: Mapping[str, Any]) -> list[float]:
    return [axis[key] for axis in quality["axes"] for key in ("score", "shuffled")]


def _short(name: str, length: int = 36) -> str:
    return name if len(name) <= length else "…" + name[-(length - 1) :]
