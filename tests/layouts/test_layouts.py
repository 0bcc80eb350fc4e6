"""Every command on every layout: the right result, worked out from the weights that the layout was made of, or one line.

What each came to is written to docs/layouts.md by `make layouts-table`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from layouts.shelf import ALL, LAYOUTS, Layout
from tiny import write_text
from torch import Tensor

import evals
from merge.checkpoints.inputs import load_tokenizer
from merge.checkpoints.open import open_checkpoint
from merge.checkpoints.transformers_model import build, loading, loading_faults, model_class
from merge.errors import MergeError
from merge.layers.edit import edit_layers
from merge.layers.plans.plan import LayerPlan
from merge.publish.push import plan_push
from merge.recipe.recipe import make_recipe
from merge.run.report import Report
from merge.run.run import run
from merge.symmetry.architectures import spec_for

ROWS = [
    {"sentence": "the doctor saw the lawyer .", "label": 1},
    {"sentence": "a river near the doctor", "label": 0},
    {"sentence": "who helped", "label": 1},
]
SHARED = "albert"  # its layers are one layer, run several times


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[Path, Path]]:
    """Return the folders of the two models of a layout, written once."""

    @cache
    def written(name: str) -> tuple[Path, Path]:
        place = tmp_path_factory.mktemp("layout")
        a, b = (LAYOUTS[name].write(place / folder, seed) for seed, folder in enumerate("ab"))
        return a, b

    return written


def average(layout: Layout) -> dict[str, Tensor]:
    """Return the mean of the two models' own weights, before the layout did anything to them."""
    a, b = (layout.tensors(seed) for seed in (0, 1))
    return {name: (a[name] + b[name]) / 2 for name in a if not (_drops(layout) and "pooler" in name)}


def _drops(layout: Layout) -> bool:
    """Return whether the layout has no pooler."""
    return "missing pooler" in layout.notes


def loaded(folder: Path, layout: Layout) -> dict[str, Tensor]:
    """Return the weights that transformers loads for the layout's true class; nothing may be missing."""
    with loading():
        model, info = model_class(layout.true).from_pretrained(folder, output_loading_info=True)
    missing = {name for name in info["missing_keys"] if not (_drops(layout) and "pooler" in name)}
    assert loading_faults({**info, "missing_keys": missing, "unexpected_keys": ()}) == []
    return {name: tensor for name, tensor in model.state_dict().items() if name not in info["missing_keys"]}


def assert_equal(found: Mapping[str, Tensor], expected: Mapping[str, Tensor], tolerance: float) -> None:
    compared = [name for name in expected if name in found]
    assert len(compared) >= 0.9 * len(expected)
    assert max(float((found[n].float() - expected[n].float()).abs().max()) for n in compared) < tolerance


def merged(a: Path, b: Path, output: Path, **align: Any) -> Report:
    values = {"models": [str(a), str(b)], "output": str(output), **({"align": align} if align else {})}
    return run(make_recipe(values), dry_run=bool(align))


def merge(layout: Layout, a: Path, b: Path, place: Path) -> str:
    report = merged(a, b, place / "out")
    half = next(iter(open_checkpoint(str(a)).tensors.values())).dtype == "F16"
    assert_equal(loaded(place / "out", layout), average(layout), 1e-2 if half else 1e-6)
    for words in layout.notes:
        assert any(words in note for note in report.notes), (words, report.notes)
    assert all("\n" not in note and len(note) < 500 for note in report.notes)
    return "✓"


def kinds(folder: Path) -> list[str]:
    """Return every kind of axis of a model: all of them move, whether or not that would be chosen."""
    opened = open_checkpoint(str(folder)).encoder
    spec = spec_for(opened.config)
    return sorted({spec.kind(axis) for axis in spec.fit(opened.shapes) if axis not in spec.named})


def by_weights(layout: Layout, a: Path, b: Path, place: Path) -> str:
    proof = merged(a, b, place / "out", by="weights", axes=kinds(a)).rebased.aligned[0].proof
    assert 0 < proof.error < proof.bound
    return f"✓ {proof.error:.0e}"


def by_activations(layout: Layout, a: Path, b: Path, place: Path) -> str:
    text = write_text(place / "text.txt", 12)
    report = merged(a, b, place / "out", by="activations", text=str(text), samples=12, axes=kinds(a))
    proof = report.rebased.aligned[0].proof
    assert report.rebased.calibration is not None
    assert 0 < proof.error < proof.bound
    return f"✓ {proof.error:.0e}"


def drop(layout: Layout, a: Path, b: Path, place: Path) -> str:
    opened = open_checkpoint(str(a))
    edit_layers(opened, LayerPlan.drop("top", 1, 2), place / "dropped")
    whole = {name: t for name, t in layout.tensors(0).items() if not (_drops(layout) and "pooler" in name)}
    kept = {name: tensor for name, tensor in whole.items() if not re.search(r"\blayers?\.1\.", name)}
    assert len(kept) < len(whole) or layout.true["model_type"] == SHARED
    shallow = {**layout.true, **{k: 1 for k in ("num_hidden_layers", "n_layers") if k in layout.true}}
    assert_equal(loaded(place / "dropped", Layout("", shallow, notes=layout.notes)), kept, 1e-2)
    return "✓"


