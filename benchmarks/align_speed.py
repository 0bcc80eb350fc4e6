"""Time alignment of two BERT-base models, beside a plain port of Git Re-Basin's weight matching.

    python benchmarks/align_speed.py                        # weights: planted, planted with noise, independent
    python benchmarks/align_speed.py --full                 # the port runs to its end too (minutes a case)
    python benchmarks/align_speed.py --activations 8192     # activation matching on so many tokens as well

Models are random, made once and left in --scratch: b is a moved by a random element of BERT's symmetries, without and
with noise of half a tensor's standard deviation, or of another seed. Both are read memory-mapped, each command in a
process of its own, in turn within a round. Printed are medians: CPU seconds (user and system) and wall seconds of the
matching alone, the peak of anonymous memory of the whole process (memory-mapped inputs are the page cache's), the
sweeps, and the share of units that stand where the planted answer wants them. The port's row is extrapolated unless
--full: it times one update each of the residual, of one layer's feed-forward units, of its queries and of its values,
and adds up a sweep of 37 axes. Ratios of CPU seconds are to a whole run of ours: the port's one sweep, of the two or
three that it takes.

With --updates a second table: one update of the residual, which the port begins anew each time. Ours remembers the
products of what has not moved since: timed are the first update, where there is nothing to remember, and updates after
one layer's heads, one layer's feed-forward units, or all heads have moved. That remembered products and new ones find
the same order is checked.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from command_line import make_parser, parse, run_main
from merge_speed import BERT, make_checkpoint, measure

CASES = {"planted": 0.0, "planted, noise .5": 0.5, "independent": None}
CONFIG = {**BERT, "max_position_embeddings": 512, "type_vocab_size": 2}


def make_models(scratch: Path) -> None:
    """Write a, and b for every case with the permutation that brings it back."""
    from safetensors.torch import load_file, save_file

    from merge.symmetry.architectures import spec_for
    from merge.symmetry.permutation import apply, inverse, random, restrict
    from merge.symmetry.transform import Transform
    from merge.symmetry.transform_files import save_transform

    spec = spec_for(CONFIG)
    for name, seed in (("a", 0), ("independent", 1)):
        if not (scratch / name).is_dir():
            make_checkpoint(scratch / name, seed, CONFIG)
    a = load_file(scratch / "a" / "model.safetensors")
    shapes = {name: tuple(tensor.shape) for name, tensor in a.items()}
    for case, noise in CASES.items():
        if noise is None or (scratch / case).is_dir():
            continue
        generator = torch.Generator().manual_seed(7)
        drawn = random(spec, shapes, generator)
        planted = restrict(drawn, set(drawn.indices) - spec.named)
        jittered = {n: t + noise * t.std() * torch.randn(t.shape, generator=generator) for n, t in a.items()}
        (scratch / case).mkdir()
        moved = {name: tensor.contiguous() for name, tensor in apply(spec, planted, jittered).items()}
        save_file(moved, scratch / case / "model.safetensors")
        save_transform(spec, Transform(inverse(planted), {}), scratch / case / "planted.safetensors")


def ours(scratch: Path, case: str, by: str, tokens: int) -> dict[str, Any]:
    """Match with merge-models and return the figures."""
    from safetensors.torch import load_file

    from merge.alignment.matchers import aligner
    from merge.alignment.pair import Pair
    from merge.symmetry.architectures import spec_for
    from merge.symmetry.transform_files import load_transform

    a, b = (load_file(scratch / name / "model.safetensors") for name in ("a", case))
    generator = torch.Generator().manual_seed(3)
    ids = torch.randint(1000, 30000, (max(tokens // 128, 1), 128), generator=generator)
    batches = tuple(
        {"input_ids": part, "attention_mask": torch.ones_like(part), "token_type_ids": torch.zeros_like(part)}
        for part in ids.split(8)
    )
    pair = Pair(spec_for(CONFIG), a, b, CONFIG, str, batches if by == "activations" else ())
    started, cpu = time.perf_counter(), time.process_time()
    alignment = aligner(by)(pair)(frozenset(pair.kinds()))
    cost = {"wall": time.perf_counter() - started, "cpu": time.process_time() - cpu}
    answer = scratch / case / "planted.safetensors"
    right = None
    if answer.is_file():
        wanted = load_transform(pair.spec, answer).permutation.indices
        equal = [alignment.permutation.indices[axis] == index for axis, index in wanted.items()]
        right = sum(int(e.sum()) for e in equal) / sum(e.numel() for e in equal)
    return cost | {"sweeps": len(alignment.objective) - 1, "right": right, "objective": alignment.objective}


def port(scratch: Path, case: str, full: bool) -> dict[str, Any]:
    """Run the port to its end, or one update of each kind, and return its cost."""
    from git_re_basin import bert_axes, start, update, weight_matching
    from safetensors.numpy import load_file

    layers = int(CONFIG["num_hidden_layers"])
    axes = bert_axes(layers)
    a, b = (load_file(scratch / name / "model.safetensors") for name in ("a", case))
    started, cpu = time.perf_counter(), time.process_time()
    if full:
        _, sweeps = weight_matching(axes, a, b)
        return {
            "wall": time.perf_counter() - started,
            "cpu": time.process_time() - cpu,
            "sweeps": sweeps,
            "right": None,
        }
    orders, total = start(axes, a), {"wall": 0.0, "cpu": 0.0}
    for axis, times in (("residual", 1), ("ffn0", layers), ("qk0", layers), ("vo0", layers)):
        started, cpu = time.perf_counter(), time.process_time()
        update(axes, orders, axis, a, b)
        total["wall"] += times * (time.perf_counter() - started)
        total["cpu"] += times * (time.process_time() - cpu)
    return total | {"sweeps": 1, "right": None}


def residual_updates(scratch: Path, case: str) -> dict[str, Any]:
    """Return the CPU seconds of one update of the residual: ours by what has moved since the last, and the port's."""
    import git_re_basin
    from safetensors.torch import load_file

    from merge.alignment.pair import Pair
    from merge.alignment.solvers.assignment import match_axis
    from merge.alignment.solvers.objective import Objective, weights_of
    from merge.symmetry.architectures import spec_for
    from merge.symmetry.permutation import Permutation, identity, random

    a, b = (load_file(scratch / name / "model.safetensors") for name in ("a", case))
    pair = Pair(spec_for(CONFIG), a, b, CONFIG, str, ())
    weights, movable = weights_of(pair), pair.axes_of(frozenset(pair.kinds()))
    objective, layers = Objective(pair, weights, movable), int(CONFIG["num_hidden_layers"])
    p, generator = identity(pair.spec, pair.shapes), torch.Generator().manual_seed(5)
    heads = [f"{axis}{layer}" for layer in range(layers) for axis in ("heads", "qk", "v")]
    moved = {
        "first": (),
        "one layer's heads moved": heads[:3],
        "one layer's units moved": ("ffn5",),
        "all heads moved": heads,
    }
    cost: dict[str, float] = {}
    for name, some in moved.items():
        drawn = random(pair.spec, pair.shapes, generator)
        p = Permutation({**p.indices, **{axis: drawn.indices[axis] for axis in some}}, p.outer)
        started = time.process_time()
        gain = objective.gains("residual", p)[("residual",)]
        matching = match_axis(gain)
        cost[name] = time.process_time() - started
    anew = Objective(pair, weights, movable).gains("residual", p)[("residual",)]
    if not torch.equal(match_axis(anew), matching):
        raise SystemExit("remembered products and new ones do not find the same order")

    axes = git_re_basin.bert_axes(layers)
    reference, other = ({name: tensor.numpy() for name, tensor in side.items()} for side in (a, b))
    orders = git_re_basin.start(axes, reference)
    started = time.process_time()
    git_re_basin.update(axes, orders, "residual", reference, other)
    return cost | {"the port's": time.process_time() - started}


