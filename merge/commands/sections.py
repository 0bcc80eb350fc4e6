"""A command whose --help shows its options in sections."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import click


class SectionedCommand(click.Command):
    """A click command with sections of options, in the order given; options in none end the last section.

    Args:
        sections: title -> the parameter names of its options.
    """

    def __init__(self, *args: Any, sections: Mapping[str, Sequence[str]], **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.sections = sections

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write one list of options for each section; click calls this for --help."""
        options = [p for p in self.get_params(ctx) if isinstance(p, click.Option)]  # the usage names the arguments
        records = {p.name: record for p in options if (record := p.get_help_record(ctx)) is not None}
        listed = {name for names in self.sections.values() for name in names}
        rest = [name for name in records if name not in listed]
        last = list(self.sections)[-1]
        for title, names in self.sections.items():
            with formatter.section(title):
                formatter.write_dl([records[n] for n in (*names, *(rest if title == last else ())) if n in records])
