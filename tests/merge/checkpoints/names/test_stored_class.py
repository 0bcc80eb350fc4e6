"""Stored class: weights of a bare encoder are read as the base model, whatever class config.json names."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from layouts.parts import no_tokenizer, prefixed, with_tensors, without
from layouts.shelf import BERT, BERT_CLASSES, BERT_MLM, DISTILBERT, MPNET, ROBERTA, Layout, of
from safetensors.torch import load_file

from merge.checkpoints.open import open_checkpoint
from merge.checkpoints.transformers_model import loading, loading_faults
from merge.errors import CheckpointError, MismatchError
from merge.recipe.recipe import make_recipe
from merge.run.run import run

# The class of the weights, and the class that config.json names.
STATED = {
    "MPNet": (MPNET, "MPNetForMaskedLM"),
    "RoBERTa": (of("roberta", "RobertaModel", ROBERTA), "RobertaForMaskedLM"),
    "RoBERTa that classifies": (of("roberta", "RobertaModel", ROBERTA), "RobertaForSequenceClassification"),
    "XLM-RoBERTa": (of("xlm-roberta", "XLMRobertaModel", ROBERTA), "XLMRobertaForMaskedLM"),
    "BERT": (BERT, "BertForMaskedLM"),
    "BERT that classifies": (BERT, "BertForSequenceClassification"),
    "DistilBERT": (of("distilbert", "DistilBertModel", DISTILBERT), "DistilBertForMaskedLM"),
    "an author's class": (BERT, "Contriever"),
    "no class": (BERT, None),
}


def save(folder: Path, config: dict[str, Any], stated: str | None, seed: int, *names: Any) -> Path:
    changes = {"architectures": None if stated is None else [stated]}
    return Layout("", config, names, tokenizer=no_tokenizer, config=changes).write(folder, seed)


@pytest.mark.parametrize("case", STATED)
def test_a_bare_encoder_is_its_base_model_whatever_config_says(case: str, tmp_path: Path) -> None:
    """It merges with its own fine-tune, which names the base model, and AutoModel loads all of the result."""
    import transformers

    config, stated = STATED[case]
    a, b = save(tmp_path / "a", config, stated, 0), save(tmp_path / "b", config, config["architectures"][0], 1)
    opened, tuned = open_checkpoint(str(a)), open_checkpoint(str(b))
    assert opened.architecture == config["architectures"][0]
    assert opened.tensors.keys() == tuned.tensors.keys()
    assert len(opened.notes) == 1
    assert tuned.notes == ()
    run(make_recipe({"models": [str(a), str(b)], "output": str(tmp_path / "out")}))
    with loading():
        model, info = transformers.AutoModel.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert loading_faults(info) == []
    left, right = (load_file(folder / "model.safetensors") for folder in (a, b))
    state = model.state_dict()
    assert max(float((state[n] - (left[n] + right[n]) / 2).abs().max()) for n in left) < 1e-6


@pytest.mark.parametrize(
    "case", ["MPNet", *(pytest.param(name, marks=pytest.mark.slow) for name in ("RoBERTa", "DistilBERT"))]
)
def test_a_bare_encoder_aligns(case: str, tmp_path: Path) -> None:
    config, stated = STATED[case]
    a, b = (str(save(tmp_path / f, config, stated, k)) for k, f in enumerate("ab"))
    report = run(
        make_recipe({"models": [a, b], "output": str(tmp_path / "o"), "align": {"by": "weights"}}), dry_run=True
    )
    proof = report.rebased.aligned[0].proof
    assert proof.error < proof.bound


def test_a_head_keeps_its_class_and_a_part_of_one_is_refused(tmp_path: Path) -> None:
    whole = open_checkpoint(str(save(tmp_path / "whole", BERT_MLM, "BertForMaskedLM", 0)))
    assert (whole.architecture, whole.notes) == ("BertForMaskedLM", ())
    part = str(save(tmp_path / "part", BERT_MLM, "BertForMaskedLM", 0, without("transform.dense")))
    assert open_checkpoint(part).architecture == "BertForMaskedLM"
    with pytest.raises(MismatchError, match="lacks 2 weights of its class BertForMaskedLM"):
        run(make_recipe({"models": [part, part], "output": str(tmp_path / "out")}))


def test_a_class_that_computes_more_than_its_encoder_is_refused(tmp_path: Path) -> None:
    """ColBERT's authors project each token: read as a BERT, the projection would be lost."""
    names = (prefixed("bert."), with_tensors(linear__weight=(16, 24)))
    with pytest.raises(CheckpointError, match="transformers has no model class 'HF_ColBERT'"):
        open_checkpoint(str(save(tmp_path / "m", BERT, "HF_ColBERT", 0, *names)))


def test_a_classifier_saved_without_prefix_is_no_bare_encoder(tmp_path: Path) -> None:
    def bare(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return {name.removeprefix("bert."): tensor for name, tensor in tensors.items()}

    opened = open_checkpoint(str(save(tmp_path / "m", BERT_CLASSES, "BertForSequenceClassification", 0, bare)))
    assert (opened.architecture, opened.notes) == ("BertForSequenceClassification", ())
