"""The Python API of studies of one model's layers: `evals.lesion` and `evals.linearity`."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, final

from evals.run.arguments import open_all, rows_path, shared_options
from evals.run.results import Measured
from merge.disk.workspace import Workspace
from merge.errors import UsageError, nearest

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from evals.report.table_text import Row
    from evals.run.inside.subject import Asked
    from evals.run.options import EvalOptions
    from merge.checkpoints.live import ModelLike
    from merge.text.memory import RowsLike, TextLike


@final
@dataclass(frozen=True)
class LayerStudy(Measured):
    """Edited models of one model: lesions, or linearity and commutativity."""

    @property
    def record(self) -> dict[str, Any]:
        """What results.json holds."""
        return self.records[0]

    @property
    def whole(self) -> dict[str, float]:
        """The scores of the whole model."""
        return dict(self.record["whole"])

    @property
    def models(self) -> list[dict[str, Any]]:
        """Every edited model: its part of the study, kind, name, layers, place on the axis, and scores."""
        return [dict(variant) for variant in self.record["variants"]]

    def scores(self, part: str, kind: str = "", score: str | None = None) -> dict[str, float]:
        """Return name -> score of the edited models of a part.

        Args:
            kind: of models, such as "attention, norm kept"; all when empty.
            score: the leading one when None.
        Raises:
            UsageError: there is no such part; names the nearest.
        """
        parts = {variant["part"] for variant in self.record["variants"]}
        if part not in parts:
            raise UsageError(f"there is no part {part!r}.{nearest(part, parts)}")
        name = score or self.record["scores"][0]
        chosen = (v for v in self.record["variants"] if v["part"] == part and kind in ("", v["kind"]))
        return {v["name"]: v["scores"][name] for v in chosen}

    def tables(self) -> list[list[Row]]:
        from evals.report.surgery.tables import TABLES

        return list(TABLES[self.record["kind"]](self.record).values())

    def plot(self, figure: str | None = None) -> Figure:
        """Return a figure by name, the first one when None.

        Raises:
            UsageError: there is no such figure; names the nearest.
        """
        from evals.report.surgery.section import FIGURES

        figures = FIGURES[self.record["kind"]](self.record)
        name = next(iter(figures), "") if figure is None else figure
        if name not in figures:
            raise UsageError(
                f"there is no figure {name!r}.{nearest(name, figures)} Figures: {', '.join(figures) or 'none'}."
            )
        return figures[name][0]


def lesion(
    model: ModelLike,
    *,
    task: str | None = None,
    data: RowsLike | None = None,
    text: TextLike | None = None,
    text_column: Sequence[str] | None = None,
    samples: int = 512,
    score: str | None = None,
    stack: str = "",
    only: Sequence[str] | None = None,
    layers: str | None = None,
    orders: Sequence[Sequence[int]] = (),
    draws: int = 5,
    reorders: int = 24,
    paths: int = 8,
    path_texts: int = 16,
    **options: Any,
) -> LayerStudy:
    """Leave out, edit, reorder and repeat the layers of a model: `evaluate-models lesion`.

    Args:
        task, data: what edited models are scored on; without a task they are compared with the whole model on `text`.
        text: a file, a Hub data set, or a list of texts; the package's own when None. `text_column` and `samples` are of it.
        score: of the task, that tables and figures lead with.
        stack: encoder or decoder, where a model has both.
        only: parts: layers, sublayers, random, orders, duplicates, paths; all when None.
        layers: that are left out and repeated one at a time, such as "0-3,7".
        orders: further orders of all layers.
        draws, reorders: random sets for each number of dropped layers, and random orders.
        paths, path_texts: paths of each length whose gradient is followed, and on how many texts.
        options: labels, limit, max_length, seed, output, force, device and cache, as in `score`.
    Returns:
        `.scores("layers")`, `.whole`, `.models`, `.plot("paths")`; `.record` has everything.
    Raises:
        UsageError: the layers of the family cannot be edited; a layer, an order or a name does not fit.
        TaskError, CalibrationError: rows cannot be read, or the model has no tokenizer.
    Source: Veit et al. 2016, arXiv:1605.06431.

    Example:
        >>> study = evals.lesion("a/", task="mnli", data=rows, only=["layers"])
        >>> len(study.scores("layers"))
        2
    """
    from evals.run.inside.lesion import measure_lesions
    from evals.surgery.lesion import PARTS, LesionSettings

    workspace, seed = Workspace(), int(options.get("seed", 0))
    shared = _shared(workspace, data, options)
    asked = _asked(workspace, task, text, text_column, samples, stack, score, shared)
    settings = LesionSettings(
        PARTS if only is None else tuple(only),
        layers,
        tuple(map(tuple, orders)),
        draws,
        reorders,
        paths,
        path_texts,
        seed,
    )
    opened = open_all(model, workspace.folder)[0]
    record = measure_lesions(opened, asked, settings, shared)
    return LayerStudy((record,), _folder(shared), workspace)


def linearity(
    model: ModelLike,
    *,
    task: str | None = None,
    data: RowsLike | None = None,
    text: TextLike | None = None,
    text_column: Sequence[str] | None = None,
    samples: int = 512,
    score: str | None = None,
    stack: str = "",
    only: Sequence[str] | None = None,
    fit: str = "closed",
    rounds: int = 3,
    cumulative: bool = True,
    draws: int = 3,
    train: RowsLike | None = None,
    tune_rounds: int = 3,
    rate: float = 2e-5,
    **options: Any,
) -> LayerStudy:
    """Measure how linear the components of a model are, and whether its layers commute: `evaluate-models linearity`.

    Args:
        task, data, text, text_column, samples, score, stack, options: as in `lesion`.
        only: parts: components, replaced, swaps, reversals, shuffles; all when None.
        fit: closed, or the loss of the published training: cosine, mse or l2; `rounds` through the text.
        cumulative: replace components in more and more layers too.
        draws: shuffles for each number of fixed layers.
        train: rows of the task on which models with frozen, removed and replaced components are trained; `tune_rounds` and `rate`
            are of these trainings.
    Returns:
        `.scores("swaps")`, `.record["components"]`, `.plot("components")`; `.record` has everything.
    Raises:
        UsageError: the layers of the family cannot be edited, or a name does not fit.
        TaskError, CalibrationError: rows cannot be read, the model has no tokenizer, or the text is too short for a fit.
    Source: Zhao et al. 2021, arXiv:2101.04547.

    Example:
        >>> study = evals.linearity("a/", task="mnli", data=rows, only=["swaps"])
        >>> study.whole["accuracy"] == study.scores("swaps")["layers in their order"]
        True
    """
    from evals.run.inside.linearity import measure_linearity
    from evals.surgery.linearity import PARTS, LinearitySettings

    workspace, seed = Workspace(), int(options.get("seed", 0))
    shared = _shared(workspace, data, options)
    asked = _asked(workspace, task, text, text_column, samples, stack, score, shared)
    parts = PARTS if only is None else tuple(only)
    settings = LinearitySettings(parts, fit, rounds, cumulative, draws, tune_rounds, rate, seed)
    opened = open_all(model, workspace.folder)[0]
    record = measure_linearity(opened, asked, settings, shared, rows_path(train, workspace.folder / "train"))
    return LayerStudy((record,), _folder(shared), workspace)


OPTIONS = {"labels": None, "limit": None, "max_length": None, "seed": 0, "force": False, "device": "cpu"}


def _shared(workspace: Workspace, data: RowsLike | None, options: Mapping[str, Any]) -> EvalOptions:
    """Return the options of an evaluation.

    Raises:
        TypeError: there is no option of a name, as Python says it.
    """
    for name in options:
        if name not in (*OPTIONS, "output", "cache"):
            raise TypeError(f"got an unexpected keyword argument {name!r}")
    given = {**OPTIONS, **{name: value for name, value in options.items() if name in OPTIONS}}
    labels, cache = given.pop("labels"), bool(options.get("cache", True))
    return shared_options(workspace, data, labels, options.get("output"), no_cache=not cache, **given)


def _asked(
    workspace: Workspace,
    task: str | None,
    text: TextLike | None,
    columns: Sequence[str] | None,
    samples: int,
    stack: str,
    score: str | None,
    shared: EvalOptions,
) -> Asked:
    from evals.run.inside.subject import Asked, check_asked
    from evals.tasks import find_task
    from merge.text.memory import text_file
    from merge.text.source import TextSource

    path = None if text is None else text_file(text, workspace.folder / "text")
    source = TextSource(path, None if columns is None else tuple(columns), samples, shared.seed)
    asked = Asked(None if task is None else find_task(task), source, stack, score)
    check_asked(
        asked, shared, [name for name, value in (("--text", text), ("--text-column", columns)) if value is not None]
    )
    return asked


def _folder(shared: EvalOptions) -> Path:
    assert shared.output is not None
    return Path(os.fspath(shared.output))
