"""What edited models are judged by: the scores of a task, or without labels how far their outputs are from the whole model's.

cosine   of a text's embedding (the mean of its last states) in the edited and in the whole model; 1 for equal ones
kl       KL(whole | edited) of the classes, or of a text's tokens on average; 0 for equal models
"""

from __future__ import annotations

import abc
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, final

import torch
from torch import Tensor

from evals.predict.embeddings import SentenceEncoder, cosines
from evals.predict.logits import check_finite
from evals.results.measure import judge as judged
from evals.surgery.slots import Pass
from merge.checkpoints.hooks import one_logit_a_token, token_mask
from merge.layers.repair.heal import mean_states

if TYPE_CHECKING:
    from evals.tasks.label_names import MatchedTask
    from merge.checkpoints.inputs import Batch


@dataclass(frozen=True)
class Judge(abc.ABC):
    """Reads a pass into numbers for each row, and these into scores of a model."""

    @property
    @abc.abstractmethod
    def names(self) -> tuple[str, ...]:
        """Names of the scores, the leading one first."""

    @abc.abstractmethod
    def read(self, run: Pass, whole: Pass, batch: Batch) -> Tensor:
        """Return the numbers of each row of a batch, shape (rows, numbers), on the CPU."""

    @abc.abstractmethod
    def scores(self, values: Tensor, source: str) -> dict[str, float]:
        """Return the scores of a model from the numbers of all rows in their order.

        Args:
            source: the model, for errors.
        """

    @abc.abstractmethod
    def by_row(self, values: Tensor) -> Tensor:
        """Return one number a row, whose mean over rows is compared between models: `compared`."""

    @property
    @abc.abstractmethod
    def compared(self) -> str:
        """What `by_row` is."""

    @abc.abstractmethod
    def floor(self, rows: Sequence[Tensor]) -> tuple[str, dict[str, float]]:
        """Return what has no skill, in words, and its scores.

        Args:
            rows: what `unrelated` returned for each batch.
        """

    def unrelated(self, whole: Pass, batch: Batch) -> Tensor:
        """Return the numbers of each text's output beside that of another text, where the floor is made of them."""
        return torch.zeros(0, len(self.names))


@final
@dataclass(frozen=True)
class TaskJudge(Judge):
    """The scores of a task.

    Attributes:
        matched: task, rows and the classes of the model.
        metrics: names of the task's scores, the leading one first.
        embeds: whether the model embeds texts, and a row is the cosine of two.
    """

    matched: MatchedTask
    metrics: tuple[str, ...]
    embeds: bool

    @property
    def names(self) -> tuple[str, ...]:
        return (*self.metrics, "loss")

    @property
    def compared(self) -> str:
        return "loss"

    def read(self, run: Pass, whole: Pass, batch: Batch) -> Tensor:
        logits: Tensor = run.result.logits
        return logits.float().cpu()

    def scores(self, values: Tensor, source: str) -> dict[str, float]:
        from evals.scores.glue import task_scores

        loss, predicted = self._judged(values, source)
        scores = task_scores(self.matched.task.metric, predicted.tolist(), self.matched.rows.gold)
        return {**{name: scores[name] for name in self.metrics}, "loss": float(loss.mean())}

    def by_row(self, values: Tensor) -> Tensor:
        return self._judged(values, "an edited model")[0].double()

    def _judged(self, values: Tensor, source: str) -> tuple[Tensor, Tensor]:
        raw = cosines(values) if self.embeds else values
        check_finite(raw, source)
        return judged(raw, self.matched.columns, self.matched.task, self.matched.rows, self.matched.model)

    def floor(self, rows: Sequence[Tensor]) -> tuple[str, dict[str, float]]:
        """Return the scores of the constant prediction: the most frequent class; of numbers no correlation."""
        from evals.scores.glue import task_scores

        task, gold = self.matched.task, self.matched.rows.gold
        if task.regression:
            return "a constant prediction", {**dict.fromkeys(self.metrics, 0.0), "loss": math.nan}
        counts = torch.bincount(torch.tensor(gold, dtype=torch.int64), minlength=len(task.labels)).double()
        scores = task_scores(task.metric, [int(counts.argmax())] * len(gold), gold)
        shares = counts[counts > 0] / counts.sum()
        loss = float(-(shares * shares.log()).sum())
        return "the most frequent class", {**{name: scores[name] for name in self.metrics}, "loss": loss}


