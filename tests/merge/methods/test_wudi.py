"""WUDI's minimum: it is one, it is the one gradient descent goes to, and both ways to it agree."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from merge.methods import make_method
from merge.methods.wudi import _by_inputs, _by_outputs


def drawn(count: int, *shape: int, seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(count)]


def disturbance(tau: Tensor, vectors: list[Tensor]) -> Any:
    return sum((((tau - own) @ own.T) ** 2).sum() / (own**2).sum() for own in vectors)


@pytest.mark.parametrize("shape", [(12, 5), (6, 6), (3, 20)])
def test_no_step_from_the_minimum_disturbs_less(shape: tuple[int, int]) -> None:
    vectors = drawn(3, *shape)
    tau = make_method("wudi", {}, [None] * 3)(vectors, torch.zeros(shape, dtype=torch.float64))
    least = float(disturbance(tau, vectors))
    for step in drawn(20, *shape, seed=1):
        assert float(disturbance(tau + 1e-3 * step, vectors)) > least
    start = tau.clone().requires_grad_()
    disturbance(start, vectors).backward()
    assert start.grad is not None
    assert float(start.grad.abs().max()) < 1e-10
    assert float(disturbance(sum(vectors, start=0 * tau), vectors)) > least + 1


@pytest.mark.slow
def test_gradient_descent_from_the_sum_goes_there() -> None:
    """The paper's start, with steps enough. Of the many minima of a wide matrix it is the same one."""
    vectors = drawn(2, 3, 10)
    tau = make_method("wudi", {}, [None] * 2)(vectors, torch.zeros(3, 10, dtype=torch.float64))
    moving = sum(vectors, start=0 * tau).requires_grad_()
    for _ in range(3000):
        (slope,) = torch.autograd.grad(disturbance(moving, vectors), moving)
        moving = (moving - 0.5 * slope).detach().requires_grad_()
    assert torch.allclose(moving, tau, rtol=0, atol=1e-8)
    assert not torch.allclose(sum(vectors, start=0 * tau), tau, rtol=0, atol=1e-2)


@pytest.mark.parametrize("ridge", [0.0, 0.2])
@pytest.mark.parametrize("shape", [(4, 30), (12, 8)])
def test_both_ways_to_the_minimum_agree(ridge: float, shape: tuple[int, int]) -> None:
    """Whether there are fewer inputs or fewer rows, and whether or not inverses exist."""
    vectors = drawn(3, *shape)
    assert torch.allclose(_by_inputs(vectors, ridge), _by_outputs(vectors, ridge), rtol=0, atol=1e-9)
    assert not torch.allclose(_by_inputs(vectors, ridge), _by_outputs(vectors, ridge + 0.1), rtol=0, atol=1e-4)


def test_models_that_do_not_meet_are_added_up_whole() -> None:
    """Task vectors with inputs at right angles disturb nothing: the minimum is 0, at their sum, not at their average."""
    a, b = torch.zeros(2, 4, 6, dtype=torch.float64)
    a[:, :3], b[:, 3:] = drawn(2, 4, 3)
    tau = make_method("wudi", {}, [None] * 2)([a, b], torch.zeros(4, 6, dtype=torch.float64))
    assert torch.allclose(tau, a + b, rtol=0, atol=1e-12)


def test_a_ridge_leads_from_the_minimum_to_the_sum() -> None:
    vectors, base = drawn(3, 7, 5), torch.zeros(7, 5, dtype=torch.float64)
    away = [
        float((make_method("wudi", {"ridge": ridge}, [None] * 3)(vectors, base) - sum(vectors)).norm())
        for ridge in (0.0, 0.1, 1.0, 1e9)
    ]
    assert away == sorted(away, reverse=True)
    assert away[0] > 1
    assert away[-1] < 1e-6


def test_a_model_that_never_moved_says_nothing() -> None:
    """Its term is 0/0: it is left out, not turned into NaN."""
    a, b, base = drawn(3, 7, 5)
    alone = make_method("wudi", {}, [None, None])([a, b], base)
    assert torch.allclose(make_method("wudi", {}, [None] * 3)([a, base, b], base), alone, rtol=0, atol=1e-12)
    assert torch.equal(make_method("wudi", {}, [None])([base], base), base)


def test_other_ranks_get_the_average_change() -> None:
    a, b, base = torch.tensor([1.0, 2.0]), torch.tensor([3.0, 4.0]), torch.tensor([1.0, 1.0])
    assert make_method("wudi", {}, [None, None])([a, b], base).tolist() == [2.0, 3.0]
