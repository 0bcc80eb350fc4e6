"""Tables of a stitch record: penalties by depth beside their controls; scores; the matrix of all pairs of cuts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from evals.report.table_text import Row

Record = Mapping[str, Any]
NAMES = ("stitched", "identity", "mean only", "random A", "reversed")


def main_score(record: Record) -> str:
    """Return the name of the score that penalties are of."""
    return str(next(iter(record["ends"]["b"])))


def penalty_rows(record: Record) -> list[Row]:
    """Return a row for each depth: the penalty of every stitch, CKA and R2 of the map, LLFC of the same state."""
    llfc = _llfc(record)
    header: Row = ["A : B", *(f"penalty: {name}" if name == "stitched" else name for name in NAMES), "CKA", "R2"]
    rows = [[*header, "LLFC 1 - cos"] if llfc else header]
    for cut in record["cuts"]:
        penalties = [cut["penalties"].get(name) for name in NAMES]
        row: Row = [f"{cut['at'][0]} : {cut['at'][1]}", *penalties, cut["cka"], cut["explained"]]
        rows.append([*row, llfc.get(cut["at"][1])] if llfc else row)
    return rows


def _llfc(record: Record) -> dict[int, float]:
    """Return cut -> 1 - cosine of the average's features and the average of features, of the state there."""
    distances = {}
    for site in record.get("llfc") or ():
        name = site["site"]
        cut = 0 if name == "embeddings" else int(name.split()[1]) + 1
        distances[cut] = site["distance"]
    return distances


def score_rows(record: Record) -> list[Row]:
    """Return a row for each depth and stitch with all its scores; A and B themselves first."""
    names = list(record["ends"]["b"])
    rows: list[Row] = [["A : B", "model", *names]]
    rows += [["–", name.upper(), *(record["ends"][name].get(each) for each in names)] for name in ("a", "b")]
    for cut in record["cuts"]:
        for name in NAMES:
            if name in cut["scores"]:
                scores = (cut["scores"][name].get(each) for each in names)
                rows.append([f"{cut['at'][0]} : {cut['at'][1]}", name, *scores])
    return rows


def matrix_rows(record: Record, name: str = "matrix") -> list[Row]:
    """Return the matrix of all pairs of cuts, a row for each cut of A; no rows where it was not asked for."""
    values = record.get(name)
    if not values:
        return []
    return [
        ["cut of A", *(f"B at {m}" for m in range(len(values[0])))],
        *([str(k), *row] for k, row in enumerate(values)),
    ]


def line_rows(record: Record) -> list[Row]:
    """Return the barrier of the same two models; no rows where it was not measured."""
    barrier = record.get("barrier")
    if not barrier:
        return []
    rows: list[Row] = [["of the same two models", "value", "± s.e.", "at λ"]]
    rows.append(["loss barrier", barrier["barrier"], barrier.get("standard_error"), barrier.get("barrier_lam")])
    return rows


def stitch_tables(record: Record) -> list[list[Row]]:
    """Return the tables that the command prints."""
    tables = [penalty_rows(record), matrix_rows(record), line_rows(record)]
    return [rows for rows in tables if len(rows) > 1]


def verdict(record: Record) -> list[str]:
    """Return what the penalties say: where the best stitch inside is, beside the control that comes nearest to it."""
    inner = record["cuts"][1:-1] or record["cuts"]
    best = min(inner, key=lambda cut: cut["penalties"]["stitched"])
    controls = {name: best["penalties"][name] for name in NAMES[1:4] if name in best["penalties"]}
    near = min(controls, key=lambda name: controls[name])
    score, own = main_score(record), record["ends"]["b"]
    lines = [
        f"{score} of A {record['ends']['a'][score]:.4f}, of B {own[score]:.4f}; maps {record['map']}, fitted on "
        f"{record['fit']['tokens']:,} tokens ({record['fit']['text']})",
        f"inside, the least penalty is {best['penalties']['stitched']:.4f} at {best['at'][0]} : {best['at'][1]}; the control "
        f"nearest to it there is {near}: {controls[near]:.4f}",
    ]
    if controls[near] <= best["penalties"]["stitched"] + 0.005:
        lines.append(f"a stitch that is no better than {near} says nothing about the two models' states")
    return lines


def folded(record: Record) -> dict[str, list[Row]]:
    """Return the whole tables."""
    return {
        "penalties": penalty_rows(record),
        "scores": score_rows(record),
        "matrix of penalties": matrix_rows(record),
        "matrix of CKA": matrix_rows(record, "cka"),
    }
