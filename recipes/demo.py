"""The whole story in three minutes on two CPU cores: train two BERTs, merge them naively and aligned, judge both.

    make demo

Two small BERTs are trained from two seeds (so from two initialisations) on inference pairs that the training half of
the HANS grammar generates. Everything after that is the public commands, printed as they run: naive average, aligned
average, loss barrier of both, HANS scores of all four, a page with the curves, a model card with the evidence.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shlex
import shutil
import subprocess
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

LABELS = ("entailment", "non-entailment")
SEEDS = {"a": 0, "b": 1}
STEPS, BATCH = 800, 64
MARKER = "made-by-demo"


def write_data(folder: Path) -> None:
    """Write the training pairs: the HANS grammar's training half, 1,000 pairs a subcase."""
    from evals.heuristics.grammar import generate

    rows = [
        {"premise": p.premise, "hypothesis": p.hypothesis, "label": p.label}
        for p in generate(per_subcase=1000, seed=0, half="train")
    ]
    random.Random(0).shuffle(rows)
    (folder / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def make_tokenizer(rows: list[dict[str, str]]) -> Any:
    """Return a BERT tokenizer whose WordPiece vocabulary is the words of the training text, and letters for others."""
    from transformers import BertTokenizer

    words = {word for row in rows for key in ("premise", "hypothesis") for word in row[key].lower().split()}
    letters = sorted({letter for word in words for letter in word})
    entries = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters, *(f"##{c}" for c in letters)]
    entries += sorted(words - set(letters))
    return BertTokenizer(vocab={entry: i for i, entry in enumerate(entries)}, do_lower_case=True)


def train(name: str, folder: Path) -> str:
    """Train one model from its own seed on one CPU thread, save it as folder/name, and return how it went."""
    import torch
    from transformers import BertConfig, BertForSequenceClassification
    from transformers.utils import logging

    logging.disable_progress_bar()
    torch.set_num_threads(1)
    torch.manual_seed(SEEDS[name])
    rows = [json.loads(line) for line in (folder / "train.jsonl").read_text(encoding="utf-8").splitlines()]
    tokenizer = make_tokenizer(rows)
    inputs = tokenizer([r["premise"] for r in rows], [r["hypothesis"] for r in rows], padding=True, return_tensors="pt")
    target = torch.tensor([LABELS.index(r["label"]) for r in rows])
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=384,
        max_position_embeddings=48,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        id2label=dict(enumerate(LABELS)),
        label2id={label: i for i, label in enumerate(LABELS)},
    )
    model = BertForSequenceClassification(config).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=STEPS)
    begun, recent = time.time(), []
    for _ in range(STEPS):
        chosen = torch.randint(len(rows), (BATCH,))
        width = int(inputs["attention_mask"][chosen].sum(1).max())
        batch = {key: value[chosen, :width] for key, value in inputs.items()}
        loss = model(**batch, labels=target[chosen]).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        recent = [*recent[-49:], loss.item()]
    model.save_pretrained(folder / name)
    tokenizer.save_pretrained(folder / name)
    return f"seed {SEEDS[name]}: {STEPS} steps in {time.time() - begun:.0f} s, training loss {sum(recent) / len(recent):.3f}"


def run(*words: str | Path) -> None:
    """Print a command and run it as a user would; stop the demo if it fails."""
    command = [str(word) for word in words]
    print(f"\n$ {shlex.join(command)}", flush=True)
    program = Path(sys.executable).with_name(command[0])
    done = subprocess.run([program, *command[1:]], check=False)
    if done.returncode:
        raise SystemExit(done.returncode)


def main() -> None:
    """Run the demo."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path("demo"), help="where everything goes (default: demo)")
    folder: Path = parser.parse_args().folder
    if folder.exists():
        if not (folder / MARKER).is_file():
            raise SystemExit(f"{folder} exists and was not made by the demo; choose another --folder")
        shutil.rmtree(folder)
    folder.mkdir(parents=True)
    (folder / MARKER).touch()
    os.environ.update(TRANSFORMERS_VERBOSITY="error", HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false")
    begun = time.time()

    print("Training two BERTs from two initialisations, one core each ...", flush=True)
    write_data(folder)
    with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as pool:
        for name, said in zip(SEEDS, pool.map(train, SEEDS, [folder] * 2), strict=True):
            print(f"  {folder / name}: {said}", flush=True)

    a, b, text, report = folder / "a", folder / "b", folder / "train.jsonl", folder / "report"
    align = ("--align", "activations", "--text", text, "--samples", "1500")
    run("merge-models", a, b, "-o", folder / "naive")
    run("merge-models", a, b, *align, "-o", folder / "aligned")
    run("evaluate-models", "barrier", a, b, "--task", "hans", "--limit", "3000", *align, "-o", report)
    run("evaluate-models", "hans", a, b, folder / "naive", folder / "aligned", "-o", report)
    run("merge-models", "card", folder / "aligned", "--results", report / "results.json")
    print_summary(report, folder)
    print(
        f"\nAll in {time.time() - begun:.0f} s. Look at {report / 'index.html'} and {folder / 'aligned' / 'README.md'}."
    )


def print_summary(report: Path, folder: Path) -> None:
    """Print the before and after, and load the merged checkpoint as any program would."""
    from transformers import AutoModelForSequenceClassification, AutoTokenizer
    from transformers.utils import logging

    logging.disable_progress_bar()
    results = json.loads((report / "results.json").read_text(encoding="utf-8"))["results"]
    curves = next(record for record in results if record["kind"] == "barrier")["curves"]
    hans = {r["model"]["name"]: r["scores"]["accuracy"] for r in results if r["kind"] == "scores"}
    print(f"\n{'':28}{'naive average':>15}{'aligned average':>17}")
    for name, values in (
        ("loss barrier", [curve["barrier"] for curve in curves]),
        ("accuracy at the middle", [curve["accuracy"][len(curve["lam"]) // 2] for curve in curves]),
        ("HANS accuracy (30,000 pairs)", [hans[str(folder / which)] for which in ("naive", "aligned")]),
    ):
        print(f"{name:<28}{values[0]:>15.4f}{values[1]:>17.4f}")
    path = folder / "aligned"
    model = AutoModelForSequenceClassification.from_pretrained(path)
    tokenizer = AutoTokenizer.from_pretrained(path)
    logits = model(
        **tokenizer("The doctor saw the lawyer .", "The lawyer saw the doctor .", return_tensors="pt")
    ).logits
    print(
        f'\nfrom_pretrained("{path}") loads; "The doctor saw the lawyer ." -> "The lawyer saw the doctor .":', end=" "
    )
    print(model.config.id2label[int(logits.argmax())])


if __name__ == "__main__":
    main()
