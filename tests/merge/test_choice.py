"""Choosing which axes move, without labels."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from contracts.test_aligners import make_pair
from scipy.special import softmax
from scipy.stats import entropy

from merge.alignment import aligner
from merge.alignment.choice import choose, score
from merge.alignment.pair import Pair
from merge.permutation import Permutation, apply, identity


def logits(pair: Pair, tensors: dict[str, torch.Tensor]) -> np.ndarray:
    model = pair.model(tensors)
    with torch.inference_mode():
        return torch.cat([model(**batch).logits for batch in pair.batches]).double().numpy()


def divergence(pair: Pair, p: Permutation) -> float:
    """KL(ensemble || midpoint) by scipy, from whole models built by hand."""
    moved = apply(pair.spec, p, pair.b)
    middle = {name: (tensor + moved[name]) / 2 for name, tensor in pair.a.items()}
    both = (softmax(logits(pair, dict(pair.a)), axis=1) + softmax(logits(pair, dict(pair.b)), axis=1)) / 2
    return float(entropy(both, softmax(logits(pair, middle), axis=1), axis=1).mean())


def test_the_score_is_the_mean_kl_from_the_ensemble_to_the_midpoint() -> None:
    pair, back = make_pair("BertForSequenceClassification", planted_seed=2, other_seed=5)
    pair = replace(pair, batches=pair.batches[:6])
    still = identity(pair.spec, pair.shapes)
    values, kind = score([still, back], pair)
    assert kind == "kl"
    assert values == pytest.approx([divergence(pair, still), divergence(pair, back)], rel=1e-4)
    assert values[0] != pytest.approx(values[1], rel=1e-2)


@pytest.mark.parametrize("by", ["activations", "weights"])
def test_a_planted_copy_is_best_with_every_axis_moved(by: str) -> None:
    """Its midpoint is the model itself: the divergence vanishes for all axes, and for no other candidate."""
    pair, _ = make_pair("BertForSequenceClassification", planted_seed=2)
    choice = choose(pair, {by: aligner(by)(pair)}, None)
    names = [c.name for c in choice.candidates]
    assert names == ["nothing", "pooler", "heads, ffn, pooler", "residual, heads, ffn, pooler"]
    assert choice.kept.name == "residual, heads, ffn, pooler"
    assert choice.kept.score == pytest.approx(0, abs=1e-6)
    assert all(c.score is not None and c.score > 1e-3 for c in choice.candidates[:3])


def test_nothing_moves_when_nothing_is_better() -> None:
    """The honest null: a model and itself tie on every candidate, and the first, nothing, is kept."""
    pair, _ = make_pair("BertForSequenceClassification", planted_seed=None)
    choice = choose(pair, {"activations": aligner("activations")(pair)}, None)
    assert choice.kept.name == "nothing"
    assert choice.kept.alignment.permutation.is_identity


def test_axes_that_are_asked_for_are_not_scored() -> None:
    pair, _ = make_pair("BertForSequenceClassification", planted_seed=2)
    choice = choose(pair, {"weights": aligner("weights")(pair)}, frozenset({"ffn", "heads"}))
    assert choice.score is None
    assert choice.kept.name == "heads, ffn"


def test_without_text_all_axes_move() -> None:
    pair, back = make_pair("BertForSequenceClassification", planted_seed=2)
    pair = replace(pair, batches=())
    choice = choose(pair, {"weights": aligner("weights")(pair)}, None)
    assert choice.score is None
    assert all(torch.equal(choice.kept.alignment.permutation.indices[a], back.indices[a]) for a in back.indices)


def test_headless_models_are_scored_by_the_cosine_to_the_endpoints_mean() -> None:
    """By numpy, over tokens that are not padding; b's hidden states are taken in a's basis."""
    pair, back = make_pair("BertModel", planted_seed=2, other_seed=5)
    pair = replace(pair, batches=pair.batches[:4])
    values, kind = score([back], pair)
    moved = apply(pair.spec, back, pair.b)
    middle = {name: (tensor + moved[name]) / 2 for name, tensor in pair.a.items()}

    def hidden(tensors: dict[str, torch.Tensor]) -> np.ndarray:
        model = pair.model(tensors)
        with torch.inference_mode():
            rows = [model(**b).last_hidden_state[b["attention_mask"].bool()] for b in pair.batches]
        return torch.cat(rows).double().numpy()

    mean, found = (hidden(dict(pair.a)) + hidden(moved)) / 2, hidden(middle)
    cosine = (mean * found).sum(1) / np.linalg.norm(mean, axis=1) / np.linalg.norm(found, axis=1)
    assert kind == "cosine"
    assert values[0] == pytest.approx(1 - cosine.mean(), abs=1e-5)
    assert values[0] > 1e-3
