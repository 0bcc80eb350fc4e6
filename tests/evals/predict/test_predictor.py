"""One model in memory says of every checkpoint what that checkpoint's own model says."""

from __future__ import annotations

import logging
import random
from pathlib import Path

import pytest
import torch
import transformers
from captured_log import CapturedLog
from tiny import NLI, WORDS, bert_config, random_tensors, save_checkpoint
from torch import Tensor

from evals.predict.predictor import Change, change, emulated, make_predictor, precision_change
from evals.tasks.task import Rows
from merge.checkpoints.checkpoint import Checkpoint
from merge.checkpoints.open import open_checkpoint
from merge.errors import CheckpointError, TaskError


def drawn_rows(count: int) -> Rows:
    generator = random.Random(5)
    texts = tuple(
        (" ".join(generator.choices(WORDS[:11], k=generator.randint(1, 12))), generator.choice(WORDS[:11]))
        for _ in range(count)
    )
    return Rows(texts, (0,) * count, NLI, "made", "test", tuple(map(str, range(count))))


ROWS = drawn_rows(40)


def opened(folder: Path) -> Checkpoint:
    return open_checkpoint(str(folder))


def alone(folder: Path) -> Tensor:
    """Return the logits of transformers' own loading, one row at a time."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(str(folder))
    model = transformers.AutoModelForSequenceClassification.from_pretrained(str(folder)).eval()
    with torch.inference_mode():
        return torch.cat([model(**tokenizer(*text, return_tensors="pt")).logits for text in ROWS.texts])


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    made = tmp_path_factory.mktemp("models")
    return save_checkpoint(made / "a", seed=1), save_checkpoint(made / "b", seed=2)


def test_every_checkpoint_in_turn_and_the_first_again(folders: tuple[Path, Path]) -> None:
    """The skeleton is the same object throughout, and nothing of the one before is left."""
    a, b = (opened(folder) for folder in folders)
    predictor = make_predictor(a)
    skeleton, encoded = predictor.model, predictor.encode(ROWS)
    expected = [alone(folder) for folder in folders]
    assert not torch.allclose(*expected, atol=0.1)
    assert torch.allclose(predictor.logits(encoded), expected[0], atol=1e-5, rtol=0)
    for checkpoint, due in ((b, expected[1]), (a, expected[0])):
        predictor.load(checkpoint)
        assert torch.allclose(predictor.logits(encoded), due, atol=1e-5, rtol=0)
    assert predictor.model is skeleton


def test_other_labels_are_no_hindrance(tmp_path: Path, folders: tuple[Path, Path]) -> None:
    """What a checkpoint calls its classes is read off its own config; the logits stand in its own order."""
    named = save_checkpoint(tmp_path / "c", bert_config(labels=("x", "y", "z")), seed=3)
    predictor = make_predictor(opened(folders[0]))
    predictor.load(opened(named))
    assert torch.allclose(predictor.logits(predictor.encode(ROWS)), alone(named), atol=1e-5, rtol=0)


def test_half_precision_files_are_computed_in_float32(tmp_path: Path, folders: tuple[Path, Path]) -> None:
    tensors = random_tensors(bert_config(), 4, torch.bfloat16)
    half = save_checkpoint(tmp_path / "half", tensors=tensors)
    exact = save_checkpoint(tmp_path / "full", tensors={n: t.float() for n, t in tensors.items()})
    predictor = make_predictor(opened(folders[0]))
    predictor.load(opened(half))
    assert torch.allclose(predictor.logits(predictor.encode(ROWS)), alone(exact), atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_attention_heads": 2}, "num_attention_heads is 2, not 4"),
        ({"hidden_act": "relu"}, "hidden_act is 'relu', not 'gelu'"),
        ({"labels": ("no", "yes")}, "classifier.bias is (2,), not (3,)"),
        ({"num_hidden_layers": 1}, "num_hidden_layers is 1, not 2"),
    ],
)
def test_a_checkpoint_that_computes_otherwise_is_refused(
    tmp_path: Path, folders: tuple[Path, Path], changes: dict[str, object], message: str
) -> None:
    """Two heads instead of four have the same tensors: only the config tells, and the logits would be wrong in silence."""
    other = opened(save_checkpoint(tmp_path / "c", bert_config(**changes), seed=3, tokenizer=False))
    predictor = make_predictor(opened(folders[0]))
    before = predictor.model.state_dict()["classifier.weight"].clone()
    with pytest.raises(TaskError) as caught:
        predictor.load(other)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert torch.equal(predictor.model.state_dict()["classifier.weight"], before)


def test_another_architecture_is_refused(tmp_path: Path, folders: tuple[Path, Path]) -> None:
    other = opened(save_checkpoint(tmp_path / "c", bert_config("BertForTokenClassification"), tokenizer=False))
    with pytest.raises(TaskError, match="it is a BertForTokenClassification, not a BertForSequenceClassification"):
        make_predictor(opened(folders[0])).load(other)


def test_a_checkpoint_with_a_hole_is_refused(tmp_path: Path, folders: tuple[Path, Path]) -> None:
    tensors = random_tensors(bert_config(), 3, torch.float32)
    tensors["classifier.bias"][1] = float("nan")
    broken = save_checkpoint(tmp_path / "c", tensors=tensors)
    with pytest.raises(CheckpointError, match="classifier.bias"):
        make_predictor(opened(folders[0])).load(opened(broken))


def test_weights_by_name_are_all_or_nothing(folders: tuple[Path, Path]) -> None:
    """A tensor that is not given would keep the value of the model before."""
    a, b = (opened(folder) for folder in folders)
    predictor = make_predictor(a)
    tensors = {b.written_name(name): b.tensor(name) for name in b.tensors}
    predictor.set(tensors)
    assert torch.allclose(predictor.logits(predictor.encode(ROWS)), alone(folders[1]), atol=1e-5, rtol=0)
    with pytest.raises(TaskError, match="1 weights do not fit its model; classifier.bias is missing"):
        predictor.set({name: t for name, t in tensors.items() if name != "classifier.bias"})
    with pytest.raises(TaskError, match="1 weights do not fit its model; pooler.weight is unknown"):
        predictor.set({**tensors, "pooler.weight": torch.zeros(1)})


# ---- half precision ----


def test_changed_decisions_are_counted() -> None:
    exact = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.2, 0.1], [5.0, 4.0]])
    other = torch.tensor([[1.0, 0.5], [0.0, 1.0], [0.1, 0.2], [4.0, 4.5]])
    found = change(exact, other)
    assert found == Change(rows=4, changed=2, largest=1.0)
    assert found.share == 0.5
    assert change(exact, exact) == Change(4, 0, 0.0)


def test_bfloat16_is_measured_on_a_sample(folders: tuple[Path, Path]) -> None:
    """Eight bits of a logit are lost and most decisions stay; float32 against itself changes nothing at all."""
    checkpoint = opened(folders[0])
    found = precision_change(checkpoint, ROWS, torch.bfloat16, count=25)
    assert found.rows == 25
    assert 1e-4 < found.largest < 0.5
    assert found.share < 0.5
    assert precision_change(checkpoint, ROWS, torch.float32, count=None) == Change(40, 0, 0.0)
    assert make_predictor(checkpoint, torch.bfloat16).model.dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("machine", "capability", "slow"),
    [("x86_64", "AVX2", True), ("AMD64", "DEFAULT", True), ("x86_64", "AVX512", False), ("arm64", "DEFAULT", False)],
)
def test_a_machine_without_half_precision_is_said(
    machine: str,
    capability: str,
    slow: bool,
    folders: tuple[Path, Path],
    monkeypatch: pytest.MonkeyPatch,
    captured_log: CapturedLog,
) -> None:
    """There bfloat16 is asked for to save time and costs it; float32 is never remarked upon."""
    monkeypatch.setattr("platform.machine", lambda: machine)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    assert [emulated(dtype) for dtype in (torch.bfloat16, torch.float16, torch.float32)] == [slow, slow, False]
    with captured_log.at_level(logging.WARNING, logger="evals"):
        make_predictor(opened(folders[0]))
        assert captured_log.messages == []
        make_predictor(opened(folders[0]), torch.bfloat16)
    message = "this machine has no instructions for bfloat16 on cpu: float32 is exact, and faster here."
    assert captured_log.messages == [message] * slow
