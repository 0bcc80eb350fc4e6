"""Predictions are what a plain forward pass of one row at a time says, whatever the batching."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from quick import quick_on
from tiny import WORDS, bert_config, random_tensors, save_checkpoint, save_tokenizer
from torch import Tensor

from evals.predict.logits import CPU_TOKENS, encode_rows, predict, task_logits, token_budget
from evals.predict.predictor import build_written
from evals.tasks import TASKS
from evals.tasks.task import Rows
from merge.checkpoints.checkpoint import Checkpoint
from merge.checkpoints.inputs import Encoded
from merge.checkpoints.open import open_checkpoint
from merge.errors import TaskError

MNLI, HANS = TASKS["mnli"], TASKS["hans"]


def rows_of(texts: list[tuple[str, ...]]) -> Rows:
    return Rows(tuple(texts), (0,) * len(texts), MNLI.labels, "made", "test", tuple(map(str, range(len(texts)))))


def drawn_texts(count: int, longest: int, pairs: bool, seed: int = 0) -> list[tuple[str, ...]]:
    """Return texts of 1 to `longest` words each, in random order of length."""
    generator = random.Random(seed)

    def text() -> str:
        return " ".join(generator.choice(WORDS[:11]) for _ in range(generator.randint(1, longest)))

    return [(text(), text()) if pairs else (text(),) for _ in range(count)]


def one_by_one(folder: Path, texts: list[tuple[str, ...]], longest: int = 32) -> Tensor:
    """Return logits as transformers alone computes them: one row at a time, no padding, its own truncation."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(str(folder))
    model = transformers.AutoModelForSequenceClassification.from_pretrained(str(folder)).eval()
    with torch.no_grad():
        return torch.cat(
            [model(**tokenizer(*t, truncation=True, max_length=longest, return_tensors="pt")).logits for t in texts]
        )


def ours(checkpoint: Checkpoint, texts: list[tuple[str, ...]]) -> tuple[Tensor, Encoded]:
    encoded = encode_rows(checkpoint, rows_of(texts))
    return predict(build_written(checkpoint), encoded), encoded


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_checkpoint(tmp_path_factory.mktemp("models") / "a", seed=1)


@pytest.fixture(scope="module")
def checkpoint(folder: Path) -> Checkpoint:
    return open_checkpoint(str(folder))


@pytest.mark.parametrize("pairs", quick_on((True,), (True, False)), ids=["pairs", "texts"])
def test_logits_equal_a_plain_forward_pass_row_by_row(folder: Path, checkpoint: Checkpoint, pairs: bool) -> None:
    """Several batches of mixed lengths, each row back in its place; any other order would differ by far more."""
    texts = drawn_texts(150, 13, pairs)
    logits, encoded = ours(checkpoint, texts)
    expected = one_by_one(folder, texts)
    assert len(encoded.batches) > 1
    assert logits.dtype == torch.float32
    assert torch.allclose(logits, expected, atol=1e-5, rtol=0)
    assert not torch.allclose(logits, expected.roll(1, 0), atol=1e-1, rtol=0)


def test_the_order_of_rows_does_not_change_a_row(checkpoint: Checkpoint) -> None:
    """Shuffled, a row meets other rows in its batch and other padding, and says the same."""
    texts = drawn_texts(120, 14, pairs=True)
    order = random.Random(7).sample(range(120), 120)
    straight, _ = ours(checkpoint, texts)
    shuffled, _ = ours(checkpoint, [texts[k] for k in order])
    assert torch.allclose(straight[order], shuffled, atol=1e-5, rtol=0)
    assert not torch.allclose(straight, shuffled, atol=1e-1, rtol=0)


def test_padding_never_matters(checkpoint: Checkpoint) -> None:
    """A short row batched with one of the full length is padded to it, and keeps its logits.

    The control: the same batch with its mask set to ones, where padding is read as text.
    """
    short, long = ("the doctor", "saw"), ("the " * 20, "river")
    alone, _ = ours(checkpoint, [short])
    together, encoded = ours(checkpoint, [short, long])
    assert len(encoded.batches) == 1
    assert int(encoded.batches[0]["attention_mask"].sum(1).min()) < encoded.batches[0]["input_ids"].shape[1] // 2
    assert torch.allclose(alone[0], together[0], atol=1e-5, rtol=0)
    unmasked = {**encoded.batches[0], "attention_mask": torch.ones_like(encoded.batches[0]["attention_mask"])}
    wrong = predict(build_written(checkpoint), Encoded((unmasked,), encoded.rows, 0))
    assert not torch.allclose(alone[0], wrong[0], atol=1e-3, rtol=0)


