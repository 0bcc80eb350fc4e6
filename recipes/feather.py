"""BERTs of a feather: models that differ in their seed alone agree on the task they learned. Do they agree on HANS?

    python recipes/feather.py --table berts_of_a_feather_accuracies_by_run.csv -o feather/published
    python recipes/feather.py zoo/heads/*/ --task hans --data zoo/heads/test.jsonl --hans zoo/heads/hans.jsonl -o feather/zoo
    python recipes/feather.py --hub 100 --task mnli --data validation_matched.jsonl --labels contradiction,entailment,neutral
        -o feather/mnli

The protocol of McCoy, Min and Linzen 2020 (arXiv:1911.02969) on any checkpoints: accuracy in domain and on HANS, the
range and spread of every subcase, a scatter of the two, and the basins of the models (Juneja et al. 2023,
arXiv:2205.12411) beside it. --hub N takes connectivity/feather_berts_0 to N-1, which the download needs a network for.
--table reads the authors' published table of 100 runs instead: a data set of scores, so there are no basins; the
clusters are those that Juneja et al. published. OUT gets results.json, tables, pictures and a page, index.html.
A few minutes for eight fine-tunes of a small model on two cores; what OUT already holds is not computed again. The table
takes seconds. --quick measures on 60 rows.
"""

from __future__ import annotations

import argparse
import shlex
import statistics
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from evals.report.hans_figure import PREFIXES
from evals.report.table_text import Row, csv_table, plain_table
from evals.report.tables import GOLDS, HEURISTICS

Record = Mapping[str, Any]
HUB = "connectivity/feather_berts_{}"
QUICK_ROWS = "60"
# Of the two clusters of the runs on MNLI the small one, as published by Juneja et al. 2023.
SMALL_CLUSTER = {15, 25, 26, 42, 44, 46, 56, 61, 63, 70, 73, 89}
PUBLISHED = ("large cluster, as published", "small cluster, as published")
# Column of the published table -> its cell of HANS.
CELLS = {
    f"{word} ({ending})": (heuristic, gold)
    for word, heuristic in zip(("Lexical", "Subseq", "Constituent"), HEURISTICS.values(), strict=True)
    for ending, gold in zip(("entailed", "nonent"), GOLDS.values(), strict=True)
}
IN_DOMAIN, OVERALL = "MNLI dev acc.", "Overall accuracy"
MNLI_ROWS, HANS_ROWS = 9815, 30000
DIAGNOSTIC = ("lexical_overlap", "non-entailment")  # what models with one in-domain accuracy differ on


@dataclass(frozen=True)
class Runs:
    """Models with their scores.

    Attributes:
        in_domain, hans: a scores record of each model.
        groups: the group of each model, from 0; group_names: of the groups.
    """

    in_domain: Sequence[Record]
    hans: Sequence[Record]
    groups: Sequence[int]
    group_names: Sequence[str]

    @property
    def names(self) -> list[str]:
        """The models' names."""
        return [record["model"]["name"] for record in self.hans]


def read_runs(path: Path) -> list[dict[str, Any]]:
    """Return the runs of the published table as records of results.json: two for each run, MNLI and HANS."""
    from evals.results.score_table import read_score_table

    table = read_score_table(path)
    needed = [IN_DOMAIN, OVERALL, *CELLS]
    missing = [name for name in needed if name not in table.scores]
    if missing:
        raise SystemExit(f"{path}: expected the columns {', '.join(needed)}; {missing[0]!r} is not there.")
    columns = {name: dict(zip(table.runs, values, strict=True)) for name, values in table.scores.items()}
    return [record for run in table.runs for record in _records(run, columns, path.name)]


def _records(run: str, columns: Mapping[str, Mapping[str, float]], name: str) -> list[dict[str, Any]]:
    """Return the records of one run."""
    subcases = {title: scores[run] for title, scores in columns.items() if title[:3] in PREFIXES}
    heuristics: dict[str, dict[str, float]] = {heuristic: {} for heuristic in HEURISTICS.values()}
    for column, (heuristic, gold) in CELLS.items():
        heuristics[heuristic][gold] = columns[column][run]
    overall = columns[OVERALL][run]
    hans = {"accuracy": overall, "heuristics": heuristics, "subcases": subcases, "templates": {}, "counts": None}
    published = {"data": f"published: {name}", "model": {"name": run, "hash": None}, "notes": []}
    mnli = {
        "task": "mnli",
        "split": "validation_matched",
        "n": MNLI_ROWS,
        "scores": {"accuracy": columns[IN_DOMAIN][run]},
    }
    other = {"task": "hans", "split": "evaluation", "n": HANS_ROWS, "scores": {"accuracy": overall}, "hans": hans}
    return [{"kind": "scores", "key": f"published-{each['task']}-{run}", **published, **each} for each in (mnli, other)]