@final
@dataclass(frozen=True)
class AgreementJudge(Judge):
    """How far a model's outputs agree with the whole model's, without labels.

    Attributes:
        order: "time" where positions come before texts.
        has_logits: whether the head gives several logits, whose divergence is a score too.
    """

    order: str
    has_logits: bool

    @property
    def names(self) -> tuple[str, ...]:
        return ("cosine", "kl") if self.has_logits else ("cosine",)

    @property
    def compared(self) -> str:
        return "1 - cosine"

    def read(self, run: Pass, whole: Pass, batch: Batch) -> Tensor:
        columns = [torch.cosine_similarity(self._embeddings(run, batch), self._embeddings(whole, batch))]
        if self.has_logits:
            columns.append(_divergence(whole.result.logits, run.result.logits, token_mask(batch)))
        return torch.stack(columns, 1).cpu()

    def unrelated(self, whole: Pass, batch: Batch) -> Tensor:
        embeddings = self._embeddings(whole, batch)
        if len(embeddings) < 2:
            return torch.zeros(0, len(self.names))
        columns = [torch.cosine_similarity(embeddings, embeddings.roll(1, 0))]
        if self.has_logits:
            logits = whole.result.logits
            pooled = logits.ndim == 2
            columns.append(
                _divergence(logits, logits.roll(1, 0), token_mask(batch)) if pooled else columns[0] * float("nan")
            )
        return torch.stack(columns, 1).cpu()

    def scores(self, values: Tensor, source: str) -> dict[str, float]:
        return dict(zip(self.names, values.double().mean(0).tolist(), strict=True))

    def by_row(self, values: Tensor) -> Tensor:
        return 1 - values[:, 0].double()

    def floor(self, rows: Sequence[Tensor]) -> tuple[str, dict[str, float]]:
        values = torch.cat(list(rows)).double()
        return "the whole model on another text", dict(zip(self.names, values.mean(0).tolist(), strict=True))

    def _embeddings(self, run: Pass, batch: Batch) -> Tensor:
        states = run.states.transpose(0, 1) if self.order == "time" else run.states
        return mean_states(states, token_mask(batch)).double()


def _divergence(whole: Tensor, edited: Tensor, mask: Tensor | None) -> Tensor:
    """Return KL(whole | edited) for each text; of logits for each token the mean over the text's tokens."""
    left, right = (x.float().log_softmax(-1) for x in (edited, whole))
    gap = torch.nn.functional.kl_div(left, right, log_target=True, reduction="none").sum(-1).double()
    if gap.ndim == 1:
        return gap
    if mask is None:
        return gap.mean(1)
    weights = mask.to(gap)
    return (gap * weights).sum(1) / weights.sum(1).clamp(min=1)


def agreement_judge(model: Any, order: str, whole: Pass, batch: Batch) -> AgreementJudge:
    """Return the judge without labels of a model, from its pass over one batch: does its head give several logits a text?"""
    result = whole.result
    logits = result["logits"] if not isinstance(model, SentenceEncoder) and "logits" in result else None
    texts = batch["attention_mask"].reshape(-1, batch["attention_mask"].shape[-1]).shape
    fits = logits is not None and logits.shape[-1] > 1 and (logits.ndim == 2 or logits.shape[:2] == texts)
    fits = fits and logits is not None and not one_logit_a_token(logits, type(model).__name__)
    return AgreementJudge(order, bool(fits and logits is not None and len(logits) == texts[0]))
