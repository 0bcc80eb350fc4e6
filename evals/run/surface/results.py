"""The result of a surface: one record of results.json, with its tables and figure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, final

from evals.run.results import Measured

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from evals.report.table_text import Row


@final
@dataclass(frozen=True)
class Surface(Measured):
    """A plane, curve, simplex or interpolation from the start.

    Its one record has everything that was measured; checkpoints and arrays that it names are in `.folder`.
    """

    @property
    def record(self) -> dict[str, Any]:
        """What results.json holds."""
        return dict(self.records[0])

    def tables(self) -> list[list[Row]]:
        from evals.report.surface.section import surface_tables

        return surface_tables(self.records[0])

    def plot(self) -> Figure:
        """Return the figure."""
        from evals.report.surface.section import surface_figure

        return surface_figure(self.records[0])[0]
