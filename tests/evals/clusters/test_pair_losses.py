"""The record of a sweep gives curves, rows and subsets as they were measured."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest

from evals.clusters.pair_losses import PairLosses
from merge.errors import UsageError


def _losses(models: int = 4, rows: int = 6) -> PairLosses:
    draw = np.random.default_rng(0)
    pairs = list(combinations(range(models), 2))
    inside = {pair: draw.random((3, rows), dtype=np.float32) for pair in pairs}
    return PairLosses(
        models=tuple("abcdefgh"[:models]),
        lam=(0.0, 0.25, 0.5, 0.75, 1.0),
        ends=draw.random((models, rows), dtype=np.float32),
        inside=inside,
        distance={pair: float(sum(pair)) for pair in pairs},
        ends_correct=draw.random((models, rows)) > 0.5,
        inside_correct={pair: losses > 0.5 for pair, losses in inside.items()},
    )


def test_a_curve_runs_from_its_first_model_to_its_second():
    losses = _losses()
    assert (losses.curve(1, 3)[0] == losses.ends[1]).all()
    assert (losses.curve(1, 3)[-1] == losses.ends[3]).all()
    assert (losses.curve(3, 1) == losses.curve(1, 3)[::-1]).all()
    assert (losses.curve(1, 3)[losses.middle] == losses.inside[1, 3][1]).all()
    assert not (losses.curve(1, 3) == losses.curve(1, 2)).all()


def test_a_choice_of_rows_is_taken_everywhere():
    losses = _losses()
    drawn = losses.rows([2, 2, 0])
    assert (drawn.curve(0, 1) == losses.curve(0, 1)[:, [2, 2, 0]]).all()
    assert (drawn.correct(0, 1) == losses.correct(0, 1)[:, [2, 2, 0]]).all()


def test_a_subset_keeps_the_lines_between_its_models():
    losses = _losses()
    some = losses.subset([0, 2, 3])
    assert some.models == ("a", "c", "d")
    assert some.complete
    assert (some.curve(1, 2) == losses.curve(2, 3)).all()
    assert some.distance[1, 2] == 5.0
    assert (some.correct(0, 2) == losses.correct(0, 3)).all()


@pytest.mark.parametrize("chosen", [[2, 0], [1, 1]])
def test_a_subset_in_another_order_is_refused(chosen):
    with pytest.raises(UsageError, match="increasing order"):
        _losses().subset(chosen)


def test_losses_of_another_shape_are_refused():
    losses = _losses()
    with pytest.raises(UsageError, match=r"pair 0, 1: expected losses of shape \(3, 6\), found \(2, 6\)"):
        PairLosses(losses.models, losses.lam, losses.ends, {(0, 1): losses.inside[0, 1][:2]}, {(0, 1): 1.0})
    with pytest.raises(UsageError, match="different names"):
        PairLosses(("a", "a"), losses.lam, losses.ends[:2], {}, {})
