"""Tables of a features record: LLFC by site, additivity and commutativity by layer; whole or in short."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import TYPE_CHECKING, Any

from evals.report.tables import lam_text

if TYPE_CHECKING:
    from evals.report.table_text import Row

Record = Mapping[str, Any]


def connectivity_rows(record: Record) -> list[Row]:
    """Return a row for each site: 1 - cosine of A and B, then at every lam 1 - cosine and coefficient, for every curve."""
    header: Row = ["site", "rows", "units"]
    for curve in record["curves"]:
        header.append(f"{_short(curve)}: A, B")
        for lam in record["lam"]:
            header += [f"λ = {lam_text(lam)}: 1 - cos", "± s.d.", "all rows", "scale"]
    rows = [header]
    for sites in _sites(record):
        row: Row = [sites[0]["site"], sites[0]["count"], sites[0]["width"]]
        for site in sites:
            row.append(site["baseline"]["rows"]["mean"])
            for at in site["at"]:
                spread = at["distance"]["rows"]
                row += [spread["mean"], spread["std"], at["distance"]["whole"], at["coefficient"]]
        rows.append(row)
    return rows


def text_rows(record: Record) -> list[Row]:
    """Return a row for each curve, site and lam with everything that was measured of it: by row, by text, of all rows."""
    angles = ("whole", "texts mean", "texts s.d.", "rows mean", "rows s.d.")
    coefficients = ("coefficient", "texts mean coefficient", "texts s.d. coefficient")
    columns = [*(f"A, B: {name}" for name in angles), *(f"1 - cos: {name}" for name in angles), *coefficients]
    rows: list[Row] = [["curve", "site", "kind", "layer", "units", "rows", "lam", *columns]]
    for curve in record["curves"]:
        for site in curve["connectivity"]:
            facts: Row = [curve["name"], site["site"], site["kind"], site["layer"], site["width"], site["count"]]
            for at in site["at"]:
                spread = at["coefficients"]
                scales = [at["coefficient"], spread["mean"], spread["std"]]
                rows.append([*facts, lam_text(at["lam"]), *_angle(site["baseline"]), *_angle(at["distance"]), *scales])
    return rows


def _angle(angle: Record) -> list[Any]:
    return [angle["whole"], *(angle[over][name] for over in ("texts", "rows") for name in ("mean", "std"))]


# What is measured of a layer; the first ADDITIVITY of them are distances from additive and their controls.
LAYER_COLUMNS = ("own activation", "control", "ReLU", "control", "norms", "control", "Dist_com", "Dist_W", "Dist_H")
ADDITIVITY = 6


def layer_rows(record: Record) -> list[Row]:
    """Return a row for each layer, means over its parts: how far its functions are from additive, its weights from commuting."""
    curves = record["curves"]
    header: Row = [
        "layer",
        *(f"{_short(curve)}: {name}" if len(curves) > 1 else name for curve in curves for name in LAYER_COLUMNS),
    ]
    layers = sorted({each["layer"] for curve in curves for part in PARTS for each in curve[part]})
    rows = [header]
    for layer in layers:
        rows.append([str(layer), *(cell for curve in curves for cell in _layer(curve, layer))])
    return rows


PARTS = ("additivity", "commutativity")


def _layer(curve: Record, layer: int) -> list[float | None]:
    functions = [each for each in curve["additivity"] if each["layer"] == layer]
    norms = [each for each in functions if each["function"].startswith("norm ")]
    relu = [each for each in functions if each["function"] == "ReLU"][-1:]
    own = [each for each in functions if each not in norms and each not in relu]
    linears = [each for each in curve["commutativity"] if each["layer"] == layer]
    sums = [(group, name) for group in (own, relu, norms) for name in ("vanilla", "control")]
    sums += [(linears, name) for name in ("combined", "weights", "inputs")]
    return [_mean([each[name] for each in group]) for group, name in sums]


def _mean(values: Sequence[float | None]) -> float | None:
    measured = [value for value in values if value is not None]
    return fmean(measured) if measured else None


def additivity_rows(record: Record) -> list[Row]:
    """Return a row for each function of each layer: its distance from additive beside the control."""
    rows: list[Row] = [["curve", "layer", "function", "distance", "control", "1 - cos", "control 1 - cos"]]
    for curve in record["curves"]:
        for each in curve["additivity"]:
            distances = (each[name] for name in ("vanilla", "control", "cosine", "control_cosine"))
            rows.append([_short(curve), str(each["layer"]), each["function"], *distances])
    return rows


def commutativity_rows(record: Record) -> list[Row]:
    """Return a row for each linear layer: Dist_com, Dist_W and Dist_H."""
    rows: list[Row] = [["curve", "layer", "module", "Dist_com", "Dist_W", "Dist_H"]]
    for curve in record["curves"]:
        for each in curve["commutativity"]:
            distances = (each[name] for name in ("combined", "weights", "inputs"))
            rows.append([_short(curve), str(each["layer"]), each["module"], *distances])
    return rows


def loss_rows(record: Record) -> list[Row]:
    """Return a row for each curve: loss of A, of B and at each lam, and its height over the line; none without labels."""
    measured = [curve for curve in record["curves"] if curve.get("loss")]
    if not measured:
        return []
    rows: list[Row] = [["curve", "loss of A", "of B"]]
    for lam in record["lam"]:
        rows[0] += [f"at λ = {lam_text(lam)}", "height over the line"]
    for curve in measured:
        loss, height = curve["loss"]["loss"], curve["loss"]["height"]
        cells = [cell for lam in record["lam"] for cell in (loss.get(str(lam)), height.get(str(lam)))]
        rows.append([_short(curve), loss["a"], loss["b"], *cells])
    return rows


def verdict(record: Record) -> list[str]:
    """Return a sentence for each curve: where the features of the average are farthest from the average of the features."""
    sentences = []
    for curve in record["curves"]:
        worst = max(
            ((at["distance"]["rows"]["mean"] or 0.0, site, at) for site in curve["connectivity"] for at in site["at"]),
            key=lambda entry: entry[0],
        )
        distance, site, at = worst
        sentences.append(
            f"{curve['name']}: features of the average are farthest from the average of the features at {site['site']} "
            f"(λ = {lam_text(at['lam'])}): 1 - cos {distance:.3f}, where A and B differ by {site['baseline']['rows']['mean']:.3f}"
        )
    return sentences


def features_tables(record: Record) -> list[list[Row]]:
    """Return the tables that the command prints; additivity and commutativity apart, so that they fit a terminal."""
    rows, curves = layer_rows(record), len(record["curves"])
    starts = [1 + at * len(LAYER_COLUMNS) for at in range(curves)]
    additive, commuting = (
        [[row[0], *(cell for start in starts for cell in row[start + first : start + last])] for row in rows]
        for first, last in ((0, ADDITIVITY), (ADDITIVITY, len(LAYER_COLUMNS)))
    )
    tables = (connectivity_rows(record), additive, commuting, loss_rows(record))
    return [table for table in tables if len(table) > 1]


def _sites(record: Record) -> list[list[Record]]:
    """Return each site, of every curve."""
    return [list(sites) for sites in zip(*(curve["connectivity"] for curve in record["curves"]), strict=True)]


def _short(curve: Record) -> str:
    """Return the first words of a curve's name: "aligned (weights; all axes)" is long for a column."""
    return str(curve["name"]).split(" (")[0]
