"""Confidence intervals of scores, and the test whether two models on the same rows differ by more than chance.

A bootstrap resample of n rows draws each row so many times. A score depends only on how often each distinct row is drawn,
(gold, predicted) for one model, (gold, a, b) for two; these counts are multinomial. So all draws are one integer array,
draws by distinct rows: nine columns for three classes, however many rows there are.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from merge.errors import TaskError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from evals.scores.weighted import Weighted

    Array = NDArray[Any]

LEVEL = 0.95
DRAWS = 2000
MAX_WEIGHTS = 4_000_000  # in memory at a time, 32 MB; a score needs as much again for each temporary array


@dataclass(frozen=True)
class Interval:
    """An interval that contains the true value with probability `level`.

    Attributes:
        low, high: nan where the score is undefined.
        method: "Wilson", or "bootstrap" with the number of draws in which the score was defined.
    """

    low: float
    high: float
    standard_error: float
    level: float
    method: str

    def to_json(self) -> dict[str, Any]:
        """Return the record of results.json."""
        return asdict(self)


@dataclass(frozen=True)
class McNemar:
    """The exact McNemar test of two models on the same rows.

    Attributes:
        only_a, only_b: number of rows that only one model predicts right.
        p: two-sided: the probability that only_a + only_b fair coin tosses split at least so unevenly.
    """

    only_a: int
    only_b: int
    p: float


def score_intervals(
    metric: str, predictions: Sequence[float], references: Sequence[float], seed: int = 0
) -> dict[str, dict[str, Any]]:
    """Return the interval of every score of a metric, as in results.json: Wilson's for accuracy, else bootstrap.

    Raises:
        TaskError: there is no metric of that name, or there are no rows.
    """
    import numpy as np

    from evals.scores.weighted import WEIGHTED, score_names

    gold, predicted = np.asarray(references), np.asarray(predictions)
    intervals = {}
    for name in score_names(metric):
        if name == "accuracy":
            interval = proportion_interval(int((gold == predicted).sum()), len(gold))
        else:
            interval = bootstrap_interval(WEIGHTED[name], (gold, predicted), np.random.default_rng(seed))
        intervals[name] = interval.to_json()
    return intervals


def accuracy_error(hits: int, count: int) -> float:
    """Return the standard error sqrt(p (1 - p) / n) of a share p = hits / n.

    Raises:
        TaskError: there are no rows, or more hits than rows.
    """
    if not 0 <= hits <= count or count == 0:
        raise TaskError(
            f"{hits} hits in {count} rows have no accuracy; expected at least one row, and no more hits than rows."
        )
    share = hits / count
    return math.sqrt(share * (1 - share) / count)


def proportion_interval(hits: int, count: int) -> Interval:
    """Return Wilson's interval of a share; unlike the bootstrap's it has a width where all rows are hits.

    The shares q with |q - p| <= z sqrt(q (1 - q) / n).

    Source: Wilson 1927, JASA 22, 209-212.
    """
    from scipy.stats import binomtest

    error = accuracy_error(hits, count)
    ends = binomtest(hits, count).proportion_ci(LEVEL, method="wilson")
    return Interval(float(ends.low), float(ends.high), error, LEVEL, "Wilson")


def bootstrap_interval(
    score: Callable[..., Array],
    columns: Sequence[Any],
    generator: np.random.Generator,
    draws: int = DRAWS,
    level: float = LEVEL,
) -> Interval:
    """Return the percentile bootstrap interval of a weighted score of the columns.

    Args:
        score: from the columns and integer weights, shape (draws, rows), to one score a draw, shape (draws,): one of
            `evals.scores.weighted`.
        columns: gold and predicted, or the other arguments of `score`; each of shape (rows,).
    Raises:
        TaskError: the columns have no rows, or not the same number.
    """
    import numpy as np

    values = bootstrap_draws(score, columns, generator, draws)
    defined = values[np.isfinite(values)]
    if len(defined) < 2:
        return Interval(math.nan, math.nan, math.nan, level, "bootstrap, 0 draws")
    low, high = np.quantile(defined, [(1 - level) / 2, (1 + level) / 2])
    error = float(defined.std(ddof=1))
    return Interval(float(low), float(high), error, level, f"bootstrap, {len(defined):,} draws")


def bootstrap_draws(
    score: Callable[..., Array], columns: Sequence[Any], generator: np.random.Generator, draws: int = DRAWS
) -> Array:
    """Return the score of every resample, shape (draws,); see `bootstrap_interval`."""
    import numpy as np

    lengths = [len(column) for column in columns]
    if not lengths or 0 in lengths or len(set(lengths)) > 1:
        raise TaskError(f"the columns of a score need one length of at least 1; found {lengths}.")
    rows = np.stack([np.asarray(column, dtype=np.float64) for column in columns], axis=1)
    cells, index, counts = np.unique(rows, axis=0, return_inverse=True, return_counts=True)
    step = max(1, MAX_WEIGHTS // len(cells))
    sizes = [min(step, draws - done) for done in range(0, draws, step)]
    return np.concatenate([score(*cells.T, _weights(generator, index, counts, size)) for size in sizes])


def _weights(generator: np.random.Generator, index: Array, counts: Array, draws: int) -> Array:
    """Return how often each distinct row is drawn in each resample, shape (draws, distinct rows)."""
    import numpy as np

    rows, cells = len(index), len(counts)
    if 2 * cells < rows:
        return generator.multinomial(rows, counts / rows, size=draws)
    # Where few rows are equal, counting the drawn rows is faster.
    drawn = index.ravel()[generator.integers(0, rows, (draws, rows))] + cells * np.arange(draws)[:, None]
    return np.bincount(drawn.ravel(), minlength=draws * cells).reshape(draws, cells)


def row_weights(generator: np.random.Generator, rows: int, draws: int = DRAWS) -> Iterator[Array]:
    """Yield how often each row is drawn in each resample, MAX_WEIGHTS at a time: arrays of shape (some draws, rows)."""
    import numpy as np

    step = max(1, MAX_WEIGHTS // rows)
    for done in range(0, draws, step):
        yield _weights(generator, np.arange(rows), np.ones(rows), min(step, draws - done))


def paired_difference(score: Weighted, gold: Any, a: Any, b: Any, generator: np.random.Generator) -> Interval:
    """Return the bootstrap interval of score(a) - score(b), both models scored on the same drawn rows.

    Args:
        gold, a, b: gold and predicted values of each row, shape (rows,).
    """

    def difference(gold: Array, a: Array, b: Array, weights: Array) -> Array:
        return score(gold, a, weights) - score(gold, b, weights)

    return bootstrap_interval(difference, (gold, a, b), generator)


def mcnemar(correct_a: Any, correct_b: Any) -> McNemar:
    """Return the exact McNemar test of two models on the same rows.

    p = min(1, 2 P(X <= min(only_a, only_b))), X binomial of only_a + only_b fair throws; 1 where the models never
    differ.

    Raises:
        TaskError: the models were not scored on equally many rows.
    Source: McNemar 1947, Psychometrika 12, 153-157; exact form.
    """
    import numpy as np
    from scipy.stats import binomtest

    a, b = np.asarray(correct_a, dtype=bool), np.asarray(correct_b, dtype=bool)
    if a.shape != b.shape:
        raise TaskError(f"McNemar's test needs the same rows for both models; found {len(a)} and {len(b)}.")
    only_a, only_b = int((a & ~b).sum()), int((b & ~a).sum())
    differ = only_a + only_b
    p = float(binomtest(min(only_a, only_b), differ).pvalue) if differ else 1.0
    return McNemar(only_a, only_b, p)
