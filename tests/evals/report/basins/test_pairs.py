"""Pairs of a record: the matrix holds each once on either side, and the extreme curves are those of brute force."""

from __future__ import annotations

from itertools import combinations
from typing import Any

import numpy as np

from evals.report.basins.pairs import extreme_curves, model_names, pair_matrix


def planted_record(models: int, seed: int = 0) -> dict[str, Any]:
    """Return a record of all pairs with random convexity gaps."""
    pairs = [list(pair) for pair in combinations(range(models), 2)]
    random = np.random.default_rng(seed)
    gaps = random.uniform(0, 1, len(pairs)).tolist()
    return {
        "models": [{"name": f"zoo/m{at}/", "hash": str(at)} for at in range(models)],
        "pairs": pairs,
        "lam": [0, 0.5, 1],
        "lines": [
            {
                "name": "naive",
                "curves": [[0.1, gap, 0.1] for gap in gaps],
                "summaries": {"convexity gap": {"value": gaps, "standard_error": [0.01] * len(pairs)}},
            }
        ],
    }


def test_the_matrix_is_symmetric_and_nan_where_nothing_was_measured() -> None:
    record = planted_record(4)
    record["lines"][0]["summaries"]["convexity gap"]["value"][2] = None
    del record["pairs"][-1], record["lines"][0]["summaries"]["convexity gap"]["value"][-1]
    matrix = pair_matrix(record, record["lines"][0], "convexity gap")
    values = record["lines"][0]["summaries"]["convexity gap"]["value"]
    assert matrix[0, 1] == matrix[1, 0] == values[0]
    assert np.isnan(matrix[[0, 3, 2, 3], [3, 0, 3, 2]]).all()
    assert np.isnan(matrix).sum() == 4


def test_extreme_curves_are_those_of_brute_force() -> None:
    record, labels = planted_record(6), [0, 1, 0, 1, 0, 2]
    gaps = dict(
        zip(map(tuple, record["pairs"]), record["lines"][0]["summaries"]["convexity gap"]["value"], strict=True)
    )
    panels = extreme_curves(record, record["lines"][0], "convexity gap", labels)
    groups = {
        "inside cluster 1": [pair for pair in gaps if set(pair) <= {0, 2, 4}],
        "inside cluster 2": [(1, 3)],
        "between clusters": [pair for pair in gaps if labels[pair[0]] != labels[pair[1]]],
    }
    assert panels.keys() == groups.keys()  # one model has no pair inside its cluster
    for title, pairs in groups.items():
        ends = sorted({min(pairs, key=gaps.__getitem__), max(pairs, key=gaps.__getitem__)}, key=gaps.__getitem__)
        assert [curve["name"] for curve in panels[title]] == [f"m{i} → m{j}" for i, j in ends]
        assert [curve["loss"][1] for curve in panels[title]] == [gaps[pair] for pair in ends]


def test_names_lose_the_folder_that_all_share_and_nothing_else() -> None:
    def names(*models: str) -> list[str]:
        return model_names({"models": [{"name": name} for name in models]})

    assert names("zoo/heads/a/", "zoo/heads/b") == ["a", "b"]
    assert names("zoo/heads/a", "zoo/heavy/a") == ["heads/a", "heavy/a"]
    assert names("a", "b") == ["a", "b"]
    assert names("ab", "abc") == ["ab", "abc"]
    assert names("/x/a", "y/a") == ["/x/a", "y/a"]
