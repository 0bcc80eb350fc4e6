"""LLFC, weak additivity and commutativity are those of their formulas, from hidden states that transformers gives."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from tiny import bert_config, random_tensors

from evals.inside.additivity import RunningAdditivity, normalisation
from evals.inside.llfc import Connectivity
from evals.inside.pair_pass import FeaturePlan, PairFeatures, measure_pair_features
from evals.inside.rows import Rows
from evals.inside.sites import Site
from merge.checkpoints.inputs import Tokens
from merge.checkpoints.transformers_model import build
from merge.errors import TaskError

LENGTHS = (5, 3, 5, 7)
EXACT, ROUNDING = 1e-12, 1e-5


def tokens() -> Tokens:
    count = sum(LENGTHS)
    ids = torch.randint(5, 18, (count,), generator=torch.Generator().manual_seed(0))
    return Tokens({"input_ids": ids, "attention_mask": torch.ones(count, dtype=torch.int64)}, LENGTHS, 0, 0)


def weights(seed: int) -> dict[str, Any]:
    return random_tensors(bert_config(), seed, torch.float32)


def measured(a: dict[str, Any], b: dict[str, Any], **plan: Any) -> PairFeatures:
    return measure_pair_features(build(bert_config(), a), (a, b), tokens(), FeaturePlan(**plan))


def states(tensors: dict[str, Any]) -> list[list[np.ndarray]]:
    """Return the output of each layer for each text alone."""
    model, own = build(bert_config(), tensors), tokens()
    texts = own.fields["input_ids"].split(LENGTHS)
    with torch.no_grad():
        outputs = [model(text[None], output_hidden_states=True).hidden_states for text in texts]
    return [[output[k][0].double().numpy() for output in outputs] for k in range(3)]


def distance(x: np.ndarray, y: np.ndarray) -> float:
    return 1 - float((x * y).sum() / np.sqrt((x * x).sum() * (y * y).sum()))


def test_connectivity_is_that_of_the_formula() -> None:
    """At lam = .3, in numpy: of all rows, of each text, of each row; the controls are the baseline and another lam."""
    a, b = weights(0), weights(1)
    middle = {name: torch.lerp(a[name], b[name], 0.3) for name in a}
    result = measured(a, b, lams=(0.3, 0.7), sites=("output",)).connectivity[1]
    assert (result.site, result.count, result.width) == ("layer 1 output", sum(LENGTHS), 24)
    of_a, of_b, of_middle = (states(each)[2] for each in (a, b, middle))
    average = [0.7 * x + 0.3 * y for x, y in zip(of_a, of_b, strict=True)]
    for left, right, angle in ((of_middle, average, result.at[0].distance), (of_a, of_b, result.baseline)):
        assert angle.whole == pytest.approx(distance(np.concatenate(left), np.concatenate(right)), abs=ROUNDING)
        by_text = [distance(x, y) for x, y in zip(left, right, strict=True)]
        by_row = [distance(x, y) for x, y in zip(np.concatenate(left), np.concatenate(right), strict=True)]
        assert (angle.texts.mean, angle.texts.std) == pytest.approx((np.mean(by_text), np.std(by_text)), abs=ROUNDING)
        assert (angle.rows.mean, angle.rows.std) == pytest.approx((np.mean(by_row), np.std(by_row)), abs=ROUNDING)
    x, y = np.concatenate(of_middle), np.concatenate(average)
    assert result.at[0].coefficient == pytest.approx((x * y).sum() / (y * y).sum(), abs=ROUNDING)
    by_text = [(x * y).sum() / (y * y).sum() for x, y in zip(of_middle, average, strict=True)]
    spread = result.at[0].coefficients
    assert (spread.mean, spread.std) == pytest.approx((np.mean(by_text), np.std(by_text)), abs=ROUNDING)
    assert abs(result.at[1].coefficient - result.at[0].coefficient) > 1e-3


def test_connectivity_alone_is_that_of_the_whole_pass() -> None:
    a, b = weights(0), weights(1)
    alone, whole = measured(a, b, llfc_only=True), measured(a, b)
    assert alone.connectivity == whole.connectivity
    assert (alone.additivity, alone.commutativity) == ((), ())
    assert min(len(whole.additivity), len(whole.commutativity)) > 0


def test_logits_are_in_the_order_of_the_texts() -> None:
    """Texts of one length share a batch, so that they run in another order than they have."""
    a, b = weights(0), weights(1)
    model, texts = build(bert_config(), b), tokens().fields["input_ids"].split(LENGTHS)
    with torch.no_grad():
        alone = torch.cat([model(text[None]).logits for text in texts])
    torch.testing.assert_close(measured(a, b).logits["b"], alone, rtol=0, atol=ROUNDING)
    assert not torch.allclose(alone, alone[[1, 0, 2, 3]], atol=1e-3)


@pytest.mark.parametrize("broken", [float("nan"), float("inf")])
def test_features_that_are_not_finite_are_refused(broken: float) -> None:
    b = weights(1)
    b["bert.encoder.layer.0.output.dense.bias"][0] = broken
    with pytest.raises(TaskError, match="is not finite on these texts"):
        measured(weights(0), b)


def test_a_model_is_connected_with_itself_exactly() -> None:
    """Distances are 0 and scales 1 to the last bit or the last but one; with another model none is (control)."""
    a = weights(0)
    same, other = measured(a, a), measured(a, weights(1))
    for site in same.connectivity:
        assert max(site.baseline.whole, site.at[0].distance.whole, site.at[0].distance.rows.mean) < EXACT
        assert site.at[0].coefficient == pytest.approx(1, abs=EXACT)
    assert {each.vanilla for each in same.additivity} == {each.combined for each in same.commutativity} == {0.0}
    assert min(site.at[0].distance.whole for site in other.connectivity[1:]) > 1e-3
    assert min(each.vanilla for each in other.additivity) > 1e-3
    assert min(each.combined for each in other.commutativity) > 1e-3


def test_a_linear_network_is_connected_exactly() -> None:
    """Features W H with shared inputs H are linear in W; with one more layer that differs they are not (control)."""
    generator = torch.Generator().manual_seed(0)
    inputs, w0, w1, v0, v1 = (torch.randn(6, 6, generator=generator, dtype=torch.float64) for _ in range(5))
    texts = torch.zeros(6, dtype=torch.int64)

    def whole(a: torch.Tensor, b: torch.Tensor, middle: torch.Tensor) -> float:
        line = Connectivity(Site("x", "x", None, ""), (0.25,), 1)
        left, right, between = (Rows(values, texts, pooled=False) for values in (a, b, middle))
        line.add_ends(left, right, texts)
        line.add_between(0.25, left, right, between, texts)
        return line.result.at[0].distance.whole

    w, v = torch.lerp(w0, w1, 0.25), torch.lerp(v0, v1, 0.25)
    assert whole(inputs @ w0, inputs @ w1, inputs @ w) < EXACT
    assert whole(inputs @ w0 @ v0, inputs @ w1 @ v1, inputs @ w @ v) > 0.01


def test_models_that_differ_in_the_classifier_alone_have_linear_logits() -> None:
    """The classifier is linear; the pooler ends in tanh (control)."""
    a, other = weights(0), weights(1)
    in_classifier = a | {name: other[name] for name in a if name.startswith("classifier")}
    in_pooler = a | {name: other[name] for name in a if "pooler" in name}
    logits = measured(a, in_classifier, sites=("logits",)).connectivity[0]
    assert logits.at[0].distance.whole < ROUNDING < 0.01 < logits.baseline.whole
    assert measured(a, in_pooler, sites=("logits",)).connectivity[0].at[0].distance.whole > 10 * ROUNDING


def test_commutativity_and_additivity_are_those_of_the_formulas() -> None:
    """Of layer 0's first feed-forward matrix and activation, from inputs that hooks of this test take."""
    a, b = weights(0), weights(1)
    result = measured(a, b)
    found = next(each for each in result.commutativity if (each.layer, each.module) == (0, "intermediate.dense"))
    h, x = zip(*(_inputs_of_ffn(tensors) for tensors in (a, b)), strict=True)
    w = [tensors["bert.encoder.layer.0.intermediate.dense.weight"].double().numpy().T for tensors in (a, b)]

    def dist(x: np.ndarray, y: np.ndarray) -> float:
        return float(((x - y) ** 2).sum() / np.sqrt((x**2).sum() * (y**2).sum()))

    expected = dist(h[0] @ w[0] + h[1] @ w[1], h[1] @ w[0] + h[0] @ w[1]), dist(*w), dist(*h)
    assert (found.combined, found.weights, found.inputs) == pytest.approx(expected, rel=1e-4)
    relu = next(each for each in result.additivity if (each.layer, each.function) == (0, "ReLU"))
    left, right = np.maximum(x[0], 0) + np.maximum(x[1], 0), np.maximum(x[0] + x[1], 0)
    assert relu.vanilla == pytest.approx(dist(left, right), rel=1e-4)
    assert relu.cosine == pytest.approx(distance(left, right), rel=1e-4)
    first = measured(a, b, lams=(0.3, 0.7), sites=("pooler",)).additivity
    relu = next(each for each in first if (each.layer, each.function) == (0, "ReLU"))
    left = 0.7 * np.maximum(x[0], 0) + 0.3 * np.maximum(x[1], 0)
    assert relu.vanilla == pytest.approx(dist(left, np.maximum(0.7 * x[0] + 0.3 * x[1], 0)), rel=1e-4)
    assert {each.function for each in result.additivity if each.layer == 0} == {
        "GELUActivation", "ReLU", "norm attention.output.LayerNorm", "norm output.LayerNorm",
    }  # fmt: skip


