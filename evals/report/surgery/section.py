"""What a page and a folder show of a study of edited models: tables, figures, what it cost."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from evals.report.surgery.lesion_figures import lesion_figures
from evals.report.surgery.linearity_figures import linearity_figures
from evals.report.surgery.tables import TABLES, Record, cost_lines, variant_rows
from evals.report.surgery.verdict import verdict_lines

FIGURES = {"lesion": lesion_figures, "linearity": linearity_figures}
TITLES = {"lesion": "Lesions", "linearity": "Linearity and commutativity"}
EXPLAINED = {
    "lesion": (
        "Layers and sublayers left out one at a time, k at random, in other orders or repeated, without training. Norm kept: "
        "the sublayer writes nothing, and its last norm runs; bypassed: the stream crosses the sublayer unchanged. The solid "
        "line is the whole model, the dashed one the model without any layer, the dotted one a prediction without skill."
    ),
    "linearity": (
        "The best linear map from what a component reads to what it writes, judged on texts that it was not fitted on; models in "
        "which such maps stand for components; and layers swapped, reversed and shuffled. A component is as linear as its map is "
        "near to it: 0 is a linear one, and the mean output and the skip connection alone are what a map must be compared with."
    ),
}
# Tables that are shown at once; the others are folded.
OPEN = {"lesion": ("scores", "layers"), "linearity": ("scores", "nonlinearity", "swaps")}


def surgery_groups(records: Sequence[Record]) -> list[dict[str, Any]]:
    """Return the parts of the page, one for each kind of study."""
    groups = []
    for kind, title in TITLES.items():
        sections = [_section(r, f"{kind}{at}") for at, r in enumerate(r for r in records if r["kind"] == kind)]
        if sections:
            groups.append({"heading": title, "explain": EXPLAINED[kind], "sections": sections})
    return groups


def _section(record: Record, prefix: str) -> dict[str, Any]:
    """Return the values of the page's section for one record.

    Args:
        prefix: of the ids in the figures.
    """
    from markupsafe import Markup

    from evals.report.svg import inline_svg

    kind, tables = record["kind"], TABLES[record["kind"]](record)
    shown = [rows for name, rows in tables.items() if name in OPEN[kind]]
    return {
        "title": record["models"][0]["name"],
        "record": record,
        "verdict": verdict_lines(record),
        "rows": shown[0],
        "tables": shown[1:],
        "figures": [
            Markup(inline_svg(figure, f"{prefix}-{n}", label)) for n, (figure, label) in FIGURES[kind](record).items()
        ],
        "folded": {f"{rows[0][0]}": rows for name, rows in tables.items() if name not in OPEN[kind]}
        | {"Every edited model": variant_rows(record)},
        "notes": [*cost_lines(record), *record["notes"]],
    }


def write_surgery_report(record: Record, folder: Path) -> list[Path]:
    """Write the figures (png and svg) and tables (csv) of a record, and return their paths.

    Raises:
        OSError: the folder is not writable.
    """
    from evals.report.svg import save_figure
    from evals.report.table_text import csv_table
    from merge.disk.atomic import write_atomic

    stem = f"{record['kind']}-{record['task']}-{record['key'].rsplit('-', 1)[-1][:8]}"
    made: list[Path] = []
    for name, (figure, _) in FIGURES[record["kind"]](record).items():
        made += save_figure(figure, folder / f"{stem}-{name}")
    for name, rows in {**TABLES[record["kind"]](record), "models": variant_rows(record)}.items():
        path = folder / f"{stem}-{name}.csv"
        write_atomic(path, csv_table(rows))
        made.append(path)
    return made
