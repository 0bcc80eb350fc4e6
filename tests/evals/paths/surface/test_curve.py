"""Curves and their training: coefficients, ends, and a loss whose best curve is known."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny import NLI, bert_config, save_checkpoint

from evals.paths.surface.curve import curve_coefficients, summarise_curve
from evals.paths.surface.training import Training, train_points, training_material
from evals.paths.surface.weights import combine
from evals.predict.predictor import make_predictor
from evals.tasks import TASKS
from evals.tasks.label_names import MatchedTask
from evals.tasks.task import Rows
from merge.checkpoints.open import open_encoder

MNLI = TASKS["mnli"]


@pytest.mark.parametrize(("kind", "bends"), [("bezier", 1), ("bezier", 3), ("chain", 1), ("chain", 4)])
def test_a_curve_begins_at_a_and_ends_at_b(kind: str, bends: int) -> None:
    points = np.random.default_rng(0).normal(size=(bends + 2, 5))
    assert curve_coefficients(kind, bends, 0.0) == (1.0, *[0.0] * (bends + 1))
    assert curve_coefficients(kind, bends, 1.0) == (*[0.0] * (bends + 1), 1.0)
    for t in (0.1, 0.5, 0.83):
        coefficients = curve_coefficients(kind, bends, t)
        assert sum(coefficients) == pytest.approx(1)
        assert min(coefficients) >= 0
        if kind == "bezier":  # de Casteljau: repeated interpolation
            rest = points
            while len(rest) > 1:
                rest = (1 - t) * rest[:-1] + t * rest[1:]
            assert np.array(coefficients) @ points == pytest.approx(rest[0])
        else:
            places = np.linspace(0, 1, bends + 2)
            expected = [np.interp(t, places, column) for column in points.T]
            assert np.array(coefficients) @ points == pytest.approx(np.array(expected))


def test_the_ends_of_a_curve_are_its_models_bit_for_bit() -> None:
    a, w, b = ({"w": torch.tensor([-0.0, 1e-40, math.pi]) * k, "ids": torch.tensor([k])} for k in (1, 2, 3))
    for kind in ("bezier", "chain"):
        for t, end in ((0.0, a), (1.0, b)):
            made = combine([a, w, b], curve_coefficients(kind, 1, t))
            assert made["w"].view(torch.int32).tolist() == end["w"].view(torch.int32).tolist()
        assert combine([a, w, b], curve_coefficients(kind, 1, 0.5))["w"].tolist() != a["w"].tolist()


def test_the_summary_is_by_length_and_the_barrier_over_the_chord() -> None:
    summary = summarise_curve([0, 0.25, 0.5, 1], [1.0, 3.0, 2.5, 2.0], [1.0, 2.0, 5.0])
    assert (summary.barrier, summary.barrier_t) == (1.75, 0.25)
    assert (summary.highest, summary.highest_t, summary.length) == (3.0, 0.25, 8.0)
    assert summary.mean == pytest.approx((2 * 1 + 2.75 * 2 + 2.25 * 5) / 8)
    assert summarise_curve([0, 0.5, 1], [1.0, 0.5, 2.0], [1.0, 1.0]).barrier == 0.0


@pytest.fixture(scope="module")
def trainable(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Return a tiny model, weights of two of its kind, and rows that are all entailment."""
    root = tmp_path_factory.mktemp("models")
    config = bert_config(hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=12)
    a, b = (open_encoder(str(save_checkpoint(root / name, config, seed=k))) for k, name in enumerate("ab"))
    texts = tuple((f"the {word} saw a lawyer", "a lawyer helped") for word in ("doctor", "river", "lawyer", "near"))
    rows = Rows(texts, (0,) * 4, NLI, "made", "train", tuple("1234"))
    predictor = make_predictor(a)
    weights = [{m.written_name(n): t.clone() for n, t in m.state_dict().items()} for m in (a, b)]
    return predictor, weights, training_material(MatchedTask(MNLI, rows, (0, 1, 2), a), a)


