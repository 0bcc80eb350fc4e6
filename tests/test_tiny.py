"""Tiny checkpoints are what transformers writes, whoever wrote the weights."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tiny import bert_config, random_tensors, save_checkpoint

from merge.checkpoints.transformers_model import build


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("architecture", ["BertForSequenceClassification", "BertForMaskedLM"])
def test_a_checkpoint_is_what_transformers_writes(architecture: str, dtype: torch.dtype, tmp_path: Path) -> None:
    """File by file; weights of another seed are other weights. A head of words is tied, and written once."""
    config = bert_config(architecture)
    tensors = random_tensors(config, 5, dtype)
    build(config, tensors).save_pretrained(tmp_path / "theirs")
    save_checkpoint(tmp_path / "ours", config, tensors=tensors, tokenizer=False)
    save_checkpoint(tmp_path / "other", config, tensors=random_tensors(config, 6, dtype), tokenizer=False)
    names = sorted(path.name for path in (tmp_path / "theirs").iterdir())
    assert "model.safetensors" in names
    assert sorted(path.name for path in (tmp_path / "ours").iterdir()) == names
    weights = {name: (tmp_path / name / "model.safetensors").read_bytes() for name in ("ours", "theirs", "other")}
    assert weights["ours"] == weights["theirs"] != weights["other"]
    assert {tensor.dtype for tensor in load_file(tmp_path / "ours" / "model.safetensors").values()} == {dtype}
