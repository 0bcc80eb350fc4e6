"""Two fine-tunes of one start are in one basis already: an alignment has to find that out, and leave them there.

    python benchmarks/same_start.py --folder zoo
    python benchmarks/same_start.py --control
    python benchmarks/same_start.py --models A B --rows validation.jsonl.gz --text train.jsonl.gz

Without --models, a classifier is trained on the HANS grammar for a while and goes on from there twice, in another order
of the rows (about half a CPU minute, once). With --models, two classifiers of premise and hypothesis are read; --rows
are labelled by the names of their classes, --text is what they are aligned on; both are JSONL. Printed, for each
aligner over all axes and as `choose` restricts it: the share of units that stay where they are, by kind of axis (heads:
whole heads; inside heads: units in their head), and the loss barrier; then how the matched units correlate on text that
no aligner has seen, which tells moves that the models call for from those of one sample.

With --control, what learned maps win on all pairs of four fine-tunes of one start, which a high rate takes apart, stands
beside what they win on all pairs of four strangers, each of a start of its own (four CPU minutes to train, once, and two for
the table). Beside the barrier are the lowest accuracy on the line, and the KL half way on the text that was learned on and on
text of another domain. A gain that strangers have too, or that other text does not show, is no evidence that a symmetry
separates the fine-tunes.
"""

from __future__ import annotations

import argparse
import gzip
import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from classification_pairs import BATCH, TRAIN_PER_SUBCASE, classifier_config, hans_examples
from command_line import existing, make_parser, parse, run_main
from torch import Tensor
from zoo.board import header
from zoo.line import Contest, Measured, measure
from zoo.methods import Aligned, Method, aligned_by, chosen, matched, naive
from zoo.pairs import open_pair
from zoo.sentences import Examples, labelled_rows, training_batches, word_tokenizer
from zoo.training import Training, trained

from merge.alignment.matchers import PAIRWISE, aligner
from merge.alignment.midpoint import score
from merge.alignment.pair import Pair, Settings
from merge.alignment.solvers.moments import unit_correlations
from merge.checkpoints.inputs import Batch, load_tokenizer, tokenise
from merge.symmetry.transform import Transform

COMMON = Training(steps=400, rate=2e-3, warm_up=120, decay=0.01)
APART = Training(steps=300, rate=1e-3, warm_up=30, decay=0.01)
# For --control: at a rate that takes forks of one start apart, and from random weights.
FAR_APART = Training(steps=300, rate=3e-3, warm_up=30, decay=0.01)
ALONE = Training(steps=700, rate=2e-3, warm_up=120, decay=0.01)


def make_forks(folder: Path) -> tuple[Path, Path]:
    """Return two classifiers that go on from one trained start, each in its own order of the rows."""
    examples = hans_examples(TRAIN_PER_SUBCASE, "train")
    tokenizer = word_tokenizer(examples.texts)
    batches, config = training_batches(tokenizer, examples, BATCH), classifier_config(len(tokenizer))
    start = trained(folder / "fork-start", config, COMMON, 0, batches, tokenizer=tokenizer)
    a, b = (
        trained(folder / f"fork-{seed}", config, APART, seed, batches, start=start.folder, tokenizer=tokenizer)
        for seed in (1, 2)
    )
    return a.folder, b.folder


def read_pairs(path: Path, labels: Mapping[str, int], count: int) -> Examples:
    """Return a random part of a JSONL file of premise, hypothesis and the name of a class."""
    with gzip.open(path, "rt") if path.suffix == ".gz" else path.open(encoding="utf-8") as file:
        rows = [json.loads(line) for line in file]
    random.Random(0).shuffle(rows)
    texts = tuple((row["premise"], row["hypothesis"]) for row in rows[:count])
    return Examples(texts, tuple(labels[row["label"]] for row in rows[:count]), tuple(labels))


def stay(pair: Pair, transform: Transform) -> dict[str, float]:
    """Return kind of axis -> share of its units that stay where they are."""
    totals: dict[str, tuple[int, int]] = {}
    for axis, (gone, units) in transform.permutation.moved().items():
        if axis not in pair.spec.named:
            kind = f"inside {pair.spec.kind(axis)}" if axis in transform.permutation.outer else pair.spec.kind(axis)
            old = totals.get(kind, (0, 0))
            totals[kind] = (old[0] + gone, old[1] + units)
    return {kind: 1 - gone / units for kind, (gone, units) in totals.items()}


