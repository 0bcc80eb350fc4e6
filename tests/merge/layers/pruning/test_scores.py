"""Scores of heads and neurons: each equals what its definition gives when it is worked out another way."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from families import family_case
from quick import quick_on
from tiny import bert_config, random_tensors, save_checkpoint, write_text
from torch import Tensor

from merge.checkpoints.checkpoint import Checkpoint
from merge.checkpoints.open import open_checkpoint
from merge.errors import CalibrationError, UsageError
from merge.layers.pruning.predictions import Predictions, curvature_probe
from merge.layers.pruning.prune import Choice, prune_units
from merge.layers.pruning.scores import SCORES, unit_scores
from merge.layers.pruning.units import unit_layers
from merge.text.source import TextSource

OUT = "bert.encoder.layer.{}.attention.output.dense"
HEADS, SIZE = 4, 6


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return open_checkpoint(str(save_checkpoint(tmp_path_factory.mktemp("scores") / "m")))


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> TextSource:
    return TextSource(str(write_text(tmp_path_factory.mktemp("text") / "t.txt", 12)), samples=12)


def texts_of(checkpoint: Checkpoint, source: TextSource) -> tuple[Any, list[dict[str, Tensor]]]:
    """Return the model in float32, and every text of the source on its own."""
    model = transformers.AutoModelForSequenceClassification.from_pretrained(checkpoint.folder).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(checkpoint.folder)
    lines = Path(str(source.source)).read_text(encoding="utf-8").splitlines()
    return model, [dict(tokenizer(line, return_tensors="pt")) for line in lines]


def test_the_lesion_of_a_head_is_the_divergence_without_it(checkpoint: Checkpoint, source: TextSource) -> None:
    """KL(full || without the head) by torch's own kl_div, the head's output multiplied by zero in a hook, text by text."""
    layers = unit_layers(checkpoint, "heads")
    measured = unit_scores(checkpoint, layers, "lesion", source).layers[1][2]
    model, texts = texts_of(checkpoint, source)

    def hook(_module: Any, args: tuple[Tensor]) -> tuple[Tensor]:
        gate = torch.ones(HEADS * SIZE)
        gate[2 * SIZE : 3 * SIZE] = 0
        return (args[0] * gate,)

    with torch.inference_mode():
        full = [model(**text)["logits"].log_softmax(-1) for text in texts]
        model.get_submodule(OUT.format(1)).register_forward_pre_hook(hook)
        cut = [model(**text)["logits"].log_softmax(-1) for text in texts]
    pairs = zip(cut, full, strict=True)
    expected = [torch.nn.functional.kl_div(c, f, log_target=True, reduction="batchmean") for c, f in pairs]
    assert float(measured) == pytest.approx(float(torch.stack(expected).mean()), rel=1e-3)


def test_the_activation_of_a_head_is_the_mean_norm_of_what_it_adds(checkpoint: Checkpoint, source: TextSource) -> None:
    layers = unit_layers(checkpoint, "heads")
    measured = unit_scores(checkpoint, layers, "activation", source).layers[0]
    model, texts = texts_of(checkpoint, source)
    module, norms = model.get_submodule(OUT.format(0)), []
    module.register_forward_pre_hook(
        lambda m, args: norms.append((args[0][..., SIZE : 2 * SIZE] @ m.weight[:, SIZE : 2 * SIZE].T).norm(dim=-1)[0])
    )
    with torch.inference_mode():
        for text in texts:
            model(**text)
    assert float(measured[1]) == pytest.approx(float(torch.cat(norms).mean()), rel=1e-4)


def test_the_norm_of_a_neuron_is_of_its_weights_in_and_out(checkpoint: Checkpoint) -> None:
    layers = unit_layers(checkpoint, "neurons")
    measured = unit_scores(checkpoint, layers, "weight-norm", TextSource()).layers[1]
    first, second = (
        checkpoint.tensor(f"bert.encoder.layer.1.{name}.dense.weight").double() for name in ("intermediate", "output")
    )
    assert torch.allclose(measured, first.norm(dim=1) * second.norm(dim=0))


def test_the_gradient_by_a_gate_is_that_of_autograd(checkpoint: Checkpoint, tmp_path: Path) -> None:
    """A gate that is a tensor of the graph, multiplied in a hook: the mean of the absolute gradient over labelled texts."""
    (tmp_path / "t.tsv").write_text("text\tlabel\nthe doctor saw a lawyer\tneutral\na lawyer helped\tentailment\n")
    source, layers = TextSource(str(tmp_path / "t.tsv")), unit_layers(checkpoint, "heads")
    measured = unit_scores(checkpoint, layers, "gate-gradient", source, "labels", "label").layers[0]
    model = transformers.AutoModelForSequenceClassification.from_pretrained(checkpoint.folder).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(checkpoint.folder)
    gate = torch.ones(HEADS, requires_grad=True)
    model.get_submodule(OUT.format(0)).register_forward_pre_hook(
        lambda _module, args: (args[0] * gate.repeat_interleave(SIZE),)
    )
    found = []
    for text, label in (("the doctor saw a lawyer", 1), ("a lawyer helped", 0)):
        loss = model(**tokenizer(text, return_tensors="pt"), labels=torch.tensor([label])).loss
        found.append(torch.autograd.grad(loss, gate)[0].abs())
    assert torch.allclose(measured.float(), torch.stack(found).mean(0), rtol=1e-3, atol=1e-7)


@pytest.mark.parametrize("classes", [True, False])
def test_the_probe_has_the_second_derivative_of_the_divergence(classes: bool) -> None:
    """For logits diag(p) - p p^T, by torch's own Hessian of the KL divergence; for hidden states the identity."""
    logits = torch.tensor([[0.3, -0.8, 1.1]], requires_grad=True)
    generator = torch.Generator().manual_seed(0)
    total = torch.zeros(3, 3)
    for _ in range(800):
        (g,) = torch.autograd.grad(curvature_probe([Predictions(logits, classes)], generator), logits)
        total += g.T @ g
    fixed = logits.detach()[0]
    p = fixed.log_softmax(-1)
    kl = torch.autograd.functional.hessian(lambda z: (p.exp() * (p - z.log_softmax(-1))).sum(), fixed)
    assert torch.allclose(total / 800, kl if classes else torch.eye(3), atol=0.08)


