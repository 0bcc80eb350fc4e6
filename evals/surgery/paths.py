"""Paths through the residual stream: how many have each length, and how much of the gradient comes through them.

A sublayer passes the stream by its skip connection or by what it writes, so that n sublayers make 2^n paths, and a path of
length k goes through the branches of k of them. Their number is the coefficient of x^k in the product of (1 + x) over the
sublayers: binomial. Where attention and feed-forward part are parallel, a path takes at most one of the two: 1 + 2x.

The gradient of a path is what arrives at the states before the first layer when every sublayer lets the gradient pass by its
skip connection alone or by its branch alone; the pass before it is that of the whole model. These gradients add up to the
gradient of the model, also where norms come last: every path then crosses all norms.

Source: Veit et al. 2016, arXiv:1605.06431, sections 3 and 5.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations, product
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from evals.surgery.slots import Pass, SlottedModel, read_states
from evals.surgery.sublayers import ATTENTION, FFN, Edit, LayerKind, branch_only, edited, skip_only
from merge.errors import UsageError
from merge.progress import track

if TYPE_CHECKING:
    from merge.checkpoints.inputs import Batch

# The branches that a path takes, as (layer, sublayer).
Path = frozenset[tuple[int, str]]
# The loss of each text of a batch, or another number that a gradient is taken of.
Objective = Callable[[Pass, "Batch"], Tensor]


def path_counts(layers: int, parallel: bool = False) -> list[int]:
    """Return the number of paths of each length through a stack, by multiplying out what each sublayer offers."""
    counts = [1]
    for offered in ([1, 2],) * layers if parallel else ([1, 1],) * (2 * layers):
        grown = [0] * (len(counts) + 1)
        for length, number in enumerate(counts):
            for more, ways in enumerate(offered):
                grown[length + more] += number * ways
        counts = grown
    return counts


def paths_of(length: int, layers: int, parallel: bool = False) -> Iterator[Path]:
    """Yield every path of a length."""
    if parallel:
        for chosen in combinations(range(layers), length):
            for kinds in product((ATTENTION, FFN), repeat=length):
                yield frozenset(zip(chosen, kinds, strict=True))
        return
    branches = [(layer, kind) for layer in range(layers) for kind in (ATTENTION, FFN)]
    for taken in combinations(branches, length):
        yield frozenset(taken)


def drawn_paths(length: int, layers: int, parallel: bool, draws: int, generator: np.random.Generator) -> list[Path]:
    """Return `draws` different paths of a length at random, or all where there are no more."""
    if path_counts(layers, parallel)[length] <= draws:
        return list(paths_of(length, layers, parallel))
    drawn: dict[Path, None] = {}
    while len(drawn) < draws:
        if parallel:
            chosen = [int(k) for k in generator.choice(layers, length, replace=False)]
            path = frozenset((layer, (ATTENTION, FFN)[int(generator.integers(2))]) for layer in chosen)
        else:
            numbers = generator.choice(2 * layers, length, replace=False)
            path = frozenset((int(k) // 2, (ATTENTION, FFN)[int(k) % 2]) for k in numbers)
        drawn[path] = None
    return list(drawn)


@dataclass(frozen=True)
class PathGradients:
    """Gradients by the length of paths.

    Attributes:
        counts: paths of each length, from 0.
        norms: mean norm of the gradient of one path of each length, over paths and texts.
        drawn: paths of each length that were followed.
        whole: norm of the model's gradient, mean over texts.
        texts: how many.
        objective: what the gradient is of.
    """

    counts: tuple[int, ...]
    norms: tuple[float, ...]
    drawn: tuple[int, ...]
    whole: float
    texts: int
    objective: str

    @property
    def shares(self) -> tuple[float, ...]:
        """The share of each length in the sum of all paths' norms: the number of paths times the norm of one."""
        products = [count * norm for count, norm in zip(self.counts, self.norms, strict=True)]
        total = math.fsum(products)
        return tuple(value / total if total else math.nan for value in products)

    def to_json(self) -> dict[str, Any]:
        """Return the gradients for a record."""
        return {
            **{name: list(v) if isinstance(v, tuple) else v for name, v in vars(self).items()},
            "shares": list(self.shares),
        }


