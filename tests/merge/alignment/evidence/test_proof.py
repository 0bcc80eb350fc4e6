"""Proof: what is refused, whatever numbers the two models say."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from contracts.test_aligners import make_pair
from tiny import bert_config, random_tensors
from torch import Tensor

from merge.alignment.evidence import proof as proof_module
from merge.alignment.evidence.proof import Proof, compare, prove
from merge.alignment.pair import Pair
from merge.checkpoints.inputs import random_inputs
from merge.errors import AlignmentError
from merge.symmetry.architectures import spec_for
from merge.symmetry.forward.call import Run
from merge.symmetry.permutation import identity
from merge.symmetry.transform import Transform

CLASSIFIER = "BertForSequenceClassification"


def saying(*said: Sequence[float]) -> Any:
    """Return a model whose logits in batch after batch are these, a text each."""
    left = [torch.tensor(values, dtype=torch.float64)[:, None] for values in said]
    return lambda **_: {"logits": left.pop(0)}


def compared(before: Any, after: Any, batches: int = 1) -> Proof:
    """Return the proof of two models whose logits lie on no axis that moves."""
    spec = SimpleNamespace(outputs={"logits": "- -"}, dtype="float64", bound=1e-9)
    texts = [{"input_ids": torch.zeros(1, 3 + k, dtype=torch.long)} for k in range(batches)]
    pair, _ = make_pair(CLASSIFIER, None)
    still = Transform(identity(pair.spec, pair.shapes), {})
    return compare(spec, before, after, still, texts)  # type: ignore[arg-type]


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_an_aligned_model_with_weights_that_are_no_numbers_is_refused(bad: float) -> None:
    """A NaN is neither larger nor smaller than the bound; the same weights as numbers pass."""
    pair, _ = make_pair(CLASSIFIER, None)
    pair, still = replace(pair, batches=pair.batches[:4]), identity(pair.spec, pair.shapes)
    broken = {**pair.b, "classifier.weight": torch.full_like(pair.b["classifier.weight"], bad)}
    assert prove(pair, dict(pair.b), still, pair.batches).holds
    with pytest.raises(AlignmentError, match="is not the model it was"):
        prove(pair, broken, still, pair.batches)


def test_a_nan_in_one_of_two_outputs_is_seen_wherever_it_stands() -> None:
    """Python's max keeps the first of what it cannot compare."""
    spec = SimpleNamespace(outputs={"one": "- -", "two": "- -"}, dtype="float64", bound=1e-9)
    values, nothing = torch.tensor([[1.0], [2.0]], dtype=torch.float64), torch.full((2, 1), torch.nan).double()
    pair, _ = make_pair(CLASSIFIER, None)
    still, text = Transform(identity(pair.spec, pair.shapes), {}), {"input_ids": torch.zeros(1, 3, dtype=torch.long)}
    for said, holds in (((values, values), True), ((values, nothing), False), ((nothing, values), False)):
        models = [dict(zip(spec.outputs, both, strict=True)) for both in ((values, values), said)]
        before, after = (lambda model=model, **_: model for model in models)
        assert compare(spec, before, after, still, [text]).holds is holds  # type: ignore[arg-type]


def test_one_logit_of_one_text_a_batch_is_held_to_all_batches() -> None:
    """One value has no standard deviation, which is NaN; that of all batches together tells another model."""
    config = bert_config(labels=("score",))
    spec, own = spec_for(config), random_tensors(config, 0)
    batches = tuple({name: x[:1] for name, x in batch.items()} for batch in random_inputs(config, 0))[:4]
    pair = Pair(spec, own, own, config, str, batches)
    still = identity(spec, pair.shapes)
    assert prove(pair, dict(own), still, batches).error == 0
    for given in (batches, batches[:1]):
        with pytest.raises(AlignmentError, match="is not the model it was"):
            prove(pair, random_tensors(config, 9), still, given)


def test_the_spread_is_that_of_all_batches_together() -> None:
    """In numbers: 1, 2, 3, 6 have the standard deviation 14 ** .5 / 2, and 0.7 is the most they are apart."""
    found = compared(saying([1, 2], [3, 6]), saying([1, 2.5], [3.7, 6]), batches=2)
    assert found.error == pytest.approx(0.7 / (14**0.5 / 2), rel=1e-12)
    assert not found.holds


