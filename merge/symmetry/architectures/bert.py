"""BERT, and ERNIE, which adds a table of tasks to its embeddings. Post-LN.

The lines of every tensor are those of `encoder` (embeddings, layers, pooler) and `head` (task heads).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from merge.symmetry.architectures.encoder import EMBEDDINGS, EMBEDDINGS_NORM, POOLER, REWRITES, Family, encoder_spec
from merge.symmetry.architectures.head import BERT_HEADS, BERT_LANGUAGE_MODEL
from merge.symmetry.spec import PermutationSpec

BERT = Family(
    name="bert",
    stem="Bert",
    prefix="bert",
    heads={end: head for end, head in BERT_HEADS.items() if end != "ForCausalLM"}
    | {"LMHeadModel": BERT_LANGUAGE_MODEL},
    rewrites=REWRITES,
)
ERNIE = Family(
    name="ernie",
    stem="Ernie",
    prefix="ernie",
    heads=BERT_HEADS,
    encoder=EMBEDDINGS | {"embeddings.task_type_embeddings.weight": "- residual"} | EMBEDDINGS_NORM | POOLER,
    rewrites=REWRITES,
)


def bert(config: Mapping[str, Any]) -> PermutationSpec:
    """Return the spec of a BERT with the task head that the config names."""
    return encoder_spec(BERT, config)


def ernie(config: Mapping[str, Any]) -> PermutationSpec:
    """Return the spec of an ERNIE with the task head that the config names."""
    return encoder_spec(ERNIE, config)
