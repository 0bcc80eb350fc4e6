"""Where models and text are large, auto's candidates race on parts of the text, and sets that are far behind leave it early."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import pytest
import torch
from contracts.test_aligners import make_pair

from merge.alignment.choice import auto as auto_module
from merge.alignment.choice import race as race_module
from merge.alignment.choice import text_part
from merge.alignment.choice.auto import Auto
from merge.alignment.choice.candidates import Candidate, Choice, unmoved
from merge.alignment.choice.race import Race, mean_of, run_race
from merge.alignment.choice.text_part import count_texts
from merge.alignment.divergence import Divergence
from merge.alignment.midpoint import ALONG, score
from merge.alignment.pair import Alignment, Pair


@pytest.fixture
def large(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let tiny models and texts count as large."""
    monkeypatch.setattr(text_part, "LARGE_RUN", 1)
    monkeypatch.setattr(text_part, "PART_TOKENS", 8)
    monkeypatch.setattr(text_part, "MIN_TEXTS", 4)


def planted(noise: float = 0.0) -> tuple[Pair, Alignment]:
    """Return a pair of one model in two orders, and the alignment back."""
    pair, back = make_pair("BertForSequenceClassification", planted_seed=2, noise=noise)
    return pair, Alignment(back, pair.kinds(), ())


def test_what_is_far_behind_leaves_and_the_only_one_left_is_kept(large: None) -> None:
    """Moving nothing leaves after the first part, by the score of `score` there; a candidate alone is run no further."""
    pair, back = planted()
    race = Race(pair, None)
    scored, notes = run_race([([unmoved(pair), Candidate(back, None, "weights")], pair)], race)
    first = race.parts[0].pair
    assert scored[0].score == pytest.approx(score([unmoved(pair).alignment], first)[0][0], rel=1e-5)
    assert scored[1].score == pytest.approx(0, abs=1e-6)
    assert race.runs == pytest.approx(2 * count_texts(first) / count_texts(pair))
    assert notes[0] == f"which axes move was chosen on {count_texts(first)} of {count_texts(pair)} texts"


@pytest.mark.slow
def test_twins_are_told_apart_by_nothing_and_run_no_more_than_the_bound(
    large: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without the bound they are read to the end, with the mean along the line that `score` gives."""
    pair, back = planted(noise=0.3)
    tried = [
        unmoved(pair),
        Candidate(back, None, "weights"),
        Candidate(replace(back, notes=("twin",)), None, "activations"),
    ]
    monkeypatch.setattr(race_module, "MAX_RUNS", 1e9)
    whole = Race(pair, None)
    scored, _ = run_race([(tried, pair)], whole)
    expected = sum(score([back], pair, lam=lam)[0][0] for lam in ALONG) / len(ALONG)
    assert [c.line for c in scored] == [None, pytest.approx(expected, rel=1e-4), pytest.approx(expected, rel=1e-4)]
    monkeypatch.setattr(race_module, "MAX_RUNS", 1.0)
    race = Race(pair, None)
    scored, notes = run_race([(tried, pair)], race)
    # The first part is read whatever it costs.
    assert race.runs <= len(ALONG) * len(tried) * race.share(0) < 1.5 < whole.runs
    assert scored[1].line == scored[2].line is not None
    assert "texts" in notes[0]


def test_the_mean_of_divergences_is_that_of_their_texts() -> None:
    values = [Divergence(torch.tensor([1.0, 3.0]), 4.0, 2), Divergence(torch.tensor([3.0, 5.0]), 8.0, 2)]
    mean = mean_of(values)
    assert mean.by_text is not None
    assert mean.by_text.tolist() == [2.0, 4.0]
    assert (mean.mean, mean.rows) == (3.0, 2)
    assert mean_of([values[0], Divergence(None, 8.0, 2)]).by_text is None


@pytest.mark.slow
def test_the_choice_in_a_race_is_that_on_the_whole_text(large: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """A permuted copy: sets that leave the stream alone are tried by activations only, and the planted answer is kept."""
    pair, back = planted(noise=0.1)
    auto = Auto(basis="permutation")
    raced = auto(replace(pair, batches=()), lambda: pair)
    monkeypatch.setattr(text_part, "LARGE_RUN", 1e12)
    whole = auto(replace(pair, batches=()), lambda: pair)
    assert raced.kept.name == whole.kept.name == "residual, heads, ffn, pooler"
    indices = back.permutation.indices
    for choice in (raced, whole):
        assert all(torch.equal(choice.kept.alignment.permutation.indices[axis], indices[axis]) for axis in indices)
    assert {c.by for c in raced.candidates if c.name == "pooler"} == {"activations"}
    assert any(
        note.startswith("over pooler; over heads, ffn, pooler: only one matcher was tried") for note in raced.notes
    )
    assert not any("only one matcher was tried" in note for note in whole.notes)


@pytest.mark.slow
def test_a_short_text_costs_a_large_model_no_more_matching_than_a_long_one(
    large: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Seven texts are too few for parts; the control: a small model is matched by every matcher over every set."""
    pair, back = planted(noise=0.1)
    short = replace(pair, batches=tuple({n: t[:1] for n, t in batch.items()} for batch in pair.batches[:7]))
    matched: list[tuple[str, int]] = []
    plain = auto_module._alignments

    def counted(compared: Pair, by: str, basis: str, sets: Sequence[frozenset[str]]) -> Iterator[Alignment]:
        matched.append((by, len(sets)))
        return plain(compared, by, basis, sets)

    monkeypatch.setattr(auto_module, "_alignments", counted)

    def sets_by_matcher(text: Pair, large_model: float) -> tuple[dict[str, int], Choice]:
        matched.clear()
        monkeypatch.setattr(text_part, "LARGE_MODEL", large_model)
        choice = Auto(basis="permutation")(replace(text, batches=()), lambda: text)
        return dict(matched), choice

    assert text_part.parts_of_text(short) == ()
    few, choice = sets_by_matcher(short, 1)
    assert few == sets_by_matcher(pair, 1)[0] == {"activations": 3, "weights": 1, "activations+weights": 1}
    everything, whole = sets_by_matcher(short, 1e12)
    assert everything == {"activations": 3, "weights": 3, "activations+weights": 3}
    indices = back.permutation.indices
    for each in (choice, whole):
        assert all(torch.equal(each.kept.alignment.permutation.indices[axis], indices[axis]) for axis in indices)
    assert any(note.startswith("over pooler; over heads, ffn, pooler: only one matcher") for note in choice.notes)
    assert not any(note.startswith("which axes move was chosen on") for note in choice.notes)
    by_kinds = {c.alignment.kinds: c for c in whole.candidates if c.by == "activations"}
    for candidate in choice.candidates:  # the scores are those of the whole text
        if candidate.by == "activations":
            assert candidate.score == pytest.approx(by_kinds[candidate.alignment.kinds].score, rel=1e-4, abs=1e-6)
