"""Every family goes through the whole tool and computes what a mean of two models computes that the tool had no part in.

Two random models are merged, written and loaded by the class that a user would load them with. Beside it stands one of
the two with the mean of both state dicts, made by torch alone. Halves and sums of halves round as the mean does, and the
same operations run on the same numbers, so the outputs are the same bits.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from architecture_case import CASES
from families import UNLIKE
from layered import family_config
from quick import quick_on
from tiny import save_checkpoint
from torch import Tensor
from transformers.models.auto.modeling_auto import MODEL_MAPPING_NAMES

from merge.checkpoints.reload_check import trial_batch
from merge.checkpoints.transformers_model import loading
from merge.recipe.recipe import make_recipe
from merge.run.run import run

State = dict[str, Tensor]
# All but the multi-layer perceptron, for which transformers has no class of its own (tests/merge/checkpoints/test_mlp.py).
FAMILIES = tuple(dict.fromkeys(c["model_type"] for c, _ in CASES.values() if c["model_type"] != "mlp"))
AUTO = (
    "AutoModel",
    "AutoModelForSequenceClassification",
    "AutoModelForImageClassification",
    "AutoModelForCausalLM",
    "AutoModelForSeq2SeqLM",
)
# Heads that no class of AUTO has: a user loads them by their own.
BY_NAME = {"CLIPTextModelWithProjection", "CLIPVisionModelWithProjection"}
# An encoder and a decoder, which have no table of axes; merged all the same.
ENCODER_DECODERS = {
    "bart": ("BartModel", "BartForSequenceClassification"),
    "t5": ("T5Model", "T5ForConditionalGeneration"),
}


def base_class(model_type: str) -> str:
    """Return the name of a family's class without a head."""
    return str(MODEL_MAPPING_NAMES[model_type])


def cases() -> Iterator[tuple[str, Mapping[str, Any], Any]]:
    """Yield (name, config, table) of each family: its base class and the first of its heads."""
    for family in FAMILIES:
        own = [(config, table) for config, table in CASES.values() if config["model_type"] == family]
        base = base_class(family)
        plain = next(((c, t) for c, t in own if c["architectures"] == [base]), None)
        config, table = plain or ({**own[0][0], "architectures": [base]}, own[0][1])
        yield base, config, table
        head, table = next((c, t) for c, t in own if c["architectures"] != [base])
        yield head["architectures"][0], head, table
    for family, classes in ENCODER_DECODERS.items():
        for name in classes:
            yield name, family_config(family, architectures=[name]), None


ALL = {name: (config, table) for name, config, table in cases()}
# One head of each kind of family, and three classes without a head.
QUICK = {name for name, (c, _) in ALL.items() if c["model_type"] in UNLIKE and name != base_class(c["model_type"])}
QUICK |= {"BertModel", "ViTModel", "CLIPModel", "BartForSequenceClassification", "T5Model"}


def load(folder: Path, architecture: str) -> Any:
    """Return the model as a user loads it, from the folder alone, in evaluation mode."""
    kind = next((a for a in AUTO if architecture in _mapped(a)), architecture)
    with loading():
        model = getattr(transformers, kind).from_pretrained(folder).eval()
    assert type(model).__name__ == architecture
    return model


def _mapped(auto: str) -> set[str]:
    names = getattr(transformers, auto)._model_mapping._model_mapping.values()
    return {name for entry in names for name in ((entry,) if isinstance(entry, str) else entry)}


def mean(a: State, b: State, share: float = 0.5) -> State:
    """Return (1 - share) a + share b, of integers a's; the half as a plain mean."""
    if share == 0.5:
        return {name: (tensor + b[name]) / 2 if tensor.is_floating_point() else tensor for name, tensor in a.items()}
    return {n: (1 - share) * t + share * b[n] if t.is_floating_point() else t for n, t in a.items()}


