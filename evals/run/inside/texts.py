"""What models are compared on: rows of a task, texts of a file, or the package's own text."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from evals.run.options import EvalOptions, read_rows
from merge.errors import UsageError

if TYPE_CHECKING:
    from evals.tasks.task import EvalTask, Rows
    from merge.checkpoints.checkpoint import Checkpoint
    from merge.text.source import TextSource

TEXT = "text"  # what a record has as its task where there is none
DATA_WITHOUT_TASK = "--data holds the rows of a task: give --task too, or --text FILE for texts without labels."


@dataclass(frozen=True)
class FeatureTexts:
    """What features are measured on: the rows of a task, else texts."""

    task: EvalTask | None
    text: TextSource


@dataclass(frozen=True)
class Measured:
    """Rows on which models are compared.

    Attributes:
        task: whose rows they are; None for texts without labels.
        notes: for the user, on how they were chosen.
    """

    rows: Rows
    task: EvalTask | None
    notes: tuple[str, ...]

    def setting(self) -> dict[str, Any]:
        """Return the fields of a record that say on what it was measured."""
        name = TEXT if self.task is None else self.task.name
        rows = self.rows
        return {"task": name, "split": rows.split, "data": rows.data, "n": len(rows), "rows": rows.hash}


def measured_rows(task: EvalTask | None, text: TextSource, options: EvalOptions) -> Measured:
    """Return the rows of a task where there is one, else a sample of texts.

    Raises:
        UsageError: --data or --labels without a task; there are fewer than two texts.
        TaskError, CalibrationError: they cannot be read.
    """
    from evals.inside.texts import text_rows

    if task is None and options.labels is not None:
        raise UsageError(
            "--labels names the classes of a task, and texts have none: give --task too, or leave --labels out."
        )
    if task is not None:
        measured = Measured(read_rows(task, options), task, ())
    elif options.data is not None:
        raise UsageError(DATA_WITHOUT_TASK)
    else:
        rows, notes = text_rows(text)
        measured = Measured(rows.sample(options.limit, options.seed), None, notes)
    if len(measured.rows) < 2:
        raise UsageError(f"{measured.rows.data}: models are compared on two texts or more, found {len(measured.rows)}.")
    return measured


def check_reads_text(checkpoint: Checkpoint) -> None:
    """Stop at a model that has several inputs, or reads images.

    Raises:
        UsageError: names it and its class.
    """
    from merge.checkpoints.transformers_model import meta_model
    from merge.layers.activations import check_one_text_input

    check_one_text_input(meta_model(checkpoint.config), checkpoint.source)


def check_one_source(task: object, text: object, aligns: bool) -> None:
    """Stop where both a task and a text are given, and nothing reads the text.

    Args:
        aligns: whether an alignment does.
    Raises:
        UsageError: says which to leave out.
    """
    if task is not None and text is not None and not aligns:
        raise UsageError("the rows of --task are measured, so nothing reads --text: leave one of the two out.")


def versions() -> dict[str, str]:
    """Return the versions of what results depend on."""
    import torch
    import transformers

    import merge

    return {"merge-models": merge.__version__, "torch": torch.__version__, "transformers": transformers.__version__}


def listed(value: Any) -> Any:
    """Return a record with its tuples as lists, as JSON has them."""
    if isinstance(value, dict):
        return {name: listed(child) for name, child in value.items()}
    return [listed(child) for child in value] if isinstance(value, list | tuple) else value
