"""Imports point one way, in no circle, and no folder is too full: every module of both packages is read."""

from __future__ import annotations

import ast
from collections.abc import Iterable, Mapping
from functools import cache
from graphlib import CycleError, TopologicalSorter
from itertools import pairwise
from pathlib import Path, PurePosixPath

import pytest

ROOT = Path(__file__).parents[1]

# From the ground up: a folder or file imports only from those named before it.
MERGE = (
    "errors progress machine disk checkpoints text symmetry methods alignment publish layers recipe run commands entry"
)
EVALS = "heuristics tasks scores predict results paths inside surgery clusters report run commands"
ORDER = {"merge": MERGE.split(), "evals": EVALS.split()}

# The one module of merge that may import evals: it starts evaluate-models, once it has checked whose evals that is.
ENTRY = "merge.entry"

# How many entries a folder may have, `__init__.py` and data apart; METHODS and ARCHITECTURES are lists.
MOST_ENTRIES = {"merge": 15, "evals": 12, "merge/methods": 99, "merge/symmetry/architectures": 99}
MOST_ENTRIES_ELSEWHERE = 20

# Modules of another distribution that also installs a package `evals`: none of ours may stand in for one of them.
FOREIGN = {"api", "base", "cli", "data", "eval", "formatting", "metrics", "prompt", "record", "registry", "utils"}

Graph = Mapping[str, set[str]]


def module_sources() -> dict[str, str]:
    """Return dotted name -> source of every module of merge and evals; a package's name ends in `.__init__`."""
    paths = sorted([*(ROOT / "merge").rglob("*.py"), *(ROOT / "evals").rglob("*.py")])
    return {".".join(p.relative_to(ROOT).with_suffix("").parts): p.read_text(encoding="utf-8") for p in paths}


@cache
def our_graph() -> dict[str, set[str]]:
    """Return the graph of the tree; parsing it takes seconds."""
    return import_graph(module_sources())


def import_graph(sources: Mapping[str, str]) -> dict[str, set[str]]:
    """Return module -> the modules of ours it imports anywhere in it, inside functions and for type checks too.

    The two top `__init__` are left out: tables of contents that name every public function and import none of them.
    """
    names = sources.keys() - {f"{package}.__init__" for package in ORDER}
    return {module: set(imported_modules(sources[module], sources)) for module in sorted(names)}


def imported_modules(source: str, known: Iterable[str]) -> Iterable[str]:
    """Yield the module that each import of a source reads; `from a import b` reads a.b where that is a module."""
    known = set(known)
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"relative import: {ast.unparse(node)}"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        for name in names:
            if name.split(".")[0] in ORDER:
                parent = name.rpartition(".")[0]
                candidates = (name, f"{name}.__init__", parent, f"{parent}.__init__")
                yield next((c for c in candidates if c in known), name)


def wrong_arrows(graph: Graph) -> list[str]:
    """Return every import that does not point down the list of folders."""
    faults = []
    for module, targets in graph.items():
        for target in sorted(targets):
            (package, own), (other_package, other) = (name.split(".")[:2] for name in (module, target))
            if package == "merge" and other_package == "evals":
                if module != ENTRY:
                    faults.append(f"{module} imports {target}: merge never imports evals")
            elif package == other_package and own != other and other != "__init__":
                order = ORDER[package]
                if own == "__init__" or order.index(other) > order.index(own):
                    faults.append(f"{module} imports {target}, which is built on it")
    return faults


def circle(graph: Graph) -> list[str]:
    """Return the nodes of one circle, or none."""
    try:
        TopologicalSorter({node: targets - {node} for node, targets in graph.items()}).prepare()
    except CycleError as error:
        return list(error.args[1])
    return []


def circles(graph: Graph) -> list[list[str]]:
    """Return a circle of modules, and one of the entries of each folder, where there are any."""
    folders = {parent for module in graph for parent in _parents(module)}
    return [found for each in (graph, *(entries_graph(graph, folder) for folder in folders)) if (found := circle(each))]


