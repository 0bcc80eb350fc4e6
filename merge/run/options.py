"""How a run is carried out; it does not change the result."""

from __future__ import annotations

import os
from dataclasses import dataclass


@dataclass(frozen=True)
class RunOptions:
    """How a run is carried out: nothing of it changes the files that are written.

    Attributes:
        threads: that merge tensors; None for one per core that this process may use.
        device: where the arithmetic is done. (Another device rounds sums in another order.)
        recheck: load the output with transformers even where this layout is known to load.
    """

    threads: int | None = None
    device: str = "cpu"
    recheck: bool = False

    @property
    def workers(self) -> int:
        """The number of threads that merge tensors."""
        if self.threads:
            return self.threads
        # Only Linux tells which cores a process may use.
        return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


DEFAULTS = RunOptions()
