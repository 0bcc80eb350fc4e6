"""What the suite promises of itself: no case passes that asserts nothing."""

from __future__ import annotations

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parent
BARE_RETURN = re.compile(r"\breturn\s*(#.*)?$", re.MULTILINE)  # parsing takes most of the time, few files need it
TESTS = sorted(ROOT.rglob("test_*.py"))


def early_returns(source: str) -> list[str]:
    """Return the test functions that may end by a bare `return`; those of functions inside them do not count."""
    faults = []
    for function in ast.walk(ast.parse(source)) if BARE_RETURN.search(source) else ():
        if isinstance(function, ast.FunctionDef) and function.name.startswith("test_"):
            inner = {id(n) for f in ast.walk(function) if f is not function and _defines(f) for n in ast.walk(f)}
            returns = (n for n in ast.walk(function) if isinstance(n, ast.Return) and n.value is None)
            faults += [f"{function.name}, line {n.lineno}" for n in returns if id(n) not in inner]
    return faults


def _defines(node: ast.AST) -> bool:
    return isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)


def test_no_case_passes_by_an_early_return() -> None:
    """A case with nothing to assert is left out of the parameters, so that the count of passes is the count of tests."""
    faults = {str(path): early_returns(path.read_text(encoding="utf-8")) for path in TESTS}  # names are not unique
    assert len(faults) == len(TESTS) > 100
    assert {name: found for name, found in faults.items() if found} == {}


def test_an_early_return_is_caught() -> None:
    """The control; a function inside a test may return."""
    assert early_returns("def test_a(x):\n    if x:\n        return\n    assert x") == ["test_a, line 3"]
    assert early_returns("def test_a():\n    def f():\n        return\n    assert f() is None") == []
    assert early_returns("def helper():\n    return") == []
