"""What README, docs, recipes and help texts show: commands that the tool takes, files that are there, counts that are right."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from evals.commands.evaluate_models import evaluate
from evals.tasks import TASKS
from merge.alignment.matchers import BY
from merge.commands.align_options import with_align_value
from merge.commands.edit_layers import edit_command
from merge.commands.merge_models import COMMANDS, merge_command
from merge.commands.stitch_models import stitch_command
from merge.methods import METHODS
from merge.symmetry.architectures import ARCHITECTURES

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
GROUPS = {"evaluate-models": evaluate, "edit-layers": edit_command}
SINGLE = {"merge-models": merge_command, "stitch-models": stitch_command}
NAMES = "|".join([*GROUPS, *SINGLE])
# An example on a line of its own, which may go on after a backslash. Two spaces or a comment end it.
EXAMPLE = re.compile(rf"(?m)^#? +((?:{NAMES})(?: (?![ #])[^\s#\\]+|\s+\\\n\s+[^\s#\\]+)+)")
# Between backquotes a command may lack arguments: it may be no more than a name.
MENTION = re.compile(rf"`((?:{NAMES}) [^`]*)`")
SCRIPT = re.compile(r"\b((?:benchmarks|recipes|tests|merge|evals)/[\w/]+\.(?:py|yaml))\b")
# More options than this a reader does not look through.
MAX_IN_A_SECTION = 15
LINK = re.compile(r"\]\(([^)#:]+)(?:#[^)]*)?\)")


def documents() -> Iterator[tuple[str, str]]:
    """Yield the name and text of every page, recipe and help text."""
    for path in [*PAGES, *sorted((ROOT / "recipes").glob("*.yaml"))]:
        yield path.relative_to(ROOT).as_posix(), path.read_text(encoding="utf-8")
    for name, command in {**GROUPS, **SINGLE}.items():
        yield f"{name} --help", f"{command.help}\n{command.epilog}"


def shown(pattern: re.Pattern[str]) -> list[tuple[str, str]]:
    """Return the document and the words of every match of a pattern."""
    return [
        (name, " ".join(match.group(1).replace("\\\n", " ").split()))
        for name, text in documents()
        for match in pattern.finditer(text)
    ]


def parse(line: str) -> None:
    """Parse a command line as its command does; raise click's error if the command does not take it."""
    name, *arguments = shlex.split(line.split(" > ")[0])
    if {"--help", "--version"} & set(arguments):
        return
    command: click.Command | None
    if name in SINGLE and arguments[0] not in COMMANDS:
        command = SINGLE[name]
    elif name in SINGLE:
        command, arguments = COMMANDS[arguments[0]], arguments[1:]
    else:
        _, command, arguments = GROUPS[name].resolve_command(click.Context(GROUPS[name]), arguments)
    assert command is not None
    command.make_context(name, with_align_value(arguments))


def refusals(lines: list[tuple[str, str]]) -> dict[str, str]:
    """Return why commands do not take the lines that they refuse."""
    refused = {}
    for document, line in lines:
        try:
            parse(line)
        except click.ClickException as error:
            refused[f"{document}: {line}"] = f"{type(error).__name__}: {error.format_message()}"
    return refused


def help_texts() -> dict[str, str]:
    """Return the --help of every command in a terminal of 80 columns."""
    commands: dict[str, click.Command] = {**GROUPS, **SINGLE}
    commands |= {f"merge-models {name}": command for name, command in COMMANDS.items()}
    commands |= {
        f"{name} {each}": command for name, group in GROUPS.items() for each, command in group.commands.items()
    }
    return {
        name: command.get_help(command.context_class(command, info_name=name, terminal_width=80))
        for name, command in commands.items()
    }


def test_every_help_fits_a_terminal_in_sections_and_cuts_no_sentence() -> None:
    """Folded examples are still what they were: a shell reads a line that ends in a backslash with the next."""
    texts = help_texts()
    wide = [(name, line) for name, text in texts.items() for line in text.splitlines() if len(line) > 80]
    short = [
        f"{name} {each}: {c.get_short_help_str(99)}"
        for name, group in GROUPS.items()
        for each, c in group.commands.items()
    ]
    cut = [line for line in short if "..." in line]
    unlisted = [name for name in GROUPS if "\nCommands:\n" in texts[name]]
    long_lists = [
        (name, block)
        for name, text in texts.items()
        for block in text.split("\n\n")
        if block.count("\n  -") > MAX_IN_A_SECTION
    ]
    assert (wide, cut, unlisted, long_lists) == ([], [], [], [])
    examples = {" ".join(line.split()) for document, line in shown(EXAMPLE) if document.endswith("--help")}
    flat = " ".join(" ".join(texts.values()).replace("\\\n", " ").split())
    assert len(examples) > 20
    assert [line for line in examples if line not in flat] == []


def test_every_example_is_a_command_that_runs() -> None:
    lines = shown(EXAMPLE)
    assert len(lines) > 110
    assert refusals(lines) == {}


def test_every_command_that_a_sentence_names_is_there() -> None:
    lines = [(document, line) for document, line in shown(MENTION) if "..." not in line]
    assert len(lines) > 50
    assert {line: why for line, why in refusals(lines).items() if not why.startswith("MissingParameter")} == {}


@pytest.mark.parametrize(
    "line",
    [
        "evaluate-models planes a b c --task mnli",
        "edit-layers drop m/ --layer 3",
        "stitch-models a b --at 3:4 --map afine",
    ],
)
def test_a_wrong_example_is_refused(line: str) -> None:
    assert refusals([("page", line)])


def test_every_file_and_page_that_is_named_is_there() -> None:
    named = [(document, path) for document, path in shown(SCRIPT) if "NAME" not in path and not (ROOT / path).exists()]
    linked = [
        (page.name, target)
        for page in PAGES
        for target in LINK.findall(page.read_text(encoding="utf-8"))
        if not (page.parent / target).exists()
    ]
    assert len(shown(SCRIPT)) > 50
    assert (named, linked) == ([], [])


def test_the_counts_of_the_pages_are_those_of_the_tables() -> None:
    readme, ideas = ((ROOT / page).read_text(encoding="utf-8") for page in ("README.md", "docs/how-it-works.md"))
    assert f"[{len(ARCHITECTURES)} families](docs/architectures.md)" in readme
    assert f"[{len(METHODS)}](docs/methods.md): averages" in readme
    assert f"| evaluation | {len(TASKS)} tasks" in readme
    named = ("auto", "weights", "activations", "learned")
    assert f"`--align` {', '.join(f'`{name}`' for name in named)} and [{len(set(BY) - set(named))} more]" in readme
    assert f"lists the {len(ARCHITECTURES)} families" in ideas
    assert f"({len(METHODS)} formulas)" in ideas
