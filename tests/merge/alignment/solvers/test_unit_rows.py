"""Units as rows: against transposes in numpy."""

from __future__ import annotations

import numpy as np
import torch

from merge.alignment.solvers.unit_rows import unit_rows


def test_units_of_any_dimension_become_rows() -> None:
    tensor = torch.arange(24.0).reshape(2, 3, 4)
    array = tensor.numpy()
    assert np.array_equal(unit_rows(tensor, 0).numpy(), array.reshape(2, 12))
    assert np.array_equal(unit_rows(tensor, 1).numpy(), array.transpose(1, 0, 2).reshape(3, 8))
    assert np.array_equal(unit_rows(tensor, 2).numpy(), array.transpose(2, 0, 1).reshape(4, 6))


def test_several_dimensions_are_laid_flat_and_a_vector_is_one_column() -> None:
    tensor = torch.arange(24.0).reshape(2, 3, 4)
    assert np.array_equal(unit_rows(tensor, 1, 2).numpy(), tensor.numpy().reshape(2, 12).T)
    assert unit_rows(torch.arange(5.0), 0).shape == (5, 1)


def test_positions_choose_and_order_the_units() -> None:
    tensor = torch.arange(12.0).reshape(3, 4)
    rows = unit_rows(tensor, 1, 1, torch.tensor([[3, 0], [1, 1]]))
    assert np.array_equal(rows.numpy(), tensor.numpy()[:, [3, 0, 1, 1]].T)
