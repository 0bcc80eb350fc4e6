"""The Python API of evaluations: one function for each command, which runs the same code.

Models are what `merge.merge` takes: folders, Hub ids, open checkpoints or live models, which are never changed. Rows are
files, folders of task files, lists of dicts or a `datasets.Dataset`. Nothing is stored unless `output` names a folder.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evals.run.arguments import line_options, names_of, open_all, rows_path, shared_options
from evals.run.options import DTYPES
from merge.disk.workspace import Workspace
from merge.errors import UsageError, nearest
from merge.run.api.arguments import check_arguments

if TYPE_CHECKING:
    from evals.run.results import Barrier, Comparisons, Line, Scores
    from merge.checkpoints.live import ModelLike
    from merge.text.memory import RowsLike


def score(
    models: ModelLike | Sequence[ModelLike],
    task: str | Sequence[str],
    *,
    data: RowsLike | None = None,
    labels: Sequence[str] | None = None,
    limit: int | None = None,
    max_length: int | None = None,
    seed: int = 0,
    output: str | os.PathLike[str] | None = None,
    force: bool = False,
    device: str = "cpu",
    dtype: str = "float32",
    cache: bool = True,
) -> Scores:
    """Score models on a task, on several, or on all that fit: `evaluate-models score` and `glue`.

    Args:
        models: one model or several.
        task: a task of `evaluate-models tasks`, a task file (.yaml), a list of these, or "all".
        data: the rows: a file, a folder, a list of dicts or a `datasets.Dataset`; the task's own source when None.
        labels: class names in the order of the logits, where the models' configs do not name them.
        limit: evaluate on this many rows, drawn at random with `seed`.
        max_length: cut longer rows to this many tokens; to what each model takes when None.
        output: a folder for results.json and predictions, which later calls reuse unless `force`.
        device, dtype: where and in what precision models compute.
        cache: whether tokens may be kept in the cache.
    Returns:
        One entry a task and model, by task first: `scores[0]["accuracy"]`; `.records` has intervals and notes.
    Raises:
        TaskError: rows or labels do not fit the task.
        UsageError: there is no such task; the nearest is named.

    Example:
        >>> scores = evals.score([model, "b/"], "mnli", data=rows)
        >>> 0 <= scores[0]["accuracy"] <= 1
        True
        >>> len(scores)
        2
    """
    from evals.run.results import Scores
    from evals.run.scoring import score_all
    from evals.tasks import TASKS, find_task

    if dtype not in DTYPES:
        raise UsageError(f"unknown dtype {dtype!r}.{nearest(dtype, DTYPES)}")
    names = tuple(TASKS) if task == "all" else (task,) if isinstance(task, str) else tuple(task)
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
        dtype=dtype,
    )
    tasks = [find_task(name) for name in dict.fromkeys(names)]
    scored, left_out = score_all(tasks, open_all(models, workspace.folder), options, task == "all")
    records = tuple(entry.record for entry in scored)
    return Scores(records, Path(str(options.output)), workspace, tuple(left_out))


def hans(
    models: ModelLike | Sequence[ModelLike],
    *,
    data: RowsLike | None = None,
    **options: Any,
) -> Scores:
    """Score models on HANS, by heuristic and subcase: `evaluate-models hans`.

    Args:
        data: the authors' file or rows with its columns; generated from the HANS grammar when None.
        options: those of `score`.
    Returns:
        One entry a model; `.records[0]["hans"]` has the accuracy of every subcase; `.plot()` draws them.
    Raises:
        TaskError: rows or labels do not fit.
    Source: McCoy et al. 2019, arXiv:1902.01007.

    Example:
        >>> scores = evals.hans("a/", limit=60)
        >>> sorted(scores.records[0]["hans"])[:2]
        ['accuracy', 'counts']
    """
    check_arguments(score, options)
    return score(models, "hans", data=data, **options)


def barrier(
    a: ModelLike,
    b: ModelLike,
    *,
    task: str,
    data: RowsLike | None = None,
    align: str | Mapping[str, Any] = "none",
    points: int = 11,
    labels: Sequence[str] | None = None,
    limit: int | None = None,
    max_length: int | None = None,
    seed: int = 0,
    output: str | os.PathLike[str] | None = None,
    force: bool = False,
    device: str = "cpu",
    cache: bool = True,
) -> Barrier:
    """Measure the loss along the straight line between two models: `evaluate-models barrier`.

    Args:
        a, b: the endpoints; lam = 0 is a.
        task, data, labels, limit, max_length, seed, output, force, device, cache: as in `score`.
        align: an alignment that is measured beside the naive line; as in `merge.merge`.
        points: of the even grid of lam, the endpoints included; at least 3.
    Returns:
        `.barrier` in nats (in squared units of the gold number for a regression task), `.curves` by name, `.plot()`.
    Raises:
        MismatchError: the two models do not fit one another.
        UsageError: there are fewer than 3 points.
    Source: Frankle et al. 2020, arXiv:1912.05671; Entezari et al. 2022, arXiv:2110.06296.

    Example:
        >>> measured = evals.barrier("a/", "b/", task="mnli", data=rows, points=3, align="weights")
        >>> list(measured.curves)
        ['naive', 'aligned']
    """
    from evals.run.barrier import measure_barrier
    from evals.run.results import Barrier
    from evals.tasks import find_task
    from merge.recipe.recipe import make_align_entry

    if points < 3:
        raise UsageError(f"points must be at least 3, found {points}.")
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
    settings = make_align_entry({"by": align} if isinstance(align, str) else dict(align))
    first, second = open_all([a, b], workspace.folder)
    record = measure_barrier((first, second), find_task(task), settings, points, options)
    return Barrier((record,), Path(str(options.output)), workspace)


def line(
    a: ModelLike,
    b: ModelLike,
    *,
    task: str,
    also: Sequence[str] | Mapping[str, RowsLike | None] = (),
    head: str | Sequence[str] = "both",
    adaptive: bool = False,
    align: str | Mapping[str, Any] = "none",
    points: int = 11,
    data: RowsLike | None = None,
    **options: Any,
) -> Line:
    """Summarise the loss along the straight line between two models in every way of the field: `evaluate-models line`.

    Args:
        a, b: the endpoints; lam = 0 is a.
        also: further tasks, measured in the same weights; a dict gives the rows of each.
        head: "both" interpolates the classifier head, "A" keeps that of a, "refit" fits the last layer anew at every lam; or
            several of these, a line each.
        adaptive: measure more lam where a curve bends.
        align, points: as in `barrier`.
        data: the rows of `task`, as in `score`.
        options: labels, limit, max_length, seed, output, force, device and cache of `score`.
    Returns:
        `.summaries[task][curve][name]`, `.curves[task]`, `.plot(task)`.
    Raises:
        MismatchError: the two models do not fit one another.
        UsageError: a head is unknown, a data set is named twice, or there are fewer than 3 points.
    Source: of every summary, in `.records` and docs/evaluating.md; Frankle et al. 2020, arXiv:1912.05671, first of all.

    Example:
        >>> measured = evals.line("a/", "b/", task="mnli", data=rows, points=3)
        >>> list(measured.summaries["mnli"]["naive"])[:3]
        ['error barrier', 'loss barrier', 'barrier over the mean']
    """
    from evals.paths.pair_lines import LinePlan
    from evals.run.line import TaskData, measure_line
    from evals.run.results import Line
    from evals.tasks import find_task
    from merge.recipe.recipe import make_align_entry

    if points < 3:
        raise UsageError(f"points must be at least 3, found {points}.")
    workspace = Workspace()
    shared = line_options(workspace, data, options)
    rows: Mapping[str, RowsLike | None] = also if isinstance(also, Mapping) else dict.fromkeys(names_of(also))
    # A folder for each: rows in memory are written under one name.
    folders = (workspace.folder / f"also-{number}" for number in range(len(rows)))
    more = [
        TaskData(find_task(name), rows_path(rows[name], folder)) for name, folder in zip(rows, folders, strict=True)
    ]
    settings = make_align_entry({"by": align} if isinstance(align, str) else dict(align))
    first, second = open_all([a, b], workspace.folder)
    plan = LinePlan(points, tuple(names_of(head)), adaptive)
    records = measure_line((first, second), [TaskData(find_task(task), shared.data), *more], settings, plan, shared)
    return Line(tuple(records), Path(str(shared.output)), workspace)


def compare(
    results: Scores | str | os.PathLike[str], task: str | None = None, *, against: str | None = None
) -> Comparisons:
    """Compare models row by row: differences, bootstrap intervals and McNemar's test; `evaluate-models compare`.

    Args:
        results: what `score` or `hans` returned for two or more models, or the folder that they wrote to.
        task: the task; that of the results when None.
        against: compare every other model with the one of this name; all pairs when None.
    Returns:
        One entry a pair and score, each with `difference`, `interval` and `test`.
    Raises:
        TaskError: fewer than two models were scored on the same rows.
        UsageError: the task is not stated and the results are of several.

    Example:
        >>> compared = evals.compare(evals.score(["a/", "b/"], "mnli", data=rows))
        >>> compared[0].score
        'accuracy'
    """
    from evals.results.compare import compare_models
    from evals.run.results import Comparisons, Scores

    folder = results.folder if isinstance(results, Scores) else Path(results).expanduser()
    if task is None:
        tasks = sorted({record["task"] for record in results.records}) if isinstance(results, Scores) else []
        if len(tasks) != 1:
            raise UsageError(f"say which task to compare on: {', '.join(tasks) or 'compare(folder, task)'}.")
        task = tasks[0]
    return Comparisons(tuple(compare_models(folder, task, against)))
