"""stitch-models as it is typed: exit codes, one line for a fault, nothing written; the tables that --help shows."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from command_run import Run, command_run
from layered import checkpoint_of
from tiny import bert_config, save_checkpoint, write_text

from merge.commands import stitch_models
from merge.commands.stitch_models import stitch_main
from merge.layers.stitching import kinds


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("stitch-models")
    for seed, name in enumerate("ab"):
        save_checkpoint(folder / name, bert_config(intermediate_size=48), seed)
    write_text(folder / "text.txt", 30)
    (folder / "short.txt").write_text("a river\n" * 5)
    return folder


@pytest.fixture
def run(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Iterator[Run]:
    """Return a function that runs stitch-models in a fresh folder: exit code, stdout, stderr."""
    monkeypatch.chdir(tmp_path)
    with command_run("stitch-models", stitch_main, monkeypatch, capsys) as run_typed:

        def run_here(*arguments: str) -> tuple[int, str, str]:
            named = [str(store / word) if word in ("a", "b", "text.txt", "short.txt") else word for word in arguments]
            return run_typed(*named)

        yield run_here


def test_help_shows_the_tables_of_the_library() -> None:
    assert tuple(kinds.MAPS) == stitch_models.MAPS
    assert kinds.REFINEMENTS == stitch_models.REFINEMENTS
    assert kinds.TOKENS == stitch_models.TOKENS


def test_a_stitch_is_written_and_reported(run: Run, tmp_path: Path) -> None:
    code, out, _ = run("a", "b", "--at", "1:1", "--map", "identity", "--json", "-q")
    stated = json.loads(out)
    assert (code, stated["output"], stated["plan"]) == (0, "stitched", "A[0], B[1]")
    assert (tmp_path / "stitched/merge.json").is_file()
    assert run("a", "b", "--at", "1:1", "--map", "identity")[0] == 1  # it is there
    code, out, _ = run("a", "b", "--at", "1:1", "--dry-run", "-o", "other", "--text", "text.txt")
    assert code == 0
    assert "A[0], affine(A1->B1), B[1]" in out
    assert "nothing written (dry run)" in out
    assert sorted(path.name for path in tmp_path.iterdir()) == ["stitched"]


# What differs from A in B, and the words for it.
MIXED: dict[str, tuple[dict[str, Any], str]] = {
    "width": ({"hidden_size": 12}, "has states of 24 units (hidden_size) and"),
    "activation": ({"hidden_act": "relu"}, "hidden_act is 'gelu' in"),
    "norm": ({"layer_norm_eps": 1e-3}, "layer_norm_eps is 1e-12 in"),
    "heads": ({"num_attention_heads": 2}, "num_attention_heads is 4 in"),
    "feed-forward width": ({"intermediate_size": 40}, "intermediate_size is 48 in"),
}


@pytest.mark.parametrize("kind", MIXED)
def test_models_that_do_not_fit_together_are_one_line(kind: str, run: Run, store: Path, tmp_path: Path) -> None:
    changes, words = MIXED[kind]
    other = store / kind
    save_checkpoint(other, bert_config(intermediate_size=48) | changes, 1)
    code, out, err = run("a", str(other), "--at", "1:1", "--text", "text.txt", "-q")
    assert (code, out, list(tmp_path.iterdir())) == (1, "", [])
    assert words in err
    assert err.count("\n") == 1


def test_a_family_that_cannot_be_cut_is_one_line(run: Run, tmp_path: Path) -> None:
    """Two lists of layers; positions in a table that all layers read; a gate that bends every map."""
    cases = {
        ("bart", "identity"): "two lists of layers",
        ("mpnet", "identity"): "relative_attention_bias",
        ("llama", "affine"): "gated",
    }
    for (family, kind), words in cases.items():
        models = [str(checkpoint_of(family, seed).folder) for seed in (0, 1)]
        code, out, err = run(*models, "--at", "1:1", "--map", kind, "-q")
        assert code in (1, 2)
        assert (out, list(tmp_path.iterdir())) == ("", [])
        assert words in err
        assert err.count("\n") == 1


FAULTS: dict[tuple[str, ...], tuple[int, str]] = {
    ("--at", "3-4"): (2, "--at is two numbers, such as 3:4"),
    ("--at", "1:7"): (2, "has 2 layers, so it can be cut at 0 to 2, not at 7"),
    (): (2, "Missing option '--at'"),
    ("--at", "1:1", "--map", "afine"): (2, "'afine' is not one of"),
    ("--at", "1:1", "--map", "identity", "--text", "text.txt"): (2, "--map identity fits nothing"),
    ("--at", "1:1", "--steps", "5"): (2, "--steps belongs to --refine"),
    ("--at", "1:1", "--text", "none.txt"): (1, "none.txt"),
    ("--at", "1:1", "--text", "short.txt"): (
        1,
        "the map affine needs text of at least 24 tokens, as many as the stream has",
    ),
    ("--at", "1:1", "--map", "identity", "-o", "text.txt"): (1, "text.txt exists"),
    ("--at", "0:1", "--map", "identity"): (2, "keeps no layer of"),
    ("--at", "1:1", "--bogus"): (2, "No such option"),
}


@pytest.mark.parametrize("arguments", FAULTS)
def test_a_fault_is_one_line_and_nothing_is_written(arguments: tuple[str, ...], run: Run, tmp_path: Path) -> None:
    expected, says = FAULTS[arguments]
    code, out, err = run("a", "b", *arguments, "-q")
    assert (code, out) == (expected, "")
    assert err.startswith("stitch-models: ")
    assert says in err
    assert err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []
