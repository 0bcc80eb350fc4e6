"""Per-tensor context passed to a merge method, besides the values."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch
    from torch import Tensor


@dataclass(frozen=True)
class TensorContext:
    """Name, random generators, thresholds and statistics of one tensor.

    Attributes:
        name: canonical name.
        generators: one per model, for random masks; a mask takes one draw per element in the order of the flat tensor, so
            that a tensor merged in pieces gets the same mask as one merged whole.
        thresholds: one per model, for methods that trim by magnitude over the whole model: the smallest |delta| that is kept.
        statistics: one tensor per model, measured on calibration text; empty where nothing was measured for this tensor.
    """

    name: str = ""
    generators: tuple[torch.Generator, ...] = ()
    thresholds: tuple[float, ...] = ()
    statistics: tuple[Tensor, ...] = ()


EMPTY = TensorContext()


def mask_generators(seed: int, name: str, keys: Sequence[str]) -> tuple[torch.Generator, ...]:
    """Return one generator per model, seeded from the merge's seed, the tensor's name and the model's key.

    Neither the order of models nor that of tensors, files or threads changes what is drawn. A model given twice draws
    two masks: equal keys are counted.
    """
    import torch

    made, seen = [], dict.fromkeys(keys, 0)
    for key in keys:
        digest = hashlib.sha256(f"{seed}\n{name}\n{key}\n{seen[key]}".encode()).digest()
        seen[key] += 1
        made.append(torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1))
    return tuple(made)
