"""What a sweep over the pairs of a zoo says, against what is known of its models and what their averages turn out to be.

    python recipes/finetune_zoo.py heads -o zoo/heads
    python benchmarks/basins_of_a_zoo.py zoo/heads -o report

ZOO holds models whose names begin with what they share (head0-order1, trusting-2), test.jsonl (what all were taught) and
hans.jsonl (all of HANS). Printed are the barriers of pairs that share the beginning of their names and of those that do
not; the verdict, which is not told the names; predicted against measured losses of random averages of three models or
more; and what the sweep picks (an average, or the best model alone) beside greedy soup by the loss on the same rows, and
the average of all, also on rows that nothing was picked by: those of hans.jsonl of the same heuristics that test.jsonl
has not. Six CPU minutes for eight models of three layers, less what OUT already holds; --quick takes 40 rows and 5 points.
"""

from __future__ import annotations

import json
import random
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from command_line import existing, make_parser, parse, run_main

import evals
import merge
from evals.report.table_text import Row, plain_table

AVERAGES, SMALLEST = 24, 3
QUICK_ROWS, QUICK_POINTS = 40, 5


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Return the rows of a JSON lines file."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def held_out(zoo: Path) -> list[dict[str, Any]]:
    """Return the rows of hans.jsonl of the heuristics of test.jsonl that are not in it."""
    test = read_rows(zoo / "test.jsonl")
    seen, heuristics = {(row["premise"], row["hypothesis"]) for row in test}, {row["heuristic"] for row in test}
    everything = read_rows(zoo / "hans.jsonl")
    rows = [r for r in everything if r["heuristic"] in heuristics and (r["premise"], r["hypothesis"]) not in seen]
    return [{**row, "pairID": f"ex{at}"} for at, row in enumerate(rows)]


def random_subsets(models: int, count: int) -> list[tuple[int, ...]]:
    """Return different subsets of three models or more, as many of each size as there are, sizes in turn."""
    draw, subsets = random.Random(0), {tuple(range(models))}
    sizes = list(range(SMALLEST, models))
    for at in range(100 * count):
        if len(subsets) == count:
            break
        subsets.add(tuple(sorted(draw.sample(range(models), sizes[at % len(sizes)]))))
    return sorted(subsets, key=lambda subset: (len(subset), subset))


def kind_rows(swept: Any) -> list[Row]:
    """Return a row for pairs whose names begin alike and for the others: number, mean, least and largest of two summaries."""
    names = [name.rpartition("-")[0] for name in swept.models]
    rows: list[Row] = [["pairs", "number", "summary", "mean", "least", "largest"]]
    for title, alike in (("names begin alike", True), ("names begin otherwise", False)):
        for summary in ("loss barrier", "convexity gap"):
            matrix = swept.matrix(summary)
            values = [
                float(matrix[i, j])
                for i in range(len(names))
                for j in range(i + 1, len(names))
                if (names[i] == names[j]) == alike
            ]
            if values:
                rows.append([title, len(values), summary, statistics.fmean(values), min(values), max(values)])
    return rows


def score_average(folders: Sequence[Path], rows: Any) -> dict[str, float]:
    """Return loss and accuracy of the average of models on rows."""
    with TemporaryDirectory() as scratch:
        folder = folders[0]
        if len(folders) > 1:
            folder = Path(scratch) / "average"
            merge.merge(list(folders), method="linear").save(folder)
        return evals.score(folder, "hans", data=rows)[0]


def greedy_soup(folders: Sequence[Path], losses: Sequence[float], rows: Any) -> list[int]:
    """Return the models of greedy soup by the loss: from the best on, each joins if the average does not get worse."""
    soup: list[int] = []
    best = float("inf")
    for k in sorted(range(len(folders)), key=losses.__getitem__):
        loss = losses[k] if not soup else score_average([folders[m] for m in sorted([*soup, k])], rows)["loss"]
        if loss <= best:
            soup, best = sorted([*soup, k]), loss
    return soup


def candidate_rows(zoo: Path, folders: Sequence[Path], analysis: dict[str, Any], test: Any) -> list[Row]:
    """Return a row for the picked average, greedy soup, all, and the best model: losses on both sets of rows."""
    ranking = analysis["ranking"]
    losses, best = ranking["losses"], ranking["subsets"][0]
    candidates = {
        "picked by the sweep": (best if best["gain"] > 0 else ranking["best_model"])["models"],
        "best average, by prediction": best["models"],
        "greedy soup": greedy_soup(folders, losses, test),
        "all": list(range(len(folders))),
        "best model alone": [losses.index(min(losses))],
    }
    others, scores = held_out(zoo), {}
    rows: list[Row] = [["average", "models", "loss", "accuracy", "held-out loss", "held-out accuracy", "of"]]
    for name, models in candidates.items():
        if (at := tuple(models)) not in scores:
            chosen = [folders[k] for k in models]
            scores[at] = score_average(chosen, test), score_average(chosen, others)
        cells = [score[key] for score in scores[at] for key in ("loss", "accuracy")]
        rows.append([name, len(models), *cells, " + ".join(folders[k].name for k in models)])
    print(f"\nheld-out: {len(others)} rows")
    return rows


def main() -> None:
    """Sweep over the zoo, measure averages, and print the tables."""
    parser = make_parser(__doc__)
    parser.add_argument("zoo", type=existing)
    parser.add_argument("-o", "--out", type=Path, required=True)
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--quick", action="store_true")
    args = parse(parser)

    folders = sorted(path.parent for path in args.zoo.glob("*/config.json"))
    subsets = random_subsets(len(folders), AVERAGES)
    quick = {"limit": QUICK_ROWS, "points": QUICK_POINTS} if args.quick else {}
    swept = evals.basins(
        folders,
        task="hans",
        data=args.zoo / "test.jsonl",
        diagnostics={"hans:hans_lo": args.zoo / "hans.jsonl"},
        averages=subsets,
        processes=args.processes,
        output=args.out,
        tell=lambda line: print(line, file=sys.stderr),
        **quick,
    )
    print(plain_table(kind_rows(swept)))
    print("", *swept.verdict, sep="\n")
    analysis = swept.record["analyses"][-1]
    found = analysis["verification"]
    print(
        f"\n{len(found['subsets'])} averages of {SMALLEST} to {len(folders)} models: rank correlation "
        f"{found['rank_correlation']:.3f}, largest error {found['largest_error']:.4f}, mean {found['mean_error']:.4f}; "
        f"errors against departures from parabolas: rank correlation {found['departure_correlation']:.3f}"
    )
    rows = read_rows(args.zoo / "test.jsonl")[: QUICK_ROWS if args.quick else None]
    print(plain_table(candidate_rows(args.zoo, folders, analysis, rows)))


if __name__ == "__main__":
    run_main(main)
