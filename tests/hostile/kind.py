"""A kind of input of the fuzzer."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

Mutate = Callable[[bytes, random.Random], bytes]


@dataclass(frozen=True)
class Kind:
    """A kind of input.

    Attributes:
        share: of the cases, beside those of the others.
        files: patterns of the files of the world that are changed, one a case.
        mutate: how.
        commands: of which one reads the file; {} stands for its path, and {n} for what is no usual number.
    """

    share: int
    files: tuple[str, ...]
    mutate: Mutate
    commands: tuple[tuple[str, ...], ...]
