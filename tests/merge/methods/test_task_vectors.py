"""Task vectors: thresholds, masks and votes against sorting, counting and planted answers; the laws of each method."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from merge.errors import UsageError
from merge.methods import METHODS, make_method
from merge.methods.breadcrumbs import mask_band
from merge.methods.context import EMPTY, TensorContext, mask_generators
from merge.methods.della import keep_probabilities
from merge.methods.sce import energy_weights, select_mask
from merge.methods.task_vectors import drop, elected_sign, kept_band, kept_count, norm_ratio, smallest_kept, trim

FAMILY = (
    "task_arithmetic",
    "ties",
    "dare_linear",
    "dare_ties",
    "della",
    "breadcrumbs",
    "sce",
    "magmax",
    "consensus",
)


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def context_of(models: int, seed: int = 0) -> TensorContext:
    return TensorContext(generators=mask_generators(seed, "a.weight", [f"model {k}" for k in range(models)]))


def merged(method: str, vectors: list[Any], context: TensorContext = EMPTY, **settings: Any) -> list[float]:
    """Merge task vectors given as lists onto a base of zeros, so that the result is the merged task vector."""
    tensors = [torch.tensor(vector, dtype=torch.float64) for vector in vectors]
    result = make_method(method, settings, [None] * len(vectors))(tensors, torch.zeros_like(tensors[0]), context)
    return [float(value) for value in result]


@pytest.mark.parametrize("density", [0.001, 0.1, 0.2, 0.5, 0.99, 1.0])
@pytest.mark.parametrize("entries", [1, 2, 7, 1000, 20_001])
def test_the_threshold_is_the_one_a_sort_finds(density: float, entries: int) -> None:
    """A partition knows no more than one rank; the sort knows them all."""
    delta = normal(entries, seed=entries)
    count = kept_count(density, entries)
    sizes = sorted(abs(float(value)) for value in delta)
    assert smallest_kept(delta, density) == sizes[-count]
    assert int((trim(delta, sizes[-count]) != 0).sum()) == count
    if count < entries:
        assert smallest_kept(delta, density) != sizes[-count - 1]


@pytest.mark.parametrize(
    ("density", "entries", "count"), [(0.5, 4, 2), (0.2, 9, 1), (0.01, 9, 1), (1.0, 9, 9), (1, 0, 0)]
)
def test_a_density_keeps_the_whole_part_and_at_least_one(density: float, entries: int, count: int) -> None:
    """An empty tensor has nothing to keep; any other keeps something, however small its density."""
    assert kept_count(density, entries) == count


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_entries_that_tie_at_the_threshold_are_all_kept(dtype: torch.dtype) -> None:
    """Keeping an arbitrary one of them would make the merge depend on the order of units."""
    delta = torch.tensor([0.5, -2.0, 2.0, 2.0, -3.0, 0.0], dtype=dtype)
    threshold = smallest_kept(delta, 0.4)
    assert threshold == 2.0
    assert trim(delta, threshold).tolist() == [0.0, -2.0, 2.0, 2.0, -3.0, 0.0]
    above = (
        float(np.nextafter(np.float32(2), np.float32(3))) if dtype == torch.float32 else float(np.nextafter(2.0, 3.0))
    )
    assert trim(delta, above).tolist() == [0.0, 0.0, 0.0, 0.0, -3.0, 0.0]


def test_a_threshold_between_two_float32_numbers_keeps_what_is_above_it() -> None:
    """Thresholds come as Python floats; rounding one to float32 must not let a smaller entry in, nor a larger out."""
    two, next_up = 2.0, float(np.nextafter(np.float32(2), np.float32(3)))
    delta = torch.tensor([two, next_up])
    assert trim(delta, (two + next_up) / 2).tolist() == [0.0, next_up]
    assert trim(delta, np.nextafter(two, 0.0)).tolist() == [two, next_up]
    assert trim(delta, 0.0).tolist() == [two, next_up]


@pytest.mark.parametrize(
    ("density", "gamma"), [(0.5, 0.1), (0.15, 0.01), (0.9, 0.3), (0.99, 0.01), (0.2, 1.0), (0.3, 0)]
)
def test_the_band_is_the_one_a_sort_finds(density: float, gamma: float) -> None:
    """The outliers go first; where too few would be left, fewer of them go."""
    delta = normal(3001)
    sizes = np.sort(np.abs(delta.numpy()))
    keep, outliers = int(density * 3001), int(gamma * 3001)
    last = max(3001 - outliers, keep)
    assert kept_band(delta, density, gamma) == (sizes[last - keep], sizes[last - 1])
    masked = mask_band(delta, density, gamma)
    assert int((masked != 0).sum()) == keep
    assert (float(masked.abs().max()) == sizes[-1]) == (last == 3001)


def test_breadcrumbs_at_density_one_mask_nothing() -> None:
    """There is nothing left to drop: outliers go only as far as the density allows."""
    delta = normal(50)
    assert torch.equal(mask_band(delta, 1.0, 0.5), delta)


@pytest.mark.parametrize("keep", [0.1, 0.5, 0.9])
def test_dropping_leaves_the_expected_task_vector_unchanged(keep: float) -> None:
    """The point of the rescaling in DARE; without it what is left is `keep` times the task vector.

    An entry of size 3 is drawn 4000 times: the mean is within five standard errors.
    """
    delta = torch.ones(4000, dtype=torch.float64) * 3
    kept = drop(delta, keep, "probability", seeded())
    assert float(kept.mean()) == pytest.approx(3, abs=5 * 3 * ((1 - keep) / keep / 4000) ** 0.5)
    assert set(kept.tolist()) == {0.0, 3 / keep}
    plain = drop(delta, keep, "none", seeded())
    assert float(plain.mean()) == pytest.approx(3 * keep, abs=5 * 3 * (keep * (1 - keep) / 4000) ** 0.5)
    assert torch.equal(plain != 0, kept != 0)


def test_the_l1_rescaling_keeps_the_norm_of_the_tensor() -> None:
    """That is its definition; the negative control is the same mask without it."""
    delta = normal(40, 30)
    kept, plain = (drop(delta, 0.3, rescale, seeded()) for rescale in ("l1", "none"))
    assert float(kept.abs().sum()) == pytest.approx(float(delta.abs().sum()), rel=1e-12)
    assert float(plain.abs().sum()) < 0.5 * float(delta.abs().sum())


def test_the_l1_rescaling_of_nothing_is_nothing() -> None:
    """A mask that drops everything, or all that is not 0, would divide by zero."""
    assert norm_ratio(torch.ones(3), torch.zeros(3)) == 1.0
    assert norm_ratio(torch.zeros(3), torch.zeros(3)) == 1.0
    huge = drop(torch.tensor([1.0, 1e-44, 0.0]), torch.tensor([0.0, 1.0, 1.0]), "l1", seeded())
    assert bool(torch.isfinite(huge).all())


def test_della_keeps_by_rank_within_each_row() -> None:
    """The smallest of a row has density - epsilon, the largest density + epsilon; a large row does not outbid a small one."""
    delta = torch.tensor([[3.0, -1.0, 2.0], [-20.0, 30.0, 10.0]], dtype=torch.float64)
    expected = torch.tensor([[0.7, 0.3, 0.5], [0.5, 0.7, 0.3]], dtype=torch.float64)
    assert torch.allclose(keep_probabilities(delta, 0.5, 0.2), expected, atol=1e-15)
    assert torch.allclose(keep_probabilities(delta.flatten(), 0.5, 0.2)[[1, 4]], torch.tensor([0.3, 0.7]).double())
    assert keep_probabilities(torch.tensor(5.0), 0.5, 0.2).tolist() == 0.5


def test_della_keeps_as_often_as_it_says() -> None:
    """Frequencies over 2000 masks are within five standard errors (0.056) of the probabilities, and they differ."""
    delta = torch.tensor([[0.1, 0.2, 0.3, 0.4, 0.5]], dtype=torch.float64)
    probabilities = keep_probabilities(delta, 0.5, 0.4)
    generator = seeded()
    masks = torch.stack([drop(delta, probabilities, "none", generator) != 0 for _ in range(2000)])
    frequency = masks.double().mean(dim=0)
    assert float((frequency - probabilities).abs().max()) < 0.056
    assert float(frequency[0, 4] - frequency[0, 0]) > 0.7


def test_della_without_a_range_is_dare() -> None:
    """With epsilon 0 every entry has the same probability, and the draws are the same."""
    tensors, base = [normal(6, 5, seed=seed) for seed in (1, 2)], normal(6, 5, seed=3)
    dare = make_method("dare_ties", {"density": 0.5}, [None, None])(tensors, base, context_of(2))
    flat, wide = (
        make_method("della", {"density": 0.5, "epsilon": epsilon}, [None, None])(tensors, base, context_of(2))
        for epsilon in (0.0, 0.3)
    )
    assert torch.allclose(flat, dare, atol=1e-12)
    assert not torch.allclose(wide, dare, atol=1e-3)


@pytest.mark.parametrize("weight", [1.0, 0.3, 1 / 3, 0.7])
def test_task_vectors_that_cancel_elect_plus(weight: float) -> None:
    """As training's first steps leave them, all of one size: their weighted sum is 0, whatever a product is rounded to.

    The control: a sum with fused products, which is not 0 for weights that are no powers of 2.
    """
    step = 2e-5 * torch.ones(1000) + 1e-9 * torch.arange(1000)
    vectors = [step, -step]
    assert bool((elected_sign(vectors, (weight, weight)) > 0).all())
    exact = step.double() * torch.tensor(weight).double()
    rest = (step * weight).double() - exact
    assert bool((rest < 0).any()) is (weight != 1)


def test_the_elected_sign_is_that_of_the_larger_mass() -> None:
    """Not that of the larger number of models; weights count; a draw is positive."""
    vectors = [torch.tensor([3.0, 1.0, 0.0]), torch.tensor([-1.0, -1.0, 0.0]), torch.tensor([-1.0, 0.0, 0.0])]
    assert elected_sign(vectors, (1.0, 1.0, 1.0)).tolist() == [1.0, 1.0, 1.0]
    assert elected_sign(vectors, (1.0, 2.0, 2.0))[:2].tolist() == [-1.0, -1.0]


def test_ties_averages_only_the_models_that_agree() -> None:
    """Two agree on 2 and 4 and the third is left out; a trimmed entry is not a vote, nor is it in the mean."""
    vectors = [[2.0, 5.0], [4.0, -6.0], [-3.0, 0.1]]
    assert merged("ties", vectors, density=1.0) == [3.0, -6.0]
    assert merged("ties", vectors, density=1.0, weights=[3, 1, 1]) == [2.5, 5.0 * 3 / 4 + 0.1 / 4]
    assert merged("ties", vectors, density=0.5) == [-3.0, -6.0]
    assert merged("ties", vectors, density=1.0, normalize=False) == [6.0, -6.0]


@pytest.mark.parametrize("factor", [1e-12, 1e12])
def test_only_the_ratio_of_weights_counts_in_a_mean(factor: float) -> None:
    """A divisor is guarded against 0 where no model agrees; that guard must not reach small weights."""
    vectors = [[2.0, 5.0], [4.0, -6.0], [-3.0, 0.1]]
    small = merged("ties", vectors, density=1.0, weights=[3 * factor, factor, factor])
    assert small == pytest.approx(merged("ties", vectors, density=1.0, weights=[3, 1, 1]), rel=1e-12)
    summed = merged("ties", vectors, density=1.0, weights=[3 * factor, factor, factor], normalize=False)
    assert summed != pytest.approx(small)


def test_ties_keeps_by_the_thresholds_of_the_whole_model() -> None:
    """The same tensor is trimmed less in a model whose other tensors moved less."""
    method = make_method("ties", {"density": 0.5}, [None, None])
    vectors, base = [torch.tensor([1.0, 2.0, 3.0, 4.0])] * 2, torch.zeros(4)
    assert method(vectors, base).tolist() == [0, 0, 3, 4]
    assert method(vectors, base, TensorContext(thresholds=(2.0, 2.0))).tolist() == [0, 2, 3, 4]
    assert method(vectors, base, TensorContext(thresholds=(4.5, 4.0))).tolist() == [0, 0, 0, 4]
    per_tensor = make_method("ties", {"density": 0.5, "trim": "tensor"}, [None, None])
    assert per_tensor(vectors, base, TensorContext(thresholds=(2.0, 2.0))).tolist() == [0, 0, 3, 4]


def test_ties_asks_for_a_ranking_only_where_it_wants_one() -> None:
    """A pass over all weights for nothing would double the time of a merge."""
    for settings, expected in (
        ({}, (0.2, 0.2)),
        ({"density": [0.3, 1.0]}, (0.3, 1.0)),
        ({"density": 1.0}, None),
        ({"trim": "tensor"}, None),
    ):
        method = make_method("ties", settings, [None, None])
        assert method.kept_fractions(2) == expected
    assert make_method("task_arithmetic", {}, [None, None]).kept_fractions(2) is None


def test_untrimmed_ties_and_dare_ties_and_della_and_sign_electing_breadcrumbs_are_one_vote() -> None:
    """They differ in what is left out before the vote, and nothing is."""
    tensors, base = [normal(6, 5, seed=seed) for seed in (1, 2, 3)], normal(6, 5, seed=4)
    settings: dict[str, Any] = {"density": 1.0, "normalize": True, "weights": [1, 2, 0.5]}
    ties = make_method("ties", settings, [None] * 3)(tensors, base)
    for name, more in (("dare_ties", {}), ("della", {}), ("breadcrumbs", {"elect": True})):
        assert torch.equal(make_method(name, {**settings, **more}, [None] * 3)(tensors, base, context_of(3)), ties)
    assert not torch.equal(make_method("task_arithmetic", {"normalize": True}, [None] * 3)(tensors, base), ties)


def test_task_arithmetic_forgets_with_a_negative_scale() -> None:
    """Negation: adding minus the task vector of one model is the mirror image of the model in the base."""
    tensor, base = normal(5, seed=1), normal(5, seed=2)
    assert torch.allclose(make_method("task_arithmetic", {"scale": -1.0}, [None])([tensor], base), 2 * base - tensor)


def test_magmax_does_not_ask_which_model_came_first() -> None:
    """Equal magnitudes of opposite sign give the positive one, for any order of three models."""
    vectors = [[2.0, -1.0, 0.0, -5.0], [-2.0, 1.0, 0.0, 4.0], [1.0, -1.0, -0.0, 3.0]]
    for order in ((0, 1, 2), (1, 0, 2), (2, 1, 0), (1, 2, 0)):
        assert merged("magmax", [vectors[k] for k in order]) == [2.0, 1.0, 0.0, -5.0]


def test_sce_selects_where_the_models_differ() -> None:
    """One planted entry of three varies; with two that vary, half of them are the one that varies more."""
    same = [torch.tensor([9.0, 1.0, 1.0]), torch.tensor([9.0, 1.0, 2.0])]
    assert select_mask(same, 0.5).tolist() == [False, False, True]
    both = [torch.tensor([9.0, 1.0, 1.0]), torch.tensor([9.0, 4.0, 2.0])]
    assert select_mask(both, 0.5).tolist() == [False, True, False]
    assert select_mask(both, 0.99).tolist() == [False, True, False]
    five = [torch.tensor([0.1, 0.2, 0.3])] * 5
    assert not bool(select_mask(five, 0.9).any())
    five[3] = torch.tensor([0.1, 0.2, 0.4])
    assert select_mask(five, 0.9).tolist() == [False, False, True]


def test_sce_weighs_small_task_vectors_like_large_ones() -> None:
    """Energies are compared with one another, so shrinking every model changes no weight; in float32 too."""
    vectors = [normal(50, seed=seed, dtype=torch.float32) * size for seed, size in ((1, 1.0), (2, 3.0))]
    large, small = energy_weights(vectors), energy_weights([vector * 2.0**-66 for vector in vectors])
    assert sum(large) == pytest.approx(1)
    assert large[1] > 5 * large[0]
    assert small == pytest.approx(large, rel=1e-12)
    assert energy_weights([torch.zeros(3)] * 4) == (0.25,) * 4


def test_consensus_removes_catastrophic_then_selfish_entries() -> None:
    """Planted: five, two, one and none of five models use the entries.

    With lambda 0.4 a model uses an entry if it moved at least 0.4 times as far as the others' sum: all do where they pull
    in both directions, none does where all move alike.
    """
    columns = [[1, 1, 1, -1, -1], [3, 3, 0.1, 0.1, 0.1], [5, 0.1, 0.1, 0.1, 0.1], [1, 1, 1, 1, 1]]
    vectors = [list(row) for row in zip(*columns, strict=True)]
    summed, users = [1.0, 6.3, 5.4, 5.0], [5, 2, 1, 0]
    for k in range(1, 6):
        expected = [value if count >= k else 0.0 for value, count in zip(summed, users, strict=True)]
        assert merged("consensus", vectors, k=k) == pytest.approx(expected)
    assert merged("consensus", vectors, k=5, tall_lambda=0.0) == pytest.approx(summed)
    one_more = merged("consensus", vectors, k=1, tall_lambda=[0.25, 0.4, 0.4, 0.4, 0.4])
    assert one_more == pytest.approx(summed)  # 1 >= 0.25 * 4: equality is use


def test_random_methods_draw_from_the_generator_of_their_model() -> None:
    """Changing one model's generator changes that model's mask alone."""
    vectors = [[1.0] * 64, [100.0] * 64]
    first = merged("dare_linear", vectors, context_of(2), rescale="none")
    context = dataclasses.replace(context_of(2), generators=(seeded(5), context_of(2).generators[1]))
    other = merged("dare_linear", vectors, context, rescale="none")
    assert [value >= 100 for value in first] == [value >= 100 for value in other]
    assert [value % 100 for value in first] != [value % 100 for value in other]


@pytest.mark.parametrize("method", ["dare_linear", "dare_ties", "della"])
@pytest.mark.parametrize("given", [0, 1, 3])
def test_a_random_method_without_a_generator_per_model_stops(method: str, given: int) -> None:
    """Falling back to the global generator would give another merge at every run."""
    with pytest.raises(UsageError, match=f"{method} draws a random mask per model, found {given} generators for 2"):
        make_method(method, {}, [None, None])([normal(3), normal(3)], normal(3), context_of(given))


@pytest.mark.parametrize("method", FAMILY)
def test_the_family_needs_a_base(method: str) -> None:
    """Without one there are no task vectors; a zero base would give the sum of the models."""
    assert METHODS[method].base == "required"
    with pytest.raises(UsageError, match=f"{method} adds task vectors to a base, and none was given"):
        make_method(method, {}, [None, None])([normal(3), normal(3)], None, context_of(2))


@pytest.mark.parametrize("method", FAMILY)
def test_the_number_of_threads_changes_no_bit(method: str) -> None:
    """Sums and norms are taken in one order, whatever the machine; large enough for torch to share out the work."""
    tensors, base = [normal(300, 400, seed=seed) for seed in (1, 2, 3)], normal(300, 400, seed=4)
    settings = {"rescale": "l1"} if method in ("dare_linear", "dare_ties", "della") else {}
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            results.append(make_method(method, settings, [None] * 3)(tensors, base, context_of(3)))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])
