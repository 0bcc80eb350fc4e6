"""How a record of the inside of models is shown: tables of the command, files of its folder, a section of the page."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evals.report.inside import features_tables, similarity_tables, stitch_tables
from evals.report.inside.features_figure import features_figure
from evals.report.inside.similarity_figure import similarity_figure
from evals.report.inside.stitch_figure import stitch_figure
from evals.report.svg import inline_svg, save_figure
from evals.report.table_text import csv_table
from evals.results.store import model_labels
from merge.disk.atomic import write_atomic

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from evals.report.table_text import Row

Record = Mapping[str, Any]


@dataclass(frozen=True)
class View:
    """How records of one kind are shown.

    Attributes:
        heading, explain: of their part of the page.
        tables: those that the command prints.
        verdict: sentences that come first.
        figure: of a record.
        folded: title -> a whole table, folded away on the page; each is also a CSV file of the folder.
    """

    heading: str
    explain: str
    tables: Callable[[Record], list[list[Row]]]
    verdict: Callable[[Record], list[str]]
    figure: Callable[[Record], Figure]
    folded: Callable[[Record], dict[str, list[Row]]]


def _features_folded(record: Record) -> dict[str, list[Row]]:
    return {
        "sites": features_tables.text_rows(record),
        "additivity": features_tables.additivity_rows(record),
        "commutativity": features_tables.commutativity_rows(record),
    }


VIEWS: dict[str, View] = {
    "features": View(
        "Feature connectivity",
        "Are the features of the average the average of the features? 1 - cos is 0 where they are, beside that of A and B. Dist "
        "is |x - y|² / (|x| |y|). Additivity: an activation of the average against the average of activations; its control has "
        "B's units in random order. Commutativity: Dist_com against the distances of weights and of inputs.",
        features_tables.features_tables,
        features_tables.verdict,
        features_figure,
        _features_folded,
    ),
    "similarity": View(
        "Similarity of representations",
        "How alike two models represent the same texts, whatever the basis: 1 is a rotated copy (for permutation, a permuted "
        "one). Standard errors are over random halves of the texts; chance is what rows of B in random order give.",
        similarity_tables.similarity_tables,
        similarity_tables.similarity_verdict,
        similarity_figure,
        lambda record: {"pairs": similarity_tables.cell_rows(record), "close": similarity_tables.close_rows(record)},
    ),
    "stitch": View(
        "Stitching",
        "What B loses when its upper layers read mapped states of A's lower layers, in place of its own (Bansal et al. 2021). A "
        "penalty says something where the controls have a larger one: no map, the mean state alone, an A of random weights. "
        "Reversed: B below, A above, against A.",
        stitch_tables.stitch_tables,
        stitch_tables.verdict,
        stitch_figure,
        stitch_tables.folded,
    ),
}


# Titles on the page of tables that are folded away, by the names of their CSV files.
TITLES = {
    "sites": "Every site: by row, by text, all rows as one vector",
    "additivity": "Additivity of every function",
    "commutativity": "Commutativity of every linear layer",
    "pairs": "Every pair of sites",
    "close": "Counterparts: value, standard error and chance by each measure",
}


def inside_tables(record: Record) -> list[list[Row]]:
    """Return the tables that the command prints."""
    return VIEWS[record["kind"]].tables(record)


def inside_verdict(record: Record) -> list[str]:
    """Return the sentences that come before the tables."""
    return VIEWS[record["kind"]].verdict(record)


def inside_figure(record: Record) -> Figure:
    """Return the figure of a record."""
    return VIEWS[record["kind"]].figure(record)


def write_inside(record: Record, folder: Path) -> list[Path]:
    """Write figure and CSV tables of a record into the folder of results.json; return the paths."""
    view, stem = VIEWS[record["kind"]], f"{record['kind']}-{record['key'].rsplit('-', 1)[-1][:8]}"
    made = list(save_figure(view.figure(record), folder / stem))
    for title, rows in view.folded(record).items():
        if len(rows) > 1:
            made.append(folder / f"{stem}-{title.replace(' ', '-')}.csv")
            write_atomic(made[-1], csv_table(rows))
    return made


def inside_groups(records: Sequence[Record]) -> list[dict[str, Any]]:
    """Return the parts of the page, one for each kind of record."""
    from markupsafe import Markup

    groups = []
    for kind, view in VIEWS.items():
        sections = []
        for at, record in enumerate(record for record in records if record["kind"] == kind):
            title = " and ".join(model_labels(record["models"]))
            label = f"{view.heading} of {title}; the numbers are in the tables beside it."
            first, *rest = view.tables(record)
            sections.append(
                {
                    "title": title,
                    "record": record,
                    "verdict": view.verdict(record),
                    "rows": first,
                    "tables": rest,
                    "figures": [Markup(inline_svg(view.figure(record), f"{kind}{at}", label))],
                    "folded": {TITLES.get(n, n): rows for n, rows in view.folded(record).items() if len(rows) > 1},
                    "notes": record.get("notes", []),
                }
            )
        if sections:
            groups.append({"heading": view.heading, "explain": view.explain, "sections": sections})
    return groups