def test_every_row_is_in_one_batch_and_batches_are_bounded(checkpoint: Checkpoint) -> None:
    texts = drawn_texts(300, 14, pairs=True, seed=2)
    encoded = encode_rows(checkpoint, rows_of(texts))
    assert sorted(k for rows in encoded.rows for k in rows) == list(range(300))
    assert all(batch["input_ids"].numel() <= CPU_TOKENS for batch in encoded.batches)


def masks_of_layers(monkeypatch: pytest.MonkeyPatch, model: Any, encoded: Encoded) -> list[bool]:
    """Return, for each batch, whether its layers were given an attention mask."""
    seen: list[bool] = []
    layer = model.bert.encoder.layer[0].attention.self
    plain = layer.forward

    def forward(hidden: Tensor, attention_mask: Tensor | None = None, **others: Any) -> Any:
        seen.append(attention_mask is not None)
        return plain(hidden, attention_mask=attention_mask, **others)

    monkeypatch.setattr(layer, "forward", forward, raising=False)
    predict(model, encoded)
    return seen[-len(encoded.batches) :]


def test_batches_of_one_length_need_no_mask(monkeypatch: pytest.MonkeyPatch, checkpoint: Checkpoint) -> None:
    """200 rows of each of two lengths: a batch is half full where the length changes, and ends there.

    The control: a few rows of each of many lengths share a batch, which is padded and has a mask.
    """
    model = build_written(checkpoint)
    even = encode_rows(checkpoint, rows_of([("the",), ("the lawyer",)] * 200))
    assert [tuple(batch["input_ids"].shape) for batch in even.batches] == [(200, 3), (200, 4)]
    assert masks_of_layers(monkeypatch, model, even) == [False, False]
    mixed = encode_rows(checkpoint, rows_of([("the " * k,) for k in range(1, 12)]))
    assert masks_of_layers(monkeypatch, model, mixed) == [True]


def test_a_batch_beyond_memory_is_halved_until_it_fits(monkeypatch: pytest.MonkeyPatch, checkpoint: Checkpoint) -> None:
    """A device with room for 100 tokens: the same logits in the same places, and what did not fit is not tried again.

    The control: a single row that does not fit is an error, not an endless loop.
    """
    texts = drawn_texts(60, 13, pairs=True)
    model, encoded = build_written(checkpoint), encode_rows(checkpoint, rows_of(texts))
    expected, plain = predict(model, encoded), model.forward
    asked: list[int] = []
    room = 100

    def forward(**batch: Tensor) -> Any:
        asked.append(batch["input_ids"].numel())
        if asked[-1] > room:
            raise torch.OutOfMemoryError
        return plain(**batch)

    monkeypatch.setattr(model, "forward", forward, raising=False)
    assert torch.allclose(predict(model, encoded), expected, atol=1e-5, rtol=0)
    failed = [tokens for tokens in asked if tokens > room]
    assert len(encoded.batches) > 1
    assert failed == sorted(failed, reverse=True)
    assert 1 < len(failed) < 2 * len(encoded.batches)
    room = 3
    with pytest.raises(torch.OutOfMemoryError):
        predict(model, encoded)


def test_a_graphics_card_is_given_larger_batches() -> None:
    assert token_budget("cpu") == CPU_TOKENS
    assert token_budget("cuda") == token_budget(torch.device("cuda", 0)) > 10 * CPU_TOKENS


def test_overlong_rows_are_cut_as_transformers_cuts_them_and_counted(folder: Path, checkpoint: Checkpoint) -> None:
    """The model takes 32 tokens, three of them [CLS] and [SEP]: 29 words fit, 30 are cut, longest text first."""
    fits, cut = ("the " * 20, "river " * 9), ("the " * 20, "river " * 10)
    far = ("doctor saw " * 40, "lawyer who " * 3)
    logits, encoded = ours(checkpoint, [fits, cut, far])
    assert encoded.cut == 2
    assert max(batch["input_ids"].shape[1] for batch in encoded.batches) == 32
    assert torch.allclose(logits, one_by_one(folder, [fits, cut, far]), atol=1e-5, rtol=0)


def test_a_position_table_that_starts_behind_the_padding_is_obeyed(tmp_path: Path) -> None:
    """RoBERTa's 32 places hold 30 tokens; a text of 32 would leave its table."""
    config = bert_config() | {"model_type": "roberta", "architectures": ["RobertaForSequenceClassification"]}
    folder = save_checkpoint(tmp_path / "a", config | {"pad_token_id": 1}, seed=1)
    texts = [("the " * 20, "river " * 12), ("the", "river")]
    logits, encoded = ours(open_checkpoint(str(folder)), texts)
    assert encoded.cut == 1
    assert max(batch["input_ids"].shape[1] for batch in encoded.batches) == 30
    assert torch.isfinite(logits).all()


