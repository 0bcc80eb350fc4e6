"""Linear maps of components: planted linear ones, numpy's least squares, models with maps in them, too little text."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from slotted_models import batch_of, model_of

from evals.surgery.linear import COMPONENTS, check_tokens, fit_components, streams
from evals.surgery.replacement import component_plan, replacements
from evals.surgery.slots import SlottedModel
from merge.errors import CalibrationError
from merge.layers.activations import split_batches


def batches_of(model: SlottedModel, count: int = 6) -> list[dict[str, torch.Tensor]]:
    """Return batches of enough random tokens for a map of 24 units."""
    batches = [batch_of(model, seed) for seed in range(count)]
    return [{name: torch.cat([batch[name]] * 2) for name, batch in zip(b, [b] * len(b), strict=True)} for b in batches]


def test_a_truly_linear_component_has_non_linearity_0() -> None:
    """Planted: a feed-forward part whose activation is the identity is linear; with GELU, and attention, it is not."""
    for activation, linear in (("linear", True), ("gelu", False)):
        model = model_of("bert", 2, hidden_act=activation)
        fits = fit_components(model, batches_of(model))
        for layer in range(2):
            ffn, attention = (fits.linearity[layer, name] for name in ("ffn", "attention"))
            assert (ffn.nonlinearity < 1e-6) is linear
            assert (ffn.r2 > 1 - 1e-5) is linear
            assert (ffn.error_norm < 1e-3) is linear
            assert attention.nonlinearity > 1e-3
            assert ffn.of_mean > 1e-3
            assert ffn.of_skip is None


@torch.inference_mode()
def test_maps_in_place_of_a_linear_component_change_nothing() -> None:
    """All at once; in place of a component that is not linear they do change the outputs."""
    model = model_of("bert", 2, hidden_act="linear")
    fits = fit_components(model, batches_of(model))
    batch = batch_of(model, 9)
    whole = model.whole(batch)
    for component, same in (("ffn", True), ("attention", False), ("layer", False)):
        plan = component_plan((0, 1), component, fits.maps, 2)
        error = float((model.follow(batch, plan, whole.calls).states - whole.states).abs().max())
        assert (error < 1e-3) is same, component


def gap_of(x: np.ndarray, y: np.ndarray) -> float:
    """Return 1 - cosine, mean over rows."""
    return float((1 - (x * y).sum(1) / np.linalg.norm(x, axis=1) / np.linalg.norm(y, axis=1)).mean())


def test_a_closed_form_is_the_least_squares_of_numpy() -> None:
    """Map and measures of every component, computed again from all rows at once on the same texts."""
    model = model_of("mpnet", 2)
    batches = batches_of(model)
    fits = fit_components(model, batches)
    parts = {
        held: list(streams(model, [b for b, flag in split_batches(tuple(batches)) if flag is held], ""))
        for held in (False, True)
    }
    for layer in range(2):
        for name, (read, written) in COMPONENTS.items():
            x, y, x_held, y_held = [
                np.concatenate([getattr(seen[layer], side).double().numpy() for seen in parts[held]])
                for held in (False, True)
                for side in (read, written)
            ]
            ones = np.ones((len(x), 1))
            # What a norm wrote obeys one linear relation, but for the rounding of float32, which must not be fitted.
            solved = np.linalg.lstsq(np.hstack([x, ones]), y, rcond=1e-6)[0]
            given = x_held @ solved[:-1] + solved[-1]
            cosine = (given * y_held).sum(1) / np.linalg.norm(given, axis=1) / np.linalg.norm(y_held, axis=1)
            found = fits.linearity[layer, name]
            assert found.nonlinearity == pytest.approx(1 - cosine.mean(), abs=1e-6)
            residual, spread = ((given - y_held) ** 2).sum(), ((y_held - y_held.mean(0)) ** 2).sum()
            assert found.r2 == pytest.approx(1 - residual / spread, abs=1e-5)
            gap = np.linalg.norm(given - y_held, axis=1) / np.linalg.norm(y_held, axis=1)
            assert found.error_norm == pytest.approx(gap.mean(), abs=1e-5)
            assert found.of_mean == pytest.approx(gap_of(np.broadcast_to(y.mean(0), y_held.shape), y_held), abs=1e-5)
            skips = "skip" in name or name == "layer"
            assert found.of_skip == (pytest.approx(gap_of(x_held, y_held), abs=1e-5) if skips else None)
            ratio = np.linalg.norm(y_held, axis=1) / np.linalg.norm(x_held, axis=1)
            assert found.size == pytest.approx(ratio.mean(), rel=1e-5)
    assert fits.tokens == len(x)
    assert fits.held_out == len(x_held)
    tokens = sum(int(batch["attention_mask"].sum()) for batch in batches)
    assert fits.tokens + fits.held_out == tokens < sum(batch["attention_mask"].numel() for batch in batches)


def test_streams_add_up() -> None:
    """Where norms come first, what sublayers write is what they add; of parallel sublayers both add to one stream."""
    for family, parallel in (("gpt2", False), ("gpt_neox", True), ("gemma2", False)):
        model = model_of(family, 2)
        for seen in next(iter(streams(model, [batch_of(model)], ""))):
            middle = seen.before if parallel else seen.before + seen.attention
            torch.testing.assert_close(seen.middle, middle)
            both = seen.before + seen.attention + seen.ffn
            torch.testing.assert_close(seen.after, both, rtol=1e-5, atol=1e-5)
            assert not torch.allclose(seen.after, seen.before + seen.ffn, atol=1e-3)


@pytest.mark.parametrize("loss", ["cosine", pytest.param("mse", marks=pytest.mark.slow)])
def test_the_published_training_comes_nearer_with_more_rounds(loss: str) -> None:
    """And never has less squared error than the closed form on the tokens of the fit."""
    model = model_of("bert", 1)
    batches = batches_of(model, 3)
    few, more = (fit_components(model, batches, loss, rounds).linearity[0, "layer"] for rounds in (1, 30))
    assert more.nonlinearity < few.nonlinearity


def test_too_little_text_is_one_line_that_says_how_much_is_needed() -> None:
    model = model_of("bert", 1)
    short = {name: tensor[:, :2] for name, tensor in batch_of(model).items()}
    with pytest.raises(CalibrationError, match="more than 24 tokens.*Give at least .* texts like these") as stop:
        fit_components(model, [short, short])
    assert "\n" not in str(stop.value)
    with pytest.raises(CalibrationError, match="leave none to judge a fit by"):
        fit_components(model, [{name: tensor[:2] for name, tensor in batch_of(model).items()}])
    check_tokens(25, 24, 5)
    with pytest.raises(CalibrationError, match="Give at least 79 texts like these, .* better 782"):
        check_tokens(24, 24, 60)


def test_components_are_replaced_one_at_a_time_and_from_both_ends() -> None:
    model = model_of("bert", 3)
    maps = fit_components(model, batches_of(model)).maps
    listed = list(replacements(3, maps))
    kinds = {(v.part, v.kind) for v in listed}
    assert len(listed) == 3 * (3 + 2 + 1) + 3 * 3
    assert ("replace", "ffn, from the back") in kinds
    assert ("remove", "layer, one") in kinds
    cumulative = [v.layers for v in listed if v.kind == "layer, from the front"]
    assert cumulative == [(0, 1), (0, 1, 2)]
    assert len(list(replacements(3, maps, cumulative=False))) == 18
