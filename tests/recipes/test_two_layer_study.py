"""The study of two-layer networks: stacks are the models of the tool, figures are formulas, reductions are what they say."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import evals
import merge
from merge.checkpoints.transformers_model import build

RECIPES = Path(__file__).parents[2] / "recipes"


@pytest.fixture(scope="module")
def study() -> Iterator[Any]:
    """Return a function that imports a module of the study by its name."""
    sys.path.insert(0, str(RECIPES))
    yield lambda name: import_module(name)
    sys.path.remove(str(RECIPES))


def _nets(study: Any, count: int = 3, width: int = 6, depth: int = 1, norm: bool = False) -> Any:
    nets = study("two_layer.nets")
    return nets.initial(count, _data(study), width, depth, norm, nets.Training(), seed=1)


def _data(study: Any, classes: int = 3) -> Any:
    generator = torch.Generator().manual_seed(0)
    rows, gold = torch.randn(60, 4, generator=generator), torch.arange(60) % classes
    return study("two_layer.nets").Data("made up", rows[:40], gold[:40], rows[40:], gold[40:], classes)


def test_a_stack_computes_what_the_models_of_the_tool_compute(study: Any, tmp_path: Path) -> None:
    """Four layers with LayerNorm: the same numbers from the batched products and from the checkpoints that are written."""
    stack, data = _nets(study, 2, depth=3, norm=True), _data(study)
    outputs = study("two_layer.nets").logits(stack, data.test)
    folders = study("two_layer.checkpoints").write_networks(stack, tmp_path)
    for folder, expected in zip(folders, outputs, strict=True):
        opened = merge.load(folder)
        model = build(opened.config, opened.state_dict())
        assert torch.allclose(model(data.test).logits, expected, atol=1e-5)


def test_one_output_is_two_of_which_the_first_is_zero(study: Any) -> None:
    """The loss of both is that of a sigmoid: log(1 + exp(-z)) where the class is 1."""
    data = _data(study, classes=2)
    nets = study("two_layer.nets")
    stack = nets.initial(1, data, 6, 1, False, nets.Training(), seed=1)
    two = study("two_layer.checkpoints").two_outputs(nets.one(stack, 0))
    outputs = nets.logits(nets.stacked([two]), data.test)
    single = nets.losses(nets.logits(stack, data.test), data.test_gold)
    assert torch.allclose(nets.losses(outputs, data.test_gold), single, atol=1e-6)


def test_the_line_of_a_stack_is_that_of_the_public_function(study: Any, tmp_path: Path) -> None:
    stack, data = _nets(study), _data(study)
    checkpoints, connect = study("two_layer.checkpoints"), study("two_layer.connect")
    task = checkpoints.write_task(data, tmp_path)
    a, b, _ = checkpoints.write_networks(stack, tmp_path)
    measured = evals.barrier(a, b, task=str(task), data=tmp_path / "made-up.jsonl", points=11)
    found = connect.lines(stack, data, [(0, 1)])
    assert np.allclose(measured.curves["naive"]["loss"], found.losses[0], atol=1e-5)
    assert measured.barrier == pytest.approx(found.barriers[0], abs=1e-5)


def test_epsilon_and_barrier_of_a_curve_are_those_of_their_definitions(study: Any) -> None:
    """Read off by hand: ends 1 and 2, a peak of 4 half way; over the chord it is 2.5 high, over the worse end 2."""
    curve = np.array([[1.0, 4.0, 2.0]])
    found = study("two_layer.connect").Lines(((0, 1),), curve, 2)
    assert found.barriers == pytest.approx([2.5])
    assert found.epsilon == pytest.approx([2.0])
    assert found.matrix.tolist() == [[0.0, 2.0], [2.0, 0.0]]


def test_matching_undoes_every_order_of_one_network(study: Any) -> None:
    connect, nets = study("two_layer.connect"), study("two_layer.nets")
    one = nets.one(_nets(study, 1, width=16, depth=2), 0)
    orders = connect.shuffled(one, 3)
    assert not any(torch.equal(orders["layers.0.dense.weight"][k], one["layers.0.dense.weight"]) for k in range(3))
    back = connect.matched(orders, one)
    assert all(torch.equal(tensor[k], one[name]) for name, tensor in back.items() for k in range(3))


@pytest.fixture(scope="module")
def planted(study: Any) -> tuple[Any, Any]:
    """A network of 6 units of as many directions, and the same function by 6 + 18 of them: copies of other lengths."""
    nets = study("two_layer.nets")
    plain = nets.one(_nets(study, 1), 0)
    lengths = torch.tensor([0.5, 2.0, 3.0])
    weight, bias, out = (plain[n] for n in ("layers.0.dense.weight", "layers.0.dense.bias", "classifier.weight"))
    copies = [weight * s for s in lengths], [bias * s for s in lengths], [out / (4 * s) for s in lengths]
    redundant = {
        "layers.0.dense.weight": torch.cat([weight, *copies[0]]),
        "layers.0.dense.bias": torch.cat([bias, *copies[1]]),
        "classifier.weight": torch.cat([out / 4, *copies[2]], 1),
    }
    return plain, {**plain, **redundant}


def test_reduction_recovers_a_planted_network_and_the_published_factor_does_not(study: Any, planted: Any) -> None:
    """Copies s times as long, read by a quarter over s, give the network back if their outgoing weights take the factor s."""
    plain, redundant = planted
    reduced = study("two_layer.reduce").reduced
    kept = reduced(redundant)
    assert all(torch.allclose(kept[name], tensor, atol=1e-6) for name, tensor in plain.items())
    published = reduced(redundant, scale="published")
    assert published["layers.0.dense.bias"].shape == plain["layers.0.dense.bias"].shape
    difference = (published["classifier.weight"] / plain["classifier.weight"]).flatten()
    # 1/4 (1 + sum over s of 1/s^2) in place of 1
    assert torch.allclose(difference, torch.full_like(difference, (1 + 4 + 1 / 4 + 1 / 9) / 4), atol=1e-5)


def test_the_published_loop_ends_after_about_half_of_the_units(study: Any, planted: Any) -> None:
    """24 units in 6 groups of 4: after k groups it has looked at 4 k units and 24 - 3 k are left; at k = 4 it ends."""
    left = study("two_layer.reduce").reduced(planted[1], whole=False)
    assert len(left["layers.0.dense.bias"]) == 24 - 3 * 4
    with pytest.raises(ValueError, match="unknown scale 'seed'"):
        study("two_layer.reduce").reduced(planted[1], scale="seed")


def test_padding_keeps_the_function(study: Any) -> None:
    nets, data = study("two_layer.nets"), _data(study)
    narrow, wide = nets.one(_nets(study, 1, width=4), 0), nets.one(_nets(study, 1, width=7), 0)
    both = nets.logits(study("two_layer.reduce").padded([narrow, wide]), data.test)
    for net, outputs in zip((narrow, wide), both, strict=True):
        assert torch.allclose(nets.logits(nets.stacked([net]), data.test)[0], outputs, atol=1e-6)


def test_training_a_stack_is_training_its_networks(study: Any) -> None:
    """AdamW treats every number by itself: one network of a stack of two ends where it ends alone."""
    nets, data = study("two_layer.nets"), _data(study)
    training = nets.Training(epochs=3, rate=0.05, batch=16)
    stack = _nets(study, 2)
    together = nets.train(stack, data, training, seed=3, shared=True)
    alone = nets.train(nets.chosen(stack, [1]), data, training, seed=3, shared=True)
    assert all(torch.allclose(together[name][1], tensor[0], atol=1e-5) for name, tensor in alone.items())
    assert not torch.allclose(together["classifier.weight"], stack["classifier.weight"])


def test_disagreement_and_strong_units_are_those_read_off_by_hand(study: Any) -> None:
    """Sigmoids of z = x - c at x = 0, 1, 2, 3 with c = .5, 1.5, -1; units of strength 90, 6, 4 of which two have .95."""
    nets, units = study("two_layer.nets"), study("two_layer.units")
    rows = torch.arange(4.0)[:, None]
    data = nets.Data("by hand", rows, torch.zeros(4).long(), rows, torch.zeros(4).long(), 2)
    lines = {
        "layers.0.dense.weight": torch.ones(3, 1, 1),
        "layers.0.dense.bias": torch.zeros(3, 1),
        "classifier.weight": torch.ones(3, 1, 1),
        "classifier.bias": -torch.tensor([[0.5], [1.5], [-1.0]]),
    }
    assert units.disagreements(lines, data).tolist() == [0.25, 0.25, 0.5]
    planted = {
        "layers.0.dense.weight": torch.tensor([[[2.0, 0.0], [5.0, 4.0], [1.0, 1.0]]]),
        "layers.0.dense.bias": torch.tensor([[0.0, 7.0, 1.0]]),
        "classifier.weight": torch.tensor([[[0.0, 0.0, 3.0**0.5]]]),
    }
    assert units.strong_units(planted).tolist() == [2.0]
    assert units.strong_units(planted, share=0.97).tolist() == [3.0]


def test_a_schedule_ends_at_zero_and_a_start_is_kaimings(study: Any) -> None:
    """He et al. 2015: weights of variance 2 / fan-in, uniform ones up to the root of 6 / fan-in."""
    nets = study("two_layer.nets")
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.1)
    scheduler = nets._scheduler(optimizer, nets.Training(epochs=4), 1)
    for _ in range(4):
        optimizer.step()
        scheduler.step()
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0, abs=1e-12)
    data = _data(study)
    for init, bound in (("uniform", (6 / 4) ** 0.5), ("default", 4**-0.5)):
        weight = nets.initial(9, data, 64, 1, False, nets.Training(init=init), seed=0)["layers.0.dense.weight"]
        assert 0.98 * bound < float(weight.abs().max()) <= bound
    normal = nets.initial(9, data, 64, 1, False, nets.Training(init="normal"), seed=0)["layers.0.dense.weight"]
    assert float(normal.std()) == pytest.approx((2 / 4) ** 0.5, rel=0.05)


def test_clusters_are_cut_at_the_height_and_blocks_are_means_without_the_diagonal(study: Any) -> None:
    """Two pairs, .1 apart inside and .3 across: two clusters at .2, one at .3."""
    matrix = np.full((4, 4), 0.3)
    matrix[0, 1] = matrix[1, 0] = matrix[2, 3] = matrix[3, 2] = 0.1
    np.fill_diagonal(matrix, 0)
    clusters = study("two_layer.connect").clusters
    assert [clusters(matrix, height)["distances"]["clusters"] for height in (0.09, 0.2, 0.3)] == [4, 2, 1]
    mean = study("two_layer.study")._block_mean
    assert (mean(matrix, 0, 0, 2), mean(matrix, 0, 1, 2)) == pytest.approx((0.1, 0.3))


def test_the_share_that_matching_moves_is_that_of_the_units(study: Any) -> None:
    """Two of six units change places."""
    nets = study("two_layer.nets")
    one = nets.one(_nets(study, 1), 0)
    order = torch.tensor([1, 0, 2, 3, 4, 5])
    other = {**one, **{n: one[n][order] for n in ("layers.0.dense.weight", "layers.0.dense.bias")}}
    other["classifier.weight"] = one["classifier.weight"][:, order]
    share = study("two_layer.study").share_moved
    assert share(nets.stacked([one, other]), one, 0) == 0
    assert share(nets.stacked([one, other]), one, 1) == pytest.approx(2 / 6)


def test_a_greedy_soup_takes_what_does_not_raise_the_loss(study: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """By hand: 1 is best; 2 would raise the loss of the average, 0 leaves it as it is."""
    module = study("two_layer.study")
    table = {(1,): 0.1, (1, 2): 0.15, (1, 0): 0.1}
    monkeypatch.setattr(module, "scores", lambda nets, data: (torch.tensor([0.3, 0.1, 0.2]), None))
    monkeypatch.setattr(module, "loss_of_average", lambda nets, numbers, data: table[tuple(numbers)])
    assert module.greedy_members({}, None) == [1, 0]


def test_a_soup_is_chosen_on_one_half_of_the_test_rows_and_told_on_the_other(study: Any) -> None:
    nets, module, data = study("two_layer.nets"), study("two_layer.study"), _data(study)
    training = nets.Training(epochs=1, batch=20)
    record = module.soups(data, 4, training, 2)["own starts"]
    networks = nets.zoo(2, data, 4, training, seed=800)
    losses = nets.losses(nets.logits(networks, data.test[10:]), data.test_gold[10:])
    assert record["mean of them"] == pytest.approx(float(losses.mean()), abs=1e-6)
    assert record["ensemble"] <= record["mean of them"]


def test_forks_train_as_long_and_as_the_run_that_they_share(study: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    nets, module, data = study("two_layer.nets"), study("two_layer.entezari"), _data(study)
    start, trained = _nets(study, 1), list[Any]()
    monkeypatch.setattr(module, "zoo", lambda count, data, width, training, **_: trained.append(training) or start)
    monkeypatch.setattr(module, "train", lambda forks, data, training, **_: trained.append(training) or forks)
    records = module.spawned(data, (0, 2, 5), 3, nets.Training(epochs=5, rate=0.3, decay=0.2))
    assert [r["shared epochs"] for r in records] == [0, 2, 5]
    assert [t.epochs for t in trained] == [0, 5, 2, 3, 5]
    assert {(t.rate, t.decay, t.schedule) for t in trained} == {(0.3, 0.2, "constant")}
    assert [r["naive"][0] for r in records] == pytest.approx([0] * 3, abs=1e-6)  # copies of one network


@pytest.mark.slow
def test_every_part_is_measured_printed_and_drawn(study: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On few networks and few epochs: that a part runs, not what comes out."""
    script, records = study("two_layer_study"), study("two_layer.study")
    short = study("two_layer.nets").Training(epochs=1)
    monkeypatch.setattr(records, "MOONS", short)
    monkeypatch.setattr(records, "DIGITS", short)
    size = {"count": 3, "paired": 3, "each": 2, "few": 2, "steps": 3, "widths": (4,)}
    parts = tuple(part for part in script.PARTS if part not in ("optimisers", "references", "norm", "entezari"))
    kept: list[set[str]] = []
    measured = script.measure(parts, size, lambda _: None, lambda records: kept.append(set(records)))
    assert [len(each) for each in kept] == [1, 2, 3, 4]
    text = script.text_of(json.loads(json.dumps(measured)))
    assert [line for line in text.splitlines() if line.startswith("# ")] == [
        "# moons",
        "# digits",
        "# checkpoints of one run",
        "# averages of several networks, digits",
    ]
    script.draw(measured, tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"barriers.png", "reduced.png", "epsilon.png"}