def test_a_tokenizer_with_a_shorter_limit_is_obeyed(tmp_path: Path) -> None:
    """transformers truncates to the tokenizer's model_max_length, below what the positions allow."""
    folder = save_checkpoint(tmp_path / "a", seed=1)
    settings = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    (folder / "tokenizer_config.json").write_text(json.dumps(settings | {"model_max_length": 16}), encoding="utf-8")
    texts = [("the " * 8, "river " * 12), ("the", "river")]
    logits, encoded = ours(open_checkpoint(str(folder)), texts)
    assert encoded.cut == 1
    assert torch.allclose(logits, one_by_one(folder, texts, longest=16), atol=1e-5, rtol=0)
    assert not torch.allclose(logits, one_by_one(folder, texts), atol=1e-3, rtol=0)


def test_half_precision_weights_are_computed_in_float32(tmp_path: Path) -> None:
    """A bfloat16 checkpoint is measured at float32, as it would be after a merge."""
    tensors = random_tensors(bert_config(), 1, torch.bfloat16)
    folder = save_checkpoint(tmp_path / "half", tensors=tensors)
    exact = save_checkpoint(tmp_path / "full", tensors={n: t.float() for n, t in tensors.items()})
    texts = drawn_texts(20, 10, pairs=True)
    logits, _ = ours(open_checkpoint(str(folder)), texts)
    assert torch.allclose(logits, one_by_one(exact, texts), atol=1e-5, rtol=0)


# ---- what cannot be predicted ----


def fails(checkpoint: Checkpoint) -> str:
    with pytest.raises(TaskError) as caught:
        encode_rows(checkpoint, rows_of([("the doctor", "saw")]))
    message = str(caught.value)
    assert "\n" not in message
    assert message.startswith(checkpoint.source)
    return message


def test_a_checkpoint_without_a_tokenizer_is_one_line(tmp_path: Path) -> None:
    assert "no tokenizer" in fails(open_checkpoint(str(save_checkpoint(tmp_path / "bare", tokenizer=False))))


def test_a_tokenizer_of_a_larger_vocabulary_is_one_line(tmp_path: Path) -> None:
    """A token without an embedding would end in an index error; a vocabulary that is larger but not used does not."""
    folder = save_checkpoint(tmp_path / "a", tokenizer=False)
    save_tokenizer(folder, words=[*WORDS, "unused"])
    encode_rows(open_checkpoint(str(folder)), rows_of([("the doctor", "saw")]))
    save_tokenizer(folder, words=["one", "two", *WORDS[2:], "the", "saw"])
    assert "gives token 19, but the model has embeddings of 18 tokens" in fails(open_checkpoint(str(folder)))


def test_nothing_to_predict_is_one_line(checkpoint: Checkpoint) -> None:
    with pytest.raises(TaskError, match="no rows"):
        encode_rows(checkpoint, rows_of([]))
    with pytest.raises(TaskError, match="no rows"):
        predict(build_written(checkpoint), Encoded((), (), 0))


# ---- from a model's classes to a task's ----


def test_a_prediction_is_the_argmax_folded_afterwards() -> None:
    """The official HANS rule: entailment is the largest of three, although the others together are more probable."""
    logits = torch.tensor([[1.0, 0.9, 0.9], [1.0, 0.0, 1.1], [3.0, 0.0, 0.0]])
    probabilities = logits.softmax(1)
    summed = (probabilities[:, 1:].sum(1) > probabilities[:, 0]).long()
    pooled, predicted = task_logits(logits, (0, 1, 1), HANS)
    assert predicted.tolist() == [0, 1, 0]
    assert summed.tolist() == [1, 1, 0]
    assert pooled.tolist() == torch.tensor([[1.0, 0.9], [1.0, 1.1], [3.0, 0.0]]).tolist()


@pytest.mark.parametrize("columns", [(0, 1, 1), (1, 0, 1), (1, 1, 0)])
def test_the_pooled_logits_have_the_same_argmax(columns: tuple[int, ...]) -> None:
    """Loss and accuracy see the same decision on 2,000 random rows; pooling by the sum of logits would not."""
    logits = torch.randn(2000, 3, generator=torch.Generator().manual_seed(0))
    pooled, predicted = task_logits(logits, columns, HANS)
    assert torch.equal(pooled.argmax(1), predicted)
    assert torch.equal(predicted, torch.tensor([columns[row.index(max(row))] for row in logits.tolist()]))
    summed = torch.stack([logits[:, [c == k for c in columns]].sum(1) for k in range(2)], 1)
    assert (summed.argmax(1) != predicted).any()


def test_unfolded_logits_are_only_put_in_order() -> None:
    """With as many classes as the task nothing is pooled: column k holds the class of that name."""
    logits = torch.tensor([[0.1, 0.2, 0.3], [9.0, 8.0, 7.0]])
    columns: Any = (2, 0, 1)
    pooled, predicted = task_logits(logits, columns, MNLI)
    assert torch.equal(pooled, logits[:, [1, 2, 0]])
    assert predicted.tolist() == [1, 2]
