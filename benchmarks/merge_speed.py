"""Time a merge against copying one of its inputs: the physical limit of writing that much.

    python benchmarks/merge_speed.py                  # BERT-base, float32, linear and slerp
    python benchmarks/merge_speed.py --peer 'mergekit-yaml config.yml {out}'

Builds two random BERT-base checkpoints, then runs `cp`, `merge-models` and the optional peer command in turn, several
rounds, and prints medians: wall seconds, CPU seconds (user and system, start-up included), the peak of anonymous memory
(memory-mapped files are the page cache's), and the ratio of wall time to `cp` within the rounds.
"""

from __future__ import annotations

import argparse
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
from pathlib import Path

import torch

CONFIG = {
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


def make_checkpoint(folder: Path, seed: int) -> None:
    """Write a random BERT-base."""
    from safetensors.torch import save_file

    from merge.model import meta_model

    generator = torch.Generator().manual_seed(seed)
    shapes = {name: tensor.shape for name, tensor in meta_model(CONFIG).state_dict().items()}
    folder.mkdir()
    save_file(
        {name: 0.02 * torch.randn(shape, generator=generator) for name, shape in shapes.items()},
        folder / "model.safetensors",
        metadata={"format": "pt"},
    )
    (folder / "config.json").write_text(json.dumps(CONFIG), encoding="utf-8")


def measure(command: list[str]) -> tuple[float, float, float]:
    """Return wall seconds, CPU seconds and the peak of anonymous memory in MB of one command."""
    begun = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    peak, running = [0.0], True

    def watch() -> None:
        status = Path(f"/proc/{process.pid}/status")
        while running:
            try:
                found = [line for line in status.read_text().splitlines() if line.startswith("RssAnon")]
            except OSError:
                return
            if found:
                peak[0] = max(peak[0], int(found[0].split()[1]) / 1e3)
            time.sleep(0.01)

    watcher = threading.Thread(target=watch)
    watcher.start()
    _, status, usage = os.wait4(process.pid, 0)
    wall, running = time.perf_counter() - begun, False
    watcher.join()
    if status:
        raise SystemExit(f"{shlex.join(command)} failed: {process.stderr.read().decode() if process.stderr else ''}")
    return wall, usage.ru_utime + usage.ru_stime, peak[0]


def main() -> None:
    """Build, run in turn, print medians and ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--peer", help="another command to time; {a}, {b} and {out} are replaced by folders")
    args = parser.parse_args()
    tool = str(Path(sys.executable).with_name("merge-models"))
    with tempfile.TemporaryDirectory() as scratch:
        a, b, out = (Path(scratch) / name for name in ("a", "b", "out"))
        make_checkpoint(a, 0)
        make_checkpoint(b, 1)
        commands = {
            "cp": ["cp", "--reflink=never", "-r", str(a), str(out)],
            "linear": [tool, "-q", str(a), str(b), "-o", str(out)],
            "slerp": [tool, "-q", str(a), str(b), "--method", "slerp", "-o", str(out)],
        }
        if args.peer:
            commands["peer"] = shlex.split(args.peer.format(a=a, b=b, out=out))
        rows: dict[str, list[tuple[float, float, float]]] = {name: [] for name in commands}
        for _ in range(args.rounds):
            for name, command in commands.items():
                shutil.rmtree(out, ignore_errors=True)
                rows[name].append(measure(command))
        size = (a / "model.safetensors").stat().st_size
    print(f"BERT-base, two inputs of {size / 1e6:.0f} MB, medians of {args.rounds} interleaved rounds")
    print(f"{'':8}  wall s   CPU s   anonymous MB   wall / cp")
    for name, found in rows.items():
        wall, cpu, anonymous = (statistics.median(column) for column in zip(*found, strict=True))
        ratio = statistics.median(mine[0] / cp[0] for mine, cp in zip(found, rows["cp"], strict=True))
        print(f"{name:8}  {wall:<6.2f}   {cpu:<5.2f}   {anonymous:<12.0f}   {ratio:.1f}")


if __name__ == "__main__":
    main()
