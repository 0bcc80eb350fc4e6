"""The short cut through the last layer says what the whole layer says, in every family that takes it."""

from __future__ import annotations

import logging
from typing import Any

import pytest
import torch
from captured_log import CapturedLog
from families import FAMILIES as CASES
from families import family_case, inputs
from tiny import random_tensors
from torch import Tensor

from evals.predict.first_token import FAMILIES, bert_layer, first_token_only, last_layer
from merge.checkpoints.transformers_model import build


def classifier(
    model_type: str, end: str = "ForSequenceClassification", **changes: Any
) -> tuple[Any, dict[str, Tensor]]:
    """Return a tiny model in float64 with every parameter drawn, and a batch with padding."""
    config = family_case(model_type, end, **changes)
    batch = next(b for b in inputs(config) if not bool(b["attention_mask"].all()))
    return build(config, random_tensors(config, 1)), dict(batch)


def last_widths(model: Any, batch: dict[str, Tensor]) -> tuple[list[int], Tensor]:
    """Return how many places every layer norm after the embeddings was asked for, and the logits."""
    seen: list[int] = []
    norms = [m for n, m in model.named_modules() if isinstance(m, torch.nn.LayerNorm) and "embeddings" not in n]
    hooks = [norm.register_forward_hook(lambda _m, _i, out: seen.append(out.shape[1])) for norm in norms]
    with torch.inference_mode():
        logits = model(**batch).logits
    for hook in hooks:
        hook.remove()
    return seen, logits


@pytest.mark.parametrize("model_type", FAMILIES)
def test_every_family_says_the_same_and_computes_one_place(model_type: str) -> None:
    """Padded and unpadded batches, in float64; the last two layer norms see one place where they saw all of them."""
    model, padded = classifier(model_type)
    whole = {**padded, "attention_mask": torch.ones_like(padded["attention_mask"])}
    width = padded["input_ids"].shape[1]
    for batch in (padded, whole):
        places, plain = last_widths(model, batch)
        with torch.inference_mode(), first_token_only(model, batch) as taken:
            short_places, short = last_widths(model, batch)
        assert taken
        assert places == [width] * 4
        assert short_places == [width, width, 1, 1]
        assert torch.allclose(short, plain, atol=1e-10, rtol=0)
    # The control: the two batches themselves are told apart, and so are the places of one.
    assert not torch.allclose(model(**padded).logits, model(**whole).logits, atol=1e-3)


def test_a_first_token_that_ignores_the_mask_would_show(monkeypatch: pytest.MonkeyPatch) -> None:
    """The control of the test above: without its row of the mask, the first token reads padding."""
    model, batch = classifier("bert")
    plain = model(**batch).logits
    last = model.bert.encoder.layer[-1]
    monkeypatch.setattr(last, "forward", lambda hidden, *_, **__: bert_layer(last, hidden, None), raising=False)
    assert not torch.allclose(model(**batch).logits, plain, atol=1e-3)


def test_float32_logits_agree_to_a_hundred_thousandth() -> None:
    model, batch = classifier("bert")
    model.float()
    with torch.inference_mode():
        plain = model(**batch).logits
        with first_token_only(model, batch) as taken:
            assert taken
            assert torch.allclose(model(**batch).logits, plain, atol=1e-5, rtol=0)


def test_eager_attention_takes_it_too() -> None:
    """Its mask is added to the scores instead of choosing among them."""
    model, batch = classifier("bert")
    model.set_attn_implementation("eager")
    with torch.inference_mode():
        plain = model(**batch).logits
        with first_token_only(model, batch) as taken:
            assert taken
            assert torch.allclose(model(**batch).logits, plain, atol=1e-10, rtol=0)


def test_the_layer_is_itself_again_afterwards() -> None:
    """Also after an error; a model is used for other things than logits."""
    model, batch = classifier("bert")

    def stopped() -> None:
        with first_token_only(model, batch):
            assert model.bert(**batch).last_hidden_state.shape[1] == 1
            raise KeyError

    with torch.inference_mode():
        before = model.bert(**batch).last_hidden_state
        with pytest.raises(KeyError):
            stopped()
        assert torch.equal(model.bert(**batch).last_hidden_state, before)


