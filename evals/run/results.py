"""Results of the Python API: the records that results.json holds, with their tables, figures and JSON."""

from __future__ import annotations

import abc
import html
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, final

from merge.disk.workspace import Workspace
from merge.errors import UsageError, nearest

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from numpy.typing import NDArray

    from evals.clusters.pair_losses import PairLosses
    from evals.report.table_text import Row
    from evals.results.compare import Comparison


@dataclass(frozen=True)
class Shown(abc.ABC):
    """A result that shows itself as text, in a notebook and as JSON."""

    @abc.abstractmethod
    def tables(self) -> list[list[Row]]:
        """Return the tables that the command prints; the first row of each is its header."""

    @abc.abstractmethod
    def to_json(self) -> Any:
        """Return what the command prints with --json."""

    def __str__(self) -> str:
        from evals.report.table_text import plain_table

        return "\n".join(plain_table(rows).rstrip("\n") for rows in self.tables())

    def __rich__(self) -> str:
        from rich.markup import escape

        return escape(str(self))

    def _repr_html_(self) -> str:
        return "".join(_html_table(rows) for rows in self.tables())


@dataclass(frozen=True)
class Measured(Shown, abc.ABC):
    """Records of results.json.

    Attributes:
        records: one a task and model, as results.json holds them.
        folder: of results.json and the predictions; in a workspace that goes away with this result, unless an output was
            asked for.
    """

    records: tuple[dict[str, Any], ...]
    folder: Path
    _workspace: Workspace = field(repr=False, compare=False)

    @property
    def notes(self) -> tuple[str, ...]:
        """Sentences for the user, as the command prints them."""
        return tuple(dict.fromkeys(note for record in self.records for note in record["notes"]))

    def to_json(self) -> list[dict[str, Any]]:
        return [dict(record) for record in self.records]


@final
@dataclass(frozen=True)
class Scores(Measured):
    """Scores of models on tasks, by task first; `scores[k]` is the dict of entry k, such as {"accuracy": 0.71, "loss": 0.8}.

    Attributes:
        left_out: a line for each task that was left out of "all".
    """

    left_out: tuple[str, ...] = ()

    def __getitem__(self, at: int) -> dict[str, float]:
        return dict(self.records[at]["scores"])

    def __len__(self) -> int:
        return len(self.records)

    def __iter__(self) -> Iterator[dict[str, float]]:
        return (dict(record["scores"]) for record in self.records)

    def tables(self) -> list[list[Row]]:
        from evals.report.tables import hans_rows, score_rows

        hans = [record for record in self.records if record.get("hans")]
        return [score_rows(self.records), *([hans_rows(hans)] if hans else [])]

    def plot(self) -> Figure:
        """Return the figure of HANS accuracies by subcase.

        Raises:
            UsageError: no record is of HANS.
        """
        from evals.report.hans_figure import hans_figure

        hans = [record for record in self.records if record.get("hans")]
        if not hans:
            raise UsageError("scores are drawn for HANS; these are of other tasks.")
        return hans_figure(hans)


@final
@dataclass(frozen=True)
class Barrier(Measured):
    """The loss along the line between two models: a curve for the models as they are, and one for the aligned models.

    Source: Frankle et al. 2020, arXiv:1912.05671; Entezari et al. 2022, arXiv:2110.06296, definition 1.
    """

    @property
    def curves(self) -> dict[str, dict[str, Any]]:
        """`naive`, and `aligned` where an alignment was asked for -> lam, loss, accuracy, barrier, epsilon, ..."""
        return dict(zip(("naive", "aligned"), map(dict, self.records[0]["curves"]), strict=False))

    @property
    def barrier(self) -> float:
        """The loss barrier in nats: of the aligned line where an alignment was asked for, else of the naive one."""
        return float(self.records[0]["curves"][-1]["barrier"])

    def tables(self) -> list[list[Row]]:
        from evals.report.tables import barrier_rows

        return [barrier_rows(self.records)]

    def plot(self) -> Figure:
        """Return the figure of losses and accuracies along the line."""
        from evals.report.barrier_figure import barrier_figure

        return barrier_figure(self.records[0])


