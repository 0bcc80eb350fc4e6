"""Many models in one basis: aligned jointly through a universe, or each to a reference.

    python benchmarks/many_models.py --folder zoo

The toy BERTs of toy_bench.py, three and five seeds of them. Printed for each: the loss at the midpoint of two models,
mean over all pairs, the loss of the average of all models, and CPU seconds. A reference alignment aligns every model to
one of them by weights, and is printed for every choice of the reference; the universe has none. Nothing here reads
text.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from statistics import fmean

import torch
from command_line import make_parser, parse, run_main
from torch import Tensor
from toy_bench import evaluation_rows, train_toy
from zoo.board import header
from zoo.characters import hans_characters
from zoo.line import all_labelled_logits
from zoo.pairs import open_pair

from merge.alignment.matchers import aligner
from merge.alignment.pair import Alignment, Pair
from merge.checkpoints.inputs import Batch
from merge.symmetry.canonical import canonical_weights
from merge.symmetry.permutation import apply

COUNTS = (3, 5)

Tensors = Mapping[str, Tensor]


def matched_to(
    reference: int, pairs: Mapping[tuple[int, int], Pair], models: Sequence[Tensors], by: str
) -> list[Tensors]:
    """Return all the models in the units of one of them; they are compared in canonical form."""
    others = [k for k in range(len(models)) if k != reference]
    forms = [_canonical(pairs[reference, k]) for k in others]
    kinds = frozenset(forms[0].kinds())
    if by == "universe":
        alignments: list[Alignment] = aligner(by).align_jointly(forms, kinds)
    else:
        alignments = [aligner(by)(pair)(kinds) for pair in forms]
    placed = list(models)
    for k, one in zip(others, alignments, strict=True):
        placed[k] = apply(forms[0].spec, one.permutation, models[k])
    return placed


def _canonical(pair: Pair) -> Pair:
    a, b = (canonical_weights(pair.spec, pair.config, tensors) for tensors in (pair.a, pair.b))
    return replace(pair, a=a, b=b)


def average(models: Sequence[Tensors]) -> dict[str, Tensor]:
    """Return the mean of the models, tensor by tensor."""
    return {
        name: torch.stack([model[name] for model in models]).mean(0) if tensor.is_floating_point() else tensor
        for name, tensor in models[0].items()
    }


def loss(pair: Pair, tensors: Tensors, rows: Sequence[Batch]) -> float:
    """Return the mean loss of a model with these tensors."""
    logits, labels = all_labelled_logits(pair.model(tensors), rows)
    return float(torch.nn.functional.cross_entropy(logits, labels))


def run_count(count: int, args: argparse.Namespace) -> None:
    """Print the table of so many models."""
    characters = hans_characters(32)
    folders = [train_toy("bert", seed, args.folder, characters).folder for seed in range(count)]
    rows = evaluation_rows(characters, "bert")
    pairs = {(i, j): open_pair(folders[i], folders[j], ()) for i in range(count) for j in range(count) if i != j}
    models: list[Tensors] = [pairs[0, 1].a, *(pairs[0, k].b for k in range(1, count))]
    ends = [loss(pairs[0, 1], model, rows) for model in models]
    print(f"\n{count} models, held-out loss " + " ".join(f"{end:.3f}" for end in ends))
    print(f"{'':<22}{'pairs':>9}{'average':>9}{'CPU s':>8}")
    ways = [("as they are", None, 0), *((f"weights, to {r}", "weights", r) for r in range(count))]
    found = []
    for name, by, reference in [*ways, ("universe", "universe", 0)]:
        started = time.process_time()
        placed = models if by is None else matched_to(reference, pairs, models, by)
        seconds = time.process_time() - started
        middles = [loss(pairs[0, 1], average([placed[i], placed[j]]), rows) for i, j in combinations(range(count), 2)]
        values = (fmean(middles), loss(pairs[0, 1], average(placed), rows))
        if by == "weights":
            found.append(values)
        if by == "universe":
            means = [fmean(column) for column in zip(*found, strict=True)]
            print(f"{'weights, mean':<22}{means[0]:9.3f}{means[1]:9.3f}")
        print(f"{name:<22}{values[0]:9.3f}{values[1]:9.3f}{seconds:8.1f}", flush=True)


def main() -> None:
    """Train or read the toys, and print the tables."""
    parser = make_parser(__doc__)
    parser.add_argument("--folder", type=Path, default=Path("zoo"), help="where the models are kept (default: zoo)")
    parser.add_argument("--counts", nargs="+", type=int, default=COUNTS, help="of models (default: 3 5)")
    args = parse(parser)

    torch.set_num_threads(1)
    args.folder.mkdir(parents=True, exist_ok=True)
    print(header())
    for count in args.counts:
        run_count(count, args)


if __name__ == "__main__":
    run_main(main)
