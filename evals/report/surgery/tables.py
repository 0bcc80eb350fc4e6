"""Tables of studies of edited models. A cell is the leading score of a model, unless its title says more."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from statistics import fmean
from typing import Any

from evals.report.table_text import Cell, Row

Record = Mapping[str, Any]
Variant = Mapping[str, Any]

# Bounds of Kendall's tau in the table of orders.
TAU_BOUNDS = (-1.0, -0.3, 0.0, 0.3, 0.6, 1.0)
SINGLE = (
    "dropped",
    "attention, norm kept",
    "attention, norm bypassed",
    "attention",
    "ffn, norm kept",
    "ffn, norm bypassed",
    "ffn",
)
COMPONENTS = ("attention", "attention + skip", "ffn", "ffn + skip", "layer")
REPLACED = ("attention", "ffn", "layer")


def leading(record: Record) -> str:
    """Return the score that tables and figures show."""
    return str(record["scores"][0])


def score_of(record: Record, variant: Variant) -> float | None:
    """Return the leading score of an edited model; None where it is undefined."""
    value: float | None = variant["scores"][leading(record)]
    return value


def of_part(record: Record, *parts: str) -> list[Variant]:
    """Return the edited models of some parts of a study."""
    return [variant for variant in record["variants"] if variant["part"] in parts]


def no_layers(record: Record) -> Variant | None:
    """Return the model without layers."""
    return next(iter(of_part(record, "floor")), None)


def frame_rows(record: Record) -> list[Row]:
    """Return every score of the whole model, of the model without layers, and of what has no skill."""
    rows: list[Row] = [["model", *record["scores"]]]
    rows.append(["the whole model", *(record["whole"][name] for name in record["scores"])])
    if (floor := no_layers(record)) is not None:
        rows.append(["no layers", *(floor["scores"][name] for name in record["scores"])])
    rows.append([f"{record['floor']['name']} (no skill)", *(record["floor"]["scores"][n] for n in record["scores"])])
    return rows


def layer_rows(record: Record) -> list[Row]:
    """Return a row for each layer: the score without it, without each of its sublayers, and with the layer twice."""
    scores: dict[tuple[float, str], float | None] = {}
    for variant in of_part(record, "layers", "sublayers", "duplicates"):
        kind = variant["kind"] if variant["part"] != "duplicates" else "twice"
        scores[variant["at"], kind] = score_of(record, variant)
    kinds = [kind for kind in (*SINGLE, "twice") if any(kind == each for _, each in scores)]
    layers = sorted({at for at, _ in scores})
    titles = [kind if kind in ("dropped", "twice") else f"without {kind}" for kind in kinds]
    rows: list[Row] = [[f"layer: {leading(record)}", *titles]]
    for layer in layers:
        rows.append([f"{layer:g}", *(scores.get((layer, kind)) for kind in kinds)])
    return rows


def grouped_rows(
    record: Record, variants: Sequence[Variant], title: str, key: Callable[[Variant], Any] = lambda v: v["at"]
) -> list[Row]:
    """Return a row for each place on an axis: how many models there are, and their mean, worst and best score."""
    groups: dict[Any, list[float]] = {}
    for variant in variants:
        value = score_of(record, variant)
        groups.setdefault(key(variant), [])
        if value is not None and math.isfinite(value):
            groups[key(variant)].append(value)
    rows: list[Row] = [[title, "models", f"mean {leading(record)}", "worst", "best"]]
    for place in sorted(groups):
        values = groups[place]
        name = place if isinstance(place, str) else f"{place:g}"
        summary: Row = [fmean(values), min(values), max(values)] if values else [None] * 3
        rows.append([name, len(values), *summary])
    return rows


def random_rows(record: Record) -> list[Row]:
    """Return a row for each number of layers dropped at random."""
    variants = of_part(record, "random")
    return grouped_rows(record, variants, "layers dropped at random") if variants else []


def order_rows(record: Record) -> list[Row]:
    """Return a row for each range of Kendall's tau, then the correlation of tau with the score."""
    variants = of_part(record, "orders")
    if not variants:
        return []

    def place(variant: Variant) -> int:
        return min(sum(variant["at"] >= bound for bound in TAU_BOUNDS), len(TAU_BOUNDS) - 1)

    rows = grouped_rows(record, variants, "Kendall's tau of the order", place)
    for row in rows[1:]:
        at = int(str(row[0]))
        row[0] = f"{TAU_BOUNDS[at - 1]:g} to {TAU_BOUNDS[at]:g}"
    points = [(v["at"], score_of(record, v)) for v in variants]
    value = correlation([(x, y) for x, y in points if y is not None])
    return [*rows, ["correlation of tau and score", len(points), value, None, None]]


