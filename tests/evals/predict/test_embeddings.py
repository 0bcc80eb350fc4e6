"""Similarities are the sentence-transformers library's: prompt, tokens, pooling, dense layers and normalisation alike."""

from __future__ import annotations

import json
import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.stats
import torch
from safetensors.torch import load_file, save_file
from sentence import SIZE, dense_of, embed, embeddings, needs_library, save_sentence, write_json
from tiny import bert_config, random_tensors, save_checkpoint, sentence

import evals
from evals.predict.embeddings import embeds
from evals.predict.predictor import make_predictor
from evals.predict.regression import regression_losses
from evals.tasks import TASKS
from evals.tasks.task import Rows
from merge.checkpoints.inputs import load_tokenizer
from merge.checkpoints.open import open_checkpoint, open_encoder
from merge.checkpoints.transformers_model import build
from merge.errors import TaskError

STSB = TASKS["stsb"]
GENERATOR = random.Random(1)
PAIRS = [(sentence(GENERATOR, 12), sentence(GENERATOR, 6)) for _ in range(24)]
GOLD = [round(GENERATOR.uniform(0, 5), 2) for _ in PAIRS]
DATA = [{"sentence1": a, "sentence2": b, "score": gold} for (a, b), gold in zip(PAIRS, GOLD, strict=True)]
ROWS = Rows(tuple(PAIRS), tuple(GOLD), (), "made", "test", tuple(map(str, range(len(PAIRS)))))


def ours(folder: Path, pairs: list[tuple[str, str]] = PAIRS) -> torch.Tensor:
    predictor = make_predictor(open_encoder(str(folder)), cache=False)
    rows = Rows(tuple(pairs), (0.0,) * len(pairs), (), "made", "test", tuple(map(str, range(len(pairs)))))
    return predictor.logits(predictor.encode(rows))[:, 0]


def by_hand(folder: Path) -> torch.Tensor:
    """Return the cosines of mean pooling, a dense layer and tanh, written out."""
    tensors = load_file(folder / "model.safetensors")
    model = build(open_checkpoint(str(folder)).config, tensors)
    first, second = (embeddings(model, folder, dense_of(folder), [pair[k] for pair in PAIRS]) for k in (0, 1))
    return (first * second).sum(1)


def test_cosines_are_those_worked_out_by_hand(tmp_path: Path) -> None:
    folder = save_sentence(tmp_path / "a", seed=1)
    torch.testing.assert_close(ours(folder), by_hand(folder), rtol=0, atol=1e-5)
    other = save_sentence(tmp_path / "b", seed=1, pooling={"embedding_dimension": SIZE, "pooling_mode": "cls"})
    assert float((ours(other) - ours(folder)).abs().max()) > 1e-2


def with_norm(folder: Path) -> None:
    """Put a layer norm with weights of its own in the place of the dense layer."""
    listed = json.loads((folder / "modules.json").read_text())
    listed[2] |= {"path": "2_LayerNorm", "type": "sentence_transformers.models.LayerNorm"}
    write_json(folder / "modules.json", listed)
    write_json(folder / "2_LayerNorm" / "config.json", {"dimension": SIZE})
    weights = {"norm.weight": torch.rand(SIZE) + 0.5, "norm.bias": torch.rand(SIZE)}
    save_file(weights, folder / "2_LayerNorm" / "model.safetensors", metadata={"format": "pt"})


def lower_and_short(folder: Path) -> None:
    write_json(folder / "sentence_bert_config.json", {"max_seq_length": 6, "do_lower_case": True})


def residual(folder: Path) -> None:
    path = folder / "2_Dense" / "config.json"
    settings = json.loads(path.read_text()) | {"out_features": SIZE, "use_residual": True}
    write_json(path, settings)
    generator = torch.Generator().manual_seed(4)
    weights = {"linear.weight": torch.randn(SIZE, SIZE, generator=generator), "linear.bias": torch.ones(SIZE)}
    save_file(weights, folder / "2_Dense" / "model.safetensors", metadata={"format": "pt"})


def pool(mode: Any, **more: Any) -> dict[str, Any]:
    return {"embedding_dimension": SIZE, "pooling_mode": mode, **more}


