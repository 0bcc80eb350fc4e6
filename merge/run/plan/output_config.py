"""The config of a merged model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from merge.checkpoints.checkpoint import Checkpoint
from merge.checkpoints.labels import class_names
from merge.checkpoints.structure import Structure
from merge.checkpoints.weights.arrays import DTYPES
from merge.layers.plans.plan import LayerPlan, planned_config


def merged_config(
    checkpoints: Sequence[Checkpoint], dtype: str | None = None, plan: LayerPlan | None = None
) -> Mapping[str, Any]:
    """Return the config of the merged model: the first model's, with the layers and the dtype that are written."""
    reference = checkpoints[0].encoder
    planned = reference.config if plan is None else planned_config([c.config for c in checkpoints], plan)
    config = {k: v for k, v in planned.items() if k not in ("dtype", "torch_dtype")}
    dtypes = {t.result_dtype for t in reference.tensors.values() if not t.is_integer}
    configured = reference.config.get("dtype") or reference.config.get("torch_dtype")
    stated = dtype or (DTYPES[dtypes.pop()] if len(dtypes) == 1 else configured)
    return consistent_labels(config, reference.structure) | ({"dtype": stated} if stated else {})


def consistent_labels(config: Mapping[str, Any], structure: Structure) -> dict[str, Any]:
    """Return a config whose num_labels and label2id agree with its id2label; unchanged where it names no class."""
    names = class_names(structure)
    if names is None or not {"id2label", "label2id"} & config.keys():
        return dict(config)
    labels = {"id2label": {str(i): n for i, n in enumerate(names)}, "label2id": {n: i for i, n in enumerate(names)}}
    stale = {"num_labels"} if config.get("num_labels", len(names)) != len(names) else set()
    return {key: value for key, value in config.items() if key not in stale} | labels
