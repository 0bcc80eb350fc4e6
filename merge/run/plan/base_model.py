"""The base model inside a checkpoint: what every task model of a family shares, without head, modules and labels."""

from __future__ import annotations

from dataclasses import replace

from merge.checkpoints.checkpoint import Checkpoint
from merge.checkpoints.sentence_transformers import pipeline_files
from merge.checkpoints.structure import structure_of
from merge.errors import MismatchError

# The config entries that describe a head; a base model has no use for them.
LABEL_KEYS = {"id2label", "label2id", "num_labels", "problem_type"}
CROSS_ENCODER_KEYS = {"sentence_transformers", "sbert_ce_default_activation_function"}


def base_class(checkpoint: Checkpoint) -> str:
    """Return the class of the base model inside a checkpoint's class: BertModel for BertForSequenceClassification."""
    return checkpoint.structure.base_architecture


def base_model(checkpoint: Checkpoint) -> Checkpoint:
    """Return the base model inside a checkpoint as a checkpoint of its own: no head, no modules, no labels.

    Raises:
        MismatchError: the class has no base model that is separate from its head.
    """
    prefix = checkpoint.structure.prefix
    tensors = {name: t for name, t in checkpoint.tensors.items() if prefix and name.startswith(f"{prefix}.")}
    if not tensors:
        raise MismatchError(
            f"{checkpoint.source}: {checkpoint.architecture} holds no base model of its own, so its head cannot "
            "be told from the rest. Leave out --heads."
        )
    config = {k: v for k, v in checkpoint.config.items() if k not in LABEL_KEYS and k not in CROSS_ENCODER_KEYS}
    structure = structure_of(config | {"architectures": [base_class(checkpoint)]})
    writes_prefix = any(name.startswith(f"{prefix}.") for name in structure.shapes)
    pipeline = set(pipeline_files(checkpoint))
    side_files = tuple(name for name in checkpoint.side_files if name not in pipeline)
    return replace(
        checkpoint,
        structure=structure,
        tensors=tensors,
        writes_prefix=writes_prefix,
        side_files=side_files,
        extra={},
    )
