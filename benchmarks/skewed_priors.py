"""Does a score that is corrected for the classes' shares choose better for models that were trained on other shares?

    python benchmarks/skewed_priors.py --folder zoo

Pairs of small two-class BERTs (2 layers, hidden 96) from three seeds, trained from random weights with ten rows of the first
class for one of the second, or with as many of both: on the HANS grammar, on SST-2 and on SNLI (entailment or not). The text
of the choice has as many rows of both classes. `auto` matches its candidates, which are then scored four ways, by the KL
divergence from the ensemble of the ends to the model half way, and along the line where several are near the lowest:

    present       of the predictions as they are: what `auto` does
    own mean      each model's logits less the logarithm of its mean prediction on the text
    ends' mean    all logits less the logarithm of the ends' mean prediction on the text
    prior         all logits less the logarithm of the shares in the training rows, which `auto` could not know

Printed for what each keeps are, half way and on balanced rows with labels: accuracy, loss, and the loss of the logits less the
logarithm of the training shares, which does not charge a model for the shares that it was trained on. `labels` is the candidate
with the lowest corrected loss along the line, `naive` the one that moves nothing.

Training takes 40 CPU seconds a model, 12 minutes for all, once; the table 30 CPU seconds a pair.
"""

from __future__ import annotations

import argparse
import gzip
import json
import math
import random
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from statistics import fmean

import torch
from classification_pairs import classifier_config, hans_examples, name_of
from command_line import add_data, add_parts, make_parser, parse, run_main
from jaxtyping import Float
from torch import Tensor
from zoo.board import header
from zoo.line import all_labelled_logits
from zoo.methods import aligned_by
from zoo.pairs import open_pair
from zoo.sentences import Examples, labelled_rows, training_batches, word_tokenizer
from zoo.training import Training, trained

from merge.alignment.choice.auto import Auto
from merge.alignment.choice.candidates import NEAR_LOWEST, ROUNDING, Candidate
from merge.alignment.midpoint import ALONG
from merge.alignment.pair import Pair
from merge.checkpoints.inputs import Batch
from merge.checkpoints.transformers_model import set_weights

SHARES = {"10:1": (10 / 11, 1 / 11), "1:1": (0.5, 0.5)}
TRAINING_ROWS, TEXTS, TEST_ROWS, BATCH = 4400, 1000, 2000, 32
TRAINING = Training(steps=800, rate=1e-3, warm_up=100, decay=0.01)
TASKS = ("hans", "sst2", "snli")
PAIRS = ((0, 1), (0, 2), (1, 2))
# Task -> file of labelled rows, the fields of a text, and the value of the label in the second class.
FILES = {
    "sst2": ("sst2/train.jsonl.gz", ("sentence",), "positive"),
    "snli": ("snli/train.subset.jsonl.gz", ("premise", "hypothesis"), "entailment"),
}
LABELS = ("no", "yes")
# Log-probabilities of the ends and of the model between on the text -> the same, corrected.
LogProbs = Float[Tensor, "texts classes"]
Correct = Callable[[Sequence[LogProbs], Sequence[float]], list[LogProbs]]


def less(logits: LogProbs, shares: Tensor) -> LogProbs:
    """Return log-probabilities less the logarithm of shares of the classes."""
    return (logits - shares.log()).log_softmax(-1)


def mean_prediction(logits: Sequence[LogProbs]) -> Float[Tensor, " classes"]:
    """Return the mean of the probabilities of several models on a text."""
    return torch.stack([each.softmax(-1).mean(0) for each in logits]).mean(0)


SCORES: dict[str, Correct] = {
    "present": lambda outputs, _: [each.log_softmax(-1) for each in outputs],
    "own mean": lambda outputs, _: [less(each, mean_prediction([each])) for each in outputs],
    "ends' mean": lambda outputs, _: [less(each, mean_prediction(outputs[:2])) for each in outputs],
    "prior": lambda outputs, shares: [less(each, torch.tensor(shares).double()) for each in outputs],
}


def rows_of(task: str, data: Path) -> tuple[Examples, Examples]:
    """Return the training rows of a task, and other rows."""
    if task == "hans":
        train, other = hans_examples(1000, "train"), hans_examples(200, "evaluation")
        return tuple(Examples(each.texts, tuple(1 - g for g in each.gold), LABELS) for each in (train, other))
    name, fields, second = FILES[task]
    with gzip.open(data / name, "rt", encoding="utf-8") as file:
        rows = [json.loads(line) for line in file]
    texts = tuple(tuple(str(row[field]) for field in fields) for row in rows)
    gold = tuple(int(row["label"] == second) for row in rows)
    # By place in the file: what shares a premise stands together.
    cut = len(texts) * 6 // 10
    return Examples(texts[:cut], gold[:cut], LABELS), Examples(texts[cut:], gold[cut:], LABELS)


def sample(examples: Examples, count: int, shares: Sequence[float], seed: int) -> Examples:
    """Return a random sample with the classes in these shares, smaller than asked for where there are not enough rows."""
    chance = random.Random(seed)
    by_class = [
        chance.sample(each, len(each)) for each in ([k for k, g in enumerate(examples.gold) if g == c] for c in (0, 1))
    ]
    count = min(count, *(int(len(each) / share) for each, share in zip(by_class, shares, strict=True)))
    taken = [k for each, share in zip(by_class, shares, strict=True) for k in each[: round(count * share)]]
    chance.shuffle(taken)
    return Examples(tuple(examples.texts[k] for k in taken), tuple(examples.gold[k] for k in taken), examples.labels)


