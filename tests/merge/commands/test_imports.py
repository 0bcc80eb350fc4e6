"""Imports of a command: garbage is looked for again after them, and never in what they made."""

from __future__ import annotations

import contextlib
import gc
import sys
import types
import weakref

import pytest

from merge.commands.imports import uncollected


@pytest.mark.parametrize("enabled", [True, False])
def test_garbage_is_not_looked_for_inside_the_block_alone(enabled: bool) -> None:
    """Whoever had switched the search off finds it off again; an error inside changes nothing of that."""
    before = gc.isenabled()
    try:
        (gc.enable if enabled else gc.disable)()
        searched_inside = True
        with contextlib.suppress(ImportError), uncollected():
            searched_inside = gc.isenabled()
            raise ImportError
        assert (searched_inside, gc.isenabled()) == (False, enabled)
    finally:
        (gc.enable if before else gc.disable)()


def test_what_an_import_made_is_not_gone_through_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is in none of the generations that are searched."""
    with uncollected():
        monkeypatch.setitem(sys.modules, "made", types.ModuleType("made"))
        made = [[]]
    assert not any(each is made for each in gc.get_objects())
    gc.unfreeze()


class Ring:
    """Garbage that only a search finds: it holds itself."""

    def __init__(self) -> None:
        self.self = self


def test_a_process_that_imports_nothing_more_does_not_keep_the_garbage_of_its_commands() -> None:
    """The second run of a command in one process."""
    ring = weakref.ref(Ring())
    with uncollected():
        pass
    gc.collect()
    assert ring() is None
