"""The table of layer lists says what transformers builds: found by looking at modules, and by breaking tensors."""

from __future__ import annotations

import re
from collections import Counter
from functools import cache
from typing import Any

import pytest
import torch
from families import UNLIKE
from layered import FAMILY, STACK, checkpoint_of, original_model, outputs
from quick import quick_on

from merge.checkpoints.open import open_checkpoint
from merge.checkpoints.transformers_model import build, model_config
from merge.errors import UsageError
from merge.layers.stacks import FAMILIES, before_layers, layer_count, layer_of, stack_of

# Files of these name layers otherwise than modules do, so only numbers can be compared.
RENAMED = ("vit", "deit")


def test_every_family_is_tested() -> None:
    assert FAMILY.keys() == FAMILIES.keys()
    assert STACK.keys() == {name for name, family in FAMILIES.items() if len(family.stacks) > 1}


@cache
def modules(kind: str) -> list[set[str]]:
    """Return the names of the tensors of each layer's module."""
    layers = original_model(checkpoint_of(kind)).get_submodule(FAMILY[kind][2])
    return [set(layer.state_dict()) for layer in layers]


@pytest.mark.parametrize("kind", FAMILY)
def test_the_tensors_of_a_layer_are_those_of_its_module(kind: str) -> None:
    """The module that transformers built is asked; the table knows nothing of it."""
    checkpoint, path = checkpoint_of(kind), FAMILY[kind][2]
    found = {name: part for name in checkpoint.tensors if (part := layer_of(name, kind, STACK.get(kind, "")))}
    held = {f"{path}.{i}.{name}" for i, layer in enumerate(modules(kind)) for name in layer}
    held = {name for name in held if "relative_attention_bias" not in name}  # of the first place, not of a layer
    assert Counter(part[1] for part in found.values()) == Counter(
        int(name.removeprefix(f"{path}.").split(".")[0]) for name in held
    )
    assert kind in RENAMED or {checkpoint.written_name(name) for name in found} == held
    assert all(f"{prefix}{index}{suffix}" == name for name, (prefix, index, suffix) in found.items())
    assert 0 < len(found) < len(checkpoint.tensors)


@pytest.mark.parametrize("kind", FAMILY)
def test_the_number_of_layers_is_the_number_of_modules(kind: str) -> None:
    shared = {"albert": 2}.get(kind, 1)  # two groups for four layers
    assert layer_count(checkpoint_of(kind).config, STACK.get(kind, "")) == len(modules(kind)) * shared == 4


@pytest.mark.parametrize("kind", quick_on(UNLIKE, [kind for kind in FAMILY if kind not in STACK]))
def test_what_acts_before_the_layers_reaches_them_and_what_acts_after_does_not(kind: str) -> None:
    """Every tensor that is no layer's is broken in turn; the last layer's output moves if it acts before, else stays."""
    checkpoint = checkpoint_of(kind)
    tensors = {name: checkpoint.tensor(name) for name in checkpoint.tensors}

    model = build(checkpoint.config, {checkpoint.written_name(n): t for n, t in tensors.items()}, torch.float32)
    parameters = model.state_dict()
    seen: list[torch.Tensor] = []

    def keep(_module: Any, _given: Any, made: Any) -> None:
        seen.append(made[0] if isinstance(made, tuple) else made)

    model.get_submodule(FAMILY[kind][2])[-1].register_forward_hook(keep)

    def reached(broken: str | None) -> torch.Tensor:
        """Return the last layer's output with a tensor changed for as long as it takes."""
        own = None if broken is None else parameters[checkpoint.written_name(broken)]
        kept = None if own is None else own.clone()
        with torch.no_grad():
            if own is not None:
                own += torch.linspace(0.5, 1, own.numel()).reshape(own.shape)
            outputs(model)
            if own is not None and kept is not None:
                own.copy_(kept)
        return seen[-1]

    before, tried = reached(None), 0
    for name in checkpoint.tensors:
        if layer_of(name, kind) is not None or name.endswith("mask_emb"):  # XLNet's, of masked prediction alone
            continue
        moved = float((reached(name) - before).abs().max()) > 1e-6
        assert moved == before_layers(name, kind), name
        tried += 1
    assert tried >= 2


@pytest.mark.parametrize("kind", FAMILY)
def test_other_keys_of_the_count_are_those_of_transformers(kind: str) -> None:
    names = type(model_config(checkpoint_of(kind).config)).attribute_map
    for stack in FAMILIES[kind].stacks:
        known = {"num_hidden_layers", "n_layer", "n_layers", "num_layers"}
        assert set(stack.aliases) == {alias for alias, key in names.items() if key == stack.count and alias in known}


def test_the_first_number_in_a_name_is_no_rule() -> None:
    """Which is why there is a table: numbers that are no layer, and layers that are not the first number."""
    assert layer_of("transformer.layer.3.ff.layer_1.weight", "xlnet") == ("transformer.layer.", 3, ".ff.layer_1.weight")
    assert layer_of("text_model.encoder.layers.2.mlp.fc1.bias", "clip", "vision") is None
    assert layer_of("clip.text_model.encoder.layers.2.mlp.fc1.bias", "clip", "text") == (
        "clip.text_model.encoder.layers.",
        2,
        ".mlp.fc1.bias",
    )
    assert layer_of("transformer.encoder.block.0.layer.1.layer_norm.weight", "t5", "encoder") == (
        "transformer.encoder.block.",
        0,
        ".layer.1.layer_norm.weight",
    )
    assert layer_of("classifier.layers.1.weight", "modernbert") is None
    assert layer_of("head.encoder.layer.1.weight", "bert") is None


def test_files_of_vit_may_hold_the_new_names(tmp_path: Any) -> None:
    """transformers writes the names a model was made from: old ones from the Hub, its modules' when made from these."""
    checkpoint = checkpoint_of("vit")
    modules = build(checkpoint.config, original_model(checkpoint).state_dict())
    modules.save_pretrained(tmp_path)
    written = open_checkpoint(str(tmp_path))
    assert sum(name.startswith("vit.layers.1.") for name in written.tensors) > 5
    assert sum(layer_of(name, "vit") is not None for name in written.tensors) == sum(
        layer_of(name, "vit") is not None for name in checkpoint.tensors
    )


@pytest.mark.parametrize(
    ("family", "stack", "said"),
    [
        ("berd", "", "layers of 'berd' models cannot be edited.*Did you mean 'bert'"),
        ("clip", "", "clip model has 2 lists of layers. Give one: text or vision"),
        ("clip", "txt", "no list of layers named 'txt'. Did you mean 'text'"),
        ("bert", "encoder", "bert model has only one list of layers, not 'encoder'"),
    ],
)
def test_what_is_not_known_is_refused_by_name(family: str, stack: str, said: str) -> None:
    with pytest.raises(UsageError, match=re.compile(said)):
        stack_of(family, stack)
