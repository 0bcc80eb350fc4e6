"""Families without a table, by the command as it is typed: aligned, or refused in one line whose advice can be followed."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from families import SIZES
from tiny import SPECIAL, WORDS, save_tokenizer

from merge.checkpoints.transformers_model import model_class, model_config, quiet
from merge.commands.merge_models import main

VOCABULARY = len(SPECIAL) + len(WORDS)
SMALL = {**SIZES, "vocab_size": VOCABULARY, "num_hidden_layers": 1, "max_position_embeddings": 20}
XLM = {"vocab_size": VOCABULARY, "emb_dim": 24, "n_layers": 1, "n_heads": 4, "max_position_embeddings": 20} | {
    "n_langs": 2,
    "pad_index": 0,
    "dropout": 0.0,
}
FUNNEL = {"vocab_size": VOCABULARY, "d_model": 24, "n_head": 4, "d_head": 6, "d_inner": 40, "block_sizes": [1, 1]}
ADAPTERS = {"languages": ["en_XX", "de_DE"], "default_language": "en_XX"}
CONFIGS: dict[str, tuple[str, dict[str, Any]]] = {
    "funnel": ("FunnelModel", FUNNEL),
    "flaubert": ("FlaubertModel", XLM),
    "xlm": ("XLMModel", XLM),
    "xmod": ("XmodModel", SMALL | ADAPTERS),
    "lilt": ("LiltModel", SMALL | {"channel_shrink_ratio": 2, "max_2d_position_embeddings": 30}),
    "luke": ("LukeModel", SMALL | {"entity_vocab_size": 9, "entity_emb_size": 7}),
    "big_bird": ("BigBirdModel", SMALL | {"block_size": 4, "num_random_blocks": 1}),
    "squeezebert": ("SqueezeBertModel", SMALL | {"embedding_size": 24, "q_groups": 2, "k_groups": 2, "v_groups": 2}),
    "longformer": ("LongformerModel", SMALL | {"attention_window": 4}),
}
# Activations that pool tokens or fill texts up to a window do not tell padding apart; entities are in no text.
NOT_BY_ACTIVATIONS = {"funnel": "v1", "squeezebert": "heads", "longformer": "residual", "luke": "entity_embeddings"}
# Refused by activations, for two reasons; and aligned by weights.
QUICK = (("funnel", "activations"), ("luke", "activations"), ("luke", "weights"))


@pytest.fixture(scope="module")
def family(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    """Return a model type, and a folder of two models of it and of text that is longer than they take."""
    architecture, sizes = CONFIGS[request.param]
    config = {"model_type": request.param, "architectures": [architecture], **sizes}
    folder = tmp_path_factory.mktemp(request.param)
    for seed, name in enumerate("ab"):
        torch.manual_seed(seed)
        with quiet():
            model_class(config)(model_config(config)).save_pretrained(folder / name)
        save_tokenizer(folder / name)
    rows = ((WORDS[:11] * 9)[start : start + 60] for start in range(30))
    (folder / "long.txt").write_text("\n".join(" ".join(row) for row in rows), encoding="utf-8")
    return request.param, folder


# `auto` tries what the other two do: it meets a family that activations match, and each kind that they refuse.
AUTO = ("xmod", "funnel", "luke")


@pytest.mark.parametrize(
    ("family", "by"),
    [
        pytest.param(family, by, marks=() if (family, by) in QUICK else pytest.mark.slow)
        for family in CONFIGS
        for by in ("weights", *(["auto"] if family in AUTO else []), "activations")
    ],
    indirect=["family"],
)
def test_a_family_is_aligned_or_refused_by_name(
    by: str, family: tuple[str, Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """With long text, no traceback; what is refused says which axis, and by weights, as the advice says, it works."""
    model_type, folder = family
    text = [] if by == "weights" else ["--text", str(folder / "long.txt")]
    out = folder / by
    arguments = ["merge-models", str(folder / "a"), str(folder / "b"), "--align", by, *text, "-o", str(out)]
    monkeypatch.setattr(sys, "argv", arguments)
    refused = by == "activations" and model_type in NOT_BY_ACTIVATIONS
    if refused:
        with pytest.raises(SystemExit) as stopped:
            main()
        assert stopped.value.code == 1
        said = capsys.readouterr().err.strip().splitlines()[-1]
        assert f'no activation for axis "{NOT_BY_ACTIVATIONS[model_type]}"' in said
        assert said.endswith("or use --align weights.")
        assert not out.exists()
    else:
        main()
        assert (out / "model.safetensors").exists()
        assert "proof:" in capsys.readouterr().out
