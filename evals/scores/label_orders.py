"""Detection of misnamed classes: would a model score clearly better if its classes were in another order?

A common fault of natural language inference models: a config with the class names in the order of another data set. The
names are never changed; a note reports where the predictions contradict them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import permutations
from typing import TYPE_CHECKING

from evals.scores.intervals import mcnemar
from merge.errors import TaskError

if TYPE_CHECKING:
    import numpy

    from evals.tasks.task import EvalTask

# Largest p value, corrected for the number of orders, of an order that is reported.
SIGNIFICANCE = 0.001
# Smallest gain of the mean recall: a model that always predicts one class gains accuracy on unbalanced rows, but no recall.
MIN_RECALL_GAIN = 0.1
# Up to this many classes every order is tried; above, only the best one, which linear assignment gives.
MAX_ENUMERATED = 4


@dataclass(frozen=True)
class Order:
    """An order of the task's classes over those of the model, and the scores of the predictions under it.

    Attributes:
        columns: for each class of the model, the task's class.
        recall: mean recall of the task's classes.
        p: of an exact McNemar test against the order of the names, times the number of orders tried; 1 for that order itself.
    """

    columns: tuple[int, ...]
    accuracy: float
    recall: float
    p: float


def try_orders(columns: Sequence[int], predicted: Sequence[int], gold: Sequence[int]) -> list[Order]:
    """Return the scores under the stated order of the model's classes, then under the others, best first.

    Two orders are compared by McNemar's test on the rows that only one of them predicts right; p is multiplied by the number
    of other orders (Bonferroni), and at most 1.

    Args:
        columns: for each class of the model, the task's class of the same name.
        predicted: the model's class for each row, before any folding.
        gold: the task's class of each row.
    Source: McNemar 1947, Psychometrika 12.
    """
    import numpy as np

    if len(predicted) != len(gold) or not gold:
        raise TaskError(f"label orders need a prediction for each row: found {len(predicted)} for {len(gold)} rows.")
    classes, truth = np.asarray(predicted), np.asarray(gold)
    counts = np.zeros((len(columns), max(columns) + 1), dtype=np.int64)
    np.add.at(counts, (classes, truth), 1)
    others = _others(tuple(columns), counts)
    stated = np.asarray(columns)[classes] == truth
    first = _order(tuple(columns), classes, truth, stated, 1)
    rest = (_order(other, classes, truth, stated, len(others)) for other in others)
    return [first, *sorted(rest, key=lambda order: -order.accuracy)]


def _others(columns: tuple[int, ...], counts: numpy.ndarray) -> list[tuple[int, ...]]:
    """Return the other orders: all of them, or where there are too many the one that predicts most rows right."""
    if len(columns) <= MAX_ENUMERATED:
        return sorted(set(permutations(columns)) - {columns})
    from scipy.optimize import linear_sum_assignment

    _, assigned = linear_sum_assignment(-counts[:, list(columns)])
    best = tuple(columns[k] for k in assigned)
    return [] if best == columns else [best]


def _order(
    columns: tuple[int, ...], classes: numpy.ndarray, truth: numpy.ndarray, stated: numpy.ndarray, tried: int
) -> Order:
    import numpy as np

    right = np.asarray(columns)[classes] == truth
    p = min(1.0, tried * mcnemar(right, stated).p)
    recalls = [float(right[truth == k].mean()) for k in np.unique(truth)]
    return Order(columns, float(right.mean()), float(np.mean(recalls)), p)


def better_order(orders: Sequence[Order]) -> Order | None:
    """Return the best order that is clearly better than the stated one, which is first; None if there is none.

    Clearly better: higher accuracy with p < SIGNIFICANCE, and a mean recall higher by at least MIN_RECALL_GAIN.
    """
    stated, *others = orders
    clearly = [
        order
        for order in others
        if order.accuracy > stated.accuracy
        and order.p < SIGNIFICANCE
        and order.recall >= stated.recall + MIN_RECALL_GAIN
    ]
    return max(clearly, key=lambda order: order.accuracy, default=None)


def order_notes(
    task: EvalTask, names: Sequence[str], columns: Sequence[int], predicted: Sequence[int], gold: Sequence[int]
) -> list[str]:
    """Return a note with the accuracy under every order of the model's classes if another order is clearly better, else none.

    Args:
        names: of the model's classes, in the order of its logits.
        columns: for each of them, the task's class.
        predicted: the model's class for each row, before any folding.
        gold: the task's class of each row; a regression task's numbers give no note.
    """
    if task.regression:
        return []
    orders = try_orders(columns, predicted, gold)
    better = better_order(orders)
    if better is None:
        return []
    accuracies = "; ".join(
        f"{', '.join(_names(order.columns, names, columns))}: {order.accuracy:.4f}" for order in orders
    )
    return [
        f"the order of this model's classes looks wrong: accuracy on {task.name} is {orders[0].accuracy:.4f} as they are "
        f"named and {better.accuracy:.4f} in another order ({accuracies}). If its config misnames them, give "
        f"--labels {','.join(_names(better.columns, names, columns))}"
    ]


def _names(order: Sequence[int], names: Sequence[str], columns: Sequence[int]) -> list[str]:
    """Return the model's names in that order; names that fold into one class keep their relative order."""
    left = {k: [name for name, at in zip(names, columns, strict=True) if at == k] for k in set(columns)}
    return [left[k].pop(0) for k in order]
