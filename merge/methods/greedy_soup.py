"""Greedy soup: the average of models, each added only if it does not lower the score."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from merge.errors import UsageError
from merge.methods.checks import check_flag, check_weights
from merge.methods.context import EMPTY, TensorContext
from merge.methods.linear import Linear
from merge.methods.method import Method

if TYPE_CHECKING:
    from torch import Tensor

MODEL = "{model}"


@dataclass(frozen=True)
class GreedySoup(Method):
    """Return sum_m w_m theta_m / sum_m w_m, with w_m = 1 for the models that the search adds to the soup, else 0.

    The search tries models in descending order of score and adds a model if the average with it does not score lower. It
    runs once, before tensors are merged, and sets `weights`; if weights are given, nothing is scored. Without a scorer the
    soup is the best of the averages that `evaluate-models basins` ranks, and no model is run.

    Attributes:
        scorer: command that scores a candidate, run without a shell; {model} is replaced by the candidate's folder. The
            score is the last line of its output if that is a number, or the value of `metric` if the output is JSON.
        metric: key of the score in JSON output: its name, the end of its dotted path, or task/score for evaluate-models.
        results: with a scorer a results.json of evaluate-models; models with a score in it are not scored again, and metric is
            task/score. Without a scorer a basins.json, whose ranking of averages is taken.
        lower_is_better: true if a lower score is better, as for a loss.
        weights: one per model; set by the search when None.
    Source: Wortsman et al. 2022, arXiv:2203.05482, Recipe 1.
    """

    scorer: str | None = None
    metric: str | None = None
    results: str | None = None
    lower_is_better: bool = False
    weights: tuple[float, ...] | None = None

    name = "greedy_soup"
    elementwise = True
    takes_numpy = True

    def __post_init__(self) -> None:
        for key in ("scorer", "metric", "results"):
            _check_text(key, getattr(self, key))
        check_flag(self.name, "lower_is_better", self.lower_is_better)
        check_weights(self.name, self.weights, normalize=True)
        if self.scorer is not None and MODEL not in self.scorer:
            raise UsageError(
                f"greedy_soup: scorer must contain {MODEL}, which is replaced by the candidate's folder; found {self.scorer!r}."
            )
        self.words()
        self._check_results()

    def _check_results(self) -> None:
        """Stop where settings would be ignored: a ranking needs no metric, and scores need one of a task."""
        if self.results is None:
            return
        if self.scorer is not None and (self.metric is None or "/" not in self.metric):
            raise UsageError(
                f"greedy_soup: with results, metric must be task/score, such as mnli/accuracy; found {self.metric!r}."
            )
        if self.scorer is None and self.weights is None and (self.metric is not None or self.lower_is_better):
            name = "metric" if self.metric is not None else "lower_is_better"
            raise UsageError(
                f"greedy_soup: results without a scorer are a basins.json, which ranks averages by their loss. Leave out {name}, "
                "or give a scorer."
            )

    def words(self) -> list[str]:
        """Return the words of the scorer command, with {model} not yet replaced.

        Raises:
            UsageError: a quote is not closed.
        """
        try:
            return shlex.split(self.scorer or "")
        except ValueError as error:
            raise UsageError(f"greedy_soup: scorer {self.scorer!r} cannot be split into words: {error}.") from error

    def check_models(self, models: int) -> None:
        """Stop when there are neither weights, nor a scorer or a ranking to find them."""
        if self.weights is None and self.scorer is None and self.results is None:
            raise UsageError(
                "greedy_soup needs a scorer, a command that scores a model: "
                f"--set scorer='evaluate-models glue mnli {MODEL} --json -q' --set metric=mnli/accuracy; or the ranking of a "
                "sweep, which runs no model: --set results=basins.json"
            )

    def __call__(self, tensors: Sequence[Tensor], base: Tensor | None = None, context: TensorContext = EMPTY) -> Tensor:
        if self.weights is None:
            raise UsageError("greedy_soup: the models have not been searched. Give weights, or use merge-models.")
        return Linear(self.weights)(tensors)


def _check_text(key: str, value: Any) -> None:
    if value is not None and (not isinstance(value, str) or not value.strip()):
        raise UsageError(f"greedy_soup: {key} must be text, found {value!r}.")
