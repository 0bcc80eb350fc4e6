"""Where models and text are large, candidates are told apart on a part of the text first."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from contracts.test_aligners import make_pair

from merge.alignment.choice import text_part
from merge.alignment.choice.candidates import Candidate, choose, clearly_behind, scores, unmoved
from merge.alignment.choice.text_part import count_texts, parts_of_text
from merge.alignment.divergence import Divergence
from merge.alignment.matchers import aligner
from merge.alignment.midpoint import EndpointOutputs, score
from merge.alignment.pair import Alignment, Pair


@pytest.fixture
def large(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let tiny models and texts count as large."""
    monkeypatch.setattr(text_part, "LARGE_RUN", 1)
    monkeypatch.setattr(text_part, "PART_TOKENS", 8)
    monkeypatch.setattr(text_part, "MIN_TEXTS", 4)


def planted(architecture: str = "BertForSequenceClassification") -> tuple[Pair, Alignment]:
    """Return a pair of one model in two orders, and the alignment back."""
    pair, back = make_pair(architecture, planted_seed=2)
    return pair, Alignment(back, pair.kinds(), ())


def test_parts_are_one_text_in_eight_of_all_batches_then_as_many_again(large: None) -> None:
    """Counted over all batches, whatever their sizes; every tensor of a text goes with it."""
    pair, _ = planted()
    sizes = (1, 6, 2, 9, 14)
    batches = tuple(
        {"input_ids": torch.arange(first, first + size)[:, None].expand(size, 3), "attention_mask": torch.ones(size, 3)}
        for first, size in zip((0, 1, 7, 9, 18), sizes, strict=True)
    )
    parts = parts_of_text(replace(pair, batches=batches))
    numbers = [[int(text[0]) for batch in part.pair.batches for text in batch["input_ids"]] for part in parts]
    assert numbers == [list(range(*span)) for span in ((0, 32, 8), (4, 32, 8), (2, 32, 4), (1, 32, 2))]
    assert all(batch["attention_mask"].shape == batch["input_ids"].shape for batch in parts[0].pair.batches)


def test_masked_words_of_a_part_are_those_of_its_texts(large: None) -> None:
    pair, _ = planted()
    pair = replace(pair, text=replace(pair.text, scored=tuple(b["input_ids"] % 2 == 0 for b in pair.batches)))
    part = parts_of_text(pair)[0].pair
    assert len(part.text.scored) == len(part.batches) > 1
    assert all(torch.equal(s, b["input_ids"] % 2 == 0) for s, b in zip(part.text.scored, part.batches, strict=True))


def test_a_small_text_or_model_is_read_as_a_whole(large: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Half of a text is a part only if it has texts enough."""
    pair, _ = planted()
    assert len(parts_of_text(pair)) == 4
    few = replace(pair, batches=tuple({n: t[:1] for n, t in batch.items()} for batch in pair.batches[:7]))
    assert parts_of_text(few) == ()
    monkeypatch.setattr(text_part, "LARGE_RUN", 1e12)
    assert parts_of_text(pair) == ()


@pytest.mark.slow
def test_what_is_far_from_the_lowest_is_scored_on_the_part_alone(large: None) -> None:
    """The scores are those of `score` on the texts that were read; moving nothing is far off, twins are near."""
    pair, back = planted()
    tried = [unmoved(pair), Candidate(back, None, "weights"), Candidate(back, None, "activations")]
    first = parts_of_text(pair)[0].pair
    ends = EndpointOutputs(pair)
    scored, _, notes = scores(tried, pair, ends)
    assert scored[0].score == pytest.approx(score([tried[0].alignment], first)[0][0], rel=1e-5)
    assert [c.score for c in scored[1:]] == pytest.approx(score([back, back], pair)[0], abs=1e-7)
    assert scored[0].score > 1e-3 > 1e-6 > (scored[1].score or 0.0)
    assert notes[0] == (
        f"which axes move was chosen on {count_texts(first)} of {count_texts(pair)} texts, and among 2 candidates on all"
    )
    # What was computed in parts is put together for what reads the whole later on.
    for k, expected in enumerate(map(EndpointOutputs(pair), range(len(pair.batches)))):
        kept = ends.kept(k)
        assert kept is not None
        assert all(torch.allclose(x["logits"], y["logits"], atol=1e-5) for x, y in zip(kept, expected, strict=True))


@pytest.mark.slow
@pytest.mark.parametrize("known", [False, True])
def test_one_candidate_that_is_left_is_not_scored_again(
    large: None, monkeypatch: pytest.MonkeyPatch, known: bool
) -> None:
    """Nor are the models run on the rest of the text, or at all if their outputs are known; the control: it may not be alone."""
    pair, back = planted()
    tried, runs = [unmoved(pair), Candidate(back, None, "weights")], []
    outputs = [*map(EndpointOutputs(pair), range(len(pair.batches)))] if known else None
    plain = Pair.model

    def counted(self: Pair, *args: object, **kwargs: object) -> torch.nn.Module:
        model = plain(self, *args, **kwargs)
        model.register_forward_pre_hook(lambda *_: runs.append(1))
        return model

    monkeypatch.setattr(Pair, "model", counted)
    parts = parts_of_text(pair)
    for alone in (True, False):
        runs.clear()
        scored, _, notes = scores(tried, pair, EndpointOutputs(pair, outputs), alone)
        each = [len(part.pair.batches) for part in (parts[:1] if alone else parts)]
        candidates_runs = 2 * each[0] + sum(each[1:])
        assert len(runs) == candidates_runs + (0 if known else 2 * sum(each))
        assert ("among 1 candidates" in notes[0]) is not alone
        assert scored[1].score == pytest.approx(0, abs=1e-6)


def divergence(values: list[float]) -> Divergence:
    return Divergence(torch.tensor(values, dtype=torch.float64), sum(values), len(values))


def test_a_candidate_is_behind_only_beyond_what_chance_explains() -> None:
    """Twice the best on every text; the controls: twice on the mean because of one text, and a score that is near on all."""
    best = divergence([1.0, 1.1, 0.9, 1.0] * 8)
    assert clearly_behind(divergence([2.0, 2.1, 1.9, 2.2] * 8), best)
    assert not clearly_behind(divergence([1.0, 1.1, 0.9, 1.0] * 7 + [1.0, 1.1, 0.9, 33.0]), best)
    assert not clearly_behind(divergence([1.4, 1.5, 1.3, 1.4] * 8), best)
    # Without the values of single texts by the mean alone.
    assert clearly_behind(Divergence(None, 4.0, 1), Divergence(None, 1.0, 1))
    assert not clearly_behind(Divergence(None, 2.0, 1), Divergence(None, 1.0, 1))


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