@dataclass(frozen=True)
class Scored:
    """A candidate on the text and on labelled rows.

    Attributes:
        scores: name of a score -> its values at ALONG.
        accuracy, loss, corrected: of labelled rows at ALONG.
    """

    name: str
    scores: Mapping[str, tuple[float, ...]]
    accuracy: tuple[float, ...]
    loss: tuple[float, ...]
    corrected: tuple[float, ...]


def measured(
    candidate: Candidate, pair: Pair, ends: Sequence[LogProbs], test: Sequence[Batch], shares: Sequence[float]
) -> Scored:
    """Return the scores of a candidate and what labels say of it.

    Args:
        pair: with labelled batches as its text.
        test: labelled batches that are measured on.
    """
    aligned, scores, labelled = aligned_by(pair, candidate.alignment), {name: [] for name in SCORES}, []
    model = aligned.pair.model(aligned.pair.a)
    for lam in ALONG:
        set_weights(model, {aligned.pair.written_name(n): t for n, t in aligned.at(lam).items()})
        between = all_labelled_logits(model, pair.batches)[0].double()
        for name, correct in SCORES.items():
            a, b, q = correct([*ends, between], shares)
            p = torch.stack([a + math.log(1 - lam), b + math.log(lam)]).logsumexp(0)
            scores[name].append(float((p.exp() * (p - q)).sum(-1).mean()))
        logits, gold = all_labelled_logits(model, test)
        logits = logits.double()
        losses = [
            torch.nn.functional.cross_entropy(each, gold).item()
            for each in (logits, less(logits, torch.tensor(shares).double()))
        ]
        labelled.append((float((logits.argmax(1) == gold).double().mean()), *losses))
    return Scored(
        name_of(candidate, pair), {n: tuple(v) for n, v in scores.items()}, *map(tuple, zip(*labelled, strict=True))
    )


def kept_by(candidates: Sequence[Scored], values: Sequence[Sequence[float]]) -> Scored:
    """Return what these values at ALONG keep, by the rule of `auto`."""
    limit = NEAR_LOWEST * min(each[1] for each in values) + ROUNDING
    lines = [fmean(each) if each[1] <= limit else math.inf for each in values]
    return next(c for c, line in zip(candidates, lines, strict=True) if line <= min(lines) + ROUNDING)


def contests(task: str, prior: str, args: argparse.Namespace) -> Iterator[tuple[str, dict[str, Scored]]]:
    """Train the models of a task, and yield of every pair what every score keeps, what labels keep, and the naive candidate."""
    shares = SHARES[prior]
    train, other = rows_of(task, args.data)
    halves = (other.part(0, len(other) // 2), other.part(len(other) // 2, len(other)))
    texts, test = (sample(each, n, SHARES["1:1"], 1) for each, n in zip(halves, (TEXTS, TEST_ROWS), strict=True))
    examples = sample(train, TRAINING_ROWS, shares, 0)
    tokenizer = word_tokenizer(examples.texts)
    names = {"id2label": dict(enumerate(LABELS)), "label2id": {name: k for k, name in enumerate(LABELS)}}
    config = classifier_config(len(tokenizer)) | names
    batches, models = training_batches(tokenizer, examples, BATCH), []
    for seed in sorted({seed for pair in PAIRS for seed in pair}):
        folder = args.folder / f"{task}-{prior.replace(':', '-')}-{seed}"
        models.append(trained(folder, config, TRAINING, seed, batches, tokenizer=tokenizer))
        said = f"training loss {models[-1].loss:.3f} in {models[-1].seconds:.0f} CPU s"
        print(f"... {folder.name}: {said}", file=sys.stderr, flush=True)
    labelled, tested = labelled_rows(tokenizer, texts), labelled_rows(tokenizer, test)
    for a, b in PAIRS:
        pair = open_pair(models[a].folder, models[b].folder, labelled)
        yield f"{task}, {prior}, {a}-{b}", kept_of(pair, tested, shares)


def kept_of(pair: Pair, test: Sequence[Batch], shares: Sequence[float]) -> dict[str, Scored]:
    """Return what every score keeps of a pair, what labels keep, and the naive candidate.

    Args:
        pair: with labelled batches as its text.
        test: labelled batches that are measured on.
    """
    unlabelled = replace(pair, batches=tuple({n: t for n, t in b.items() if n != "labels"} for b in pair.batches))
    choice = Auto()(replace(pair, batches=()), lambda: unlabelled)
    ends = [all_labelled_logits(pair.model(side), pair.batches)[0].double() for side in (pair.a, pair.b)]
    candidates = [measured(c, pair, ends, test, shares) for c in choice.candidates]
    kept = {name: kept_by(candidates, [c.scores[name] for c in candidates]) for name in SCORES}
    assert kept["present"].name == name_of(choice.kept, pair), (kept["present"].name, name_of(choice.kept, pair))
    return {"naive": candidates[0], **kept, "labels": min(candidates, key=lambda c: fmean(c.corrected))}


def main() -> None:
    """Train or read the pairs and print the table."""
    parser = make_parser(__doc__)
    add_data(parser)
    parser.add_argument("--folder", type=Path, default=Path("zoo"), help="where the models are kept (default: zoo)")
    add_parts(parser, TASKS)
    args = parse(parser)
    torch.set_num_threads(1)
    args.folder.mkdir(parents=True, exist_ok=True)
    print(header())
    print(f"{'task, trained, pair':<19} {'chosen by':<11} {'accuracy':>8} {'loss':>7} {'corrected':>9}  kept")
    for task, prior in product(args.only, SHARES):
        for name, kept in contests(task, prior, args):
            for by, one in kept.items():
                middle = f"{one.accuracy[1]:8.3f} {one.loss[1]:7.3f} {one.corrected[1]:9.3f}"
                print(f"{name if by == 'naive' else '':<19} {by:<11} {middle}  {one.name}", flush=True)


if __name__ == "__main__":
    run_main(main)
