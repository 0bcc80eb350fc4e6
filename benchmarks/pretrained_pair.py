"""A pair of BERTs pretrained from scratch on real text, then fine-tuned: barriers of the language model and of GLUE tasks.

    python benchmarks/pretrained_pair.py --data DATA --folder zoo
    python benchmarks/pretrained_pair.py --data DATA --folder zoo --hidden 256 --steps 20000      # a larger machine

DATA holds {mnli,snli,qqp,qnli}/train.subset.jsonl.gz, sst2/train.jsonl.gz and each task's validation file, one JSON
record a line. Two seeds share a word-piece vocabulary, learned from the text, and nothing else: other initial weights,
other order, other masks. Each is fine-tuned on each task. Printed, for every method: the barrier of masked language
modelling between the pretrained models, and the loss barrier of each task between the fine-tuned ones. A pretrained
model that knows no more than the frequencies of the words is marked !, and so is a fine-tuned one that is not surely
better than the most frequent class: a barrier between such endpoints means nothing for the task.
"""

from __future__ import annotations

import argparse
import gzip
import json
import math
import random
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from command_line import add_data, make_parser, parse, run_main
from torch import Tensor
from zoo.board import header, measure_all, print_leaderboard, select
from zoo.characters import IGNORED, masked
from zoo.line import Contest
from zoo.methods import METHODS
from zoo.pairs import open_pair
from zoo.sentences import SPECIAL, Examples, labelled_rows, padded, training_batches
from zoo.training import Batches, Trained, Training, trained

from merge.checkpoints.inputs import Batch, encode, tokenise

PRETRAINING = {
    "mnli/train.subset.jsonl.gz": ("premise", "hypothesis"),
    "snli/train.subset.jsonl.gz": ("premise", "hypothesis"),
    "qqp/train.subset.jsonl.gz": ("question1", "question2"),
    "qnli/train.subset.jsonl.gz": ("question", "sentence"),
    "sst2/train.jsonl.gz": ("sentence",),
}
PLATEAU = 0.15
SURE = 3.0  # standard errors above the most frequent class
LONGEST, ROWS, FINE_ROWS, POOL = 32, 64, 32, 8
HELD_OUT, MEASURED_SENTENCES, SAMPLES, MEASURED_ROWS = 2000, 1000, 1000, 1500


@dataclass(frozen=True)
class Task:
    """A task's files, text columns and classes."""

    train: str
    validation: str
    columns: tuple[str, ...]
    labels: tuple[str, ...]


TASKS = {
    "sst2": Task("sst2/train.jsonl.gz", "sst2/validation.jsonl.gz", ("sentence",), ("negative", "positive")),
    "qqp": Task(
        "qqp/train.subset.jsonl.gz",
        "qqp/validation.10k.jsonl.gz",
        ("question1", "question2"),
        ("not_duplicate", "duplicate"),
    ),
    "mnli": Task(
        "mnli/train.subset.jsonl.gz",
        "mnli/validation_matched.jsonl.gz",
        ("premise", "hypothesis"),
        ("entailment", "neutral", "contradiction"),
    ),
}


