"""A run asks each question once: tokenizers are parsed once, heads are planned once."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from sentence import save_sentence

import merge.run.rebase
import merge.run.run
from merge.disk import documents
from merge.recipe.recipe import make_recipe
from merge.run.run import run

# modules.json is read for the files that belong to a model, and for its pipeline; a large tokenizer.json is parsed once.
PARSED = {"tokenizer.json": 1, "modules.json": 2}


@pytest.mark.parametrize("align", [{}, {"by": "weights", "axes": ["ffn"]}])
def test_tokenizers_are_parsed_once_and_heads_planned_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, align: dict[str, Any]
) -> None:
    """Of each model; the hashes of the manifest and transformers' own reading aside."""
    models = [str(save_sentence(tmp_path / name, seed=k)) for k, name in enumerate("ab")]
    reads, plans = Counter[str](), list[str | None]()
    read_text, plan_heads = documents.read_text, merge.run.run.plan_heads

    def counted(path: Path, *args: Any) -> str:
        if path.name in PARSED and str(path.parent) in models:
            reads[f"{path.parent.name}/{path.name}"] += 1
        return read_text(path, *args)

    def planned(policy: str | None, *args: Any) -> Any:
        plans.append(policy)
        return plan_heads(policy, *args)

    monkeypatch.setattr(documents, "read_text", counted)
    for module in (merge.run.run, merge.run.rebase):
        monkeypatch.setattr(module, "plan_heads", planned)
    run(make_recipe({"models": models, "output": str(tmp_path / "out"), "align": align}), dry_run=not align)
    expected = {f"{model}/{name}": count for model in "ab" for name, count in PARSED.items()}
    expected["a/tokenizer.json"] += bool(align)  # once more to read the calibration text
    assert reads == expected
    assert plans == [None]
