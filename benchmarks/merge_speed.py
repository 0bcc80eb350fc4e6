"""Time merges against mergekit, and against copying one of the inputs: the physical limit of writing that much.

    python benchmarks/merge_speed.py                                # BERT-base, float32
    python benchmarks/merge_speed.py --model llama                  # 1.1 billion parameters, bfloat16
    python benchmarks/merge_speed.py --mergekit VENV/bin/mergekit-yaml

mergekit needs an environment of its own: `python -m venv VENV; VENV/bin/pip install mergekit==0.1.5`. Checkpoints are
random, made once and left in --scratch. Every round runs `cp`, merge-models and mergekit in turn, on files that lie in
the page cache; printed are medians over the rounds: wall seconds and CPU seconds (user and system), start-up included,
the peak of anonymous memory (memory-mapped files are the page cache's) and of all resident memory, and the median of
the ratios within a round. Before the rounds everything runs once, so that files and what merge-models remembers of them
are warm.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from command_line import make_parser, parse, run_main

BERT = {
    "architectures": ["BertForSequenceClassification"],
    "model_type": "bert",
    "vocab_size": 30522,
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "intermediate_size": 3072,
    "id2label": {"0": "entailment", "1": "neutral", "2": "contradiction"},
    "label2id": {"entailment": 0, "neutral": 1, "contradiction": 2},
}
LLAMA = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": 32000,
    "hidden_size": 2048,
    "num_hidden_layers": 22,
    "num_attention_heads": 32,
    "num_key_value_heads": 4,
    "intermediate_size": 5632,
    "tie_word_embeddings": False,
}
MODELS: dict[str, tuple[dict[str, Any], torch.dtype]] = {
    "bert": (BERT, torch.float32),
    "llama": (LLAMA, torch.bfloat16),
}

# Method -> settings of merge-models that mean the same as mergekit's parameters.
METHODS: dict[str, tuple[list[str], dict[str, Any]]] = {
    "linear": (["--weights", "0.5,0.5"], {"weight": 0.5}),
    "slerp": (["--set", "lam=0.5"], {"t": 0.5}),
    "task_arithmetic": (["--weights", "0.5,0.5"], {"weight": 0.5}),
    "ties": (["--weights", "0.5,0.5", "--set", "density=0.5"], {"weight": 0.5, "density": 0.5}),
    "dare_ties": (["--weights", "0.5,0.5", "--set", "density=0.5"], {"weight": 0.5, "density": 0.5}),
    "breadcrumbs": (["--weights", "0.5,0.5", "--set", "density=0.5"], {"weight": 0.5, "density": 0.5}),
    "model_stock": ([], {}),
}
WITH_BASE = {"task_arithmetic", "ties", "dare_ties", "breadcrumbs", "model_stock"}


@dataclass(frozen=True)
class Cost:
    """What one command took."""

    wall: float
    cpu: float
    anonymous: float
    peak: float


def make_checkpoint(folder: Path, seed: int, config: dict[str, Any] = BERT, dtype: torch.dtype = torch.float32) -> None:
    """Write a random checkpoint: normal entries, about 1 for the gains of norms and about 0 for all else."""
    from safetensors.torch import save_file

    from merge.checkpoints.transformers_model import meta_model

    generator = torch.Generator().manual_seed(seed)
    shapes = {name: tensor.shape for name, tensor in meta_model(config).state_dict().items()}
    tensors = {name: 0.02 * torch.randn(shape, generator=generator, dtype=dtype) for name, shape in shapes.items()}
    for name in tensors:
        if name.lower().endswith("norm.weight"):
            tensors[name] += 1
    folder.mkdir(parents=True)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")


def measure(command: list[str]) -> Cost:
    """Run one command and return what it took."""
    started = time.perf_counter()
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
        peak, running = [0.0], True

        def watch() -> None:
            status = Path(f"/proc/{process.pid}/status")
            while running:
                try:
                    matches = [line for line in status.read_text().splitlines() if line.startswith("RssAnon")]
                except OSError:
                    return
                if matches:
                    peak[0] = max(peak[0], 1024 * int(matches[0].split()[1]) / 1e6)
                time.sleep(0.01)

        watcher = threading.Thread(target=watch)
        watcher.start()
        _, status, usage = os.wait4(process.pid, 0)
        wall, running = time.perf_counter() - started, False
        watcher.join()
        if status:
            log.seek(0)
            raise SystemExit(f"{shlex.join(command)} failed: {log.read().decode()[-2000:]}")
    return Cost(wall, usage.ru_utime + usage.ru_stime, peak[0], 1024 * usage.ru_maxrss / 1e6)


def commands(method: str, scratch: Path, out: Path, mergekit: str | None) -> dict[str, list[str]]:
    """Return the commands of one round of a method."""
    a, b, base = (scratch / name for name in ("a", "b", "base"))
    flags, parameters = METHODS[method]
    ours = [str(Path(sys.executable).with_name("merge-models")), "-q", str(a), str(b), "--method", method, *flags]
    ours += ["--base", str(base)] if method in WITH_BASE else []
    commands = {"cp": ["cp", "--reflink=never", "-r", str(a), str(out)], "merge-models": [*ours, "-o", str(out)]}
    if mergekit is not None:
        recipe: dict[str, Any] = {"merge_method": method}
        own = {k: v for k, v in parameters.items() if k != "t"}
        recipe["models"] = [{"model": str(m), **({"parameters": own} if own else {})} for m in (a, b)]
        if "t" in parameters:
            recipe["parameters"] = {"t": parameters["t"]}
        if method in WITH_BASE or method == "slerp":
            recipe["base_model"] = str(base if method in WITH_BASE else a)
        path = scratch / f"{method}.yml"
        path.write_text(json.dumps(recipe), encoding="utf-8")  # JSON is YAML
        commands["mergekit"] = [mergekit, str(path), str(out), "--no-write-model-card"]
    return commands


def bench(method: str, scratch: Path, mergekit: str | None, rounds: int) -> None:
    """Run a method's rounds and print its rows."""
    out = scratch / "out"
    rows: dict[str, list[Cost]] = {}
    for number in range(rounds + 1):
        for name, command in commands(method, scratch, out, mergekit).items():
            shutil.rmtree(out, ignore_errors=True)
            cost = measure(command)
            if number:
                rows.setdefault(name, []).append(cost)
    shutil.rmtree(out, ignore_errors=True)
    for name, costs in rows.items():
        wall, cpu = (statistics.median(getattr(cost, key) for cost in costs) for key in ("wall", "cpu"))
        anonymous, peak = (statistics.median(getattr(cost, key) for cost in costs) for key in ("anonymous", "peak"))
        own = rows["merge-models"]
        ratio = statistics.median(cost.wall / mine.wall for cost, mine in zip(costs, own, strict=True))
        ratio_cpu = statistics.median(cost.cpu / mine.cpu for cost, mine in zip(costs, own, strict=True))
        print(
            f"{method:<16} {name:<13} {wall:>7.2f} {cpu:>7.2f} {anonymous:>9.0f} {peak:>8.0f} {ratio:>8.2f} {ratio_cpu:>8.2f}",
            flush=True,
        )


