"""Every family with every head goes the whole way: merged, aligned both ways, proved, and loaded again.

What each case came to is written to docs/architectures.md by `make architectures-table`.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from architecture_case import CASES, FIRST
from families_numbers import write_rows_of_numbers
from safetensors.torch import load_file
from tiny import save_checkpoint, write_text

from merge.alignment.evidence import quality
from merge.checkpoints.open import open_checkpoint
from merge.errors import MergeError
from merge.recipe.recipe import make_recipe
from merge.run.options import RunOptions
from merge.run.run import run
from merge.symmetry.architectures import spec_for

# What cannot be aligned by activations, and how it is said: nothing to read text with, or nothing to hook.
IMAGES = ("beit", "deit", "vit", "clip_vision_model", "clip")
REFUSED = {**dict.fromkeys(IMAGES, "has no tokenizer"), "xlnet": "heads"}


def aligned(a: Path, b: Path, by: str, text: Path | None) -> tuple[float, float]:
    """Return error and bound of the proof of aligning b to a on all axes, whether or not that would be chosen."""
    opened = open_checkpoint(str(a))
    spec = spec_for(opened.config)
    kinds = sorted({spec.kind(axis) for axis in spec.fit(opened.shapes) if axis not in spec.named})
    align = {"by": by, "axes": kinds, "samples": 24, **({"text": str(text)} if text else {})}
    recipe = make_recipe({"models": [str(a), str(b)], "align": align, "output": str(a.parent / "none")})
    proof = run(recipe, dry_run=True).rebased.aligned[0].proof
    return proof.error, proof.bound


# One head of each kind of table: of BERT, shared layers, fused and rotary projections, relative positions, images, texts
# and images.
QUICK = ("bert", "albert", "gpt2", "modernbert", "xlnet", "vit", "clip")


def kind_of_head(name: str) -> str:
    """Return what a case's class is called behind the name of its family: ForMaskedLM, Model, ..."""
    found = re.search(r"(For[A-Z]\w*|LMHeadModel|Model\w*)$", str(CASES[name][0]["architectures"][0]))
    assert found is not None
    return found[0]


# The other cases that are aligned too, each kind of head once and in one way in turn. The encoder of all others is that of
# their family's first case, and their head's table is proved in test_architectures.py: they are merged and loaded again.
OF_THEIR_KIND = {kind_of_head(name): name for name in reversed(CASES) if name not in FIRST.values()}
IN_TURN = {name: ("weights", "activations")[k % 2] for k, name in enumerate(sorted(OF_THEIR_KIND.values()))}


def test_each_kind_of_head_is_aligned_in_some_family() -> None:
    aligned_cases = {*FIRST.values(), *IN_TURN}
    assert {kind_of_head(name) for name in CASES} == {kind_of_head(name) for name in aligned_cases}
    assert len(IN_TURN) >= 10
    assert set(IN_TURN.values()) == {"weights", "activations"}


# Every other family and head is for `make check` and the page.
@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=() if n in {FIRST[family] for family in QUICK} else pytest.mark.slow) for n in CASES],
)
def test_a_family_and_head_goes_the_whole_way(
    name: str, tmp_path: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A family's first head is aligned both ways; of its other heads, whose encoder is the same, each kind in one way.

    For the page all are aligned both ways. How alike the matched units are takes longer to measure than all else; it is of
    the encoder: of a first head alone.
    """
    ways: tuple[str, ...] = ("weights", "activations")
    if name not in FIRST.values() and request.config.getoption("--architectures-table") is None:
        ways = (IN_TURN[name],) if name in IN_TURN else ()
    if name not in FIRST.values():
        monkeypatch.setattr(quality, "match_quality", lambda *_: None)
    config: dict[str, Any] = dict(CASES[name][0])
    family, text = config["model_type"], config["model_type"] not in (*IMAGES, "mlp")
    a, b = (save_checkpoint(tmp_path / f, config, seed=k, tokenizer=text) for k, f in enumerate("ab"))
    row = {"family": family, "head": config["architectures"][0], "case": name}
    recipe = make_recipe({"models": [str(a), str(b)], "output": str(tmp_path / "out")})
    run(recipe, options=RunOptions(recheck=True))
    left, right, merged = (load_file(f / "model.safetensors") for f in (a, b, tmp_path / "out"))
    floats = [n for n in left if left[n].is_floating_point()]
    assert merged.keys() == left.keys()
    assert all((merged[n] - (left[n] + right[n]) / 2).abs().max() < 1e-5 for n in floats if left[n].numel())
    row["linear, reloads"] = "✓"
    for by in ways:
        rows = write_rows_of_numbers if family == "mlp" else write_text
        sample = rows(tmp_path / "sample.txt", 24) if by == "activations" else None
        if sample and family in REFUSED:
            with pytest.raises(MergeError, match=REFUSED[family]) as refused:
                aligned(a, b, by, sample)
            message = str(refused.value).replace(f"{tmp_path}/", "")
            assert "\n" not in message
            row[f"by {by}: proof"] = f"refused: {message}"
        else:
            error, bound = aligned(a, b, by, sample)
            assert error < bound
            row[f"by {by}: proof"] = f"{error:.0e}"
    request.node.user_properties.append(("family table", row))
