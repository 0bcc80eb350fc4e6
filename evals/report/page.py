"""The page of a results folder, index.html: basins, then each barrier, surface, HANS set and task, and the results' sources."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evals.report import table_text, tables
from evals.results.predictions import has_predictions
from evals.results.store import load_results, locked, model_labels, record_labels, usable_basins
from merge.disk.atomic import write_atomic
from merge.errors import TaskError, one_line
from merge.publish.results_file import FIELDS, INSIDE, SETTING, SURFACES

if TYPE_CHECKING:
    import jinja2

PAGE = "index.html"


def page_context(
    results: Sequence[Mapping[str, Any]], folder: Path, basins: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Return the values of the template; only results of one task, split, data and number of rows share a table.

    Args:
        folder: of the predictions, from which the differences between models are computed.
        basins: the record of a sweep with its analyses.
    """
    scores = _settings([record for record in results if record["kind"] == "scores"])
    hans = _settings([record for record in results if record["kind"] == "scores" and record.get("hans")])
    return {
        "basins": _basins_sections(basins) if basins else [],
        "barriers": [_barrier_section(record, at) for at, record in enumerate(_of(results, "barrier", "line"))],
        "inside": [*_surface_groups(_of(results, *SURFACES)), *_inside_groups(_of(results, *INSIDE))],
        "hans": [_hans_section(group, at) for at, group in enumerate(hans)],
        "scores": [_score_section(group, folder) for group in scores],
        "others": [
            {"key": record["key"], "kind": record["kind"], "rows": [["field", "value"], *tables.flatten(record)]}
            for record in results
            if record["kind"] not in FIELDS
        ],
        "sources": [_source(record) for record in results if record["kind"] in FIELDS],
    }


def _of(results: Sequence[Mapping[str, Any]], *kinds: str) -> list[Mapping[str, Any]]:
    return [record for record in results if record["kind"] in kinds]


def _settings(records: Sequence[Mapping[str, Any]]) -> list[list[Mapping[str, Any]]]:
    groups: dict[tuple[Any, ...], list[Mapping[str, Any]]] = {}
    for record in records:
        groups.setdefault(tuple(record[name] for name in SETTING), []).append(record)
    return list(groups.values())


def _basins_sections(record: Mapping[str, Any]) -> list[dict[str, Any]]:
    from evals.report.basins.section import basins_section

    return [basins_section(record, analysis, f"basins{at}") for at, analysis in enumerate(record.get("analyses") or [])]


def _surface_groups(records: list[Mapping[str, Any]]) -> list[dict[str, Any]]:
    from evals.report.surface.section import surface_sections

    return surface_sections(records) if records else []


def _inside_groups(records: list[Mapping[str, Any]]) -> list[dict[str, Any]]:
    if not records:
        return []
    from evals.report.inside.section import inside_groups
    from evals.report.surgery.section import surgery_groups

    return [*inside_groups(records), *surgery_groups(records)]


def _barrier_section(record: Mapping[str, Any], at: int) -> dict[str, Any]:
    from markupsafe import Markup

    from evals.report.barrier_figure import barrier_figure
    from evals.report.svg import inline_svg

    a, b = model_labels([record["a"], record["b"]])
    alignment = record.get("alignment") or {}
    # Match quality is shown by kind of axis; results.json has it for every axis.
    quality = {name: value for name, value in (alignment.get("quality") or {}).items() if name != "axes"}
    rest = tables.flatten({**{k: v for k, v in alignment.items() if k not in ("moved", "quality")}, **quality})
    label = f"Loss and accuracy on the straight line from {a} to {b}; the numbers are in the tables beside it."
    return {
        "record": record,
        "a": a,
        "b": b,
        "rows": [row[4:] for row in tables.barrier_rows([record])],
        "summaries": tables.line_rows(record) if record["kind"] == "line" else [],
        "figure": Markup(inline_svg(barrier_figure(record), f"barrier{at}", label)),
        "points": tables.point_rows(record),
        "alignment": [["setting", "value"], *rest] if rest else [],
        "moved": [(kind, f"{moved} of {total}") for kind, (moved, total) in alignment.get("moved", {}).items()],
        "notes": record.get("notes", []),
    }