def main() -> None:
    """Build, run in turn, print medians and ratios."""
    parser = make_parser(__doc__)
    parser.add_argument("--model", choices=MODELS, default="bert")
    parser.add_argument("--methods", default="linear,slerp,task_arithmetic,ties", help=f"of {', '.join(METHODS)}")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--mergekit", help="path of mergekit-yaml")
    parser.add_argument("--scratch", type=Path, default=Path(tempfile.gettempdir()) / "merge-models-benchmark")
    args = parse(parser)
    config, dtype = MODELS[args.model]
    scratch = args.scratch / args.model
    for seed, name in enumerate(("base", "a", "b")):
        if not (scratch / name).is_dir():
            make_checkpoint(scratch / name, seed, config, dtype)
    size = (scratch / "a" / "model.safetensors").stat().st_size
    print(f"{args.model}, {size / 1e6:.0f} MB a model, {str(dtype).removeprefix('torch.')}, {os.cpu_count()} cores")
    print(f"medians of {args.rounds} interleaved rounds; ratios are to merge-models within a round")
    print(
        f"{'method':<16} {'command':<13} {'wall s':>7} {'CPU s':>7} {'anon. MB':>9} {'peak MB':>8} {'wall x':>8} {'CPU x':>8}"
    )
    for method in args.methods.split(","):
        bench(method, scratch, args.mergekit, args.rounds)


if __name__ == "__main__":
    run_main(main)
