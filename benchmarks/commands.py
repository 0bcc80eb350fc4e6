"""Time whole commands on two BERT-base models (110 million parameters), as a user types them.

    python benchmarks/commands.py                       # weights without and with a tokenizer, activations, auto
    python benchmarks/commands.py --cases weights auto
    python benchmarks/commands.py --keep                # leaves models and outputs in --scratch

The models are random, made once and left in --scratch: b is a moved by a random permutation of BERT's axes, with noise of
half a tensor's standard deviation. The text is made of words of their vocabulary: about 8,192 tokens, and 1,024 in a short
one. Each command runs in a process of its own with an empty cache. Printed are CPU seconds (user and system, of the process
and its children), wall seconds, the peak of resident memory (the maximum resident set size, which counts memory-mapped files
that were read; GB are 10^9 bytes), and the share of each phase in the CPU seconds, which the command itself prints with -v.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from command_line import make_parser, parse, run_main

TOKENS, SHORT_TOKENS = 8192, 1024
# Case -> (folder suffix, arguments).
CASES: dict[str, tuple[str, list[str]]] = {
    "average": ("", []),
    "weights": ("-bare", ["--align", "weights"]),
    "weights, choosing axes on the text": ("", ["--align", "weights", "--text", "TEXT"]),
    "activations": ("", ["--align", "activations", "--text", "TEXT"]),
    "auto": ("", ["--align", "auto", "--text", "TEXT"]),
    "auto, short text": ("", ["--align", "auto", "--text", "SHORT"]),
}
PHASE = re.compile(r"phase +([\d.]+) CPU s +([\d.]+)% +([\d.]+) s  (.*)")


def make(scratch: Path) -> None:
    """Make the models of `benchmarks/align_speed.py`, give them a tokenizer, and write a text of its words."""
    from align_speed import CONFIG, make_models

    (scratch / "align").mkdir(parents=True, exist_ok=True)
    make_models(scratch / "align")
    generator = random.Random(0)
    syllables = [a + b for a in "bdfgklmnprstvz" for b in "aeiou"]
    words = sorted({"".join(generator.choices(syllables, k=generator.randint(2, 4))) for _ in range(20_000)})
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    unused = [f"[unused{k}]" for k in range(int(CONFIG["vocab_size"]) - len(special) - len(words))]
    settings = {"tokenizer_class": "BertTokenizer", "do_lower_case": True, "model_max_length": 512}
    for name, source in (("a", "a"), ("b", "planted, noise .5")):
        for folder in (scratch / name, scratch / f"{name}-bare"):
            folder.mkdir(parents=True, exist_ok=True)
            link = folder / "model.safetensors"
            if not link.exists():
                os.link(scratch / "align" / source / "model.safetensors", link)
            (folder / "config.json").write_text(json.dumps(CONFIG), encoding="utf-8")
        (scratch / name / "vocab.txt").write_text("\n".join([*special, *words, *unused]) + "\n", encoding="utf-8")
        (scratch / name / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
    texts = [" ".join(generator.choices(words, k=30)) for _ in range(TOKENS // 32)]
    (scratch / "text.txt").write_text("\n".join(texts) + "\n", encoding="utf-8")


def bench(scratch: Path, case: str) -> None:
    """Run one command and print its row and its phases."""
    suffix, arguments = CASES[case]
    texts = {"TEXT": str(scratch / "text.txt"), "SHORT": str(scratch / "short.txt")}
    lines = (scratch / "text.txt").read_text(encoding="utf-8").splitlines(keepends=True)
    (scratch / "short.txt").write_text("".join(lines[: SHORT_TOKENS // 32]), encoding="utf-8")
    arguments = [texts.get(word, word) for word in arguments]
    models = [str(scratch / f"{name}{suffix}") for name in "ab"]
    command = [str(Path(sys.executable).with_name("merge-models")), *models, *arguments, "-v", "--force"]
    with tempfile.TemporaryDirectory() as cache, tempfile.TemporaryFile() as log:
        environment = {**os.environ, "MERGE_MODELS_CACHE": cache}
        process = subprocess.Popen([*command, "-o", str(scratch / "out")], env=environment, stdout=log, stderr=log)
        _, status, usage = os.wait4(process.pid, 0)
        log.seek(0)
        lines = log.read().decode().splitlines()
    if status:
        raise SystemExit("\n".join(lines[-20:]))
    phases = [match.groups() for match in map(PHASE.fullmatch, lines) if match]
    wall = sum(float(seconds) for _, _, seconds, _ in phases)
    cpu, peak = usage.ru_utime + usage.ru_stime, 1024 * usage.ru_maxrss / 1e9
    print(f"{case}: {cpu:.1f} CPU s, {wall:.1f} s, peak {peak:.2f} GB", flush=True)
    for seconds, share, _, name in phases:
        print(f"    {float(seconds):7.1f} CPU s  {float(share):5.1f} %  {name}", flush=True)


def main() -> None:
    """Make the models, run each command once, print."""
    parser = make_parser(__doc__)
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--make", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--keep", action="store_true", help="leave the last output")
    parser.add_argument(
        "--scratch", type=Path, default=Path(tempfile.gettempdir()) / "merge-models-benchmark" / "commands"
    )
    args = parse(parser)
    if args.make:
        make(args.scratch)
        return
    # In a process of its own: the peak memory of a command counts that of the process which starts it.
    if not (args.scratch / "text.txt").is_file():
        subprocess.run([sys.executable, __file__, "--make", "--scratch", str(args.scratch)], check=True)
    load = os.getloadavg()[0]
    print(f"BERT-base, float32, {os.cpu_count()} cores, load {load:.1f}; text of about {TOKENS} tokens", flush=True)
    for case in args.cases:
        bench(args.scratch, case)
    if not args.keep:
        shutil.rmtree(args.scratch / "out", ignore_errors=True)


if __name__ == "__main__":
    run_main(main)
