"""Rewrites keep the function: canonical weights and folded norms, on every family that claims them."""

from __future__ import annotations

import pytest
import torch
from architecture_case import CASES, make, outputs_of
from families import written_name

from merge.checkpoints.structure import structure_of
from merge.checkpoints.transformers_model import build
from merge.errors import SpecError
from merge.symmetry.architectures import spec_for
from merge.symmetry.canonical import canonical_weights, fold_norms
from merge.symmetry.rewrites import NO_REWRITES

# Heads that read the last norm, and where there is one a decoder that is tied to the word embeddings.
ENDS = ("ForSequenceClassification", "ForImageClassification", "CLIPModel", "ForMaskedLM", "ForCausalLM", "LMHeadModel")


def _chosen() -> list[str]:
    """Return the first case of each family that ends in each of ENDS."""
    found = {}
    for name, (config, _) in CASES.items():
        end = next((end for end in ENDS if config["architectures"][0].endswith(end)), None)
        if end is not None and spec_for(config).rewrites != NO_REWRITES:
            found.setdefault((spec_for(config).family, end), name)
    return list(found.values())


CHOSEN = _chosen()
FOLDABLE = [name for name in CHOSEN if spec_for(CASES[name][0]).rewrites.last]


@pytest.fixture(scope="module", params=CHOSEN)
def case(request: pytest.FixtureRequest):
    return make(*CASES[request.param])


def test_every_family_that_claims_rewrites_is_tested():
    """Every table is asked, whatever its head; 22 families claim some."""
    claimed = {spec.family for config, _ in CASES.values() if (spec := spec_for(config)).rewrites != NO_REWRITES}
    assert {spec_for(CASES[name][0]).family for name in CHOSEN} == claimed
    assert len(claimed) == 22


def test_canonical_weights_are_the_same_function(case):
    tensors = canonical_weights(case.spec, case.config, case.tensors)
    changed = [name for name, tensor in tensors.items() if not torch.equal(tensor, case.tensors[name])]
    assert bool(changed) == bool(case.spec.rewrites.keys)
    case.set(tensors)
    assert case.off(case.reference) < case.spec.bound
    case.set(case.tensors)


def test_canonical_weights_stay_under_canonical(case):
    once = canonical_weights(case.spec, case.config, case.tensors)
    twice = canonical_weights(case.spec, case.config, once)
    assert all(torch.allclose(once[name], twice[name], rtol=0, atol=1e-14) for name in once)


def test_canonical_weights_do_not_depend_on_what_no_output_shows():
    """Two models that differ by what the outputs cannot show have one canonical form."""
    case = make(*CASES["BertForSequenceClassification"])
    moved = dict(case.tensors)
    layer = "bert.encoder.layer.1"
    moved[f"{layer}.attention.self.key.bias"] = moved[f"{layer}.attention.self.key.bias"] + 1
    moved[f"{layer}.output.dense.weight"] = moved[f"{layer}.output.dense.weight"] + torch.randn(
        1, 40, dtype=torch.float64
    )
    one, other = (canonical_weights(case.spec, case.config, t) for t in (case.tensors, moved))
    assert all(torch.allclose(one[name], other[name], rtol=0, atol=1e-13) for name in one)


@pytest.mark.parametrize(
    ("name", "tensor"),
    [
        ("BertForMaskedLM", "bert.embeddings.word_embeddings.weight"),
        ("BertForMaskedLM", "cls.predictions.transform.dense.weight"),
        ("BertForSequenceClassification", "bert.encoder.layer.0.intermediate.dense.weight"),
    ],
)
def test_centring_what_no_rewrite_covers_shows(name, tensor):
    """Negative control: tied words, a norm behind an activation, what is read and not written."""
    case = make(*CASES[name])
    value = case.tensors[tensor]
    case.set({tensor: value - value.mean(-1 if "word" in tensor else 0, keepdim=True)})
    assert case.off(case.reference) > 0.01


def test_zeroing_the_query_bias_shows():
    case = make(*CASES["BertForSequenceClassification"])
    name = "bert.encoder.layer.0.attention.self.query.bias"
    case.set({name: torch.zeros_like(case.tensors[name])})
    assert case.off(case.reference) > 0.01


@pytest.mark.parametrize("name", FOLDABLE)
def test_folded_norms_are_the_same_function_with_gains_of_one(name):
    config, table = CASES[name]
    case = make(config, table)
    folded = fold_norms(case.spec, case.config, case.tensors)
    structure = structure_of(folded.config)
    tensors = {written_name(structure, n): tensor for n, tensor in folded.tensors.items()}
    model = build(folded.config, tensors, getattr(torch, case.spec.dtype))
    spec = spec_for(folded.config)
    found = outputs_of(model, spec, case.batches)
    worst = max(
        float((new[key] - old[key]).abs().max() / old[key].std())
        for new, old in zip(found, case.reference, strict=True)
        for key in old
    )
    assert worst < case.spec.bound
    folded_gains = [
        n
        for n, t in folded.tensors.items()
        if not torch.equal(t, case.tensors.get(n, t * 2)) and t.ndim == 1 and bool((t == 1).all())
    ]
    assert len(folded_gains) >= 2 * 2 + 1
    assert bool(folded.notes) == bool(structure_of(config).ties and not structure.ties)


def test_a_stream_that_holds_gains_cannot_be_folded():
    case = make(*CASES["BertForSequenceClassification"])
    with pytest.raises(SpecError, match="cannot be rotated"):
        fold_norms(case.spec, case.config, case.tensors)


def test_a_model_that_shows_its_stream_cannot_be_folded():
    name = next(n for n, (config, _) in CASES.items() if config["architectures"] == ["GPT2Model"])
    case = make(*CASES[name])
    with pytest.raises(SpecError, match="shows its residual stream"):
        fold_norms(case.spec, case.config, case.tensors)
