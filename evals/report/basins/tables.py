"""Tables of an analysis of basins: clusters, models, diagnostics, averages; the first row of every table is its header."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from evals.report.table_text import Cell, Row, Span

Record = Mapping[str, Any]
BASIN = {True: "yes", False: "no", None: "too few rows"}


def cluster_name(cluster: int) -> str:
    """Return what a cluster is called in tables and pictures: from 1 on."""
    return f"cluster {cluster + 1}"


def cluster_rows(analysis: Record) -> list[Row]:
    """Return a row for each cluster: its models, whether they share a basin, and their mean diagnostic scores."""
    summary = analysis["settings"]["barrier_summary"]
    diagnostics = analysis["diagnostics"]
    head: Row = ["", "models", "one basin", f"largest {summary}", "95% interval", "least to another", "stability"]
    rows: list[Row] = [[*head, *(f"mean {name}" for name in diagnostics)]]
    for basin, stable in zip(analysis["basins"], analysis["stability"]["jaccard"], strict=True):
        alone = len(basin["models"]) == 1
        rows.append(
            [
                cluster_name(basin["cluster"]),
                len(basin["models"]),
                "one model" if alone else BASIN[basin["shared"]],
                basin["barrier"],
                Span(basin["low"], basin["high"]),
                basin["outside"],
                stable,
                *(_mean(scores[k] for k in basin["models"]) for scores in diagnostics.values()),
            ]
        )
    return rows


def _mean(values: Iterable[float | None]) -> float | None:
    present = [value for value in values if value is not None]
    return sum(present) / len(present) if present else None


def member_rows(record: Record, analysis: Record) -> list[Row]:
    """Return a row for each model, in the order of the dendrogram: cluster, coordinate, loss, accuracy, diagnostics."""
    embedding, accuracy = analysis["embedding"], record["accuracy"]
    columns: dict[str, Sequence[Any]] = {"cluster": [cluster_name(label) for label in analysis["labels"]]}
    if embedding is not None:
        columns["coordinate"] = embedding["coordinate"]
    columns["loss"] = record["loss"]
    if accuracy is not None:
        columns["accuracy"] = accuracy
    columns |= analysis["diagnostics"]
    rows: list[Row] = [["model", *columns]]
    return rows + [[analysis["models"][k], *(column[k] for column in columns.values())] for k in analysis["order"]]


def strategy_rows(analysis: Record) -> list[Row]:
    """Return a row for each diagnostic and cluster: mean inside and outside, and how surely they differ."""
    head: Row = [
        "diagnostic",
        "Pearson",
        "p",
        "Spearman",
        "p",
        "cluster",
        "inside",
        "outside",
        "difference, 95%",
        "AUC",
    ]
    rows: list[Row] = [[*head, "adjusted p", "permutations"]]
    for each in analysis["strategies"]:
        start: Row = [each["diagnostic"], *_test(each["pearson"]), *_test(each["spearman"])]
        for inside in each["memberships"]:
            test = inside["test"]
            counted = None if test is None else f"{test['permutations']:,}{' (all)' if test['exact'] else ''}"
            span = Span(inside["low"], inside["high"])
            means: Row = [inside["inside"], inside["outside"], span, inside["auc"]]
            rows.append([*start, cluster_name(inside["cluster"]), *means, inside["adjusted"], counted])
        if not each["memberships"]:
            rows.append([*start, *[None] * 7])
    return rows


def _test(test: Record | None) -> list[Cell]:
    return [None, None] if test is None else [test["value"], test["p"]]


def average_rows(analysis: Record) -> list[Row]:
    """Return a row for each average that was ranked: predicted loss, what it gains on the best model, and what was measured."""
    ranking = analysis["ranking"]
    measured = {tuple(each["models"]): each for each in (analysis["verification"] or {"subsets": []})["subsets"]}
    head: Row = ["average of", "models", "predicted loss", "95% interval", "gain on the best model", "± s.e."]
    tail: Row = ["measured loss", "± s.e."] if measured else []
    rows: list[Row] = [[*head, "departure from parabolas", *tail]]
    chosen = {
        tuple(each["models"]): each
        for each in [*ranking["subsets"], ranking["everything"], ranking["best_model"]]
        if each
    }
    for models, each in chosen.items():
        row: Row = [
            average_name(analysis, models),
            len(models),
            each["loss"],
            Span(each["low"], each["high"]),
            each["gain"],
            each["gain_error"],
            each["departure"],
        ]
        if measured:
            seen = measured.get(models, {"measured": None, "measured_error": None})
            row += [seen["measured"], seen["measured_error"]]
        rows.append(row)
    return rows


def average_name(analysis: Record, models: Sequence[int]) -> str:
    """Return the names of the models of an average; those that are left out, where they are fewer."""
    names = analysis["models"]
    missing = [name for k, name in enumerate(names) if k not in models]
    if len(models) == 1:
        return f"{names[models[0]]} alone"
    if not missing:
        return f"all {len(names)}"
    if len(missing) < len(models):
        return f"all but {', '.join(missing)}"
    return " + ".join(names[k] for k in models)


def verified_rows(analysis: Record) -> list[Row]:
    """Return a row for each average that was measured, from the lowest loss: predicted, measured, and the difference."""
    rows: list[Row] = [["average of", "models", "predicted", "measured", "± s.e.", "error", "departure from parabolas"]]
    for each in sorted(analysis["verification"]["subsets"], key=lambda subset: subset["measured"]):
        losses: Row = [each[name] for name in ("predicted", "measured", "measured_error", "error", "departure")]
        rows.append([average_name(analysis, each["models"]), len(each["models"]), *losses])
    return rows


def method_rows(analysis: Record) -> list[Row]:
    """Return a row for each method of clustering: the clusters it finds, and their agreement with those that are used."""
    rows: list[Row] = [["method", "clusters", "agreement (adjusted Rand index)"]]
    for name, labels in analysis["clusterings"].items():
        groups = [
            [analysis["models"][k] for k, each in enumerate(labels) if each == label] for label in sorted(set(labels))
        ]
        listed = "; ".join(", ".join(group) for group in groups)
        rows.append([name, listed, analysis["agreement"][name]])
    return rows
