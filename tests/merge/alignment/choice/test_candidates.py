"""Choosing which axes move, without labels."""

from __future__ import annotations

from dataclasses import replace
from statistics import fmean

import numpy as np
import pytest
import torch
from contracts.test_aligners import make_pair
from quick import quick_on
from scipy.special import softmax
from scipy.stats import entropy

from merge.alignment import midpoint as agreement
from merge.alignment.choice.candidates import (
    NEAR_LOWEST,
    Candidate,
    Choice,
    best,
    choose,
    known_outputs,
    with_line_scores,
)
from merge.alignment.matchers import aligner
from merge.alignment.midpoint import EndpointOutputs, score
from merge.alignment.pair import Alignment, Pair
from merge.symmetry.permutation import Permutation, apply, identity, restrict


def logits(pair: Pair, tensors: dict[str, torch.Tensor]) -> np.ndarray:
    model = pair.model(tensors)
    with torch.inference_mode():
        return torch.cat([model(**batch).logits for batch in pair.batches]).double().numpy()


def divergence(pair: Pair, p: Permutation, lam: float = 0.5) -> float:
    """KL(ensemble || model between) by scipy, from whole models built by hand."""
    moved = apply(pair.spec, p, pair.b)
    between = {name: (1 - lam) * tensor + lam * moved[name] for name, tensor in pair.a.items()}
    a, b = (softmax(logits(pair, dict(side)), axis=1) for side in (pair.a, pair.b))
    return float(entropy((1 - lam) * a + lam * b, softmax(logits(pair, between), axis=1), axis=1).mean())


def test_the_score_is_the_mean_kl_from_the_ensemble_to_the_midpoint() -> None:
    pair, back = make_pair("BertForSequenceClassification", planted_seed=2, other_seed=5)
    pair = replace(pair, batches=pair.batches[:2])
    still = identity(pair.spec, pair.shapes)
    values, kind = score([still, back], pair)
    assert kind == "kl"
    assert values == pytest.approx([divergence(pair, still), divergence(pair, back)], rel=1e-4)
    assert values[0] != pytest.approx(values[1], rel=1e-2)


def test_a_score_elsewhere_on_the_line_weighs_the_ends_as_the_model_does() -> None:
    """By scipy at a quarter; the ensemble of both ends in equal parts would be something else."""
    pair, back = make_pair("BertForSequenceClassification", planted_seed=2, other_seed=5)
    pair = replace(pair, batches=pair.batches[:2])
    value = score([back], pair, lam=0.25)[0][0]
    assert value == pytest.approx(divergence(pair, back, 0.25), rel=1e-4)
    assert value != pytest.approx(divergence(pair, back, 0.5), rel=1e-2)
    assert score([back], pair, lam=0.0)[0][0] == pytest.approx(0, abs=1e-6)


@pytest.mark.slow
def test_candidates_within_reach_of_the_lowest_are_scored_along_the_line() -> None:
    """By scipy; the one beyond reach has no such score, and a candidate that stands alone needs none."""
    pair, back = make_pair("BertForSequenceClassification", planted_seed=2, other_seed=5)
    pair = replace(pair, batches=pair.batches[:2])
    still = identity(pair.spec, pair.shapes)
    little = restrict(back, {"pooler"})
    near, other, far = (
        Candidate(Alignment(p, (), ()), value)
        for p, value in ((still, divergence(pair, still)), (little, divergence(pair, little)), (back, 9.0))
    )
    low, high = sorted(c.score or 0 for c in (near, other))
    assert high < NEAR_LOWEST * low, "both are to be within reach"
    found = with_line_scores([([near, far], pair), ([other], pair)], EndpointOutputs(pair))
    means = [fmean(divergence(pair, p, lam) for lam in (0.25, 0.5, 0.75)) for p in (still, little)]
    assert [c.line for c in found] == [pytest.approx(means[0], rel=1e-4), None, pytest.approx(means[1], rel=1e-4)]
    assert [c.line for c in with_line_scores([([near, far], pair)], EndpointOutputs(pair))] == [None, None]


def test_the_line_decides_where_it_was_looked_at() -> None:
    """The lowest half way is not kept if its line is worse; without lines the lowest half way is."""
    half_way, along, beyond = candidate(0.10), candidate(0.12), candidate(0.30)
    assert best([half_way, along, beyond]) is half_way
    lines = [replace(half_way, line=0.09), replace(along, line=0.08), beyond]
    assert best(lines) is lines[1]


