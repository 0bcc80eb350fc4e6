"""Tables and figures of a surface record, and its section of the page."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from evals.report.surface import tables
from evals.results.store import Record

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from evals.report.table_text import Row

# Kind of a record -> the heading of its sections, and what they show.
KINDS = {
    "plane": (
        "Planes of the loss",
        "Loss and score on a plane through weight space; distances are Euclidean distances of weights. Small dots are the "
        "measured points: more of them where the logarithm of the loss bends.",
    ),
    "monotonic": (
        "From the start of training to its end",
        "The loss on the straight line of weights from where training started (α = 0). Smallest Δ: the largest rise between any "
        "two points of the line; without one the way is monotone. Bump: a part of the way on which the loss is over a value that "
        "it had before. Gauss length: how much the direction of the logits turns, in radians; a half circle has π.",
    ),
    "curve": (
        "Curves of low loss",
        "Loss along a trained curve beside the straight line between its ends, which are the models themselves. Barrier: the "
        "most that the loss rises over the straight line between the losses of the ends. Mean: by length of the path.",
    ),
    "simplex": (
        "Simplexes of low loss",
        "A simplex grown from a trained model, vertex by vertex. Its largest loss is that of its vertices, its centre and drawn "
        "points; it is low where that is within the tolerance of the model's own loss. Volume of the regular: its volume as a "
        "share of that of the regular simplex with the same mean squared side. Ensembles average the probabilities of their "
        "members; passes are the models that are run for a prediction, and changes are from the first model, on the same rows.",
    ),
}


def surface_tables(record: Record) -> list[list[Row]]:
    """Return the tables that the command prints; the first row of each is its header."""
    return {
        "plane": tables.plane_rows,
        "monotonic": tables.monotonic_rows,
        "curve": tables.curve_rows,
        "simplex": tables.simplex_rows,
    }[record["kind"]](record)


def surface_figure(record: Record) -> tuple[Figure, str]:
    """Return the figure of a record, and what it shows for screen readers."""
    from evals.report.surface.curve_figure import curve_figure
    from evals.report.surface.monotonic_figure import monotonic_figure
    from evals.report.surface.plane_figure import plane_figure
    from evals.report.surface.simplex_figure import simplex_figure

    draw, label = {
        "plane": (plane_figure, "Loss and score on a plane through weight space"),
        "monotonic": (monotonic_figure, "Loss and score from the start of training to its end"),
        "curve": (curve_figure, "Loss and score along a trained curve and the straight line"),
        "simplex": (
            simplex_figure,
            "Losses inside growing simplexes, and the likelihood of ensembles over their passes",
        ),
    }[record["kind"]]
    return draw(record), f"{label}; the numbers are in the tables beside it."


def surface_section(record: Record, at: int) -> dict[str, Any]:
    """Return what the page shows of a record.

    Args:
        at: its number among those of the page.
    """
    from markupsafe import Markup

    from evals.report.surface.interactive import interactive_plane
    from evals.report.svg import inline_svg

    figure, label = surface_figure(record)
    first, *others = surface_tables(record)
    return {
        "title": tables.title(record),
        "record": record,
        "rows": first,
        "tables": others,
        "figures": [Markup(inline_svg(figure, f"surface{at}", label))],
        "verdict": [],
        "interactive": Markup(interactive_plane(record, f"plane{at}")) if record["kind"] == "plane" else None,
        "folded": tables.folded(record),
        "notes": list(dict.fromkeys(record.get("notes", []))),
    }


def surface_sections(records: list[Record]) -> list[dict[str, Any]]:
    """Return a group for each kind that there is: heading, explanation and the sections of its records."""
    groups = []
    for kind, (heading, explain) in KINDS.items():
        of_kind = [(at, record) for at, record in enumerate(records) if record["kind"] == kind]
        if of_kind:
            sections = [surface_section(record, at) for at, record in of_kind]
            groups.append({"heading": heading, "explain": explain, "sections": sections})
    return groups


def write_surface(record: Record, folder: Path) -> list[Path]:
    """Write the figure of a record (png and svg), and return the paths of all that is there of it.

    Raises:
        OSError: the folder is not writable.
    """
    from evals.report.svg import save_figure

    stem = f"{record['kind']}-{record['task']}-{record['key'].rsplit('-', 1)[-1][:8]}"
    made = [folder / record[name] for name in ("arrays", "checkpoints") if isinstance(record.get(name), str)]
    return [*made, *save_figure(surface_figure(record)[0], folder / stem)]
