"""Linear mode connectivity up to the order of hidden units, on networks small enough to train hundreds of in a minute.

    python recipes/two_layer_study.py --quick -o two-layer                 # about four minutes on two cores
    python recipes/two_layer_study.py -o two-layer                         # 50 networks of every width: 11 CPU minutes
    python recipes/two_layer_study.py --quick --part moons --part entezari # some of it

Networks of one hidden layer of 2 to 512 units are trained from their own starts on two moons and on scikit-learn's digits,
all of a width at once. Between all pairs: the loss on the straight line, naive and after matching the units to one reference;
clusters by epsilon; the same for networks without redundant units, with the factor that keeps the function and with the
published code's. Then: initialisations and optimisers, the choice of the reference, averages of a run's checkpoints,
LayerNorm networks of four layers; and barriers by depth and difficulty, annealing beside assignment, forks of one run.

Parts: moons, digits, optimisers, references, averages, soups, norm, entezari. Written: results.json and report.txt as the
work goes on, PNG figures at its end.
Units are matched by the code of `merge.align --by weights`; the networks are models that every command opens, and
`--save FOLDER` writes some of them for that.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

PARTS = ("moons", "digits", "optimisers", "references", "averages", "soups", "norm", "entezari")


def _size(quick: bool) -> dict[str, Any]:
    """Return how many networks are trained, and of how many all pairs are measured."""
    if quick:
        return {
            "count": 20,
            "paired": 10,
            "each": 4,
            "few": 4,
            "steps": 500,
            "widths": (2, 4, 8, 16, 32, 64, 128, 256, 512),
        }
    return {
        "count": 50,
        "paired": 20,
        "each": 10,
        "few": 6,
        "steps": 2000,
        "widths": (2, 4, 8, 16, 32, 64, 128, 256, 512),
    }


def measure(
    parts: tuple[str, ...],
    size: dict[str, Any],
    say: Callable[[str], None],
    keep: Callable[[dict[str, Any]], object] = lambda records: None,
) -> dict[str, Any]:
    """Return the records of the parts.

    Args:
        say: called with what is measured next.
        keep: called with all records so far after each width, and after each part.
    """
    from two_layer.data import digits, moons
    from two_layer.entezari import annealing, by_depth, by_difficulty, spawned
    from two_layer.study import (
        DIGITS,
        MOONS,
        REDUCTIONS,
        averages,
        norm_networks,
        optimisers,
        references,
        soups,
        width_record,
    )

    two, ten = moons(), digits()
    records: dict[str, Any] = {}
    # No two units of a network of the digits have one direction, so nothing is redundant there by that rule.
    for name, data, training, reductions in (("moons", two, MOONS, tuple(REDUCTIONS)), ("digits", ten, DIGITS, ())):
        for width in size["widths"] if name in parts else ():
            say(f"{name}, width {width}")
            record = width_record(data, width, training, size["count"], size["paired"], reductions)
            records.setdefault(name, []).append(record)
            keep(records)
    if "optimisers" in parts:
        say("initialisations and optimisers")
        records["optimisers"] = optimisers(two, 512, size["each"], MOONS.epochs)
        keep(records)
    if "references" in parts:
        say("references")
        records["references"] = references(two, 64, size["each"], MOONS.epochs)
        keep(records)
    if "averages" in parts:
        say("averages of a run's checkpoints")
        records["averages"] = {
            "moons, 16 units": averages(two, 16, MOONS),
            "moons, 512 units": averages(two, 512, MOONS),
            "digits, 64 units": averages(ten, 64, DIGITS),
            "digits, four layers with LayerNorm": averages(ten, 64, DIGITS, 3, True),
        }
        keep(records)
    if "soups" in parts:
        say("soups")
        records["soups"] = soups(ten, 64, DIGITS, 10)
        keep(records)
    if "norm" in parts:
        say("four layers with LayerNorm")
        records["norm"] = norm_networks(ten, (8, 16, 64, 256), size["few"] + 2, DIGITS)
        keep(records)
    if "entezari" in parts:
        few = size["few"]
        records["entezari"] = {}
        for name, run in {
            "depth": lambda: by_depth(ten, (1, 2, 3, 4, 6), few + 2, DIGITS),
            "difficulty": lambda: by_difficulty(few + 2, DIGITS),
            "annealing": lambda: annealing(ten, (16, 64, 256), few, size["steps"], DIGITS),
            "forks": lambda: spawned(ten, (0, 1, 2, 5, 10, 20, 40), few, DIGITS),
        }.items():
            say(name)
            records["entezari"][name] = run()
            keep(records)
    return records


def text_of(records: dict[str, Any]) -> str:
    """Return the tables of the records."""
    from two_layer.report import averages_text, blocks_text, lines_text, rows_text, spread, table, units_text, zoo_text

    parts = []
    for name in ("moons", "digits"):
        if name in records:
            parts += [f"# {name}", zoo_text(records[name]), units_text(records[name]), lines_text(records[name])]
    if "optimisers" in records:
        parts += ["# initialisations and optimisers, moons, 512 units", blocks_text(records["optimisers"])]
    if "references" in records:
        found = {name: r for name, r in records["references"].items() if name != "loss"}
        rows = [
            [n, spread(r["epsilon"]), f"{r['correlation']:.2f}" if "correlation" in r else ""] for n, r in found.items()
        ]
        parts += ["# references, moons, 64 units", table(["matched", "epsilon", "correlation with pair by pair"], rows)]
    if "averages" in records:
        parts += [
            "# checkpoints of one run",
            *(averages_text(name, record) for name, record in records["averages"].items()),
        ]
    if "soups" in records:
        rows = [{"networks of 64 units": name, **record} for name, record in records["soups"].items()]
        parts += ["# averages of several networks, digits", rows_text(rows)]
    if "norm" in records:
        parts += ["# four layers with LayerNorm, digits", lines_text(records["norm"])]
    for name, rows in records.get("entezari", {}).items():
        parts += [f"# {name}, digits", rows_text(rows)]
    return "\n\n".join(parts) + "\n"


def draw(records: dict[str, Any], folder: Path) -> None:
    """Write the figures of what was measured."""
    from two_layer import figures

    zoos = {name: records[name] for name in ("moons", "digits") if name in records}
    if zoos:
        figures.barriers_by_width(zoos, folder / "barriers.png")
    if "moons" in records:
        figures.reductions(records["moons"], folder / "reduced.png")
        figures.epsilon_matrices(records["moons"][-1], folder / "epsilon.png")
    if "entezari" in records:
        figures.entezari(records["entezari"], folder / "entezari.png")


def save(folder: Path, width: int, count: int) -> list[Path]:
    """Write some networks of the digits as checkpoints, and their test rows as a task file."""
    from two_layer.checkpoints import write_networks, write_task
    from two_layer.data import digits
    from two_layer.nets import zoo
    from two_layer.study import DIGITS

    data = digits()
    write_task(data, folder)
    return write_networks(zoo(count, data, width, DIGITS, seed=width), folder)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--output", type=Path, default=Path("two-layer"))
    parser.add_argument("--quick", action="store_true", help="fewer networks and pairs")
    parser.add_argument("--part", action="append", choices=PARTS, help="measure this part alone; may be repeated")
    parser.add_argument(
        "--save", type=Path, metavar="FOLDER", help="write five networks of 64 units as checkpoints, and stop"
    )
    options = parser.parse_args()
    begun = time.monotonic()

    def say(what: str) -> None:
        print(f"{time.monotonic() - begun:5.0f} s  {what}", file=sys.stderr, flush=True)

    if options.save is not None:
        written = save(options.save, 64, 5)
        print(f"wrote {', '.join(map(str, written))} and {options.save / 'digits.yaml'}")
        return 0
    options.output.mkdir(parents=True, exist_ok=True)

    def keep(records: dict[str, Any]) -> None:
        (options.output / "results.json").write_text(json.dumps(records), encoding="utf-8")
        (options.output / "report.txt").write_text(text_of(records), encoding="utf-8")

    records = measure(tuple(options.part or PARTS), _size(options.quick), say, keep)
    draw(records, options.output)
    print(text_of(records))
    say(f"wrote {options.output}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