def score(layout: Layout, a: Path, b: Path, place: Path) -> str:
    """Compare accuracy with the one of transformers, one row at a time."""
    data = place / "rows.tsv"
    lines = ["sentence\tlabel", *(f"{row['sentence']}\t{row['label']}" for row in ROWS)]
    data.write_text("\n".join(lines) + "\n", encoding="utf-8")
    accuracy = evals.score(str(a), "sst2", data=str(data), cache=False)[0]["accuracy"]
    model, tokenizer = build(layout.true, layout.tensors(0)), load_tokenizer(a)
    with torch.inference_mode():
        logits = [model(**tokenizer(row["sentence"], return_tensors="pt")).logits for row in ROWS]
    right = sum(int(one.argmax()) == row["label"] for one, row in zip(logits, ROWS, strict=True))
    assert accuracy == pytest.approx(right / len(ROWS))
    return "✓"


def push(layout: Layout, a: Path, b: Path, place: Path) -> str:
    """Plan the upload of a merge: nothing of a wrapper, of a trainer or of another format goes along."""
    merged(a, b, place / "out")
    plan = plan_push(place / "out", "me/merged", None)
    names = {name for name, _ in plan.files}
    assert {"config.json", "README.md"} <= names
    assert not [name for name in names if name.endswith((".bin", ".pt", ".pth", ".pkl"))]
    assert plan.card.startswith("---\n")
    return "✓"


COMMANDS = dict(zip(ALL, (merge, by_weights, by_activations, drop, score, push), strict=True))
UNSCORED = "no classes|classif|head|score|embedding|logit|sentence"


def refusal(layout: Layout, command: str) -> str | None:
    """Return words of the line that refuses a command, by a pattern; None where it is right."""
    if command in layout.refused:
        return layout.refused[command]
    if command == "score" and not _has_classes(layout):
        return UNSCORED
    return None


def _has_classes(layout: Layout) -> bool:
    named = str(layout.true["architectures"][0]).endswith("ForSequenceClassification")
    return named and len(layout.true["id2label"]) == 2


# Quick: every layout is merged, and each other command meets layouts of each kind. Slow: every layout meets one more
# command, in turn. The whole grid is for the page.
QUICK = {
    "merge": tuple(LAYOUTS),
    "weights": ("bert-base-uncased", "all-mpnet-base-v2", "DDP of torch.compile"),
    "activations": ("codebert-base", "multilingual-e5-base", "no tokenizer"),
    "drop": ("all-distilroberta-v1", "Lightning", "bert-base-uncased"),
    "score": ("DistributedDataParallel", "shards of .bin", "all-MiniLM-L6-v2", "tokenizer of DistilBERT says BERT"),
    "push": ("Trainer checkpoint", "SetFit"),
}


def cells(whole: bool) -> list[Any]:
    """Return (layout, command) as parameters; the whole grid, or what is run at every change and in the full check."""
    others = ALL[1:]
    turns = {name: others[k % len(others)] for k, name in enumerate(LAYOUTS)}
    quick = [(name, command) for command in COMMANDS for name in QUICK[command]]
    slow = [(name, command) for name, command in turns.items() if name not in QUICK[command]]
    if whole:
        slow = [(name, c) for c in COMMANDS for name in LAYOUTS if name not in QUICK[c]]
    return [
        pytest.param(name, command, id=f"{command}-{name}", marks=marks)
        for chosen, marks in ((quick, ()), (slow, pytest.mark.slow))
        for name, command in chosen
    ]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "command" in metafunc.fixturenames:
        metafunc.parametrize(("name", "command"), cells(metafunc.config.getoption("--layouts-table") is not None))


def test_a_command_on_a_layout_is_right_or_says_why_not(
    name: str, command: str, pair: Callable[[str], tuple[Path, Path]], tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    layout, words = LAYOUTS[name], refusal(LAYOUTS[name], command)
    if "sentencepiece" in getattr(layout.tokenizer, "__qualname__", ""):
        pytest.importorskip("sentencepiece")
    a, b = pair(name)
    if words is None:
        outcome = COMMANDS[command](layout, a, b, tmp_path)
    else:
        with pytest.raises(MergeError, match=words) as refused:
            COMMANDS[command](layout, a, b, tmp_path)
        line = str(refused.value).replace(f"{a.parent}/", "")
        assert "\n" not in line
        assert not (tmp_path / "out").exists()
        outcome = f"refused: {line}"
    request.node.user_properties.append(("layouts table", {"layout": name, "command": command, "outcome": outcome}))
