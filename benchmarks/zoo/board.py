"""The leaderboard: rows are methods, columns are pairs."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import fmean

from merge.errors import UsageError, nearest
from zoo.line import Contest, Measured, measure
from zoo.methods import PRE_LAYER_NORM, Method

# Method -> pair -> measurement.
Results = Mapping[str, Mapping[str, Measured]]

BLOCKS: dict[str, Callable[[Measured], float]] = {
    "barrier": lambda measured: measured.raw.barrier,
    "calibrated barrier": lambda measured: measured.calibrated.barrier,
    "midpoint loss": lambda measured: measured.midpoint,
}


def header() -> str:
    """Return the command line that made a table, for its header, and the versions that decide its numbers."""
    import torch
    import transformers

    command = shlex.join(["python", str(Path("benchmarks") / Path(sys.argv[0]).name), *sys.argv[1:]])
    return f"$ {command}\n(torch {torch.__version__}, transformers {transformers.__version__}, 1 thread)"


def select(methods: Mapping[str, Method], words: Sequence[str] | None) -> dict[str, Method]:
    """Return the methods whose name holds one of the words, and naive; all of them without words."""
    if words is None:
        return dict(methods)
    for word in words:
        if not any(word in name for name in methods):
            raise UsageError(f"no method has {word!r} in its name.{nearest(word, methods)}")
    return {name: method for name, method in methods.items() if name == "naive" or any(word in name for word in words)}


def measure_all(methods: Mapping[str, Method], contests: Mapping[str, Contest], points: int) -> Results:
    """Return the measurement of every method on every pair; print on stderr each method as it begins or is left out."""
    results: dict[str, dict[str, Measured]] = {}
    for name, method in methods.items():
        if name in PRE_LAYER_NORM and not all(contest.pair.spec.folded for contest in contests.values()):
            print(f"... {name}: left out, the residual stream of these models cannot be rotated", file=sys.stderr)
            continue
        print(f"... {name}", file=sys.stderr, flush=True)
        results[name] = {pair: measure(name, method, contest, points) for pair, contest in contests.items()}
    return results


def print_leaderboard(results: Results, titles: Mapping[str, str]) -> None:
    """Print a table for each figure, a column for each pair; the first also with changes of the function and CPU seconds."""
    width = max(map(len, [*results, *BLOCKS]))
    for block, value in BLOCKS.items():
        tail = "   changed    CPU s" if block == "barrier" else ""
        print(f"\n{block:<{width}}" + "".join(f"{titles[pair]:>9}" for pair in titles) + f"{'mean':>9}{tail}")
        for name, measured in results.items():
            values = [value(measured[pair]) for pair in titles]
            line = f"{name:<{width}}" + "".join(f"{v:9.3f}" for v in [*values, fmean(values)])
            if tail:
                changed = max(m.changed for m in measured.values())
                line += f"   {changed:7.1e}  {fmean(m.seconds for m in measured.values()):7.2f}"
            print(line, flush=True)
    for name, measured in results.items():
        if any(m.note for m in measured.values()):
            print(f"{name} kept: " + "; ".join(f"{titles[p]} {measured[p].note}" for p in titles))
