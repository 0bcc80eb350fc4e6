"""Offline, quiet and on one thread for every test.

Threads have nothing to share in a tiny model: on a busy machine they spend a hundred times its work waiting.
"""

from __future__ import annotations

import atexit
import contextlib
import gc
import hashlib
import logging
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from _pytest.runner import runtestprotocol
from captured_log import CapturedLog

ROOT = Path(__file__).parents[1]
LONG_FIXTURE_SECONDS = 0.1  # what --durations lists


def kept_structures() -> Path:
    """Return the folder of what transformers makes of each tiny config, which the next run of the tests reads again.

    Files there are named by config and build of transformers. The folder is named by the source that writes them, so
    that a change of it asks transformers anew.
    """
    package = ROOT / "merge" / "checkpoints"
    sources = [(package / f"{module}.py").read_bytes() for module in ("structure", "transformers_model")]
    digest = hashlib.sha256(b"".join(sources)).hexdigest()
    return ROOT / ".pytest_cache" / "structure" / digest[:16]


def delete_cache(folder: Path, process: int) -> None:
    """Delete the cache folder at the end of the process that made it, and not of one that it forked."""
    if os.getpid() == process:
        shutil.rmtree(folder, ignore_errors=True)


def new_cache() -> str:
    """Make the cache folder of this run: empty but for the structures that runs share, and deleted at its end."""
    folder = Path(tempfile.mkdtemp(prefix="merge-models-cache-"))
    atexit.register(delete_cache, folder, os.getpid())
    with contextlib.suppress(OSError):  # without links (Windows), or where nothing can be written: asked anew
        kept_structures().mkdir(parents=True, exist_ok=True)
        (folder / "structures").symlink_to(kept_structures(), target_is_directory=True)
    return str(folder)


if "MERGE_MODELS_CACHE" not in os.environ:  # the workers of a parallel run inherit it
    os.environ["MERGE_MODELS_CACHE"] = new_cache()
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
os.environ.setdefault("HF_DEACTIVATE_ASYNC_LOAD", "1")  # no threads to read files of a few kilobytes


def checked(descriptor: int) -> None:
    """Raise an error for a descriptor that is not open, as os.fsync does, and wait for no disk."""
    os.fstat(descriptor)


# No test cuts the power. The files of one merge wait for the disk as long as they are computed; tests of what a failed
# flush does put their own function in this place.
os.fsync = checked

NODES: list[tuple[str, str]] = []
ROWS: list[dict[str, str]] = []
SYMMETRIES: list[dict[str, str]] = []
MERGEKIT: list[dict[str, str]] = []
LAYOUTS: list[dict[str, str]] = []


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the options that write pages."""
    parser.addoption("--methods-table", type=Path, help="Write the outcome of the batteries for each method here.")
    parser.addoption("--architectures-table", type=Path, help="Write the outcome for each family and head here.")
    parser.addoption("--mergekit-table", type=Path, help="Write the outcome for each kind of mergekit file here.")
    parser.addoption("--layouts-table", type=Path, help="Write the outcome of each command on each layout here.")
    parser.addoption("--symmetries-table", type=Path, help="Write the outcome for the groups of each family here.")


@pytest.hookimpl(trylast=True)  # after the plugin of pytest that captures logs is there
def pytest_configure(config: pytest.Config) -> None:
    """Look for no garbage during imports, capture logs for those tests alone that ask for it, and remember all patterns."""
    config.pluginmanager.unregister(name="logging-plugin")
    # Without a handler of the root the first command that runs in a test would add its own.
    logging.getLogger().addHandler(logging.NullHandler())
    # For every model that it loads transformers compiles some seventy patterns, and Python remembers 512.
    re._MAXCACHE = 100_000  # type: ignore[attr-defined]
    if hasattr(config, "workerinput") or not config.getoption("numprocesses", None):  # a process that runs tests
        gc.disable()


@pytest.fixture
def captured_log() -> Iterator[CapturedLog]:
    """The messages that are logged during a test, of warnings and above unless it asks for more."""
    handler = CapturedLog()
    logging.getLogger().addHandler(handler)
    yield handler
    logging.getLogger().removeHandler(handler)


@pytest.hookimpl(trylast=True)
def pytest_collection_finish(session: pytest.Session) -> None:
    """Look for garbage again, but seldom, and not in what was imported: a search through all of it takes half a second.

    Pictures are drawn once of each kind, in processes that run tests; and those with tests that start processes fork the
    server of these.
    """
    if hasattr(session.config, "workerinput") or not session.config.getoption("numprocesses", None):
        import drawn_once

        if (warm := sys.modules.get("warm")) is not None and warm.FORKS:
            warm.server()

        drawn_once.install()
    gc.enable()
    gc.freeze()
    gc.set_threshold(50_000, 20, 20)  # as Python has it, every twentieth second of a test is such a search


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item, nextitem: pytest.Item | None) -> bool | None:
    """Let a worker send one report of a test that passed, not one of each of its three parts."""
    if not hasattr(item.config, "workerinput"):
        return None
    for report in runtestprotocol(item, log=False, nextitem=nextitem):
        if report.when == "call" or not report.passed or report.duration > LONG_FIXTURE_SECONDS:
            item.ihook.pytest_runtest_logreport(report=report)
    item.ihook.pytest_runtest_logfinish(nodeid=item.nodeid, location=item.location)
    return True


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Count a test's outcome."""
    if report.when == "call" or report.failed:
        NODES.append((report.nodeid, report.outcome))
        ROWS.extend(row for name, row in report.user_properties if name == "family table")  # type: ignore[misc]
        SYMMETRIES.extend(row for name, row in report.user_properties if name == "symmetry table")  # type: ignore[misc]
        MERGEKIT.extend(row for name, row in report.user_properties if name == "mergekit table")  # type: ignore[misc]
        LAYOUTS.extend(row for name, row in report.user_properties if name == "layouts table")  # type: ignore[misc]


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Write the pages that were asked for, once, by the process that started the run."""
    if hasattr(session.config, "workerinput"):
        return
    # Imported here: they load torch, which the process that hands tests to workers does without.
    if path := session.config.getoption("--methods-table"):
        import methods_table

        methods_table.write(path, NODES)
    if path := session.config.getoption("--architectures-table"):
        import family_table

        family_table.write(path, ROWS)
    if path := session.config.getoption("--symmetries-table"):
        import symmetry_table

        symmetry_table.write(path, SYMMETRIES)
    if path := session.config.getoption("--mergekit-table"):
        import mergekit_table

        mergekit_table.write(path, MERGEKIT)
    if path := session.config.getoption("--layouts-table"):
        import layouts_table

        layouts_table.write(path, LAYOUTS)
