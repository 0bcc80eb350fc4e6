"""The world of the fuzzer: one folder with a file of every kind that the commands read, all of them sound."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pyarrow
import pyarrow.parquet
import torch
from safetensors.torch import load_file, save_file
from tiny import bert_config, save_checkpoint

SMALL = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
LABELS = ["entailment", "neutral", "contradiction"]
ROWS = [
    {"premise": "the doctor saw a lawyer .", "hypothesis": "a lawyer helped .", "label": LABELS[k % 3]}
    for k in range(4)
]
TASK = """name: mine
data: rows.jsonl
columns: [premise, hypothesis]
label_column: label
labels: [entailment, neutral, contradiction]
metric: accuracy
"""
RECIPE = """# merge-models --recipe recipe.yaml
models:
  - model: a
    weight: 2
  - model: b
    weight: 1
base: base
method: ties
settings:
  density: 0.5
overrides:
  - tensors: "*.bias"
    settings: {density: {gradient: [0.2, 0.8]}}
statistics: {samples: 4}
seed: 3
dtype: float64
output: out
"""
MERGEKIT = """merge_method: dare_ties
base_model: base
slices:
  - sources:
      - model: a
        layer_range: [0, 1]
        parameters: {weight: 0.5, density: [0.1, 0.9]}
      - model: b
        layer_range: [0, 1]
        parameters: {weight: [{filter: attention, value: 0.2}, {value: 0.5}]}
