"""The plan that drops layers by a strategy."""

from __future__ import annotations

from merge.checkpoints.checkpoint import Checkpoint
from merge.layers.plans.plan import LayerPlan
from merge.layers.plans.positions import dropped_layers
from merge.layers.stacks import layer_count
from merge.layers.strategies.importance import DEFAULT_TEXT, LayerImportance, measure_importance
from merge.text.source import TextSource


def drop_plan(
    checkpoint: Checkpoint,
    strategy: str,
    count: int,
    source: TextSource = DEFAULT_TEXT,
    stack: str = "",
) -> tuple[LayerPlan, LayerImportance | None]:
    """Return the plan that drops `count` layers by a strategy, and the layers' importance if the strategy measures it.

    Raises:
        UsageError: the strategy is unknown or cannot drop that many.
        CalibrationError: the text cannot be read.
    """
    total = layer_count(checkpoint.config, stack)
    if strategy != "contribution":
        return LayerPlan.drop(strategy, count, total, stack=stack), None
    dropped_layers(strategy, count, total, [0.0] * total)  # checks the count before the measurement
    importance = measure_importance(checkpoint.encoder, source, stack)
    return LayerPlan.drop(strategy, count, total, importance.scores, stack), importance