PROMPT = {"prompts": {"sts": "the doctor : ", "other": "a "}, "default_prompt_name": "sts"}
OLD = {"word_embedding_dimension": SIZE, "pooling_mode_cls_token": True, "pooling_mode_mean_tokens": True}
PIPELINES: dict[str, tuple[dict[str, Any], Any]] = {
    **{mode: ({"pooling": pool(mode)}, None) for mode in ("mean", "cls", "max", "weightedmean", "lasttoken")},
    "root": ({"pooling": pool("mean_sqrt_len_tokens")}, None),
    "two modes": ({"pooling": pool(["mean", "cls"]), "dense": False}, None),
    "old names": ({"pooling": OLD, "dense": False}, None),
    "prompt": (PROMPT, None),
    "prompt left out": ({**PROMPT, "pooling": pool("mean", include_prompt=False)}, None),
    "first token after the prompt": ({**PROMPT, "pooling": pool("cls", include_prompt=False)}, None),
    "weighted after the prompt": ({**PROMPT, "pooling": pool("weightedmean", include_prompt=False)}, None),
    "lower case, six tokens": ({}, lower_and_short),
    "layer norm": ({}, with_norm),
    "residual": ({}, residual),
}  # fmt: skip


@pytest.mark.slow
@needs_library
def test_cosines_are_those_of_the_library(tmp_path: Path) -> None:
    """Every pooling, prompt and module; each pipeline differs from the plain one."""
    from sentence_transformers import SentenceTransformer

    plain = None
    for name, (settings, change) in PIPELINES.items():
        folder = save_sentence(tmp_path / name.replace(" ", "-"), seed=3, **settings)
        if change is not None:
            change(folder)
        library = SentenceTransformer(str(folder), device="cpu", local_files_only=True)
        first, second = (library.encode([pair[k] for pair in PAIRS], convert_to_tensor=True) for k in (0, 1))
        expected = torch.nn.functional.cosine_similarity(first, second)
        torch.testing.assert_close(
            ours(folder), expected, rtol=0, atol=2e-5, msg=lambda text, name=name: f"{name}: {text}"
        )
        plain = expected if plain is None else plain
        assert name == "mean" or float((expected - plain).abs().max()) > 1e-3, name


def test_stsb_is_scored_by_the_cosine(tmp_path: Path) -> None:
    """Correlations by scipy; the loss is the squared distance to the gold number on the scale of 0 to 1, and it is said."""
    folder = save_sentence(tmp_path / "a", seed=1)
    scores = evals.score(str(folder), "stsb", data=DATA)
    cosines = by_hand(folder).numpy()
    assert scores[0]["pearson"] == pytest.approx(scipy.stats.pearsonr(GOLD, cosines)[0], abs=1e-4)
    assert scores[0]["spearmanr"] == pytest.approx(scipy.stats.spearmanr(GOLD, cosines)[0], abs=1e-2)
    assert scores[0]["loss"] == pytest.approx(float(np.mean((cosines - np.array(GOLD) / 5) ** 2)), abs=1e-5)
    assert any("cosines of embeddings" in note for note in scores.notes)


def test_a_setting_of_the_pipeline_is_part_of_a_result_s_key(tmp_path: Path) -> None:
    """Another pooling beside the same weights is another result, and a stored one is not taken for it."""
    folder = save_sentence(tmp_path / "a", seed=1)
    first = evals.score(str(folder), "stsb", data=DATA, output=tmp_path / "report")
    write_json(folder / "1_Pooling" / "config.json", pool("cls"))
    second = evals.score(str(folder), "stsb", data=DATA, output=tmp_path / "report")
    assert first.records[0]["key"] != second.records[0]["key"]
    assert first[0]["pearson"] != second[0]["pearson"]


def test_the_barrier_of_embeddings_is_that_of_squared_errors(tmp_path: Path) -> None:
    """Half way lies the model of averaged weights, dense layer included, worked out by hand."""
    a, b = (save_sentence(tmp_path / name, seed=seed) for seed, name in enumerate("ab"))
    measured = evals.barrier(str(a), str(b), task="stsb", data=DATA, points=3)

    def middle(read: Any) -> dict[str, torch.Tensor]:
        left, right = read(a), read(b)
        return {name: (left[name] + right[name]) / 2 for name in left}

    encoder = middle(lambda folder: load_file(folder / "model.safetensors"))
    dense = middle(dense_of)
    first, second = (embed(a, encoder, dense, [pair[k] for pair in PAIRS]) for k in (0, 1))
    expected = float((((first * second).sum(1) - torch.tensor(GOLD) / 5) ** 2).mean())
    curve = measured.curves["naive"]
    assert curve["loss"][1] == pytest.approx(expected, abs=1e-5)
    assert curve["accuracy"] == [None] * 3
    assert curve["barrier"] == pytest.approx(max(0, expected - (curve["loss"][0] + curve["loss"][2]) / 2), abs=1e-6)
    assert curve["barrier_interval"]["high"] > 0
    assert len(measured.plot().axes) == 1


