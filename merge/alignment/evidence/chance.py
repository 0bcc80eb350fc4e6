"""What chance makes of a matching: the scores of random elements, and the best matching of shuffled scores."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping

import torch
from jaxtyping import Float, Int
from torch import Tensor

from merge.alignment.solvers.assignment import match_axis
from merge.symmetry.notation import View, contiguous

# Random elements that a matched score is compared with: all of them where there are few, else so many drawn ones.
DRAWS, MAX_EXACT = 200, 720
# Of a larger axis, so many units are sampled to match shuffled scores.
MAX_SHUFFLED_UNITS = 512


class RandomElements:
    """Random elements of views, drawn once for all views of one shape: the layers of a model are alike."""

    def __init__(self, generator: torch.Generator) -> None:
        self.generator = generator
        self._drawn: dict[tuple[object, ...], tuple[Int[Tensor, "draws n"], bool]] = {}

    def of(self, view: View) -> tuple[Int[Tensor, "draws n"], bool]:
        """Return for each element the unit that takes each position, and whether these are all elements."""
        first = tuple("-" if name == "-" else view.names.index(name) for name in view.names)
        key = (first, view.shape)
        if key not in self._drawn:
            self._drawn[key] = random_elements(view, self.generator)
        return self._drawn[key]


def random_elements(view: View, generator: torch.Generator) -> tuple[Int[Tensor, "draws n"], bool]:
    """Return random elements: blocks, and what may move inside each of them; all elements, where they are few.

    Returns:
        For each the unit that takes each position, and whether these are all elements.
    """
    alone, last = contiguous(view.names, view.shape), len(view.shape) - 1
    shapes = alone.index_shapes()
    log_count = math.fsum(math.lgamma(shape[-1] + 1) * math.prod(shape[:-1]) for shape in shapes.values())
    if exact := log_count < math.log(MAX_EXACT + 0.5):
        orders = _all_orders(shapes)
    else:
        orders = {
            name: torch.rand(DRAWS, *shapes[name], generator=generator).argsort(-1)
            for name in view.names
            if name != "-"
        }
    count = round(math.exp(log_count)) if exact else DRAWS
    source = torch.zeros(count, *view.shape, dtype=torch.long)
    for level, (name, size) in enumerate(zip(view.names, view.shape, strict=True)):
        index = torch.arange(size)
        if name != "-":
            drawn = orders[name]
            index = drawn.reshape(*drawn.shape[:-1], *(1,) * (level - drawn.ndim + 2), size)
        source += alone.strides[level] * index.reshape(*index.shape, *(1,) * (last - level))
    return source.reshape(count, -1), exact


def random_scores(
    scores: Float[Tensor, "m n"], elements: Int[Tensor, "draws n"], units: Int[Tensor, " m"] | None = None
) -> Float[Tensor, " draws"]:
    """Return the mean score of each element.

    Args:
        units: the units of a whose scores are given, one a row; all if None.
    """
    taken = elements if units is None else elements[:, units]
    return scores[torch.arange(len(scores)), taken].mean(1, dtype=torch.float64)


def _all_orders(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Tensor]:
    """Return axis -> its index array in every element of the group, along a first axis; all axes count together."""
    copies = [
        (name, shape, itertools.permutations(range(shape[-1])))
        for name, shape in shapes.items()
        for _ in range(math.prod(shape[:-1]))
    ]
    elements = list(itertools.product(*(orders for _, _, orders in copies)))
    rows: dict[str, list[Tensor]] = {name: [] for name in shapes}
    for column, (name, _, _) in enumerate(copies):
        rows[name].append(torch.tensor([element[column] for element in elements]))
    return {name: torch.stack(rows[name], 1).reshape(len(elements), *shape) for name, shape in shapes.items()}


def shuffled_score(view: View, scores: Float[Tensor, "m n"], has_map: bool, generator: torch.Generator) -> float:
    """Return the mean score of the best matching of the scores in random order; of the best rotation if maps act.

    On a split axis, of the units inside each block; of the blocks where nothing moves inside them.
    """
    if len(view.shape) == 1:
        blocks = scores[None]
    elif view.names[-1] == "-" and not has_map:
        whole, inside = view.shape[0], math.prod(view.shape[1:])
        blocks = scores.reshape(whole, inside, whole, inside).diagonal(0, 1, 3).mean(-1)[None]
    else:
        count, inside = math.prod(view.shape[:-1]), view.shape[-1]
        blocks = scores.reshape(count, inside, count, inside).diagonal(0, 0, 2).movedim(-1, 0)
    means = []
    for block in blocks:
        size = min(block.shape[-1], MAX_SHUFFLED_UNITS)
        if block.numel() == size * size:
            drawn = torch.randperm(size * size, generator=generator)
        else:  # a sample of a large matrix, or of the units that were compared
            drawn = torch.randint(block.numel(), (size * size,), generator=generator)
        entries = block.reshape(-1)[drawn]
        square = entries.reshape(size, size).double()
        if has_map:
            means.append(float(torch.linalg.svdvals(square).mean()))  # the largest trace under rotations
        else:
            means.append(float(square.gather(1, match_axis(square)[:, None]).mean()))
    return math.fsum(means) / len(means)
