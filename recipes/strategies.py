"""Do models of one training generalise alike? The published protocol on MNLI, QQP and CoLA, and its clusters of 100 runs.

    python recipes/strategies.py mnli --data validation_matched.jsonl -o strategies/mnli
    python recipes/strategies.py qqp zoo/*/ --data validation.jsonl --diagnostic-data paws/dev_and_test.jsonl -o strategies/qqp
    python recipes/strategies.py cola --data validation.jsonl -o strategies/cola
    python recipes/strategies.py table --data berts_of_a_feather_accuracies_by_run.csv

The protocol of Juneja et al. 2023 (arXiv:2205.12411): 512 rows in domain, 10 points on every line, the convexity gap as the
distance, spectral clustering into two at scale 1. What tells the clusters apart is then

    mnli   accuracy on HANS-LO: lexical overlap and not entailed, 5,000 pairs (generated unless --diagnostic-data says otherwise)
    qqp    F1 on PAWS-QQP, dev and test, 677 pairs
    cola   Matthews correlation out of domain, the last 516 rows of the validation set; the first 527 are in domain

Without models it takes the authors' 100 from the Hub (--count for fewer), which the download needs a network for: 4,950 pairs, so
look at --dry-run first. `table` prints the published clusters against every column of the published table; it takes seconds.
"""

from __future__ import annotations

import argparse
import json
import shlex
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

# Of the 100 runs on MNLI, those of the smaller cluster, as published.
SMALL_CLUSTER = (15, 25, 26, 42, 44, 46, 56, 61, 63, 70, 73, 89)
ROWS, SEED = 512, 0
SETTINGS = ("--points", "10", "--summary", "convexity gap", "--method", "spectral", "--clusters", "2")


@dataclass(frozen=True)
class Protocol:
    """What is measured for models of a task.

    Attributes:
        task: in domain; columns: of its rows.
        diagnostic: TASK:SCORE; own_rows: whether its rows are in the data of the task.
        hub: name of the published models; labels: their classes in the order of the logits.
    """

    task: str
    columns: tuple[str, ...]
    diagnostic: str
    own_rows: bool
    hub: str
    labels: str


PROTOCOLS = {
    "mnli": Protocol(
        "mnli",
        ("premise", "hypothesis"),
        "hans:hans_lo",
        False,
        "connectivity/feather_berts_{}",
        "contradiction,entailment,neutral",
    ),
    "qqp": Protocol(
        "qqp",
        ("question1", "question2"),
        "paws_qqp:f1",
        False,
        "connectivity/bert_ft_qqp-{}",
        "not_duplicate,duplicate",
    ),
    "cola": Protocol(
        "cola_in_domain",
        ("sentence",),
        "cola_out_of_domain:matthews_correlation",
        True,
        "connectivity/cola_6ep_ft-{}",
        "unacceptable,acceptable",
    ),
}


def write_rows(protocol: Protocol, data: Path, out: Path, count: int) -> Path:
    """Write the rows in domain: so many drawn from the data; the diagnostic keeps all of its own."""
    from evals.tasks import find_task

    rows = find_task(protocol.task).read(data, SEED).sample(count, SEED)
    lines = [
        json.dumps(dict(zip(protocol.columns, texts, strict=True)) | {"label": rows.labels[gold]})
        for texts, gold in zip(rows.texts, rows.gold, strict=True)
    ]
    out.mkdir(parents=True, exist_ok=True)
    path = out / "rows.jsonl"
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return path


def command(protocol: Protocol, models: Sequence[str], args: argparse.Namespace, rows: Path) -> list[str]:
    """Return the command of the sweep."""
    data = args.data if protocol.own_rows else args.diagnostic_data
    diagnostic = protocol.diagnostic if data is None else f"{protocol.diagnostic}={data}"
    names = args.labels or (None if args.models else protocol.labels)
    labels = ["--labels", names] if names else []
    more = [*labels, *(["--dry-run"] if args.dry_run else [])]
    task = ["--task", protocol.task, "--data", str(rows), "--diagnostic", diagnostic]
    return ["evaluate-models", "basins", *models, *task, *SETTINGS, *more, "-o", str(args.out)]


def table_text(path: Path) -> str:
    """Return the published clusters against every column of the published table."""
    from evals.clusters.strategies import strategies
    from evals.report.table_text import plain_table
    from evals.results.score_table import read_score_table

    table = read_score_table(path)
    labels = [int(run.split()[-1] in map(str, SMALL_CLUSTER)) for run in table.runs]
    rows = [
        ["score", f"small cluster ({sum(labels)})", f"others ({labels.count(0)})", "95 % of difference", "AUC", "p"]
    ]
    for row in strategies(table.scores, labels, None):
        for each in row.memberships:
            p = "–" if each.test is None else f"{each.test.p:.1e}" if each.test.p < 0.001 else f"{each.test.p:.3f}"
            means = [f"{each.inside:.4f}", f"{each.outside:.4f}", f"{each.low:+.3f} to {each.high:+.3f}"]
            rows.append([row.diagnostic, *means, f"{each.auc:.3f}", p])
    return plain_table(rows)


def main() -> None:
    """Sweep over the models, or read the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=[*PROTOCOLS, "table"])
    parser.add_argument("models", nargs="*", help="folders of checkpoints (default: the published ones)")
    parser.add_argument("--data", type=Path, required=True, help="rows of the task, or the table")
    parser.add_argument("--diagnostic-data", type=Path, help="rows of the diagnostic, which PAWS-QQP needs")
    parser.add_argument(
        "--labels", help="class names in the order of the logits, where the checkpoints do not name them"
    )
    parser.add_argument("--count", type=int, default=100, help="how many of the published models (default: 100)")
    parser.add_argument("--rows", type=int, default=ROWS, help=f"rows in domain (default: {ROWS})")
    parser.add_argument("--dry-run", action="store_true", help="print what it will cost, and stop")
    parser.add_argument("-o", "--out", type=Path)
    args = parser.parse_args()
    if args.what == "table":
        print(table_text(args.data))
        return
    protocol = PROTOCOLS[args.what]
    if args.out is None:
        parser.error("expected -o, a folder for the results")
    if args.what == "qqp" and args.diagnostic_data is None:
        parser.error("PAWS-QQP cannot be had from the Hub: expected --diagnostic-data, its dev_and_test file")
    models = [model.rstrip("/") for model in args.models] or [protocol.hub.format(k) for k in range(args.count)]
    words = command(protocol, models, args, write_rows(protocol, args.data, args.out, args.rows))
    print(f"$ {shlex.join(words)}", flush=True)
    done = subprocess.run([Path(sys.executable).with_name(words[0]), *words[1:]], check=False)
    raise SystemExit(done.returncode)


if __name__ == "__main__":
    main()
