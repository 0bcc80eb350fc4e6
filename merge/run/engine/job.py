"""What the engine merges: jobs, one for each tensor of the result, and the models that they read."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from merge.checkpoints.weights.arrays import Array
from merge.methods import Method

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Job:
    """One tensor of the result.

    Attributes:
        name: canonical name in the result.
        method: with the settings of this tensor.
        sources: (number of the model, canonical name in it) for each model that is merged into it.
        base: canonical name in the base; None without a base, or where the method takes none.
        transposed: the tensor is stored as (inputs, outputs), and the method is to have it as (outputs, inputs).
    """

    name: str
    method: Method
    sources: tuple[tuple[int, str], ...]
    base: str | None = None
    transposed: bool = False


def _no_statistics(kind: str, name: str) -> Tensor | None:
    return None


@dataclass(frozen=True)
class Input:
    """One model that the engine reads.

    Attributes:
        source: the path or id that the user gave, for messages.
        tensor: canonical name -> stored tensor, in the reference's basis; an array of the engine's `arrays`.
        key: identifies the model by its content, whatever its folder or the layout of its files.
        statistics: (kind, canonical name) -> the measured statistics; None where there are none.
    """

    source: str
    tensor: Callable[[str], Array]
    key: str = ""
    statistics: Callable[[str, str], Tensor | None] = _no_statistics


@dataclass(frozen=True)
class CommonRows:
    """The rows that bring tensors with one row per token into one vocabulary.

    Attributes:
        names: canonical names of these tensors.
        rows: for each model, and last for the base if there is one, the index of its row for each row of the result.
    """

    names: frozenset[str]
    rows: tuple[Tensor, ...]
