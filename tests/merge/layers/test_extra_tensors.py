"""Models whose files hold tensors that their class does not have, as those of the first BERT and RoBERTa do."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from layouts.shelf import LAYOUTS
from safetensors.torch import load_file

import merge
from merge.checkpoints.open import open_checkpoint

TEXT = ["the doctor saw a lawyer .", "a river near the doctor", "who helped", "the lawyer saw a river ."]


@pytest.fixture(params=["roberta-base", "bert-base-uncased"])
def pairs(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[tuple[str, str], tuple[str, str]]:
    """Return two models of a layout, and the same two without what their class does not have."""
    layout = LAYOUTS[request.param]
    both = []
    for kind in (layout, replace(layout, names=())):
        folder = tmp_path / f"pair{len(both)}"
        both.append((str(kind.write(folder / "a", 0)), str(kind.write(folder / "b", 1))))
    extra = [open_checkpoint(pair[1]).extra for pair in both]
    assert extra[0]
    assert not extra[1]
    return both[0], both[1]


def test_layers_of_aligned_models_are_those_without_them(
    pairs: tuple[tuple[str, str], tuple[str, str]], tmp_path: Path
) -> None:
    """An alignment knows no units of theirs; a note names what is left out, and no note where nothing is."""
    written = []
    for k, pair in enumerate(pairs):
        made = merge.edit(list(pair), "A0, B1", align="weights", output=tmp_path / f"out{k}")
        left_out = [note for note in made.report.notes if note.endswith("left out, as transformers does")]
        assert len(left_out) == (2 if k == 0 else 0)
        written.append(load_file(tmp_path / f"out{k}" / "model.safetensors"))
    assert written[0].keys() == written[1].keys()
    assert all(tensor.equal(written[1][name]) for name, tensor in written[0].items())


def test_plans_of_them_are_compared(pairs: tuple[tuple[str, str], tuple[str, str]]) -> None:
    tables = [merge.compare_layers(pair[0], ["A0"], text=TEXT) for pair in pairs]
    assert [row.label for row in tables[0].rows] == ["full model", "A0", "no layer"]
    assert [row.cosine for row in tables[0].rows] == pytest.approx([row.cosine for row in tables[1].rows], abs=1e-6)
