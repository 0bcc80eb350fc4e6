"""The examples of the documentation and of public docstrings run, and print what they say."""

from __future__ import annotations

import doctest
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from quick import quick_on
from tiny import NLI, save_checkpoint

import evals
import merge

DOCS = Path(__file__).parents[1] / "docs"
FLAGS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
# A page must hold at least this many examples: a page without any would pass.
PAGES = {"python-api.md": 12, "how-it-works.md": 15}
FUNCTIONS = [getattr(package, name) for package in (merge, evals) for name in package.__all__]
DOCUMENTED = [each for each in FUNCTIONS if callable(each) and not isinstance(each, type)]
QUICK = (merge.merge, merge.load, evals.score)


@pytest.fixture
def workshop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Return the names that examples use, in a folder with three small models and labelled rows."""
    import transformers

    monkeypatch.chdir(tmp_path)
    for seed, name in enumerate("abc"):
        save_checkpoint(tmp_path / name, seed=seed)
    rows = [
        {"premise": "the doctor saw a lawyer .", "hypothesis": "a lawyer helped .", "label": NLI[k % 3]}
        for k in range(30)
    ]
    model = transformers.AutoModelForSequenceClassification.from_pretrained("a/")
    return {"merge": merge, "evals": evals, "model": model, "rows": rows}


def failures(tests: list[doctest.DocTest]) -> tuple[int, str]:
    """Run examples; return how many ran, and the report of those that failed."""
    report: list[str] = []
    runner = doctest.DocTestRunner(optionflags=FLAGS)
    for test in tests:
        runner.run(test, out=report.append, clear_globs=False)
    return runner.tries, "".join(report)


@pytest.mark.parametrize("page", quick_on(("how-it-works.md",), PAGES))
def test_the_examples_of_a_page_run(page: str, workshop: dict[str, Any]) -> None:
    text = (DOCS / page).read_text(encoding="utf-8")
    tried, report = failures([doctest.DocTestParser().get_doctest(text, workshop, page, page, 0)])
    assert tried >= PAGES[page]
    assert not report, report


@pytest.mark.parametrize(
    "function", quick_on(QUICK, DOCUMENTED), ids=lambda function: f"{function.__module__}.{function.__name__}"
)
def test_the_example_of_a_public_function_runs(function: Callable[..., Any], workshop: dict[str, Any]) -> None:
    """Every public function has one."""
    tests = doctest.DocTestFinder(recurse=False).find(function, function.__name__, globs=workshop)
    assert any(test.examples for test in tests)
    _, report = failures(tests)
    assert not report, report


def test_a_wrong_example_is_caught() -> None:
    """The negative control."""
    wrong = doctest.DocTestParser().get_doctest(">>> 1 + 1\n3\n", {}, "wrong", None, 0)
    assert "Expected:\n    3" in failures([wrong])[1]


def test_every_public_name_stands_on_the_page_of_the_api() -> None:
    text = (DOCS / "python-api.md").read_text(encoding="utf-8")
    names = [f"{each.__module__.split('.')[0]}.{each.__name__}" for each in DOCUMENTED]
    assert len(names) >= 9
    assert [name for name in names if f"{name}(" not in text] == []


def test_the_page_on_recipes_holds_every_key_and_its_example_is_a_recipe() -> None:
    """The control: a key that no record has is not on the page."""
    from merge.alignment.settings import AlignEntry
    from merge.recipe.entries import EvaluationEntry, ModelEntry, Override, Slice, SliceSource
    from merge.recipe.recipe import Recipe, make_recipe
    from merge.text.source import ModelStatistics, StatisticsEntry

    text = (DOCS / "recipes.md").read_text(encoding="utf-8")
    named = set(re.findall(r"\w+", " ".join(re.findall(r"`([^`]*)`", text))))
    records = (Recipe, ModelEntry, Override, Slice, SliceSource, EvaluationEntry, AlignEntry, StatisticsEntry)
    keys = {key for record in (*records, ModelStatistics) for key in record.model_fields}
    assert keys - named == set()
    assert "colour" not in named
    rows = set(re.findall(r"^\| `(\w+)` \|", text, re.MULTILINE))
    assert rows <= keys
    example = text.partition("```yaml\n")[2].partition("```")[0]
    assert len(make_recipe(yaml.safe_load(example)).models) == 2
