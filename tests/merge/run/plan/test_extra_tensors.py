"""Extra tensors: what a class does not have is merged where all models have it, else left out, and said."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from layouts.parts import Tensors, no_tokenizer, with_tensors
from layouts.shelf import BERT_CLASSES, BERT_MLM, NSP, POOLER, SIZES, TWO, Layout, of
from safetensors.torch import load_file
from torch import Tensor

from merge.errors import CheckpointError, MergeError, MismatchError, OutputError, UsageError
from merge.recipe.recipe import make_recipe
from merge.run.report import Report
from merge.run.run import run

PRETRAINED = {f"bert__{name}": shape for name, shape in POOLER.items()} | NSP
EXTRA = [name.replace("__", ".") for name in PRETRAINED]
TAGS = of("bert", "BertForTokenClassification", SIZES, **TWO)


def save(folder: Path, seed: int, config: dict[str, Any] = BERT_MLM, **extra: tuple[int, ...]) -> Path:
    return Layout("", config, (with_tensors(**extra),) if extra else (), tokenizer=no_tokenizer).write(folder, seed)


def merged(place: Path, *models: Path, **values: Any) -> tuple[dict[str, Tensor], Report]:
    recipe = make_recipe({"models": [str(model) for model in models], "output": str(place / "out"), **values})
    report = run(recipe, force=True)
    return load_file(place / "out" / "model.safetensors"), report


def said(report: Report, words: str) -> int:
    return sum(words in note for note in report.notes)


def test_what_all_models_have_is_merged_and_said(tmp_path: Path) -> None:
    a, b = (save(tmp_path / f, k, **PRETRAINED) for k, f in enumerate("ab"))
    out, report = merged(tmp_path, a, b)
    left, right = (load_file(folder / "model.safetensors") for folder in (a, b))
    assert all(torch.allclose(out[name], (left[name] + right[name]) / 2) for name in EXTRA)
    assert said(report, "are no tensors of BertForMaskedLM: merged along with the rest") == 1
    out, report = merged(tmp_path, a, b, extra_tensors="drop")
    assert not set(EXTRA) & out.keys()
    assert said(report, "left out, as transformers does") == 1


def test_what_one_model_has_is_left_out_or_kept_by_word(tmp_path: Path) -> None:
    a, b = save(tmp_path / "a", 0, **PRETRAINED), save(tmp_path / "b", 1)
    for models in ((a, b), (b, a)):
        out, report = merged(tmp_path, *models)
        assert not set(EXTRA) & out.keys()
        assert said(report, f"{a}: bert.pooler.dense") + said(report, f"{a}: cls.seq_relationship") == 1
    with pytest.raises(
        MismatchError, match=r"lacks .* that .* has. BertForMaskedLM has no such .* --extra-tensors drop"
    ):
        merged(tmp_path, a, b, extra_tensors="keep")


def test_an_alignment_leaves_them_out_and_cannot_keep_them(tmp_path: Path) -> None:
    """Which of their axes move with it is not known."""
    a, b = (save(tmp_path / f, k, TAGS, crf__transitions=(2, 2), loss_fct__weight=(2,)) for k, f in enumerate("ab"))
    out, report = merged(tmp_path, a, b, align={"by": "weights"})
    assert "crf.transitions" not in out
    assert said(report, "crf.transitions, loss_fct.weight are no tensors of BertForTokenClassification: left out") == 1
    with pytest.raises(UsageError, match="extra_tensors: keep cannot be combined with an alignment"):
        merged(tmp_path, a, b, align={"by": "weights"}, extra_tensors="keep")


def test_task_vectors_find_the_pooler_of_a_masked_language_model(tmp_path: Path) -> None:
    """bert-base-uncased is the base of most classifiers: its pooler is extra to its own class, and theirs has one."""
    base = save(tmp_path / "base", 9, BERT_MLM, **PRETRAINED)
    a, b = (save(tmp_path / f, k, BERT_CLASSES) for k, f in enumerate("ab"))
    out, _ = merged(
        tmp_path,
        a,
        b,
        method="task_arithmetic",
        base=str(base),
        base_lacks="reference",
        settings={"weights": [0.5, 0.25]},
    )
    x, y, z = (load_file(folder / "model.safetensors") for folder in (a, b, base))
    name = "bert.pooler.dense.weight"
    assert torch.allclose(out[name], z[name] + 0.5 * (x[name] - z[name]) + 0.25 * (y[name] - z[name]), atol=1e-6)


def test_a_pooler_beside_a_language_model_belongs_to_its_base_model(tmp_path: Path) -> None:
    a, b = (save(tmp_path / f, k, **PRETRAINED) for k, f in enumerate("ab"))
    out, _ = merged(tmp_path, a, b, heads="drop", extra_tensors="drop")
    assert "pooler.dense.weight" in out
    assert not [name for name in out if "seq_relationship" in name]


def test_a_classifier_and_the_language_model_that_it_came_from_merge_their_poolers(tmp_path: Path) -> None:
    """`heads: reference` merges base models, and the pooler is the base model's, whatever the language model's class has."""
    a, b = save(tmp_path / "a", 0, BERT_CLASSES), save(tmp_path / "b", 1, **PRETRAINED)
    out, report = merged(tmp_path, a, b, heads="reference")
    left, right = (load_file(folder / "model.safetensors") for folder in (a, b))
    name = "bert.pooler.dense.weight"
    assert torch.allclose(out[name], (left[name] + right[name]) / 2)
    assert torch.equal(out["classifier.weight"], left["classifier.weight"])
    assert said(report, "are no tensors of BertForMaskedLM: left out") == 1
    assert said(report, "BertForSequenceClassification") == 0


NAN, HUGE = float("nan"), 1e30
ADVICE = "--extra-tensors drop leaves it out"


def holding(value: Tensor, name: str = "loss.scale") -> Callable[[Tensors], Tensors]:
    return lambda tensors: {**tensors, name: value}


def pair_of(place: Path, *values: Tensor, name: str = "loss.scale") -> list[Path]:
    """Write a model for each value of one tensor."""
    layouts = [Layout("", BERT_MLM, (holding(value, name),), tokenizer=no_tokenizer) for value in values]
    return [layout.write(place / str(k), k) for k, layout in enumerate(layouts)]


@pytest.mark.parametrize(
    ("values", "more", "error"),
    [
        ((torch.tensor([NAN]), torch.ones(1)), {}, CheckpointError),
        ((torch.tensor([NAN]), torch.ones(1)), {"method": "slerp"}, CheckpointError),
        ((torch.tensor([HUGE]), torch.ones(1)), {"out_dtype": "float16"}, OutputError),
        ((torch.tensor([1]), torch.tensor([2])), {}, MismatchError),
    ],
    ids=["NaN", "NaN, whole tensors", "out of range", "integers"],
)
def test_what_a_kept_extra_tensor_stops_is_merged_without_it(
    values: tuple[Tensor, ...], more: dict[str, Any], error: type[MergeError], tmp_path: Path
) -> None:
    """The advice is followed. The control: the same value in a tensor of the class has other advice."""
    models = pair_of(tmp_path, *values)
    with pytest.raises(error, match=ADVICE):
        merged(tmp_path, *models, **more)
    out, _ = merged(tmp_path, *models, extra_tensors="drop", **more)
    assert "loss.scale" not in out
    assert "cls.predictions.bias" in out


def test_a_tensor_of_the_class_is_not_said_to_be_dropped(tmp_path: Path) -> None:
    broken, whole = pair_of(
        tmp_path, torch.full((SIZES["vocab_size"],), NAN), torch.zeros(64), name="cls.predictions.bias"
    )
    with pytest.raises(CheckpointError, match="holds NaN or infinity. This model is broken; leave it out.$"):
        merged(tmp_path, broken, whole)
    # A pooler is the base model's where base models are merged alone: dropping extra tensors would not leave it out.
    name = "bert.pooler.dense.weight"
    broken, whole = pair_of(tmp_path / "2", torch.full((24, 24), NAN), torch.zeros(24, 24), name=name)
    with pytest.raises(CheckpointError, match=ADVICE):
        merged(tmp_path, broken, whole)
    with pytest.raises(CheckpointError, match="This model is broken; leave it out.$"):
        merged(tmp_path, broken, whole, heads="drop")


@pytest.mark.parametrize(
    "values",
    [
        (torch.ones(2), torch.ones(3)),
        (torch.ones(2), torch.ones(2).half()),
        (torch.ones(2), torch.ones(2, dtype=torch.int32)),
    ],
    ids=["shapes", "dtypes", "kinds"],
)
def test_tensors_that_are_not_alike_are_left_out(values: tuple[Tensor, Tensor], tmp_path: Path) -> None:
    out, report = merged(tmp_path, *pair_of(tmp_path, *values))
    assert "loss.scale" not in out
    assert said(report, "loss.scale is no tensor of BertForMaskedLM: left out") == 1


def test_a_base_with_another_shape_leaves_an_extra_tensor_out(tmp_path: Path) -> None:
    a, b, base, other = pair_of(tmp_path, torch.ones(2), torch.ones(2), torch.ones(2), torch.ones(3))
    record = {"method": "task_arithmetic", "settings": {"weights": [0.5, 0.5]}}
    assert "loss.scale" in merged(tmp_path, a, b, base=str(base), **record)[0]
    assert "loss.scale" not in merged(tmp_path, a, b, base=str(other), **record)[0]


@pytest.mark.parametrize("rule", [None, "keep"])
def test_what_goes_with_the_head_is_said_once(rule: str | None, tmp_path: Path) -> None:
    models = pair_of(tmp_path, torch.ones(2), torch.ones(2))
    for heads, words in (("drop", "left out of"), ("reference", "taken from")):
        out, report = merged(tmp_path, *models, heads=heads, extra_tensors=rule)
        notes = [note for note in report.notes if "loss.scale" in note]
        assert ("loss.scale" in out) == (heads == "reference")
        assert notes
        assert not [note for note in notes if not note.startswith(("left out of", "taken from"))]
        assert any(note.startswith(words) for note in notes)
