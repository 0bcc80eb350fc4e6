"""What a pair of a sweep costs, against reloading and tokenising again at every point; growth; and a plan for many GPUs.

    python benchmarks/sweep_cost.py --data DATA                    # all-MiniLM-L6-v2 with random three-class heads
    python benchmarks/sweep_cost.py --data DATA --rows 500 --models 8
    python benchmarks/sweep_cost.py --data DATA --task snli --processes 1   # shorter rows: padding to 128 costs more

DATA holds mnli/validation_matched.jsonl.gz, or snli/validation.1k.jsonl.gz. The naive way is that of published code
(nverma1/merging-text-transformers): at every point of every pair it loads both models and the tokenizer, tokenises the rows anew,
padded to 128 tokens, and predicts batches of 8. Its losses have to be those of the sweep, or the run fails. What is compared is
CPU seconds in one process, so that a busy machine is busy for both; wall seconds and the load of the machine are printed too.

The plan is for 4,950 pairs of 100 BERT-base models at 11 points on all of MNLI-m. From measurements of this run: tokens and their
padding, and the time to read a model's bytes. Counted: FLOPs, and reads by the blocks of the sweep. Assumed: what a GPU computes.
"""

from __future__ import annotations

import os
import resource
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from command_line import add_data, make_parser, parse, run_main
from predict_speed import minilm_classifier
from safetensors.torch import load_file, save_file
from transformers.utils import logging as transformers_logging

import evals
from evals.clusters.sweep.cost import spoken, token_count
from evals.clusters.sweep.pairs import MOST_IN_GROUP, all_pairs, blocks, reads
from evals.predict.predictor import make_predictor
from evals.tasks import TASKS
from evals.tasks.task import Rows
from merge.checkpoints.checkpoint import finite_tensors
from merge.checkpoints.open import open_encoder

POINTS = 11
# Points of the naive way that are measured: each costs the same.
NAIVE_POINTS = (0.0, 0.5, 1.0)
NOISE = 0.02  # of the weights' deviation: models of one start
# BERT-base: numbers in the matrices of its layers, layers, width, and bytes of its float32 weights.
MATRICES, LAYERS, WIDTH, BYTES = 12 * 12 * 768**2, 12, 768, 438_000_000
# Assumed, not measured here: what an H200 sustains, in TFLOP/s: float32, as a sweep computes, and bfloat16.
ASSUMED = {"float32, as the sweep computes": 40, "bfloat16, for comparison": 300}
GPUS = (1, 8, 64)
FILES = {"mnli": "mnli/validation_matched.jsonl.gz", "snli": "snli/validation.1k.jsonl.gz"}
MODELS = 100


def make_models(folder: Path, count: int) -> list[Path]:
    """Write MiniLM classifiers: one with a random head, and copies with a little noise in every weight."""
    first = minilm_classifier(folder / "model0")
    tensors, made = load_file(first / "model.safetensors"), [first]
    for seed in range(1, count):
        made.append(folder / f"model{seed}")
        made[-1].mkdir()
        for file in first.iterdir():
            if file.name != "model.safetensors":
                (made[-1] / file.name).write_bytes(file.read_bytes())
        generator = torch.Generator().manual_seed(seed)
        moved = {
            name: t + NOISE * t.std(correction=0) * torch.randn(t.shape, generator=generator)
            if t.is_floating_point()
            else t
            for name, t in tensors.items()
        }
        save_file(moved, made[-1] / "model.safetensors", {"format": "pt"})
    return made


