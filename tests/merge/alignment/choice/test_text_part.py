"""Where models and text are large, candidates are told apart on a part of the text first."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from contracts.test_aligners import make_pair

from merge.alignment.choice import candidates, text_part
from merge.alignment.choice.candidates import Candidate, choose, scores, unmoved
from merge.alignment.choice.text_part import count_texts, part_of_text
from merge.alignment.matchers import aligner
from merge.alignment.midpoint import EndpointOutputs, score
from merge.alignment.pair import Alignment, Pair


@pytest.fixture
def large(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let tiny models and texts count as large."""
    monkeypatch.setattr(text_part, "LARGE_RUN", 1)
    monkeypatch.setattr(text_part, "PART_TOKENS", 16)
    monkeypatch.setattr(text_part, "MIN_TEXTS", 8)


def planted(architecture: str = "BertForSequenceClassification") -> tuple[Pair, Alignment]:
    """Return a pair of one model in two orders, and the alignment back."""
    pair, back = make_pair(architecture, planted_seed=2)
    return pair, Alignment(back, pair.kinds(), ())


def test_a_part_is_one_text_in_four_of_all_batches(large: None) -> None:
    """Counted over all batches, whatever their sizes; every tensor of a text goes with it."""
    pair, _ = planted()
    sizes = (1, 6, 2, 9, 14)
    batches = tuple(
        {"input_ids": torch.arange(first, first + size)[:, None].expand(size, 3), "attention_mask": torch.ones(size, 3)}
        for first, size in zip((0, 1, 7, 9, 18), sizes, strict=True)
    )
    part = part_of_text(replace(pair, batches=batches))
    assert part is not None
    assert [int(text[0]) for batch in part.batches for text in batch["input_ids"]] == list(range(0, 32, 4))
    assert all(batch["attention_mask"].shape == batch["input_ids"].shape for batch in part.batches)


def test_masked_words_of_a_part_are_those_of_its_texts(large: None) -> None:
    pair, _ = planted()
    pair = replace(pair, text=replace(pair.text, scored=tuple(b["input_ids"] % 2 == 0 for b in pair.batches)))
    part = part_of_text(pair)
    assert part is not None
    assert len(part.text.scored) == len(part.batches)
    assert all(torch.equal(s, b["input_ids"] % 2 == 0) for s, b in zip(part.text.scored, part.batches, strict=True))


def test_a_small_text_or_model_is_read_as_a_whole(large: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Half of a text is a part only if it has texts enough: a classifier's score is one number a text."""
    pair, _ = planted()
    assert part_of_text(pair) is not None
    few = replace(pair, batches=tuple({n: t[:1] for n, t in batch.items()} for batch in pair.batches))
    assert part_of_text(few) is None
    monkeypatch.setattr(text_part, "LARGE_RUN", 1e12)
    assert part_of_text(pair) is None


@pytest.mark.slow
def test_what_is_far_from_the_lowest_is_scored_on_the_part_alone(large: None) -> None:
    """The scores are those of `score` on the texts that were read; moving nothing is far off, twins are near."""
    pair, back = planted()
    tried = [unmoved(pair), Candidate(back, None, "weights"), Candidate(back, None, "activations")]
    part = part_of_text(pair)
    assert part is not None
    scored, _, notes = scores(tried, pair, EndpointOutputs(pair))
    assert scored[0].score == score([tried[0].alignment], part)[0][0]
    assert [c.score for c in scored[1:]] == score([back, back], pair)[0]
    assert scored[0].score > 1e-3 > 1e-6 > (scored[1].score or 0.0)
    assert notes[0] == (
        f"which axes move was chosen on {count_texts(part)} of {count_texts(pair)} texts, and among 2 candidates on all"
    )


@pytest.mark.slow
def test_one_candidate_that_is_left_is_not_scored_again(large: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor are the models run on the rest of the text; the control: it is where there may be others."""
    pair, back = planted()
    tried, runs = [unmoved(pair), Candidate(back, None, "weights")], []

    class Counted(EndpointOutputs):
        def __call__(self, k: int) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
            runs.append(len(self.pair.batches[k]["input_ids"]))
            return super().__call__(k)

    monkeypatch.setattr(candidates, "EndpointOutputs", Counted)
    for alone in (True, False):
        runs.clear()
        scored, _, notes = scores(tried, pair, Counted(pair), alone)
        part = part_of_text(pair)
        assert part is not None
        texts = 2 * count_texts(part) + (0 if alone else count_texts(pair))
        assert sum(runs) == texts
        assert ("among 1 candidates" in notes[0]) is not alone
        assert scored[1].score == pytest.approx(0, abs=1e-6)


def test_the_choice_on_a_part_is_that_on_the_whole(large: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """One model in two orders: everything moves, and the texts that the user gave are the texts that are counted."""
    pair, _ = planted()
    matchers = {"weights": aligner("weights")(pair)}
    on_part = choose(pair, matchers, None)
    assert on_part.kept.alignment.kinds == pair.kinds()
    assert not any("rests on" in note for note in on_part.notes) or count_texts(pair) < 256
    monkeypatch.setattr(text_part, "LARGE_RUN", 1e12)
    whole = choose(pair, matchers, None)
    assert whole.kept.alignment.kinds == on_part.kept.alignment.kinds
    assert len(whole.notes) == len(on_part.notes) - 1
