"""Transport: plans against linear programming, and models of other widths that are known to be the same function."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from contracts.test_aligners import make_pair
from scipy.optimize import linear_sum_assignment, linprog
from tiny import bert_config, random_tensors, save_checkpoint
from torch import Tensor

from merge.alignment.matchers.transport import entropic_plan, match_transport, output_change, plan, transported
from merge.alignment.pair import Pair
from merge.checkpoints.inputs import random_inputs
from merge.checkpoints.open import open_checkpoint
from merge.commands.merge_models import merge_command
from merge.errors import AlignmentError
from merge.symmetry.architectures import spec_for
from merge.symmetry.permutation import Permutation, apply, identity

UNITS = 12


def least_cost(cost: np.ndarray) -> float:
    """The optimum of the transport problem by linear programming."""
    n, m = cost.shape
    rows, columns = np.kron(np.eye(n), np.ones(m)), np.kron(np.ones(n), np.eye(m))
    masses = np.concatenate([np.full(n, 1 / n), np.full(m, 1 / m)])
    return float(linprog(cost.reshape(-1), A_eq=np.vstack([rows, columns]), b_eq=masses).fun)


@pytest.mark.parametrize(("n", "m"), [(6, 6), (4, 6), (6, 3), (5, 7)])
def test_a_plan_costs_what_linear_programming_finds(n: int, m: int) -> None:
    """And it is a plan: equal masses leave and arrive. One that ignores the cost pays more."""
    cost = np.random.default_rng(n * m).random((n, m))
    found = plan(torch.from_numpy(cost)).numpy()
    assert np.allclose(found.sum(1), 1 / n)
    assert np.allclose(found.sum(0), 1 / m)
    assert (found * cost).sum() == pytest.approx(least_cost(cost), abs=1e-12)
    assert cost.mean() > least_cost(cost) + 0.05


def test_a_blurred_plan_nears_the_exact_one() -> None:
    """Both sides keep their masses; the more blur, the more it costs."""
    cost = np.random.default_rng(0).random((5, 7))
    costs = []
    for blur in (0.01, 0.1, 1.0):
        found = entropic_plan(torch.from_numpy(cost), blur, 20000).numpy()
        assert np.allclose(found.sum(1), 1 / 5, atol=1e-6)
        assert np.allclose(found.sum(0), 1 / 7, atol=1e-6)
        costs.append((found * cost).sum())
    assert costs[0] == pytest.approx(least_cost(cost), rel=0.01)
    assert costs[0] < costs[1] - 1e-3 < costs[2] - 2e-3


def model(units: int, seed: int = 0) -> tuple[dict[str, object], dict[str, Tensor]]:
    config = bert_config(intermediate_size=units)
    return config, random_tensors(config, seed, torch.float32)


def split(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the same function with every feed-forward unit in two halves."""
    out = dict(tensors)
    for layer in range(2):
        stem = f"bert.encoder.layer.{layer}"
        for name in (f"{stem}.intermediate.dense.weight", f"{stem}.intermediate.dense.bias"):
            out[name] = tensors[name].repeat_interleave(2, 0)
        name = f"{stem}.output.dense.weight"
        out[name] = tensors[name].repeat_interleave(2, 1) / 2
    return out


def pair_of(a: tuple[dict[str, object], dict[str, Tensor]], b: dict[str, Tensor]) -> Pair:
    return Pair(spec_for(a[0]), a[1], b, a[0], str, random_inputs(a[0], 0))


