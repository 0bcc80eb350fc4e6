"""What edited models are compared by where there are no labels: cosine and KL to the whole model, and the floor of both."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from slotted_models import batch_of, model_of

from evals.surgery.judges import AgreementJudge
from evals.surgery.measure import measure_variants
from evals.surgery.slots import Pass
from evals.surgery.variants import single_layers
from merge.checkpoints.inputs import Encoded


def passed(seed: int) -> Pass:
    generator = torch.Generator().manual_seed(seed)
    logits, states = torch.randn(2, 3, generator=generator), torch.randn(2, 4, 5, generator=generator)
    return Pass(SimpleNamespace(logits=logits), states)


def divergence(whole: np.ndarray, edited: np.ndarray) -> float:
    p, q = (np.exp(x) / np.exp(x).sum() for x in (whole, edited))
    return float((p * np.log(p / q)).sum())


def cosine(x: np.ndarray, y: np.ndarray) -> float:
    return float(x @ y / np.sqrt((x @ x) * (y @ y)))


def test_agreement_is_the_cosine_of_mean_states_and_the_divergence_from_the_whole_model() -> None:
    """KL(whole | edited), which is not KL(edited | whole); the floor is the whole model on the other text."""
    whole, edited = passed(0), passed(1)
    batch = {"attention_mask": torch.tensor([[1, 1, 1, 0], [1, 1, 0, 0]])}
    judge = AgreementJudge("", True)
    of_whole, of_edited = (
        [each.states[k, :count].double().numpy().mean(0) for k, count in enumerate((3, 2))] for each in (whole, edited)
    )
    left, right = (each.result.logits.double().numpy() for each in (whole, edited))
    expected = [[cosine(of_edited[k], of_whole[k]), divergence(left[k], right[k])] for k in range(2)]
    assert judge.read(edited, whole, batch).numpy() == pytest.approx(np.array(expected), abs=1e-5)
    assert abs(divergence(left[0], right[0]) - divergence(right[0], left[0])) > 0.01
    other = [[cosine(of_whole[0], of_whole[1]), divergence(left[k], left[1 - k])] for k in range(2)]
    assert judge.unrelated(whole, batch).numpy() == pytest.approx(np.array(other), abs=1e-5)
    assert judge.floor([torch.tensor(other)])[1] == pytest.approx(
        dict(zip(judge.names, np.mean(other, 0), strict=True)), abs=1e-6
    )


def test_the_divergence_of_a_text_is_the_mean_over_its_tokens_without_padding() -> None:
    """Of a head that gives logits for every token."""
    generator = torch.Generator().manual_seed(2)
    whole, edited = (
        Pass(SimpleNamespace(logits=torch.randn(2, 4, 3, generator=generator)), passed(seed).states) for seed in (0, 1)
    )
    batch = {"attention_mask": torch.tensor([[1, 1, 1, 0], [1, 1, 0, 0]])}
    left, right = (each.result.logits.double().numpy() for each in (whole, edited))
    expected = [np.mean([divergence(left[k, t], right[k, t]) for t in range(n)]) for k, n in enumerate((3, 2))]
    assert AgreementJudge("", True).read(edited, whole, batch)[:, 1].numpy() == pytest.approx(expected, abs=1e-5)


@torch.inference_mode()
def test_the_change_of_an_edited_model_is_its_mean_over_rows_with_a_standard_error() -> None:
    """1 - cosine of the mean states of every text, in numpy; padding counts nowhere."""
    model = model_of("bert", 2)
    batches = tuple(batch_of(model, seed) for seed in (0, 1))
    count = len(batches[0]["input_ids"])
    rows = tuple(tuple(range(k * count, (k + 1) * count)) for k in range(2))
    variant = next(single_layers(2))
    result = measure_variants(model, [variant], Encoded(batches, rows, 0), AgreementJudge("", False)).results[0]
    gaps: list[Any] = []
    for batch in batches:
        whole = model.whole(batch)
        states = [each.states.double().numpy() for each in (whole, model.follow(batch, variant.plan, whole.calls))]
        for k, mask in enumerate(batch["attention_mask"].numpy().astype(bool)):
            x, y = (each[k][mask].mean(0) for each in states)
            gaps.append(1 - x @ y / np.sqrt((x @ x) * (y @ y)))
    assert result.change == pytest.approx(np.mean(gaps), rel=1e-4)
    assert result.change > 0.01
    assert result.standard_error == pytest.approx(np.std(gaps, ddof=1) / np.sqrt(len(gaps)), rel=1e-4)
