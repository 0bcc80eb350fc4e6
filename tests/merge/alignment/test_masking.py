"""Masked language models are shown masked words, and asked for those alone."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from contracts.test_aligners import make_pair
from scipy.special import softmax
from scipy.stats import entropy
from tiny import bert_config, save_checkpoint, write_text

from merge.alignment.choice.candidates import choose
from merge.alignment.masking import IGNORED, mask_words, with_masked_words
from merge.alignment.matchers import aligner
from merge.alignment.midpoint import score
from merge.alignment.pair import Pair, Settings, TextFacts
from merge.alignment.reading import read_alignment_text
from merge.alignment.settings import AlignEntry
from merge.alignment.solvers.moments import collect
from merge.checkpoints.open import open_checkpoint
from merge.errors import AlignmentError
from merge.symmetry.permutation import identity

MASK, FRAME = 3, (0, 1, 2)


def language_models(seed: int = 0) -> Pair:
    """Return two masked language models that have nothing in common, and a little text."""
    pair, _ = make_pair("BertForMaskedLM", planted_seed=None, other_seed=5)
    settings = Settings(seed=seed)
    return replace(
        pair, batches=pair.batches[:2], text=TextFacts(mask_token=MASK, special_tokens=FRAME), settings=settings
    )


def test_fifteen_in_a_hundred_words_are_masked_and_never_what_frames_or_fills_a_text() -> None:
    """80/10/10 of them, within four standard deviations."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(5, 1000, (200, 50), generator=generator)
    ids[:, 0], ids[:, -1] = 1, 2
    mask = torch.ones_like(ids)
    mask[:100, 40:] = 0
    batch, target = mask_words({"input_ids": ids, "attention_mask": mask}, 4, torch.tensor([1, 2, 4]), 1000, generator)
    asked, words = target != IGNORED, mask.bool() & (ids > 4)
    assert int(asked.sum()) == round(0.15 * int(words.sum()))
    assert bool(words[asked].all())
    assert torch.equal(target[asked], ids[asked])
    shown = batch["input_ids"]
    assert torch.equal(shown[~asked], ids[~asked])
    share = [float((shown[asked] == 4).float().mean()), float((shown[asked] == ids[asked]).float().mean())]
    spread = (0.25 / int(asked.sum())) ** 0.5
    assert share == [pytest.approx(0.8, abs=4 * spread), pytest.approx(0.1, abs=4 * spread)]
    assert int(asked.any(0)[1:-1].sum()) == 48


def test_a_batch_without_a_word_is_an_error() -> None:
    ids = torch.tensor([[1, 3, 2]])
    with pytest.raises(AlignmentError, match="holds no word"):
        mask_words(
            {"input_ids": ids, "attention_mask": torch.ones_like(ids)}, 3, torch.tensor([1, 2, 3]), 9, torch.Generator()
        )


def test_only_words_are_asked_for_and_the_rest_of_a_text_is_what_it_was() -> None:
    pair = language_models()
    shown = with_masked_words(pair)
    assert len(shown.text.scored) == len(shown.batches) == len(pair.batches)
    for plain, batch, asked in zip(pair.batches, shown.batches, shown.text.scored, strict=True):
        words = plain["attention_mask"].bool() & ~torch.isin(plain["input_ids"], torch.tensor([*FRAME, MASK]))
        assert int(asked.sum()) == max(1, round(0.15 * int(words.sum())))
        assert bool(words[asked].all())
        assert torch.equal(batch["input_ids"][~asked], plain["input_ids"][~asked])
        assert torch.equal(batch["attention_mask"], plain["attention_mask"])
    hidden = torch.cat([b["input_ids"][asked] for b, asked in zip(shown.batches, shown.text.scored, strict=True)])
    assert float((hidden == MASK).float().mean()) > 0.5


def test_a_seed_says_which_words_and_what_is_masked_is_not_masked_again() -> None:
    one, again, other = (
        with_masked_words(language_models()),
        with_masked_words(language_models()),
        with_masked_words(language_models(seed=1)),
    )
    assert all(torch.equal(x, y) for x, y in zip(one.text.scored, again.text.scored, strict=True))
    assert not all(torch.equal(x, y) for x, y in zip(one.text.scored, other.text.scored, strict=True))
    assert with_masked_words(one) is one


