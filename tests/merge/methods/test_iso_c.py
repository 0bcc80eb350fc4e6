"""What isotropic merging does to singular values and vectors."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from merge.methods import make_method


@pytest.mark.parametrize("shape", [(8, 5), (5, 8), (6, 6)])
def test_every_singular_value_becomes_their_mean_and_no_vector_turns(shape: tuple[int, int]) -> None:
    generator = torch.Generator().manual_seed(0)
    a, b, base = (torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(3))
    change = (make_method("iso_c", {}, [None, None])([a, b], base) - base).numpy()
    summed = (a + b - 2 * base).numpy()
    values = np.linalg.svd(summed, compute_uv=False)
    assert np.linalg.svd(change, compute_uv=False) == pytest.approx(np.full(min(shape), values.mean()), abs=1e-10)
    # The same singular vectors on both sides: U S V^T (U s V^T)^T = s U S U^T is symmetric and positive.
    product = summed @ change.T
    assert np.allclose(product, product.T, atol=1e-10)
    assert np.linalg.eigvalsh(product).min() > -1e-10
    assert not np.allclose(summed @ a.numpy().T, (summed @ a.numpy().T).T)


def test_a_direction_that_no_model_moved_along_stays() -> None:
    """Of two rank-one changes two directions are known; an SVD returns the others, which are any that fit."""
    generator = torch.Generator().manual_seed(0)
    base = torch.zeros(8, 5, dtype=torch.float64)
    left, right = (torch.randn(n, 2, generator=generator, dtype=torch.float64) for n in (8, 5))
    models = [torch.outer(left[:, i], right[:, i]) for i in range(2)]
    values = np.linalg.svd(make_method("iso_c", {}, [None, None])(models, base).numpy(), compute_uv=False)
    strength = np.linalg.norm(sum(models).numpy(), "nuc") / 5
    assert values == pytest.approx([strength, strength, 0, 0, 0], abs=1e-10)
    assert strength > 0.1


def test_other_ranks_get_the_average_change() -> None:
    """A bias has no singular values: its task vectors are averaged, not summed."""
    a, b, base = torch.tensor([1.0, 2.0]), torch.tensor([3.0, 4.0]), torch.tensor([1.0, 1.0])
    assert make_method("iso_c", {}, [None, None])([a, b], base).tolist() == [2.0, 3.0]
    assert make_method("iso_c", {"scale": 2}, [None, None])([a, b], base).tolist() == [3.0, 5.0]
