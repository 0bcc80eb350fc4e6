"""The logits of a model at every label of a batch: the same for training and for measuring."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from jaxtyping import Float, Int
from torch import Tensor

from zoo.characters import IGNORED

LabelledLogits = tuple[Float[Tensor, "n classes"], Int[Tensor, " n"]]


def labelled_logits(model: Any, batch: Mapping[str, Tensor]) -> LabelledLogits:
    """Return the logits wherever the batch has a label, and these labels.

    A causal model predicts the next token. A masked BERT computes logits over the vocabulary at the masks only: at all
    tokens they would be most of the work.
    """
    from transformers import BertForMaskedLM, GPT2LMHeadModel

    inputs, labels = {name: tensor for name, tensor in batch.items() if name != "labels"}, batch["labels"]
    labelled = labels != IGNORED
    if isinstance(model, BertForMaskedLM):
        return model.cls(model.bert(**inputs).last_hidden_state[labelled]), labels[labelled]
    logits = model(**inputs).logits
    if isinstance(model, GPT2LMHeadModel):
        return logits[:, :-1][labelled[:, 1:]], labels[:, 1:][labelled[:, 1:]]
    return logits[labelled], labels[labelled]
