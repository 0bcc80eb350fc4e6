"""evaluate-models basins: what an interrupted sweep says of what it keeps."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from evals.commands import basins as command
from merge.errors import Interrupted


@pytest.mark.parametrize("stored", [True, False])
def test_an_interrupted_sweep_says_what_is_kept(stored: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where records are stored the same command goes on from them; where none are, nothing is claimed (control)."""

    def interrupted(*_: Any) -> None:
        if stored:
            (tmp_path / "out" / "sweep").mkdir(parents=True)
        raise KeyboardInterrupt

    monkeypatch.setattr(command, "measure_basins", interrupted)
    done = CliRunner().invoke(command.basins, ["--task", "mnli", "-o", str(tmp_path / "out")])
    assert done.exit_code != 0
    assert isinstance(done.exception, Interrupted) is stored
    assert ("is kept in" in str(done.exception)) is stored
