"""evaluate-models similarity and evals.similarity: on every family, between families, with one line for each bad input."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from classifier_families import LOOKED_INSIDE, classifier_config
from click.testing import CliRunner
from quick import quick_on
from tiny import WORDS, bert_config, save_checkpoint, save_tokenizer, write_text

import evals
from evals.commands.evaluate_models import evaluate
from evals.inside import compare as evals_compare
from merge.checkpoints.inputs import load_tokenizer
from merge.checkpoints.open import open_encoder
from merge.checkpoints.transformers_model import build

FAMILIES = (*LOOKED_INSIDE, "deberta", "nomic_bert")


@pytest.fixture
def zoo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for seed, name in enumerate("ab"):
        save_checkpoint(tmp_path / name, seed=seed)
    write_text(tmp_path / "text.txt", 30)
    return tmp_path


def run(*words: str) -> Any:
    return CliRunner().invoke(evaluate, ["similarity", *words])


@pytest.mark.slow
def test_the_command_writes_its_files_and_the_function_returns_the_same(zoo: Path) -> None:
    done = run("a", "b", "--text", "text.txt", "-o", "out")
    assert done.exit_code == 0, done.output
    assert "rows in random order give" in done.stdout
    assert "\nchance " in done.stdout
    lines = done.stdout.splitlines()
    first, last = (next(k for k, line in enumerate(lines) if line.startswith(word)) for word in ("site of A", "chance"))
    assert max(map(len, lines[first : last + 1])) <= 80
    made = [path.suffix for path in (zoo / "out").iterdir()]
    assert [made.count(suffix) for suffix in (".csv", ".png", ".svg")] == [2, 1, 1]
    assert "Similarity of representations" in (zoo / "out" / "index.html").read_text()
    record = json.loads((zoo / "out" / "results.json").read_text())["results"][0]
    same = evals.similarity("a", "b", text="text.txt").record
    assert (same["matrices"], same["pairs"]) == (record["matrices"], record["pairs"])


def test_rows_are_means_over_tokens_or_tokens(zoo: Path) -> None:
    """CKA of layer 1 of both models from hidden states of transformers, one text at a time, in numpy."""
    states: dict[str, list[torch.Tensor]] = {}
    for name in "ab":
        checkpoint = open_encoder(name)
        model = build(checkpoint.config, {n: checkpoint.tensor(n) for n in checkpoint.tensors}, torch.float32)
        tokenizer = load_tokenizer(zoo / name)
        texts = [
            json.loads(line) if line.startswith('"') else line for line in (zoo / "text.txt").read_text().splitlines()
        ]
        with torch.no_grad():
            outputs = [model(**tokenizer(text, return_tensors="pt"), output_hidden_states=True) for text in texts]
        states[name] = [output.hidden_states[2][0].double() for output in outputs]
    by_text = [torch.stack([each.mean(0) for each in states[name]]) for name in "ab"]
    by_token = [torch.cat(states[name]) for name in "ab"]
    for rows, (x, y) in (("texts", by_text), ("tokens", by_token)):
        x, y = (each - each.mean(0) for each in (x, y))
        expected = (x.T @ y).norm() ** 2 / ((x.T @ x).norm() * (y.T @ y).norm())
        measured = evals.similarity("a", "b", text="text.txt", rows=rows, measures=["cka"]).record
        assert measured["matrices"]["cka"][2][2] == pytest.approx(float(expected), abs=1e-5)
        assert measured["row_count"] == len(x)


def test_whole_texts_are_resampled_by_token(zoo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tokens of a text are not independent: those of one have one number."""
    seen: list[torch.Tensor] = []

    def compare(a: Any, b: Any, texts: torch.Tensor, *more: Any) -> Any:
        seen.append(texts)
        return real(a, b, texts, *more)

    real = evals_compare.compare
    monkeypatch.setattr(evals_compare, "compare", compare)
    evals.similarity("a", "b", text="text.txt", rows="tokens", measures=["cka"])
    texts = (zoo / "text.txt").read_text().splitlines()
    lengths = [len(load_tokenizer(zoo / "a")(text)["input_ids"]) for text in texts]
    assert sorted(seen[0].bincount().tolist()) == sorted(lengths)
    assert seen[0].tolist() == sorted(seen[0].tolist())


@pytest.mark.parametrize("family", quick_on(("distilbert",), FAMILIES))
def test_every_family_answers_and_is_like_itself(family: str, tmp_path: Path) -> None:
    """Against a BERT of another width, and against itself."""
    save_checkpoint(tmp_path / "a", classifier_config(family))
    save_checkpoint(tmp_path / "b", bert_config(hidden_size=32, num_hidden_layers=1))
    text = str(write_text(tmp_path / "text.txt", 16))
    a, b = (str(tmp_path / name) for name in "ab")
    record = evals.similarity(a, b, text=text, measures=["cka", "neighbours"]).record
    assert [len(record["sites"][side]) for side in "ab"] == [len(record["matrices"]["cka"]), 2]
    assert all(0 <= value <= 1 for row in record["matrices"]["neighbours"] for value in row)
    own = evals.similarity(a, a, text=text, measures=["cka"]).record["matrices"]["cka"]
    assert [own[k][k] for k in range(len(own))] == pytest.approx([1] * len(own), abs=1e-9)


def test_a_model_of_two_inputs_is_named(zoo: Path) -> None:
    save_checkpoint(zoo / "t5", classifier_config("t5"))
    refused = run("a", "t5", "--text", "text.txt")
    assert "t5 is a T5ForSequenceClassification: this works for models with one text input" in str(refused.exception)


def test_models_of_other_tokenizers_are_compared_by_text_alone(zoo: Path) -> None:
    save_checkpoint(zoo / "other", tokenizer=False)
    save_tokenizer(zoo / "other", WORDS[::-1])
    done = run("a", "other", "--text", "text.txt")
    assert done.exit_code == 0
    assert "split these texts into other tokens: a row is the mean" in done.stderr
    refused = run("a", "other", "--text", "text.txt", "--rows", "tokens")
    assert "Compare them by text: --rows texts" in str(refused.exception)


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (("--labels", "yes,no"), "similarity reads no labels"),
        (("--site", "output of layer"), "unknown site 'output of layer'"),
        (("--site", "pooler", "--rows", "tokens"), "pooler and logits have a row a text"),
        (("--text", "short.txt"), "too short: 4 texts and 8 rows are compared at least"),
    ],
)
def test_a_bad_input_is_one_line(zoo: Path, words: tuple[str, ...], line: str) -> None:
    (zoo / "short.txt").write_text("the doctor .\na lawyer .\n")
    done = run("a", "b", *(() if "--text" in words else ("--text", "text.txt")), *words, "-o", "out")
    assert line in str(done.exception)
    assert not (zoo / "out").exists()
