"""Lines of --help that are wider than the terminal are folded so that they still mean what they say."""

from __future__ import annotations

import shlex

import click
import pytest

from merge.commands.sections import SectionedCommand, folded

COMMAND = "  drop m/ --strategy beam --scorer 'score sst2 {model} --json -q' --metric sst2/accuracy -o out"


@pytest.mark.parametrize("width", [40, 60, 78])
def test_a_folded_example_is_the_same_command_to_a_shell(width: int) -> None:
    """No line is wider, but one whose single option is; the words are those of the example, quoted ones whole."""
    lines = folded(COMMAND, width).split("\n")
    assert [line for line in lines if len(line) > width and "--scorer" not in line] == []
    assert len(lines) > 1
    assert shlex.split("".join(line.removesuffix("\\") for line in lines)) == shlex.split(COMMAND)
    assert all(line.endswith(" \\") for line in lines[:-1])


def test_an_explanation_goes_on_in_its_own_column() -> None:
    text = folded("  A[3]*2   the third layer twice, one after the other", 30)
    assert text.split("\n") == ["  A[3]*2   the third layer", "           twice, one after", "           the other"]


def test_a_line_that_fits_stays_as_it_is() -> None:
    assert folded(COMMAND, len(COMMAND)) == COMMAND


def test_options_of_no_section_are_where_no_names_are_and_help_comes_last() -> None:
    options = [click.Option([f"--{name}"], help="x.") for name in ("known", "own")]
    command = SectionedCommand(
        "c", params=options, sections={"Own": (), "Known": ("known",), "None of these": ("absent",)}
    )
    text = command.get_help(click.Context(command))
    places = [text.index(part) for part in ("\nOwn:\n", "--own", "\nKnown:\n", "--known")]
    assert places == sorted(places)
    assert "None of these:\n  --help" in text
