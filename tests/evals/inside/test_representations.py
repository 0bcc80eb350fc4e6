"""Which texts are compared by token."""

from __future__ import annotations

import pytest
import torch

from evals.inside.representations import first_texts
from merge.checkpoints.inputs import Tokens


@pytest.mark.parametrize(("most", "lengths"), [(8, (5, 3)), (7, (5,)), (2, (5,)), (99, (5, 3, 4))])
def test_texts_are_taken_as_long_as_their_tokens_fit(most: int, lengths: tuple[int, ...]) -> None:
    """In their order, whole, and one at least."""
    tokens = Tokens({"input_ids": torch.arange(12)}, (5, 3, 4), 0, 0)
    first = first_texts(tokens, most)
    assert first.lengths == lengths
    assert first.fields["input_ids"].tolist() == list(range(sum(lengths)))
