"""Models are loaded without draws on the meta device, draws elsewhere stay what they are, and twins share their memory."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from tiny import bert_config, random_tensors
from torch.nn import Embedding, LayerNorm, Linear, init

from merge.checkpoints.transformers_model import build, loading, meta_model, runs_beside_others, twin

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


def test_a_twin_has_the_memory_of_its_model_and_state_of_its_own() -> None:
    """What is written into the model's weights and buffers is the twin's; what a module keeps for itself is not."""
    model = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.BatchNorm1d(3)).eval()
    other = twin(model, share_buffers=True)
    model[0].weight.data.fill_(2.0)
    model[1].running_mean.fill_(5.0)
    model[0].kept = "own"
    assert torch.equal(other[0].weight, model[0].weight)
    assert torch.equal(other[1].running_mean, model[1].running_mean)
    assert "kept" not in vars(other[0])
    assert not torch.equal(twin(model)[1].running_mean.add_(1), model[1].running_mean)


def test_a_model_that_seeds_the_random_numbers_of_the_process_runs_alone() -> None:
    """BigBird draws its blocks so; BERT draws nothing, and what is no model is not known."""
    assert runs_beside_others(module_of("bert"))
    assert not runs_beside_others(module_of("big_bird"))
    assert not runs_beside_others(lambda **_: None)


def module_of(family: str) -> torch.nn.Module:
    """Return a module with the config of a family, and one parameter."""
    module = torch.nn.Linear(1, 1)
    module.config = SimpleNamespace(model_type=family)
    return module
