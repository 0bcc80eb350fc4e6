"""Phases on a terminal: one line that never wraps, from the first moment on, and the seconds of each phase."""

from __future__ import annotations

import ast
import re
import sys
from pathlib import Path

import pytest

from merge.commands.phases import Phases, shortened


def on_terminal(monkeypatch: pytest.MonkeyPatch) -> Phases:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "30")
    return Phases(True, False)


def test_no_line_in_place_is_as_long_as_the_window(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A line that wraps is not erased by the next, and they pile up. What is cut keeps its end, which counts."""
    phases = on_terminal(monkeypatch)
    assert "starting" in capsys.readouterr().err
    for _ in phases.counted(range(3), "comparing the activations of two very large models"):
        lines = re.split(r"\r\x1b\[K", capsys.readouterr().err)
        assert all(len(line) < 30 for line in lines)
    phases.begin("proving that the aligned model is the model that it was before")
    shown = capsys.readouterr().err.rsplit("\x1b[K", 1)[1]
    assert len(shown) < 30
    assert "…" in shown


@pytest.mark.parametrize("width", range(40))
def test_a_shortened_text_fits_and_keeps_its_end(width: int) -> None:
    text = "measuring: 12/340, about 5 s left"
    short = shortened(text, width)
    assert len(short) == min(width, len(text))
    assert width < 30 or short.endswith("s left")


def test_the_time_left_follows_from_the_items_done(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ten items of two seconds: after four, twelve seconds are left."""
    clock = iter(2.0 * k for k in range(20))
    phases = on_terminal(monkeypatch)
    monkeypatch.setattr("merge.commands.phases.time.monotonic", lambda: next(clock))
    for k in phases.counted(range(10), "going"):
        if k == 4:
            break
    drawn = capsys.readouterr().err
    assert re.search(r"going: 5/10, about 1[0-9] s left", drawn)


def test_phases_of_one_name_are_one_and_shares_add_up(capsys: pytest.CaptureFixture[str]) -> None:
    phases = Phases(False, True)
    for name in ("matching", "merging", "matching"):
        phases.begin(name)
        sum(range(200_000))
    phases.end()
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("phase")]
    assert [line.split("  ")[-1] for line in lines] == ["starting", "matching", "merging"]
    shares = [float(re.search(r"([\d.]+)%", line)[1]) for line in lines]  # type: ignore[index]
    assert sum(shares) == pytest.approx(100, abs=0.3)


def _before_the_first_phase(function: ast.FunctionDef) -> list[str]:
    """Return what a command imports before it shows its first phase."""
    nodes = list(ast.walk(function))
    shown = [n.lineno for n in nodes if isinstance(n, ast.Call) and ast.unparse(n.func) == "set_verbosity"]
    imports = [n for n in nodes if isinstance(n, ast.Import | ast.ImportFrom)]
    return [ast.unparse(each) for each in imports if shown and each.lineno < min(shown)]


def test_a_command_shows_that_it_starts_before_it_loads_libraries() -> None:
    """torch and transformers take seconds to load, on a busy machine ten and more. The control: an import put before."""
    root = Path(__file__).parents[3]
    files = [*(root / "merge" / "commands").glob("*.py"), *(root / "evals" / "commands").glob("*.py")]
    functions = [
        function
        for path in files
        for function in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(function, ast.FunctionDef)
    ]
    assert sum("set_verbosity(" in ast.unparse(function) for function in functions) > 20
    assert {f.name: found for f in functions if (found := _before_the_first_phase(f))} == {}
    late = ast.parse("def command():\n    import torch\n    set_verbosity(True, False)").body[0]
    assert isinstance(late, ast.FunctionDef)
    assert _before_the_first_phase(late) == ["import torch"]