def shuffled(config: dict[str, object], tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the same function with feed-forward units and residual in other orders."""
    spec, shapes = spec_for(config), {name: tuple(t.shape) for name, t in tensors.items()}
    generator, still = torch.Generator().manual_seed(4), identity(spec, shapes)
    moved = {
        axis: torch.randperm(len(i), generator=generator) if axis in ("ffn0", "ffn1", "residual") else i
        for axis, i in still.indices.items()
    }
    return apply(spec, Permutation(moved, still.outer), tensors)


def test_a_model_whose_units_are_split_in_two_comes_back_whole() -> None:
    """Half of each unit, twice, in any order: carried together they are the unit again, so nothing changes."""
    narrow = model(UNITS)
    wide = bert_config(intermediate_size=2 * UNITS)
    b = shuffled(wide, split(narrow[1]))
    pair = pair_of(narrow, b)
    found = transported(pair)
    assert {name: tuple(t.shape) for name, t in found.tensors.items()} == pair.shapes
    assert {axis: tuple(p.shape) for axis, p in found.plans.items()} == dict.fromkeys(("ffn0", "ffn1"), (UNITS, 24))
    assert output_change(pair, found.tensors, wide) < 1e-5
    aligned = match_transport(replace(pair, b=found.tensors))(frozenset(pair.kinds())).permutation
    back = apply(pair.spec, aligned, found.tensors)
    assert all(torch.allclose(back[name], narrow[1][name], atol=1e-6) for name in narrow[1])
    assert not aligned.is_identity


def test_a_narrow_model_fills_a_wide_one_without_a_change() -> None:
    """Every unit is carried to two places, half its weight read from each."""
    narrow, wide = model(UNITS), model(2 * UNITS, 1)
    found = transported(pair_of(wide, narrow[1]))
    assert output_change(pair_of(wide, narrow[1]), found.tensors, narrow[0]) < 1e-5
    stem = "bert.encoder.layer.0.intermediate.dense.weight"
    assert len(found.tensors[stem].unique(dim=0)) == UNITS


def test_unrelated_units_that_share_a_place_change_the_function() -> None:
    """The negative control of both: it is an approximation, and says by how much; nothing but the layers is touched."""
    narrow, wide = model(UNITS), model(UNITS + 7, 1)
    pair = pair_of(narrow, wide[1])
    found = transported(pair)
    assert output_change(pair, found.tensors, wide[0]) > 0.05
    kept = [name for name in pair.b if ".intermediate." not in name and not name.endswith("output.dense.weight")]
    assert len(kept) > 20
    assert all(torch.equal(found.tensors[name], pair.b[name]) for name in kept)


def test_equal_widths_are_a_permutation_found_in_noise() -> None:
    pair, wanted = make_pair("BertForSequenceClassification", planted_seed=3, noise=0.3)
    found = match_transport(pair)(frozenset(pair.kinds()))
    assert all(torch.equal(found.permutation.indices[axis], i) for axis, i in wanted.indices.items())


def test_what_a_unit_costs_is_its_distance_not_the_square() -> None:
    """Of feed-forward units of strangers, by numpy: least squares is what weight matching finds, and another order."""
    pair, _ = make_pair("BertForSequenceClassification", planted_seed=None, other_seed=5)
    found = match_transport(pair)(frozenset({"ffn"})).permutation
    for layer in range(2):
        sides = []
        for tensors in (pair.a, pair.b):
            stem = f"bert.encoder.layer.{layer}"
            row, bias, column = (
                tensors[f"{stem}.{name}"].double().numpy()
                for name in ("intermediate.dense.weight", "intermediate.dense.bias", "output.dense.weight")
            )
            parts = (row, (bias - bias.mean())[:, None], column.T)
            sides.append(np.concatenate([part / np.sqrt((part**2).mean()) for part in parts], axis=1))
        squares = ((sides[0][:, None] - sides[1]) ** 2).sum(-1)
        index = found.indices[f"ffn{layer}"].tolist()
        assert index == linear_sum_assignment(np.sqrt(squares))[1].tolist()
        assert index != linear_sum_assignment(squares)[1].tolist()


def test_another_axis_that_differs_is_refused() -> None:
    narrow = model(UNITS)
    config = bert_config(hidden_size=32)
    with pytest.raises(
        AlignmentError, match="feed-forward widths; they differ in axis 'residual' \\(24 and 32 units\\)"
    ):
        transported(pair_of(narrow, random_tensors(config, 0, torch.float32)))


def test_another_vocabulary_is_refused() -> None:
    """The embedding has rows on no axis at all: they must not be carried anywhere, nor left at zero."""
    narrow = model(UNITS)
    config = bert_config(intermediate_size=2 * UNITS, vocab_size=30)
    with pytest.raises(AlignmentError, match="word_embeddings.weight has shape .* on no feed-forward axis"):
        transported(pair_of(narrow, random_tensors(config, 0, torch.float32)))


def test_the_command_refuses_another_hidden_size_in_one_line(tmp_path: Path) -> None:
    """And leaves another number of classes, which is no size of a layer, to the checks that every merge makes."""
    for name, config in (("a", {}), ("b", {"hidden_size": 32}), ("c", {"labels": ("yes", "no")})):
        save_checkpoint(tmp_path / name, bert_config(**config), 0)
    said = {}
    for other in "bc":
        given = [str(tmp_path / "a"), str(tmp_path / other), "-o", str(tmp_path / "out"), "--align", "transport"]
        result = CliRunner().invoke(merge_command, given)
        assert result.exit_code != 0
        said[other] = str(result.exception)
    assert said["b"].splitlines() == [
        "transport takes models of different feed-forward widths; they differ in axis 'residual' (24 and 32 units)."
    ]
    assert "transport" not in said["c"]


@pytest.mark.slow
def test_the_command_carries_a_wider_model_and_says_that_it_changed(tmp_path: Path) -> None:
    """The result has the first model's shapes; every other alignment refuses the pair."""
    a, b = (tmp_path / name for name in "ab")
    save_checkpoint(a, bert_config(), 0)
    save_checkpoint(b, bert_config(intermediate_size=56), 1)
    output = tmp_path / "out"
    given = [str(a), str(b), "-o", str(output), "--samples", "20", "--align"]
    refused = CliRunner().invoke(merge_command, [*given, "weights"])
    assert refused.exit_code != 0
    assert not output.exists()
    result = CliRunner().invoke(merge_command, [*given, "transport"])
    assert result.exit_code == 0, result.output
    assert f"not function-preserving: {b} was approximated" in result.output
    assert "from 56 to 40 units" in result.output
    shapes = [{name: t.shape for name, t in open_checkpoint(str(path)).tensors.items()} for path in (a, output)]
    assert shapes[0] == shapes[1]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b", "out"]


@pytest.mark.slow
def test_models_in_half_precision_are_carried_and_written_in_it(tmp_path: Path) -> None:
    """What a model is carried in is no dtype of its own; one that does come in another dtype is refused as ever."""
    a, b, c = (tmp_path / name for name in "abc")
    for path, config, seed in ((a, bert_config(), 0), (b, bert_config(intermediate_size=56), 1)):
        save_checkpoint(path, config, tensors=random_tensors(config, seed, torch.bfloat16))
    save_checkpoint(c, bert_config(intermediate_size=56), 1)
    given = ["-o", str(tmp_path / "out"), "--samples", "20", "--align", "transport"]
    refused = CliRunner().invoke(merge_command, [str(a), str(c), *given])
    assert "dtypes differ in" in str(refused.exception)
    result = CliRunner().invoke(merge_command, [str(a), str(b), *given])
    assert result.exit_code == 0, result.output
    assert {tensor.dtype for tensor in open_checkpoint(str(tmp_path / "out")).tensors.values()} == {"BF16"}
