"""RoBERTa and the families with exactly its tensors: XLM-RoBERTa, CamemBERT and data2vec for text. Post-LN."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from merge.symmetry.architectures.encoder import REWRITES, Family, encoder_spec
from merge.symmetry.architectures.head import ROBERTA_HEADS
from merge.symmetry.spec import PermutationSpec

FAMILIES = {
    family.name: family
    for family in (
        Family("roberta", "Roberta", "roberta", ROBERTA_HEADS, rewrites=REWRITES),
        Family("xlm-roberta", "XLMRoberta", "roberta", ROBERTA_HEADS, rewrites=REWRITES),
        Family("camembert", "Camembert", "roberta", ROBERTA_HEADS, rewrites=REWRITES),
        Family("data2vec-text", "Data2VecText", "data2vec_text", ROBERTA_HEADS, rewrites=REWRITES),
    )
}


def roberta(config: Mapping[str, Any]) -> PermutationSpec:
    """Return the spec of a RoBERTa, or of a family with exactly its tensors, with the task head that the config names."""
    return encoder_spec(FAMILIES[str(config["model_type"])], config)
