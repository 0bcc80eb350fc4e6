"""The battery of matchers that find maps: a planted element of every group is found again under noise, on every family.

Which element it was cannot be told in noise, nor has it to be: what counts is how near b comes to a.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
import torch
from families import CASES, FAMILIES, UNLIKE, canonical_tensors, inputs, joined, written_name
from families_more import CASES as UNUSUAL_CASES
from families_more import inputs as unusual_inputs
from quick import quick_on
from random_transforms import random_transform
from torch import Tensor

from merge.alignment.evidence.proof import prove
from merge.alignment.matchers import ALIGNERS, aligner
from merge.alignment.pair import Pair, Settings, in_canonical_form
from merge.checkpoints.structure import structure_of
from merge.symmetry.architectures import spec_for
from merge.symmetry.canonical import fold_norms
from merge.symmetry.spec import PermutationSpec
from merge.symmetry.transform import (
    Transform,
    apply_transform,
    axis_sizes,
    check_transform,
    folded_spec,
    restrict_transform,
)

ALL = {**UNUSUAL_CASES, **CASES}
LAYERS = ("num_hidden_layers", "n_layers", "n_layer")


def of_one_layer(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return a config with one layer: the groups of the others are the same. Two where the first is unlike the second."""
    shallow = {
        key: of_one_layer(value) if key in ("text_config", "vision_config") else 1 if key in LAYERS else value
        for key, value in config.items()
    }
    return dict(config) if config.get("model_type") in ("albert", "modernbert") else shallow


FIRST = {str(config["model_type"]): of_one_layer(config) for config in reversed(list(ALL.values()))}
# Pre-LN models whose head reads the last norm: their gains can be folded and the residual stream rotated.
FOLDED = {
    "gpt2": of_one_layer(UNUSUAL_CASES["GPT2LMHeadModel"]),
    "vit": of_one_layer(UNUSUAL_CASES["ViTForImageClassification"]),
    "llama": of_one_layer(UNUSUAL_CASES["LlamaForCausalLM"]),
}
NOISE = 0.5
# `learned` moves nothing from where others end: test_learned.py; weights find more than this under noise.
MATCHERS = sorted(name for name, entry in ALIGNERS.items() if entry.with_maps and name not in ("learned", "weights"))


