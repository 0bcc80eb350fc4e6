"""The row losses of many models and of the lines between them: what every summary, cluster and ranking is computed from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import combinations
from typing import Any

import numpy as np
from jaxtyping import Bool, Float32

from merge.errors import UsageError

# Two models by their index, the smaller first.
Pair = tuple[int, int]


@dataclass(frozen=True)
class PairLosses:
    """Losses on the same rows of n models, and inside the lines between pairs of them.

    Attributes:
        models: names, each once; shape (n,).
        lam: even grid from 0 to 1, both included; lam = 0 is the model of the smaller index.
        ends: loss of each row by each model, shape (n, rows).
        inside: pair -> losses at lam[1:-1], shape (len(lam) - 2, rows). Pairs that were not measured are absent.
        distance: pair -> Euclidean distance of the weights that are interpolated.
        ends_correct, inside_correct: whether each row is right, of the same shapes; None where the task asks for a number.
        name: of the line: "naive", or how the models were aligned.
        stitching: pair -> mean stitching penalty, 0 for two models that are stitching-connected; None where not measured.
    """

    models: tuple[str, ...]
    lam: tuple[float, ...]
    ends: Float32[np.ndarray, "models rows"] = field(repr=False)
    inside: Mapping[Pair, Float32[np.ndarray, "inner rows"]] = field(repr=False)
    distance: Mapping[Pair, float] = field(repr=False)
    ends_correct: Bool[np.ndarray, "models rows"] | None = field(default=None, repr=False)
    inside_correct: Mapping[Pair, Bool[np.ndarray, "inner rows"]] | None = field(default=None, repr=False)
    name: str = "naive"
    stitching: Mapping[Pair, float] | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        n, points, rows = len(self.models), len(self.lam), self.ends.shape[-1]
        if n < 2 or len(set(self.models)) != n or self.ends.shape != (n, rows):
            raise UsageError(f"expected at least 2 models of different names and losses of each, found {self.models}.")
        for (i, j), losses in self.inside.items():
            if not 0 <= i < j < n or losses.shape != (points - 2, rows):
                raise UsageError(f"pair {i}, {j}: expected losses of shape {(points - 2, rows)}, found {losses.shape}.")

    @property
    def pairs(self) -> list[Pair]:
        """The pairs that were measured, in order."""
        return sorted(self.inside)

    @property
    def complete(self) -> bool:
        """Whether every pair was measured."""
        return len(self.inside) == len(self.models) * (len(self.models) - 1) // 2

    @property
    def middle(self) -> int | None:
        """The index of lam = 1/2 in lam; None where the grid has no such point."""
        return len(self.lam) // 2 if len(self.lam) % 2 else None

    def curve(self, i: int, j: int) -> Float32[np.ndarray, "points rows"]:
        """Return the row losses from model i to model j, both included; i > j gives the line backwards."""
        low, high = min(i, j), max(i, j)
        line = np.concatenate([self.ends[low][None], self.inside[low, high], self.ends[high][None]])
        return line if i <= j else line[::-1]

    def correct(self, i: int, j: int) -> Bool[np.ndarray, "points rows"] | None:
        """Return whether each row is right from model i to model j; None where the task asks for a number."""
        if self.ends_correct is None or self.inside_correct is None:
            return None
        low, high = min(i, j), max(i, j)
        line = np.concatenate(
            [self.ends_correct[low][None], self.inside_correct[low, high], self.ends_correct[high][None]]
        )
        return line if i <= j else line[::-1]

    def rows(self, chosen: Any) -> PairLosses:
        """Return the same on a choice of rows: indices, which may repeat, or a mask; no forward pass."""
        hits = None if self.inside_correct is None else {pair: c[:, chosen] for pair, c in self.inside_correct.items()}
        return replace(
            self,
            ends=self.ends[:, chosen],
            inside={pair: losses[:, chosen] for pair, losses in self.inside.items()},
            ends_correct=None if self.ends_correct is None else self.ends_correct[:, chosen],
            inside_correct=hits,
        )

    def subset(self, chosen: Sequence[int]) -> PairLosses:
        """Return the same on some of the models, by their index in increasing order."""
        if list(chosen) != sorted(set(chosen)):
            raise UsageError(f"expected models in increasing order, each once, found {list(chosen)}.")
        at = {model: new for new, model in enumerate(chosen)}
        pairs = {pair: (at[pair[0]], at[pair[1]]) for pair in combinations(chosen, 2) if pair in self.inside}
        hits = self.inside_correct
        return replace(
            self,
            models=tuple(self.models[model] for model in chosen),
            ends=self.ends[list(chosen)],
            inside={new: self.inside[old] for old, new in pairs.items()},
            distance={new: self.distance[old] for old, new in pairs.items()},
            ends_correct=None if self.ends_correct is None else self.ends_correct[list(chosen)],
            inside_correct=None if hits is None else {new: hits[old] for old, new in pairs.items()},
            stitching=None if self.stitching is None else {new: self.stitching[old] for old, new in pairs.items()},
        )
