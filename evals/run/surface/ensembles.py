"""Compare what simplexes predict with the deep ensemble of models and with their average, on every data set."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

    from evals.paths.walk import EncodedTask
    from evals.run.surface.models import Asked, Prepared

    Weights = Mapping[str, Tensor]


@dataclass(frozen=True)
class Member:
    """A model that predicts: a combination of others, made when it is needed."""

    parts: Sequence[Weights] = field(repr=False)
    coefficients: tuple[float, ...]

    def weights(self) -> Weights:
        """Return its weights."""
        from evals.paths.surface.weights import combine

        return combine(self.parts, self.coefficients)


def ensemble_rows(
    asked: Asked, ready: Prepared, simplexes: Sequence[Sequence[Weights]], samples: int, seed: int
) -> list[dict[str, Any]]:
    """Return, for each data set, a row for each model, ensemble and average: its passes, accuracy, likelihood and calibration.

    Args:
        simplexes: the vertices of each, the first of which is its model.
        samples: points drawn from each.
    """
    from evals.clusters.sweep.names import short_names

    groups = _groups(short_names(asked.models), ready.weights, simplexes, samples, seed)
    return [_of_data_set(each, ready, groups) for each in ready.encoded]


def _groups(
    names: Sequence[str],
    models: Sequence[Weights],
    simplexes: Sequence[Sequence[Weights]],
    samples: int,
    seed: int,
) -> dict[str, list[Member]]:
    """Return name -> the members whose probabilities are averaged."""
    from evals.paths.surface.simplex import drawn_weights

    single = [Member([weights], (1.0,)) for weights in models]
    groups = {name: [member] for name, member in zip(names, single, strict=True)}
    points: list[Member] = []
    for name, vertices in zip(names, simplexes, strict=False):
        numbers = random.Random(f"ensemble-{seed}-{name}")
        drawn = [Member(vertices, tuple(drawn_weights(len(vertices), numbers))) for _ in range(samples)]
        groups[f"simplex of {name}"] = drawn
        groups[f"centre of the simplex of {name}"] = [Member(vertices, (1 / len(vertices),) * len(vertices))]
        points += drawn
    count = len(simplexes)
    if count > 1:
        groups[f"all {count} simplexes"] = points
    for number in dict.fromkeys((count, len(models))):
        if number > 1:
            groups[f"deep ensemble of {number}"] = single[:number]
            groups[f"average of {number}"] = [Member(models[:number], (1 / number,) * number)]
    return groups


def _of_data_set(each: EncodedTask, ready: Prepared, groups: Mapping[str, Sequence[Member]]) -> dict[str, Any]:
    """Return the rows of one data set; differences are from the first group, whose members are one model."""
    import torch

    from evals.paths.surface.ensemble import calibration

    gold = torch.tensor(each.matched.rows.gold)
    known: dict[int, Tensor] = {}
    rows, first = [], None
    for name, members in groups.items():
        for member in members:
            if id(member) not in known:
                known[id(member)] = _probabilities(member, each, ready)
        mean = torch.stack([known[id(member)] for member in members]).mean(0)
        lost = -mean[torch.arange(len(gold)), gold].clamp(min=1e-300).log()
        first = lost if first is None else first
        change = lost - first
        error = float(change.std() / len(change) ** 0.5) if len(change) > 1 else None
        rows.append(
            {
                "name": name,
                "passes": len(members),
                **asdict(calibration(mean, gold)),
                "nll_change": float(change.mean()),
                "nll_change_error": error,
            }
        )
    rows_of = each.matched.rows
    return {
        "task": each.matched.task.name,
        "split": rows_of.split,
        "data": rows_of.data,
        "n": len(rows_of),
        "rows": rows,
    }


def _probabilities(member: Member, each: EncodedTask, ready: Prepared) -> Tensor:
    """Return the probabilities of the task's classes under a member, in float64; classes that fold into one are pooled."""
    from evals.predict.logits import check_finite, task_logits

    ready.predictor.set(member.weights())
    logits = ready.predictor.logits(each.encoded, "ensembles")
    check_finite(logits, "a point of a simplex")
    pooled, _ = task_logits(logits, each.matched.columns, each.matched.task)
    return pooled.double().softmax(1)