def planted(
    spec: PermutationSpec, a: Mapping[str, Tensor], noise: float
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Return a under noise, and the same in another basis: a random element of the group of every axis.

    Gains that a rotation needs at one stay there.
    """
    shapes, generator = {name: tuple(tensor.shape) for name, tensor in a.items()}, torch.Generator().manual_seed(2)
    noisy = {}
    for name, tensor in a.items():
        drawn = torch.randn(tensor.shape, generator=generator, dtype=torch.float64)
        still = tensor.numel() == 1 or bool((tensor == 1).all())
        noisy[name] = tensor if still else tensor + noise * tensor.std() * drawn
    drawn = random_transform(spec, shapes, torch.Generator().manual_seed(1))
    moves = restrict_transform(drawn, [axis for axis in axis_sizes(spec, shapes) if axis not in spec.named])
    return noisy, apply_transform(spec, moves, noisy)


def distance(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> float:
    """Return |a - b| / |a| over all weights."""
    off, whole = (sum(float(x.square().sum()) for x in side) for side in ([a[n] - b[n] for n in a], a.values()))
    return (off / whole) ** 0.5


def planted_pair(model_type: str, noise: float, folded: bool = False) -> tuple[Pair, float]:
    """Return a pair with a planted element, and how far the noise alone has brought b from a."""
    config = FOLDED[model_type] if folded else FIRST[model_type]
    spec, a = spec_for(config), canonical_tensors(config, 0)
    if folded:
        done = fold_norms(spec, config, a)
        config, a, spec = dict(done.config), dict(done.tensors), folded_spec(spec_for(done.config))
    noisy, b = planted(spec, a, noise)
    structure, draw = structure_of(config), inputs if model_type in FAMILIES else unusual_inputs
    batches = joined([batch for seed in range(6) for batch in draw(config, seed)])
    settings = Settings(basis="orthogonal")
    pair = Pair(spec, a, b, config, lambda name: written_name(structure, name), batches, settings=settings)
    return pair, distance(a, noisy)


def found(pair: Pair, by: str) -> Transform:
    """Return what a matcher finds over all axes, as the command compares models."""
    transform = aligner(by)(in_canonical_form(pair))(frozenset(pair.kinds())).transform
    check_transform(pair.spec, transform)
    return transform


def test_every_family_is_in_this_battery() -> None:
    assert len(FIRST) >= 30
    assert FAMILIES.keys() < FIRST.keys()


@pytest.mark.parametrize("model_type", quick_on({*UNLIKE, "clip_text_model"}, FIRST))
def test_weights_bring_b_back_to_where_the_noise_left_it(model_type: str) -> None:
    """No nearer can anything but overfitting bring it; and before it was three times as far."""
    pair, noise = planted_pair(model_type, NOISE)
    transform = found(pair, "weights")
    moved = apply_transform(pair.spec, transform, pair.b)
    assert distance(pair.a, moved) <= 1.2 * noise < 0.6
    assert distance(pair.a, pair.b) > 1.3
    assert {pair.spec.group(axis) for axis in transform.maps} & {"linear", "rotary", "rotary_adjacent", "rotary_sign"}
    assert prove(pair, moved, transform, pair.batches[:2]).error < pair.spec.bound


@pytest.mark.parametrize("model_type", ["bert", "llama", "modernbert"])
def test_permutations_alone_do_not(model_type: str) -> None:
    """The negative control: what was planted is more than an order of units."""
    pair, noise = planted_pair(model_type, NOISE)
    plain = replace(pair, settings=Settings(basis="permutation"))
    transform = found(plain, "weights")
    assert not transform.maps
    assert distance(pair.a, apply_transform(pair.spec, transform, pair.b)) > 1.5 * noise


@pytest.mark.parametrize("model_type", FOLDED)
def test_a_rotated_stream_is_turned_back(model_type: str) -> None:
    pair, noise = planted_pair(model_type, NOISE, folded=True)
    transform = found(pair, "weights")
    moved = apply_transform(pair.spec, transform, pair.b)
    assert transform.maps["residual"].ndim == 2
    assert distance(pair.a, moved) <= 1.2 * noise < 0.6
    assert distance(pair.a, pair.b) > 1.3
    assert prove(pair, moved, transform, pair.batches[:2]).error < pair.spec.bound


@pytest.mark.parametrize("model_type", FOLDED)
@pytest.mark.parametrize("by", MATCHERS)
def test_without_noise_activations_find_a_itself_with_its_gains_folded(by: str, model_type: str) -> None:
    """Activations say it too, where there is no noise for them to fall into. Sweeps end at 1e-6 of J, distance squared."""
    pair, _ = planted_pair(model_type, 0.0, folded=True)
    assert distance(in_canonical_form(pair).a, moved_canonical(pair, found(pair, by))) < 1e-3
    assert distance(in_canonical_form(pair).a, in_canonical_form(pair).b) > 1.3


QUICK = ("llama", "modernbert")
UNSEEN = {"xlnet": "its attention is one module without linear layers: no hook sees a head's units"}


@pytest.mark.parametrize(
    "model_type", [pytest.param(m, marks=() if m in QUICK else pytest.mark.slow) for m in FIRST if m not in UNSEEN]
)
def test_without_noise_activations_find_a_itself(model_type: str) -> None:
    """On every family: permutations, signs, scales, rotations and rotary phases. Scales of what a norm undoes do not show."""
    pair, _ = planted_pair(model_type, 0.0)
    transform = found(pair, "activations")
    assert distance(in_canonical_form(pair).a, moved_canonical(pair, transform)) < 1e-3
    assert distance(in_canonical_form(pair).a, in_canonical_form(pair).b) > 1.0


def test_every_axis_on_which_maps_act_has_an_activation_that_shows_them() -> None:
    """A tap that leaves out the name of rotary units cannot find their phases."""
    for model_type, config in FIRST.items():
        spec = spec_for(config)
        shapes = {name: tuple(tensor.shape) for name, tensor in canonical_tensors(config, 0).items()}
        acted = {axis for axis in axis_sizes(spec, shapes) if spec.group(axis) != "permutation"}
        shown = {name for line in spec.taps for name in re.findall(r"[a-z_]\w*", line)}
        assert acted <= shown or model_type in UNSEEN, (model_type, acted - shown)


def moved_canonical(pair: Pair, transform: Transform) -> dict[str, Tensor]:
    """Return b moved, without what the outputs cannot show: activations do not show it either."""
    return dict(in_canonical_form(replace(pair, b=apply_transform(pair.spec, transform, pair.b))).b)
