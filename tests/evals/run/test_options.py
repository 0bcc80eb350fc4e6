"""Where results go is checked before anything is computed; a result that is reused says which libraries computed it."""

from __future__ import annotations

from pathlib import Path

import pytest

from evals.run.options import EvalOptions, reuse_result, stored_results
from merge.disk.versions import installed_version
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


@pytest.mark.parametrize("manifest", ["merge.json", "edit.json"])
def test_results_do_not_go_among_the_files_of_a_model_that_was_made(manifest: str, tmp_path: Path) -> None:
    """verify would find them strange, and a push would upload them. The control: the folder that the line names."""
    model = tmp_path / "m"
    model.mkdir()
    assert stored_results(EvalOptions(output=model / "report")) == []
    (model / manifest).write_text("{}", encoding="utf-8")
    for output in (model, model / "report", model / "a" / "b"):
        with pytest.raises(OutputError, match=rf"lies in the folder of a model .*such as {model}-report\.$"):
            stored_results(EvalOptions(output=output))
    assert stored_results(EvalOptions(output=tmp_path / "m-report")) == []


def test_a_reused_result_of_other_libraries_says_so() -> None:
    """Not in what is stored. The controls: the libraries that are installed, a record without versions, another key."""
    own = {name: installed_version(name) for name in ("torch", "transformers")}
    record = {"key": "k", "notes": ["a note"], "versions": {**own, "transformers": "4.6.0"}}
    reused = reuse_result([record], "k", {"data": "d"}, None)
    assert reused is not None
    assert reused["notes"] == [
        "a note",
        f"a result of the folder, computed with transformers 4.6.0 (installed is {own['transformers']}): "
        "--force computes it again",
    ]
    assert record["notes"] == ["a note"]
    for versions in ({"versions": {**own, "merge-models": "0"}}, {}, {"versions": None}):
        same = reuse_result([{"key": "k", "notes": [], **versions}], "k", {}, None)
        assert same is not None
        assert same["notes"] == []
    assert reuse_result([record], "other", {}, None) is None
