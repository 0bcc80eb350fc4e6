"""What an alignment holds: pages of both files go as soon as a phase has no use for them, and that changes no byte."""

from __future__ import annotations

from pathlib import Path

import pytest
from tiny import bert_config, save_checkpoint, write_text

from merge.checkpoints.weights.read import MappedFile
from merge.recipe.recipe import make_recipe
from merge.run.run import run

BERT = bert_config(num_hidden_layers=1)


# Both let the pages of both files go before and after the canonical form, and after both models have run on the text: for
# matching by activations, or for the quality of a match by weights.
RELEASED = {"weights": 6, "activations": 6}


@pytest.mark.parametrize("by", RELEASED)
def test_pages_of_both_files_are_let_go_and_the_merge_stays_the_same(
    by: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    models = [str(save_checkpoint(tmp_path / name, BERT, seed=k)) for k, name in enumerate("ab")]
    text = write_text(tmp_path / "text.txt")
    released: list[MappedFile] = []
    release = MappedFile.release_pages

    def merged(name: str) -> bytes:
        align = {"by": by, "text": str(text), "samples": 32, "axes": ["heads", "ffn"]}
        run(make_recipe({"models": models, "output": str(tmp_path / name), "align": align}))
        return (tmp_path / name / "model.safetensors").read_bytes()

    def noted(mapped: MappedFile) -> None:
        released.append(mapped)
        release(mapped)

    with monkeypatch.context() as patch:
        patch.setattr(MappedFile, "release_pages", noted)
        usual = merged("usual")
    monkeypatch.setattr(MappedFile, "release_pages", lambda _: None)
    assert len({id(mapped) for mapped in released}) == 2
    assert len(released) == RELEASED[by]
    assert merged("kept") == usual