parameters: {normalize: true, int8_mask: false}
dtype: float32
"""
# What the commands themselves write, and what cases may write to again.
PREPARED = (
    ("merge-models", "-q", "a", "b", "--align", "weights", "-o", "merged"),
    ("evaluate-models", "score", "-q", "task.yaml", "a", "b", "-o", "report"),
)
WRITTEN = ("merged/README.md", "merged/merge.json")


def make_world(folder: Path) -> Path:
    """Write all kinds of files into a folder and return it."""
    config = bert_config(**SMALL)
    for seed, name in enumerate(("a", "b", "base", "bin", "sharded", "sentence")):
        save_checkpoint(folder / name, config, seed=seed)
    _pickled(folder / "bin")
    _sharded(folder / "sharded")
    _sentence(folder / "sentence")
    for seed, name in enumerate(("old", "old2")):
        _roberta(folder / name, seed)
    (folder / "a" / "README.md").write_text("---\nlicense: mit\ntags: [x]\n---\n# a\n", encoding="utf-8")
    (folder / "a" / "vocab.txt").write_text("\n".join(_words(folder / "a")) + "\n", encoding="utf-8")
    (folder / "a" / "generation_config.json").write_text('{"max_length": 20}', encoding="utf-8")
    for name, text in (("recipe.yaml", RECIPE), ("mergekit.yaml", MERGEKIT), ("task.yaml", TASK)):
        (folder / name).write_text(text, encoding="utf-8")
    _rows(folder)
    return folder


def _words(folder: Path) -> list[str]:
    vocab = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))["model"]["vocab"]
    return sorted(vocab, key=vocab.__getitem__)


def _pickled(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    torch.save(tensors, folder / "pytorch_model.bin")


def _sharded(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = sorted(tensors)
    placed = {name: f"model-{1 + (k >= len(names) // 2):05}-of-00002.safetensors" for k, name in enumerate(names)}
    for shard in sorted(set(placed.values())):
        save_file({name: tensors[name] for name in names if placed[name] == shard}, folder / shard, {"format": "pt"})
    index = {"metadata": {"total_size": sum(t.nbytes for t in tensors.values())}, "weight_map": placed}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=1), encoding="utf-8")


def _sentence(folder: Path) -> None:
    listed = [
        {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"},
        {"idx": 1, "name": "1", "path": "1_Pooling", "type": "sentence_transformers.models.Pooling"},
        {"idx": 2, "name": "2", "path": "2_Dense", "type": "sentence_transformers.models.Dense"},
    ]
    pooling = {"word_embedding_dimension": 8, "pooling_mode_mean_tokens": True, "include_prompt": True}
    dense = {
        "in_features": 8,
        "out_features": 4,
        "bias": True,
        "activation_function": "torch.nn.modules.activation.Tanh",
    }
    general = {"prompts": {"query": "q: "}, "default_prompt_name": "query", "similarity_fn_name": "cosine"}
    for name, value in (
        ("modules.json", listed),
        ("1_Pooling/config.json", pooling),
        ("2_Dense/config.json", dense),
        ("config_sentence_transformers.json", general),
        ("sentence_bert_config.json", {"max_seq_length": 16, "do_lower_case": False}),
    ):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(json.dumps(value, indent=1), encoding="utf-8")
    tensors = {"linear.weight": torch.ones(4, 8), "linear.bias": torch.zeros(4)}
    save_file(tensors, folder / "2_Dense" / "model.safetensors", {"format": "pt"})
    shutil.copytree(folder, folder.with_name("sentence2"))


def _roberta(folder: Path, seed: int) -> None:
    """Write a RoBERTa with the files of an older tokenizer: vocab.json, merges.txt and their kin."""
    tokens = ["<s>", "<pad>", "</s>", "<unk>", "<mask>", *"abcdefgh", "ab", "cd", "abcd"]
    config = bert_config("RobertaForSequenceClassification", **SMALL) | {
        "model_type": "roberta", "vocab_size": len(tokens), "pad_token_id": 1, "max_position_embeddings": 34,
    }  # fmt: skip
    save_checkpoint(folder, config, seed=seed, tokenizer=False)
    for name, value in (
        ("vocab.json", {token: k for k, token in enumerate(tokens)}),
        ("added_tokens.json", {"<mask>": 4}),
        (
            "special_tokens_map.json",
            {"bos_token": "<s>", "unk_token": "<unk>", "pad_token": "<pad>", "mask_token": "<mask>"},
        ),
        ("tokenizer_config.json", {"tokenizer_class": "RobertaTokenizer", "model_max_length": 32}),
    ):
        (folder / name).write_text(json.dumps(value), encoding="utf-8")
    (folder / "merges.txt").write_text("#version: 0.2\na b\nc d\nab cd\n", encoding="utf-8")


def _rows(folder: Path) -> None:
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS), encoding="utf-8")
    (folder / "rows.json").write_text(json.dumps(ROWS), encoding="utf-8")
    for name, mark in (("rows.csv", ","), ("rows.tsv", "\t")):
        lines = [list(ROWS[0]), *(list(row.values()) for row in ROWS)]
        (folder / name).write_text("".join(mark.join(line) + "\n" for line in lines), encoding="utf-8")
    features = {"label": {"_type": "ClassLabel", "names": LABELS}, "premise": {"_type": "Value", "dtype": "string"}}
    table = pyarrow.table({key: [row[key] for row in ROWS] for key in ROWS[0]})
    table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    pyarrow.parquet.write_table(table, folder / "rows.parquet")
    _hans(folder)
    (folder / "text.txt").write_text("".join(f"{row['premise']}\n" for row in ROWS), encoding="utf-8")


def _hans(folder: Path) -> None:
    columns = ["gold_label", "sentence1", "sentence2", "pairID", "heuristic", "subcase", "template"]
    rows = [
        [gold, "The doctor saw .", "The lawyer saw .", f"ex{k}", heuristic, f"{heuristic[0]}{gold[0]}_x", "temp1"]
        for k, (gold, heuristic) in enumerate(
            (gold, heuristic)
            for gold in ("entailment", "non-entailment")
            for heuristic in ("lexical_overlap", "subsequence", "constituent")
        )
    ]
    (folder / "hans.tsv").write_text("".join("\t".join(row) + "\n" for row in [columns, *rows]), encoding="utf-8")
    lines = ["pairID,gold_label", *(f"ex{k},entailment" for k in range(6))]
    (folder / "hans.txt").write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
