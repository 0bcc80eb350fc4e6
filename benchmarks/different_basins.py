"""Two fine-tunes of one start that lie in different basins: do exact continuous symmetries bring them together?

    python benchmarks/different_basins.py --folder zoo

A BERT (2 layers, hidden 96, 4 heads, 384 feed-forward units) learns the sentences of the HANS grammar as a masked
language model; with one fresh head it is the start of every fine-tune. Those differ in order, rate and data:

    cues      what follows, and what does not for a word that says so ("if", "or", "perhaps"): a bag of words will do
    grammar   all thirty constructions: word order decides

Pairs come in two sorts: forks, which should have a barrier, and near pairs, the same data in another order at a low
rate, which should have none: what an alignment wins there is training, not a basin left. Measured on the grammar's
other half: the barrier on all constructions and on rows that the cues settle, which both ends know; the excess half
way, which is not cut off at zero; the accuracy on lexical overlap that does not entail, which tells the strategies
apart. `learned` is given training rows of all constructions, once without and once with their labels, from the identity
and from what matching finds; `both` moves a as well. A barrier of two ends of unlike loss is not the whole story: an
ensemble of them is below the line too. In fork-d to fork-f both ends saw the same data, in another order: nothing but
the basins differs.

Training takes three CPU minutes, once; the table ten.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from classification_pairs import LABELS, classifier_config, fixed
from command_line import make_parser, parse, run_main
from pretrained_pair import language_batches
from same_start import stay
from zoo.board import Results, header, print_leaderboard, select
from zoo.line import Contest, Measured, measure
from zoo.methods import Aligned, Method, aligned_by, matched, naive
from zoo.pairs import open_pair
from zoo.sentences import Examples, labelled_rows, training_batches, word_tokenizer
from zoo.training import Trained, Training, trained

from merge.alignment.matchers.learned import learn, match_learned
from merge.alignment.pair import Alignment, Pair
from merge.symmetry.permutation import identity

PRETRAINING = Training(steps=600, rate=2e-3, warm_up=60, decay=0.01)
HEAD = Training(steps=1, rate=0.0)  # nothing learns: it only gives the start its head
LOW, HIGH, HIGHEST = 5e-4, 2e-3, 3e-3
BATCH, TRAIN_PER_SUBCASE, SAMPLES = 64, 600, 512
SUBCASES = 30


@dataclass(frozen=True)
class Tune:
    """A fine-tune of the start."""

    data: str
    seed: int
    rate: float

    @property
    def name(self) -> str:
        return f"basins-{self.data}-{self.seed}-{self.rate:g}"


PAIRS = {
    "fork-a": (Tune("cues", 1, LOW), Tune("grammar", 2, LOW)),
    "fork-b": (Tune("cues", 1, HIGH), Tune("grammar", 2, HIGH)),
    "fork-c": (Tune("cues", 3, HIGHEST), Tune("grammar", 4, HIGHEST)),
    "fork-d": (Tune("grammar", 2, HIGH), Tune("grammar", 3, HIGH)),
    "fork-e": (Tune("grammar", 2, HIGH), Tune("grammar", 4, HIGH)),
    "fork-f": (Tune("grammar", 3, HIGH), Tune("grammar", 4, HIGH)),
    "near-g": (Tune("grammar", 2, LOW), Tune("grammar", 3, LOW)),
    "near-h": (Tune("cues", 1, LOW), Tune("cues", 3, LOW)),
}


@dataclass(frozen=True)
class Rows:
    """The contests of one pair: on all constructions, on those of the cues, and on overlap that does not entail."""

    everything: Contest
    cues: Contest
    overlap: Contest


def examples_of(data: str, per_subcase: int, half: str) -> Examples:
    """Return rows of the grammar in random order, as many that follow as that do not; of `overlap` the latter alone."""
    from evals.heuristics.grammar import generate

    made = generate(per_subcase=per_subcase, seed=0, half="train" if half == "train" else "evaluation")
    random.Random(0).shuffle(made)
    heuristics = {"grammar": {"lexical_overlap", "subsequence", "constituent"}, "cues": {"constituent"}}
    taken = heuristics.get(data, {"lexical_overlap"})
    no = [pair for pair in made if pair.label == LABELS[1] and pair.heuristic in taken]
    yes = [] if data == "overlap" else [pair for pair in made if pair.label == LABELS[0]][: len(no)]
    rows = yes + no
    random.Random(1).shuffle(rows)
    return Examples(tuple((p.premise, p.hypothesis) for p in rows), tuple(LABELS.index(p.label) for p in rows), LABELS)


def make_models(folder: Path, steps: int) -> tuple[dict[Tune, Trained], Any, Examples]:
    """Return the fine-tunes, their tokenizer and the training rows of all constructions."""
    rows = {data: examples_of(data, TRAIN_PER_SUBCASE, "train") for data in ("grammar", "cues")}
    tokenizer = word_tokenizer(rows["grammar"].texts)
    sentences = sorted({sentence for text in rows["grammar"].texts for sentence in text})
    config = classifier_config(len(tokenizer))
    language = config | {"architectures": ["BertForMaskedLM"]}
    words = language_batches(tokenizer, sentences)
    batches = {data: training_batches(tokenizer, examples, BATCH) for data, examples in rows.items()}

    pretrained = trained(folder / "basins-language", language, PRETRAINING, 0, words, tokenizer=tokenizer)
    pretrained_folder = pretrained.folder
    start = trained(
        folder / "basins-start", config, HEAD, 0, batches["grammar"], start=pretrained_folder, tokenizer=tokenizer
    )
    models = {}
    for one in sorted({tune for pair in PAIRS.values() for tune in pair}, key=lambda tune: tune.name):
        print(f"... {one.name}", file=sys.stderr, flush=True)
        training = Training(steps, one.rate, warm_up=60, decay=0.01)
        models[one] = trained(
            folder / one.name, config, training, one.seed, batches[one.data], start=start.folder, tokenizer=tokenizer
        )
    return models, tokenizer, rows["grammar"]


def in_place(pair: Pair) -> Alignment:
    """Return the alignment that moves nothing."""
    return Alignment(identity(pair.spec, pair.shapes), pair.kinds(), ())


def from_identity(pair: Pair) -> Alignment:
    """Return what is learned from the models as they lie."""
    return learn(pair, in_place(pair), frozenset(pair.kinds()))


def from_matching(pair: Pair) -> Alignment:
    """Return what is learned from where activations and weights put b."""
    return match_learned(pair)(frozenset(pair.kinds()))


def learned(by: Callable[[Pair], Alignment], labels: bool = False, both: bool = False, steps: int = 200) -> Method:
    """Return the method that learns so."""

    def method(pair: Pair) -> Aligned:
        configured = replace(pair, settings=replace(pair.settings, both=both, steps=steps))
        configured = configured if labels else replace(configured, text=replace(configured.text, labels=()))
        return aligned_by(pair, by(configured))

    return method


METHODS: dict[str, Method] = {
    "naive": naive,
    "weights: all": matched("weights"),
    "activations: all": matched("activations"),
    "learned from identity, 1 step": learned(from_identity, steps=1),
    "learned from identity": learned(from_identity),
    "learned from matching": learned(from_matching),
    "labels from identity": learned(from_identity, labels=True),
    "labels from matching": learned(from_matching, labels=True),
    "labels from identity, both": learned(from_identity, labels=True, both=True),
}


def open_rows(models: Mapping[Tune, Trained], tokenizer: Any, texts: Examples, count: int) -> dict[str, Rows]:
    """Return the contests of every pair, with labelled training rows to learn from."""
    shown = labelled_rows(tokenizer, texts.part(0, SAMPLES))
    labels = tuple(batch["labels"] for batch in shown)
    batches = tuple({name: tensor for name, tensor in batch.items() if name != "labels"} for batch in shown)
    measured = {
        data: labelled_rows(tokenizer, examples_of(data, max(1, count // SUBCASES), "evaluation"))
        for data in ("grammar", "cues", "overlap")
    }
    contests = {}
    for name, (a, b) in PAIRS.items():
        pair = open_pair(models[a].folder, models[b].folder, batches)
        pair = replace(pair, text=replace(pair.text, labels=labels))
        contests[name] = Rows(*(Contest(pair, measured[data]) for data in ("grammar", "cues", "overlap")))
    return contests


def middle(one: Measured) -> int:
    """Return the place of the half way point."""
    return len(one.raw.loss) // 2


def excess(one: Measured) -> float:
    """Return by how much the loss half way exceeds the mean of the ends'."""
    return one.midpoint - (one.raw.loss[0] + one.raw.loss[-1]) / 2