def control_models(folder: Path, count: int) -> dict[str, list[Path]]:
    """Return forks of one start that a high rate takes apart, and strangers: as many classifiers of starts of their own."""
    examples = hans_examples(TRAIN_PER_SUBCASE, "train")
    tokenizer = word_tokenizer(examples.texts)
    batches, config = training_batches(tokenizer, examples, BATCH), classifier_config(len(tokenizer))
    start = trained(folder / "fork-start", config, COMMON, 0, batches, tokenizer=tokenizer).folder

    def classifier(name: str, training: Training, seed: int, begin: Path | None = None) -> Path:
        return trained(folder / name, config, training, seed, batches, start=begin, tokenizer=tokenizer).folder

    return {
        "one start": [classifier(f"far-{seed}", FAR_APART, seed, start) for seed in range(1, count + 1)],
        "strangers": [classifier(f"stranger-{seed}", ALONE, seed) for seed in range(11, 11 + count)],
    }


def print_control(folder: Path, models: int, count: int, samples: int, points: int, steps: int) -> None:
    """Print what learned maps win on all pairs of forks of one start, and on all pairs of strangers."""
    folders, examples = control_models(folder, models), hans_examples(TRAIN_PER_SUBCASE, "train")
    tokenizer: Any = load_tokenizer(folders["strangers"][0])
    config = classifier_config(len(tokenizer))
    rows = labelled_rows(tokenizer, hans_examples(count // 30, "evaluation"))
    own = tokenise(tokenizer, examples.texts[:samples], config)[0]
    # Words of the same vocabulary in random order, by no grammar.
    words = random.Random(0)
    shuffled = [tuple(" ".join(words.sample(t.split(), len(t.split()))) for t in text) for text in examples.texts]
    other = tokenise(tokenizer, shuffled[samples : 2 * samples], config)[0]
    titles = ("barrier", "least accuracy", "KL, own text", "KL, other text")
    print(f"{'':<17}" + "".join(f"{title:>17}" for title in titles))
    print(f"{'pair':<17}" + f"{'none':>9}{'maps':>8}" * len(titles))
    for kind, some in folders.items():
        table = []
        for (k, a), (n, b) in combinations(enumerate(some), 2):
            contest = Contest(open_pair(a, b, own), rows)
            figures = [_control_figures(contest, method, points, other) for method in (naive, learned_maps(steps))]
            table.append([value for each in zip(*figures, strict=True) for value in each])
            _print_control_row(f"{kind} {k}-{n}", table[-1])
        _print_control_row("mean", [fmean(column) for column in zip(*table, strict=True)])


def _print_control_row(name: str, figures: Sequence[float]) -> None:
    print(f"{name:<17}" + "".join(f"{value:{9 - k % 2}.3f}" for k, value in enumerate(figures)), flush=True)


def _control_figures(contest: Contest, method: Method, points: int, other: tuple[Batch, ...]) -> tuple[float, ...]:
    """Return the barrier, the least accuracy on the line, and the KL half way on the pair's text and on other text."""
    measured = measure("", method, contest, points)
    transform = measured.aligned.transform
    assert transform is not None
    texts = (contest.pair.batches, other)
    values = [score([transform], replace(contest.pair, batches=text))[0][0] for text in texts]
    return measured.raw.barrier, min(measured.raw.accuracy), *values


def learned_maps(steps: int) -> Method:
    """Return the method that learns exact maps from the identity, without labels."""

    def method(pair: Pair) -> Aligned:
        pair = replace(pair, settings=Settings(steps=steps))
        return aligned_by(pair, aligner("learned")(pair)(frozenset(pair.kinds())))

    return method


def print_rows(pair: Pair, results: Mapping[str, Measured]) -> None:
    """Print the table."""
    shares = {n: stay(pair, m.aligned.transform) for n, m in results.items() if m.aligned.transform is not None}
    kinds = list(shares["naive"])
    print(f"\n{'share of units that stay':<28}" + "".join(f"{kind:>14}" for kind in kinds), end="")
    print("    barrier  half way  accuracy   changed  kept")
    for name, measured in results.items():
        line = f"{name:<28}" + "".join(f"{shares[name][kind]:14.3f}" for kind in kinds)
        middle = len(measured.raw.accuracy) // 2
        barrier, accuracy = measured.raw.barrier, measured.raw.accuracy[middle]
        line += f"    {barrier:7.4f}  {measured.midpoint:8.4f}  {accuracy:8.3f}   {measured.changed:7.1e}"
        print(f"{line}  {measured.note}", flush=True)


def print_correlations(results: Mapping[str, Measured], batches: tuple[Batch, ...]) -> None:
    """Print how the units correlate on these batches that each method has matched, by kind of axis."""
    rows: dict[str, dict[str, list[Tensor]]] = {}
    for name, measured in results.items():
        pair = replace(measured.aligned.pair, batches=batches)
        for view, correlation in unit_correlations(pair).items():
            kind = pair.spec.kind(view.names[0])
            rows.setdefault(name, {}).setdefault(kind, []).append(correlation.diagonal())
    print(f"\n{'correlation, other text':<28}" + "".join(f"{kind:>14}" for kind in rows["naive"]))
    for name, row in rows.items():
        print(f"{name:<28}" + "".join(f"{float(torch.cat(units).mean()):14.3f}" for units in row.values()), flush=True)


def open_contest(args: argparse.Namespace) -> tuple[Contest, tuple[Batch, ...]]:
    """Return the two fine-tunes and the rows to measure them on; and text that they are not aligned on."""
    a, b = args.models or make_forks(args.folder)
    tokenizer: Any = load_tokenizer(a)
    pair = open_pair(a, b, ())
    if args.models:
        labels = {name: int(i) for i, name in pair.config["id2label"].items()}
        rows, texts = read_pairs(args.rows, labels, args.count), read_pairs(args.text, labels, 2 * args.samples).texts
    else:
        rows = hans_examples(args.count // 30, "evaluation")
        texts = hans_examples(TRAIN_PER_SUBCASE, "train").texts[: 2 * args.samples]
    batches, other = (
        tokenise(tokenizer, some, pair.config)[0] for some in (texts[: args.samples], texts[args.samples :])
    )
    return Contest(replace(pair, batches=batches), labelled_rows(tokenizer, rows)), other


def main() -> None:
    """Read or train the fine-tunes and print the table."""
    parser = make_parser(__doc__)
    parser.add_argument("--folder", type=Path, default=Path("zoo"), help="where made models are kept (default: zoo)")
    parser.add_argument(
        "--models", nargs=2, type=Path, metavar=("A", "B"), help="folders of two fine-tunes of one start"
    )
    parser.add_argument("--rows", type=existing, help="with --models: labelled pairs to measure on")
    parser.add_argument("--text", type=existing, help="with --models: pairs to align on")
    parser.add_argument("--count", type=int, default=1500, help="rows measured on (default: 1500)")
    parser.add_argument("--samples", type=int, default=512, help="pairs aligned on (default: 512)")
    parser.add_argument(
        "--aligners",
        nargs="+",
        choices=PAIRWISE,
        default=["weights", "activations+weights", "activations"],
        help="default: weights activations+weights activations",
    )
    parser.add_argument("--points", type=int, default=5, help="models on the line, ends included (default: 5)")
    parser.add_argument(
        "--control", action="store_true", help="learned maps on fine-tunes of one start, and on strangers"
    )
    parser.add_argument("--steps", type=int, default=100, help="with --control: of learning (default: 100)")
    parser.add_argument(
        "--models-each", type=int, default=4, help="with --control: of one start, and strangers (default: 4)"
    )
    args = parse(parser)
    if args.models and not (args.rows and args.text):
        parser.error("--models needs --rows and --text")

    torch.set_num_threads(1)
    args.folder.mkdir(parents=True, exist_ok=True)
    if args.control:
        print_control(args.folder, args.models_each, args.count, args.samples, args.points, args.steps)
        return
    contest, other = open_contest(args)
    methods: dict[str, Method] = {"naive": naive}
    for by in args.aligners:
        methods |= {f"{by}: all": matched(by), f"{by}: chosen": chosen(by)}
    print(header())
    results = {name: measure(name, method, contest, args.points) for name, method in methods.items()}
    print_rows(contest.pair, results)
    print_correlations(results, other)


if __name__ == "__main__":
    run_main(main)