def scored(records: Sequence[Record], task: str, data: str | None = None) -> list[Record]:
    """Return the scores records of a task, and of one data file where a task has several."""
    return [r for r in records if r["kind"] == "scores" and r["task"] == task and (data is None or data in r["data"])]


def columns_of(in_domain: Sequence[Record], hans: Sequence[Record]) -> dict[str, list[float]]:
    """Return column -> score of every model: in domain, the six cells of HANS, and its subcases."""
    columns = {f"{in_domain[0]['task']}, in domain": [r["scores"]["accuracy"] for r in in_domain]}
    for heuristic in HEURISTICS.values():
        for gold in GOLDS.values():
            title = f"{heuristic.replace('_', ' ')}, {gold}"
            columns[title] = [r["hans"]["heuristics"].get(heuristic, {}).get(gold) for r in hans]
    columns |= {name: [r["hans"]["subcases"].get(name) for r in hans] for name in hans[0]["hans"]["subcases"]}
    return {name: values for name, values in columns.items() if all(value is not None for value in values)}


def spread_rows(columns: Mapping[str, Sequence[float]]) -> list[Row]:
    """Return a row for each column: worst, mean and best model, range, standard deviation, correlation with the first."""
    rows: list[Row] = [["accuracy", "min", "mean", "max", "range", "s.d.", "r with in domain"]]
    first = next(iter(columns.values()))
    for name, values in columns.items():
        low, high = min(values), max(values)
        spread = statistics.stdev(values) if len(values) > 1 else None
        rows.append([name, low, statistics.fmean(values), high, high - low, spread, correlation(first, values)])
    return rows


def correlation(x: Sequence[float], y: Sequence[float]) -> float | None:
    """Return Pearson's correlation; None where one of them is constant."""
    if len(x) < 2 or len(set(x)) == 1 or len(set(y)) == 1:
        return None
    return statistics.correlation(x, y)


def draw(columns: Mapping[str, Sequence[float]], runs: Runs, out: Path) -> None:
    """Draw in-domain accuracy against the diagnostic cell of HANS."""
    from evals.report.basins.scatter import Axis, scatter_figure
    from evals.report.svg import save_figure

    diagnostic = ", ".join(DIAGNOSTIC).replace("_", " ")
    first = next(iter(columns))
    if diagnostic not in columns:
        raise SystemExit(f"no model has a score on HANS, {diagnostic}")
    r = correlation(columns[first], columns[diagnostic])
    note = f"{len(runs.names)} models, r = {'–' if r is None else f'{r:.2f}'}"
    legend = [f"{name} ({list(runs.groups).count(at)})" for at, name in enumerate(runs.group_names)]
    x, y = Axis(f"{first}: accuracy", columns[first]), Axis(f"HANS, {diagnostic}: accuracy", columns[diagnostic])
    save_figure(scatter_figure(runs.names, x, y, runs.groups, legend, note), out / "in-domain-and-hans")


def membership_rows(columns: Mapping[str, Sequence[float]], groups: Sequence[int]) -> list[Row]:
    """Return a row for each column: its mean in the second group and in the first, and how surely they differ."""
    from evals.clusters.strategies import strategies
    from evals.report.basins.tables import strategy_rows

    rows = strategy_rows({"strategies": [each.to_json() for each in strategies(columns, groups, None)]})
    kept = [at for at, name in enumerate(rows[0]) if name not in ("Pearson", "Spearman", "p", "cluster")]
    return [[row[at] for at in kept] for row in rows]


