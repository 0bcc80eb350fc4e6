"""Arguments of the Python API, as the commands read them: open models, files of rows, a record of options."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evals.run.options import EvalOptions
from merge.checkpoints.live import listed_models, open_model
from merge.checkpoints.weights.arrays import check_device
from merge.disk.workspace import Workspace
from merge.run.api.arguments import check_arguments

if TYPE_CHECKING:
    from merge.checkpoints.checkpoint import Checkpoint
    from merge.checkpoints.live import ModelLike
    from merge.text.memory import RowsLike


def shared_options(
    workspace: Workspace,
    data: RowsLike | None,
    labels: Sequence[str] | None,
    output: str | os.PathLike[str] | None,
    **others: Any,
) -> EvalOptions:
    """Return the options of an evaluation; rows in memory, and results without an output, go to the workspace.

    Raises:
        UsageError: torch cannot compute on the device.
    """
    check_device(others.get("device", "cpu"))
    return EvalOptions(
        data=rows_path(data, workspace.folder),
        labels=None if labels is None else tuple(labels),
        output=workspace.folder / "results" if output is None else Path(output).expanduser(),
        **others,
    )


def rows_path(data: RowsLike | None, workspace: Path) -> Path | None:
    """Return the file or folder of rows; those in memory are written to the workspace, in place of any from before."""
    from merge.text.memory import rows_file

    return None if data is None else Path(rows_file(data, workspace))


def open_all(models: ModelLike | Sequence[ModelLike], workspace: Path) -> list[Checkpoint]:
    """Open one model or several; those in memory are written to the workspace."""
    listed = listed_models(models, "evals.score(['a/', 'b/'], 'mnli', data=rows)")
    return [open_model(model, workspace, number) for number, model in enumerate(listed, 1)]


def names_of(names: str | Sequence[str]) -> list[str]:
    """Return one name, or several, as a list."""
    return [names] if isinstance(names, str) else list(names)


@dataclass(frozen=True)
class ScoreOptions:
    """Options of `evals.score` that further evaluations take as well, by the same names."""

    labels: Sequence[str] | None = None
    output: str | os.PathLike[str] | None = None
    limit: int | None = None
    max_length: int | None = None
    seed: int = 0
    force: bool = False
    device: str = "cpu"
    cache: bool = True


def line_options(workspace: Workspace, data: RowsLike | None, options: Mapping[str, Any]) -> EvalOptions:
    """Return the options of a line, from those of `score` that it takes.

    Raises:
        TypeError: it takes no option of that name, as Python says it.
        UsageError: a value is of another type than `score` states.
    """
    for name in options:
        if name not in ScoreOptions.__annotations__:
            raise TypeError(f"line() got an unexpected keyword argument {name!r}")
    check_arguments(ScoreOptions, options)
    given = vars(ScoreOptions(**options))
    return shared_options(
        workspace, data, no_cache=not given["cache"], **{k: v for k, v in given.items() if k != "cache"}
    )
