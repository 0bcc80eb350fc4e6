"""The strategies that select layers to drop, what each reads, and for which regime each is meant."""

from __future__ import annotations

from dataclasses import dataclass

from merge.errors import UsageError, nearest

AFTER, WITHOUT = "training afterwards", "no training"


@dataclass(frozen=True)
class Strategy:
    """One strategy.

    Attributes:
        regime: AFTER where its authors train the model after dropping, WITHOUT where the model is used as it is.
        reads: nothing; text (one pass of the model); or scores (a score of every candidate).
        summary: what it drops, for help and report.
    """

    name: str
    regime: str
    reads: str
    summary: str


STRATEGIES = {
    each.name: each
    for each in (
        Strategy("top", AFTER, "nothing", "the last layers"),
        Strategy("bottom", AFTER, "nothing", "the first layers"),
        Strategy("odd", AFTER, "nothing", "every other layer, from the top down; odd numbers counted from 1"),
        Strategy("even", AFTER, "nothing", "the same with even numbers"),
        Strategy("symmetric", AFTER, "nothing", "the middle layers; equally many are kept below and above"),
        Strategy("contribution", AFTER, "text", "the layers that change the sentence token least"),
        Strategy("block-influence", WITHOUT, "text", "the layers that turn the tokens least (ShortGPT)"),
        Strategy("relative-norm", WITHOUT, "text", "the layers that add least to the tokens, for their length"),
        Strategy(
            "angular", WITHOUT, "text", "the block of neighbours with the smallest angle across it (Gromov et al.)"
        ),
        Strategy("linear-fit", WITHOUT, "text", "the block of neighbours that an affine map replaces best"),
        Strategy("one-shot", WITHOUT, "scores", "the layers whose removal alone costs least"),
        Strategy("greedy", WITHOUT, "scores", "one layer after another, each time the cheapest"),
        Strategy("beam", WITHOUT, "scores", "as greedy, with the best few candidates kept in every round"),
        Strategy("exhaustive", WITHOUT, "scores", "the best of all choices of layers"),
    )
}


def strategy_named(name: str) -> Strategy:
    """Return a strategy.

    Raises:
        UsageError: there is none of this name.
    """
    if name not in STRATEGIES:
        raise UsageError(f"unknown strategy {name!r}.{nearest(name, STRATEGIES)}")
    return STRATEGIES[name]


def regime_note(strategy: Strategy) -> str:
    """Return the sentence on the regime of a strategy that a report carries."""
    if strategy.regime == AFTER:
        return (
            f"strategy {strategy.name} is meant for models that are trained after layers are dropped; without training compare "
            "scores first (edit-layers compare), or use a strategy for models that are not trained"
        )
    return f"strategy {strategy.name} is meant for models that are used without training afterwards"
