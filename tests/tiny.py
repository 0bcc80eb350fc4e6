"""Tiny random models, built in code: every parameter is drawn, so that no error hides behind a default of 0 or 1."""

from __future__ import annotations

import json
import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor

from merge.checkpoints.transformers_model import build, model_class, model_config

WORDS = ["the", "a", "doctor", "lawyer", "saw", "helped", "quietly", "and", "who", "near", "river", "##s", "."]
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
NLI = ("entailment", "neutral", "contradiction")


def bert_config(architecture: str = "BertForSequenceClassification", **changes: Any) -> dict[str, Any]:
    """Return the config.json of a tiny BERT; sizes are all different, so that no two axes can be mixed up."""
    labels = changes.pop("labels", NLI)
    config = {
        "architectures": [architecture],
        "model_type": "bert",
        "vocab_size": len(SPECIAL) + len(WORDS),
        "hidden_size": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 40,
        "max_position_embeddings": 32,
        "type_vocab_size": 2,
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
    }
    if architecture.endswith(("ForSequenceClassification", "ForTokenClassification")):
        config |= {"id2label": {str(i): name for i, name in enumerate(labels)}}
        config |= {"label2id": {name: i for i, name in enumerate(labels)}}
    return config | changes


def random_tensors(config: Mapping[str, Any], seed: int, dtype: torch.dtype = torch.float64) -> dict[str, Tensor]:
    """Return every stored tensor by the name transformers writes: gains 1 + .3 N, all others .3 N."""
    generator = torch.Generator().manual_seed(seed)
    with torch.device("meta"):
        skeleton = model_class(config)(model_config(config))
    tied = set(skeleton.all_tied_weights_keys)
    out = {}
    for name, empty in skeleton.state_dict().items():
        if name in tied:
            continue
        drawn = 0.3 * torch.randn(empty.shape, generator=generator, dtype=torch.float64)
        out[name] = (drawn + (1.0 if name.endswith("LayerNorm.weight") else 0.0)).to(dtype)
    return out


def save_checkpoint(
    folder: Path,
    config: Mapping[str, Any] | None = None,
    seed: int = 0,
    tensors: Mapping[str, Tensor] | None = None,
    tokenizer: bool = True,
) -> Path:
    """Write a checkpoint as transformers does and return its folder."""
    config = dict(config or bert_config())
    tensors = tensors if tensors is not None else random_tensors(config, seed, torch.float32)
    model = build(config, tensors)
    model.save_pretrained(folder)
    written = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    (folder / "config.json").write_text(
        json.dumps(written | {"architectures": config["architectures"]}), encoding="utf-8"
    )
    if tokenizer:
        save_tokenizer(folder)
    return folder


def save_tokenizer(folder: Path, words: list[str] | None = None) -> None:
    """Write a WordPiece tokenizer of the tiny vocabulary."""
    entries = [*SPECIAL, *(words or WORDS)]
    made = transformers.BertTokenizer(vocab={word: i for i, word in enumerate(entries)}, do_lower_case=True)
    made.save_pretrained(folder)


def write_text(path: Path, lines: int = 300) -> Path:
    """Write a calibration text of random sentences over the tiny vocabulary."""
    generator = torch.Generator().manual_seed(3)
    nouns = [word for word in WORDS if not word.startswith("##") and word != "."]
    with path.open("w", encoding="utf-8") as file:
        for _ in range(lines):
            length = int(torch.randint(3, 12, (1,), generator=generator))
            chosen = torch.randint(len(nouns), (length,), generator=generator).tolist()
            file.write(" ".join(nouns[i] for i in chosen) + " .\n")
    return path


def sentence(generator: random.Random, longest: int) -> str:
    """Return words drawn at random, one to so many."""
    return " ".join(generator.choices(WORDS[:11], k=generator.randint(1, longest)))
