"""Label orders: would a model score clearly better if its classes stood in another order than its names say?

The classic mistake of natural language inference: a checkpoint whose config names its classes in the order of another.
Names are believed, never mended; this check says when the predictions contradict them.
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

# Below this, chance (and all the orders that were tried) is no explanation.
SIGNIFICANCE = 0.001
# How much the mean recall must gain too: a model that says one class of unbalanced rows always gains nothing.
GAIN = 0.1
# Every order is tried up to this many classes; above, the best one, which an assignment finds.
ENUMERATED = 4


@dataclass(frozen=True)
class Order:
    """The task's class for each class of the model, and how the predictions score if that is what they mean.

    Attributes:
        columns: for each class of the model, the task's class.
        recall: mean over the task's classes of the share of its rows that are found.
        p: of an exact McNemar test against the order that the names state, times the orders tried; 1 for that order.
    """

    columns: tuple[int, ...]
    accuracy: float
    recall: float
    p: float


def try_orders(columns: Sequence[int], predicted: Sequence[int], gold: Sequence[int]) -> list[Order]:
    """Return the scores under every other order of the model's classes, the stated order first, then the best.

    Two orders are compared on the rows that one of them gets right and the other wrong: n of them, of which the other
    order wins b. p = 2 P(Binomial(n, 1/2) >= max(b, n - b)), at most 1, times the number of other orders (Bonferroni).

    Args:
        columns: for each class of the model, the task's class, as its names say.
        predicted: the model's own class for each row, before any folding.
        gold: the task's class of each row.
    Source: McNemar 1947, Psychometrika 12.
    """
    import numpy as np

    if len(predicted) != len(gold) or not gold:
        raise TaskError(f"label orders need a prediction for each row: found {len(predicted)} for {len(gold)} rows.")
    said, truth = np.asarray(predicted), np.asarray(gold)
    counts = np.zeros((len(columns), max(columns) + 1), dtype=np.int64)
    np.add.at(counts, (said, truth), 1)
    others = _others(tuple(columns), counts)
    stated = np.asarray(columns)[said] == truth
    found = [_order(tuple(columns), said, truth, stated, 1)]
    return found + sorted((_order(o, said, truth, stated, len(others)) for o in others), key=lambda o: -o.accuracy)


def _others(columns: tuple[int, ...], counts: numpy.ndarray) -> list[tuple[int, ...]]:
    """Return the other orders: all of them, or the one that gets most rows right where there are too many."""
    if len(columns) <= ENUMERATED:
        return sorted(set(permutations(columns)) - {columns})
    from scipy.optimize import linear_sum_assignment

    _, places = linear_sum_assignment(-counts[:, list(columns)])
    best = tuple(columns[k] for k in places)
    return [] if best == columns else [best]


def _order(
    columns: tuple[int, ...], said: numpy.ndarray, truth: numpy.ndarray, stated: numpy.ndarray, tried: int
) -> Order:
    import numpy as np

    right = np.asarray(columns)[said] == truth
    p = min(1.0, tried * mcnemar(right, stated).p)
    recalls = [float(right[truth == k].mean()) for k in np.unique(truth)]
    return Order(columns, float(right.mean()), float(np.mean(recalls)), p)


def better_order(orders: Sequence[Order]) -> Order | None:
    """Return the best order that is clearly better than the stated one, which comes first; None if there is none.

    It has the higher accuracy with p < 0.001, and finds at least a tenth more of the average class.
    """
    stated, *others = orders
    clearly = [
        order
        for order in others
        if order.accuracy > stated.accuracy and order.p < SIGNIFICANCE and order.recall >= stated.recall + GAIN
    ]
    return max(clearly, key=lambda order: order.accuracy, default=None)


def order_notes(
    task: EvalTask, names: Sequence[str], columns: Sequence[int], predicted: Sequence[int], gold: Sequence[int]
) -> list[str]:
    """Return a note with the accuracy under every order of the model's classes if something looks rotated, else none.

    Args:
        names: what the model's classes are called, in the order of its logits.
        columns: for each of them, the task's class.
        predicted: the model's own class for each row, before any folding.
        gold: the task's class of each row; a regression task's numbers give no note.
    """
    if task.regression:
        return []
    orders = try_orders(columns, predicted, gold)
    better = better_order(orders)
    if better is None:
        return []
    told = "; ".join(f"{', '.join(_names(order.columns, names, columns))}: {order.accuracy:.4f}" for order in orders)
    return [
        f"the order of this model's classes looks wrong: accuracy on {task.name} is {orders[0].accuracy:.4f} as they are "
        f"named and {better.accuracy:.4f} in another order ({told}). If its config misnames them, give "
        f"--labels {','.join(_names(better.columns, names, columns))}"
    ]


def _names(order: Sequence[int], names: Sequence[str], columns: Sequence[int]) -> list[str]:
    """Return the model's names in that order; names that fold into one class keep their turn."""
    left = {k: [name for name, at in zip(names, columns, strict=True) if at == k] for k in set(columns)}
    return [left[k].pop(0) for k in order]