def _parents(module: str) -> list[str]:
    """Return the folders that a module is in, from the innermost."""
    parts = module.split(".")
    return [".".join(parts[:depth]) for depth in range(len(parts) - 1, 0, -1)]


def entries_graph(graph: Graph, folder: str) -> dict[str, set[str]]:
    """Return which entries (files and folders) of a folder import which others of it."""
    depth = folder.count(".") + 1
    inside = {name for name in graph if name.startswith(f"{folder}.")}
    entries: dict[str, set[str]] = {}
    for module in inside:
        entry = module.split(".")[depth]
        entries.setdefault(entry, set()).update(name.split(".")[depth] for name in graph[module] & inside)
    return entries


def full_folders(modules: Iterable[str]) -> list[str]:
    """Return every folder that has more entries than it may."""
    entries: dict[str, set[str]] = {}
    for module in modules:
        parts = PurePosixPath(*module.split(".")).parts
        for above, entry in pairwise(range(1, len(parts) + 1)):
            entries.setdefault("/".join(parts[:above]), set()).add(parts[entry - 1])
    counts = {folder: len(names - {"__init__"}) for folder, names in entries.items()}
    return [f"{f} has {n} entries" for f, n in counts.items() if n > MOST_ENTRIES.get(f, MOST_ENTRIES_ELSEWHERE)]


def test_every_import_points_down_the_list_of_folders() -> None:
    graph = our_graph()
    assert len(graph) > 200
    assert sum(map(len, graph.values())) > 600
    assert wrong_arrows(graph) == []


def test_every_folder_stands_in_the_list() -> None:
    for package, order in ORDER.items():
        entries = {name.split(".")[1] for name in module_sources() if name.startswith(f"{package}.")}
        assert entries - {"__init__"} == set(order)


def test_no_imports_form_a_circle() -> None:
    assert circles(our_graph()) == []


def test_no_folder_is_too_full() -> None:
    assert full_folders(module_sources()) == []


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("merge.errors", "from merge.checkpoints.hub.download import download"),
        ("merge.checkpoints.checkpoint", "def f():\n    from merge.run.run import run"),
        ("merge.symmetry.spec", "import merge.alignment.pair"),
        (
            "merge.checkpoints.labels",
            "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from merge.recipe.recipe import Recipe",
        ),
        ("merge.text.table", "from merge import commands"),
        ("merge.run.run", "from evals.tasks.task import EvalTask"),
        ("merge.commands.merge_models", "import evals"),
        ("evals.tasks.task", "from evals.results.store import load_results"),
    ],
)
def test_a_wrong_arrow_is_caught(module: str, source: str) -> None:
    """The negative control, in every form an import can take."""
    sources = module_sources()
    assert len(wrong_arrows({module: set(imported_modules(source, sources))})) == 1


def test_a_planted_circle_is_caught() -> None:
    """Between files, and between two folders whose files form none."""
    files = {"merge.text.table": {"merge.text.source"}, "merge.text.source": {"merge.text.table"}}
    assert circles(files) != []
    folders = {
        "merge.run.plan.heads": {"merge.run.engine.engine"},
        "merge.run.engine.engine": set(),
        "merge.run.engine.other": {"merge.run.plan.classes"},
        "merge.run.plan.classes": set(),
    }
    assert circle(folders) == []
    assert len(circles(folders)) == 1


def test_a_21st_file_is_caught() -> None:
    full = [f"merge.text.file{k}" for k in range(21)]
    assert full_folders(full) == ["merge/text has 21 entries"]
    assert full_folders([*full[:20], "merge.text.__init__"]) == []


def test_no_module_of_evals_has_the_name_of_a_foreign_one() -> None:
    """Were ours and theirs installed side by side, a half of each would be imported."""
    names = [name.split(".") for name in module_sources() if name.startswith("evals")]
    assert len(names) > 8
    assert {parts[1] for parts in names if len(parts) > 1} & FOREIGN == set()
