"""A multi-layer perceptron is a checkpoint as any other: opened, aligned, merged, scored; its rows are read from text."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from families_numbers import CASES
from tiny import save_checkpoint
from transformers import AutoModelForSequenceClassification

import evals
import merge
from merge.checkpoints.inputs import load_tokenizer
from merge.checkpoints.mlp import MLPForSequenceClassification
from merge.checkpoints.settings import setting_differences
from merge.checkpoints.structure import structure_of
from merge.checkpoints.transformers_model import build
from merge.errors import CalibrationError
from merge.symmetry.permutation import apply, random

CONFIG = CASES["MLPForSequenceClassification"]
NUMBERS = torch.randn((40, CONFIG["input_size"]), generator=torch.Generator().manual_seed(1))
GOLD = torch.arange(40) % 3
LABELS = list(CONFIG["id2label"].values())
TEXTS = [" ".join(map(str, row)) for row in NUMBERS.tolist()]
ROWS = [{"numbers": text, "label": LABELS[gold]} for text, gold in zip(TEXTS, GOLD.tolist(), strict=True)]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("mlp")
    (folder / "kinds.yaml").write_text(
        f"name: kinds\ndata: rows.jsonl\ncolumns: numbers\nlabel_column: label\nlabels: [{', '.join(LABELS)}]\n",
        encoding="utf-8",
    )
    a, b = (save_checkpoint(folder / name, CONFIG, seed=k, tokenizer=False) for k, name in enumerate("ab"))
    return a, b


def _logits(tensors: dict[str, torch.Tensor]) -> torch.Tensor:
    """Return the logits by the formula of the layers, written out."""
    hidden = NUMBERS
    for i in range(CONFIG["num_hidden_layers"]):
        hidden = (hidden @ tensors[f"layers.{i}.dense.weight"].T + tensors[f"layers.{i}.dense.bias"]).clamp(min=0)
    return hidden @ tensors["classifier.weight"].T + tensors["classifier.bias"]


def test_the_model_is_the_formula_of_its_layers(folders: tuple[Path, Path]) -> None:
    tensors = merge.load(folders[0]).state_dict()
    model = build(CONFIG, tensors)
    assert type(model) is MLPForSequenceClassification
    assert (model(NUMBERS).logits - _logits(tensors)).abs().max() < 1e-5
    assert type(AutoModelForSequenceClassification.from_pretrained(folders[0])) is MLPForSequenceClassification


def test_the_line_between_two_of_them_is_that_of_the_formula(folders: tuple[Path, Path]) -> None:
    measured = evals.line(*folders, task=str(folders[0].parent / "kinds.yaml"), data=ROWS, points=3)
    a, b = (merge.load(folder).state_dict() for folder in folders)
    for lam, loss in zip((0, 0.5, 1), measured.curves["kinds"]["naive"]["loss"], strict=True):
        logits = _logits({name: (1 - lam) * a[name] + lam * b[name] for name in a})
        assert loss == pytest.approx(float(torch.nn.functional.cross_entropy(logits, GOLD)), rel=1e-5)


@pytest.mark.parametrize("by", ["weights", pytest.param("activations", marks=pytest.mark.slow)])
def test_a_planted_permutation_is_recovered(folders: tuple[Path, Path], tmp_path: Path, by: str) -> None:
    a = merge.load(folders[0])
    spec = merge.align(folders[1], to=folders[0], by="weights").aligned.spec
    planted = random(spec, a.shapes, torch.Generator().manual_seed(2))
    keep = planted.indices | {"labels": torch.arange(3)}
    moved = apply(spec, type(planted)(keep, planted.outer), a.state_dict())
    b = save_checkpoint(tmp_path / "b", CONFIG, tensors=moved, tokenizer=False)
    text = {"text": TEXTS} if by == "activations" else {}
    found = merge.align(b, to=folders[0], by=by, axes=["hidden"], **text)
    assert all(torch.equal(found.model.state_dict()[name], tensor) for name, tensor in a.state_dict().items())
    assert not all(torch.equal(moved[name], tensor) for name, tensor in a.state_dict().items())


def test_settings_that_decide_its_outputs_must_agree() -> None:
    """And no others: two nets that were drawn from another range are of one kind."""
    first = structure_of(CONFIG)
    for key, value in (("hidden_act", "gelu"), ("layer_norm_eps", 1e-3)):
        changed = structure_of({**CONFIG, key: value})
        assert [name for name, _, _ in setting_differences(first, changed)] == [key]
    assert setting_differences(first, structure_of({**CONFIG, "initializer_range": 0.5})) == []


@pytest.mark.parametrize(
    ("text", "message"),
    [("1.0 2.0", 'expected 5 numbers .* found "1.0 2.0"'), ("a b c d e", "found"), ("1 2 3 4 inf", "found")],
)
def test_a_row_that_is_not_its_numbers_is_refused_in_one_line(
    folders: tuple[Path, Path], text: str, message: str
) -> None:
    with pytest.raises(CalibrationError, match=message) as refused:
        load_tokenizer(folders[0])([text])
    assert "\n" not in str(refused.value)
    assert load_tokenizer(folders[0])("1 2 3 4 -5.5") == {"input_ids": [1, 2, 3, 4, -5.5]}


def test_activations_without_rows_are_refused_in_one_line(folders: tuple[Path, Path]) -> None:
    """The package's own text is of words, and would be read as no numbers."""
    with pytest.raises(CalibrationError, match="reads rows of numbers, and no text was given") as refused:
        merge.align(folders[1], to=folders[0], by="activations")
    assert "\n" not in str(refused.value)
