"""Paths: their numbers, and gradients through them that add up to the gradient of the model."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from slotted_models import batch_of, model_of

from evals.surgery.paths import (
    drawn_paths,
    measure_paths,
    path_counts,
    path_gradient,
    paths_of,
    random_direction,
)


@pytest.mark.parametrize("layers", [1, 2, 6, 12])
def test_the_numbers_of_paths_are_binomial(layers: int) -> None:
    """Of two sublayers a layer; parallel ones offer a path one of the two at most."""
    assert path_counts(layers) == [math.comb(2 * layers, k) for k in range(2 * layers + 1)]
    assert path_counts(layers, parallel=True) == [math.comb(layers, k) * 2**k for k in range(layers + 1)]
    assert sum(path_counts(layers)) == 4**layers
    assert sum(path_counts(layers, parallel=True)) == 3**layers


@pytest.mark.parametrize("parallel", [False, True])
def test_every_path_is_listed_once(parallel: bool) -> None:
    for length, count in enumerate(path_counts(3, parallel)):
        paths = list(paths_of(length, 3, parallel))
        assert len(paths) == len(set(paths)) == count
        drawn = drawn_paths(length, 3, parallel, 4, np.random.default_rng(0))
        assert len(drawn) == len(set(drawn)) == min(4, count)
        assert set(drawn) <= set(paths)


@pytest.mark.parametrize(
    ("family", "parallel"), [("bert", False), ("gpt_neox", True), pytest.param("xlnet", False, marks=pytest.mark.slow)]
)
def test_the_gradients_of_all_paths_add_up_to_the_gradient(family: str, parallel: bool) -> None:
    """Norms last, parallel sublayers, a bare parameter; without one of the paths they do not (the control)."""
    model = model_of(family, 2)
    assert model.kind is not None
    assert model.kind.parallel is parallel
    batch, objective = batch_of(model), random_direction(model, 0)
    whole = path_gradient(model, batch, objective, None)
    gradients = [
        path_gradient(model, batch, objective, path)
        for length in range(len(path_counts(2, parallel)))
        for path in paths_of(length, 2, parallel)
    ]
    assert len(gradients) == (9 if parallel else 16)
    error = float((sum(gradients) - whole).norm() / whole.norm())
    assert error < 1e-5
    assert float((sum(gradients[1:]) - whole).norm() / whole.norm()) > 100 * error


def test_shares_are_the_number_of_paths_times_the_norm_of_one() -> None:
    """All paths are followed here, so that each mean is over every path of its length."""
    model = model_of("bert", 2)
    batch, objective = batch_of(model), random_direction(model, 0)
    measured = measure_paths(model, [(batch, objective)], "a direction", 10**6, 0)
    assert measured.drawn == measured.counts == (1, 4, 6, 4, 1)
    norms = [
        np.mean([float(g.double().square().sum((1, 2)).sqrt().mean()) for g in of_length])
        for of_length in (
            [path_gradient(model, batch, objective, p) for p in paths_of(length, 2)] for length in range(5)
        )
    ]
    np.testing.assert_allclose(measured.norms, norms, rtol=1e-5)
    products = np.array(measured.counts) * norms
    np.testing.assert_allclose(measured.shares, products / products.sum(), rtol=1e-5)
    assert measured.texts == len(batch["input_ids"])
    whole = path_gradient(model, batch, objective, None).double().square().sum((1, 2)).sqrt().mean()
    assert measured.whole == pytest.approx(float(whole), rel=1e-6)


def test_a_model_of_dead_branches_sends_its_gradient_through_the_path_of_length_0() -> None:
    """Planted: with all projections zero, and norms first, no path but the skip connections carries anything."""
    model = model_of("gpt2", 2)
    with torch.no_grad():
        for layer in range(2):
            for name, parameter in model.module(layer).named_parameters():
                if "c_proj" in name:
                    parameter.zero_()
    measured = measure_paths(model, [(batch_of(model), random_direction(model, 0))], "a direction", 4, 0)
    assert measured.shares == (1.0, 0.0, 0.0, 0.0, 0.0)
    assert measured.norms[0] == pytest.approx(measured.whole)
