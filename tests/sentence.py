"""Tiny sentence-transformers folders, written as the library writes them, and their embeddings worked out by hand."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import bert_config, save_checkpoint
from torch import Tensor

from merge.checkpoints.inputs import load_tokenizer
from merge.checkpoints.open import open_checkpoint
from merge.checkpoints.transformers_model import build

INSTALLED = importlib.util.find_spec("sentence_transformers") is not None
needs_library = pytest.mark.skipif(not INSTALLED, reason="needs sentence-transformers (dependency group: sentence)")
SIZE, OUT = 24, 10
TEXTS = ["the doctor saw a lawyer", "who helped the river", "a doctor near the lawyers quietly helped", "the ."]


def write_json(path: Path, value: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value), encoding="utf-8")


def dense_weights(seed: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(100 + seed)
    return {
        "linear.weight": 0.3 * torch.randn(OUT, SIZE, generator=generator),
        "linear.bias": 0.3 * torch.randn(OUT, generator=generator),
    }


def save_sentence(
    folder: Path,
    seed: int = 0,
    pooling: dict[str, Any] | None = None,
    dense: bool = True,
    layers: int = 2,
    **general: Any,
) -> Path:
    """Write a folder as SentenceTransformer.save does: encoder, pooling, a dense layer with tanh, normalisation."""
    save_checkpoint(folder, bert_config("BertModel", num_hidden_layers=layers), seed=seed)
    kinds = ["Transformer", "Pooling", *(["Dense"] if dense else []), "Normalize"]
    package = "sentence_transformers.models"
    modules = [
        {"idx": i, "name": str(i), "path": f"{i}_{kind}" if i else "", "type": f"{package}.{kind}"}
        for i, kind in enumerate(kinds)
    ]
    write_json(folder / "modules.json", modules)
    write_json(folder / "1_Pooling" / "config.json", pooling or {"embedding_dimension": SIZE, "pooling_mode": "mean"})
    if dense:
        tanh = "torch.nn.modules.activation.Tanh"
        settings = {"in_features": SIZE, "out_features": OUT, "bias": True, "activation_function": tanh}
        write_json(folder / "2_Dense" / "config.json", settings)
        save_file(dense_weights(seed), folder / "2_Dense" / "model.safetensors", metadata={"format": "pt"})
    write_json(folder / "config_sentence_transformers.json", {"__version__": {}, "prompts": {}} | general)
    write_json(folder / "sentence_bert_config.json", {"max_seq_length": 32, "do_lower_case": False})
    return folder


def dense_of(folder: Path) -> dict[str, Tensor]:
    return load_file(folder / "2_Dense" / "model.safetensors")


def embed(
    folder: Path, encoder: dict[str, Tensor], dense: dict[str, Tensor] | None, texts: list[str] = TEXTS
) -> Tensor:
    """Return `embeddings` from tensors in memory."""
    return embeddings(build(open_checkpoint(str(folder)).config, encoder), folder, dense, texts)


def embeddings(model: Any, folder: Path, dense: dict[str, Tensor] | None, texts: list[str] = TEXTS) -> Tensor:
    """Return normalised embeddings of texts by an encoder in memory: mean over the tokens, a dense layer, tanh."""
    batch = load_tokenizer(folder)(texts, padding=True, return_tensors="pt")
    with torch.inference_mode():
        hidden = model(**batch).last_hidden_state
        mask = batch["attention_mask"].unsqueeze(-1).float()
        pooled = (hidden * mask).sum(1) / mask.sum(1)
        if dense is not None:
            pooled = torch.tanh(pooled @ dense["linear.weight"].T + dense["linear.bias"])
        return torch.nn.functional.normalize(pooled, dim=-1)
