"""Per-tensor context passed to a merge method, besides the values."""

from __future__ import annotations

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
        name: the tensor's canonical name.
        generators: one per model, for random masks; a mask takes one draw per entry in the order of the flat tensor, so
            that a tensor merged in pieces gets the same mask as one merged whole.
        thresholds: one per model, for methods that trim by magnitude over the whole model: the smallest magnitude kept.
        statistics: one tensor per model, measured on calibration text; empty where nothing was measured for this tensor.
    """

    name: str = ""
    generators: tuple[torch.Generator, ...] = ()
    thresholds: tuple[float, ...] = ()
    statistics: tuple[Tensor, ...] = ()


EMPTY = TensorContext()


def mask_generators(seed: int, name: str, keys: Sequence[str]) -> tuple[torch.Generator, ...]:
    """Return one generator per model, seeded by the merge's seed, the tensor's name and the model's key.

    The draws do not depend on the order of models, tensors, files or threads. A model given twice draws two different
    masks, as repeated keys are numbered.
    """
    import hashlib

    import torch

    generators, repeats = [], dict.fromkeys(keys, 0)
    for key in keys:
        digest = hashlib.sha256(f"{seed}\n{name}\n{key}\n{repeats[key]}".encode()).digest()
        repeats[key] += 1
        generators.append(torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1))
    return tuple(generators)