def print_updates(scratch: Path, cases: list[str], rounds: int) -> None:
    """Print a row for every case and kind of update, with its ratio to the port's."""
    print(f"\n{'case':<18} {'update of the residual':<24} {'CPU s':>7} {'port x':>7}")
    for case in cases:
        measured = [run(scratch, case, "updates", 0) for _ in range(rounds)]
        for name in (name for name in measured[0] if name != "anonymous"):
            cost = statistics.median(row[name] for row in measured)
            ratio = statistics.median(row["the port's"] / row[name] for row in measured)
            print(f"{case:<18} {name:<24} {cost:>7.2f} {ratio:>7.1f}", flush=True)


def run(scratch: Path, case: str, what: str, tokens: int) -> dict[str, Any]:
    """Measure one command in a process of its own."""
    result = scratch / "result.json"
    worker = [sys.executable, __file__, "--scratch", str(scratch), "--tokens", str(tokens), "--worker", case, what]
    cost = measure([*worker, str(result)])
    return {**json.loads(result.read_text(encoding="utf-8")), "anonymous": cost.anonymous}


def work(scratch: Path, case: str, what: str, tokens: int) -> dict[str, Any]:
    if what == "updates":
        return residual_updates(scratch, case)
    if what.startswith("port"):
        return port(scratch, case, what == "port, whole run")
    return ours(scratch, case, what, tokens)


