"""Contribution of layers: against the hidden states transformers reports, and layers planted to do nothing."""

from __future__ import annotations

import re
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from layered import checkpoint_of, original_model
from tiny import bert_config, random_tensors, save_checkpoint, write_text

from merge.checkpoints.open import open_checkpoint
from merge.errors import CalibrationError, UsageError
from merge.layers.strategies.importance import layer_scores, measure_importance
from merge.text.source import TextSource

CLS = 2


def batches(count: int = 2) -> tuple[dict[str, torch.Tensor], ...]:
    """Return padded tokens; the sentence token stands first in one row of each batch and later in the other."""
    generator = torch.Generator().manual_seed(0)
    made = []
    for length in range(5, 5 + count):
        ids = torch.randint(3, 18, (2, length), generator=generator)
        ids[0, 0], ids[1, 2] = CLS, CLS
        mask = torch.ones_like(ids)
        mask[1, -1] = 0
        made.append({"input_ids": ids, "attention_mask": mask})
    return tuple(made)


def expected(model: Any, at: list[tuple[int, int]]) -> np.ndarray[Any, Any]:
    """Return 1 - mean cosine by numpy from output_hidden_states, at (row, place) of every batch."""
    cosines = []
    for batch in batches():
        with torch.inference_mode():
            states = [h.double().numpy() for h in model(**batch, output_hidden_states=True).hidden_states]
        for row, place in at:
            xs = [state[row, place] for state in states]
            cosines.append([x @ y / np.sqrt((x @ x) * (y @ y)) for x, y in pairwise(xs)])
    return 1 - np.mean(cosines, axis=0)


@pytest.mark.parametrize("kind", ["bert", "distilbert", "albert", "xlnet", "electra"])
def test_scores_are_those_of_the_hidden_states(kind: str) -> None:
    """Of post-LN models, whose reported states are exactly what goes in and out of layers."""
    model = original_model(checkpoint_of(kind))
    scores = layer_scores(model, batches(), CLS)
    assert len(scores) == 4
    assert np.abs(np.array(scores) - expected(model, [(0, 0), (1, 2)])).max() < 1e-6
    assert np.abs(np.array(scores) - expected(model, [(0, 0), (1, 0)])).max() > 1e-3  # another token, another score


@pytest.mark.parametrize(
    ("kind", "branches"),
    [
        ("modernbert", ("attn.Wo.", "mlp.Wo.")),
        ("gpt2", ("attn.c_proj.", "mlp.c_proj.")),
        ("llama", ("self_attn.o_proj.", "mlp.down_proj.")),
    ],
)
def test_a_layer_that_does_nothing_scores_nothing(kind: str, branches: tuple[str, ...]) -> None:
    """Planted: both branches of layer 2 end in zero, so its output is its input; the other layers' are not."""
    model = original_model(checkpoint_of(kind))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if re.search(r"\.2\.", name) and any(branch in name for branch in branches):
                parameter.zero_()
    scores = layer_scores(model, batches(), CLS)
    assert abs(scores[2]) < 1e-12
    assert min(scores[:2] + scores[3:]) > 1e-3


def test_without_a_sentence_token_the_last_attended_one_stands_for_the_text() -> None:
    model = original_model(checkpoint_of("bert"))
    scores = np.array(layer_scores(model, batches(1), None))
    reference = []
    batch = batches(1)[0]
    with torch.inference_mode():
        states = [h.double().numpy() for h in model(**batch, output_hidden_states=True).hidden_states]
    for row, place in ((0, 4), (1, 3)):  # of five tokens, the second row's last is padding
        xs = [state[row, place] for state in states]
        reference.append([x @ y / np.sqrt((x @ x) * (y @ y)) for x, y in pairwise(xs)])
    assert np.abs(scores - (1 - np.mean(reference, axis=0))).max() < 1e-6


def test_a_text_without_the_sentence_token_is_an_error() -> None:
    model = original_model(checkpoint_of("bert"))
    with pytest.raises(CalibrationError, match="sentence token .id 99. is missing"):
        layer_scores(model, batches(), 99)
    assert all(not module._forward_hooks for module in model.modules())  # none is left behind


def planted(folder: Path) -> Path:
    """Write a BERT of four layers of which layer 1 gives back what it is given: LN(LN(x)) is LN(x)."""
    config = bert_config(num_hidden_layers=4)
    tensors = random_tensors(config, 0, torch.float32)
    for name in [n for n in tensors if re.search(r"layer\.1\.(attention\.)?output\.dense\.", n)]:
        tensors[name] = torch.zeros_like(tensors[name])
    for name in [n for n in tensors if re.search(r"layer\.(0\.|1\.(attention\.)?)output\.LayerNorm", n)]:
        tensors[name] = torch.ones_like(tensors[name]) if name.endswith("weight") else torch.zeros_like(tensors[name])
    return save_checkpoint(folder, config, tensors=tensors)


def test_a_planted_layer_is_found_on_text(tmp_path: Path) -> None:
    """And on any text the same draw gives the same scores."""
    checkpoint = open_checkpoint(str(planted(tmp_path / "m")))
    text = str(write_text(tmp_path / "text.txt", 40))
    importance = measure_importance(checkpoint, TextSource(text, samples=30))
    assert abs(importance.scores[1]) < 1e-6
    assert min(importance.scores[:1] + importance.scores[2:]) > 1e-3
    assert "30 of 40" in importance.text
    assert any("sample is small" in note for note in importance.notes)
    assert measure_importance(checkpoint, TextSource(text, samples=30)).scores == importance.scores
    assert measure_importance(checkpoint, TextSource(text, samples=30, seed=1)).scores != importance.scores


def test_what_reads_no_text_has_no_importance(tmp_path: Path) -> None:
    bare = open_checkpoint(str(save_checkpoint(tmp_path / "m", tokenizer=False)))
    with pytest.raises(CalibrationError, match="has no tokenizer, which strategy contribution needs"):
        measure_importance(bare)
    with pytest.raises(UsageError, match="ViTModel: strategy contribution works for models with one text input"):
        measure_importance(checkpoint_of("vit"))
    with pytest.raises(UsageError, match="CLIPModel"):
        measure_importance(checkpoint_of("clip"), stack="text")
    with pytest.raises(UsageError, match="BartModel"):
        measure_importance(checkpoint_of("bart"), stack="encoder")
