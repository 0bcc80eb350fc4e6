"""Edited all-MiniLM-L6-v2 on STS-B, beside the figures that were measured by hand before: layers, strategies, repairs.

    python benchmarks/layers_minilm.py [--data ../shared/data] [--only drops,strategies,...]

Plans, strategies and repairs are those of edit-layers. Layers that are copies run one by one, and models that begin alike
share their beginning; every part first checks one such model, to the last bit, against the one that edit-layers makes. What
is named AutoModel is written to the disk and loaded by transformers. Scores are Spearman correlations: of all 1500
development pairs (drops), else of 250 of them. Expected figures are within .005; fits read both sentences of 400 training pairs.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from itertools import combinations

import numpy as np
import torch
from command_line import add_data, add_parts, make_parser, parse, run_main
from minilm_fits import affine, headline, healing, repairs, tokens
from minilm_layers import LAYERS, Bench, Pairs
from scipy.stats import kendalltau, spearmanr

from merge.layers.activations import live_layers
from merge.layers.plans.positions import dropped_layers
from merge.layers.plans.text import parse_plan
from merge.layers.strategies.agreement import floor_embeddings
from merge.layers.strategies.choose import read_batches
from merge.layers.strategies.measures import measure_layers
from merge.layers.strategies.search import search_layers


def drops(bench: Bench) -> None:
    """Each layer dropped and doubled, on all pairs."""
    bench.check((0, 1, 3, 4, 5))
    pairs = Pairs(bench.folder, bench.dev, bench.live)
    full = pairs.run(bench.layers(range(LAYERS)))
    bench.line("full model, 1500 pairs", pairs.score(full), 0.8672)
    rows = bench.some.encoded.rows
    floor = floor_embeddings(live_layers(bench.live), bench.some.encoded.batches)
    order = torch.tensor([row for batch in rows for row in batch]).argsort()
    bench.line("no layer, 250 pairs", bench.some.score(floor[order]), 0.6365)
    published = (0.8362, 0.8578, 0.8666, 0.8636, 0.8589, 0.7625)
    doubled = (0.8627, 0.8661, 0.8612, 0.8640, 0.8564, 0.8575)
    scores, cosines = [], []
    for layer in range(LAYERS):
        embeddings = pairs.run(bench.layers([k for k in range(LAYERS) if k != layer]))
        scores.append(pairs.score(embeddings))
        cosines.append(float(torch.cosine_similarity(embeddings, full).mean()))
        bench.line(f"drop {layer}", scores[-1], published[layer])
        twice = [*range(layer + 1), *range(layer, LAYERS)]
        bench.line(f"double {layer}", pairs.score(pairs.run(bench.layers(twice))), doubled[layer])
    bench.row("cosine to the full model", cosines, (0.787, 0.919, 0.928, 0.915, 0.831, 0.405))
    agreement = [
        bench.agreement(bench.some.run(bench.layers([k for k in range(LAYERS) if k != layer])))
        for layer in range(LAYERS)
    ]
    bench.row(
        "rsa to the full model, 250 pairs", [rsa for _, rsa in agreement], (0.651, 0.819, 0.836, 0.794, 0.694, 0.397)
    )
    influence = (0.135, 0.122, 0.128, 0.137, 0.185, 0.427)
    lost = [-spearmanr(influence, values).statistic for values in (scores, cosines)]
    bench.row("rank correlation with block influence", lost, (0.37, 0.77))


def measures(bench: Bench) -> None:
    """The measures of strategies, of one pass over all pairs; linear fit over the text of fits."""
    pairs = Pairs(bench.folder, bench.dev, bench.live)
    live = live_layers(bench.live)
    measured = measure_layers(live, pairs.encoded.batches, 2)
    bench.row("block influence", measured.block_influence, (0.135, 0.122, 0.128, 0.137, 0.185, 0.427))
    bench.row("relative norm", measured.relative_norm, (0.655, 0.478, 0.489, 0.525, 0.545, 0.845))
    bench.row("angular, 2 layers", measured.angular, (0.243, 0.225, 0.213, 0.237, 0.331))
    batches = read_batches(bench.models[0], bench.text, "", "a fit")[0]
    one, two = (measure_layers(live, batches, block).linear_fit for block in (1, 2))
    bench.row("linear fit R2, 1 layer", one, (0.909, 0.884, 0.894, 0.912, 0.886, 0.668))
    bench.row("linear fit R2, 2 layers", two, (0.796, 0.801, 0.846, 0.835, 0.574))


def strategies(bench: Bench) -> None:
    """Named strategies, without training."""
    published = {
        ("top", 1): 0.7287, ("top", 2): 0.6334, ("top", 3): 0.5868, ("bottom", 1): 0.8284, ("bottom", 2): 0.8159,
        ("bottom", 3): 0.7896, ("bottom", 4): 0.7696, ("bottom", 5): 0.7167, ("even", 2): 0.6907, ("odd", 2): 0.8351,
        ("symmetric", 2): 0.8295, ("symmetric", 4): 0.7681, ("odd", 3): 0.7265, ("even", 3): 0.7108,
    }  # fmt: skip
    bench.check((4, 5))
    for (name, count), due in published.items():
        dropped = dropped_layers(name, count, LAYERS)
        kept = tuple(layer for layer in range(LAYERS) if layer not in dropped)
        bench.line(f"{name} {count}, kept {kept}", bench.kept(kept), due)
    for count, due in ((1, 0.8461), (2, 0.8260), (3, 0.7896)):
        influence = (0.135, 0.122, 0.128, 0.137, 0.185, 0.427)
        kept = tuple(sorted(sorted(range(LAYERS), key=influence.__getitem__)[count:]))
        bench.line(f"block influence {count}, kept {kept}", bench.kept(kept), due)


def exhaustive(bench: Bench) -> None:
    """The best of all choices by the labels, and what greedy, beam and one-shot find."""
    bench.check((0, 4, 5))
    published = {5: ((0, 1, 3, 4, 5), 0.8614), 4: ((0, 2, 3, 5), 0.8408), 3: ((0, 4, 5), 0.8161), 2: ((4, 5), 0.7696)}
    for size, (kept, due) in published.items():
        search = search_layers("exhaustive", bench.kept, LAYERS, LAYERS - size)
        bench.line(
            f"best {size}: {search.kept}", bench.kept(search.kept), due, "" if search.kept == kept else f"due {kept}"
        )
        for how in ("one-shot", "greedy", "beam"):
            searched = search_layers(how, bench.kept, LAYERS, LAYERS - size)
            bench.line(f"  {how}: {searched.kept}", bench.kept(searched.kept), None, f"{len(searched.scores)} scored")


def orders(bench: Bench) -> None:
    """Layers swapped and shuffled: the score falls with the distance."""
    published = {(0, 1): 93.3, (1, 2): 98.4, (2, 3): 98.5, (3, 4): 99.2, (4, 5): 92.9, (0, 5): 65.6}
    bench.check((3, 1, 2, 0, 4, 5))
    by_distance: dict[int, list[float]] = {}
    for first, second in combinations(range(LAYERS), 2):
        order = list(range(LAYERS))
        order[first], order[second] = second, first
        value = bench.kept(tuple(order))
        by_distance.setdefault(second - first, []).append(value)
        due = published.get((first, second))
        bench.line(f"swap {first} and {second}", value, None if due is None else due / 100 * bench.top)
    for distance, due in zip(range(1, LAYERS), (0.833, 0.780, 0.760, 0.726, 0.567), strict=True):
        bench.line(f"mean of swaps at distance {distance}", float(np.mean(by_distance[distance])), due)
    bench.line("reverse", bench.kept(tuple(reversed(range(LAYERS)))), 0.6671)
    generator, taus, values = np.random.RandomState(0), [], []
    for _ in range(24):
        order = tuple(int(layer) for layer in generator.permutation(LAYERS))
        taus.append(kendalltau(order, range(LAYERS)).statistic)
        values.append(bench.kept(order))
    print(
        f"  24 shuffles: correlation of Kendall's tau and score {np.corrcoef(taus, values)[0, 1]:.2f} (other orders: .55)"
    )


def sublayers(bench: Bench) -> None:
    """Attention or the feed-forward part of each layer taken out, by plans; and with the norm after it, in memory alone."""

    class Bypass(torch.nn.Module):
        def forward(self, _inner: torch.Tensor, read: torch.Tensor) -> torch.Tensor:
            return read

    published = {
        "ffn": (99.3, 99.9, 99.9, 98.9, 99.4, 100.0),
        "attention": (98.9, 99.4, 99.7, 99.7, 100.3, 91.9),
        "ffn-norm": (96.8, 96.5, 100.0, 98.4, 90.4, 97.5),
    }
    for part, figures in published.items():
        if part == "ffn-norm":
            model = copy.deepcopy(bench.live)
            for layer in model.encoder.layer:
                layer.output = Bypass()
        else:
            model = bench.model(parse_plan(f"A[0-5]-{part}", ["A"]))
        for number, due in enumerate(figures):
            layers = bench.layers(range(LAYERS))
            layers[number] = (f"{number}-{part}", model.encoder.layer[number])
            embeddings = bench.some.run(layers)
            if part != "ffn-norm" and number == 2:
                plan = parse_plan(f"A[0-1], A[2]-{part}, A[3-5]", ["A"])
                assert torch.equal(embeddings, bench.some.embeddings(bench.model(plan)))
            bench.line(f"A[{number}]-{part}", bench.some.score(embeddings), due / 100 * bench.top)


PARTS: dict[str, Callable[[Bench], None]] = {
    "headline": headline,
    "drops": drops,
    "measures": measures,
    "strategies": strategies,
    "exhaustive": exhaustive,
    "orders": orders,
    "sublayers": sublayers,
    "affine": affine,
    "repairs": repairs,
    "tokens": tokens,
    "healing": healing,
}


def main() -> None:
    parser = make_parser(__doc__)
    add_data(parser)
    add_parts(parser, PARTS)
    arguments = parse(parser)
    torch.set_num_threads(1)
    bench = Bench(arguments.data)
    bench.line("full model, 250 pairs", bench.top, 0.8638)
    for name in arguments.only:
        begun = time.process_time()
        print(f"{name}: {PARTS[name].__doc__}")
        PARTS[name](bench)
        print(f"  {time.process_time() - begun:.0f} CPU s")
    print(f"{bench.shown - bench.off} of {bench.shown} figures within .005 of those measured before")


if __name__ == "__main__":
    run_main(main)
