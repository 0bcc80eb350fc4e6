"""Inner products of many rows at once, and the laws of the methods that are built on them."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from merge.errors import MismatchError
from merge.methods import METHODS, make_method
from merge.methods.context import TensorContext
from merge.methods.sphere import PIECE, arc, as_rows, combine, cosines, gram


def drawn(count: int, *shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype) for _ in range(count)]


def merged(name: str, tensors: list[Tensor], base: Tensor | None = None, **settings: object) -> Tensor:
    return make_method(name, settings, [None] * len(tensors))(tensors, base)


@pytest.mark.parametrize("shape", [(1, 1), (1, 3 * PIECE + 7), (700, 50), (3, PIECE + 1), (0, 4), (4, 0)])
@pytest.mark.parametrize("seen_from", ["zero", "an origin"])
def test_inner_products_are_those_of_numpy(shape: tuple[int, int], seen_from: str) -> None:
    """Whatever the number of pieces a tensor falls into: fewer than a row, several rows, none."""
    *matrices, origin = drawn(4, *shape)
    zero = origin if seen_from == "an origin" else torch.zeros(shape, dtype=torch.float64)
    vectors = np.stack([(matrix - zero).numpy() for matrix in matrices])
    expected = np.einsum("irk,jrk->ijr", vectors, vectors)
    found = gram(matrices, origin if seen_from == "an origin" else None).numpy()
    assert found.shape == expected.shape
    assert np.allclose(found, expected, rtol=1e-10, atol=1e-10)
    if matrices[0].numel():
        assert not np.allclose(found[0, 1], expected[0, 2])


def test_inner_products_are_summed_in_float64() -> None:
    """2^24 + 1 is no float32: a sum in float32 would stand still there."""
    vector = torch.ones(1, 2 * PIECE, dtype=torch.float32)
    vector[0, 0] = 2.0**12
    assert float(gram([vector])) == 2.0**24 + 2 * PIECE - 1
    assert float((vector[:, :1] ** 2 + 1).sum()) == 2.0**24


def test_the_threads_of_the_machine_change_no_bit() -> None:
    matrices = drawn(2, 1, 40 * PIECE + 3)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        one = gram(matrices)
        torch.set_num_threads(4)
        assert torch.equal(gram(matrices), one)
    finally:
        torch.set_num_threads(before)


def test_a_vector_of_length_0_is_at_a_right_angle_to_all() -> None:
    a, b = drawn(2, 1, 5)
    found = cosines(gram([a, 0 * a, b, -3 * a]))[..., 0]
    assert torch.equal(found[1], torch.zeros(4, dtype=torch.float64))
    assert float(found[0, 3]) == pytest.approx(-1, abs=1e-12)
    assert float(found[0, 2]) == pytest.approx(cosine(a, b), abs=1e-12)


def cosine(a: Tensor, b: Tensor) -> float:
    return float(np.vdot(a.numpy(), b.numpy()) / np.linalg.norm(a.numpy()) / np.linalg.norm(b.numpy()))


@pytest.mark.parametrize("t", [0.0, 0.3, 1.0])
def test_an_arc_of_unit_vectors_stays_on_the_circle_at_t_of_the_angle(t: float) -> None:
    for angle in (0.3, 1.5, 3.0):
        x, y = arc(torch.tensor([math.cos(angle)], dtype=torch.float64), t)
        point = np.array([float(x), 0.0]) + float(y) * np.array([math.cos(angle), math.sin(angle)])
        assert point == pytest.approx([math.cos(t * angle), math.sin(t * angle)], abs=1e-10)


def test_an_arc_without_a_plane_is_the_line() -> None:
    x, y = arc(torch.tensor([1.0, -1.0, 0.0], dtype=torch.float64), 0.3)
    assert [float(v) for v in (x[0], y[0], x[1], y[1])] == [0.7, 0.3, 0.7, 0.3]
    assert float(y[2]) != 0.3


def test_a_combination_of_nothing_moved_is_the_origin_bit_for_bit() -> None:
    """base + c (x - base), not (1 - c) base + c x: an entry that no model changed keeps its bits."""
    origin = drawn(1, 4, 6, dtype=torch.float32)[0]
    same = [origin.clone(), origin.clone()]
    assert torch.equal(combine(same, [0.3, 0.1], origin), origin)
    assert not torch.equal(combine(same, [0.3, 0.1]) + origin * 0.6, origin)


def test_rows_are_vectors_along_the_last_axis() -> None:
    tensor = torch.arange(24.0).reshape(2, 3, 4)
    assert as_rows(tensor, whole=False)[4].tolist() == [16, 17, 18, 19]
    assert as_rows(tensor, whole=True).shape == (1, 24)
    assert as_rows(torch.tensor(3.0), whole=False).shape == (1, 1)
    assert as_rows(torch.zeros(4, 0), whole=False).shape == (4, 0)


def test_an_optional_base_left_out_is_a_base_of_zeros() -> None:
    """A task vector seen from zero is the model."""
    optional = [name for name, kind in METHODS.items() if kind.base == "optional" and name in ("nuslerp", "multislerp")]
    assert len(optional) == 2
    tensors, base = drawn(2, 6, 5), drawn(1, 6, 5, seed=1)[0]
    for name in optional:
        plain = merged(name, tensors)
        assert torch.allclose(plain, merged(name, tensors, torch.zeros_like(base)), rtol=0, atol=1e-12)
        assert not torch.allclose(plain, merged(name, tensors, base), rtol=0, atol=1e-3)


def test_nuslerp_of_equal_weights_is_slerp() -> None:
    tensors = drawn(2, 6, 5)
    assert torch.allclose(merged("nuslerp", tensors), merged("slerp", tensors), rtol=0, atol=1e-12)
    weighted = merged("nuslerp", tensors, weights=[1, 3])
    assert torch.allclose(weighted, merged("slerp", tensors, lam=0.75), rtol=0, atol=1e-12)
    assert not torch.allclose(weighted, merged("slerp", tensors, lam=0.25), rtol=0, atol=1e-3)


def test_columns_are_the_rows_of_the_transpose() -> None:
    a, b, base = drawn(3, 6, 5)
    columns = merged("nuslerp", [a, b], base, vectors="columns")
    assert torch.allclose(columns, merged("nuslerp", [a.T, b.T], base.T, vectors="rows").T, rtol=0, atol=1e-12)
    assert not torch.allclose(columns, merged("nuslerp", [a, b], base, vectors="rows"), rtol=0, atol=1e-3)
    assert columns.is_contiguous()


@pytest.mark.parametrize("name", ["multislerp", "karcher"])
@pytest.mark.parametrize("count", [2, 3, 5])
def test_a_mean_on_the_sphere_keeps_the_mean_length(name: str, count: int) -> None:
    """The reason for it: the plain average of vectors at right angles is shorter than any of them."""
    tensors = drawn(count, 20, 20)
    mean = sum(float(tensor.norm()) for tensor in tensors) / count
    assert float(merged(name, tensors).norm()) == pytest.approx(mean, rel=1e-10)
    assert float(merged("linear", tensors).norm()) < 0.8 * mean


def test_karcher_is_the_middle_by_angle_and_multislerp_by_chord() -> None:
    """On a circle the Karcher mean is the weighted mean of the angles, which the mean of unit vectors is not."""
    angles, weights = np.array([0.1, 0.9, 2.0]), np.array([1.0, 2.0, 3.0])
    tensors = [torch.tensor([math.cos(a), math.sin(a)], dtype=torch.float64) for a in angles]
    found = merged("karcher", tensors, weights=weights.tolist())
    middle = float(angles @ weights / weights.sum())
    assert found.tolist() == pytest.approx([math.cos(middle), math.sin(middle)], abs=1e-10)
    chord = merged("multislerp", tensors, weights=weights.tolist())
    assert chord.tolist() != pytest.approx([math.cos(middle), math.sin(middle)], abs=1e-3)


def test_karcher_of_models_that_hardly_differ_is_their_average() -> None:
    """Fine-tuned models lie within a small fraction of a radian: there the sphere is flat."""
    base, *steps = drawn(4, 30, 30)
    tensors = [base + 1e-4 * step for step in steps]
    assert torch.allclose(merged("karcher", tensors), merged("linear", tensors), rtol=0, atol=1e-7)
    assert not torch.allclose(merged("karcher", tensors), tensors[0], rtol=0, atol=1e-5)


def test_karcher_stops_when_it_does_not_arrive() -> None:
    """A mean that was not reached is no mean; the message names the tensor and the way out."""
    tensors = drawn(5, 6, 5)
    method = make_method("karcher", {"max_iter": 2}, [None] * 5)
    with pytest.raises(
        MismatchError, match=r"karcher: the mean of a\.weight has not converged: step 2 is .*.*Raise max_iter"
    ):
        method(tensors, None, TensorContext("a.weight"))
    assert bool(torch.isfinite(make_method("karcher", {"max_iter": 60}, [None] * 5)(tensors)).all())


@pytest.mark.parametrize("name", ["multislerp", "karcher"])
def test_without_a_mean_direction_the_mean_is_the_average(name: str) -> None:
    """Antipodal models, and tensors of zeros as biases often are: no NaN, no direction out of rounding."""
    a, b = drawn(2, 6, 5)
    zero = torch.zeros_like(a)
    assert torch.allclose(merged(name, [a, -a]), zero, atol=1e-12)
    assert torch.allclose(merged(name, [a, -2 * a]), -a / 2, atol=1e-12)
    assert torch.equal(merged(name, [zero, zero, zero]), zero)
    half = merged(name, [a, zero])
    assert torch.allclose(half, a / 2, atol=1e-12)
    assert not torch.allclose(merged(name, [a, b]), (a + b) / 2, atol=1e-3)


def test_model_stock_is_the_average_of_agreeing_models_and_the_base_of_unrelated_ones() -> None:
    """The two ends of the formula: c = 1 and c = 0."""
    base, step = drawn(2, 6, 5)
    agreeing = [base + step, base + 2 * step]
    assert torch.allclose(merged("model_stock", agreeing, base), base + 1.5 * step, atol=1e-12)
    across = torch.zeros(6, 5, dtype=torch.float64)
    across[0, 0], across[0, 1] = step[0, 1], -step[0, 0]
    first = step * (torch.arange(30).reshape(6, 5) < 2)
    assert torch.allclose(merged("model_stock", [base + first, base + across], base), base, atol=1e-12)


def test_model_stock_keeps_the_base_where_task_vectors_cancel() -> None:
    """1 + (N-1) c = 0 there: the ratio has no value."""
    base, step = drawn(2, 6, 5)
    assert torch.allclose(merged("model_stock", [base + step, base - step], base), base, atol=1e-12)
    assert torch.allclose(merged("model_stock", [base, base], base), base)


def test_model_stock_reads_an_angle_from_the_smallest_step() -> None:
    """The cosine is that of the directions: a floor under the lengths would take short steps for unrelated ones."""
    base, step = drawn(2, 6, 5)
    near = [base + 1e-7 * step, base + 1e-7 * step]
    assert torch.allclose((merged("model_stock", near, base) - base) / 1e-7, step, atol=1e-6)


def test_filter_wise_rows_are_merged_as_if_alone() -> None:
    tensors, base = drawn(3, 6, 5), drawn(1, 6, 5, seed=1)[0]
    found = merged("model_stock", tensors, base, filter_wise=True)
    for i in range(6):
        alone = merged("model_stock", [tensor[i] for tensor in tensors], base[i])
        assert torch.allclose(found[i], alone, rtol=0, atol=1e-12)
    assert not torch.allclose(found, merged("model_stock", tensors, base), rtol=0, atol=1e-3)
