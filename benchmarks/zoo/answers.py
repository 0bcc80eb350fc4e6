"""What a model says wherever a batch holds a label: the same for training and for measuring."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from jaxtyping import Float, Int
from torch import Tensor

from zoo.characters import IGNORED

Answers = tuple[Float[Tensor, "n classes"], Int[Tensor, " n"]]


def answers(model: Any, batch: Mapping[str, Tensor]) -> Answers:
    """Return the logits wherever there is a label, and the labels there.

    A causal model answers for the next token. A masked BERT reads out its vocabulary at the masks only: at all tokens
    it would be most of the work.
    """
    from transformers import BertForMaskedLM, GPT2LMHeadModel

    inputs, labels = {name: tensor for name, tensor in batch.items() if name != "labels"}, batch["labels"]
    asked = labels != IGNORED
    if isinstance(model, BertForMaskedLM):
        return model.cls(model.bert(**inputs).last_hidden_state[asked]), labels[asked]
    logits = model(**inputs).logits
    if isinstance(model, GPT2LMHeadModel):
        return logits[:, :-1][asked[:, 1:]], labels[:, 1:][asked[:, 1:]]
    return logits[asked], labels[asked]
