"""Similarities: 1 for what they are blind to, their formulas in numpy, near chance for independent representations."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from evals.inside.compare import compare
from evals.inside.hsic import Hsic, hsic, ratio
from evals.inside.measures import MEASURES, prepare, similarity
from evals.inside.representations import Representation
from evals.inside.sites import Site

ROWS, UNITS = 120, 9
EXACT = 1e-10


def random(seed: int, units: int = UNITS, rows: int = ROWS) -> Tensor:
    """Return correlated units of different variances with means that are not 0."""
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(rows, units, generator=generator, dtype=torch.float64)
    return values @ torch.randn(units, units, generator=generator, dtype=torch.float64) + 3


def orthogonal(seed: int = 5) -> Tensor:
    return torch.linalg.qr(random(seed, UNITS, UNITS)).Q


def test_a_rotated_scaled_and_shifted_copy_is_the_same() -> None:
    """By every measure but `permutation`, which tells a permuted copy; another representation is not (control)."""
    x = random(0)
    copy, permuted, other = x @ orthogonal() * 2 + 1, x[:, torch.randperm(UNITS)], random(1)
    values = similarity(prepare(x), prepare(copy))
    assert values.pop("permutation") < 0.95
    assert list(values) == [name for name in MEASURES if name != "permutation"]
    assert list(values.values()) == pytest.approx([1.0] * len(values), abs=EXACT)
    assert similarity(prepare(x), prepare(permuted))["permutation"] == pytest.approx(1, abs=EXACT)
    assert max(similarity(prepare(x), prepare(other)).values()) < 0.6


def test_hsic_by_minibatches_is_that_of_all_rows_and_of_the_definition() -> None:
    """K and L with rows and columns of all pairs, in numpy; one row dropped changes it (control)."""
    x, y = random(0), random(1, 7) + random(0)[:, :7]
    batches = Hsic()
    for start in range(0, ROWS, 37):
        batches.add(x[start : start + 37], y[start : start + 37])
    whole = hsic(x, y)
    k, n = [each.numpy() @ each.numpy().T for each in (x - 100, y)], ROWS  # HSIC_1 is blind to shifts
    k, gram = [each - np.diag(np.diag(each)) for each in k], [(c := (e - e.mean(0)).numpy()) @ c.T for e in (x, y)]
    one = np.ones(n)
    unbiased = np.trace(k[0] @ k[1]) + (one @ k[0] @ one) * (one @ k[1] @ one) / ((n - 1) * (n - 2))
    unbiased = (unbiased - 2 / (n - 2) * one @ k[0] @ k[1] @ one) / (n * (n - 3))
    for each in (batches, whole):
        assert each.biased == pytest.approx(np.trace(gram[0] @ gram[1]), rel=EXACT)
        assert each.unbiased == pytest.approx(unbiased, rel=1e-7)  # the definition cancels, about the shift of 100
    assert batches.unbiased == pytest.approx(whole.unbiased, rel=EXACT)
    assert hsic(x[1:], y[1:]).unbiased != pytest.approx(whole.unbiased, rel=1e-6)


def test_procrustes_and_svcca_are_their_formulas() -> None:
    x, y = random(0), random(0) + 2 * random(1)
    values = similarity(prepare(x), prepare(y))
    left, right = ((each - each.mean(0)).numpy() for each in (x, y))
    scale = np.linalg.norm(left) * np.linalg.norm(right)
    assert values["procrustes"] == pytest.approx(np.linalg.svd(left.T @ right)[1].sum() / scale, rel=EXACT)
    bases = []
    for each in (left, right):
        u, s, _ = np.linalg.svd(each, full_matrices=False)
        bases.append(u[:, : int(np.searchsorted(np.cumsum(s**2) / (s**2).sum(), 0.99)) + 1])
    assert values["svcca"] == pytest.approx(np.linalg.svd(bases[0].T @ bases[1])[1].mean(), abs=1e-8)


def test_independent_representations_are_near_chance() -> None:
    """Debiased CKA is 0 on average, CKA is not; rows in random order are as far as independent ones, by every measure."""
    drawn = [similarity(prepare(random(k)), prepare(random(100 + k))) for k in range(12)]
    shuffled = [
        similarity(
            prepare(random(k)), prepare(random(k)[torch.randperm(ROWS, generator=torch.Generator().manual_seed(k))])
        )
        for k in range(12)
    ]
    assert abs(np.mean([each["debiased cka"] for each in drawn])) < 0.02
    assert np.mean([each["cka"] for each in drawn]) > 0.03
    assert np.mean([each["neighbours"] for each in drawn]) == pytest.approx(10 / (ROWS - 1), abs=0.02)
    for name in ("cka", "debiased cka", "procrustes", "svcca", "neighbours"):
        means = [np.mean([each[name] for each in group]) for group in (drawn, shuffled)]
        assert means[0] == pytest.approx(means[1], abs=0.05), name


def test_no_row_is_its_own_neighbour_where_there_are_many() -> None:
    """1,100 rows, which are searched in two blocks; the neighbours of the last row are those of numpy."""
    values = random(0, rows=1100)
    nearest = prepare(values).nearest
    assert not bool((nearest == torch.arange(1100)[:, None]).any())
    unit = (values - values.mean(0)).numpy()
    unit = unit / np.linalg.norm(unit, axis=1, keepdims=True)
    assert set(nearest[-1].tolist()) == set(np.argsort(unit[:-1] @ unit[-1])[-10:].tolist())


def test_models_of_other_widths_and_depths_are_compared_and_the_copied_site_is_told() -> None:
    """Site 1 of B is a rotation of site 2 of A; the standard error of a copy is 0."""
    a = [Representation(Site(f"a{k}", "a", k, ""), random(k)) for k in range(3)]
    b = [
        Representation(Site("b0", "b", 0, ""), random(7, 4)),
        Representation(Site("b1", "b", 1, ""), a[2].values @ orthogonal()),
    ]
    compared = compare(a, b, torch.arange(ROWS), MEASURES, seed=0)
    assert [(pair.a, pair.b) for pair in compared.pairs] == [("a0", "b0"), ("a1", "b0"), ("a2", "b1")]
    assert compared.pairs[2].best == "b1"
    copied, other = compared.pairs[2].measures["cka"], compared.pairs[0].measures["cka"]
    assert (copied.value, copied.standard_error) == pytest.approx((1, 0), abs=EXACT)
    assert other.standard_error > 0.001
    moved = compare(a[2:], b, torch.arange(ROWS), ("cka",), seed=0).pairs[0]
    assert (moved.b, moved.best) == ("b0", "b1")  # the copy is not the counterpart by depth here
    assert compared.matrices["permutation"][0][0] is None
    assert np.array(compared.matrices["cka"]).shape == (3, 2)


@pytest.mark.slow
def test_the_standard_error_is_the_spread_over_fresh_rows() -> None:
    """One distribution of rows, sampled 40 times: the standard error of a sample is near the spread of the similarities."""
    mixing, noise = random(0, UNITS, UNITS), random(1, 4, 4)
    values, errors = [], []
    for seed in range(40):
        generator = torch.Generator().manual_seed(seed)
        drawn = torch.randn(ROWS, UNITS + 4, generator=generator, dtype=torch.float64)
        x = drawn[:, :UNITS] @ mixing
        a, b = (Representation(Site("s", "s", 0, ""), each) for each in (x, x[:, :4] + drawn[:, UNITS:] @ noise))
        pair = compare([a], [b], torch.arange(ROWS), ("debiased cka",), seed).pairs[0].measures["debiased cka"]
        values.append(pair.value)
        errors.append(pair.standard_error)
    assert np.mean(errors) == pytest.approx(np.std(values), rel=0.35)


def test_what_does_not_vary_has_no_similarity() -> None:
    constant = torch.ones(ROWS, 3, dtype=torch.float64)
    assert all(math.isnan(value) for value in similarity(prepare(constant), prepare(random(0))).values())
    assert math.isnan(ratio(1.0, 0.0, 1.0))


def test_what_does_not_vary_is_most_similar_to_nothing() -> None:
    """A constant site of B, named first, is no site's most similar one; a constant site of A has none."""
    constant = torch.ones(ROWS, 3, dtype=torch.float64)
    a = [Representation(Site("a0", "a", 0, ""), random(0)), Representation(Site("a1", "a", 1, ""), constant)]
    b = [Representation(Site("b0", "b", 0, ""), constant), Representation(Site("b1", "b", 1, ""), random(3))]
    assert [pair.best for pair in compare(a, b, torch.arange(ROWS), ("cka",), seed=0).pairs] == ["b1", None]


def test_similarities_do_not_depend_on_the_size_of_the_numbers() -> None:
    """Of numbers near the largest of float32, whose squares it cannot hold."""
    x, y = random(0), random(1)
    huge = prepare(x * 1e37), prepare(y * 1e37)
    due = similarity(prepare(x), prepare(y))
    assert list(similarity(*huge).values()) == pytest.approx(list(due.values()), rel=1e-9)


def test_the_rounding_of_float32_about_a_constant_is_no_variance() -> None:
    """As the states of every token have, above a layer that writes one vector; a thousand times as much is (control)."""
    noise = random(4) - random(4).mean(0)
    for size, varies in ((1e-7, False), (1e-4, True)):
        values = similarity(prepare((3 + size * noise / noise.std()).float()), prepare(random(0)))
        assert all(math.isnan(value) is not varies for value in values.values())
