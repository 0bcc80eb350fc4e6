"""The config of a merged model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from merge.checkpoints.checkpoint import Checkpoint
from merge.checkpoints.weights.arrays import DTYPES
from merge.layers.plan import LayerPlan, planned_config
from merge.run.plan.heads import consistent_labels


def merged_config(
    checkpoints: Sequence[Checkpoint], dtype: str | None = None, plan: LayerPlan | None = None
) -> Mapping[str, Any]:
    """Return the first model's config as it is written for the merged model: its layers and its dtype may change."""
    reference = checkpoints[0].encoder
    planned = reference.config if plan is None else planned_config([c.config for c in checkpoints], plan)
    config = {k: v for k, v in planned.items() if k not in ("dtype", "torch_dtype")}
    found = {t.own_dtype for t in reference.tensors.values() if not t.is_integer}
    own = reference.config.get("dtype") or reference.config.get("torch_dtype")
    stated = dtype or (DTYPES[found.pop()] if len(found) == 1 else own)
    return consistent_labels(config, reference.structure) | ({"dtype": stated} if stated else {})
