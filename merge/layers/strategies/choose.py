"""The plan that drops layers by a strategy, and how the strategy came to it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from merge.checkpoints.checkpoint import Checkpoint
from merge.errors import UsageError
from merge.layers.plans.plan import LayerPlan
from merge.layers.plans.positions import dropped_layers
from merge.layers.stacks import layer_count
from merge.layers.strategies.importance import DEFAULT_TEXT, LayerImportance, measure_importance
from merge.layers.strategies.search import BEAM, search_layers
from merge.layers.strategies.table import AFTER, Strategy, regime_note, strategy_named
from merge.text.source import TextSource

# Plan of one model -> its score, larger is better.
PlanScore = Callable[[LayerPlan], float]

BLOCKS = ("angular", "linear-fit")
MEANINGS = {
    "block-influence": "1 - cosine of a layer's input and output, mean over tokens",
    "relative-norm": "length of what a layer changes over that of its input, mean over tokens",
    "angular": "angle between the states before and after a block, as a share of pi",
    "linear-fit": "R2 of the best affine map across a block",
}


@dataclass(frozen=True)
class DropSettings:
    """How layers to drop are selected.

    Attributes:
        strategy, count: see `STRATEGIES`.
        text: what strategies measure on.
        stack: the list of layers, where a model has two.
        protected: layers that are never dropped.
        score: of a candidate, for strategies that search; a label-free one when None.
        measure: the label-free score: cosine, rsa or kl.
        beam: candidates that beam keeps in a round.
    """

    strategy: str
    count: int
    text: TextSource = field(default_factory=lambda: DEFAULT_TEXT)
    stack: str = ""
    protected: tuple[int, ...] = ()
    score: PlanScore | None = None
    measure: str = "cosine"
    beam: int = BEAM


def drop_plan(checkpoint: Checkpoint, settings: DropSettings) -> tuple[LayerPlan, LayerImportance | None]:
    """Return the plan that drops layers by a strategy, and what the strategy measured.

    Raises:
        UsageError: the strategy is unknown or cannot drop that many.
        CalibrationError: the text cannot be read.
    """
    strategy, total = strategy_named(settings.strategy), layer_count(checkpoint.config, settings.stack)
    if wrong := [layer for layer in settings.protected if not 0 <= layer < total]:
        raise UsageError(f"protected layer {wrong[0]}: the model has {total} layers, 0 to {total - 1}.")
    free = total - len(set(settings.protected))
    if not 0 < settings.count <= min(free, total - 1):
        held = f", {total - free} of them protected" if free < total else ""
        most = min(free, total - 1)
        raise UsageError(
            f"cannot drop {settings.count} of {total} layers{held}: "
            + (f"expected 1 to {most}." if most else "none is left to drop.")
        )
    if strategy.reads == "nothing":
        dropped = _by_position(settings, total)
        return LayerPlan.without(dropped, total, settings.stack), None
    if strategy.reads == "scores":
        return _searched(checkpoint, settings, strategy, total)
    if strategy.name == "contribution":
        importance = measure_importance(checkpoint.encoder, settings.text, settings.stack)
    else:
        importance = _measured(checkpoint, settings)
    if strategy.name in BLOCKS:
        dropped = _block(importance.scores, settings, strategy)
    else:
        ranked = sorted(range(total), key=lambda layer: (importance.scores[layer], -layer))
        dropped = tuple(sorted([layer for layer in ranked if layer not in settings.protected][: settings.count]))
    return LayerPlan.without(dropped, total, settings.stack), importance


def _by_position(settings: DropSettings, total: int) -> tuple[int, ...]:
    """Return the layers that a strategy of positions drops; those from an end go past protected layers."""
    strategy, count, protected = settings.strategy, settings.count, settings.protected
    free = [layer for layer in range(total) if layer not in protected]
    if strategy == "top":
        return tuple(free[-count:])
    if strategy == "bottom":
        return tuple(free[:count])
    dropped = dropped_layers(strategy, count, total)
    if held := sorted(set(dropped) & set(protected)):
        raise UsageError(
            f"{strategy} would drop layer {held[0]}, which is protected. Use top, bottom, or a strategy that measures."
        )
    return dropped


def _measured(checkpoint: Checkpoint, settings: DropSettings) -> LayerImportance:
    """Return the scores of layers or blocks that one pass over the text gives."""
    from merge.layers.activations import live_layers, live_model
    from merge.layers.strategies.measures import measure_layers

    batches, source, notes = read_batches(checkpoint, settings.text, settings.stack, f"strategy {settings.strategy}")
    name = settings.strategy
    live = live_layers(live_model(checkpoint), settings.stack)
    measures = measure_layers(live, batches, settings.count if name in BLOCKS else 1)
    scores: tuple[float, ...] = getattr(measures, name.replace("-", "_"))
    return LayerImportance(scores, source, notes, name, MEANINGS[name])


def _block(scores: Sequence[float], settings: DropSettings, strategy: Strategy) -> tuple[int, ...]:
    """Return the block of neighbours with the best score, none of them protected."""
    count, sign = settings.count, -1.0 if strategy.name == "angular" else 1.0
    starts = [start for start in range(len(scores)) if not set(range(start, start + count)) & set(settings.protected)]
    if not starts:
        raise UsageError(f"{strategy.name} drops {count} neighbours, but every block of {count} has a protected layer.")
    best = max(starts, key=lambda start: (sign * scores[start], start))
    return tuple(range(best, best + count))


def _searched(
    checkpoint: Checkpoint, settings: DropSettings, strategy: Strategy, total: int
) -> tuple[LayerPlan, LayerImportance]:
    """Return the plan of a search, with every candidate and its score."""
    score, source, notes = settings.score, "the scores that were given", tuple[str, ...]()
    meaning = "score of the model with these layers"
    if score is None:
        score, source, notes = label_free_score(checkpoint, settings.text, settings.measure, settings.stack)
        meaning = f"{settings.measure} to the full model"

    def of_layers(kept: tuple[int, ...]) -> float:
        return score(LayerPlan.keep(kept, settings.stack))

    search = search_layers(strategy.name, of_layers, total, settings.count, settings.protected, settings.beam)
    importance = LayerImportance((), source, notes, strategy.name, meaning, search.scores)
    return LayerPlan.keep(search.kept, settings.stack), importance


def label_free_score(
    checkpoint: Checkpoint, text: TextSource, measure: str, stack: str = ""
) -> tuple[PlanScore, str, tuple[str, ...]]:
    """Return the score that compares a plan's model with the full one on text, the text in words, and notes.

    Raises:
        UsageError: the measure is unknown, or the model lacks what it compares.
        CalibrationError: the text cannot be read.
    """
    from merge.layers.activations import live_model
    from merge.layers.assembly import assemble
    from merge.layers.strategies.agreement import agreement, outputs_of

    batches, source, notes = read_batches(checkpoint, text, stack, f"the score {measure}")
    full = outputs_of(live_model(checkpoint), batches, stack)
    agreement(full, full, measure)  # checks the measure before anything else runs
    encoder = checkpoint.encoder

    def score(plan: LayerPlan) -> float:
        return agreement(full, outputs_of(assemble([encoder], plan).build(), batches, stack), measure)

    return score, source, notes


def read_batches(checkpoint: Checkpoint, text: TextSource, stack: str, asks: str) -> tuple[Any, str, tuple[str, ...]]:
    """Return calibration batches for a model, the text in words, and notes."""
    from merge.layers.activations import check_reads_text
    from merge.text.calibrated import calibrate

    check_reads_text(checkpoint, stack, asks)
    calibrated = calibrate(text, checkpoint, needed=True, matching=False)
    return calibrated.batches, str(calibrated.source), calibrated.notes


def strategy_notes(name: str, trained: bool) -> tuple[str, ...]:
    """Return the note on the regime of a strategy; none where the regime is the one that follows.

    Args:
        trained: whether training follows, as far as this command knows: healing is training.
    """
    strategy = strategy_named(name)
    return () if trained and strategy.regime == AFTER else (regime_note(strategy),)
