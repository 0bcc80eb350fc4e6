"""Hooks show the activations of named modules, and padding is taken out of them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from merge.checkpoints.hooks import PaddingError, token_mask, token_rows, watching


class Block(nn.Module):
    """Runs one dense layer twice, the second time by keyword, and gives a tuple back."""

    def __init__(self) -> None:
        super().__init__()
        self.dense = nn.Linear(3, 3)
        self.last = nn.Linear(3, 2)

    def forward(self, x: Tensor) -> tuple[Tensor, str]:
        return self.last(input=self.dense(self.dense(x))), "no tensor"


class Model(nn.Module):
    base_model_prefix = "bert"

    def __init__(self) -> None:
        super().__init__()
        self.block = Block()

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.block(x)[0]
        return result


@pytest.fixture
def model() -> Model:
    torch.manual_seed(0)
    return Model()


def test_inputs_and_outputs_are_shown_in_the_order_they_come_up(model: Model) -> None:
    """The values are the layers' own formula; of a tuple it is the first; an input may be given by its name."""
    x, shown = torch.randn(2, 3), list[tuple[str, Tensor]]()
    sites = ["block.last:in", "block.last:out", "block:out", "block.dense:in"]
    with torch.no_grad(), watching(model, sites, lambda *seen: shown.append(seen)):
        model(x)
    dense, last = model.block.dense, model.block.last
    once = x @ dense.weight.T + dense.bias
    twice = once @ dense.weight.T + dense.bias
    out = twice @ last.weight.T + last.bias
    expected = [
        ("block.dense:in", x),
        ("block.dense:in", once),
        ("block.last:in", twice),
        ("block.last:out", out),
        ("block:out", out),
    ]
    assert [site for site, _ in shown] == [site for site, _ in expected]
    for (_, found), (_, wanted) in zip(shown, expected, strict=True):
        assert torch.allclose(found, wanted, atol=1e-6)


def test_the_first_run_alone_where_that_is_asked_for(model: Model) -> None:
    x, shown = torch.randn(2, 3), list[Tensor]()
    with torch.no_grad(), watching(model, ["block.dense:in"], lambda _, a: shown.append(a), first=True):
        model(x)
        model(x + 1)
    assert len(shown) == 1
    assert torch.equal(shown[0], x)


def test_a_module_is_found_with_and_without_the_prefix_of_the_base_model(model: Model) -> None:
    shown: list[str] = []
    with watching(model, ["bert.block:out", "block:in"], lambda site, _: shown.append(site)):
        model(torch.randn(2, 3))
    assert shown == ["block:in", "bert.block:out"]
    with pytest.raises(KeyError), watching(model, ["none:out"], lambda *_: None):
        pass


def test_hooks_are_gone_after_the_block_and_after_an_error(model: Model) -> None:
    """An error in what is called ends the forward pass: a caller may stop it there."""
    shown: list[str] = []

    def stop(site: str, _: Tensor) -> None:
        shown.append(site)
        raise StopIteration

    def run() -> None:
        with watching(model, ["block.dense:out", "block.last:out"], stop):
            model(torch.randn(2, 3))

    with pytest.raises(StopIteration):
        run()
    model(torch.randn(2, 3))
    assert shown == ["block.dense:out"]
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


MASK = torch.tensor([[1, 1, 0], [1, 0, 0]], dtype=torch.bool)
HIDDEN = torch.arange(12.0).reshape(2, 3, 2)  # unit u of token t of text i is 6 i + 2 t + u
KEPT = torch.tensor([[0.0, 1], [2, 3], [6, 7]])


@pytest.mark.parametrize(
    ("activation", "order", "rows"),
    [
        (HIDDEN, "", KEPT),
        (HIDDEN.transpose(0, 1), "time", KEPT),
        (HIDDEN.reshape(6, 2), "", KEPT),
        (HIDDEN, "all", HIDDEN.reshape(6, 2)),
        (HIDDEN[:, 0], "", HIDDEN[:, 0]),
        (HIDDEN[..., None, :].expand(2, 3, 4, 2), "", KEPT.repeat_interleave(4, 0)),
    ],
    ids=["tokens", "position first", "flat tokens", "no padding", "pooled", "heads"],
)
def test_rows_are_the_tokens_that_are_not_padding(activation: Tensor, order: str, rows: Tensor) -> None:
    assert torch.equal(token_rows(activation, MASK, order), rows)
    # The control: without the mask padding is among them, unless there is none.
    assert (len(token_rows(activation, None)) > len(rows)) == (order != "all" and len(rows) not in (2, 6))


def test_an_activation_of_another_shape_is_refused_with_both_shapes() -> None:
    with pytest.raises(PaddingError, match=r"batch of shape \(2, 3\), found a tensor of shape \(3, 2, 2\)"):
        token_rows(HIDDEN.transpose(0, 1), MASK)
    with pytest.raises(PaddingError, match=r"\(5, 2\)"):
        token_rows(torch.zeros(5, 2), MASK)


def test_the_mask_of_a_batch_is_that_of_its_texts_however_they_are_grouped() -> None:
    """Multiple choice has an axis of choices; images have no mask."""
    batch: dict[str, Any] = {"attention_mask": MASK.long()[:, None]}
    mask = token_mask(batch)
    assert mask is not None
    assert torch.equal(mask, MASK)
    assert token_mask({"pixel_values": HIDDEN}) is None