def trained(
    trainable: Any, steps: int, kept: Path | None = None, stop: int | None = None, t: float | None = None
) -> Any:
    predictor, (a, b), material = trainable
    count = 0

    def draw(numbers: Any) -> tuple[float, float, float]:
        nonlocal count
        count += 1
        if stop is not None and count > stop:
            raise KeyboardInterrupt
        first, bend, last = curve_coefficients("bezier", 1, numbers.random() if t is None else t)
        return first, last, bend

    training = Training(steps, rate=1e-2, rows_a_step=3)
    return train_points(predictor.model, (a, b), [combine((a, b), (0.5, 0.5))], draw, material, training, kept)


def test_training_lowers_the_loss_and_changes_the_bend_alone(trainable: Any) -> None:
    predictor, (a, b), _ = trainable
    parts = (a, b, dict(predictor.model.named_parameters()))
    before = [{name: tensor.clone() for name, tensor in each.items()} for each in parts]
    done = trained(trainable, 40, t=0.5)
    assert sum(done.losses[-5:]) < 0.5 * sum(done.losses[:5])
    assert done.points[0].keys() == a.keys()
    assert not torch.equal(done.points[0]["classifier.bias"], combine((a, b), (0.5, 0.5))["classifier.bias"])
    for each, kept in zip(parts, before, strict=True):
        assert all(torch.equal(each[name], tensor) for name, tensor in kept.items())


def test_the_rate_falls_linearly_and_every_step_has_rows_of_its_own(trainable: Any) -> None:
    """Two steps of Adam down one slope move the bias of the head by the rate and by half of it."""
    predictor, (a, b), material = trainable

    def trained_at(rate: float, steps: int) -> Any:
        training = Training(steps, rate, rows_a_step=3)
        start = [combine((a, b), (0.5, 0.5))]
        done = train_points(predictor.model, (a, b), start, lambda _: (0.0, 0.0, 1.0), material, training)
        return done.losses, (done.points[0]["classifier.bias"] - start[0]["classifier.bias"]).abs()

    assert trained_at(1e-3, 2)[1].tolist() == pytest.approx([1.5e-3] * 3, rel=0.02)
    assert len({round(loss, 5) for loss in trained_at(1e-12, 8)[0]}) > 1


def test_an_interrupted_training_goes_on_as_if_it_had_not_been(trainable: Any, tmp_path: Path) -> None:
    whole = trained(trainable, 12)
    kept = tmp_path / "state.safetensors"
    with pytest.raises(KeyboardInterrupt):
        trained(trainable, 12, kept, stop=5)
    assert kept.is_file()
    rest = trained(trainable, 12, kept)
    assert rest.steps == 7
    assert rest.losses == whole.losses[5:]
    assert all(torch.equal(rest.points[0][name], tensor) for name, tensor in whole.points[0].items())


def test_the_gradient_of_a_bend_is_that_of_its_coefficient(trainable: Any) -> None:
    """One step of Adam moves every entry by the rate against the sign of the gradient of the loss at the drawn point."""
    predictor, (a, b), material = trainable
    middle = combine((a, b), (0.5, 0.5))
    done = train_points(
        predictor.model, (a, b), [middle], lambda _: (0.25, 0.25, 0.5), material, Training(1, 1e-3, rows_a_step=4)
    )
    model = predictor.model
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    try:
        model.load_state_dict(middle)
        model.requires_grad_(True)
        batch, order = material.batch([0, 1, 2, 3])
        loss = torch.nn.functional.cross_entropy(model(**batch).logits, torch.zeros(len(order), dtype=torch.int64))
        gradient = torch.autograd.grad(loss, model.classifier.weight)[0]
    finally:
        model.load_state_dict(state)
    moved = done.points[0]["classifier.weight"] - middle["classifier.weight"]
    clear = gradient.abs() > 1e-4
    assert clear.any()
    assert torch.allclose(moved[clear], -1e-3 * gradient[clear].sign(), atol=2e-5)
    assert done.losses[0] == pytest.approx(float(loss.detach()), rel=1e-5)
