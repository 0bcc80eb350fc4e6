"""Matching of stacked networks, the losses on the lines between all pairs of them, and what the field reads off such lines."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
import torch
from torch import Tensor

from evals.clusters.hierarchy import cut, link
from merge.alignment.matchers.weights import match_weights
from merge.alignment.pair import Pair, Settings
from merge.symmetry.architectures.mlp import ARCHITECTURE, mlp
from merge.symmetry.permutation import Permutation, apply, random
from merge.symmetry.spec import PermutationSpec
from two_layer.nets import Data, Nets, chosen, depth_of, logits, losses, one, stacked

POINTS = 11
PAIRS_AT_ONCE = 24


@dataclass(frozen=True)
class Lines:
    """Losses on straight lines between pairs of networks.

    Attributes:
        pairs: (i, j) with i < j.
        losses: shape (pairs, points), test loss, the endpoints included.
        networks: how many there are.
    """

    pairs: tuple[tuple[int, int], ...]
    losses: Any
    networks: int

    @property
    def epsilon(self) -> Any:
        """max L - max(L(0), L(1)) of every pair, at least 0."""
        return self.losses.max(1) - np.maximum(self.losses[:, 0], self.losses[:, -1])

    @property
    def barriers(self) -> Any:
        """max over lam of L(lam) - ((1 - lam) L(0) + lam L(1)), of every pair; Entezari et al. 2022, definition 2."""
        lam = np.linspace(0, 1, self.losses.shape[1])
        return (self.losses - (1 - lam) * self.losses[:, :1] - lam * self.losses[:, -1:]).max(1)

    @property
    def matrix(self) -> Any:
        """Epsilon as a symmetric matrix, shape (networks, networks)."""
        matrix = np.zeros((self.networks, self.networks))
        for (i, j), value in zip(self.pairs, self.epsilon, strict=True):
            matrix[i, j] = matrix[j, i] = value
        return matrix


@torch.inference_mode()
def lines(nets: Mapping[str, Tensor], data: Data, pairs: Sequence[tuple[int, int]] | None = None) -> Lines:
    """Return the test losses at POINTS of the line between the networks of each pair; of all pairs when None."""
    count = len(nets["classifier.bias"])
    pairs = tuple(combinations(range(count), 2)) if pairs is None else tuple(pairs)
    ends = losses(logits(nets, data.test), data.test_gold).double()
    curves = torch.empty(len(pairs), POINTS, dtype=torch.float64)
    for start in range(0, len(pairs), PAIRS_AT_ONCE):
        first, second = (list(side) for side in zip(*pairs[start : start + PAIRS_AT_ONCE], strict=True))
        a, b = chosen(nets, first), chosen(nets, second)
        rows = slice(start, start + len(first))
        curves[rows, 0], curves[rows, -1] = ends[first], ends[second]
        for point in range(1, POINTS - 1):
            between = {name: torch.lerp(a[name], b[name], point / (POINTS - 1)) for name in a}
            curves[rows, point] = losses(logits(between, data.test), data.test_gold).double()
    return Lines(pairs, curves.numpy(), count)


def config_of(net: Mapping[str, Tensor]) -> dict[str, Any]:
    """Return the config.json of a network."""
    width, inputs = net["layers.0.dense.weight"].shape
    return {
        "model_type": "mlp",
        "architectures": [ARCHITECTURE],
        "input_size": inputs,
        "hidden_size": width,
        "num_hidden_layers": depth_of(net),
        "layer_norm": "layers.0.norm.weight" in net,
        "hidden_act": "relu",
        "num_labels": len(net["classifier.bias"]),
    }


def spec_of(net: Mapping[str, Tensor]) -> PermutationSpec:
    """Return the named axes of a network: those of `merge.align`."""
    return mlp(config_of(net))


def permutation_to(reference: Mapping[str, Tensor], net: Mapping[str, Tensor]) -> Permutation:
    """Return the order of a network's units that matches their weights to the reference's, as `merge.align` finds it."""
    pair = Pair(spec_of(net), reference, net, config_of(net), str, settings=Settings())
    return match_weights(pair)(frozenset({"hidden"})).permutation


def matched(nets: Mapping[str, Tensor], reference: Mapping[str, Tensor]) -> Nets:
    """Return every network in the order of units of one reference."""
    single = [one(nets, k) for k in range(len(nets["classifier.bias"]))]
    return stacked([dict(apply(spec_of(net), permutation_to(reference, net), net)) for net in single])


def pairwise_lines(nets: Mapping[str, Tensor], data: Data) -> Lines:
    """Return the lines of all pairs, the second network of each matched to the first."""
    count = len(nets["classifier.bias"])
    pairs, parts = tuple(combinations(range(count), 2)), []
    for i, j in pairs:
        a, b = one(nets, i), one(nets, j)
        moved = dict(apply(spec_of(b), permutation_to(a, b), b))
        parts.append(lines(stacked([a, moved]), data).losses[0])
    return Lines(pairs, np.stack(parts), count)


def shuffled(net: Mapping[str, Tensor], count: int, seed: int = 0) -> Nets:
    """Return copies of one network, the hidden units of each in a random order."""
    generator, spec = torch.Generator().manual_seed(seed), spec_of(net)
    shapes = {name: tuple(tensor.shape) for name, tensor in net.items()}
    copies = []
    for _ in range(count):
        drawn = random(spec, shapes, generator)
        kept = drawn.indices | {"labels": torch.arange(len(net["classifier.bias"]))}
        copies.append(dict(apply(spec, Permutation(kept, drawn.outer), net)))
    return stacked(copies)


def clusters(matrix: Any, epsilon: float) -> dict[str, Any]:
    """Return how many clusters networks form at a height, by single linkage on epsilon and, as published, on its rows.

    On epsilon itself two networks are in one cluster exactly where a chain of lines joins them, none of which rises by more
    than the height. The published figure links the rows of the matrix, by their Euclidean distance.
    """
    by = {"distances": link(matrix, "single"), "rows": link(matrix, "rows")}
    numbers = {name: len(matrix) - int((links[:, 2] <= epsilon).sum()) for name, links in by.items()}
    labels = {name: cut(links, [numbers[name]])[0] for name, links in by.items()}
    return {
        name: {"clusters": numbers[name], "largest": int((labels[name] == 0).sum()), "height": epsilon} for name in by
    }
