"""Start of the commands: Ctrl-C is answered from the first import on, and `evaluate-models` runs with our `evals`.

Another distribution on PyPI also installs a package named `evals` and silently takes its place. This module is the one
exception to the rule that merge never imports evals.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path


def merge_models() -> None:
    """Run merge-models."""
    _started("merge-models", _merge_main)()


def edit_layers() -> None:
    """Run edit-layers."""
    _started("edit-layers", _edit_main)()


def evaluate_models() -> None:
    """Run the evaluate-models command, or stop with one line naming the clash."""
    _started("evaluate-models", _evaluate_main)()


def _started(command: str, read: Callable[[], Callable[[], None]]) -> Callable[[], None]:
    """Return what runs a command; an interrupt while its modules are read ends it as one does later on."""
    try:
        return read()
    except KeyboardInterrupt:
        sys.stderr.write(f"{command}: interrupted; nothing half-written is left\n")
        raise SystemExit(130) from None


def _merge_main() -> Callable[[], None]:
    from merge.commands.merge_models import main

    return main


def _edit_main() -> Callable[[], None]:
    from merge.commands.edit_layers import edit_main

    return edit_main


def _evaluate_main() -> Callable[[], None]:
    ours = Path(__file__).resolve().parent.parent / "evals"
    found = importlib.util.find_spec("evals")
    # A folder without __init__.py has no origin, only places; a module evals.py has a file of its own.
    places = [*(found.submodule_search_locations or ()), found.origin] if found else []
    origin = next((Path(place).resolve() for place in places if place), None)
    if origin != ours or importlib.util.find_spec("evals.commands.evaluate_models") is None:
        sys.stderr.write(
            f"evaluate-models: the package 'evals' found at {origin or 'no place'} is not the one of merge-models "
            f"(expected {ours}). If another distribution of that name is installed: pip uninstall evals, then reinstall "
            "merge-models.\n"
        )
        raise SystemExit(1)
    from evals.commands.evaluate_models import main

    return main
