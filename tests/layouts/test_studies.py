"""Every study and every edit on every layout: what the same weights give as transformers saves them today, or its one line.

The reference is a folder of the layout's class, weights and tokenizer without anything that the layout did to them. What each
came to is written to docs/layouts.md by `make layouts-table`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from layouts.parts import halved, safetensors
from layouts.shelf import LAYOUTS, STUDIES, Layout
from layouts.test_layouts import ROWS
from safetensors.torch import load_file
from tiny import sentence

import evals
import merge
from merge.errors import MergeError

Numbers = dict[str, float]
TASK = {
    "task": "sst2",
    "data": [{**row, "label": ("negative", "positive")[row["label"]]} for row in ROWS],
    "cache": False,
}
STEPS = {"train": TASK["data"], "steps": 2, "rows_a_step": 2}
# What depends on the clock, the disk or the bytes of files, and not on the weights.
OTHERWISE = ("seconds", "cost", "hash", "key", "bytes", "created", "version", "rate", "texts_cut")
EDITS = ("stitch-models", "apply")
ROUNDING, HALF_PRECISION = 1e-5, 5e-2


@cache
def texts() -> list[str]:
    import random

    drawn = random.Random(0)
    return [sentence(drawn, 9) for _ in range(40)]


def edited(a: Path, b: Path, place: Path, edit: Callable[[Path], Any]) -> Any:
    """Return the tensors that an edit writes."""
    edit(place / "edited")
    return load_file(place / "edited" / "model.safetensors")


RUN: dict[str, Callable[[Path, Path, Path], Any]] = {
    "barrier": lambda a, b, _: evals.barrier(a, b, points=3, **TASK).to_json(),
    "line": lambda a, b, _: evals.line(a, b, points=3, **TASK).to_json(),
    "basins": lambda a, b, _: evals.basins([a, b], points=3, processes=1, **TASK).record,
    "plane": lambda a, b, c: evals.plane([a, b, third(a, c)], points=3, levels=0, **TASK).record,
    "curve": lambda a, b, _: evals.curve(a, b, points=3, **STEPS, **TASK).record,
    "simplex": lambda a, b, _: evals.simplex(a, vertices=1, samples=2, **STEPS, **TASK).record,
    "monotonic": lambda a, b, _: evals.monotonic(a, b, points=3, gauss_rows=0, **TASK).record,
    "features": lambda a, b, _: evals.features(a, b, text=texts(), cache=False).record,
    "similarity": lambda a, b, _: evals.similarity(a, b, text=texts(), measures=["cka"], cache=False).record,
    "lesion": lambda a, b, _: evals.lesion(a, text=texts()[:4], only=["layers", "sublayers"], cache=False).record,
    "linearity": lambda a, b, _: evals.linearity(a, text=texts()[:4], only=["swaps"], cache=False).record,
    "stitch": lambda a, b, _: evals.stitch(a, b, text=texts(), map="scale", line=False, cache=False).record,
    "stitch-models": lambda a, b, c: edited(
        a, b, c, lambda out: merge.stitch(a, b, at=(1, 1), map="identity", text=texts()).save(out)
    ),
    "apply": lambda a, b, c: edited(a, b, c, lambda out: merge.edit([a, b], "A0, B1").save(out)),
    "prune-heads": lambda a, b, c: edited(a, b, c, lambda out: merge.prune_heads(a, "0:1", output=out)),
    "prune-neurons": lambda a, b, c: edited(a, b, c, lambda out: merge.prune_neurons(a, "0:3", output=out)),
    "prune-embeddings": lambda a, b, c: edited(a, b, c, lambda out: merge.prune_embeddings(a, texts(), output=out)),
}


def third(a: Path, place: Path) -> Path:
    """Return a model off the line of the other two: a without its second head."""
    merge.prune_heads(a, "0:1", output=place / "third")
    return place / "third"


def numbers(record: Any, path: str = "") -> Iterator[tuple[str, float]]:
    """Yield every number of a record by the way to it, but for those that do not follow from the weights."""
    if isinstance(record, Mapping):
        for key, value in record.items():
            if not any(word in str(key) for word in OTHERWISE):
                yield from numbers(value, f"{path}.{key}")
    elif isinstance(record, list | tuple):
        for k, value in enumerate(record):
            yield from numbers(value, f"{path}.{k}")
    elif hasattr(record, "abs"):  # a tensor
        yield f"{path} sum", float(record.double().sum())
        yield f"{path} size", float(record.double().abs().sum())
    elif isinstance(record, int | float) and not isinstance(record, bool):
        yield path, float(record)


@dataclass(frozen=True)
class Outcome:
    """What a command came to: numbers, or the line that it ends with."""

    numbers: Mapping[str, float]
    line: str = ""


def outcome(command: str, a: Path, b: Path, place: Path) -> Outcome:
    place.mkdir()
    try:
        return Outcome(dict(numbers(RUN[command](a, b, place))))
    except MergeError as error:
        assert not (place / "edited").exists()
        return Outcome({}, str(error).replace(f"{a.parent}/", ""))


Outcomes = Callable[[Layout, str], Outcome]


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> Outcomes:
    """Return what a command comes to on a layout; many layouts have one reference, which is run once."""
    written: dict[str, tuple[Path, Path]] = {}
    known: dict[tuple[str, str], Outcome] = {}

    def of(layout: Layout, command: str) -> Outcome:
        key = repr(replace(layout, like=""))
        if key not in written:
            place = tmp_path_factory.mktemp("layout")
            a, b = (layout.write(place / name, seed) for seed, name in enumerate("ab"))
            written[key] = a, b
        if (key, command) not in known:
            known[key, command] = outcome(command, *written[key], tmp_path_factory.mktemp("run") / "out")
        return known[key, command]

    return of


def plain(layout: Layout) -> Layout:
    """Return the layout of the same weights, words and pipeline as transformers saves them today."""
    kept = {key: value for key, value in layout.config.items() if key.startswith(("sbert", "sentence"))}
    return replace(layout, names=(), store=safetensors, config=kept, refused={}, notes=())


# Slow: every command meets two layouts, in turn; quick: these. The whole grid is for the page.
QUICK = {"similarity": "PyLate", "apply": "shards of .bin", "prune-heads": "bert-base-uncased"}


def cells(whole: bool) -> list[Any]:
    names = list(LAYOUTS)
    chosen = [(QUICK[c], c) for c in QUICK]
    once_wrong = [("electra-base-discriminator", "stitch"), ("LaBSE", "features"), ("PyLate", "similarity")]
    turns = [(names[(5 * k + n * len(STUDIES)) % len(names)], c) for k, c in enumerate(STUDIES) for n in range(2)]
    slow = [(name, c) for c in STUDIES for name in names] if whole else list(dict.fromkeys([*turns, *once_wrong]))
    marked = [(cell, ()) for cell in chosen] + [(cell, pytest.mark.slow) for cell in slow if cell not in chosen]
    return [pytest.param(*cell, id=f"{cell[1]}-{cell[0]}", marks=marks) for cell, marks in marked]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "command" in metafunc.fixturenames:
        metafunc.parametrize(("name", "command"), cells(metafunc.config.getoption("--layouts-table") is not None))


def test_a_layout_gives_what_its_weights_give(
    name: str, command: str, outcomes: Outcomes, request: pytest.FixtureRequest
) -> None:
    """What an edit copies beside it is said to be no tensor of the class, and ignored by transformers."""
    layout = LAYOUTS[name]
    if "sentencepiece" in getattr(layout.tokenizer, "__qualname__", ""):
        pytest.importorskip("sentencepiece")
    ours = outcomes(layout, command)
    assert "\n" not in ours.line
    if refused := layout.refused.get("merge") or layout.refused.get(command):  # no model at all, or not for this
        assert refused in ours.line
    else:
        assert "does not take these tensors" not in ours.line
        expected = outcomes(plain(layout), command)
        if "missing pooler" in layout.notes and ours.numbers:  # what is measured at a pooler, or written of it
            expected = Outcome({n: v for n, v in expected.numbers.items() if n in ours.numbers}, expected.line)
            assert len(expected.numbers) > 0.9 * len(ours.numbers)
        assert ours.line == expected.line
        assert ours.numbers or ours.line
        assert expected.numbers.keys() <= ours.numbers.keys()
        copied = command in EDITS and any("are no tensors of" in note for note in layout.notes)
        assert copied or ours.numbers.keys() == expected.numbers.keys()
        tolerance = HALF_PRECISION if halved in layout.names else ROUNDING
        apart = {
            n: (ours.numbers[n], v) for n, v in expected.numbers.items() if not _near(ours.numbers[n], v, tolerance)
        }
        assert not apart
    told = f"refused: {ours.line}" if ours.line else "✓"
    request.node.user_properties.append(("layouts table", {"layout": name, "command": command, "outcome": told}))


def _near(a: float, b: float, tolerance: float) -> bool:
    return (math.isnan(a) and math.isnan(b)) or math.isclose(a, b, rel_tol=tolerance, abs_tol=tolerance)
