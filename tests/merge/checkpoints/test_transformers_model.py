"""Models are loaded without draws on the meta device, and draws elsewhere stay what they are."""

from __future__ import annotations

import pytest
import torch
from tiny import bert_config, random_tensors
from torch.nn import Embedding, LayerNorm, Linear, init

from merge.checkpoints.transformers_model import build, loading, meta_model

DRAWS = ("kaiming_uniform_", "normal_", "uniform_")


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the functions of torch that have drawn values, in order."""
    names: list[str] = []
    for name in DRAWS:
        function = getattr(init, name)

        def counted(*arguments: object, name: str = name, function: object = function, **named: object) -> object:
            names.append(name)
            return function(*arguments, **named)  # type: ignore[operator]

        monkeypatch.setattr(init, name, counted)
    return names


def test_nothing_is_drawn_for_a_model_whose_weights_are_given(drawn: list[str]) -> None:
    tensors = random_tensors(bert_config(), 1)
    model = build(bert_config(), tensors)
    meta_model(bert_config())
    assert drawn == []
    state = model.state_dict()
    assert all(torch.equal(state[name], tensor) for name, tensor in tensors.items())


def test_values_elsewhere_are_drawn_as_always(drawn: list[str]) -> None:
    """A tensor that is in no file has to get its random numbers, and the very same ones."""

    def layers() -> list[torch.Tensor]:
        torch.manual_seed(5)
        return [p.detach() for module in (Linear(3, 2), Embedding(4, 2), LayerNorm(2)) for p in module.parameters()]

    expected, count = layers(), len(drawn)
    with loading():
        found = layers()
    assert all(torch.equal(left, right) for left, right in zip(found, expected, strict=True))
    assert len(drawn) == 2 * count > 0


def test_the_functions_of_torch_are_put_back() -> None:
    before = [getattr(init, name) for name in DRAWS]
    inside = []

    def fail() -> None:
        with loading():
            inside.extend(getattr(init, name) for name in DRAWS)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert not set(inside) & set(before)
    assert [getattr(init, name) for name in DRAWS] == before


def test_a_level_of_logs_and_progress_bars_are_put_back() -> None:
    from transformers.utils import logging

    before = logging.get_verbosity()
    logging.set_verbosity_info()
    logging.enable_progress_bar()
    try:
        with loading():
            assert logging.get_verbosity() == logging.ERROR
            assert not logging.is_progress_bar_enabled()
        assert logging.get_verbosity() == logging.INFO
        assert logging.is_progress_bar_enabled()
    finally:
        logging.set_verbosity(before)
