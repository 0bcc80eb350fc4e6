"""Offline, quiet and on one thread for every test.

Threads have nothing to share in a tiny model: on a busy machine they spend a hundred times its work waiting.
"""

from __future__ import annotations

import atexit
import os
import shutil
import tempfile
from pathlib import Path

if "MERGE_MODELS_CACHE" not in os.environ:  # the workers of a parallel run inherit it
    os.environ["MERGE_MODELS_CACHE"] = tempfile.mkdtemp(prefix="merge-models-cache-")
    atexit.register(shutil.rmtree, os.environ["MERGE_MODELS_CACHE"], ignore_errors=True)
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

# After the environment is set: torch reads it when it is imported.
import family_table
import methods_table
import pytest
import symmetry_table

NODES: list[tuple[str, str]] = []
ROWS: list[dict[str, str]] = []
SYMMETRIES: list[dict[str, str]] = []


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the options that write pages."""
    parser.addoption("--methods-table", type=Path, help="Write what the batteries found of every method to this page.")
    parser.addoption("--architectures-table", type=Path, help="Write what came of every family and head to this page.")
    parser.addoption(
        "--symmetries-table", type=Path, help="Write what the groups of every family came to to this page."
    )


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Count a test's outcome."""
    if report.when == "call" or report.failed:
        NODES.append((report.nodeid, report.outcome))
        ROWS.extend(row for name, row in report.user_properties if name == "family table")  # type: ignore[misc]
        SYMMETRIES.extend(row for name, row in report.user_properties if name == "symmetry table")  # type: ignore[misc]


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Write the pages that were asked for, once, where the run was started."""
    if hasattr(session.config, "workerinput"):
        return
    if path := session.config.getoption("--methods-table"):
        methods_table.write(path, NODES)
    if path := session.config.getoption("--architectures-table"):
        family_table.write(path, ROWS)
    if path := session.config.getoption("--symmetries-table"):
        symmetry_table.write(path, SYMMETRIES)
