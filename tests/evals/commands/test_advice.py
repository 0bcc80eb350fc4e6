"""Errors of evaluate-models name options of the command at hand, and no others."""

from __future__ import annotations

import ast
import json
from functools import cache
from pathlib import Path

import click
import pytest
from tiny import WORDS, bert_config, save_checkpoint, save_tokenizer

from evals.commands.advice import OPTION, fitting_advice, option_names
from evals.commands.evaluate_models import evaluate
from merge.errors import MismatchError

ROOT = Path(__file__).parents[3]
COMMANDS = dict(evaluate.commands)


@cache
def raised_texts() -> list[str]:
    """Return the texts of both packages that name an option and are neither docstrings nor declarations of options."""
    texts = []
    for package in ("merge", "evals"):
        for path in sorted((ROOT / package).rglob("*.py")):
            source = path.read_text(encoding="utf-8")
            for node in ast.walk(ast.parse(source)) if OPTION.search(source) else ():
                if isinstance(node, ast.JoinedStr):
                    text = "".join(str(p.value) if isinstance(p, ast.Constant) else "x" for p in node.values)
                elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                    text = node.value
                else:
                    continue
                if OPTION.search(text) and " " in text:
                    texts.append(text)
    return texts


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_no_text_of_ours_names_a_foreign_option_after_it_is_fitted(name: str) -> None:
    """Every text of both packages that names options, whoever raises it: what is left names options of the command."""
    options = option_names(COMMANDS[name])
    texts = raised_texts()
    assert len(texts) > 60
    foreign = [text for text in texts if set(OPTION.findall(text)) - options]
    assert foreign
    for text in texts:
        fitted = fitting_advice(text, options)
        assert set(OPTION.findall(fitted)) <= options
        if text not in foreign:
            assert fitted == text


def test_what_fits_is_kept() -> None:
    """The clause that helps stays; a sentence of foreign advice goes; the next line is not touched."""
    message = (
        "label sets differ: a/ has x; b/ has y. Classes are matched by name: set id2label, or say what becomes of the "
        "heads: --heads average, reference or drop.\nshapes differ. Choose one: --tokenizer union, reference or a model."
    )
    assert fitting_advice(message, {"--align"}) == (
        "label sets differ: a/ has x; b/ has y. Classes are matched by name: set id2label.\nshapes differ."
    )


def test_every_command_is_wrapped() -> None:
    for command in COMMANDS.values():
        assert isinstance(command, click.Command)
        assert command.callback is not None
        assert command.callback.__wrapped__ is not None  # type: ignore[attr-defined]


def test_a_barrier_between_models_of_other_labels_or_tokens_names_its_own_options(tmp_path: Path) -> None:
    """The pre-flight of a merge advises --heads and --tokenizer, which barrier has not."""
    rows = [{"premise": "the", "hypothesis": "a", "label": "neutral"}]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    a = save_checkpoint(tmp_path / "a", seed=1)
    labels = save_checkpoint(tmp_path / "labels", bert_config(labels=("entailment", "neutral", "no")), seed=2)
    tokens = save_checkpoint(tmp_path / "tokens", seed=2)
    save_tokenizer(tokens, words=[*reversed(WORDS)])
    for other, found in ((labels, "Classes are matched by name: set id2label"), (tokens, "vocabularies differ")):
        words = ["barrier", str(a), str(other), "--task", "mnli", "--data", str(tmp_path / "rows.jsonl")]
        with pytest.raises(MismatchError, match=found) as caught:
            evaluate.main(words, standalone_mode=False)
        assert set(OPTION.findall(str(caught.value))) <= option_names(COMMANDS["barrier"])