def test_norms_are_measured_without_their_gain_and_bias() -> None:
    """They are torch's own norms of the same name without them; a linear layer is no norm."""
    x = torch.randn(4, 6, generator=torch.Generator().manual_seed(0)) + 2
    for norm, own in (
        (torch.nn.LayerNorm, torch.nn.functional.layer_norm),
        (torch.nn.RMSNorm, torch.nn.functional.rms_norm),
    ):
        module = norm(6, eps=0.1)
        torch.nn.init.constant_(module.weight, 3.0)
        function = normalisation(module)
        assert function is not None
        torch.testing.assert_close(function(x), own(x, (6,), eps=0.1))
    assert normalisation(torch.nn.Linear(6, 6)) is None


def test_what_is_additive_is_so_in_every_order_of_units() -> None:
    """Doubling has distance and control 0; ReLU has neither, and its control is that of B's units in another order."""
    x, y = (torch.randn(9, 6, generator=torch.Generator().manual_seed(seed)) for seed in (1, 2))
    texts, site = torch.zeros(9, dtype=torch.int64), Site("layer 0 ffn", "ffn", 0, "x", 0)
    order = torch.randperm(6, generator=torch.Generator().manual_seed(0))
    results = {}
    for name, function, right in (
        ("double", lambda v: 2 * v, y),
        ("relu", torch.relu, y),
        ("moved", torch.relu, y[:, order]),
    ):
        running = RunningAdditivity(site, name, function, 0.3)
        running.add(Rows(x, texts, False), Rows(right, texts, False))
        results[name] = running.result
    assert results["double"].vanilla == pytest.approx(0, abs=EXACT)
    assert results["double"].control == pytest.approx(0, abs=EXACT)
    assert min(results["relu"].vanilla, results["relu"].control) > 0.01
    assert results["relu"].control == pytest.approx(results["moved"].vanilla, rel=ROUNDING)


def _inputs_of_ffn(tensors: dict[str, Any]) -> tuple[np.ndarray, np.ndarray]:
    """Return what layer 0's first feed-forward matrix reads, and what its activation reads."""
    model, rows = copy.deepcopy(build(bert_config(), tensors)), []
    model.bert.encoder.layer[0].intermediate.dense.register_forward_hook(
        lambda _m, args, output: rows.append((args[0][0].double().numpy(), output[0].double().numpy()))
    )
    with torch.no_grad():
        for text in tokens().fields["input_ids"].split(LENGTHS):
            model(text[None])
    return tuple(np.concatenate(each) for each in zip(*rows, strict=True))  # type: ignore[return-value]
