"""Task files: a user's task as a short YAML record, read where commands take the name of a task."""

from __future__ import annotations

import re
from collections.abc import Container
from dataclasses import replace
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, ValidationInfo, field_validator, model_validator

from evals.tasks.label_names import plain
from evals.tasks.table import TaskTable, make_task
from evals.tasks.task import METRICS, EvalTask, Rows
from merge.errors import RecipeError, TaskError, UsageError, nearest
from merge.recipe.validation import located_faults
from merge.recipe.yaml_document import position_of, read_document

# The name of a score in a file -> the metric with that score; the names of METRICS are accepted too.
SCORES = {"accuracy": "sst2", "f1": "mrpc", "matthews_correlation": "cola", "pearson": "stsb"}

# A Hub dataset is named with its split: without one it would be the training set.
_HUB = re.compile(r"\w[\w.-]*/\w[\w.-]*:[^/:]*/(?P<split>\w[\w.-]*)")


class TaskRecord(BaseModel):
    """The keys of a task file; unknown keys are errors.

    Attributes:
        name: of the task in results.
        data: a file (.csv, .tsv, .jsonl, .json, .parquet), its path relative to the task file, or a Hub dataset
            (org/name:config/split).
        columns: the column of the text, or the two columns of a pair.
        label_column: the column of the label.
        labels: class names; the label column holds names, or integers in this order.
        regression: true where the label is a number, and there are no labels.
        metric: accuracy, f1 (with accuracy), matthews_correlation, pearson (with spearmanr), or a GLUE task's name.
        aliases: another name of a class -> the class.
        coarse: a finer class -> the class it folds into, of models and of gold labels.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")
    data: str = Field(min_length=1)
    columns: tuple[str, ...] = Field(min_length=1, max_length=2)
    label_column: str = Field(min_length=1)
    regression: bool = Field(default=False, strict=True)
    labels: tuple[str, ...] = ()
    metric: str | None = None
    coarse: dict[str, str] = Field(default_factory=dict)
    aliases: dict[str, str] = Field(default_factory=dict)

    @field_validator("columns", mode="before")
    @classmethod
    def _one_column(cls, columns: Any) -> Any:
        return [columns] if isinstance(columns, str) else columns

    @field_validator("labels")
    @classmethod
    def _labels_differ(cls, labels: tuple[str, ...]) -> tuple[str, ...]:
        if len(labels) < 2 or len({plain(name) for name in labels}) != len(labels):
            raise ValueError(f"expected at least two classes of different names, found {', '.join(labels) or 'none'}")
        return labels

    @field_validator("coarse", "aliases")
    @classmethod
    def _names_known(cls, names: dict[str, str], info: ValidationInfo) -> dict[str, str]:
        labels = info.data.get("labels")
        known = {plain(name): name for name in (*(labels or ()), *info.data.get("coarse", {}))}
        for other, name in names.items() if labels else ():  # without labels, that is the fault
            if plain(name) not in known:
                raise ValueError(
                    f"{other!r} is mapped to {name!r}, which is not a class.{nearest(name, known.values())}"
                )
        return names

    @field_validator("metric")
    @classmethod
    def _known_metric(cls, metric: str | None) -> str | None:
        if metric is not None and metric not in {**SCORES, **METRICS}:
            raise ValueError(f"unknown metric {metric!r}.{nearest(metric, SCORES)}")
        return metric

    @model_validator(mode="after")
    def _fits(self) -> TaskRecord:
        """Check that the label is of one kind, and that the metric is of that kind."""
        if self.regression == bool(self.labels):
            raise ValueError("a task has either labels (its class names) or regression: true")
        if self.regression and (self.aliases or self.coarse):
            raise ValueError("aliases and coarse name classes; a regression task has none")
        scores = METRICS[self.scores]
        if self.regression != ("pearson" in scores):
            expected = "pearson" if self.regression else "accuracy, f1 or matthews_correlation"
            raise ValueError(
                f"metric {self.metric} does not fit {'numbers' if self.regression else 'classes'}: {expected}"
            )
        if "f1" in scores and len(self.labels) != 2:
            raise ValueError(f"metric f1 is that of the second of two classes; found {len(self.labels)} classes")
        return self

    @property
    def scores(self) -> str:
        """The metric of METRICS that computes the scores."""
        metric = self.metric or ("pearson" if self.regression else "accuracy")
        return SCORES.get(metric, metric)


def read_task(path: Path, reserved: Container[str] = ()) -> EvalTask:
    """Return the task that a YAML file describes.

    Args:
        reserved: names of built-in tasks, which the task may not have.
    Raises:
        UsageError: it cannot be read, or is malformed; each fault as file:line:column: key: message.
    """
    try:
        values, root = read_document(path, "task file", "name, data, columns, ...")
    except RecipeError as error:
        raise UsageError(str(error)) from error
    try:
        record = TaskRecord.model_validate(values)
    except ValidationError as error:
        raise UsageError(located_faults(path, root, TaskRecord, error)) from error
    if record.name in reserved:
        at = position_of(root, ("name",))
        raise UsageError(f"{path}:{at}: name: {record.name!r} is the name of a built-in task; choose another.")
    return _task(record, path)


def _task(record: TaskRecord, path: Path) -> EvalTask:
    hub = _HUB.fullmatch(record.data)
    table = TaskTable(
        name=record.name,
        labels=record.labels,
        columns=tuple((column,) for column in record.columns),
        label_columns=(record.label_column,),
        files=(),
        split=hub["split"] if hub else "",
        source=record.data,
        coarse=record.coarse,
        aliases=record.aliases,
    )

    def read(data: Path | None, seed: int) -> Rows:
        return table(_data_file(record, path) if data is None else data, seed)

    return replace(make_task(table, record.scores), read=read, source=f"{path.name}: {record.data}")


def _data_file(record: TaskRecord, path: Path) -> Path | None:
    """Return the task's file; None where its data is a Hub dataset.

    Raises:
        TaskError: it is neither; a path is relative to the task file, never to the current folder.
    """
    file = path.parent / record.data
    if file.exists():
        return file
    if _HUB.fullmatch(record.data) and not Path(record.data).exists():
        return None
    raise TaskError(
        f"{record.name} data {file}: there is no such file. Paths in {path} are relative to its folder; a Hub dataset "
        "is named with its split: org/name:config/split."
    )
