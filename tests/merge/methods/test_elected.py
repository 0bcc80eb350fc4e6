"""The sum of agreeing task vectors on the bits of numpy arrays: what the formula in torch's operations gives."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from merge.methods.context import TensorContext
from merge.methods.elected import elected_sum
from merge.methods.task_vectors import fuse, trim
from merge.methods.ties import Ties


def drawn(dtype: torch.dtype, models: int) -> tuple[Tensor, list[Tensor]]:
    """Return a base and models with entries that equal the base, zeros of both signs, and task vectors that mirror each other."""
    generator = torch.Generator().manual_seed(models)
    base, *tensors = (torch.randn(5003, generator=generator, dtype=dtype) for _ in range(models + 1))
    base[:20], base[20:40] = 0.0, -0.0
    for tensor in tensors:
        tensor[::7] = base[::7]
    tensors[1][40:80] = base[40:80] + (base[40:80] - tensors[0][40:80])
    return base, tensors


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    ("weights", "normalize", "scale"),
    [
        ((1.0, 1.0), True, 1.0),
        ((0.5, 2.0), True, 1.0),
        ((0.5, -2.0), False, 0.25),
        ((1.0, 0.5, 0.0), True, 1.0),
        ((0.3, 0.3), False, 1.0),
    ],
)
@pytest.mark.parametrize("smallest", [0.0, 0.7])
def test_the_result_is_that_of_torch_bit_by_bit(
    smallest: float, weights: tuple[float, ...], normalize: bool, scale: float, dtype: torch.dtype
) -> None:
    """Signs of mirrored task vectors too, whose weighted sum is 0: each product is rounded before it is added."""
    base, tensors = drawn(dtype, len(weights))
    trimmed = [trim(tensor - base, smallest) for tensor in tensors]
    expected = fuse(base, trimmed, weights, normalize, scale, elect=True)
    limits = (smallest,) * len(weights)
    arrays = [tensor.numpy() for tensor in tensors]
    found = torch.from_numpy(elected_sum(base.numpy(), arrays, limits, weights, normalize, scale))
    bits = torch.int64 if dtype == torch.float64 else torch.int32
    assert torch.equal(found.view(bits), expected.view(bits))
    other = elected_sum(base.numpy(), arrays, (0.9,) * len(weights), weights, normalize, scale)
    assert not torch.equal(found, torch.from_numpy(other))


def test_ties_leaves_out_a_model_of_density_0_and_trims_none_of_density_1() -> None:
    base, (a, b) = drawn(torch.float32, 2)
    context = TensorContext("w", thresholds=(0.5, 0.5))
    kept = Ties(density=(1.0, 0.0), weights=(1.0, 1.0))([a, b], base, context)
    assert torch.allclose(kept, a, atol=1e-6)
    assert torch.equal(Ties(density=(0.0, 0.0))([a, b], base, context), base)
    assert not torch.allclose(Ties(density=(0.5, 0.0))([a, b], base, context), a, atol=1e-6)