def correlation(points: Sequence[tuple[float, float]]) -> float | None:
    """Return Pearson's correlation; None where one side is constant, or there are fewer than three points."""
    if len(points) < 3:
        return None
    mean_x, mean_y = (fmean(side) for side in zip(*points, strict=True))
    xy = sum((x - mean_x) * (y - mean_y) for x, y in points)
    scale = math.sqrt(sum((x - mean_x) ** 2 for x, _ in points) * sum((y - mean_y) ** 2 for _, y in points))
    return xy / scale if scale else None


def path_rows(record: Record) -> list[Row]:
    """Return a row for each length of paths: their number, the gradient of one, and the shares of both sums."""
    paths = record["paths"]
    if paths is None:
        return []
    total = sum(paths["counts"])
    rows: list[Row] = [
        ["path length", "paths", "share of paths", "gradient of one", "share of gradient", "paths followed"]
    ]
    columns = zip(paths["counts"], paths["norms"], paths["shares"], paths["drawn"], strict=True)
    for length, (count, norm, share, drawn) in enumerate(columns):
        rows.append([f"{length}", count, count / total, norm, share, drawn])
    return rows


def component_rows(record: Record, measure: str, title: str) -> list[Row]:
    """Return a row for each layer: a measure of every component's best linear map."""
    return _by_layer(record, title, lambda each: each[measure])


def baseline_rows(record: Record) -> list[Row]:
    """Return a row for each layer: the non-linearity of the mean output, and of the skip connection alone."""
    rows = _by_layer(record, "layer: 1 - cosine of the mean output", lambda each: each["of_mean"])
    skips = _by_layer(record, "", lambda each: each["of_skip"])
    chosen = [at for at, name in enumerate(rows[0]) if (at and "skip" in str(name)) or name == "layer"] if rows else []
    return [
        [*row, *(skip[at] if number else f"{skip[at]}: the input alone" for at in chosen)]
        for number, (row, skip) in enumerate(zip(rows, skips, strict=True))
    ]


def _by_layer(record: Record, title: str, value: Callable[[Mapping[str, Any]], Cell]) -> list[Row]:
    cells = {(each["layer"], each["component"]): value(each) for each in record["components"]}
    if not cells:
        return []
    layers = sorted({layer for layer, _ in cells})
    rows: list[Row] = [[title, *COMPONENTS]]
    return [*rows, *([f"{layer}", *(cells[layer, name] for name in COMPONENTS)] for layer in layers)]


def replaced_rows(record: Record) -> list[Row]:
    """Return a row for each layer: the score with each component as a linear map, and without it."""
    scores = {(v["at"], v["part"], v["kind"]): score_of(record, v) for v in of_part(record, "replace", "remove")}
    columns = [(part, f"{name}, one") for part in ("replace", "remove") for name in REPLACED]
    layers = sorted({at for at, _, kind in scores if kind.endswith(", one")})
    words = {"replace": "as a linear map", "remove": "removed"}
    rows: list[Row] = [
        [f"layer: {leading(record)}", *(f"{kind.removesuffix(', one')} {words[part]}" for part, kind in columns)]
    ]
    body: list[Row] = [[f"{at:g}", *(scores.get((at, part, kind)) for part, kind in columns)] for at in layers]
    return [*rows, *body] if layers else []


def cumulative_rows(record: Record) -> list[Row]:
    """Return a row for each number of layers whose component is a linear map, from the front and from the back."""
    scores = {(v["at"], v["kind"]): score_of(record, v) for v in of_part(record, "replace")}
    kinds = [f"{name}, {end}" for name in REPLACED for end in ("from the front", "from the back")]
    counts = sorted({at for at, kind in scores if not kind.endswith(", one")})
    rows: list[Row] = [[f"linear maps in a row: {leading(record)}", *kinds]]
    whole = {kind: scores.get((max(counts), kind.replace("back", "front"))) for kind in kinds} if counts else {}
    body: list[Row] = [
        [f"{count:g}", *(scores.get((count, kind), whole[kind] if count == max(counts) else None) for kind in kinds)]
        for count in counts
    ]
    return [*rows, *body] if counts else []


