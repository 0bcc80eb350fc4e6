"""Pairs of classifiers trained from scratch: does the label-free choice of axes find what the labels would?

    python benchmarks/classification_pairs.py --folder zoo

Four BERTs (2 layers, hidden 96, 4 heads, 384 feed-forward units) are trained from four seeds on inference pairs of the
HANS grammar's training half (about 30 CPU seconds each, once). For each pair of them, and for every method and every
candidate that `choose` scores, its labelled loss barrier on the grammar's other half stands beside its label-free score
on random training rows: the KL divergence from the ensemble of the ends to the model half way, and the mean over a
quarter, half and three quarters of the way. Then: how well they go with the barrier, what `choose` keeps, and what that
costs against the best of its candidates and gains against moving nothing. The same for `auto`, which is the choice of
--align without a value: its candidates are those of several aligners; and for both what the score half way alone would
keep. +- is the standard error of the barrier: with few rows the best candidate is a matter of chance.
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from command_line import make_parser, parse, run_main
from scipy.stats import pearsonr, spearmanr
from zoo.board import header, select
from zoo.line import Contest, Measured, measure
from zoo.methods import METHODS, PRE_LAYER_NORM, Aligned, Method, aligned_by
from zoo.pairs import open_pair
from zoo.sentences import Examples, labelled_rows, training_batches, word_tokenizer
from zoo.training import Trained, Training, trained

from merge.alignment.choice.auto import Auto
from merge.alignment.choice.candidates import ALONG, Candidate, Choice, choose
from merge.alignment.matchers import PAIRWISE, aligner
from merge.alignment.midpoint import EndpointOutputs, score
from merge.alignment.pair import Pair, in_canonical_form
from merge.checkpoints.inputs import tokenise

PAIRS = ((0, 1), (0, 2), (1, 2), (2, 3), (0, 3))
LABELS = ("entailment", "non-entailment")
TRAINING = Training(steps=800, rate=2e-3, warm_up=240, decay=0.01)
BATCH, SAMPLES, TRAIN_PER_SUBCASE = 64, 1500, 1000


def hans_examples(per_subcase: int, half: str) -> Examples:
    """Return pairs of the HANS grammar in random order."""
    from evals.heuristics.grammar import generate

    pairs = generate(per_subcase=per_subcase, seed=0, half="train" if half == "train" else "evaluation")
    random.Random(0).shuffle(pairs)
    texts = tuple((pair.premise, pair.hypothesis) for pair in pairs)
    return Examples(texts, tuple(LABELS.index(pair.label) for pair in pairs), LABELS)


def classifier_config(vocabulary: int) -> dict[str, Any]:
    """Return the config of a small two-class BERT."""
    return {
        "architectures": ["BertForSequenceClassification"],
        "model_type": "bert",
        "vocab_size": vocabulary,
        "hidden_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 384,
        "max_position_embeddings": 48,
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
        "id2label": {str(i): label for i, label in enumerate(LABELS)},
        "label2id": {label: i for i, label in enumerate(LABELS)},
    }


@dataclass(frozen=True)
class Row:
    """One method on one pair: its labelled barrier, and its label-free scores where a transform of b says it all."""

    measured: Measured
    score: float | None
    line: float | None

    @property
    def barrier(self) -> float:
        return self.measured.raw.barrier


def fixed(aligned: Aligned) -> Method:
    """Return the method that has found this already."""
    return lambda _pair: aligned


def name_of(candidate: Candidate, pair: Pair) -> str:
    """Return the row a candidate stands in: that of the method that does the same, if there is one."""
    kinds = candidate.alignment.kinds
    by = f"{candidate.by}+orthogonal" if candidate.basis == "orthogonal" else candidate.by
    return f"{by}: {'all' if len(kinds) == len(pair.kinds()) else candidate.name}" if kinds else "naive"


def choices_of(pair: Pair, aligners: Sequence[str]) -> dict[str, Choice]:
    """Return what is chosen among the candidates of each aligner, as the command line does, and what `auto` chooses.

    Of `learned` and `auto` also what the score half way alone would choose.
    """
    settled: dict[str, Choice] = {}
    for by in aligners:
        found = aligner(by)(pair if aligner(by).compares_merged else in_canonical_form(pair))
        settled[by] = choose(pair, {by: found}, None)
    settled["auto"] = Auto()(replace(pair, batches=()), lambda: pair)
    for by in {"learned", "auto"} & settled.keys():
        choice = settled[by]
        first = min(choice.candidates, key=lambda c: float("inf") if c.score is None else c.score)
        settled[f"{by}, half way alone"] = replace(choice, kept=first)
    return dict(sorted(settled.items()))


def rows_of(
    contest: Contest, choices: Mapping[str, Choice], methods: Mapping[str, Method], points: int
) -> dict[str, Row]:
    """Return what is measured of every method and of every candidate of every choice, by name."""
    named = dict(methods)
    for choice in choices.values():
        for candidate in choice.candidates:
            if (name := name_of(candidate, contest.pair)) not in named:
                named[name] = fixed(aligned_by(contest.pair, candidate.alignment))
    measured = {name: measure(name, method, contest, points) for name, method in named.items()}
    plain = {name: one.aligned for name, one in measured.items() if one.aligned.between is None}
    moves = {name: aligned.transform for name, aligned in plain.items() if aligned.transform is not None}
    ends, some = EndpointOutputs(contest.pair), list(moves.values())
    values = {lam: dict(zip(moves, score(some, contest.pair, ends, lam)[0], strict=True)) for lam in ALONG}
    lines = {name: fmean(at[name] for at in values.values()) for name in moves}
    return {name: Row(one, values[0.5].get(name), lines.get(name)) for name, one in measured.items()}


def print_rows(title: str, rows: Mapping[str, Row]) -> None:
    """Print the rows of one pair, best barrier first."""
    width = max(map(len, rows))
    print(f"\n{title:<{width}}  barrier     +-  calibrated  half way  accuracy    score  on line   changed")
    for name, row in sorted(rows.items(), key=lambda item: item[1].barrier):
        one = row.measured
        accuracy = one.raw.accuracy[len(one.raw.accuracy) // 2]
        free = " ".join("       -" if value is None else f"{value:8.4f}" for value in (row.score, row.line))
        print(f"{name:<{width}}  {row.barrier:7.3f}  {one.raw.standard_error:5.3f}", end="")
        print(f"  {one.calibrated.barrier:10.3f}  {one.midpoint:8.3f}", end="  ")
        print(f"{accuracy:8.3f} {free}   {one.changed:7.1e}", flush=True)


def print_choice(
    pairs: Mapping[str, Pair], choices: Mapping[str, Mapping[str, Choice]], rows: Mapping[str, Mapping[str, Row]]
) -> None:
    """Print what is kept in every pair, and what that costs and gains in barrier."""
    print(f"\n{'what choose keeps':<47}  barrier  {'best candidate':<42}  regret    naive     gain")
    for by in next(iter(choices.values())):
        regrets, gains = [], []
        for name, measured in rows.items():
            pair, choice = pairs[name], choices[name][by]
            barriers = {(row := name_of(c, pair)): measured[row].barrier for c in choice.candidates}
            kept, best = name_of(choice.kept, pair), min(barriers, key=lambda row: barriers[row])
            regrets.append(barriers[kept] - barriers[best])
            gains.append(measured["naive"].barrier - barriers[kept])
            print(f"{name}  {kept:<42}  {barriers[kept]:7.3f}  {best:<42} {regrets[-1]:7.3f}", end="")
            print(f"  {measured['naive'].barrier:7.3f}  {gains[-1]:7.3f}")
        print(f"{by}: mean regret {fmean(regrets):.3f}, mean gain over naive {fmean(gains):.3f}; ", end="")
        print(f"the best candidate kept in {sum(r <= 1e-12 for r in regrets)} of {len(regrets)} pairs")


def print_correlation(rows: Mapping[str, Mapping[str, Row]]) -> None:
    """Print how barrier and scores go together, over all rows and inside the pairs."""
    print("\nbarrier against score, each different model once:")
    for title, column in (("half way", "score"), ("on line", "line")):
        inside = []
        everything: list[tuple[float, float]] = []
        for measured in rows.values():
            distinct = {(row.barrier, getattr(row, column)) for row in measured.values() if row.score is not None}
            inside.append(float(spearmanr(*zip(*sorted(distinct), strict=True)).statistic))
            everything += sorted(distinct)
        pearson = float(pearsonr(*zip(*everything, strict=True)).statistic)
        print(f"{title}: Pearson {pearson:.3f} over {len(everything)} models;", end=" ")
        print(f"Spearman inside a pair {min(inside):.2f} to {max(inside):.2f}, mean {fmean(inside):.2f}")


def train_all(args: argparse.Namespace) -> tuple[dict[int, Trained], Any, Examples]:
    """Return the classifiers by seed, their tokenizer and their training rows."""
    examples = hans_examples(TRAIN_PER_SUBCASE, "train")
    tokenizer = word_tokenizer(examples.texts)
    batches = training_batches(tokenizer, examples, BATCH)
    models = {}
    training = Training(args.steps, TRAINING.rate, TRAINING.warm_up, TRAINING.decay)
    for seed in sorted({seed for pair in args.pairs for seed in pair}):
        folder, config = args.folder / f"classifier-{seed}", classifier_config(len(tokenizer))
        models[seed] = trained(folder, config, training, seed, batches, tokenizer=tokenizer)
    return models, tokenizer, examples


def main() -> None:
    """Train or read the classifiers and print the tables."""
    parser = make_parser(__doc__)
    parser.add_argument("--folder", type=Path, default=Path("zoo"), help="where the models are kept (default: zoo)")
    parser.add_argument("--methods", nargs="+", help="only methods whose name holds one of these words, and naive")
    parser.add_argument("--aligners", nargs="+", choices=PAIRWISE, default=list(PAIRWISE), help="default: all")
    parser.add_argument("--points", type=int, default=7, help="models on the line, ends included (default: 7)")
    parser.add_argument("--rows", type=int, default=200, help="rows a subcase that are measured on (default: 200 x 30)")
    parser.add_argument("--steps", type=int, default=TRAINING.steps, help=f"of training (default: {TRAINING.steps})")
    args = parse(parser)

    args.pairs = PAIRS
    torch.set_num_threads(1)
    args.folder.mkdir(parents=True, exist_ok=True)
    models, tokenizer, examples = train_all(args)
    held_out = labelled_rows(tokenizer, hans_examples(args.rows, "evaluation"))
    # The training rows are in random order, so that the first are a random sample.
    samples = examples.texts[:SAMPLES]
    some = select(METHODS, args.methods)
    methods = {n: m for n, m in some.items() if not n.endswith(": chosen") and n not in PRE_LAYER_NORM}
    print(header())
    for seed, model in models.items():
        print(f"classifier {seed}: training loss {model.loss:.3f} in {model.seconds:.0f} CPU s")
    rows: dict[str, dict[str, Row]] = {}
    choices: dict[str, dict[str, Choice]] = {}
    pairs: dict[str, Pair] = {}
    for a, b in PAIRS:
        name, pair = f"{a}-{b}", open_pair(models[a].folder, models[b].folder, ())
        batches, _ = tokenise(tokenizer, samples, pair.config)
        pair = replace(pair, batches=batches)
        pairs[name] = pair
        choices[name] = choices_of(pair, args.aligners)
        contest = Contest(pair, held_out)
        rows[name] = rows_of(contest, choices[name], methods, args.points)
        print_rows(name, rows[name])
    print_choice(pairs, choices, rows)
    print_correlation(rows)


if __name__ == "__main__":
    run_main(main)