@pytest.mark.parametrize("by", quick_on(("weights",), ("activations", "weights")))
def test_a_planted_copy_is_best_with_every_axis_moved(by: str) -> None:
    """Its midpoint is the model itself: the divergence vanishes for all axes, and for no other candidate."""
    pair, _ = make_pair("BertForSequenceClassification", planted_seed=2)
    pair = replace(pair, batches=pair.batches[:4])
    choice = choose(pair, {by: aligner(by)(pair)}, None)
    names = [c.name for c in choice.candidates]
    assert names == ["nothing", "pooler", "heads, ffn, pooler", "residual, heads, ffn, pooler"]
    assert choice.kept.name == "residual, heads, ffn, pooler"
    assert choice.kept.score == pytest.approx(0, abs=1e-6)
    assert all(c.score is not None and c.score > 1e-3 for c in choice.candidates[:3])


def test_nothing_moves_when_nothing_is_better() -> None:
    """The honest null: a model and itself tie on every candidate, and the first, nothing, is kept."""
    pair, _ = make_pair("BertForSequenceClassification", planted_seed=None)
    pair = replace(pair, batches=pair.batches[:2])
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


def one_text_at_a_time(pair: Pair, tensors: dict[str, torch.Tensor], output: str) -> list[np.ndarray]:
    """Return an output of each text without padding, as a model gives it that reads nothing else."""
    model, rows = pair.model(tensors), []
    with torch.inference_mode():
        for batch in pair.batches:
            for k, length in enumerate(batch["attention_mask"].sum(1).tolist()):
                alone = {name: value[k : k + 1, :length] for name, value in batch.items()}
                rows.append(model(**alone)[output][0].double().numpy())
    return rows


@pytest.mark.parametrize(
    ("architecture", "outputs"),
    [("ElectraForPreTraining", ("logits",)), ("BertForQuestionAnswering", ("start_logits", "end_logits"))],
)
def test_a_logit_for_each_token_is_compared_without_padding(architecture: str, outputs: tuple[str, ...]) -> None:
    """By scipy: of a discriminator, the KL of replaced or not, over tokens; of spans, the KL of which token, over texts."""
    changes = {"model_type": "electra", "embedding_size": 12} if architecture.startswith("Electra") else {}
    pair, back = make_pair(architecture, planted_seed=2, other_seed=5, **changes)
    pair = replace(pair, batches=pair.batches[:2])
    moved = apply(pair.spec, back, pair.b)
    sides = (dict(pair.a), dict(moved), {name: (tensor + moved[name]) / 2 for name, tensor in pair.a.items()})
    expected = 0.0
    for output in outputs:
        a, b, between = (one_text_at_a_time(pair, side, output) for side in sides)
        assert len({len(row) for row in a}) > 1, "without padding there is nothing to leave out"
        rows = []
        for each in zip(a, b, between, strict=True):
            p, q, m = (softmax(np.stack([0 * x, x], 1) if output == "logits" else x[None], axis=1) for x in each)
            rows += entropy((p + q) / 2, m, axis=1).tolist()
        expected += fmean(rows)
    ends = EndpointOutputs(pair)
    values, kind = score([back], pair, ends)
    assert (kind, ends.notes(1000)) == ("kl", ())
    assert values[0] == pytest.approx(expected, rel=1e-4)
    assert values[0] > 1e-3
    matched = aligner("activations")(pair)(frozenset({"ffn"}))  # which keeps the outputs of the models
    assert score([back], pair, EndpointOutputs(pair, known_outputs([Candidate(matched, None)]))) == (values, kind)


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


@pytest.mark.parametrize("remembered", [True, False])
def test_the_endpoints_are_run_once_where_their_answers_can_be_remembered(
    monkeypatch: pytest.MonkeyPatch, remembered: bool
) -> None:
    """Three candidates on four batches: four runs of each end, or twelve; the scores are the same."""
    pair, back = make_pair("BertForSequenceClassification", planted_seed=2, other_seed=5)
    pair = replace(pair, batches=pair.batches[:4])
    moves = [identity(pair.spec, pair.shapes), back, back]
    expected, _ = score(moves, pair)
    if not remembered:
        monkeypatch.setattr(agreement, "MAX_KEPT_BYTES", 0)
    ends, runs = EndpointOutputs(pair), []
    for model in ends.models:
        model.register_forward_pre_hook(lambda *_: runs.append(1))
    values, _ = score(moves, pair, ends)
    assert values == expected
    assert len(runs) == (8 if remembered else 24)