def naive_losses(a: Path, b: Path, rows: Rows, labels: Sequence[str]) -> list[float]:
    """Return the mean loss at the points of NAIVE_POINTS: everything is loaded and tokenised again for each."""
    import transformers

    losses = []
    for lam in NAIVE_POINTS:
        model, other = (transformers.AutoModelForSequenceClassification.from_pretrained(str(each)) for each in (a, b))
        mixed = {name: (1 - lam) * t + lam * other.state_dict()[name] for name, t in model.state_dict().items()}
        model.load_state_dict(mixed)
        tokenizer = transformers.AutoTokenizer.from_pretrained(str(a))
        first, second = zip(*rows.texts, strict=True)
        tokens = tokenizer(
            list(first), list(second), padding="max_length", max_length=128, truncation=True, return_tensors="pt"
        )
        gold = torch.tensor([labels.index(rows.labels[k]) for k in rows.gold])
        total = 0.0
        with torch.inference_mode():
            for at in range(0, len(rows), 8):
                batch = {name: tensor[at : at + 8] for name, tensor in tokens.items()}
                total += float(
                    torch.nn.functional.cross_entropy(model.eval()(**batch).logits, gold[at : at + 8], reduction="sum")
                )
        losses.append(total / len(rows))
    return losses


def timed(run: Callable[[], Any]) -> tuple[Any, float, float]:
    """Return what it returns, the CPU seconds of this process and of those that ended, and the wall seconds."""
    begun = _cpu(), time.perf_counter()
    value = run()
    return value, _cpu() - begun[0], time.perf_counter() - begun[1]


