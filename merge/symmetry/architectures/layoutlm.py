"""LayoutLM: BERT on text and boxes. The tables of box corners, heights and widths add to the residual stream."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from merge.symmetry.architectures.encoder import EMBEDDINGS, EMBEDDINGS_NORM, POOLER, REWRITES, Family, encoder_spec
from merge.symmetry.architectures.head import BERT_HEADS
from merge.symmetry.spec import PermutationSpec

BOXES = {
    "embeddings.x_position_embeddings.weight": "- residual",
    "embeddings.y_position_embeddings.weight": "- residual",
    "embeddings.h_position_embeddings.weight": "- residual",
    "embeddings.w_position_embeddings.weight": "- residual",
}
ENDS = ("Model", "ForSequenceClassification", "ForTokenClassification", "ForQuestionAnswering", "ForMaskedLM")

LAYOUTLM = Family(
    name="layoutlm",
    stem="LayoutLM",
    prefix="layoutlm",
    heads={end: BERT_HEADS[end] for end in ENDS},
    encoder=EMBEDDINGS | BOXES | EMBEDDINGS_NORM | POOLER,
    rewrites=REWRITES,
)


def layoutlm(config: Mapping[str, Any]) -> PermutationSpec:
    """Return the spec of a LayoutLM with the task head that the config names."""
    return encoder_spec(LAYOUTLM, config)