@pytest.mark.parametrize("model_type", sorted(set(CASES) - set(FAMILIES)))
def test_other_families_go_the_whole_way(model_type: str) -> None:
    """Nothing is known of their layers; albert's last layer is its first one too."""
    model, batch = classifier(model_type)
    assert last_layer(model) is None
    with torch.inference_mode(), first_token_only(model, batch) as taken:
        assert not taken


@pytest.mark.parametrize("end", ["ForTokenClassification", "ForMaskedLM", "ForQuestionAnswering"])
def test_heads_that_read_every_token_go_the_whole_way(end: str) -> None:
    assert last_layer(classifier("bert", end)[0]) is None


def test_a_decoder_goes_the_whole_way() -> None:
    """Its first token sees only itself, by a mask that need not be stated."""
    assert last_layer(classifier("bert", is_decoder=True)[0]) is None
    assert last_layer(classifier("bert")[0]) is not None


def test_a_model_without_layers_has_none_to_cut() -> None:
    assert last_layer(classifier("bert", num_hidden_layers=0)[0]) is None


@pytest.mark.parametrize(
    ("dtype", "error", "exact"),
    [
        (torch.float32, 1e-3, False),
        (torch.float32, 1e-7, True),
        (torch.float64, 1e-10, False),
        (torch.float64, 1e-14, True),
    ],
)
def test_a_layer_that_is_off_by_more_than_rounding_is_refused(dtype: torch.dtype, error: float, exact: bool) -> None:
    """The last layer adds `error` to its output when it computes every token, as a changed layer of transformers might.

    The logits then differ by about as much. In float32 1e-3 is far from rounding and 1e-7 within it, in float64 1e-10 and
    1e-14; the cases that are taken are the control that it is the size of the error that counts.
    """
    model, batch = classifier("bert")
    model.to(dtype)
    layer = model.bert.encoder.layer[-1]
    forward = layer.forward
    layer.forward = lambda *args, **kwargs: forward(*args, **kwargs) + error
    with torch.inference_mode(), first_token_only(model, batch) as taken:
        assert taken is exact


class Whole(torch.nn.Module):
    """A layer without the parts that the short cut works with."""

    def forward(self, hidden: Tensor, *_: Any, **__: Any) -> Tensor:
        return hidden


def rescaled(layer: Any) -> None:
    """Make a layer that knows its scaling only while it computes: what the short cut reads there is not used."""
    attention, scaling, plain = layer.attention.self, layer.attention.self.scaling, layer.attention.self.forward

    def forward(*args: Any, **kwargs: Any) -> Any:
        attention.scaling = scaling
        out = plain(*args, **kwargs)
        attention.scaling = 2 * scaling
        return out

    attention.forward = forward


def test_nothing_is_said_of_a_model_that_predicts_no_number(captured_log: CapturedLog) -> None:
    """Logits that are NaN differ from themselves; its rows are named where they are predicted."""
    model, batch = classifier("bert")
    with torch.inference_mode(), captured_log.at_level(logging.WARNING):
        model.classifier.bias.fill_(torch.nan)
        with first_token_only(model, batch) as taken:
            assert not taken
    assert captured_log.messages == []


@pytest.mark.parametrize("reason", ["it gives other logits", "'Whole' object has no attribute 'attention'"])
def test_a_layer_made_otherwise_is_noticed(reason: str, captured_log: CapturedLog) -> None:
    """As another version of transformers might make it: then all tokens go through, the logits stay, and a line says so."""
    model, batch = classifier("bert")
    if "Whole" in reason:
        model.bert.encoder.layer[-1] = Whole()
    else:
        rescaled(model.bert.encoder.layer[-1])
    with torch.inference_mode(), captured_log.at_level(logging.WARNING):
        plain = model(**batch).logits
        with first_token_only(model, batch) as taken:
            assert not taken
            assert torch.equal(model(**batch).logits, plain)
    assert len(captured_log.messages) == 1
    said = f"BertForSequenceClassification: the short cut through the last layer does not hold ({reason})"
    assert said in captured_log.messages[0]
