"""merge-models statistics: one model's statistics in a file, as the run would have measured them."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch
from tiny import save_checkpoint, write_text

from merge.checkpoints.inputs import load_tokenizer, tokenise
from merge.checkpoints.open import open_checkpoint
from merge.commands.merge_models import main
from merge.methods.statistics.measure import measure
from merge.methods.statistics.record import read_statistics
from merge.text.calibration import read_calibration
from merge.text.source import TextSource


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    save_checkpoint(tmp_path / "a")
    write_text(tmp_path / "text.txt", 12)
    return tmp_path


def typed(monkeypatch: pytest.MonkeyPatch, *words: str) -> int:
    monkeypatch.setattr(sys, "argv", ["merge-models", "statistics", *words])
    try:
        main()
    except SystemExit as stop:
        return int(stop.code or 0)
    return 0


@pytest.mark.parametrize("kind", ["fisher", "gram"])
def test_the_file_holds_what_is_measured(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], kind: str
) -> None:
    words = [
        "a",
        "--kind",
        kind,
        "--text",
        "text.txt",
        "--samples",
        "5",
        "--seed",
        "3",
        "-o",
        "s.safetensors",
        "--json",
    ]
    assert typed(monkeypatch, *words) == 0
    said = json.loads(capsys.readouterr().out)
    checkpoint = open_checkpoint("a")
    found = read_statistics(place / "s.safetensors", kind, checkpoint)
    texts = read_calibration(TextSource("text.txt", None, 5, 3))
    batches, _ = tokenise(load_tokenizer(checkpoint.folder), texts.samples, checkpoint.config)
    expected = measure(checkpoint, kind, batches, texts.source, 3)
    assert said["output"] == "s.safetensors"
    assert said["tensors"] == len(expected.tensors) > 5
    assert all(torch.equal(found.tensors[name], tensor) for name, tensor in expected.tensors.items())
    fewer = [{name: tensor[:2] for name, tensor in batch.items()} for batch in batches]
    other = measure(checkpoint, kind, fewer, texts.source, 3)
    assert any(not torch.equal(found.tensors[name], tensor) for name, tensor in other.tensors.items())


def test_a_file_that_exists_is_kept_unless_forced(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (place / "s.safetensors").write_bytes(b"mine")
    words = ["a", "--kind", "gram", "--text", "text.txt", "-q", "-o", "s.safetensors"]
    assert typed(monkeypatch, *words) == 1
    assert "output s.safetensors exists" in capsys.readouterr().err
    assert (place / "s.safetensors").read_bytes() == b"mine"
    assert typed(monkeypatch, *words, "--force") == 0
    assert (place / "s.safetensors").read_bytes() != b"mine"


def test_a_name_by_which_no_merge_knows_statistics_is_refused(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """--statistics takes a file for statistics by the end of its name, and any other for text."""
    assert typed(monkeypatch, "a", "--kind", "fisher", "--text", "text.txt", "-o", "s.txt") == 1
    line = "merge-models statistics: output s.txt: expected a name that ends in .safetensors.\n"
    assert capsys.readouterr().err == line
    assert not (place / "s.txt").exists()


def test_a_missing_option_with_choices_is_one_plain_line(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """click writes the choices on lines of their own, and ends the line on extra words without a full stop."""
    assert typed(monkeypatch, "a") == 2
    line = "merge-models statistics: Missing option '--kind'. Choose from: fisher, gram. See merge-models statistics --help.\n"
    assert capsys.readouterr().err == line
    assert typed(monkeypatch, "a", "b", "c", "--kind", "gram", "-o", "s.safetensors") == 2
    line = "merge-models statistics: Got unexpected extra arguments (b c). See merge-models statistics --help.\n"
    assert capsys.readouterr().err == line


def test_a_kind_that_does_not_exist_is_a_usage_error(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert typed(monkeypatch, "a", "--kind", "hessian", "-o", "s") == 2
    assert "hessian" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["model.safetensors", "fisher.safetensors"])
def test_no_file_is_written_among_those_of_the_model(
    name: str, place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """With --force too, which would put statistics in the place of the weights. The control: a file beside the folder."""
    before = {path.name: path.read_bytes() for path in (place / "a").iterdir()}
    words = ["a", "--kind", "gram", "--text", "text.txt", "--force", "-o"]
    assert typed(monkeypatch, *words, f"a/{name}") == 1
    assert "lies in the folder of the model a" in capsys.readouterr().err
    assert {path.name: path.read_bytes() for path in (place / "a").iterdir()} == before
    assert typed(monkeypatch, *words, name) == 0
