"""Tell whether two models were trained from the same start, so that unit i of one is unit i of the other.

Units of a are compared with all units of b by the cosine of their weights, all other axes as they are. A unit is *at home*
if no unit of b is nearer to it than the one with its own index. Measured, the smallest share of probed units at home on any
axis:

    two fine-tunes of one start (MiniLM on MNLI; small classifiers, which went on for most of their training)   1.00
    a model and itself with noise of one standard deviation on every tensor                                     0.99
    two models from different seeds (BERT classifiers, BERT and GPT-2 language models)                   0.00 to 0.05

AT_HOME is between them, where no pair was. Where every unit is at home, matching would return the identity.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from merge.alignment.pair import Pair
from merge.alignment.solvers.objective import Objective, Occurrence, weights_of

# The least share of probed units that must be at home on every axis.
AT_HOME = 0.9
# The units of a that are probed on an axis, evenly spread over it, and the columns of weights that are compared.
PROBED, COLUMNS = 128, 1 << 14


@dataclass(frozen=True)
class CommonStart:
    """How near two models are to one start.

    Attributes:
        home: kind of axis -> share of its probed units that are at home.
        away: the kinds with an axis on which the share is below AT_HOME.
        probed: the number of units that were probed.
        cosine: the median cosine of the models' matrices.
    """

    home: Mapping[str, float]
    away: frozenset[str]
    probed: int
    cosine: float

    @property
    def common(self) -> bool:
        """Whether units of every kind have their own index in both models; False where no unit was probed."""
        return not self.away and self.probed > 0

    @property
    def share(self) -> float:
        """The mean over kinds of the share of probed units that are at home."""
        return sum(self.home.values()) / max(len(self.home), 1)

    def __str__(self) -> str:
        """Return the one line that a run prints where the start is common."""
        return f"one common start: {self.says}; kept as they are"

    @property
    def says(self) -> str:
        """The figures in words."""
        share = f"{self.share:.1%} of {self.probed} probed units are nearest to themselves"
        return f"{share}, median cosine of weights {self.cosine:.3f}"

    def to_json(self) -> dict[str, Any]:
        """Return the figures for the manifest."""
        return {
            "common": self.common,
            "says": self.says,
            "home": dict(self.home),
            "away": sorted(self.away),
            "probed": self.probed,
            "cosine": self.cosine,
        }


def find_common_start(pair: Pair) -> CommonStart:
    """Return how near two models are to one start; no text is read and neither model is run.

    Args:
        pair: in canonical form.
    """
    objective = Objective(pair, weights_of(pair), pair.movable)
    shares: dict[str, list[float]] = {}
    probed = 0
    for move, all_occurrences in objective.occurrences.items():
        for occurrences in _levels(all_occurrences):
            home = _at_home(objective, occurrences)
            if len(home):
                shares.setdefault(pair.spec.kind(move), []).append(float(home.float().mean()))
            probed += len(home)
    return CommonStart(
        home={kind: sum(values) / len(values) for kind, values in shares.items()},
        away=frozenset(kind for kind, values in shares.items() if min(values) < AT_HOME),
        probed=probed,
        cosine=_cosine(pair),
    )


def _levels(all_occurrences: Sequence[Occurrence]) -> list[list[Occurrence]]:
    """Return the matrices of an axis, grouped by how their units are counted; vectors do not identify a unit."""
    levels: dict[tuple[str, ...], list[Occurrence]] = {}
    for occurrence in all_occurrences:
        if not occurrence.alone:
            levels.setdefault(occurrence.view.names, []).append(occurrence)
    return list(levels.values())


def _at_home(objective: Objective, occurrences: Sequence[Occurrence]) -> Tensor:
    """Return, for each probed unit of an axis whose weights are not all zero, whether it is at home."""
    rows: tuple[list[Tensor], list[Tensor]] = [], []
    columns = 0
    for occurrence in occurrences:
        for side, scales, parts in zip("ab", (objective.weights.scale_a, objective.weights.scale_b), rows, strict=True):
            parts.append(objective.rows(occurrence, side, None).float() * scales[occurrence.tensor])
        columns += rows[0][-1].shape[1]
        if columns >= COLUMNS:
            break
    a, b = (torch.nn.functional.normalize(torch.cat(parts, 1), dim=1) for parts in rows)
    units = torch.linspace(0, len(a) - 1, min(PROBED, len(a))).round().long()
    units = units[(a[units] != 0).any(1)]
    cosines = a[units] @ b.T
    return cosines.gather(1, units[:, None])[:, 0] >= cosines.amax(1)


def _cosine(pair: Pair) -> float:
    """Return the median cosine of the models' matrices."""
    cosines = []
    for name, matrix in pair.a.items():
        if matrix.ndim > 1 and matrix.is_floating_point():
            a, b = matrix.reshape(-1).double(), pair.b[name].reshape(-1).double()
            cosines.append(float(a @ b / (a.norm() * b.norm()).clamp_min(torch.finfo(torch.float64).tiny)))
    return sorted(cosines)[len(cosines) // 2] if cosines else 0.0
