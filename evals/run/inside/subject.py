"""A model, rows and a judge: what a study of edited models runs, from a task or from text without labels."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from evals.run.inside.texts import DATA_WITHOUT_TASK, TEXT
from evals.run.options import EvalOptions, read_rows
from merge.checkpoints.weights.arrays import check_device
from merge.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from evals.surgery.judges import Judge
    from evals.surgery.paths import Objective
    from evals.surgery.slots import SlottedModel
    from evals.tasks.label_names import MatchedTask
    from evals.tasks.task import EvalTask
    from merge.checkpoints.checkpoint import Checkpoint
    from merge.checkpoints.inputs import Batch, Encoded
    from merge.text.source import TextSource

TEXT_WITH_TASK = "--text and --task are two sources of rows: give one of them."


@dataclass(frozen=True)
class Asked:
    """What a study is judged on.

    Attributes:
        task: whose rows are read; None for text without labels.
        text: the text.
        stack: the list of layers, where a model has two.
        score: of the task, that tables and figures lead with; its first one when None.
    """

    task: EvalTask | None
    text: TextSource
    stack: str = ""
    score: str | None = None


@dataclass(frozen=True)
class Subject:
    """A model in memory with its rows.

    Attributes:
        model: that plans run.
        encoded: the rows in batches.
        judge: of edited models.
        setting: fields of the record that say on what it was measured.
        notes: for the user.
        matched: the task, where there is one.
    """

    model: SlottedModel
    encoded: Encoded
    judge: Judge
    setting: dict[str, Any]
    notes: tuple[str, ...]
    matched: MatchedTask | None

    def objective(self, number: int, seed: int) -> tuple[Objective, str]:
        """Return what gradients on a batch are taken of, and what it is: the loss of a classifier, else a random direction.

        Args:
            number: of the batch, whose first rows are read.
        """
        from evals.surgery.paths import random_direction

        matched = self.matched
        if matched is None or matched.task.regression:
            return random_direction(self.model, seed), "a text's mean last state along a random direction"
        rows, columns, task = self.encoded.rows[number], matched.columns, matched.task
        gold = [int(matched.rows.gold[row]) for row in rows]

        def loss(done: Any, _batch: Batch) -> Tensor:
            import torch

            from evals.predict.logits import task_logits

            logits, _ = task_logits(done.result.logits, columns, task)
            due = torch.tensor(gold[: len(logits)], device=logits.device)
            return torch.nn.functional.cross_entropy(logits, due, reduction="none")

        return loss, f"the loss on {task.name}"


def check_asked(asked: Asked, options: EvalOptions, text_options: Sequence[str]) -> None:
    """Stop where rows and text do not fit one another.

    Args:
        text_options: those of --text, --text-column and --samples that were given.
    Raises:
        UsageError: --data without a task, or text with one.
    """
    if asked.task is None and options.data is not None:
        raise UsageError(DATA_WITHOUT_TASK)
    if asked.task is not None and text_options:
        raise UsageError(
            TEXT_WITH_TASK if "--text" in text_options else f"{text_options[0]} has no effect with --task."
        )
    if asked.task is None and asked.score is not None:
        raise UsageError(
            "--score names a score of a task: give --task too. Without labels, cosine and kl are both measured."
        )


def open_subject(checkpoint: Checkpoint, asked: Asked, options: EvalOptions, what: str) -> Subject:
    """Return a model with its rows and judge.

    Args:
        what: the study, for messages.
    Raises:
        UsageError: the layers of the family cannot be run by a plan.
        TaskError, CalibrationError: rows cannot be read, or the model has no tokenizer.
    """
    from merge.layers.stacks import layer_count, stack_of

    check_device(options.device)
    stack_of(checkpoint.model_type, asked.stack)
    if not layer_count(checkpoint.config, asked.stack):
        raise UsageError(f"{checkpoint.source} has no layers: there is nothing that {what} could edit.")
    if asked.task is None:
        return _text_subject(checkpoint.encoder, asked, options, what)
    return _task_subject(checkpoint, asked.task, asked, options)


def leading_first(task: EvalTask, score: str | None) -> tuple[str, ...]:
    """Return the scores of a task, the one that was asked for first.

    Raises:
        UsageError: the task has no such score; names the nearest.
    """
    from evals.tasks.task import METRICS
    from merge.errors import nearest

    names = METRICS[task.metric]
    if score is None:
        return names
    if score not in names:
        raise UsageError(f"{task.name} has no score {score!r}.{nearest(score, names)} Scores: {', '.join(names)}.")
    return (score, *(name for name in names if name != score))


def _task_subject(checkpoint: Checkpoint, task: EvalTask, asked: Asked, options: EvalOptions) -> Subject:
    from evals.predict.embeddings import with_modules
    from evals.predict.logits import label_notes, match_labels
    from evals.predict.predictor import make_predictor
    from evals.predict.regression import scale_notes
    from evals.results.measure import reading_notes
    from evals.surgery.judges import TaskJudge
    from evals.surgery.slots import slotted
    from evals.tasks.label_names import MatchedTask

    checkpoint, metrics = with_modules(checkpoint), leading_first(task, asked.score)
    columns, rows = match_labels(task, checkpoint, options.labels), read_rows(task, options)
    predictor = make_predictor(
        checkpoint, device=options.device, cache=not options.no_cache, max_length=options.max_length
    )
    encoded = predictor.encode(rows, checkpoint)
    matched = MatchedTask(task, rows, columns, checkpoint)
    setting = {"task": task.name, "split": rows.split, "data": rows.data, "n": len(rows), "rows": rows.hash}
    notes = [*label_notes(checkpoint, options.labels), *scale_notes(task, checkpoint)]
    notes += reading_notes(task, columns, encoded, options.max_length)
    return Subject(
        slotted(predictor.model, asked.stack),
        encoded,
        TaskJudge(matched, metrics, predictor.embeds),
        setting,
        tuple(notes),
        matched,
    )


def _text_subject(checkpoint: Checkpoint, asked: Asked, options: EvalOptions, what: str) -> Subject:
    import torch

    from evals.surgery.judges import agreement_judge
    from evals.surgery.slots import slotted
    from merge.checkpoints.inputs import Encoded
    from merge.layers.activations import live_model
    from merge.layers.strategies.choose import read_batches

    batches, source, notes = read_batches(checkpoint, asked.text, asked.stack, what)
    live = live_model(checkpoint).to(options.device)
    model = slotted(live, asked.stack)
    counts = [len(batch["attention_mask"].reshape(-1, batch["attention_mask"].shape[-1])) for batch in batches]
    starts = [sum(counts[:at]) for at in range(len(counts))]
    rows = tuple(tuple(range(start, start + count)) for start, count in zip(starts, counts, strict=True))
    small = {name: tensor[:2].to(options.device) for name, tensor in batches[0].items()}
    with torch.inference_mode():
        judge = agreement_judge(live, model.live.order, model.whole(small), small)
    model.passes = 0
    text = hashlib.sha256(b"".join(batch["input_ids"].numpy().tobytes() for batch in batches)).hexdigest()
    setting = {"task": TEXT, "split": TEXT, "data": source, "n": sum(counts), "rows": text}
    return Subject(model, Encoded(tuple(batches), rows, 0), judge, setting, notes, None)
