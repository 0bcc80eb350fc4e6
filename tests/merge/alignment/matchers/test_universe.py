"""Universe: three models in one basis, cycles that close, and planted answers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from contracts.test_aligners import make_pair
from likeness import alike
from tiny import bert_config, save_checkpoint

from merge.alignment.matchers.universe import match_universe
from merge.alignment.matchers.weights import match_weights
from merge.alignment.pair import Alignment, Pair
from merge.commands.merge_models import merge_command
from merge.symmetry.permutation import Permutation, compose, identity, inverse


def strangers() -> list[Pair]:
    first, second = (make_pair("BertForSequenceClassification", None, other_seed=seed)[0] for seed in (5, 6))
    return [first, replace(second, a=first.a)]


def planted(noise: float) -> tuple[list[Pair], list[Permutation]]:
    made = [make_pair("BertForSequenceClassification", seed, noise) for seed in (1, 2)]
    return [pair for pair, _ in made], [wanted for _, wanted in made]


def test_three_planted_models_are_recovered_in_noise() -> None:
    pairs, wanted = planted(0.5)
    found = match_universe(pairs, frozenset(pairs[0].kinds()))
    for one, answer in zip(found, wanted, strict=True):
        assert all(torch.equal(one.permutation.indices[axis], i) for axis, i in answer.indices.items())
        assert not answer.is_identity


def closes(steps: Sequence[Permutation]) -> bool:
    total = steps[0]
    for step in steps[1:]:
        total = compose(step, total)
    return total.is_identity


@pytest.mark.slow
def test_any_cycle_of_models_ends_where_it_began() -> None:
    """What takes C to A after what takes B to C is what takes B to A; pairwise matching does not close its cycle."""
    pairs = strangers()
    kinds = frozenset(pairs[0].kinds())
    to_a = [one.permutation for one in match_universe(pairs, kinds)]
    b_to_c = compose(inverse(to_a[1]), to_a[0])
    assert closes([b_to_c, to_a[1], inverse(to_a[0])])
    assert not b_to_c.is_identity
    by_pairs = [match_weights(pair)(kinds).permutation for pair in pairs]
    direct = match_weights(replace(pairs[0], a=pairs[1].b))(kinds).permutation
    assert not closes([direct, by_pairs[1], inverse(by_pairs[0])])


@pytest.mark.slow
def test_all_pairs_together_are_more_alike_than_aligned_to_the_reference() -> None:
    """Its figure is recomputed in numpy, and rises from nothing to the reference alone to all together."""
    pairs = strangers()
    kinds = frozenset(pairs[0].kinds())
    found = match_universe(pairs, kinds)
    star = alike(pairs, [match_weights(pair)(kinds).permutation for pair in pairs])
    nothing = alike(pairs, [identity(pairs[0].spec, pairs[0].shapes)] * 2)
    together = alike(pairs, [one.permutation for one in found])
    assert found[0].objective == found[1].objective == pytest.approx((nothing, star, together), abs=1e-6)
    assert nothing + 0.05 < star < together - 0.005


@pytest.mark.slow
def test_two_models_are_a_pair() -> None:
    """No worse than weight matching of the two."""
    pair = strangers()[0]
    kinds = frozenset(pair.kinds())
    (found,) = match_universe([pair], kinds)
    assert alike([pair], [found.permutation]) >= match_weights(pair)(kinds).objective[-1] - 1e-9


def test_only_the_kinds_asked_for_move() -> None:
    found: list[Alignment] = match_universe(strangers(), frozenset({"ffn", "heads"}))
    for one in found:
        moved = {axis.rstrip("0123456789") for axis, (count, _) in one.permutation.moved().items() if count}
        assert moved == {"ffn", "heads", "qk", "v"}
        assert set(one.kinds) == {"ffn", "heads"}


@pytest.mark.slow
def test_the_command_merges_three_models_through_a_universe(tmp_path: Path) -> None:
    """Each is proved on its own, and what moved it is saved."""
    folders = [str(save_checkpoint(tmp_path / str(seed), bert_config(), seed, tokenizer=False)) for seed in range(3)]
    output = tmp_path / "out"
    result = CliRunner().invoke(merge_command, [*folders, "--align", "universe", "-o", str(output)])
    assert result.exit_code == 0, result.output
    assert result.output.count("by universe") == 2
    assert result.output.count("proof:") == 2
    assert {"transform-1.safetensors", "transform-2.safetensors"} <= {path.name for path in output.iterdir()}