def test_few_texts_and_texts_of_one_class_are_said() -> None:
    """One bias of the classifier decides everything: what the two ends say together is always that class."""
    pair, _ = make_pair("BertForSequenceClassification", planted_seed=None, other_seed=5)
    pair = replace(pair, batches=tuple({name: t[:4] for name, t in batch.items()} for batch in pair.batches[:2]))
    bias = torch.tensor([0.0, 50.0, 0.0])
    sided = replace(pair, a={**pair.a, "classifier.bias": bias}, b={**pair.b, "classifier.bias": bias})
    notes = choose(sided, {"weights": aligner("weights")(sided)}, None).notes
    assert "rests on 8 texts only" in notes[0]
    assert "call 100% of it 'neutral'" in notes[1]
    plain = choose(pair, {"weights": aligner("weights")(pair)}, None).notes
    assert "rests on 8 texts only" in plain[0]


def test_enough_texts_of_all_classes_are_not_remarked_on() -> None:
    """The negative control: 256 texts, on which two models differ as to the class."""
    pair, _ = make_pair("BertForSequenceClassification", planted_seed=None, other_seed=5)
    whole = {name: torch.cat([batch[name] for batch in pair.batches]) for name in pair.batches[0]}
    pair = replace(pair, batches=(whole,))
    both = softmax(logits(pair, dict(pair.a)), axis=1) + softmax(logits(pair, dict(pair.b)), axis=1)
    most = np.bincount(both.argmax(1)).max() / 256
    ends = EndpointOutputs(pair)
    ends(0)
    assert most < 0.9
    assert ends.notes(256) == ()


def test_texts_with_other_shares_of_classes_than_the_models_expect_are_said() -> None:
    """By softmax of both; the controls: the shares that the models expect, and names that are no classes of theirs."""
    pair, _ = make_pair("BertForSequenceClassification", planted_seed=None, other_seed=5)
    pair = replace(pair, batches=pair.batches[:2])
    bias = torch.tensor([0.0, 2.0, 0.0])
    pair = replace(pair, a={**pair.a, "classifier.bias": bias}, b={**pair.b, "classifier.bias": bias})
    expected = (softmax(logits(pair, dict(pair.a)), axis=1) + softmax(logits(pair, dict(pair.b)), axis=1)).mean(0) / 2
    names = [pair.config["id2label"][str(k)] for k in range(3)]

    def notes(shares: dict[str, float]) -> tuple[str, ...]:
        ends = EndpointOutputs(replace(pair, text=replace(pair.text, class_shares=shares)))
        for k in range(len(pair.batches)):
            ends(k)
        return tuple(note for note in ends.notes(256) if "expect" in note)  # not that the text is one-sided

    most, least = int(expected.argmax()), int(expected.argmin())
    assert expected[most] > 0.5
    assert notes({}) == ()
    assert notes({names[k].upper(): float(expected[k]) for k in range(3)}) == ()
    assert notes({names[most]: 0.1, names[least]: 0.8, "other": 0.1}) == ()
    for told in ({names[most]: 0.1, names[least]: 0.9}, {str(most): 0.1, str(least): 0.9}):
        (note,) = notes(told)
        assert f"expect {expected[most]:.0%} {names[most]!r}, and the labels of the calibration text say 10%" in note


def candidate(value: float, by: str = "weights") -> Candidate:
    pair, _ = make_pair("BertForSequenceClassification", planted_seed=None)
    return Candidate(Alignment(identity(pair.spec, pair.shapes), (), ()), value, by)


def test_of_scores_that_differ_by_rounding_the_first_is_kept() -> None:
    """Less moves in it; but what is truly better is kept though it stands last."""
    equal = [candidate(0.2), candidate(0.1), candidate(0.1 - 1e-8)]
    assert best(equal) is equal[1]
    better = [*equal, candidate(0.0999)]
    assert best(better) is better[3]


def test_the_table_leaves_out_columns_that_say_nothing() -> None:
    """One matcher and no basis: two columns; two matchers: their names too."""
    one, other = candidate(0.25), candidate(0.5, "activations")
    assert Choice((one,), one, "KL").table() == [("axes that move", "KL"), ("nothing", "0.2500")]
    assert Choice((one, other), one, "KL").table()[0] == ("axes that move", "matched by", "KL")
    assert Choice((one, other), one, "KL").table()[2] == ("nothing", "activations", "0.5000")