@final
@dataclass(frozen=True)
class Line(Measured):
    """The loss along the line between two models on one data set or several: every summary of each curve, with its source."""

    @property
    def curves(self) -> dict[str, dict[str, dict[str, Any]]]:
        """Data set -> name of the curve -> lam, loss, accuracy, barrier, ..."""
        return {
            name: {curve["name"]: dict(curve) for curve in record["curves"]} for name, record in self._named().items()
        }

    @property
    def summaries(self) -> dict[str, dict[str, dict[str, float]]]:
        """Data set -> name of the curve -> summary -> value; standard errors and places are in `.curves`."""
        return {
            name: {c["name"]: {s["name"]: s["value"] for s in c["summaries"]} for c in record["curves"]}
            for name, record in self._named().items()
        }

    def _named(self) -> dict[str, dict[str, Any]]:
        """Return the records by task, and by task and data where a task was measured on several data sets."""
        tasks = [record["task"] for record in self.records]
        return {
            task if tasks.count(task) == 1 else f"{task}: {record['data']}": record
            for task, record in zip(tasks, self.records, strict=True)
        }

    def tables(self) -> list[list[Row]]:
        from evals.report.tables import line_rows

        return [line_rows(record) for record in self.records]

    def plot(self, task: str | None = None) -> Figure:
        """Return the figure of losses and accuracies along the line on one data set; the first when None.

        Raises:
            UsageError: the line was not measured on it.
        """
        from evals.report.barrier_figure import barrier_figure

        named = self._named()
        name = next(iter(named)) if task is None else task
        if name not in named:
            raise UsageError(f"the line was not measured on {name!r}.{nearest(name, named)}")
        return barrier_figure(named[name])


@final
@dataclass(frozen=True)
class Basins(Shown):
    """The lines between many models: which of them share a basin of the loss.

    Attributes:
        record: what basins.json holds.
        losses: of every row, of the naive lines and, where an alignment was asked for, of the aligned ones.
    """

    record: dict[str, Any]
    losses: tuple[PairLosses, ...] = field(repr=False)

    @property
    def models(self) -> tuple[str, ...]:
        return self.losses[0].models

    @property
    def notes(self) -> tuple[str, ...]:
        """Sentences for the user, as the command prints them."""
        return tuple(self.record["notes"])

    @property
    def verdict(self) -> tuple[str, ...]:
        """What the sweep says of the models, the most important first; of the aligned line where there is one."""
        return tuple(self.record["analyses"][-1]["verdict"])

    @property
    def clusters(self) -> list[list[str]]:
        """The names of the models of each cluster, the largest first; of the aligned line where there is one."""
        return [[self.models[k] for k in members] for members in self.record["analyses"][-1]["clusters"]]

    def matrix(self, summary: str = "convexity gap", line: int = -1) -> NDArray[Any]:
        """Return a summary of every pair, shape (models, models): symmetric, 0 on the diagonal, nan where not measured.

        Args:
            line: 0 for the naive line, -1 for the aligned one where there is one.
        Raises:
            UsageError: there is no such summary; the nearest is named.
        """
        import numpy as np

        summaries = self.record["lines"][line]["summaries"]
        if summary not in summaries:
            raise UsageError(f"unknown summary {summary!r}.{nearest(summary, summaries)}")
        matrix = np.full((len(self.models),) * 2, np.nan)
        np.fill_diagonal(matrix, 0.0)
        for (i, j), value in zip(self.record["pairs"], summaries[summary]["value"], strict=True):
            matrix[i, j] = matrix[j, i] = value
        return matrix

    def __str__(self) -> str:
        from evals.report.basins_tables import verdict_lines
        from evals.report.table_text import plain_table

        return "\n".join([*verdict_lines(self.record), *(plain_table(rows).rstrip("\n") for rows in self.tables())])

    def tables(self) -> list[list[Row]]:
        from evals.report.basins_tables import MOST_PAIRS, SHOWN, model_rows, pair_rows

        return [model_rows(self.record), pair_rows(self.record, SHOWN, MOST_PAIRS)]

    def to_json(self) -> dict[str, Any]:
        return dict(self.record)


@final
@dataclass(frozen=True)
class Comparisons(Shown):
    """Paired differences between models, one entry a pair and score."""

    comparisons: tuple[Comparison, ...]

    def __getitem__(self, at: int) -> Comparison:
        return self.comparisons[at]

    def __len__(self) -> int:
        return len(self.comparisons)

    def __iter__(self) -> Iterator[Comparison]:
        return iter(self.comparisons)

    def tables(self) -> list[list[Row]]:
        from evals.report.tables import comparison_rows

        return [comparison_rows(self.comparisons)]

    def to_json(self) -> list[dict[str, Any]]:
        return [comparison.to_json() for comparison in self.comparisons]


def _html_table(rows: Sequence[Row]) -> str:
    """Return a table as HTML; numbers stand to the right."""
    from evals.report.table_text import numeric_columns, show

    numeric = numeric_columns(rows)

    def line(row: Row, tag: str) -> str:
        sides = ("right" if number else "left" for number in numeric)
        cells = zip(row, sides, strict=True)
        return "".join(f"<{tag} style='text-align:{side}'>{html.escape(show(cell))}</{tag}>" for cell, side in cells)

    body = "".join(f"<tr>{line(row, 'td')}</tr>" for row in rows[1:])
    return f"<table><thead><tr>{line(rows[0], 'th')}</tr></thead><tbody>{body}</tbody></table>"