def path_gradient(model: SlottedModel, batch: Batch, objective: Objective, path: Path | None) -> Tensor:
    """Return the gradient at the states before the first layer, through one path; through all where that is None."""
    assert model.kind is not None
    before: list[Tensor] = []

    def edit(slot: int) -> Edit:
        if path is None:
            return Edit()
        writes = {kind: branch_only if (slot, kind) in path else skip_only for kind in (ATTENTION, FFN)}
        return Edit(writes[ATTENTION], writes[FFN])

    def run(slot: int, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        states = read_states(args, kwargs)
        if slot == 0:
            states = states.detach().requires_grad_()
            before.append(states)
            args, kwargs = ((states, *args[1:]), kwargs) if args else (args, {**kwargs, "hidden_states": states})
        assert model.kind is not None
        with edited(model.module(slot), model.kind, states, edit(slot)):
            return forward(*args, **kwargs)

    with torch.enable_grad():
        done = model.run(batch, run)
        loss = objective(done, batch).sum()
    (gradient,) = torch.autograd.grad(loss, before[0])
    return gradient


def measure_paths(
    model: SlottedModel, asked: Sequence[tuple[Batch, Objective]], words: str, draws: int, seed: int
) -> PathGradients:
    """Return the norm of the gradient through paths of every length.

    Args:
        asked: batches, and what gives one number for each of their texts; `words` says which.
        draws: paths of each length.
    Raises:
        UsageError: the layers have no two sublayers that add to one stream.
    """
    if model.kind is None:
        raise UsageError("the paths of this family are not known.")
    parallel, generator = model.kind.parallel, np.random.default_rng([seed, 4])
    counts = path_counts(model.total, parallel)
    paths = [drawn_paths(length, model.total, parallel, draws, generator) for length in range(len(counts))]
    listed = [(length, path) for length, drawn in enumerate(paths) for path in drawn]
    sums, whole, texts = np.zeros(len(counts)), 0.0, 0
    for batch, objective in asked:
        axis = (0, 2) if model.live.order == "time" else (1, 2)
        for length, path in track(listed, "gradients of paths"):
            norms = path_gradient(model, batch, objective, path).double().square().sum(axis).sqrt()
            sums[length] += float(norms.sum())
        norms = path_gradient(model, batch, objective, None).double().square().sum(axis).sqrt()
        whole, texts = whole + float(norms.sum()), texts + len(norms)
    drawn = [len(each) for each in paths]
    means = [float(total) / (texts * count) for total, count in zip(sums, drawn, strict=True)]
    return PathGradients(tuple(counts), tuple(means), tuple(drawn), whole / texts, texts, words)


def random_direction(model: SlottedModel, seed: int) -> Objective:
    """Return an objective without labels: a text's mean last state along a random direction of length 1."""
    from merge.checkpoints.hooks import token_mask
    from merge.layers.repair.heal import mean_states

    generator = torch.Generator().manual_seed(seed)

    def objective(done: Pass, batch: Batch) -> Tensor:
        states = done.states.transpose(0, 1) if model.live.order == "time" else done.states
        embeddings = mean_states(states, token_mask(batch))
        generator.manual_seed(seed)
        direction = torch.nn.functional.normalize(torch.randn(embeddings.shape, generator=generator), dim=1)
        return (embeddings * direction.to(embeddings)).sum(1)

    return objective


def kind_words(kind: LayerKind) -> str:
    """Return what the paths of a family are, in words."""
    if kind.parallel:
        return "attention and feed-forward part are parallel: a path takes at most one of the two in each layer"
    if kind.norm_last:
        return "norms come last: every path crosses all norms, as the skip connections do"
    return "norms come first: the skip connections carry the stream unchanged"