def test_batches_of_one_shape_are_run_as_one() -> None:
    """Nothing is dropped: one text of one batch differs, whichever it is."""
    spec = SimpleNamespace(outputs={"logits": "- -"}, dtype="float64", bound=1e-9)
    texts = [{"input_ids": torch.full((2, length), k)} for k, length in enumerate((3, 5, 3, 5))]
    pair, _ = make_pair(CLASSIFIER, None)
    still = Transform(identity(pair.spec, pair.shapes), {})

    def model(other: int, calls: list[Tensor]) -> Any:
        def run(input_ids: Tensor) -> dict[str, Tensor]:
            calls.append(input_ids)
            return {"logits": torch.where(input_ids == other, 9.0, input_ids)[:, :1].double()}

        return run

    calls: list[Tensor] = []
    for other in (-1, 0, 1, 2, 3):
        calls.clear()
        proof = compare(spec, model(-1, []), model(other, calls), still, texts)  # type: ignore[arg-type]
        assert (proof.holds, proof.texts) == (other == -1, 8)
        assert [tuple(x.shape) for x in calls] == [(4, 3), (4, 5)]


@pytest.mark.parametrize("room", [0, 1 << 26])
def test_outputs_are_kept_for_the_second_model_where_there_is_room(room: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Kept or computed again they are the same, and a run that the model refuses leaves none."""
    monkeypatch.setattr(proof_module, "MAX_KEPT_BYTES", room)
    calls: list[float] = []

    def model(x: Tensor) -> dict[str, Tensor]:
        calls.append(float(x[0]))
        return {"logits": x.log(), "hidden": x}

    kept = proof_module._KeptOutputs(model, torch.float64, frozenset({"logits"}))
    runs = [Run({"x": torch.tensor([value])}) for value in (1.0, 2.0, -1.0)]
    assert [kept.fault(run) is None for run in runs] == [True, True, False]
    for run in runs[:2]:
        outputs = kept.outputs(run)
        assert outputs["logits"].equal(run.values["x"].double().log())
    assert calls == [1.0, 2.0, -1.0, *([] if room else [1.0])]


def test_a_small_spread_about_a_large_mean_counts() -> None:
    """Scores of a million and a little are held to the little: a thousandth of it is not 1e-9 of a million."""
    score = [1e6, 1e6 + 0.001, 1e6 - 0.001]
    moved = [1e6, 1e6 + 0.001001, 1e6 - 0.001]
    proof = compared(saying(score), saying(moved))
    spread = float(torch.tensor([0.0, 1e-3, -1e-3], dtype=torch.float64).std(correction=0))
    assert proof.error == pytest.approx(1e-6 / spread, rel=1e-3)
    assert compared(saying(score), saying(score)).error == 0


def test_what_is_equally_infinite_is_not_apart() -> None:
    """A model that rules an answer out says minus infinity; where only one says so they are apart."""
    low = -torch.inf
    assert compared(saying([low, 1, 2]), saying([low, 1, 2])).error == 0
    assert compared(saying([low, 1, 2]), saying([low, 1, 2.5])).error == pytest.approx(1.0, rel=1e-12)
    for other in (saying([torch.inf, 1, 2]), saying([0, 1, 2])):
        assert not compared(saying([low, 1, 2]), other).holds


def test_values_all_alike_are_held_to_their_size() -> None:
    """Their spread is nothing but rounding: to divide by it would refuse the same model, summed in another order."""
    alike = [4.0, 4.0, 4.0 + 1e-15]
    assert compared(saying(alike), saying([4 + 1e-10] * 3)).error == pytest.approx(1e-10 / 4, rel=1e-4)
    assert compared(saying(alike), saying([4 + 1e-10] * 3)).holds
    assert compared(saying(alike), saying([4.0, 4.0, 5.0])).error == pytest.approx(0.25, rel=1e-12)
    assert compared(saying([0.0, 0.0]), saying([0.0, 0.0])).error == 0
    assert not compared(saying([0.0, 0.0]), saying([0.0, 1e-6])).holds