def test_an_embedder_is_not_taken_for_a_classifier(tmp_path: Path) -> None:
    folder = save_sentence(tmp_path / "a", seed=1)
    assert embeds(open_encoder(str(folder)))
    assert not embeds(open_encoder(str(save_checkpoint(tmp_path / "b", seed=1))))
    with pytest.raises(TaskError, match="embeds texts; mnli asks for a class"):
        evals.score(str(folder), "mnli", data=[{"premise": "a", "hypothesis": "the", "label": "neutral"}])


def test_a_cross_encoder_with_one_output_is_told_to_score_numbers(tmp_path: Path) -> None:
    """Its one output is no class: to name it, as other models are told to, would not help."""
    config = bert_config(labels=("LABEL_0",))
    folder = str(save_checkpoint(tmp_path / "a", config, tensors=random_tensors(config, 3, torch.float32)))
    rows = [{"premise": "a", "hypothesis": "the", "label": "neutral"}]
    for labels in (None, ["entailment", "neutral", "contradiction"]):
        with pytest.raises(TaskError, match="it has one output, a score of each row, and .*, such as stsb") as caught:
            evals.score(folder, "mnli", data=rows, labels=labels)
        assert "--labels entailment" not in str(caught.value)
    two = bert_config(labels=("LABEL_0", "LABEL_1"))
    other = str(save_checkpoint(tmp_path / "b", two, tensors=random_tensors(two, 3, torch.float32)))
    with pytest.raises(TaskError, match="These are placeholders: give its class names"):  # the control
        evals.score(other, "mnli", data=rows)


def test_a_record_says_whether_its_numbers_are_of_pairs(tmp_path: Path) -> None:
    """The model card files them by it; a number for a single text, and classes, have no such mark."""
    config = bert_config(labels=("LABEL_0",))
    folder = str(save_checkpoint(tmp_path / "a", config, tensors=random_tensors(config, 3, torch.float32)))
    (tmp_path / "stars.yaml").write_text(
        "name: stars\ndata: stars.jsonl\ncolumns: [text]\nlabel_column: stars\nregression: true\n", encoding="utf-8"
    )
    lines = "".join(json.dumps({"text": "a", "stars": k}) + "\n" for k in range(4))
    (tmp_path / "stars.jsonl").write_text(lines, encoding="utf-8")
    assert evals.score(folder, "stsb", data=DATA).records[0]["similarity"] is True
    assert "similarity" not in evals.score(folder, str(tmp_path / "stars.yaml")).records[0]


@pytest.mark.parametrize(
    "stated",
    [
        {"sentence_transformers": {"activation_fn": "torch.nn.modules.activation.Sigmoid", "version": "5.0.0"}},
        {"sbert_ce_default_activation_function": "torch.nn.modules.activation.Sigmoid"},
    ],
    ids=["5", "2"],
)
def test_the_score_of_a_cross_encoder_goes_through_its_activation(tmp_path: Path, stated: Mapping[str, Any]) -> None:
    """A sigmoid changes Pearson's correlation: the library applies what the folder states, wherever its version wrote it."""
    config = bert_config(labels=("LABEL_0",))
    folder = save_checkpoint(tmp_path / "a", config, tensors=random_tensors(config, 3, torch.float32))
    path = folder / "config.json"
    logits = evals.score(str(folder), "stsb", data=DATA)
    path.write_text(json.dumps(json.loads(path.read_text()) | dict(stated)), encoding="utf-8")
    sigmoid = evals.score(str(folder), "stsb", data=DATA)
    predictor = make_predictor(open_checkpoint(str(folder)))
    raw = predictor.logits(predictor.encode(ROWS))
    expected = 1 / (1 + np.exp(-raw[:, 0].double().numpy()))
    assert sigmoid[0]["pearson"] == pytest.approx(scipy.stats.pearsonr(GOLD, expected)[0], abs=1e-6)
    assert abs(sigmoid[0]["pearson"] - logits[0]["pearson"]) > 1e-4
    losses, predicted = regression_losses(raw, STSB, ROWS, open_checkpoint(str(folder)))
    np.testing.assert_allclose(predicted.numpy(), expected, atol=1e-6)
    np.testing.assert_allclose(losses.numpy(), (expected - np.array(GOLD) / 5) ** 2, atol=1e-6)


def test_a_module_that_is_not_known_is_named(tmp_path: Path) -> None:
    folder = save_sentence(tmp_path / "a", dense=False)
    listed = json.loads((folder / "modules.json").read_text())
    listed[2] |= {"type": "sentence_transformers.models.CNN"}
    write_json(folder / "modules.json", listed)
    with pytest.raises(TaskError, match="the module CNN is not known"):
        evals.score(str(folder), "stsb", data=DATA)
    assert load_tokenizer(folder) is not None