def bench(scratch: Path, commands: list[str], cases: list[str], rounds: int, tokens: int) -> None:
    """Run the rounds and print a row for every case and command."""
    print(
        f"BERT-base, float32, {os.cpu_count()} cores, {torch.get_num_threads()} threads; medians of {rounds} interleaved rounds"
    )
    head = f"{'case':<18} {'command':<18} {'CPU s':>7} {'wall s':>7} {'anon. MB':>9} {'sweeps':>6} {'right':>6} {'CPU x':>6}"
    print(head, flush=True)
    for case in cases:
        rows: dict[str, list[dict[str, Any]]] = {name: [] for name in commands}
        for _ in range(rounds):
            for name in commands:
                rows[name].append(run(scratch, case, name, tokens))
        for name, costs in rows.items():
            cpu, wall, anonymous = (
                statistics.median(row[key] for row in costs) for key in ("cpu", "wall", "anonymous")
            )
            ratio = statistics.median(r["cpu"] / o["cpu"] for r, o in zip(costs, rows["weights"], strict=True))
            right = "-" if costs[0]["right"] is None else f"{costs[0]['right']:.1%}"
            print(
                f"{case:<18} {name:<18} {cpu:>7.1f} {wall:>7.1f} {anonymous:>9.0f} "
                f"{costs[0]['sweeps']:>6} {right:>6} {ratio:>6.2f}",
                flush=True,
            )


def main() -> None:
    """Make the models, run in turn, print medians and ratios."""
    parser = make_parser(__doc__)
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--full", action="store_true", help="run the port to its end")
    parser.add_argument("--updates", action="store_true", help="time single updates of the residual too")
    parser.add_argument("--activations", type=int, metavar="TOKENS", help="match by activations too")
    parser.add_argument(
        "--scratch", type=Path, default=Path(tempfile.gettempdir()) / "merge-models-benchmark" / "align"
    )
    parser.add_argument("--tokens", type=int, default=0, help=argparse.SUPPRESS)
    parser.add_argument("--worker", nargs=3, help=argparse.SUPPRESS)
    args = parse(parser)
    if args.worker:
        case, what, result = args.worker
        Path(result).write_text(json.dumps(work(args.scratch, case, what, args.tokens)), encoding="utf-8")
        return
    args.scratch.mkdir(parents=True, exist_ok=True)
    make_models(args.scratch)
    whats = ["weights", "port, whole run" if args.full else "port, one sweep"]
    bench(
        args.scratch,
        whats + (["activations"] if args.activations else []),
        args.cases,
        args.rounds,
        args.activations or 0,
    )
    if args.updates:
        print_updates(args.scratch, args.cases, args.rounds)


if __name__ == "__main__":
    run_main(main)