def read(path: Path) -> list[dict[str, Any]]:
    """Return the records of a gzipped JSONL file."""
    if not path.is_file():
        raise SystemExit(f"{path} is not there. --data names the folder with the tasks' folders in it.")
    with gzip.open(path, "rt", encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def sentences(data: Path) -> list[str]:
    """Return every different sentence of the pretraining files, in random order."""
    sentences = {
        row[column] for name, columns in PRETRAINING.items() for row in read(data / name) for column in columns
    }
    ordered = sorted(sentences)
    random.Random(0).shuffle(ordered)
    return ordered


def examples(data: Path, task: Task, file: str, limit: int | None = None) -> Examples:
    """Return the labelled rows of a task's file, in random order."""
    rows = read(data / file)
    random.Random(0).shuffle(rows)
    texts = tuple(tuple(row[column] for column in task.columns) for row in rows[:limit])
    return Examples(texts, tuple(task.labels.index(row["label"]) for row in rows[:limit]), task.labels)


def word_pieces(texts: list[str], size: int) -> Any:
    """Return a BERT tokenizer with a word-piece vocabulary of about this size, learned from the texts."""
    from tokenizers import BertWordPieceTokenizer
    from transformers import BertTokenizer

    made = BertWordPieceTokenizer(lowercase=True)
    made.train_from_iterator(iter(texts), vocab_size=size, special_tokens=list(SPECIAL), show_progress=False)
    return BertTokenizer(vocab=made.get_vocab(), do_lower_case=True)


def kept_tokenizer(folder: Path, texts: list[str], size: int) -> Any:
    """Return the folder's tokenizer, learned once: of word pieces equally frequent, any may come first."""
    from transformers import BertTokenizer

    if not folder.exists():
        word_pieces(texts, size).save_pretrained(folder)
    return BertTokenizer.from_pretrained(folder)


def bert_config(args: argparse.Namespace, vocabulary: int, labels: tuple[str, ...] = ()) -> dict[str, Any]:
    """Return the config of the language model, or of a classifier of these labels."""
    config = {
        "architectures": ["BertForSequenceClassification" if labels else "BertForMaskedLM"],
        "model_type": "bert",
        "vocab_size": vocabulary,
        "hidden_size": args.hidden,
        "num_hidden_layers": args.layers,
        "num_attention_heads": args.heads,
        "intermediate_size": 4 * args.hidden,
        "max_position_embeddings": 64,
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
        "initializer_range": 0.05,
    }
    if not labels:
        return config
    names = {str(i): label for i, label in enumerate(labels)}
    return config | {"id2label": names, "label2id": {label: i for i, label in enumerate(labels)}}


def language_batches(tokenizer: Any, texts: list[str]) -> Batches:
    """Return what draws batches of masked sentences: random ones, those of like length together."""
    inputs = padded(tokenizer, [(text,) for text in texts], LONGEST)
    lengths = inputs["attention_mask"].sum(1)

    def draw(generator: torch.Generator) -> Iterator[Mapping[str, Tensor]]:
        while True:
            pool = torch.randint(len(lengths), (POOL * ROWS,), generator=generator)
            runs = pool[lengths[pool].argsort()].split(ROWS)
            for k in torch.randperm(POOL, generator=generator).tolist():
                width = int(lengths[runs[k]].max())
                batch = {name: tensor[runs[k], :width] for name, tensor in inputs.items()}
                yield hidden_words(batch, tokenizer, generator)

    return draw


def hidden_words(batch: Mapping[str, Tensor], tokenizer: Any, generator: torch.Generator) -> dict[str, Tensor]:
    """Return the batch with masks on some of its words, which are its labels."""
    ids = batch["input_ids"]
    special = torch.tensor([tokenizer.pad_token_id, tokenizer.cls_token_id, tokenizer.sep_token_id])
    inputs, labels = masked(ids, tokenizer.mask_token_id, generator, ~torch.isin(ids, special))
    return {**batch, "input_ids": inputs, "labels": labels}


def language_rows(tokenizer: Any, texts: list[str]) -> tuple[Batch, ...]:
    """Return sentences with the same masks for every model."""
    generator = torch.Generator().manual_seed(5)
    encoded = encode(tokenizer, [(text,) for text in texts], LONGEST)
    return tuple(hidden_words(batch, tokenizer, generator) for batch in encoded.batches)


def frequency_loss(tokenizer: Any, texts: list[str], rows: tuple[Batch, ...]) -> float:
    """Return the loss on the masked words of who knows how frequent each word piece is (add-one counts)."""
    counts = Counter(i for ids in tokenizer(texts, add_special_tokens=False)["input_ids"] for i in ids)
    total = sum(counts.values()) + len(tokenizer)
    wanted = [i for batch in rows for i in batch["labels"][batch["labels"] != IGNORED].tolist()]
    return -sum(math.log((counts[i] + 1) / total) for i in wanted) / len(wanted)


def pretrain(args: argparse.Namespace, tokenizer: Any, texts: list[str]) -> list[Trained]:
    """Return the two language models."""
    batches, config = language_batches(tokenizer, texts), bert_config(args, len(tokenizer))
    training = Training(args.steps, rate=args.rate, decay=0.01)
    stem = f"pretrained-{args.layers}x{args.hidden}"
    return [
        trained(args.folder / f"{stem}-{seed}", config, training, seed, batches, tokenizer=tokenizer)
        for seed in args.seeds
    ]


def fine_tune(name: str, args: argparse.Namespace, tokenizer: Any, starts: list[Trained]) -> list[Trained]:
    """Return both language models after fine-tuning on a task."""
    task = TASKS[name]
    batches = training_batches(tokenizer, examples(args.data, task, task.train), FINE_ROWS)
    config, training = bert_config(args, len(tokenizer), task.labels), Training(args.fine_steps, rate=5e-4, decay=0.01)
    return [
        trained(Path(f"{s.folder}-{name}"), config, training, seed, batches, start=s.folder, tokenizer=tokenizer)
        for seed, s in zip(args.seeds, starts, strict=True)
    ]


def contest_of(
    models: list[Trained], tokenizer: Any, texts: tuple[tuple[str, ...], ...], rows: tuple[Batch, ...]
) -> Contest:
    """Return the pair with these texts to align it on, and the rows it is measured on."""
    config = json.loads((models[0].folder / "config.json").read_text(encoding="utf-8"))
    batches, _ = tokenise(tokenizer, texts, config)
    special = tuple(tokenizer.all_special_ids)
    pair = open_pair(models[0].folder, models[1].folder, batches, tokenizer.mask_token_id, special)
    return Contest(pair, rows)


def make_contests(args: argparse.Namespace) -> tuple[dict[str, Contest], float]:
    """Return the contests, language modelling first, and the loss of who knows the words' frequencies alone."""
    texts = sentences(args.data)
    held_out, texts = texts[:HELD_OUT], texts[HELD_OUT:]
    tokenizer = kept_tokenizer(args.folder / f"vocabulary-{args.vocabulary}", texts, args.vocabulary)
    rows = language_rows(tokenizer, held_out[:MEASURED_SENTENCES])
    starts = pretrain(args, tokenizer, texts)
    contests = {"mlm": contest_of(starts, tokenizer, tuple((text,) for text in texts[:SAMPLES]), rows)}
    for name in args.tasks:
        task, models = TASKS[name], fine_tune(name, args, tokenizer, starts)
        measured = labelled_rows(tokenizer, examples(args.data, task, task.validation, MEASURED_ROWS))
        samples = examples(args.data, task, task.train, SAMPLES).texts
        contests[name] = contest_of(models, tokenizer, samples, measured)
    return contests, frequency_loss(tokenizer, texts, rows)


def above_majority(labels: Tensor, correct: Tensor) -> float:
    """Return by how many standard errors the share of correct answers exceeds that of the most frequent class."""
    share = float(labels.bincount().max()) / len(labels)
    return (float(correct.double().mean()) - share) / math.sqrt(share * (1 - share) / len(labels))


def print_ends(contests: Mapping[str, Contest], frequencies: float) -> frozenset[str]:
    """Print what the ends score, and return the contests with an end that learned nothing; of such a start, all."""
    stuck = set()
    print(f"\nends, and the loss of who knows the words' frequencies alone ({frequencies:.3f}); ! knows no more:")
    for name, contest in contests.items():
        for end, (logits, labels) in zip("ab", contest.ends, strict=True):
            loss, correct = float(torch.nn.functional.cross_entropy(logits, labels)), logits.argmax(1) == labels
            flat = loss > frequencies - PLATEAU if name == "mlm" else above_majority(labels, correct) < SURE
            stuck |= {name} if flat else set()
            accuracy = float(correct.double().mean())
            print(f"  {name:<5} {end}{'!' if flat else ' '} loss {loss:.3f}, accuracy {accuracy:.3f}")
    return frozenset(contests if "mlm" in stuck else stuck)


def main() -> None:
    """Pretrain and fine-tune what is not there yet, and print the table."""
    parser = make_parser(__doc__)
    add_data(parser)
    parser.add_argument("--folder", type=Path, default=Path("zoo"), help="where the models are kept (default: zoo)")
    parser.add_argument("--tasks", nargs="*", choices=tuple(TASKS), default=["sst2", "qqp"], help="default: sst2 qqp")
    parser.add_argument("--seeds", nargs=2, type=int, default=[0, 1], help="default: 0 1")
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--hidden", type=int, default=128)
    parser.add_argument("--heads", type=int, default=4)
    parser.add_argument("--vocabulary", type=int, default=4096, help="word pieces (default: 4096)")
    parser.add_argument("--steps", type=int, default=1500, help="of pretraining (default: 1500)")
    parser.add_argument("--rate", type=float, default=2e-3, help="learning rate of pretraining (default: 0.002)")
    parser.add_argument("--fine-steps", type=int, default=400, help="of fine-tuning (default: 400)")
    parser.add_argument("--methods", nargs="+", help="only methods whose name holds one of these words, and naive")
    parser.add_argument("--points", type=int, default=9, help="models on the line, ends included (default: 9)")
    args = parse(parser)

    torch.set_num_threads(1)
    args.folder.mkdir(parents=True, exist_ok=True)
    contests, frequencies = make_contests(args)
    print(header())
    stuck = print_ends(contests, frequencies)
    results = measure_all(select(METHODS, args.methods), contests, args.points)
    print_leaderboard(results, {task: f"{task}!" if task in stuck else task for task in contests})


if __name__ == "__main__":
    run_main(main)