def print_ends(results: Mapping[str, Results]) -> None:
    """Print what the ends know, and how surely there is a barrier between them."""
    print("\nends: data-seed-rate; loss and accuracy on all constructions; accuracy on overlap that does not entail")
    for pair, tunes in PAIRS.items():
        everything, overlap = (results[rows]["naive"][pair].raw for rows in ("everything", "overlap"))
        for tune, at in zip(tunes, (0, -1), strict=True):
            figures = (everything.loss[at], everything.accuracy[at], overlap.accuracy[at])
            print(f"  {tune.name.removeprefix('basins-'):<20}" + "".join(f"{figure:8.3f}" for figure in figures))
        error = everything.standard_error  # 0 where an end is the highest point of the line
        sure = f"{everything.barrier / error:.1f} standard errors" if error else "no hill"
        print(f"  {pair}: naive barrier {everything.barrier:.3f}, {sure}", flush=True)


def print_block(title: str, values: Mapping[str, Mapping[str, float]]) -> None:
    """Print one figure: a row for each method, a column for each pair."""
    width = max(map(len, [title, *values]))
    print(f"\n{title:<{width}}" + "".join(f"{pair:>9}" for pair in PAIRS))
    for name, row in values.items():
        print(f"{name:<{width}}" + "".join(f"{row[pair]:9.3f}" for pair in PAIRS), flush=True)


