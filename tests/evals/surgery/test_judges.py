"""What edited models are compared by where there are no labels: cosine and KL to the whole model, and the floor of both."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from evals.surgery.judges import AgreementJudge
from evals.surgery.slots import Pass


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
