"""Commands whose --help shows options in sections, and folds lines that are wider than the terminal."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import click

VERBATIM = "\b"  # click's mark of a paragraph whose lines stay as they are
# Everything up to the second column of a line that explains a name.
FIRST_COLUMN = re.compile(r" *\S+(?: \S+)* {2,}")
ONE_SECTION: Mapping[str, Sequence[str]] = {"Options": ()}
NO_SECTIONS: Mapping[str, Sequence[str]] = {}
WORD = re.compile(r"(?:'[^']*'|\"[^\"]*\"|[^\s'\"])+")


def folded(line: str, width: int) -> str:
    r"""Return a line of help in as many lines as the width needs.

    A name and its explanation go on in the column of the explanation; an example of a command goes on after a backslash,
    and is broken in front of options only.
    """
    if len(line) <= width:
        return line
    column = FIRST_COLUMN.match(line)
    if column:
        return click.wrap_text(line[column.end() :], width, column.group(), " " * column.end())
    indent = " " * (len(line) - len(line.lstrip()))
    lines = [""]
    for part in _options_with_values(line):
        if lines[-1] and len(f"{lines[-1]} {part}") > width - len(" \\"):
            lines.append(f"{indent}    {part}")
        else:
            lines[-1] = f"{lines[-1]} {part}" if lines[-1] else indent + part
    return " \\\n".join(lines)


def _options_with_values(line: str) -> list[str]:
    """Return the parts of an example: the command with its arguments, then every option with its values."""
    words = WORD.findall(line)
    parts: list[str] = []
    for word in words if " ".join(words) == line.strip() else line.split():
        if word.startswith("-") or not parts:
            parts.append(word)
        else:
            parts[-1] += f" {word}"
    return parts


class FoldingFormatter(click.HelpFormatter):
    """Click's formatter; lines of verbatim paragraphs are folded too."""

    def write_text(self, text: str) -> None:
        """Write paragraphs; click calls this for the text and the epilog of --help."""
        paragraphs = []
        for paragraph in text.split("\n\n"):
            first, *lines = paragraph.split("\n")
            if first.strip() == VERBATIM:
                lines = [folded(line, self.width - self.current_indent) for line in lines]
            paragraphs.append("\n".join([first, *lines]))
        super().write_text("\n\n".join(paragraphs))


class FoldingContext(click.Context):
    """A context whose help is written by the folding formatter."""

    formatter_class = FoldingFormatter


class SectionedGroup(click.Group):
    """A click group whose --help shows its commands in sections, in the order given.

    Args:
        sections: title -> names of commands; those of no section are listed by name under "Commands".
    """

    context_class = FoldingContext

    def __init__(self, *args: Any, sections: Mapping[str, Sequence[str]] = NO_SECTIONS, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.sections = sections

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write one list of commands for each section; click calls this for --help."""
        listed = {name for names in self.sections.values() for name in names}
        rest = [name for name in self.list_commands(ctx) if name not in listed]
        widest = max(map(len, self.commands))
        for title, names in {**self.sections, "Commands": rest}.items():
            rows = [(f"{n:<{widest}}", self.commands[n].get_short_help_str(formatter.width)) for n in names]
            if rows:
                with formatter.section(title):
                    formatter.write_dl(rows)


class SectionedCommand(click.Command):
    """A click command with sections of options, in the order given.

    Args:
        sections: title -> the parameter names of its options. Options of no section are those of the section without names,
            else they end the last one; --help always does.
    """

    context_class = FoldingContext

    def __init__(self, *args: Any, sections: Mapping[str, Sequence[str]] = ONE_SECTION, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.sections = sections

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write one list of options for each section; click calls this for --help."""
        options = [p for p in self.get_params(ctx) if isinstance(p, click.Option)]  # the usage names the arguments
        records = {p.name: record for p in options if (record := p.get_help_record(ctx)) is not None}
        listed = {name for names in self.sections.values() for name in names}
        rest = [name for name in records if name not in listed]
        last = list(self.sections)[-1]
        home = next((title for title, names in self.sections.items() if not names), last)
        help_option = [p.name for p in options if set(p.opts) & set(ctx.help_option_names)]
        for title, names in self.sections.items():
            own = [name for name in (*names, *(rest if title == home else ())) if name not in help_option]
            rows = [records[name] for name in (*own, *(help_option if title == last else ())) if name in records]
            if rows:
                with formatter.section(title):
                    formatter.write_dl(rows)