def said(model: Any, batch: Mapping[str, Tensor]) -> list[Tensor]:
    """Return every tensor of a model's outputs, those of its parts too; caches aside."""
    with torch.inference_mode():
        return list(_tensors(model(**batch)))


def _tensors(output: Any) -> Iterator[Tensor]:
    if isinstance(output, torch.Tensor):
        yield output
    elif isinstance(output, tuple | list | transformers.utils.ModelOutput):
        for part in output.to_tuple() if isinstance(output, transformers.utils.ModelOutput) else output:
            yield from _tensors(part)


def apart(left: list[Tensor], right: list[Tensor]) -> float:
    """Return the largest difference of any output."""
    return max(float((x - y).abs().max()) for x, y in zip(left, right, strict=True))


@pytest.mark.parametrize("name", quick_on(QUICK, ALL))
def test_the_merge_on_disk_computes_what_the_mean_in_memory_computes(name: str, tmp_path: Path) -> None:
    """Every output bit for bit and finite; a mean of other weights, and either model alone, is told from it."""
    config, table = ALL[name]
    a, b = (save_checkpoint(tmp_path / f, config, seed=k, tokenizer=False) for k, f in enumerate("ab"))
    report = run(make_recipe({"models": [str(a), str(b)], "output": str(tmp_path / "out")}))
    assert not [note for note in report.notes if "not run" in note]
    models = [load(folder, name) for folder in (a, b)]
    one, two = (model.state_dict() for model in models)
    assert all(tensor.dtype == torch.float32 for tensor in one.values() if tensor.is_floating_point())
    batch = trial_batch(models[0]) if table is None else table.inputs(config)[0]
    batch = {key: t.float() if t.is_floating_point() else t for key, t in batch.items()}

    found = said(load(tmp_path / "out", name), batch)
    memory = copy.deepcopy(models[0])
    memory.load_state_dict(mean(one, two))
    wanted = said(memory, batch)
    assert wanted
    assert all(torch.isfinite(tensor).all() for tensor in wanted)
    assert len(found) == len(wanted)
    assert all(torch.equal(x, y) for x, y in zip(found, wanted, strict=True)), apart(found, wanted)

    memory.load_state_dict(mean(one, two, 0.25))
    for other in (memory, *models):
        assert apart(found, said(other, batch)) > 1e-3


@pytest.mark.parametrize("name", ["BertForSequenceClassification", "ViTForImageClassification"])
def test_another_weight_gives_another_output(name: str, tmp_path: Path) -> None:
    """Three to one, through the tool, is three to one in memory to 1e-5, as shares of a quarter round elsewhere; not the mean."""
    config, table = ALL[name]
    a, b = (save_checkpoint(tmp_path / f, config, seed=k, tokenizer=False) for k, f in enumerate("ab"))
    run(make_recipe({"models": [str(a), str(b)], "output": str(tmp_path / "out"), "settings": {"weights": [3, 1]}}))
    batch = {key: t.float() if t.is_floating_point() else t for key, t in table.inputs(config)[0].items()}
    found = said(load(tmp_path / "out", name), batch)
    model = load(a, name)
    one, two = model.state_dict(), load(b, name).state_dict()
    model.load_state_dict({n: (3 * t + two[n]) / 4 for n, t in one.items()})
    assert apart(found, said(model, batch)) < 1e-5
    model.load_state_dict(mean(one, two))
    assert apart(found, said(model, batch)) > 1e-3


def test_every_family_is_here_with_and_without_a_head() -> None:
    """What is loaded by its own name is so because no AutoModel class has it, and is named."""
    assert len(FAMILIES) >= 27
    assert len(ALL) == 2 * (len(FAMILIES) + len(ENCODER_DECODERS))
    unmapped = {name for name in ALL if not any(name in _mapped(auto) for auto in AUTO)}
    assert unmapped == BY_NAME
    for family in FAMILIES:
        architectures = {c["architectures"][0] for c, _ in ALL.values() if c["model_type"] == family}
        assert base_class(family) in architectures
        assert len(architectures) == 2
