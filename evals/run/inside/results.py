"""What the functions on the inside of models return."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, final

from evals.run.results import Measured

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from evals.report.table_text import Row


@final
@dataclass(frozen=True)
class Inside(Measured):
    """A record of what is inside models: `.record`, the sentences of `.verdict`, `.tables()`, `.plot()`."""

    @property
    def record(self) -> dict[str, Any]:
        """The record, as results.json holds it."""
        return self.records[0]

    @property
    def verdict(self) -> tuple[str, ...]:
        from evals.report.inside.section import inside_verdict

        return tuple(inside_verdict(self.record))

    def tables(self) -> list[list[Row]]:
        from evals.report.inside.section import inside_tables

        return inside_tables(self.record)

    def to_json(self) -> Any:
        return dict(self.record)

    def plot(self) -> Figure:
        """Return the figure of the record."""
        from evals.report.inside.section import inside_figure

        return inside_figure(self.record)
