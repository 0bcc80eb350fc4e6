"""The tables of the study: a zoo of each width, matched and reduced; initialisations, optimisers, references, averages."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from two_layer.connect import clusters, lines, matched, pairwise_lines, permutation_to
from two_layer.nets import Data, Nets, Training, chosen, logits, losses, one, scores, stacked, train, zoo
from two_layer.reduce import reduced_zoo
from two_layer.units import disagreements, strong_units

WIDTHS = (2, 4, 8, 16, 32, 64, 128, 256, 512)
# Of the published table, what the notes of this project have: width 512, and no standard deviations.
PUBLISHED = {512: {"loss": 0.004, "reduced units": 272, "reduced loss": 0.027}}
# name -> (scale, whole) of `reduced`.
REDUCTIONS = {
    "reduced": ("function", True),
    "reduced, published factor": ("published", True),
    "reduced, published code": ("published", False),
}
MOONS = Training(epochs=60, rate=0.1, decay=1e-4)
DIGITS = Training(epochs=60, rate=0.01, decay=0.01)


def summary(values: Any) -> list[float]:
    """Return mean, standard deviation and the three quartiles."""
    values = np.asarray(values, dtype=np.float64)
    return [float(values.mean()), float(values.std(ddof=1)), *np.quantile(values, (0.25, 0.5, 0.75)).tolist()]


def best_of(nets: Nets, data: Data) -> int:
    """Return the network with the smallest test loss."""
    return int(scores(nets, data)[0].argmin())


def of_lines(nets: Nets, data: Data, height: float) -> dict[str, Any]:
    """Return barriers, epsilon and clusters of the lines between all networks."""
    measured = lines(nets, data)
    return {
        "barrier": summary(measured.barriers),
        "epsilon": summary(measured.epsilon),
        "curve": measured.losses.mean(0).tolist(),
        "clusters": clusters(measured.matrix, height),
        "matrix": measured.matrix.tolist(),
    }


def width_record(
    data: Data, width: int, training: Training, count: int, paired: int, reductions: tuple[str, ...] = tuple(REDUCTIONS)
) -> dict[str, Any]:
    """Return what is measured of the networks of one width.

    Args:
        count: networks that are trained.
        paired: of these, how many are interpolated, all pairs of them.
        reductions: in which ways redundant units are removed.
    """
    nets = zoo(count, data, width, training, seed=width)
    loss, accuracy = scores(nets, data)
    few = chosen(nets, list(range(paired)))
    height = float(loss.mean())  # as published: pairs are shown up to the mean test loss
    record: dict[str, Any] = {"width": width, "loss": summary(loss), "accuracy": summary(accuracy)}
    record |= {"disagreement": summary(disagreements(nets, data)), "strong units": summary(strong_units(nets))}
    record["naive"] = of_lines(few, data, height)
    record["matched"] = of_lines(matched(few, one(few, 0)), data, height)
    for name, (scale, whole) in ((name, REDUCTIONS[name]) for name in reductions):
        smaller, units = reduced_zoo(nets, scale=scale, whole=whole)
        of_reduced = scores(smaller, data)
        record[name] = {
            "units": summary(units),
            "loss": summary(of_reduced[0]),
            "accuracy": summary(of_reduced[1]),
        }
        few_small = chosen(smaller, list(range(paired)))
        record[name]["naive"] = of_lines(few_small, data, height)
        record[name]["matched"] = of_lines(matched(few_small, one(few_small, 0)), data, height)
    return record


def optimisers(data: Data, width: int, each: int, epochs: int) -> dict[str, Any]:
    """Return epsilon between networks of two initialisations and two optimisers, all matched to the best of them."""
    kinds = [(init, optimizer) for init in ("normal", "uniform") for optimizer in ("AdamW", "RMSprop")]
    training = Training(epochs=epochs, rate=0.1, decay=1e-4)
    groups = [
        zoo(each, data, width, replace(training, init=init, optimizer=optimizer), seed=100 * k)
        for k, (init, optimizer) in enumerate(kinds)
    ]
    nets = stacked([one(group, k) for group in groups for k in range(each)])
    loss, _ = scores(nets, data)
    names = [f"{init}, {optimizer}" for init, optimizer in kinds]
    measured = {
        "naive": lines(nets, data).matrix,
        "matched": lines(matched(nets, one(nets, best_of(nets, data))), data).matrix,
    }
    between = {
        how: [[_block_mean(matrix, i, j, each) for j in range(len(kinds))] for i in range(len(kinds))]
        for how, matrix in measured.items()
    }
    return {"kinds": names, "loss": [float(part.mean()) for part in loss.split(each)], "epsilon": between}


def _block_mean(matrix: Any, i: int, j: int, each: int) -> float:
    block = matrix[i * each : (i + 1) * each, j * each : (j + 1) * each]
    return float(block.mean() if i != j else block.sum() / (each * (each - 1)))


def references(data: Data, width: int, each: int, epochs: int) -> dict[str, Any]:
    """Return epsilon of all pairs after matching to one reference, for several references, beside matching pair by pair."""
    optimizers = {"AdamW": 0.1, "SGD": 0.5, "RMSprop": 0.1}
    groups = [
        zoo(each, data, width, Training(epochs, rate, 1e-4, optimizer=name), seed=300 + k)
        for k, (name, rate) in enumerate(optimizers.items())
    ]
    nets = stacked([one(group, k) for group in groups for k in range(each)])
    above = np.triu_indices(each * len(groups), 1)
    direct = pairwise_lines(nets, data).matrix[above]
    record: dict[str, Any] = {"pair by pair": {"epsilon": summary(direct)}, "naive": {}}
    record["naive"]["epsilon"] = summary(lines(nets, data).matrix[above])
    for k, name in enumerate(optimizers):
        through = lines(matched(nets, one(nets, k * each)), data).matrix[above]
        correlation = float(np.corrcoef(direct, through)[0, 1])
        record[f"reference of {name}"] = {"epsilon": summary(through), "correlation": correlation}
    record["loss"] = {
        name: float(scores(group, data)[0].mean()) for name, group in zip(optimizers, groups, strict=True)
    }
    return record


def averages(data: Data, width: int, training: Training, depth: int = 1, norm: bool = False) -> dict[str, Any]:
    """Return how checkpoints of one run are connected, whether matching moves their units, and the loss of their average.

    A trained network is trained on for ten epochs at a constant rate; there is a checkpoint after each.
    """
    start = zoo(2, data, width, training, seed=500, depth=depth, norm=norm)
    kept: list[Nets] = []
    further = Training(epochs=10, rate=training.rate / 2, decay=training.decay, schedule="constant")
    train(chosen(start, [0]), data, further, 7, lambda _, nets: kept.append(one(nets, 0)))
    run = stacked(kept)
    mean = {name: tensor.mean(0, keepdim=True) for name, tensor in run.items()}
    moved = [share_moved(run, one(run, 0), k) for k in range(1, len(kept))]
    return {
        "losses": scores(run, data)[0].tolist(),
        "average": float(scores(mean, data)[0]),
        "epsilon": summary(lines(run, data).epsilon),
        "share of units that matching moves": moved,
        "the same for another run": share_moved(start, one(start, 0), 1),
    }


def soups(data: Data, width: int, training: Training, count: int) -> dict[str, dict[str, Any]]:
    """Return the losses of averages of networks of four kinds, beside the best of them and their ensemble.

    The order of the greedy soup, and whom it takes, is decided on one half of the test rows; losses are those of the other.
    Source of the greedy soup: Wortsman et al. 2022, arXiv:2203.05482, recipe 1.
    """
    half = len(data.test) // 2
    chooses = replace(data, test=data.test[:half], test_gold=data.test_gold[:half])
    tells = replace(data, test=data.test[half:], test_gold=data.test_gold[half:])
    apart = zoo(count, data, width, training, seed=800)
    first = zoo(1, data, width, training, seed=820)
    forks = train(chosen(first, [0] * count), data, replace(training, rate=training.rate / 5, epochs=10), seed=830)
    kinds = {
        "own starts": apart,
        "own starts, matched": matched(apart, one(apart, best_of(apart, chooses))),
        "forks of one run": forks,
    }
    records: dict[str, dict[str, Any]] = {}
    for name, nets in kinds.items():
        members = greedy_members(nets, chooses)
        loss = scores(nets, tells)[0]
        records[name] = {
            "networks": count,
            "mean of them": float(loss.mean()),
            "best of them": float(loss[best_of(nets, chooses)]),
            "plain average": loss_of_average(nets, list(range(count)), tells),
            "greedy soup": loss_of_average(nets, members, tells),
            "members of it": len(members),
            "ensemble": float(losses(logits(nets, tells.test).mean(0, keepdim=True), tells.test_gold)),
        }
    return records


def loss_of_average(nets: Nets, numbers: list[int], data: Data) -> float:
    """Return the test loss of the mean of some networks' weights."""
    mean = {name: tensor[numbers].mean(0, keepdim=True) for name, tensor in nets.items()}
    return float(scores(mean, data)[0])


