"""What Entezari et al. 2022 (arXiv:2110.06296) ask: barriers by width, depth and difficulty, and how well orders are found.

S is a set of networks trained from their own starts, S' one of them with its hidden units in many random orders. If all that
divides the networks of S were an order of units, a search would lower the barriers in S and in S' alike.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import combinations
from typing import Any

from torch import Tensor

from merge.alignment.matchers.annealing import annealed
from merge.alignment.pair import Pair, Settings
from merge.symmetry.permutation import apply, identity
from two_layer.connect import config_of, lines, matched, pairwise_lines, shuffled, spec_of
from two_layer.data import digits
from two_layer.nets import Data, Nets, Training, chosen, one, scores, stacked, train, zoo
from two_layer.study import best_of, summary

WIDTH = 64
DEPTH = 3  # of the networks that are forked
ROWS = 256  # that annealing compares outputs on, of the training rows


def barriers(nets: Nets, data: Data) -> dict[str, Any]:
    """Return loss, accuracy and barriers of networks, as they are and matched to the best of them."""
    loss, accuracy = scores(nets, data)
    return {
        "loss": summary(loss),
        "accuracy": summary(accuracy),
        "naive": summary(lines(nets, data).barriers),
        "matched": summary(lines(matched(nets, one(nets, best_of(nets, data))), data).barriers),
    }


def by_depth(data: Data, depths: tuple[int, ...], count: int, training: Training) -> list[dict[str, Any]]:
    """Return barriers of networks of several depths, of one width."""
    return [
        {"hidden layers": depth} | barriers(zoo(count, data, WIDTH, training, seed=10 * depth, depth=depth), data)
        for depth in depths
    ]


def by_difficulty(count: int, training: Training) -> list[dict[str, Any]]:
    """Return barriers of networks of one hidden layer on tasks from two clean classes to ten with wrong labels."""
    tasks = [digits(2), digits(5), digits(), digits(wrong=0.2), digits(wrong=0.4)]
    names = ["2 digits", "5 digits", "10 digits", "10 digits, 20 % wrong", "10 digits, 40 % wrong"]
    return [
        {"task": name} | barriers(zoo(count, data, WIDTH, training, seed=700 + k), data)
        for k, (name, data) in enumerate(zip(names, tasks, strict=True))
    ]


def annealed_to(a: Mapping[str, Tensor], b: Mapping[str, Tensor], data: Data, steps: int) -> Nets:
    """Return b in the order that simulated annealing finds from the identity: swaps that lower the midpoint's divergence.

    The divergence is that of the midpoint's outputs from those of both ends on training rows, without labels; the published
    search takes the loss of one batch at the midpoint.
    """
    spec, batch = spec_of(b), {"input_ids": data.train[:ROWS]}
    pair = Pair(spec, a, b, config_of(b), str, (batch,), Settings(steps=steps))
    found = annealed(pair, frozenset({"hidden"}), identity(spec, pair.shapes))
    return dict(apply(spec, found, b))


def annealing(data: Data, widths: tuple[int, ...], count: int, steps: int, training: Training) -> list[dict[str, Any]]:
    """Return barriers in S and in S' as they are, after annealing and after assignment by weights; pair by pair."""
    records = []
    for width in widths:
        trained = zoo(count, data, width, training, seed=900 + width)
        sets = {"trained": trained, "orders of one": shuffled(one(trained, 0), count, seed=width)}
        for name, nets in sets.items():
            record: dict[str, Any] = {"width": width, "networks": name, "steps": steps}
            record["naive"] = summary(lines(nets, data).barriers)
            found = [
                float(lines(stacked([one(nets, i), moved]), data).barriers[0])
                for i, j in combinations(range(count), 2)
                for moved in [annealed_to(one(nets, i), one(nets, j), data, steps)]
            ]
            record["annealing"] = summary(found)
            record["assignment"] = summary(pairwise_lines(nets, data).barriers)
            records.append(record)
    return records


def spawned(data: Data, shared: tuple[int, ...], count: int, training: Training) -> list[dict[str, Any]]:
    """Return the barriers between networks that were one network for their first epochs.

    A network is trained for k epochs; copies of it are then trained for the rest, each in its own order of the rows. The rate
    is constant, so that training on is training as before.
    Source: Frankle et al. 2020, arXiv:1912.05671, section 3.
    """
    constant = Training(training.epochs, training.rate, training.decay, schedule="constant")
    records = []
    for epochs in shared:
        together = Training(epochs, constant.rate, constant.decay, schedule="constant")
        start = zoo(1, data, WIDTH, together, seed=1000, depth=DEPTH)
        rest = Training(constant.epochs - epochs, constant.rate, constant.decay, schedule="constant")
        copies = chosen(start, [0] * count)
        nets = train(copies, data, rest, seed=1100) if rest.epochs else copies
        moved = lines(matched(nets, one(nets, 0)), data).barriers
        naive = lines(nets, data).barriers
        records.append({"shared epochs": epochs, "naive": summary(naive), "matched": summary(moved)})
    return records
