"""The exact assignment, against brute force over all permutations."""

from __future__ import annotations

from itertools import permutations

import pytest
import torch
from quick import quick_on
from scipy.optimize import linear_sum_assignment

from merge.alignment.solvers import assignment
from merge.alignment.solvers.assignment import inner_bound, match_axis, match_heads, match_lazily, match_sparse
from merge.errors import AlignmentError


def total(gain: torch.Tensor, order: tuple[int, ...]) -> float:
    return sum(float(gain[i, j]) for i, j in enumerate(order))


@pytest.mark.parametrize("seed", range(20))
def test_the_matching_has_the_largest_total_gain_of_all(seed: int) -> None:
    """720 permutations are all of them."""
    gain = torch.randn(6, 6, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    best = max(permutations(range(6)), key=lambda order: total(gain, order))
    assert tuple(match_axis(gain).tolist()) == best


def test_the_argmax_shortcut_is_taken_only_when_it_is_exact() -> None:
    """Two rows that want the same column: the row-wise argmax is no matching, and the best one is worth 5 + 3."""
    gain = torch.tensor([[5.0, 3.0], [4.0, 0.0]], dtype=torch.float64)
    assert match_axis(gain).tolist() == [1, 0]
    assert total(gain, (1, 0)) > total(gain, (0, 1))


def test_units_that_never_vary_stay_where_they_are() -> None:
    """Equal gains say nothing, and shuffling dead units would only make noise."""
    assert match_axis(torch.zeros(7, 7, dtype=torch.float64)).tolist() == list(range(7))
    gain = torch.zeros(7, 7, dtype=torch.float64)
    for place, unit in ((4, 0), (0, 5), (5, 4)):
        gain[place, unit] = 1
    assert match_axis(gain).tolist() == [5, 1, 2, 3, 0, 4, 6]


@pytest.mark.parametrize("seed", range(4))
def test_dead_units_among_live_ones_stay_where_they_are(seed: int) -> None:
    """Places that want the same units keep the argmax from being a matching; what is worth nothing has no part in that."""
    generator = torch.Generator().manual_seed(seed)
    live, gain = torch.randperm(12, generator=generator)[:6], torch.zeros(12, 12, dtype=torch.float64)
    gain[live[:, None], live] = 1 + torch.rand(6, 6, generator=generator, dtype=torch.float64)
    gain[live, live[0]] += 1
    found = match_axis(gain)
    assert [int(found[i]) for i in range(12) if i not in live.tolist()] == sorted(set(range(12)) - set(live.tolist()))
    rows, columns = linear_sum_assignment(gain.numpy(), maximize=True)
    assert float(gain.gather(1, found[:, None]).sum()) == pytest.approx(gain.numpy()[rows, columns].sum(), abs=1e-6)
    assert not torch.equal(found[live], live)


def test_nan_and_infinity_are_errors() -> None:
    for bad in (torch.nan, torch.inf):
        gain = torch.eye(3, dtype=torch.float64)
        gain[1, 2] = bad
        with pytest.raises(AlignmentError, match="NaN or infinity"):
            match_axis(gain)


def test_two_level_matching_is_best_over_heads_and_what_is_inside_them() -> None:
    """Brute force: 3! orders of heads, and for each head 3! orders of the first inner axis and 2! of the second."""
    generator = torch.Generator().manual_seed(4)
    first = torch.randn(3, 3, 3, 3, generator=generator, dtype=torch.float64)
    second = torch.randn(3, 2, 3, 2, generator=generator, dtype=torch.float64)

    def worth(heads: tuple[int, ...]) -> float:
        value = 0.0
        for g, h in enumerate(heads):
            for gain in (first, second):
                block = gain[g, :, h, :]
                value += max(total(block, order) for order in permutations(range(len(block))))
        return value

    best = max(permutations(range(3)), key=worth)
    heads, (inner_first, inner_second) = match_heads([first, second])
    assert tuple(heads.tolist()) == best
    found = sum(
        total(gain[g, :, int(heads[g]), :], tuple(inner[g].tolist()))
        for gain, inner in ((first, inner_first), (second, inner_second))
        for g in range(3)
    )
    assert found == pytest.approx(worth(best), abs=1e-12)
    assert worth(best) > worth(tuple(reversed(best)))


def gain_of(kind: str, n: int, seed: int) -> torch.Tensor:
    """Return gains as they come: of unrelated units, of units with a twin in noise, with dead units, of equal ones."""
    generator = torch.Generator().manual_seed(seed)
    a, b = (torch.randn(n, 64, generator=generator, dtype=torch.float64) for _ in range(2))
    gain = a @ (b if kind == "unrelated" else a[torch.randperm(n, generator=generator)] + 2 * b).T
    if kind == "dead":
        gain[: n // 8] = gain[:, n // 3 : n // 2] = 0
    return gain.round() if kind == "ties" else gain


@pytest.mark.parametrize("kind", ["unrelated", "twins", "dead", "ties"])
@pytest.mark.parametrize("seed", quick_on((0,), (0, 1)))
def test_the_sparse_way_gains_what_the_dense_one_does(kind: str, seed: int) -> None:
    """Proved by prices where it answers; where it does not, match_axis goes the dense way."""
    gain = gain_of(kind, 1100, seed)
    rows, columns = linear_sum_assignment(gain.numpy(), maximize=True)
    best = float(gain.numpy()[rows, columns].sum())
    found = match_axis(gain)
    assert sorted(found.tolist()) == list(range(1100))
    assert float(gain.gather(1, found[:, None]).sum()) == pytest.approx(
        best, rel=1e-6 if kind in ("dead", "ties") else 1e-12
    )
    sparse = match_sparse(gain)
    if kind in ("unrelated", "twins"):
        assert sparse is not None
        assert sparse.tolist() == columns.tolist()
    elif sparse is not None:
        assert float(gain.gather(1, sparse[:, None]).sum()) == pytest.approx(best, rel=1e-9)


@pytest.mark.parametrize("kind", quick_on(("twins",), ("unrelated", "twins", "dead", "ties")))
@pytest.mark.parametrize("n", [60, 1100])
def test_gains_in_float32_are_matched_as_the_same_numbers_in_float64(kind: str, n: int) -> None:
    """They are not written to either: small gains are matched the dense way, large ones the sparse way."""
    gain = gain_of(kind, n, 0).float()
    before = gain.clone()
    assert match_axis(gain).tolist() == match_axis(gain.double()).tolist()
    assert torch.equal(gain, before)


def test_too_few_candidates_are_widened_until_the_prices_prove_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """From two candidates each the first answer is wrong; without the check on the whole matrix it would be given."""
    gain = gain_of("unrelated", 300, 0)
    columns = linear_sum_assignment(gain.numpy(), maximize=True)[1]
    monkeypatch.setattr(assignment, "CANDIDATES", 3)
    monkeypatch.setattr(assignment, "MAX_ROUNDS", 50)
    found = match_sparse(gain)
    assert found is not None
    assert found.tolist() == columns.tolist()
    monkeypatch.setattr(assignment, "_widen", lambda *_: 0)
    unproved = match_sparse(gain)
    assert unproved is None or unproved.tolist() != columns.tolist()


def test_lazy_matching_asks_for_few_pairs_and_is_exact() -> None:
    """Bounds that are tight where it matters leave most pairs unasked; loose ones cost more but change nothing."""
    generator = torch.Generator().manual_seed(0)
    worth = torch.rand(12, 12, generator=generator, dtype=torch.float64)
    best = linear_sum_assignment(worth.numpy(), maximize=True)[1].tolist()
    for slack, most in ((0.1, 100), (10.0, 144)):
        asked: list[tuple[int, int]] = []

        def value(g: int, h: int, asked: list[tuple[int, int]] = asked) -> float:
            asked.append((g, h))
            return float(worth[g, h])

        bound = worth + slack * torch.rand(12, 12, generator=generator, dtype=torch.float64)
        assert match_lazily(bound, value).tolist() == best
        assert len(set(asked)) == len(asked) <= most
    assert worth.argmax(1).tolist() != best


def test_the_bound_of_a_pair_is_never_below_its_worth() -> None:
    gain = torch.randn(3, 5, 3, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    bound, above = inner_bound(gain), 0
    for g in range(3):
        for h in range(3):
            rows, columns = linear_sum_assignment(gain[g, :, h].numpy(), maximize=True)
            worth = float(gain[g, :, h].numpy()[rows, columns].sum())
            assert float(bound[g, h]) >= worth - 1e-12
            above += float(bound[g, h]) > worth + 1e-3
    assert above > 0