def test_what_is_used_on_plain_text_is_shown_plain_text() -> None:
    """The negative control: a classifier, and a language model whose mask token nobody knows."""
    classifier, _ = make_pair("BertForSequenceClassification", planted_seed=None, other_seed=5)
    classifier = replace(classifier, text=TextFacts(mask_token=MASK, special_tokens=FRAME))
    assert with_masked_words(classifier) is classifier
    unknown = replace(language_models(), text=TextFacts())
    assert with_masked_words(unknown) is unknown


def test_the_score_is_the_mean_kl_at_masked_words() -> None:
    """Derived by scipy from the logits of whole models; over all words it would be another number."""
    pair = with_masked_words(language_models())
    middle = {n: (t + pair.b[n]) / 2 if t.is_floating_point() else t for n, t in pair.a.items()}
    said = []
    for tensors in (pair.a, pair.b, middle):
        model = pair.model(tensors)
        with torch.inference_mode():
            logits = [model(**batch).logits for batch in pair.batches]
        said.append([softmax(x.double().numpy(), axis=-1) for x in logits])
    found = [entropy((a + b) / 2, c, axis=-1) for a, b, c in zip(*said, strict=True)]
    at_words = np.concatenate([x[asked.numpy()] for x, asked in zip(found, pair.text.scored, strict=True)])
    values, kind = score([identity(pair.spec, pair.shapes)], pair)
    assert kind == "kl"
    assert values[0] == pytest.approx(at_words.mean(), rel=1e-4)
    everywhere, _ = score([identity(pair.spec, pair.shapes)], replace(pair, text=replace(pair.text, scored=())))
    assert everywhere[0] != pytest.approx(values[0], rel=1e-3)


@pytest.mark.slow
def test_choosing_and_matching_activations_mask_the_text_themselves() -> None:
    """What they make of plain text with a mask token is what they make of the masked text, and not of the plain."""
    pair = language_models()
    shown, plain = with_masked_words(pair), replace(pair, text=TextFacts())
    scored = [choose(p, {"weights": aligner("weights")(p)}, None).candidates for p in (pair, shown, plain)]
    one, other, off = ([candidate.score for candidate in found] for found in scored)
    assert one == other
    assert one != off
    means = [collect(p)["ffn0"][0].correlation() for p in (pair, shown, plain)]
    assert torch.equal(means[0], means[1])
    assert not torch.equal(means[0], means[2])


@pytest.mark.parametrize("by", ["activations", "auto", "learned"])
def test_a_run_knows_the_mask_of_a_masked_language_model(tmp_path: Path, by: str) -> None:
    text = str(write_text(tmp_path / "t.txt"))
    model = open_checkpoint(str(save_checkpoint(tmp_path / "a", bert_config("BertForMaskedLM"))))
    material = read_alignment_text(AlignEntry(by=by, text=text), 0, model)
    assert material.mask_token is not None
    assert "with words masked" in str(material.source)


def test_a_run_of_classifiers_masks_nothing(tmp_path: Path) -> None:
    text = str(write_text(tmp_path / "t.txt"))
    model = open_checkpoint(str(save_checkpoint(tmp_path / "a")))
    material = read_alignment_text(AlignEntry(by="activations", text=text), 0, model)
    assert material.mask_token is None
    assert "masked" not in str(material.source)


def test_a_tokenizer_without_a_mask_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = open_checkpoint(str(save_checkpoint(tmp_path / "a", bert_config("BertForMaskedLM"))))
    from transformers import PreTrainedTokenizerBase

    monkeypatch.setattr(PreTrainedTokenizerBase, "mask_token_id", None, raising=False)
    material = read_alignment_text(AlignEntry(by="weights", text=str(write_text(tmp_path / "t.txt"))), 0, model)
    assert material.mask_token is None
    assert "has no mask token: the text is read as it stands" in material.notes[-1]
    assert "masked" not in str(material.source)
