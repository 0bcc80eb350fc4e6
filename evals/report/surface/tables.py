"""Tables of surface records; the first row of each is its header."""

from __future__ import annotations

from evals.report.table_text import Row
from evals.report.tables import lam_text
from evals.results.store import Record, model_labels


def title(record: Record) -> str:
    """Return the heading of a record's section."""
    if record["kind"] == "plane":
        return f"{record['task']}: plane {record['axes']}"
    names = model_labels(record["models"])
    if record["kind"] == "simplex":
        return f"{record['task']}: {', '.join(names)}"
    return f"{record['task']}: {' → '.join(names[:2] if len(names) < 3 else [names[0], ', '.join(names[1:])])}"


def folded(record: Record) -> dict[str, list[Row]]:
    """Return title -> a table that the page folds away."""
    if record["kind"] == "plane":
        header: Row = ["x", "y", "loss", "± s.e.", record["score"].replace("_", " ")]
        return {"Every point": [header, *(list(point[2:]) for point in record["points"])]}
    if record["kind"] in ("monotonic", "curve"):
        lines, along = (record["lines"], "alpha") if record["kind"] == "monotonic" else (record["curves"], "t")
        names = [line["name"] for line in lines]
        columns = [column for line in lines for column in (line["loss"], line["scores"])]
        titles = [f"{name}: {what}" for name in names for what in ("loss", record["score"].replace("_", " "))]
        return {
            "Every point": [
                ["α" if along == "alpha" else along, *titles],
                *([lam_text(a), *values] for a, *values in zip(lines[0][along], *columns, strict=True)),
            ]
        }
    return {}


def plane_rows(record: Record) -> list[list[Row]]:
    """Return a row for each model on the plane, for the average, and for the best measured point."""
    score = record["score"].replace("_", " ")
    rows: list[Row] = [["point", "x", "y", "off the plane", "loss", "± s.e.", score, "weights"]]
    count = len(record["marks"]) - 1
    for at, mark in enumerate(record["marks"]):
        weights = _weights([1 / count] * count) if at == count else None
        values = [mark[name] for name in ("x", "y", "off", "loss", "standard_error", "score")]
        rows.append([mark["name"], *values, weights])
    known = [point for point in record["points"] if point[4] is not None]
    if known:
        _, _, x, y, loss, error, best = min(known, key=lambda point: point[4])
        axes = zip(record["origin"], record["u"], record["v"], strict=True)
        rows.append(
            ["lowest on the grid", x, y, 0.0, loss, error, best, _weights([o + x * u + y * v for o, u, v in axes])]
        )
    return [rows]


def _weights(coefficients: list[float]) -> str | None:
    """Return coefficients as --weights takes them; None for more than there is room for."""
    return ",".join(f"{c:.3f}" for c in coefficients) if len(coefficients) <= 6 else None


def monotonic_rows(record: Record) -> list[list[Row]]:
    """Return a row for each model that is interpolated to; and, of several, the distance travelled."""
    header: Row = ["to", "monotone", "smallest Δ", "± s.e.", "between α", "bumps", "highest", "widest", "Gauss length"]
    rows: list[Row] = [[*header, "distance", "of the start's norm"]]
    for line in record["lines"]:
        bumps, between = line["bumps"], None
        if not line["monotone"]:
            between = " – ".join(lam_text(a) or "" for a in line["delta_between"])
        heights = max((bump["height"] for bump in bumps), default=None), max((b["width"] for b in bumps), default=None)
        gauss = None if line["gauss"] is None else line["gauss"]["mean"]
        row: Row = [line["name"], "yes" if line["monotone"] else "no", line["delta"], line["delta_error"], between]
        rows.append([*row, len(bumps), *heights, gauss, line["distance"], line["relative_distance"]])
    if record["travelled"] is None:
        return [rows]
    last = record["lines"][-1]["distance"]
    return [
        rows,
        [["distance travelled", "from start to end", "ratio"], [record["travelled"], last, record["travelled"] / last]],
    ]


def curve_rows(record: Record) -> list[list[Row]]:
    """Return a row for each path: its barrier, highest and mean loss, length, and what it cost."""
    score = record["score"].replace("_", " ")
    rows: list[Row] = [
        [
            "path",
            "barrier",
            "at t",
            "highest loss",
            "mean loss",
            f"lowest {score}",
            "length",
            "trained, CPU s",
            "aligned, CPU s",
        ]
    ]
    for curve in record["curves"]:
        scores = [value for value in curve["scores"] if value is not None]
        seconds = (curve.get("training") or {}).get("cpu_seconds")
        at = lam_text(curve["barrier_t"]) if curve["barrier"] > 0 else None
        numbers: Row = [
            curve["barrier"],
            at,
            curve["highest"],
            curve["mean"],
            min(scores, default=None),
            curve["length"],
        ]
        rows.append([curve["name"], *numbers, seconds, curve["alignment_seconds"]])
    return [rows]


def simplex_rows(record: Record) -> list[list[Row]]:
    """Return a row for each dimension of each simplex, then for each data set a row for each ensemble."""
    header: Row = ["simplex of", "dimension", "volume", "of the regular", "longest side", "vertex loss", "centre loss"]
    rows: list[Row] = [[*header, "mean drawn", "largest loss", "low up to"]]
    for simplex in record["simplexes"]:
        for grown in simplex["dimensions"]:
            drawn = grown["drawn"]
            numbers: Row = [grown[name] for name in ("volume", "regular_share", "side", "vertex_loss", "centre_loss")]
            mean = sum(drawn) / len(drawn) if drawn else None
            last: Row = [mean, grown["largest"], simplex["low_loss_dimension"]]
            rows.append([simplex["name"], grown["dimension"], *numbers, *last])
    return [rows, *(_ensemble_rows(each) for each in record["ensembles"])]


def _ensemble_rows(of_set: Record) -> list[Row]:
    title = f"{of_set['task']}, {of_set['split']}, n = {of_set['n']:,}"
    rows: list[Row] = [[title, "passes", "accuracy", "NLL", "ECE", "NLL change", "± s.e."]]
    names = ("name", "passes", "accuracy", "nll", "ece", "nll_change", "nll_change_error")
    return [*rows, *([each[name] for name in names] for each in of_set["rows"])]