def share_moved(pair: Pair, one: Measured) -> float:
    """Return the largest share, over kinds of axes, of units that leave their place."""
    transform = one.aligned.transform
    return max(1 - share for share in stay(pair, transform).values()) if transform else float("nan")


def measure_rows(methods: Mapping[str, Method], rows: Mapping[str, Rows], points: int) -> dict[str, Results]:
    """Return rows -> method -> pair -> what is measured; every method looks at a pair once."""
    results: dict[str, dict[str, dict[str, Measured]]] = {"everything": {}, "cues": {}, "overlap": {}}
    for name, method in methods.items():
        print(f"... {name}", file=sys.stderr, flush=True)
        for kind in results:
            results[kind][name] = {}
        for pair, contests in rows.items():
            one = measure(name, method, contests.everything, points)
            results["everything"][name][pair] = one
            for kind in ("cues", "overlap"):
                again = measure(name, fixed(one.aligned), getattr(contests, kind), 3 if kind == "overlap" else points)
                results[kind][name][pair] = again
    return dict(results)


def main() -> None:
    """Train what is not there yet and print the tables."""
    parser = make_parser(__doc__)
    parser.add_argument("--folder", type=Path, default=Path("zoo"), help="where the models are kept (default: zoo)")
    parser.add_argument("--steps", type=int, default=200, help="of each fine-tuning (default: 200)")
    parser.add_argument("--rows", type=int, default=900, help="rows that are measured on (default: 900)")
    parser.add_argument("--methods", nargs="+", help="only methods whose name holds one of these words, and naive")
    parser.add_argument("--points", type=int, default=5, help="models on the line, ends included (default: 5)")
    args = parse(parser)

    torch.set_num_threads(1)
    args.folder.mkdir(parents=True, exist_ok=True)
    methods = select(METHODS, args.methods)
    models, tokenizer, texts = make_models(args.folder, args.steps)
    rows = open_rows(models, tokenizer, texts, args.rows)
    print(header())
    results = measure_rows(methods, rows, args.points)
    print_ends(results)
    print_leaderboard(results["everything"], {pair: pair for pair in PAIRS})
    figures: dict[str, Callable[[str, str], float]] = {
        "excess half way": lambda name, pair: excess(results["everything"][name][pair]),
        "barrier, standard error": lambda name, pair: results["everything"][name][pair].raw.standard_error or 0.0,
        "barrier, rows of the cues": lambda name, pair: results["cues"][name][pair].raw.barrier,
        "its standard error": lambda name, pair: results["cues"][name][pair].raw.standard_error or 0.0,
        "overlap, accuracy half way": lambda name, pair: results["overlap"][name][pair].raw.accuracy[1],
        "most units moved, by kind": lambda name, pair: share_moved(
            rows[pair].everything.pair, results["everything"][name][pair]
        ),
    }
    for title, figure in figures.items():
        print_block(title, {name: {pair: figure(name, pair) for pair in PAIRS} for name in methods})


if __name__ == "__main__":
    run_main(main)
