"""Wrappers: parts of names that a training program added are read away, or the file is refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from layouts.parts import Tensors, pickle, prefixed, within
from layouts.shelf import BERT, BERT_CLASSES, BERT_MLM, Layout

from merge.checkpoints.names.wrappers import completing_prefixes, outer_prefixes, without_wrappers
from merge.checkpoints.open import open_checkpoint
from merge.errors import CheckpointError, MismatchError
from merge.recipe.recipe import make_recipe
from merge.run.run import run

Change = Callable[[Tensors], Tensors]
WRAPPED: dict[str, tuple[Change, ...]] = {
    "module": (prefixed("module."),),
    "compiled": (prefixed("_orig_mod."),),
    "both": (prefixed("module._orig_mod."),),
    "both the other way": (prefixed("_orig_mod.module."),),
    "three times": (prefixed("module.module._orig_mod."),),
    "a layer": (within("layer.0.", "_orig_mod"),),
    "each": (within("layer.0.", "_checkpoint_wrapped_module"), within("layer.1.", "module"), prefixed("module.")),
    "FSDP": (within("layer.0.", "_fsdp_wrapped_module"), prefixed("_fsdp_wrapped_module.")),
    "an attribute": (prefixed("model."),),
    "two attributes": (prefixed("model.encoder."),),
    "an attribute of a wrapped class": (prefixed("module.net."),),
    "a SentenceTransformer": (prefixed("0.auto_model."),),
}


@pytest.mark.parametrize("config", [BERT, BERT_CLASSES, BERT_MLM], ids=lambda c: str(c["architectures"][0]))
@pytest.mark.parametrize("wrapper", WRAPPED)
def test_wrapped_names_open_as_the_model(wrapper: str, config: dict[str, object], tmp_path: Path) -> None:
    plain, wrapped = Layout("", config), Layout("", config, WRAPPED[wrapper], pickle)
    a, b = (open_checkpoint(str(layout.write(tmp_path / k, 0))) for k, layout in (("a", plain), ("b", wrapped)))
    assert b.tensors.keys() == a.tensors.keys()
    assert b.extra == {}
    assert all(torch.equal(a.tensor(n), b.tensor(n)) for n in a.tensors)
    assert len(b.notes) in (1, 2)
    assert all(len(note) < 300 for note in b.notes)
    assert a.notes == ()


def test_one_head_wrapped_and_the_other_not_merge(tmp_path: Path) -> None:
    a = Layout("", BERT_CLASSES).write(tmp_path / "a", 0)
    b = Layout("", BERT_CLASSES, (prefixed("module."),)).write(tmp_path / "b", 1)
    run(make_recipe({"models": [str(a), str(b)], "output": str(tmp_path / "out")}))
    merged, left, right = (open_checkpoint(str(tmp_path / name)) for name in ("out", "a", "b"))
    name = "bert.encoder.layer.1.output.dense.weight"
    assert torch.allclose(merged.tensor(name), (left.tensor(name) + right.tensor(name)) / 2)


def test_a_module_that_the_class_has_is_no_wrapper() -> None:
    assert without_wrappers("module.bert._orig_mod.pooler.dense.bias") == "bert.pooler.dense.bias"
    assert without_wrappers("submodule.module_list.0.weight") == "submodule.module_list.0.weight"
    assert without_wrappers("module") == "module"


def test_two_models_in_one_file_are_refused_and_a_teacher_beside_the_model_is_extra(tmp_path: Path) -> None:
    def two(tensors: Tensors) -> Tensors:
        return prefixed("student.")(tensors) | prefixed("teacher.")(tensors)

    with pytest.raises(CheckpointError, match="holds 2 models, under 'student.', 'teacher.'"):
        open_checkpoint(str(Layout("", BERT, (two,)).write(tmp_path / "two", 0)))
    beside = Layout("", BERT, (lambda t: t | prefixed("teacher.")(t),)).write(tmp_path / "beside", 0)
    opened = open_checkpoint(str(beside))
    assert len(opened.extra) == len(opened.tensors)


def test_names_that_no_prefix_explains_are_refused_before_anything_is_written(tmp_path: Path) -> None:
    """A fault that all models share is no excuse: from_pretrained would fill the result with random numbers."""

    def renamed(tensors: Tensors) -> Tensors:
        return {f"net.{name.replace('encoder', 'stack')}": tensor for name, tensor in tensors.items()}

    a, b = (str(Layout("", BERT_CLASSES, (renamed,)).write(tmp_path / f, k)) for k, f in enumerate("ab"))
    with pytest.raises(MismatchError, match="lacks .* weights of its class .* random numbers") as caught:
        run(make_recipe({"models": [a, b], "output": str(tmp_path / "out")}))
    assert "\n" not in str(caught.value)
    assert "net." in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_of_two_prefixes_that_lead_to_the_base_the_one_that_leads_to_the_head_is_taken() -> None:
    names = ["model.bert.a", "model.head.b"]
    targets = {p: {n: n.removeprefix(p) for n in names if n.startswith(p)} for p in outer_prefixes(names)}
    targets["model.bert."] = {"model.bert.a": "bert.a"}
    targets["model."] = {"model.bert.a": "bert.a", "model.head.b": "head.b"}
    assert completing_prefixes(["bert.a"], targets) == ["model."]
    assert completing_prefixes([], targets) == []
