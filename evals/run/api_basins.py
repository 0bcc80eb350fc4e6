"""The Python API of sweeps over many models: `evals.basins`."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from evals.run.arguments import names_of, open_all, rows_path, shared_options
from evals.run.results import Basins
from merge.disk.workspace import Workspace
from merge.errors import UsageError

if TYPE_CHECKING:
    from merge.checkpoints.live import ModelLike
    from merge.text.memory import RowsLike, TextLike
    from merge.text.source import TextSource


def basins(
    models: Sequence[ModelLike],
    *,
    task: str,
    diagnostics: Sequence[str] | Mapping[str, RowsLike | None] = (),
    references: Sequence[str] = (),
    align: str | Mapping[str, Any] = "none",
    align_to: str = "pair",
    points: int = 11,
    processes: int | None = None,
    backend: str = "loky",
    summary: str = "convexity gap",
    method: str = "average",
    clusters: int | str = "auto",
    tolerance: float | None = None,
    verify: int = 0,
    averages: Sequence[Sequence[int]] = (),
    text: TextLike | None = None,
    text_column: Sequence[str] | None = None,
    samples: int = 512,
    data: RowsLike | None = None,
    labels: Sequence[str] | None = None,
    limit: int | None = None,
    max_length: int | None = None,
    seed: int = 0,
    output: str | os.PathLike[str] | None = None,
    force: bool = False,
    device: str = "cpu",
    cache: bool = True,
    tell: Callable[[str], None] | None = None,
) -> Basins:
    """Measure the straight lines between all pairs of models: `evaluate-models basins`.

    Args:
        models: two or more.
        diagnostics: further scores of every model, TASK or TASK:SCORE; a dict gives the rows of each.
        references: measure every model against these, by name, and not all pairs.
        align, points: as in `barrier`.
        align_to: "pair", or "reference": every model is aligned to the first reference (else to the first model).
        processes, backend: how many processes share the pairs, and where: "loky" (this machine), "ray" or "dask".
        summary, method, clusters, tolerance: how models are clustered: fields `summary`, `method`, `number` and `tolerance` of
            `evals.clusters.findings.AnalysisSettings`.
        verify: how many of the best ranked subsets are averaged and measured, beside the average of all.
        averages: further subsets, by the index of their models, that are averaged and measured.
        text, text_column, samples: what the maps of summary "stitching" are fitted on, pairs where two columns are named; when
            None the text of `align`, else the package's own.
        task, data, labels, limit, max_length, seed, device, cache: as in `score`.
        output: a folder for the losses of every pair and basins.json; later calls measure only what is not there, unless
            `force`.
        tell: is called with each line of the estimate of the cost before the work begins.
    Returns:
        `.verdict`, `.clusters`, `.matrix("convexity gap")`, `.losses[0].curve(0, 1)`; `.record` has everything.
    Raises:
        UsageError: there are fewer than two different models, or an option does not fit.
        MismatchError: two models do not fit one another.
        TaskError: a task does not fit a model.

    Example:
        >>> swept = evals.basins(["a/", "b/"], task="mnli", data=rows, points=3, processes=1)
        >>> swept.matrix("loss barrier").shape
        (2, 2)
    """
    from evals.run.basins import measure_basins
    from evals.run.basins_plan import BasinsPlan, asked_diagnostic
    from evals.tasks import find_task
    from merge.recipe.recipe import make_align_entry

    workspace = Workspace()
    options = shared_options(
        workspace,
        data,
        labels,
        output,
        limit=limit,
        max_length=max_length,
        seed=seed,
        force=force,
        device=device,
        no_cache=not cache,
    )
    rows: Mapping[str, RowsLike | None] = (
        diagnostics if isinstance(diagnostics, Mapping) else dict.fromkeys(names_of(diagnostics))
    )
    folders = (workspace.folder / f"diagnostic-{number}" for number in range(len(rows)))
    asked = [asked_diagnostic(name, rows_path(rows[name], folder)) for name, folder in zip(rows, folders, strict=True)]
    analysis = {"summary": summary, "method": method, "number": clusters, "tolerance": tolerance}
    plan = BasinsPlan(
        points,
        tuple(asked),
        tuple(references),
        align_to,
        processes,
        backend,
        verify,
        tuple(map(tuple, averages)),
        analysis,
        text=_text_of_stitches(text, text_column, samples, seed, summary, workspace),
    )
    settings = make_align_entry({"by": align} if isinstance(align, str) else dict(align))
    if isinstance(models, str | os.PathLike):
        raise UsageError(f"basins takes a list of models, found {os.fspath(models)!r}.")
    opened = open_all(models, workspace.folder)
    measured = measure_basins(opened, find_task(task), settings, plan, options, tell or (lambda _line: None))
    assert isinstance(measured, tuple)  # no dry run was asked for
    return Basins(*measured)


def _text_of_stitches(
    text: TextLike | None,
    columns: Sequence[str] | None,
    samples: int,
    seed: int,
    summary: str,
    workspace: Workspace,
) -> TextSource | None:
    from merge.text.memory import text_file
    from merge.text.source import TextSource

    if text is None:
        return None
    if summary != "stitching":
        raise UsageError(
            "text is what stitches are fitted on: give summary='stitching', or align={'by': ..., 'text': ...}."
        )
    return TextSource(text_file(text, workspace.folder), None if columns is None else tuple(columns), samples, seed)
