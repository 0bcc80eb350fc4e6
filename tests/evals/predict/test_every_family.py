"""Scores do not depend on batches: every family's logits are those of transformers alone, one row at a time, without padding."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from classifier_families import CLASSIFIERS, classifier_config
from families import LABELS
from tiny import NLI, save_checkpoint, sentence
from torch import Tensor

import evals.predict.predictor
from evals.predict.predictor import make_predictor
from evals.tasks.task import Rows
from merge.checkpoints.inputs import Encoded, batch_tokens
from merge.checkpoints.open import open_checkpoint
from merge.checkpoints.transformers_model import loading

GENERATOR = random.Random(0)
TEXTS = [(sentence(GENERATOR, 9), sentence(GENERATOR, 4)) for _ in range(8)]
QUICK = ("bert", "xlnet", "gpt2", "bart", "convbert")
# Families whose rows of one length share batches, as padding is read by a convolution, a transform or a pooling.
ONE_LENGTH = {"convbert", "fnet", "mobilebert", "nystromformer", "yoso"}


def rows_of(texts: list[tuple[str, ...]]) -> Rows:
    return Rows(tuple(texts), (0,) * len(texts), NLI, "made", "test", tuple(map(str, range(len(texts)))))


def changed(path: Path, **values: Any) -> None:
    """Change keys of a JSON file."""
    path.write_text(json.dumps(json.loads(path.read_text(encoding="utf-8")) | values), encoding="utf-8")


def one_by_one(folder: Path, texts: list[tuple[str, ...]]) -> Tensor:
    """Return logits as transformers alone computes them, a fresh model reading one row after another."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(str(folder))
    with loading():
        model = transformers.AutoModelForSequenceClassification.from_pretrained(str(folder)).eval()
    with torch.no_grad():
        return torch.cat([model(**tokenizer(*text, return_tensors="pt")).logits for text in texts])


def ours(folder: Path, texts: list[tuple[str, ...]] = TEXTS) -> tuple[Tensor, Encoded]:
    predictor = make_predictor(open_checkpoint(str(folder)), cache=False)
    encoded = predictor.encode(rows_of(texts))
    return predictor.logits(encoded), encoded


def assert_equal(logits: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(logits, expected, rtol=0, atol=1e-5 * max(1.0, float(expected.abs().max())))
    assert float(expected.std()) > 0.05  # else any logits would do


def case(name: str) -> Any:
    return pytest.param(name, marks=[] if name in QUICK else pytest.mark.slow)


@pytest.mark.parametrize("name", [case(name) for name in CLASSIFIERS])
def test_a_row_has_the_logits_that_it_has_alone(name: str, tmp_path: Path) -> None:
    """Padding on the tokenizer's side or the other, with the config's pad token or the tokenizer's: nothing changes a row."""
    folder = save_checkpoint(tmp_path / name, classifier_config(name), seed=1)
    logits, encoded = ours(folder)
    assert_equal(logits, one_by_one(folder, TEXTS))
    assert (len(encoded.batches) > 1) == (name in ONE_LENGTH)
    assert any("depend on padding" in note for note in encoded.notes) == (name in ONE_LENGTH)
    changed(folder / "tokenizer_config.json", padding_side="left")
    changed(folder / "config.json", pad_token_id=0 if CLASSIFIERS[name][1].get("pad_token_id") else 1)
    assert_equal(ours(folder)[0], one_by_one(folder, TEXTS))


def test_there_are_enough_families() -> None:
    assert len(CLASSIFIERS) >= 25
    assert CLASSIFIERS.keys() >= ONE_LENGTH


@pytest.mark.parametrize("name", ["xlnet", "gpt2", "fnet", "convbert"])
def test_padded_as_ever_these_families_are_wrong(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The control: padded on the right with the tokenizer's token and never measured, rows get other logits."""

    def as_ever(_model: Any, tokens: Any, budget: int, _source: str) -> Encoded:
        return batch_tokens(type(tokens)(tokens.fields, tokens.lengths, 0, tokens.cut), budget)

    monkeypatch.setattr(evals.predict.predictor, "plan_batches", as_ever)
    folder = save_checkpoint(tmp_path / name, classifier_config(name), seed=1)
    expected = one_by_one(folder, TEXTS)
    assert float((ours(folder)[0] - expected).abs().max()) > 1e-2


def test_a_tokenizer_on_the_wrong_side_is_said(tmp_path: Path) -> None:
    folder = save_checkpoint(tmp_path / "a", classifier_config("xlnet"), seed=1)
    assert ours(folder)[1].notes == (
        f"{folder}: its tokenizer pads on the right, where its logits change; padded on the left, they are those of one row "
        "at a time",
    )
    changed(folder / "tokenizer_config.json", padding_side="left")
    assert ours(folder)[1].notes == ()


def test_without_a_pad_token_each_row_is_alone_and_it_is_said(tmp_path: Path) -> None:
    """GPT-2's head finds the end of a row by the pad token, and refuses a batch where the config names none."""
    folder = save_checkpoint(tmp_path / "a", classifier_config("gpt2"), seed=1)
    changed(folder / "config.json", pad_token_id=None)
    logits, encoded = ours(folder)
    assert_equal(logits, one_by_one(folder, TEXTS))
    assert [len(rows) for rows in encoded.rows] == [1] * len(TEXTS)
    assert len(encoded.notes) == 1
    assert "its config names no pad_token_id" in encoded.notes[0]


def test_rows_that_change_one_another_are_predicted_alone(tmp_path: Path) -> None:
    """Nystromformer scales its iteration by a maximum over the whole batch; its segments ask for rows of eight tokens."""
    config = classifier_config("nystromformer", num_landmarks=4, segment_means_seq_len=8, conv_kernel_size=3)
    folder = save_checkpoint(tmp_path / "a", config, seed=1)
    generator = random.Random(3)
    words = ["the", "a", "doctor", "lawyer", "saw", "helped", "and", "who"]
    texts = [(" ".join(generator.choices(words, k=3)), " ".join(generator.choices(words, k=2))) for _ in range(8)]
    logits, encoded = ours(folder, texts)
    assert_equal(logits, one_by_one(folder, texts))
    assert [len(rows) for rows in encoded.rows] == [1] * 8
    assert "each row is predicted alone" in encoded.notes[0]


def test_a_long_row_does_not_change_how_a_short_one_is_read(tmp_path: Path) -> None:
    """BigBird goes over to full attention at its first short text and keeps to it: here each row meets a model as it was."""
    folder = save_checkpoint(tmp_path / "a", classifier_config("big_bird"), seed=1)
    texts = [("the doctor saw " * 16, "who"), ("the", "a"), ("a lawyer helped " * 16, "river")]
    alone = torch.cat([one_by_one(folder, [text]) for text in texts])
    assert_equal(ours(folder, texts)[0], alone)
    after_a_short_one = one_by_one(folder, texts[1:])[1]
    assert float((after_a_short_one - alone[2]).abs().max()) > 1e-3


def test_a_bfloat16_model_is_measured_in_float32(tmp_path: Path) -> None:
    """In bfloat16 the difference that padding makes to FNet hides in the rounding."""
    folder = save_checkpoint(tmp_path / "a", classifier_config("fnet", **LABELS), seed=1)
    predictor = make_predictor(open_checkpoint(str(folder)), torch.bfloat16, cache=False)
    assert len(predictor.encode(rows_of(TEXTS)).batches) > 1
    assert predictor.model.dtype == torch.bfloat16
