"""One batch through a model: its logits, or one line that names the row on which the model's code failed."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch

from merge.errors import TaskError, one_line

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor

    from merge.checkpoints.inputs import Batch

# Families that go over to full attention at the first short text and keep to it: model type -> the part that does.
SWITCHING = {"big_bird": "", "bigbird_pegasus": "encoder"}
# Inputs, and the config key that bounds them.
BOUNDED = {"input_ids": "vocab_size", "token_type_ids": "type_vocab_size"}


def forward_logits(model: Any, batch: Batch, rows: Sequence[int]) -> Float[Tensor, "rows classes"]:
    """Return the logits of one batch.

    Args:
        rows: the index of each row among those of the task, for errors.
    Raises:
        TaskError: the model's code failed; names the first of the rows.
        torch.OutOfMemoryError: the batch does not fit into the device's memory.
    """
    if model.config.model_type in SWITCHING:
        part = model.base_model.get_submodule(SWITCHING[model.config.model_type])
        part.set_attention_type(model.config.attention_type)
    try:
        logits: Tensor = model(**{name: tensor.to(model.device) for name, tensor in batch.items()}).logits
    except torch.OutOfMemoryError:
        raise
    # Model code raises errors of any kind: IndexError outside a table, ValueError for inputs that it does not take.
    except Exception as error:
        logging.getLogger(__name__).info("the model's own error:", exc_info=True)
        raise TaskError(_message(model, batch, rows, error)) from error
    return logits


def _message(model: Any, batch: Batch, rows: Sequence[int], error: Exception) -> str:
    """Return what failed, on which row, what the model's code says, and the inputs that a table of the model bounds."""
    row = f"row {rows[0] + 1}" if len(rows) == 1 else f"rows {min(rows) + 1} to {max(rows) + 1}"
    cause = f"{type(error).__name__}: {one_line(error).rstrip('.')}"
    outside = [
        f"{name} reach {int(batch[name].max())}, and {key} is {getattr(model.config, key)}"
        for name, key in BOUNDED.items()
        if name in batch and 0 < (getattr(model.config, key, 0) or 0) <= int(batch[name].max())
    ]
    hint = f" Its {'; its '.join(outside)}: the tokenizer is not the one of this model." if outside else ""
    return f"{type(model).__name__} failed on {row}: {cause}.{hint}"
