"""Imports point one way: every module of both packages is read, and none may know of what is built on it."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

# From the ground up; a module imports only from lines above its own, a package also from itself.
LEVELS = (
    ("errors",),
    (
        "figures",
        "hub_errors",
        "table",
        "progress",
        "cache",
        "gradient",
        "strict_yaml",
        "notation",
        "groups",
        "model_index",
    ),
    ("model", "terminal", "hashes", "alignment_plot", "hub"),
    ("weight_files", "structure", "layer_stacks", "side_files"),
    ("arrays", "legacy_buffers", "legacy_names"),
    ("canonical_names",),
    ("checkpoint", "spec", "layer_config", "weight_writer", "ranking"),
    ("permutation", "inputs", "plan", "tokenizer_files", "sentence_transformers"),
    ("tokenizer_union", "architectures", "maps"),
    ("transform",),
    ("transform_files",),
    ("gauges",),
    ("alignment", "methods", "heads", "vocabulary"),
    ("contribution", "statistics", "recipe_entries", "head_plan", "label_average", "align_options", "examples"),
    ("recipe", "material"),
    ("choices",),
    ("aligned",),
    ("engine", "mergekit_methods"),
    ("asked_vocabulary", "preflight", "schedule", "mergekit_parameters"),
    ("bases", "mergekit_document"),
    ("writer", "reload", "card", "verify"),
    ("prepared",),
    ("repair_sites",),
    ("repair",),
    ("soup", "cocktail", "evaluation", "report"),
    ("report_text",),
    ("repair_run", "output_files"),
    ("outputs",),
    ("run", "edit", "mergekit_yaml", "recipe_schema"),
    ("edit_command", "statistics_command", "flags"),
    ("command",),
    ("entry",),
)
LEVEL = {name: level for level, names in enumerate(LEVELS) for name in names}

# The one module of merge that may import evals: it starts evaluate-models, once it has made sure whose evals that is.
ENTRY = "merge.entry"

# Modules of another distribution that also installs a package `evals`: none of ours may stand in for one of them.
FOREIGN = {"api", "base", "cli", "data", "eval", "formatting", "metrics", "prompt", "record", "registry", "utils"}


def modules() -> dict[str, str]:
    """Return dotted name -> source of every module of merge and evals."""
    found = {}
    for path in sorted([*(ROOT / "merge").rglob("*.py"), *(ROOT / "evals").rglob("*.py")]):
        parts = path.relative_to(ROOT).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path.read_text(encoding="utf-8")
    return found


def imports(source: str) -> list[str]:
    """Return the dotted names a module imports anywhere in it, inside functions and for type checks too."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            # `from merge import run` names a module by its last word.
            names = [f"{node.module}.{alias.name}" for alias in node.names] if node.module in ("merge", "evals") else []
            found += names or ["." * node.level + (node.module or "")]
    return found


def fault(module: str, imported: str) -> str | None:
    """Return what is wrong with one arrow, or None."""
    if imported.startswith("."):
        return f"{module} imports {imported} by a relative name"
    package, target = module.split(".")[0], imported.split(".")[0]
    if target not in ("merge", "evals"):
        return None
    if package == "evals":
        return None
    if target == "evals":
        return None if module == ENTRY else f"{module} imports {imported}: merge never imports evals"
    own, other = ((*name.split("."), "")[1] for name in (module, imported))
    if other == "" or own == other or (own and LEVEL[other] < LEVEL[own]):
        return None
    return f"{module} imports {imported}, which is built on it"


def faults(sources: dict[str, str]) -> list[str]:
    return [said for module, source in sources.items() for name in imports(source) if (said := fault(module, name))]


def test_every_arrow_points_down() -> None:
    sources = modules()
    assert len(sources) > 40
    assert sum(name.startswith("merge") for source in sources.values() for name in imports(source)) > 100
    assert faults(sources) == []


def test_every_module_has_its_level() -> None:
    """A new module is placed by hand, once, by whoever adds it."""
    names = {name.split(".")[1] for name in modules() if name.startswith("merge.")}
    assert names == LEVEL.keys()


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("merge.errors", "from merge.hub import download"),
        ("merge.checkpoint", "def f():\n    from merge.run import run"),
        ("merge.spec", "import merge.alignment.pair"),
        ("merge.heads", "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from merge.recipe import Recipe"),
        ("merge.methods.linear", "from merge.heads import label_order"),
        ("merge.model", "from merge import command"),
        ("merge.model", "from . import errors"),
        ("merge.run", "from evals.task import EvalTask"),
        ("merge.command", "import evals"),
        ("merge", "from merge.run import run"),
    ],
)
def test_a_wrong_arrow_is_caught(module: str, source: str) -> None:
    """The negative control, in every form an import can take."""
    assert len(faults({module: source})) == 1


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("merge.run", "import merge\nimport torch\nfrom merge.writer import staged"),
        ("merge.alignment.weights", "from merge.alignment.pair import Pair\nfrom merge.errors import AlignmentError"),
        ("merge.entry", "from evals.command import main"),
        ("evals.measure", "from merge.run import run\nfrom evals.task import EvalTask"),
    ],
)
def test_a_right_arrow_is_not(module: str, source: str) -> None:
    assert faults({module: source}) == []


def test_no_module_of_evals_has_the_name_of_a_foreign_one() -> None:
    """Were ours and theirs installed side by side, a half of each would be imported."""
    names = [name.split(".") for name in modules() if name.startswith("evals")]
    assert len(names) > 8
    assert {parts[1] for parts in names if len(parts) > 1} & FOREIGN == set()
