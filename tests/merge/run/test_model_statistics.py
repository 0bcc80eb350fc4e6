"""Every model measured on text of its own task, checked with RegMean and Fisher in a few lines of transformers and numpy."""

from __future__ import annotations

import random
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file
from tiny import WORDS, bert_config, random_tensors, save_checkpoint

import merge
from merge.commands.merge_models import main
from merge.errors import RecipeError, UsageError
from merge.methods.statistics.record import StatisticsError
from merge.recipe.recipe import Recipe, make_recipe
from merge.run.run import run

QUERY, BIAS = "bert.encoder.layer.0.attention.self.query.weight", "bert.encoder.layer.0.output.dense.bias"
Array = np.ndarray[Any, Any]


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two classifiers, and a text of each one's task: other words in each."""
    monkeypatch.chdir(tmp_path)
    for seed, name in enumerate("ab"):
        save_checkpoint(tmp_path / name, bert_config(), tensors=random_tensors(bert_config(), seed, torch.float64))
    drawn = random.Random(0)
    for name, words in (("a", WORDS[:5]), ("b", WORDS[5:11])):
        lines = [" ".join(drawn.choices(words, k=drawn.randint(2, 9))) for _ in range(12)]
        (tmp_path / f"{name}.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return tmp_path


def merged(**values: Any) -> dict[str, torch.Tensor]:
    run(make_recipe({"models": ["a", "b"], "output": "out", **values}), force=True)
    return load_file("out/model.safetensors")


def own(**texts: str) -> list[dict[str, str]]:
    return [{"model": name, "statistics": text} for name, text in texts.items()]


def of_task(name: str, text: str) -> tuple[Any, list[Any]]:
    """Return the model as transformers loads it, and its inputs, one text at a time."""
    model = transformers.AutoModelForSequenceClassification.from_pretrained(name, dtype=torch.float64).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(name)
    lines = Path(text).read_text(encoding="utf-8").splitlines()
    return model, [tokenizer(line, return_tensors="pt") for line in lines]


def regmean(tasks: Sequence[tuple[str, str]], alpha: float) -> Array:
    """The paper's equations 2 and 3 for the query of layer 0, on what transformers hands to it."""
    left, right = 0.0, 0.0
    for name, text in tasks:
        model, inputs = of_task(name, text)
        layer, rows = model.get_submodule(QUERY.removesuffix(".weight")), []
        layer.register_forward_hook(lambda _module, given, _out, rows=rows: rows.append(given[0][0].detach().numpy()))
        with torch.no_grad():
            for one in inputs:
                model(**one)
        x = np.concatenate(rows)
        gram = x.T @ x / len(x)
        gram = alpha * gram + (1 - alpha) * np.diag(np.diag(gram))
        left, right = left + gram, right + gram @ layer.weight.detach().numpy().T
    return np.linalg.solve(left, right).T


def fisher(tasks: Sequence[tuple[str, str]]) -> Array:
    """sum F theta / sum F for a bias, F the expected squared gradient of log p(y|x), over the model's mean of it."""
    top, bottom = 0.0, 0.0
    for name, text in tasks:
        model, inputs = of_task(name, text)
        total = {n: torch.zeros_like(p) for n, p in model.named_parameters()}
        for one in inputs:
            log_p = model(**one).logits[0].log_softmax(-1)
            for y in range(len(log_p)):
                model.zero_grad()
                log_p[y].backward(retain_graph=True)
                for n, p in model.named_parameters():
                    total[n] += log_p[y].detach().exp() * p.grad.square() / len(inputs)
        mean = sum(float(t.sum()) for t in total.values()) / sum(t.numel() for t in total.values())
        share = (total[BIAS] / mean).clamp(min=1e-6).numpy()
        top, bottom = top + share * model.get_parameter(BIAS).detach().numpy(), bottom + share
    return top / bottom


def test_regmean_measures_every_model_on_its_own_text(place: Path) -> None:
    """And not on one text for both, nor on one another's."""
    result = merged(models=own(a="a.txt", b="b.txt"), method="regmean")[QUERY].numpy()
    assert np.abs(result - regmean([("a", "a.txt"), ("b", "b.txt")], 0.9)).max() < 1e-5
    for first, second in (("b.txt", "a.txt"), ("a.txt", "a.txt")):
        assert np.abs(result - regmean([("a", first), ("b", second)], 0.9)).max() > 1e-3


def test_fisher_measures_every_model_on_its_own_text(place: Path) -> None:
    result = merged(models=own(a="a.txt", b="b.txt"), method="fisher")[BIAS].numpy()
    assert np.abs(result - fisher([("a", "a.txt"), ("b", "b.txt")])).max() < 1e-5
    for first, second in (("b.txt", "a.txt"), ("a.txt", "a.txt")):
        assert np.abs(result - fisher([("a", first), ("b", second)])).max() > 1e-3


def typed(monkeypatch: pytest.MonkeyPatch, *words: str) -> int:
    monkeypatch.setattr(sys, "argv", ["merge-models", *words])
    try:
        main()
    except SystemExit as stop:
        return int(stop.code or 0)
    return 0


@pytest.mark.parametrize(
    ("method", "kind"), [("regmean", "gram"), pytest.param("fisher", "fisher", marks=pytest.mark.slow)]
)
def test_files_of_statistics_are_what_a_run_measures(
    method: str, kind: str, place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As flags with and without the model's name, in a recipe beside the models or together, and from Python."""
    expected = merged(models=own(a="a.txt", b="b.txt"), method=method)
    for name in "ab":
        words = ("statistics", name, "--kind", kind, "--text", f"{name}.txt", "-q", "-o", f"{name}.safetensors")
        assert typed(monkeypatch, *words) == 0
    flags = ("a", "b", "--method", method, "-q", "--force", "-o", "out")
    ways: list[tuple[str, ...]] = [
        ("--statistics", "a=a.txt", "--statistics", "b=b.txt"),
        ("--statistics", "b=b.safetensors", "--statistics", "a=a.safetensors"),
        ("--statistics", "b.safetensors", "--statistics", "a.safetensors"),
        ("--statistics", "b.safetensors", "--statistics", "./a=a.txt"),
    ]
    for way in ways:
        assert typed(monkeypatch, *flags, *way) == 0, capsys.readouterr().err
        found = load_file("out/model.safetensors")
        assert all(torch.equal(found[name], tensor) for name, tensor in expected.items()), way
    for values in (
        {"models": own(a="a.safetensors", b="b.safetensors")},
        {"statistics": {"files": ["b.safetensors", "a.safetensors"]}},
    ):
        found = merged(method=method, **values)
        assert all(torch.equal(found[name], tensor) for name, tensor in expected.items()), values
    texts = [Path(f"{name}.txt").read_text(encoding="utf-8").splitlines() for name in "ab"]
    for each in (texts, ["a.safetensors", "b.txt"]):
        model = merge.merge(["a", "b"], method=method, statistics=each)
        assert torch.equal(load_file(model.folder / "model.safetensors")[QUERY], expected[QUERY])
    other = merged(models=own(a="b.txt", b="a.txt"), method=method)
    assert any(not torch.equal(other[name], tensor) for name, tensor in expected.items())


def test_one_text_for_all_is_a_choice_that_is_named(place: Path) -> None:
    """Nobody is measured on a text that nobody chose: not on the package's own, not on another model's."""
    with pytest.raises(
        RecipeError, match="regmean weighs .* task, and a and b have none. Give each .* --statistics a=FILE"
    ):
        make_recipe({"models": ["a", "b"], "method": "regmean"})
    with pytest.raises(RecipeError, match="fisher weighs .* and b has none"):
        make_recipe({"models": [{"model": "a", "statistics": "a.txt"}, "b"], "method": "fisher"})
    for text in ("a.txt", "built-in"):
        values = {
            "models": ["a", "b"],
            "output": "out",
            "method": "regmean",
            "statistics": {"text": text, "samples": 8},
        }
        report = run(make_recipe(values), force=True)
        assert any(f"a and b were measured on one text, {text}" in note for note in report.notes)
    values = {"models": own(a="a.txt", b="b.txt"), "output": "out", "method": "regmean"}
    assert not any("one text" in note for note in run(make_recipe(values), force=True).notes)


def test_a_recipe_with_statistics_reads_back(place: Path) -> None:
    values = {
        "models": [
            {"model": "a", "statistics": {"text": "a.txt", "text_column": "t", "samples": 3}},
            *own(b="b.safetensors"),
        ],
        "method": "fisher",
        "statistics": {"files": "c.safetensors"},
    }
    recipe = make_recipe(values)
    Path("r.yaml").write_text(recipe.to_yaml(), encoding="utf-8")
    from merge.recipe.recipe import read_recipe

    assert read_recipe(Path("r.yaml")) == recipe
    assert isinstance(recipe, Recipe)


REFUSED: list[tuple[tuple[str, ...], int, str]] = [
    (("--statistics", "c=a.txt"), 2, "'c' is not one of the models. Write MODEL=FILE with one of a, b"),
    (("--statistics", "a.txt"), 2, "'a.txt' names no model"),
    (("--statistics", "a="), 2, "expected a file after a="),
    (("--statistics", "a=a.txt", "--statistics", "a=b.txt"), 2, "given twice for a"),
    (("--statistics", "a=a.txt"), 2, "and b has none"),
    (("--statistics", "a=a.txt", "--statistics", "b=none.safetensors"), 1, "none.safetensors cannot be read"),
    (("--statistics", "a=a.txt", "--statistics", "b=none.txt"), 1, "none.txt"),
    (("--statistics", "a.safetensors"), 2, "no file holds gram statistics of b"),
    (("--statistics", "a.safetensors", "--statistics", "b=a.safetensors"), 1, "was measured of another model"),
    (
        ("--statistics", "a=a.txt", "--statistics", "b=f.safetensors"),
        1,
        "f.safetensors holds fisher statistics, expected gram",
    ),
    (("--statistics", "a.safetensors", "--statistics", "a=a.safetensors", "--statistics", "b=b.txt"), 2, "Give one"),
    (("--statistics", "c.safetensors", "--statistics-text", "a.txt"), 1, "which is none of a, b"),
]


@pytest.fixture
def files(place: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    save_checkpoint(place / "c", seed=9)
    for name, kind, output in (("a", "gram", "a"), ("b", "fisher", "f"), ("c", "gram", "c")):
        words = (
            "statistics",
            name,
            "--kind",
            kind,
            "--text",
            "a.txt",
            "--samples",
            "2",
            "-q",
            "-o",
            f"{output}.safetensors",
        )
        assert typed(monkeypatch, *words) == 0
    return place


def test_what_cannot_be_is_one_line(
    files: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for words, code, expected in REFUSED:
        assert typed(monkeypatch, "a", "b", "--method", "regmean", "-o", "no", *words) == code, words
        lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("merge-models: ")]
        assert len(lines) == 1, lines
        assert expected in lines[0]
        assert not (files / "no").exists()


def test_statistics_that_no_method_reads_are_refused(place: Path) -> None:
    with pytest.raises(RecipeError, match="read by fisher and regmean alone, not by linear"):
        make_recipe({"models": own(a="a.txt", b="b.txt")})
    with pytest.raises(RecipeError, match="either a file of merge-models statistics, or a text"):
        make_recipe({"models": [{"model": "a", "statistics": {"samples": 3}}, "b"], "method": "fisher"})
    with pytest.raises(UsageError, match="1 statistics for 2 models"):
        merge.merge(["a", "b"], method="fisher", statistics=[["x"]])
    with pytest.raises(UsageError, match="one text for 2 models"):
        merge.merge(["a", "b"], method="fisher", statistics="a.txt")


def test_a_statistics_file_of_another_shape_is_refused(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that says it is of this model, and is not."""
    Path("x.safetensors").write_bytes(b"no")
    with pytest.raises(StatisticsError, match="cannot be read as statistics"):
        merged(method="fisher", statistics={"files": ["x.safetensors"], "text": "a.txt"})