def published(path: Path, out: Path) -> Runs:
    """Return the runs of the table, in their published clusters; write results, picture and page."""
    from evals.report.hans_figure import hans_plot
    from evals.report.page import write_page
    from evals.results.store import add_results

    records = read_runs(path)
    add_results(out, records)
    hans = scored(records, "hans")
    hans_plot(hans, out / "hans")
    write_page(out)
    groups = [int(int(record["model"]["name"].split()[-1]) in SMALL_CLUSTER) for record in hans]
    return Runs(scored(records, "mnli"), hans, groups, PUBLISHED)


def run(*words: str | Path) -> None:
    """Print a command and run it; stop if it fails."""
    command = [str(word) for word in words]
    print(f"\n$ {shlex.join(command)}", flush=True)
    done = subprocess.run([Path(sys.executable).with_name(command[0]), *command[1:]], check=False)
    if done.returncode:
        raise SystemExit(done.returncode)


def measured(args: argparse.Namespace) -> Runs:
    """Return the models, in the clusters of their basins, after measuring all."""
    from evals.report.basins.tables import cluster_name
    from evals.results.store import load_basins, load_results

    models = [str(model).rstrip("/") for model in args.models] or [HUB.format(at) for at in range(args.hub)]
    shared = ["--limit", QUICK_ROWS] if args.quick else []
    shared += ["--labels", args.labels] if args.labels else []
    data, hans = (["--data", path] if path else [] for path in (args.data, args.hans))
    run("evaluate-models", "score", args.task, *models, *data, *shared, "-o", args.out)
    run("evaluate-models", "hans", *models, *hans, *shared, "-o", args.out)
    diagnostic = "hans:hans_lo" + (f"={args.hans}" if args.hans else "")
    sweep = ("--task", args.task, *data, *shared, "--diagnostic", diagnostic)
    run("evaluate-models", "basins", *models, *sweep, "-o", args.out)
    records, basins = load_results(args.out), load_basins(args.out)
    assert basins is not None  # the command wrote it
    labels = basins["analyses"][0]["labels"]
    names = [cluster_name(label) for label in sorted(set(labels))]
    in_domain, on_hans = scored(records, args.task, file_name(args.data)), scored(records, "hans", file_name(args.hans))
    return Runs(of_models(in_domain, models), of_models(on_hans, models), labels, names)


def file_name(path: str | None) -> str | None:
    """Return the name of a file, by which records know their data."""
    return Path(path).name if path else None


def of_models(records: Sequence[Record], models: Sequence[str]) -> list[Record]:
    """Return the first record of each model: later ones are of the part of HANS that the sweep takes as its diagnostic."""
    by_name = {record["model"]["name"].rstrip("/"): record for record in reversed(records)}
    return [by_name[model] for model in models]


def main() -> None:
    """Measure the models or read the table, and print and draw how they scatter."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", help="folders of checkpoints")
    parser.add_argument("--hub", type=int, default=0, metavar="N", help=f"instead: {HUB.format(0)} to N-1")
    parser.add_argument("--table", type=Path, help="instead: the published table of runs, a CSV file")
    parser.add_argument("--task", default="mnli", help="what the models learned (default: mnli)")
    parser.add_argument("--data", help="rows of the task")
    parser.add_argument("--hans", help="rows of HANS (default: generated, 30,000)")
    parser.add_argument(
        "--labels", help="class names in the order of the logits, where the checkpoints do not name them"
    )
    parser.add_argument("-o", "--out", type=Path, required=True)
    parser.add_argument("--quick", action="store_true", help=f"measure on {QUICK_ROWS} rows")
    args = parser.parse_args()
    if sum(map(bool, (args.models, args.hub, args.table))) != 1:
        parser.error("expected checkpoints, or --hub N, or --table FILE")
    runs = published(args.table, args.out) if args.table else measured(args)
    columns = columns_of(runs.in_domain, runs.hans)
    tables = {"spread": spread_rows(columns)}
    if len(runs.group_names) == 2:
        tables["membership"] = membership_rows(columns, runs.groups)
    for name, rows in tables.items():
        print(f"\n{plain_table(rows)}")
        (args.out / f"{name}.csv").write_text(csv_table(rows), encoding="utf-8")
    draw(columns, runs, args.out)
    print(f"\nLook at {args.out / 'index.html'}, {args.out / 'in-domain-and-hans.png'} and the tables beside them.")


if __name__ == "__main__":
    main()