def _hans_section(group: Sequence[Mapping[str, Any]], at: int) -> dict[str, Any]:
    from markupsafe import Markup

    from evals.report.hans_figure import hans_figure
    from evals.report.svg import inline_svg

    figure = inline_svg(
        hans_figure(group), f"hans{at}", "Accuracy on every HANS subcase; the numbers are tabled below."
    )
    titles = {"subcases": "Accuracy per subcase", "templates": "Accuracy per template", "counts": "Counts"}
    parts = {title: tables.part_rows(group, part) for part, title in titles.items()}
    return {
        "record": group[0],
        "rows": tables.hans_rows(group),
        "figure": Markup(figure),
        "parts": {title: rows for title, rows in parts.items() if len(rows) > 1},
    }


def _score_section(group: Sequence[Mapping[str, Any]], folder: Path) -> dict[str, Any]:
    labels = record_labels(group)
    models_of_note: dict[str, list[str]] = {}
    for label, record in zip(labels, group, strict=True):
        for note in record.get("notes", []):
            models_of_note.setdefault(note, []).append(label)
    return {
        "record": group[0],
        "rows": [[row[0], *row[4:]] for row in tables.score_rows(group)],
        "intervals": tables.interval_rows(group),
        "differences": _differences(group, folder),
        "notes": [
            note if len(held) == len(group) else f"{', '.join(held)}: {note}" for note, held in models_of_note.items()
        ],
    }


def _differences(group: Sequence[Mapping[str, Any]], folder: Path) -> dict[str, Any] | None:
    """Return the differences between the group's first model and the others, and the models without predictions.

    All pairs of a hundred models would be five thousand rows; `evaluate-models compare` prints them.
    """
    from evals.results.compare import compare_records

    if len(group) < 2:
        return None
    held = [r for r in group if has_predictions(folder, r) and r.get("rows") == group[0].get("rows")]
    out = [record for record in group if record not in held]
    if not held or held[0] is not group[0]:
        return {"rows": [], "out": record_labels(group)}
    rows = tables.comparison_rows(compare_records(folder, held, first_only=True))
    return {"rows": rows if len(rows) > 1 else [], "out": record_labels(out)}


def _models(record: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    if record["kind"] == "scores":
        return [record["model"]]
    return list(record["models"]) if record["kind"] in (*INSIDE, *SURFACES) else [record["a"], record["b"]]


def _source(record: Mapping[str, Any]) -> dict[str, Any]:
    """Return the source of a record, with every field that no section above shows."""
    shown = {*FIELDS[record["kind"]], "kind", "key", "hans", "notes", "alignment", "seconds", "versions", "intervals"}
    if record["kind"] in (*INSIDE, *SURFACES):  # their sections show everything
        shown = set(record)
    return {
        "record": record,
        "models": _models(record),
        "seconds": record.get("seconds"),
        "versions": tables.flatten(record.get("versions", {})),
        "rest": tables.flatten({name: value for name, value in record.items() if name not in shown}),
    }


@cache
def _template() -> jinja2.Template:
    """Return the template of the page, which is compiled once a process."""
    from importlib.resources import files

    import jinja2

    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["show"] = table_text.show
    environment.filters["numeric_columns"] = table_text.numeric_columns
    environment.tests["span"] = lambda cell: isinstance(cell, table_text.Span)
    environment.tests["numeric"] = lambda cell: isinstance(cell, int | float)
    return environment.from_string(files("evals.report").joinpath("page.html.j2").read_text(encoding="utf-8"))


def write_page(folder: Path | str) -> Path:
    """Write a folder's index.html from its results.json: one file that needs no other file and no network.

    A plane has a small script, which reads out the point that is pointed at.
    """
    folder = Path(folder)
    html = _template().render(page_context(load_results(folder), folder, usable_basins(folder)))
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with locked(folder):
            write_atomic(folder / PAGE, html)
    except OSError as error:
        raise TaskError(f"{folder / PAGE} cannot be written: {one_line(error)}") from None
    return folder / PAGE
