"""Every input that edit-layers cannot take: one line that says why, exit code 1 or 2, and nothing written."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from command_run import Run, command_run
from families_more import CASES
from layered import checkpoint_of
from tiny import bert_config, save_checkpoint, write_text

from merge.commands.edit_layers import edit_main

BERT: dict[str, Any] = bert_config(num_hidden_layers=3, intermediate_size=48)
# What differs from BERT in a second model, and the words for it.
MIXED: dict[str, tuple[dict[str, Any], str]] = {
    "width": ({"hidden_size": 12}, "hidden_size is 24 in"),
    "feed-forward width": ({"intermediate_size": 40}, "intermediate_size is 48 in"),
    "activation": ({"hidden_act": "relu"}, "hidden_act is 'gelu' in"),
    "norm": ({"layer_norm_eps": 1e-3}, "layer_norm_eps is 1e-12 in"),
    "positions": ({"max_position_embeddings": 64}, "max_position_embeddings is 32 in"),
    "heads": ({"num_attention_heads": 2}, "num_attention_heads is 4 in"),
}


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a model m, a second one of each kind of MIXED, and a text of one line and of many."""
    folder = tmp_path_factory.mktemp("edit-layers")
    save_checkpoint(folder / "m", BERT)
    for name, (changes, _) in MIXED.items():
        save_checkpoint(folder / name, BERT | changes, 1)
    (folder / "short.txt").write_text("a river\n" * 5)
    write_text(folder / "text.txt", 30)
    save_checkpoint(folder / "unknown", CASES["NomicBertModel"], tokenizer=False)
    return folder


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[Run]:
    """Return a function that runs edit-layers in an empty folder: exit code, stdout, stderr."""
    monkeypatch.chdir(tmp_path)
    with command_run("edit-layers", edit_main, monkeypatch, capsys) as run_here:
        yield run_here


def refused(run: Run, place: Path, words: str, *arguments: str) -> None:
    code, out, err = run(*arguments, "-q")
    assert code in (1, 2)
    assert out == ""
    assert err.startswith("edit-layers: ")
    assert err.count("\n") == 1
    assert words in err
    assert list(place.iterdir()) == []


@pytest.mark.parametrize("kind", MIXED)
@pytest.mark.parametrize("way", ["splice", "mean"])
def test_models_that_do_not_fit_together(kind: str, way: str, run: Run, store: Path, tmp_path: Path) -> None:
    plan = {"splice": "A[0-1], B[2]", "mean": "A0, mean(A1, B1), A2"}[way]
    models = f"A={store / 'm'}", f"B={store / kind}"
    refused(run, tmp_path, MIXED[kind][1], "apply", *models, "--plan", plan)


@pytest.mark.parametrize(
    ("family", "changes", "words"),
    [
        ("deberta", {"pos_att_type": "c2p"}, "pos_att_type is "),
        ("llama", {"rope_theta": 500.0}, "rope_"),
    ],
)
def test_other_kinds_of_positions_do_not_fit_together(
    family: str, changes: dict[str, Any], words: str, run: Run, tmp_path: Path
) -> None:
    models = [checkpoint_of(family).folder, checkpoint_of(family, 1, **changes).folder]
    refused(run, tmp_path, words, "apply", f"A={models[0]}", f"B={models[1]}", "--plan", "A[0-1], B[2-3]")


# The model, by its name in the store or by family; the plan; further flags; the words.
SHORT, LONG = ("--text", "short.txt"), ("--text", "text.txt")
CANNOT = {
    "no layer in ALBERT": ("albert", "none", (), "needs at least one layer"),
    "no first layer in ModernBERT": ("modernbert", "A[1-3]", (), "only the first layer has no attn_norm"),
    "two lists of layers": ("bart", "A[0-1]", (), "a bart model has 2 lists of layers. Give one"),
    "a family without a table": ("unknown", "A0", (), "models cannot be edited: the architecture is not in the table"),
    "no sublayer of that name": ("m", "A[0]-cross", (), "have no sublayer 'cross'"),
    "a norm that every layer runs": ("m", "A[0]-ffn-norm", (), "no checkpoint of bert can leave that norm out"),
    "a refit of too little text": ("m", "A0, A2", ("--repair", "seam", *SHORT), "needs text of at least 24 tokens"),
    "a fit of too little text": ("m", "A0, affine(A1->A3)", SHORT, "needs text of at least 24 tokens"),
    "a narrow feed-forward part": ("feed-forward width", "A0, affine(A1->A3)", LONG, "48; this model has 40"),
    "a refit of shared weights": ("albert", "A[0,3]", ("--repair", "seam", *LONG), "albert"),
    "an output that exists": ("m", "A0", ("-o", "text.txt"), "text.txt exists"),
}  # fmt: skip


@pytest.mark.parametrize("case", CANNOT)
def test_what_a_plan_cannot_ask_for(case: str, run: Run, store: Path, tmp_path: Path) -> None:
    name, plan, flags, words = CANNOT[case]
    model = store / name if (store / name).exists() else checkpoint_of(name).folder
    named = [str(store / word) if (store / word).exists() else word for word in flags]
    refused(run, tmp_path, words, "apply", str(model), "--plan", plan, *named)


@pytest.mark.parametrize(
    ("plan", "place", "words"),
    [
        ("A[0-1], A[x]", 10, "expected the number of a layer, found 'x'"),
        ("A[0-3]", 4, "there is no layer 3 of A, which has layers 0 to 2"),
        ("A0, mean(A1, A7)", 14, "there is no layer 7 of A"),
        ("A0, affine(A1->A9)", 16, "there is no state 9 of A, which has states 0 to 3"),
    ],
)
def test_a_mistake_in_a_plan_has_two_lines_more_for_its_place(
    plan: str, place: int, words: str, run: Run, store: Path, tmp_path: Path
) -> None:
    code, out, err = run("apply", str(store / "m"), "--plan", plan, "-q")
    line, shown, caret = err.splitlines()
    assert (code, out, list(tmp_path.iterdir())) == (2, "", [])
    assert line.startswith("edit-layers: ")
    assert words in line
    assert (shown, caret) == (f"  {plan}", f"  {' ' * place}^")