def _cpu() -> float:
    return sum(
        usage.ru_utime + usage.ru_stime
        for usage in map(resource.getrusage, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    )


def sweep(models: Sequence[Path], task: str, data: Path, rows: int, output: Path, processes: int) -> Any:
    """Run a sweep; the workers are ended, so that their CPU seconds count."""
    swept = evals.basins(
        [str(m) for m in models], task=task, data=data, limit=rows, points=POINTS, output=output, processes=processes
    )
    if processes > 1:
        from joblib.externals.loky import get_reusable_executor

        get_reusable_executor().shutdown(wait=True)
    return swept


def records(output: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (output / "sweep").glob("*/*.parquet")}


def plan(tokens: int, rows: int, mean_square: float, read_rate: float) -> None:
    """Print how long 4,950 pairs of BERT-base take.

    Args:
        tokens: of all rows of MNLI-m, padding included.
        rows: how many.
        mean_square: of the lengths, for the attention.
        read_rate: bytes a second that a model is read at.
    """
    flops = 2 * MATRICES * tokens + 4 * LAYERS * WIDTH * mean_square * rows
    pairs = all_pairs(MODELS)
    parted = blocks(pairs, MOST_IN_GROUP)
    points = len(pairs) * (POINTS - 2) + MODELS
    read = reads(parted) * BYTES / read_rate
    print(
        f"\n{len(pairs):,} pairs of {MODELS} BERT-base models, {POINTS} points, {rows:,} rows: {points:,} evaluations of "
        f"{flops / 1e12:.1f} TFLOP ({tokens:,} tokens, measured, with padding) = {points * flops / 1e18:.2f} EFLOP; "
        f"{reads(parted):,} reads of a model ({2 * len(pairs):,} pair by pair) at {read_rate / 1e9:.2f} GB/s, measured"
    )
    for what, rate in ASSUMED.items():
        seconds = points * flops / (rate * 1e12) + read
        times = ", ".join(f"{count} GPU{'s' if count > 1 else ''}: {spoken(seconds / count)}" for count in GPUS)
        print(f"  at {rate} TFLOP/s a GPU (assumed; {what}): {times}; reading is {read / seconds:.0%}")


def main() -> None:
    """Print the cost of a pair in both ways, its growth, and the plan."""
    parser = make_parser(__doc__)
    add_data(parser)
    parser.add_argument("--task", choices=tuple(FILES), default="mnli")
    parser.add_argument("--rows", type=int, default=128)
    parser.add_argument("--models", type=int, default=3)
    parser.add_argument("--processes", type=int, default=2)
    args = parse(parser)
    torch.set_num_threads(1)
    transformers_logging.disable_progress_bar()
    data = args.data / FILES[args.task]
    everything = TASKS[args.task].read(data, 0)
    rows = everything.sample(args.rows, 0)
    with tempfile.TemporaryDirectory() as folder:
        models = make_models(Path(folder), args.models)
        checkpoint = open_encoder(str(models[0]))
        predictor = make_predictor(checkpoint)
        predictor.logits(predictor.encode(rows))  # warm: kernels, libraries
        print(f"{len(models)} models, {len(rows)} rows of {args.task}, {POINTS} points; load {os.getloadavg()[0]:.1f}")
        naive, naive_cpu, naive_wall = timed(lambda: naive_losses(*models[:2], rows, checkpoint.structure.label_names))
        naive_cpu, naive_wall = (seconds * POINTS / len(NAIVE_POINTS) for seconds in (naive_cpu, naive_wall))
        counted = f"{len(NAIVE_POINTS)} of {POINTS} points measured"
        print(f"naive: {naive_cpu:.1f} CPU s a pair ({naive_wall:.1f} s of wall; {counted})", flush=True)
        forward = timed(lambda: predictor.logits(predictor.encode(rows)))[1]
        before, total, swept = 0, 0.0, None
        for count in range(2, len(models) + 1):
            swept, cpu, wall = timed(
                lambda n=count: sweep(models[:n], args.task, data, args.rows, Path(folder) / "grown", 1)
            )  # type: ignore[misc]
            pairs, total = count * (count - 1) // 2, total + cpu
            each = cpu / (pairs - before)
            print(
                f"sweep, {count} models: {pairs - before} new pairs, {each:.1f} CPU s each ({wall:.1f} s of wall)",
                flush=True,
            )
            before = pairs
        # What a run costs with nothing left to measure: rows, hashes, the analysis.
        _, fixed, _ = timed(lambda: sweep(models, args.task, data, args.rows, Path(folder) / "grown", 1))
        assert swept is not None
        curve = swept.losses[0].curve(0, 1).mean(1)
        ours = [float(curve[round(lam * (POINTS - 1))]) for lam in NAIVE_POINTS]
        difference = max(abs(x - y) for x, y in zip(ours, naive, strict=True))
        if difference > 1e-4:
            raise SystemExit(f"the losses differ by {difference:.2g}")
        each, alone = total / before, (total - (len(models) - 1) * fixed) / before
        print(
            f"a pair: naive {naive_cpu:.1f}, sweep {alone:.1f} CPU s, {naive_cpu / alone:.1f} times cheaper; with {fixed:.1f} s "
            f"of each run besides (rows, hashes, analysis) {each:.1f}; losses agree to {difference:.1g}",
            flush=True,
        )
        floor = forward * (before * (POINTS - 2) + len(models)) / before
        print(f"forward passes alone: {floor:.1f} CPU s a pair", flush=True)
        if args.processes < 2:
            return
        many, cpu, wall = timed(
            lambda: sweep(models, args.task, data, args.rows, Path(folder) / "many", args.processes)
        )
        same = records(Path(folder) / "many") == records(Path(folder) / "grown")
        print(
            f"{args.processes} processes: {cpu:.1f} CPU s in all, {wall:.1f} s of wall, the start of the processes included; "
            f"{len(many.losses[0].pairs)} pairs, {'the same bytes' if same else 'OTHER BYTES'}"
        )
        _, read_cpu, read_wall = timed(lambda: [t + 0 for t in finite_tensors(open_encoder(str(models[1]))).values()])
        size = sum(t.numel() * t.element_size() for t in finite_tensors(checkpoint).values())
        encoded = predictor.encode(replace(everything, extra=()))
        squares = sum(b["input_ids"].shape[0] * b["input_ids"].shape[1] ** 2 for b in encoded.batches) / len(everything)
        plan(token_count(encoded.batches), len(everything), squares, size / max(read_cpu, read_wall))


if __name__ == "__main__":
    run_main(main)
