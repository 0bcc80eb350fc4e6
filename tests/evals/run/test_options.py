"""Where results go is checked before anything is computed."""

from __future__ import annotations

from pathlib import Path

import pytest

from evals.run.options import EvalOptions, stored_results
from merge.errors import OutputError


@pytest.mark.parametrize("name", ["rows.txt", "rows.txt/report", "-"])
def test_results_go_to_a_folder_or_nothing_is_computed(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file, a folder below one, and the name of stdout. The control: a folder that is to be made."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "rows.txt").write_text("x")
    with pytest.raises(OutputError, match="cannot be written|no folder is written") as caught:
        stored_results(EvalOptions(output=Path(name)))
    assert "\n" not in str(caught.value)
    assert stored_results(EvalOptions(output=tmp_path / "new" / "report")) == []
