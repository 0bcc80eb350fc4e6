"""Common start: whether two models went apart from the same weights, so that every unit still has its own place.

Units of a are compared with all units of b by the cosine of their weights, everything else left where it is. A unit is at
home if none is nearer to it than the one at its own place. As measured, the share of probed units at home on the axis where
it is least:

    two fine-tunes of one start (MiniLM on MNLI; small classifiers, which went on for most of their training)   1.00
    a model and itself with noise of one standard deviation on every tensor                                     0.99
    two models from different seeds (BERT classifiers, BERT and GPT-2 language models)                   0.00 to 0.05

Between these there is nothing, and AT_HOME lies there. Where every unit is at home, matching would return the identity.
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
# Units of a that are probed on an axis, evenly spread over it, and the columns of weights they are told apart by.
PROBED, COLUMNS = 128, 1 << 14


@dataclass(frozen=True)
class CommonStart:
    """What was measured of two models.

    Attributes:
        home: kind of axis -> share of its probed units that are at home.
        away: the kinds with an axis on which fewer than AT_HOME are.
        probed: how many units were.
        cosine: of the models' matrices, the median.
    """

    home: Mapping[str, float]
    away: frozenset[str]
    probed: int
    cosine: float

    @property
    def common(self) -> bool:
        """Whether every kind of unit is in its own place; not where there was nothing to probe."""
        return not self.away and self.probed > 0

    @property
    def share(self) -> float:
        """The share of all kinds' probed units that are at home, each kind counting alike."""
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
    for move, found in objective.occurrences.items():
        for occurrences in _levels(found):
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


def _levels(found: Sequence[Occurrence]) -> list[list[Occurrence]]:
    """Return the matrices of an axis, those together whose units are counted alike; vectors tell units apart badly."""
    levels: dict[tuple[str, ...], list[Occurrence]] = {}
    for occurrence in found:
        if not occurrence.alone:
            levels.setdefault(occurrence.view.names, []).append(occurrence)
    return list(levels.values())


def _at_home(objective: Objective, occurrences: Sequence[Occurrence]) -> Tensor:
    """Return for the probed units of an axis that are not zero whether each is nearest to the one in its own place."""
    rows: tuple[list[Tensor], list[Tensor]] = [], []
    columns = 0
    for occurrence in occurrences:
        for side, scales, found in zip("ab", (objective.weights.scale_a, objective.weights.scale_b), rows, strict=True):
            found.append(objective.rows(occurrence, side, None).float() * scales[occurrence.tensor])
        columns += rows[0][-1].shape[1]
        if columns >= COLUMNS:
            break
    a, b = (torch.nn.functional.normalize(torch.cat(found, 1), dim=1) for found in rows)
    units = torch.linspace(0, len(a) - 1, min(PROBED, len(a))).round().long()
    units = units[(a[units] != 0).any(1)]
    alike = a[units] @ b.T
    return alike.gather(1, units[:, None])[:, 0] >= alike.amax(1)


def _cosine(pair: Pair) -> float:
    """Return the median cosine of the matrices."""
    found = []
    for name, a in pair.a.items():
        if a.ndim > 1 and a.is_floating_point():
            one, other = a.reshape(-1).double(), pair.b[name].reshape(-1).double()
            found.append(float(one @ other / (one.norm() * other.norm()).clamp_min(torch.finfo(torch.float64).tiny)))
    return sorted(found)[len(found) // 2] if found else 0.0