def swap_rows(record: Record) -> list[Row]:
    """Return a row for each distance of two swapped layers."""
    variants = of_part(record, "swaps")
    return grouped_rows(record, variants, "distance of two swapped layers") if len(variants) > 1 else []


def reversal_rows(record: Record) -> list[Row]:
    """Return a row for each length of a reversed range."""
    variants = of_part(record, "reversals")
    return grouped_rows(record, variants, "layers in a reversed range") if variants else []


def shuffle_rows(record: Record) -> list[Row]:
    """Return a row for each number of layers that a shuffle keeps in their slots, then for each group that is shuffled alone."""
    variants, total = of_part(record, "shuffles"), record["layers"]
    fixed = [v for v in variants if v["kind"] == "k layers fixed"]
    groups = [v for v in variants if v["kind"] != "k layers fixed"]
    if not variants:
        return []
    rows = grouped_rows(record, fixed, "layers that a shuffle keeps in their slots", lambda v: total - v["at"])
    return [*rows, *grouped_rows(record, groups, "", lambda v: f"shuffled: {v['kind']}")[1:]]


def tuned_rows(record: Record) -> list[Row]:
    """Return a row for each model that was trained: its scores and the loss of its training."""
    if not record.get("tuned"):
        return []
    rows: list[Row] = [["trained", *record["scores"], "training loss"]]
    return [
        *rows,
        *([v["name"], *(v["scores"][n] for n in record["scores"]), v["training_loss"]] for v in record["tuned"]),
    ]


def variant_rows(record: Record) -> list[Row]:
    """Return a row for each edited model with every number of it, for CSV."""
    rows: list[Row] = [
        ["part", "kind", "model", "layers", "at", *record["scores"], f"change of {record['compared']}", "± s.e."]
    ]
    for v in record["variants"]:
        layers = " ".join(map(str, v["layers"]))
        scores = [v["scores"][name] for name in record["scores"]]
        rows.append([v["part"], v["kind"], v["name"], layers, v["at"], *scores, v["change"], v["standard_error"]])
    return rows


def cost_lines(record: Record) -> list[str]:
    """Return what the study cost, and what cached prefixes saved, in words."""
    cost, check = record["cost"], record["cost"]["check"]
    passes, full = cost["layer_passes"], cost["full_layer_passes"]
    share = f"{full:,} without cached prefixes ({passes / max(full, 1):.0%})"
    equal = "equal bit for bit" if not check["largest"] else f"equal to {check['largest']:.2g}"
    saved = f"{check['cached_seconds']:.2f} s against {check['full_seconds']:.2f} s"
    if not full:
        return [f"the model ran whole and without any layer, in {cost['seconds']:.1f} s"]
    return [
        f"{len(record['variants'])} edited models ran {passes:,} layers, {share}, in {cost['seconds']:.1f} s",
        f"on {check['rows']} rows all {check['variants']} of them are {equal} with cached prefixes and without, in {saved}",
    ]


def lesion_tables(record: Record) -> dict[str, list[Row]]:
    """Return name -> table of a lesion record, in the order in which they are printed; none of a part that was left out."""
    named = {
        "scores": frame_rows(record),
        "layers": layer_rows(record),
        "random": random_rows(record),
        "orders": order_rows(record),
        "paths": path_rows(record),
    }
    return {name: rows for name, rows in named.items() if len(rows) > 1}


def linearity_tables(record: Record) -> dict[str, list[Row]]:
    """Return name -> table of a linearity record, as `lesion_tables`."""
    named = {
        "scores": frame_rows(record),
        "nonlinearity": component_rows(record, "nonlinearity", "layer: 1 - cosine of the best linear map"),
        "baselines": baseline_rows(record),
        "r2": component_rows(record, "r2", "layer: R2"),
        "error": component_rows(record, "error_norm", "layer: error as a fraction of the norm"),
        "size": component_rows(record, "size", "layer: norm of the output over that of the input"),
        "replaced": replaced_rows(record),
        "cumulative": cumulative_rows(record),
        "swaps": swap_rows(record),
        "reversals": reversal_rows(record),
        "shuffles": shuffle_rows(record),
        "tuned": tuned_rows(record),
    }
    return {name: rows for name, rows in named.items() if len(rows) > 1}


TABLES = {"lesion": lesion_tables, "linearity": linearity_tables}
