"""The Python API of surfaces: `plane`, `monotonic`, `curve` and `simplex`."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evals.run.arguments import line_options, names_of, open_all, rows_path
from evals.run.line import TaskData
from evals.run.options import EvalOptions
from evals.run.surface.results import Surface
from merge.checkpoints.live import listed_models
from merge.disk.workspace import Workspace
from merge.errors import UsageError

if TYPE_CHECKING:
    from merge.alignment.settings import AlignEntry
    from merge.checkpoints.live import ModelLike
    from merge.text.memory import RowsLike


def plane(
    models: Sequence[ModelLike] | str | os.PathLike[str],
    *,
    task: str,
    points: int = 7,
    levels: int = 1,
    span: str = "average",
    basins: str | os.PathLike[str] | None = None,
    align: str | Mapping[str, Any] = "none",
    data: RowsLike | None = None,
    **options: Any,
) -> Surface:
    """Measure loss and score on a plane through weight space: `evaluate-models plane`.

    Args:
        models: three; the folder of a training run, whose checkpoints (checkpoint-*) are on the plane; or with `basins` the
            models of a sweep.
        points: along each side of the even grid.
        levels: how often its cells are halved where the log loss bends; 0 for the even grid alone.
        span: of a run: "average" (through its first and last checkpoint and the average of all) or "pca" (through the average,
            along the first two principal components).
        basins: the folder of a sweep (`basins`), whose three most distant models are taken.
        align: align the models to the first; as in `barrier`.
        data: the rows of `task`, as in `score`.
        options: labels, limit, max_length, seed, output, force, device and cache of `score`.
    Returns:
        `.record["points"]`: column, row, x, y, loss, standard error and score of each; `.record["marks"]`; `.plot()`.
    Raises:
        UsageError: the models are on one line, or not three; the run has too few checkpoints.
        MismatchError: they do not fit one another.
    Source: Garipov et al. 2018, arXiv:1802.10026.

    Example:
        >>> measured = evals.plane(["a/", "b/", "c/"], task="mnli", data=rows, points=3, levels=0)
        >>> [mark["name"] for mark in measured.record["marks"]]
        ['a', 'b', 'c', 'average']
    """
    from evals.run.surface.plane import SPANS, PlanePlan, check_count, measure_plane, most_distant, plane_sources

    if points < 3 or not 0 <= levels <= 4:
        raise UsageError(f"a plane takes at least 3 points a side and 0 to 4 levels, found {points} and {levels}.")
    if span not in SPANS:
        raise UsageError(f"span is one of {', '.join(SPANS)}, found {span!r}.")
    workspace = Workspace()
    shared, data_set, settings = _common(workspace, task, data, align, options)
    listed = listed_models(models, "evals.plane(['a/', 'b/', 'c/'], task='mnli', data=rows)")
    of_run = False
    if all(isinstance(model, str | os.PathLike) for model in listed):
        listed, of_run = plane_sources([os.fspath(model) for model in listed])
    if basins is None:
        check_count(len(listed), of_run)
    opened = open_all(listed, workspace.folder)
    if basins is not None:
        opened = most_distant(Path(basins).expanduser(), opened)
    record = measure_plane(opened, data_set, settings, PlanePlan(points, levels, span), shared)
    return Surface((record,), Path(str(shared.output)), workspace)


def monotonic(
    init: ModelLike,
    finals: ModelLike | Sequence[ModelLike],
    *,
    task: str,
    points: int = 21,
    head_seed: int | None = None,
    gauss_rows: int = 32,
    data: RowsLike | None = None,
    **options: Any,
) -> Surface:
    """Measure the loss from where training started to where it ended: `evaluate-models monotonic`.

    Args:
        init: a checkpoint of the finals' class, or the pretrained model without a head.
        finals: one model, several, or the folder of a training run with its checkpoints.
        points: of the even grid of alpha, both ends included.
        head_seed: draws the head that `init` lacks, as transformers does after `torch.manual_seed`; when None its start is
            unknown, and each final's head is kept along its line.
        gauss_rows: rows of which the Gauss length is measured; 0 for none.
        data: the rows of `task`, as in `score`.
        options: labels, limit, max_length, seed, output, force, device and cache of `score`.
    Returns:
        `.record["lines"]`: of each final `loss`, `monotone`, `delta`, `bumps`, `gauss`, `distance`; `.plot()`.
    Raises:
        MismatchError: the start is of another family or size.
        UsageError: the start and an end have the same weights; a run has no checkpoints.
    Source: Lucas et al. 2021, arXiv:2104.11044.

    Example:
        >>> measured = evals.monotonic("a/", ["b/"], task="mnli", data=rows, points=3, gauss_rows=2)
        >>> measured.record["lines"][0]["alpha"]
        [0.0, 0.5, 1.0]
    """
    from evals.run.surface.models import expanded
    from evals.run.surface.monotonic import MonotonicPlan, measure_monotonic
    from merge.checkpoints.live import open_model

    if points < 3 or gauss_rows < 0:
        raise UsageError(f"points must be at least 3 and gauss_rows at least 0, found {points} and {gauss_rows}.")
    workspace = Workspace()
    shared, data_set, _ = _common(workspace, task, data, "none", options)
    start = open_model(init, workspace.folder / "start", is_base=True).encoder
    listed = expanded([os.fspath(finals)]) if isinstance(finals, str | os.PathLike) else finals
    plan = MonotonicPlan(points, head_seed, gauss_rows)
    record = measure_monotonic(start, open_all(listed, workspace.folder), data_set, plan, shared)
    return Surface((record,), Path(str(shared.output)), workspace)


def curve(
    a: ModelLike,
    b: ModelLike,
    *,
    task: str,
    train: RowsLike,
    kind: str = "bezier",
    bends: int = 1,
    points: int = 11,
    steps: int = 200,
    rate: float = 1e-4,
    rows_a_step: int = 32,
    align: str | Mapping[str, Any] = "none",
    data: RowsLike | None = None,
    **options: Any,
) -> Surface:
    """Train a curve of low loss between two models, and measure it beside the straight line: `evaluate-models curve`.

    Args:
        a, b: the ends of the curve.
        train: the labelled rows that the bends are trained on.
        kind: "bezier", or "chain" for straight pieces.
        bends: trained points between the ends.
        points: of the even grid on which both are measured, the ends included.
        steps, rate, rows_a_step: of Adam; the rate falls linearly to 0.
        align: an alignment after which line and curve are measured once more; as in `barrier`.
        data: the rows of `task` that are measured, as in `score`.
        options: labels, limit, max_length, seed, output, force, device and cache of `score`.
    Returns:
        `.record["curves"]`: of each path `t`, `loss`, `barrier`, `mean`; the bends are checkpoints in
        `.folder / .record["checkpoints"]`.
    Raises:
        MismatchError: the two models do not fit one another.
        UsageError: they have the same weights, or an option does not fit.
    Source: Garipov et al. 2018, arXiv:1802.10026.

    Example:
        >>> measured = evals.curve("a/", "b/", task="mnli", train=rows, data=rows, points=3, steps=2)
        >>> [path["name"] for path in measured.record["curves"]]
        ['naive straight line', 'naive Bezier curve']
    """
    from evals.run.surface.curve import KIND_NAMES, CurvePlan, measure_curve
    from evals.run.surface.learning import Learning

    if points < 3 or not 1 <= bends <= 8:
        raise UsageError(f"a curve takes at least 3 points and 1 to 8 bends, found {points} and {bends}.")
    if kind not in KIND_NAMES:
        raise UsageError(f"kind is one of {', '.join(KIND_NAMES)}, found {kind!r}.")
    workspace = Workspace()
    shared, data_set, settings = _common(workspace, task, data, align, options)
    learning = Learning(rows_path(train, workspace.folder / "train"), steps, rate, rows_a_step)
    first, second = open_all([a, b], workspace.folder)
    record = measure_curve((first, second), data_set, settings, CurvePlan(kind, bends, points), learning, shared)
    return Surface((record,), Path(str(shared.output)), workspace)


def simplex(
    models: ModelLike | Sequence[ModelLike],
    *,
    task: str,
    train: RowsLike,
    also: Sequence[str] | Mapping[str, RowsLike | None] = (),
    against: Sequence[ModelLike] = (),
    kind: str = "espro",
    vertices: int = 2,
    samples: int = 5,
    tolerance: float = 0.05,
    volume: float = 1e-3,
    steps: int = 200,
    rate: float = 1e-4,
    rows_a_step: int = 32,
    data: RowsLike | None = None,
    **options: Any,
) -> Surface:
    """Grow simplexes of low loss from models, and average the predictions of points in them: `evaluate-models simplex`.

    Args:
        models: one model or several.
        train: the labelled rows that vertices are trained on.
        also: further tasks on which ensembles are compared; a dict gives the rows of each.
        against: further models of the deep ensemble to compare with.
        kind: "espro" grows a simplex from each model, "spro" vertices that join all of them.
        vertices: that are grown, for each model or for all of them.
        samples: points drawn from each simplex.
        tolerance: how far over its model's loss a simplex counts as low.
        volume: weight of the volume's logarithm in the training loss.
        steps, rate, rows_a_step: of Adam, for each vertex; the rate falls linearly to 0.
        data: the rows of `task` that are measured, as in `score`.
        options: labels, limit, max_length, seed, output, force, device and cache of `score`.
    Returns:
        `.record["simplexes"]`: of each `low_loss_dimension` and, by dimension, `volume` and losses; `.record["ensembles"]`; the
        vertices are checkpoints in `.folder / .record["checkpoints"]`.
    Raises:
        MismatchError: the models do not fit one another.
        UsageError: an option does not fit, or a task asks for a number.
    Source: Benton et al. 2021, arXiv:2102.13042.

    Example:
        >>> measured = evals.simplex("a/", task="mnli", train=rows, data=rows, vertices=1, samples=1, steps=1)
        >>> [grown["dimension"] for grown in measured.record["simplexes"][0]["dimensions"]]
        [0, 1]
    """
    from evals.run.surface.learning import Learning
    from evals.run.surface.simplex import KIND_NAMES, SimplexPlan, measure_simplex
    from evals.tasks import find_task

    if kind not in KIND_NAMES:
        raise UsageError(f"kind is one of {', '.join(KIND_NAMES)}, found {kind!r}.")
    if not 1 <= vertices <= 12 or samples < 1 or not tolerance >= 0 or not volume >= 0:
        raise UsageError(
            f"a simplex takes 1 to 12 vertices, at least 1 sample, and no negative tolerance or volume; found {vertices}, "
            f"{samples}, {tolerance} and {volume}."
        )
    workspace = Workspace()
    shared, data_set, _ = _common(workspace, task, data, "none", options)
    rows: Mapping[str, RowsLike | None] = also if isinstance(also, Mapping) else dict.fromkeys(names_of(also))
    folders = (workspace.folder / f"also-{number}" for number in range(len(rows)))
    more = [TaskData(find_task(n), rows_path(rows[n], folder)) for n, folder in zip(rows, folders, strict=True)]
    learning = Learning(rows_path(train, workspace.folder / "train"), steps, rate, rows_a_step)
    plan = SimplexPlan(kind, vertices, samples, tolerance, volume)
    opened = open_all(models, workspace.folder / "models")
    others = open_all(against, workspace.folder / "against") if against else []
    record = measure_simplex(opened, others, [data_set, *more], plan, learning, shared)
    return Surface((record,), Path(str(shared.output)), workspace)


def _common(
    workspace: Workspace, task: str, data: RowsLike | None, align: str | Mapping[str, Any], options: Mapping[str, Any]
) -> tuple[EvalOptions, TaskData, AlignEntry]:
    """Return the shared options, the data set and the alignment of a surface."""
    from evals.tasks import find_task
    from merge.recipe.recipe import make_align_entry

    shared = line_options(workspace, data, options)
    settings = make_align_entry({"by": align} if isinstance(align, str) else dict(align))
    return shared, TaskData(find_task(task), shared.data), settings