def greedy_members(nets: Nets, data: Data) -> list[int]:
    """Return the networks that a greedy soup takes: from the best on, each that does not raise the loss of the average."""
    order = scores(nets, data)[0].argsort().tolist()
    members, lowest = order[:1], loss_of_average(nets, order[:1], data)
    for number in order[1:]:
        reached = loss_of_average(nets, [*members, number], data)
        if reached <= lowest:
            members, lowest = [*members, number], reached
    return members


def share_moved(nets: Nets, reference: Nets, number: int) -> float:
    """Return the share of a network's hidden units that matching to the reference puts into another place."""
    counts = [
        c for axis, c in permutation_to(reference, one(nets, number)).moved().items() if axis.startswith("hidden")
    ]
    return sum(moved for moved, _ in counts) / sum(units for _, units in counts)


def norm_networks(data: Data, widths: tuple[int, ...], count: int, training: Training) -> list[dict[str, Any]]:
    """Return the lines of networks of four layers with LayerNorm, as they are and matched."""
    records = []
    for width in widths:
        nets = zoo(count, data, width, training, seed=width, depth=3, norm=True)
        loss, accuracy = scores(nets, data)
        height = float(loss.mean())
        records.append(
            {
                "width": width,
                "loss": summary(loss),
                "accuracy": summary(accuracy),
                "naive": of_lines(nets, data, height),
                "matched": of_lines(matched(nets, one(nets, best_of(nets, data))), data, height),
            }
        )
    return records
