"""The page docs/methods.md: every method with its formula, and what the tests of this run found of it.

make methods-table
"""

from __future__ import annotations

import dataclasses
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

# Column -> the tests that fill it. A test is told by its name, its case by what stands first in its brackets.
COLUMNS: dict[str, tuple[str, ...]] = {
    "numpy formula": ("test_the_result_is_the_formula",),
    "mergekit": ("test_the_same_merge_gives_the_same_numbers", "test_another_setting_gives_other_numbers"),
    "with itself": (
        "test_merging_a_model_with_itself_gives_it_back",
        "test_models_that_never_left_the_base_merge_to_the_base",
    ),
    "dtypes": ("test_every_rank_and_dtype_is_merged_in_float32_or_better_and_cast_once",),
    "ranks, empty": ("test_shape_and_dtype_survive",),
    "integers": ("test_integers_that_differ_are_an_error",),
    "order": (
        "test_the_order_of_models_matters_only_where_the_formula_says_so",
        "test_order_threads_and_shards_leave_every_byte_as_it_is",
    ),
    "threads, pieces": (
        "test_threads_pieces_and_the_order_of_models_leave_every_bit_as_it_is",
        "test_an_elementwise_method_may_be_run_on_pieces",
    ),
    "seed": ("test_the_same_seed_gives_the_same_bits_and_another_seed_others", "test_another_seed_draws_other_masks"),
}
NODE = re.compile(r"::(\w+)\[(.+)\]$")


@dataclasses.dataclass
class Outcomes:
    """Counts of passed and failed tests by method and column."""

    passed: Counter[tuple[str, str]] = dataclasses.field(default_factory=Counter)
    failed: Counter[tuple[str, str]] = dataclasses.field(default_factory=Counter)

    def add(self, node: str, outcome: str, cases: Mapping[str, Any]) -> None:
        """Count one test, if it is one of the table's."""
        found = NODE.search(node)
        if found is None or outcome == "skipped":
            return
        name, parameters = found.groups()
        column = next((c for c, tests in COLUMNS.items() if name in tests), None)
        method = _method(parameters, cases)
        if column is not None and method is not None:
            (self.passed if outcome == "passed" else self.failed)[method, column] += 1

    def cell(self, method: str, column: str) -> str:
        """Return the number of tests passed, the failures if there are any, or a dash where nothing was run."""
        passed, failed = self.passed[method, column], self.failed[method, column]
        if failed:
            return f"**{failed} failed**"
        return str(passed) if passed else "–"


def _method(parameters: str, cases: Mapping[str, Any]) -> str | None:
    """Return the method of a test's parameters: those of the longest case name found in them, or the name itself."""
    names = sorted((name for name in cases if name in parameters), key=len)
    if names:
        return str(cases[names[-1]].method)
    methods = {case.method for case in cases.values()}
    return parameters if parameters in methods else None


def page(outcomes: Outcomes, cases: Mapping[str, Any], methods: Mapping[str, Any]) -> str:
    """Return the page."""
    lines = [
        "# Merge methods",
        "",
        "Every method with its formula and settings, as its docstring has them, and what the tests found. This page is",
        "written by `make methods-table`.",
        "",
        "Cells count the tests that passed; – means that nothing is there to test (mergekit has no such method, or means",
        "another formula by its name). `dtypes` are bfloat16, float16, float32 and float64, each with tensors of 0 to 3 axes,",
        "empty ones and integers. Whatever the method, NaN and infinity in a model are refused before it is called.",
        "",
        f"| method | models tested | {' | '.join(COLUMNS)} |",
        f"| --- | --- | {' | '.join('---' for _ in COLUMNS)} |",
    ]
    for method in methods:
        counts = sorted({case.models for case in cases.values() if case.method == method})
        cells = [outcomes.cell(method, column) for column in COLUMNS]
        lines.append(f"| [{method}](#{method}) | {', '.join(map(str, counts))} | {' | '.join(cells)} |")
    for method, kind in methods.items():
        lines += ["", f"## {method}", "", *_described(kind)]
    return "\n".join(lines) + "\n"


def _described(kind: Any) -> list[str]:
    """Return a method's docstring as a page has it, and its defaults."""
    fields = ", ".join(f"`{f.name}={f.default!r}`" for f in dataclasses.fields(kind))
    text = "\n".join(line.removeprefix("    ") for line in (kind.__doc__ or "").strip().splitlines())
    base = {"required": "Needs a base.", "optional": "Takes a base, if one is given.", "none": ""}[kind.base]
    return ["```text", text, "```", "", f"Settings: {fields or 'none'}. {base}".strip()]


def write(path: Path, reports: Sequence[tuple[str, str]]) -> None:
    """Write the page of a run's reports, each the name of a test and its outcome."""
    from contracts.test_methods import CASES

    from merge.methods import METHODS

    outcomes = Outcomes()
    for node, outcome in reports:
        outcomes.add(node, outcome, CASES)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(page(outcomes, CASES, METHODS), encoding="utf-8")
