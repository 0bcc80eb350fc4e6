"""Which texts are compared by token, and the mean over the tokens of a text."""

from __future__ import annotations

import pytest
import torch
from tiny import bert_config, random_tensors

from evals.inside.representations import BY_TEXT, first_texts, represent
from evals.inside.sites import sites_of
from merge.checkpoints.inputs import Tokens
from merge.checkpoints.transformers_model import build


@pytest.mark.parametrize(("most", "lengths"), [(8, (5, 3)), (7, (5,)), (2, (5,)), (99, (5, 3, 4))])
def test_texts_are_taken_as_long_as_their_tokens_fit(most: int, lengths: tuple[int, ...]) -> None:
    """In their order, whole, and one at least."""
    tokens = Tokens({"input_ids": torch.arange(12)}, (5, 3, 4), 0, 0)
    first = first_texts(tokens, most)
    assert first.lengths == lengths
    assert first.fields["input_ids"].tolist() == list(range(sum(lengths)))


def test_a_site_that_does_not_vary_is_the_same_for_texts_of_any_length() -> None:
    """A gain of 0 makes the last layer write its bias at every token: the mean of each text is that bias, to the last bit."""
    tensors = random_tensors(bert_config(), 0, torch.float32)
    tensors["bert.encoder.layer.1.output.LayerNorm.weight"].zero_()
    model = build(bert_config(), tensors)
    lengths = tuple(range(3, 20))
    ids = torch.randint(5, 18, (sum(lengths),), generator=torch.Generator().manual_seed(0))
    tokens = Tokens({"input_ids": ids, "attention_mask": torch.ones_like(ids)}, lengths, 0, 0)
    first, last = represent(model, tokens, sites_of(model).select(["output"]), BY_TEXT, "a")
    bias = tensors["bert.encoder.layer.1.output.LayerNorm.bias"]
    assert torch.equal(last.values, bias.expand(len(lengths), -1))
    assert float(first.values.std(0).min()) > 1e-3  # the layer before varies (control)
