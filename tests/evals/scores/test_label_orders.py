"""A model whose classes stand in another order than its names say is found out, and one that is merely bad is not."""

from __future__ import annotations

import random
from itertools import permutations
from math import comb

import pytest

from evals.scores.label_orders import better_order, order_notes, try_orders
from evals.tasks import TASKS
from merge.errors import TaskError

MNLI, HANS, SST2 = TASKS["mnli"], TASKS["hans"], TASKS["sst2"]
NLI = MNLI.labels


def drawn(count: int, classes: int, accuracy: float, seed: int = 0) -> tuple[list[int], list[int]]:
    """Return (predicted, gold) of a model that is right with this probability, and else says any other class."""
    draw = random.Random(seed)
    gold = [draw.randrange(classes) for _ in range(count)]
    predicted = [k if draw.random() < accuracy else draw.choice([j for j in range(classes) if j != k]) for k in gold]
    return predicted, gold


def p_value(wins: int, losses: int) -> float:
    """Return McNemar's exact p by counting: twice the smaller tail of fair coin tosses."""
    total, least = wins + losses, min(wins, losses)
    return min(1.0, 2 * sum(comb(total, k) for k in range(least + 1)) / 2**total)


@pytest.mark.parametrize("order", [order for order in permutations(range(3)) if order != (0, 1, 2)])
def test_a_rotated_model_is_noticed_under_every_order(order: tuple[int, ...]) -> None:
    """A model of accuracy .85 whose names stand in another order: the note names the order that was planted.

    `order[i]` is what its class i truly means, while its names say that class i is class i.
    """
    predicted, gold = drawn(300, 3, 0.85)
    own = [order.index(k) for k in predicted]  # the logit that stands for class k
    (note,) = order_notes(MNLI, NLI, (0, 1, 2), own, gold)
    truth = sum(a == b for a, b in zip(predicted, gold, strict=True)) / 300
    assert f"and {truth:.4f} in another order" in note
    assert note.endswith(f"--labels {','.join(NLI[k] for k in order)}")
    assert note.count(": 0.") == 6
    assert order_notes(MNLI, tuple(NLI[k] for k in order), order, own, gold) == []


@pytest.mark.parametrize("accuracy", [0.85, 0.5, 1 / 3])
@pytest.mark.parametrize("seed", range(5))
def test_a_model_that_is_named_rightly_gives_no_note(accuracy: float, seed: int) -> None:
    """Good, mediocre or no better than chance: no order of its classes is clearly better."""
    predicted, gold = drawn(300, 3, accuracy, seed)
    assert order_notes(MNLI, NLI, (0, 1, 2), predicted, gold) == []


def test_a_model_that_always_says_a_rare_class_gives_no_note() -> None:
    """Renamed to the common class it would have the better accuracy, p = 0, and not be the better model."""
    gold = [0] * 280 + [1] * 15 + [2] * 5
    orders = try_orders((0, 1, 2), [2] * 300, gold)
    assert orders[1].accuracy > 0.9
    assert orders[1].p < 1e-9
    assert orders[1].recall == orders[0].recall == pytest.approx(1 / 3)
    assert better_order(orders) is None


def test_few_rows_prove_nothing() -> None:
    """Four rows wrong in a row are chance; forty are not."""
    assert order_notes(SST2, SST2.labels, (0, 1), [1, 0, 1, 0], [0, 1, 0, 1]) == []
    assert len(order_notes(SST2, SST2.labels, (0, 1), [1, 0] * 20, [0, 1] * 20)) == 1


def test_a_folded_model_is_tried_in_every_way_to_fold() -> None:
    """Three classes on two: one of the three is entailment, so there are three orders, and the note gives all names."""
    draw = random.Random(1)
    gold = [draw.randrange(2) for _ in range(200)]
    own = [2 if k == 0 else draw.randrange(2) for k in gold]  # its last class is entailment, its names say the first
    orders = try_orders((0, 1, 1), own, gold)
    assert {order.columns for order in orders} == {(0, 1, 1), (1, 0, 1), (1, 1, 0)}
    (note,) = order_notes(HANS, NLI, (0, 1, 1), own, gold)
    assert "1.0000 in another order" in note
    assert note.endswith("--labels neutral,contradiction,entailment")


def test_every_order_is_scored_as_counting_scores_it() -> None:
    """Accuracy, mean recall and McNemar's p times the five other orders, by counting rows."""
    predicted, gold = drawn(60, 3, 0.4, 7)
    orders = try_orders((0, 1, 2), predicted, gold)
    assert len(orders) == 6
    assert orders[0].columns == (0, 1, 2)
    assert [o.accuracy for o in orders[1:]] == sorted((o.accuracy for o in orders[1:]), reverse=True)
    stated = [a == b for a, b in zip(predicted, gold, strict=True)]
    for order in orders:
        right = [order.columns[a] == b for a, b in zip(predicted, gold, strict=True)]
        assert order.accuracy == pytest.approx(sum(right) / 60, abs=1e-12)
        recalls = [sum(r for r, b in zip(right, gold, strict=True) if b == k) / gold.count(k) for k in range(3)]
        assert order.recall == pytest.approx(sum(recalls) / 3, abs=1e-12)
        wins = sum(r and not s for r, s in zip(right, stated, strict=True))
        losses = sum(s and not r for r, s in zip(right, stated, strict=True))
        tried = 1 if order.columns == (0, 1, 2) else 5
        assert order.p == pytest.approx(min(1.0, tried * p_value(wins, losses)), rel=1e-9)


def test_many_classes_are_matched_and_not_enumerated() -> None:
    """Twenty classes have more orders than can be tried; the planted one is found by assignment."""
    predicted, gold = drawn(2000, 20, 0.8)
    order = list(range(20))
    random.Random(2).shuffle(order)
    own = [order.index(k) for k in predicted]
    stated, better = try_orders(tuple(range(20)), own, gold)
    assert better.columns == tuple(order)
    assert better.accuracy == pytest.approx(sum(a == b for a, b in zip(predicted, gold, strict=True)) / 2000)
    assert better_order([stated, better]) is better
    assert len(try_orders(tuple(order), own, gold)) == 1


def test_numbers_have_no_order_of_classes() -> None:
    assert order_notes(TASKS["stsb"], ("LABEL_0",), (0,), [0, 0], [1, 5]) == []


@pytest.mark.parametrize(("predicted", "gold"), [([0], [0, 1]), ([], [])])
def test_rows_that_do_not_pair_up_are_refused(predicted: list[int], gold: list[int]) -> None:
    with pytest.raises(TaskError, match="a prediction for each row"):
        try_orders((0, 1), predicted, gold)
