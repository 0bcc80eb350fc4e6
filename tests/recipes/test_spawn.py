"""Fine-tunes that are spawned from one run: the same steps up to the fork, their own after it."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest

RECIPES = Path(__file__).parents[2] / "recipes"
ROWS = [{"sentence": f"number {k}", "label": "negative"} for k in range(40)]


@pytest.fixture
def recipe(monkeypatch: pytest.MonkeyPatch) -> Any:
    from importlib import import_module

    monkeypatch.syspath_prepend(str(RECIPES))
    return import_module("finetune_minilm")


def _steps(recipe: Any, seed: int, shared: int) -> list[Any]:
    tuning = recipe.Tuning(seed=seed, head_seed=0, epochs=2, batch_size=4, shared_steps=shared)
    steps: list[Any] = recipe.steps_of(ROWS, tuning)
    return steps


def test_two_runs_share_the_steps_before_the_fork_and_no_order_after_it(recipe: Any) -> None:
    a, b = _steps(recipe, 1, 6), _steps(recipe, 2, 6)
    assert len(a) == len(b) == 20
    assert a[:6] == b[:6]
    assert a[6:] != b[6:]


def test_all_steps_shared_are_one_run_and_none_are_two(recipe: Any) -> None:
    assert _steps(recipe, 1, 20) == _steps(recipe, 2, 20)
    assert _steps(recipe, 1, 0)[0] != _steps(recipe, 2, 0)[0]
    order = random.Random(1)
    assert _steps(recipe, 1, 0)[:10] == recipe.batches(ROWS, 4, order)


def test_shared_steps_without_a_shared_start_are_refused(recipe: Any) -> None:
    with pytest.raises(ValueError, match="start from the same weights"):
        recipe.steps_of(ROWS, recipe.Tuning(seed=1, shared_steps=3))