def planted(folder: Path, architecture: str) -> Checkpoint:
    """Write a BERT in which head 2 of layer 1 and neuron 5 of layer 0 add nothing."""
    config = bert_config(architecture)
    tensors = random_tensors(config, 0, torch.float32)
    prefix = "" if architecture == "BertModel" else "bert."
    tensors[f"{prefix}encoder.layer.1.attention.output.dense.weight"][:, 12:18] *= 0
    tensors[f"{prefix}encoder.layer.0.output.dense.weight"][:, 5] *= 0
    return open_checkpoint(str(save_checkpoint(folder, config, tensors=tensors)))


@pytest.mark.parametrize("architecture", quick_on(("BertForMaskedLM",), ("BertForMaskedLM", "BertModel")))
@pytest.mark.parametrize("score", SCORES)
def test_a_head_that_adds_nothing_goes_first(score: str, architecture: str, tmp_path: Path, source: TextSource) -> None:
    """By every score, in a model with logits and in one with hidden states alone."""
    checkpoint = planted(tmp_path / "m", architecture)
    choice = Choice(score=score, count=1, source=source)
    report = prune_units(checkpoint, "heads", choice, tmp_path / "out", dry_run=True)
    assert report.pruned.facts["removed"] == {"1": [2]}
    assert score in report.pruned.lines[1]
    assert "training" in report.pruned.lines[1] or "train afterwards" in report.pruned.lines[1]
    if score != "lesion":
        report = prune_units(checkpoint, "neurons", choice, tmp_path / "out", dry_run=True)
        assert report.pruned.facts["removed"] == {"0": [5]}


def test_masked_words_give_gradients_too(tmp_path: Path, source: TextSource) -> None:
    checkpoint = planted(tmp_path / "m", "BertForMaskedLM")
    scores = unit_scores(checkpoint, unit_layers(checkpoint, "heads"), "gate-gradient", source, "masked")
    assert int(scores.layers[1].argmin()) == 2
    again = unit_scores(checkpoint, unit_layers(checkpoint, "heads"), "gate-gradient", source, "masked")
    assert torch.equal(scores.layers[0], again.layers[0])


FAULTS: Mapping[str, tuple[str, dict[str, Any], str]] = {
    "unknown": ("BertModel", {"name": "taylor"}, "unknown score 'taylor'"),
    "unknown loss": ("BertModel", {"name": "gate-gradient", "loss": "mlm"}, "unknown loss 'mlm'"),
    "no masked words": ("BertModel", {"name": "gate-gradient", "loss": "masked"}, "--loss masked is for ForMaskedLM"),
    "labels without a column": (
        "BertModel",
        {"name": "gate-gradient", "loss": "labels"},
        "--label-column belong together",
    ),
    "a column without labels": (
        "BertModel",
        {"name": "gate-gradient", "label_column": "x"},
        "--label-column belong together",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_what_a_score_cannot_measure_is_one_line(fault: str, tmp_path: Path, source: TextSource) -> None:
    architecture, options, message = FAULTS[fault]
    checkpoint = open_checkpoint(str(save_checkpoint(tmp_path / "m", bert_config(architecture))))
    with pytest.raises(UsageError, match=message) as raised:
        unit_scores(checkpoint, unit_layers(checkpoint, "heads"), source=source, **options)
    assert "\n" not in str(raised.value)


def test_a_model_without_a_tokenizer_is_scored_by_weights_alone(tmp_path: Path, source: TextSource) -> None:
    checkpoint = open_checkpoint(str(save_checkpoint(tmp_path / "m", family_case("roberta", "Model"), tokenizer=False)))
    layers = unit_layers(checkpoint, "heads")
    with pytest.raises(
        CalibrationError, match="has no tokenizer, which lesion needs to read text. Use --score weight-norm"
    ):
        unit_scores(checkpoint, layers, "lesion", source)
    assert len(unit_scores(checkpoint, layers, "weight-norm", source).layers) == 2
