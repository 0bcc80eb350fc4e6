"""Imports of a command: made without looking for garbage, and without what no command of ours needs."""

from __future__ import annotations

import gc
import os
import sys
import types
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def uncollected() -> Iterator[None]:
    """Look for no garbage inside the block, nor ever again in what exists at the end of one that has imported a module.

    What imports make stays. Python would go through all of it dozens of times, for a tenth of the time of a short command. A
    process that runs a command again imports nothing then: its garbage is still looked for, or it would grow with every run.
    """
    enabled, before = gc.isenabled(), len(sys.modules)
    gc.disable()
    try:
        yield
    finally:
        if len(sys.modules) > before:
            gc.freeze()
        if enabled:
            gc.enable()


def without_pydantic_plugins() -> None:
    """Let pydantic look for no plugins, of which we have none, nor import what it would look for them with.

    To look for them it reads the metadata of every installed package. Even where it is told not to, it imports the reader
    of metadata and, with that, of e-mail: a sixth of the time of an error in a recipe.
    """
    os.environ.setdefault("PYDANTIC_DISABLE_PLUGINS", "__all__")
    if os.environ["PYDANTIC_DISABLE_PLUGINS"] in ("__all__", "1", "true"):
        loader = types.ModuleType("pydantic.plugin._loader")
        loader.get_plugins = lambda: ()  # type: ignore[attr-defined]
        sys.modules.setdefault(loader.__name__, loader)
