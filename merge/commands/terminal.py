"""Shared terminal behaviour of all commands: progress on stderr, one-line errors, exit codes, comma lists."""

from __future__ import annotations

import logging
import os
import re
import signal
import sys
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any, NoReturn

import click

from merge.commands.failures import UNFORESEEN, on_one_line, unforeseen
from merge.commands.imports import without_pydantic_plugins
from merge.commands.phases import Phases
from merge.errors import Interrupted, MergeError, UsageError
from merge.progress import shown_by, silent

RUST_PANIC = "PanicException"  # of libraries in Rust; it is no Exception
OUT_OF_MEMORY = re.compile("not enough memory|out of memory|can't allocate memory")
MAX_DEFAULT_THREADS = 8
# Of what a command repeats (steps, points, draws): a larger number is a slip of the hand, and would never end.
MAX_COUNT = 1_000_000
NO_NUMBER = re.compile(r"is not a valid (integer|float)(?: range)?(?=\.$)")  # of click, for a value that is none
NO_HOME = "Could not determine home directory."  # of pathlib, as a RuntimeError
_signals: list[int] = []  # that asked the command to end; a library may make an error of its own of the first
VERBOSE = "verbose"  # entry of a command's state: whether the whole of an error is printed


def start(
    command: click.Command, name: str, arguments: Sequence[str], hint: Callable[[str], str | None] | None = None
) -> None:
    """Run a command and exit: 0 on success, 1 or 2 with a one-line error, 130 on Ctrl-C; 70 for what nobody foresaw.

    With -v the whole of an error is printed, else one line.

    Args:
        hint: returns advice for an unknown option, or None where click's own fits.
    """
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_VERBOSITY", "error")
    set_threads(arguments)
    without_pydantic_plugins()
    _signals.clear()
    signal.signal(signal.SIGTERM, _interrupt)
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # else it is ignored, as under nohup
        signal.signal(signal.SIGINT, _interrupt)
    state = {VERBOSE: False}
    try:
        _check_arguments(arguments)
        command.main(list(arguments), prog_name=name, standalone_mode=False, obj=state)
    except click.ClickException as error:
        click.echo(f"{name}: {_usage_message(error, _typed_command(command, name, arguments), hint)}", err=True)
        sys.exit(2)
    except MergeError as error:
        if _signals and not isinstance(error, Interrupted):
            _exit_interrupted(name)
        message = str(error).removesuffix(error.picture) if error.picture else error
        click.echo(f"{name}: {on_one_line(message, state[VERBOSE])}{error.picture}", err=True)
        sys.exit(error.exit_code)
    except (KeyboardInterrupt, click.Abort) as error:
        # click takes the EOFError of a library, on a file that ends too soon, for Ctrl-D.
        if isinstance(error.__cause__, EOFError):
            click.echo(f"{name}: {unforeseen(error.__cause__, state[VERBOSE])}", err=True)
            sys.exit(UNFORESEEN)
        _exit_interrupted(name)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except (OSError, MemoryError) as error:  # from the system: a deleted file, full memory
        if _signals:
            _exit_interrupted(name)
        click.echo(f"{name}: {on_one_line(f'{type(error).__name__}: {error}', state[VERBOSE])}", err=True)
        sys.exit(1)
    except BaseException as error:
        if not isinstance(error, Exception) and type(error).__name__ != RUST_PANIC:
            raise
        if _signals:  # a library made another error of the KeyboardInterrupt
            _exit_interrupted(name)
        if str(error) == NO_HOME:
            path = "a path begins with ~, and this machine knows no home folder of that user. Write the whole path."
            click.echo(f"{name}: {path}", err=True)
            sys.exit(1)
        if OUT_OF_MEMORY.search(str(error)):  # of torch, which raises a RuntimeError
            click.echo(f"{name}: {on_one_line(error, state[VERBOSE])}", err=True)
            sys.exit(1)
        click.echo(f"{name}: {unforeseen(error, state[VERBOSE])}", err=True)
        sys.exit(UNFORESEEN)


def _usage_message(error: click.ClickException, name: str, hint: Callable[[str], str | None] | None) -> str:
    """Return a fault of the arguments in one line, which ends with the command whose --help answers."""
    advice = hint(error.option_name) if hint and isinstance(error, click.NoSuchOption) else None
    if advice and isinstance(error, click.NoSuchOption):
        message = f"No such option: {error.option_name}; {advice}"
    else:
        message = error.format_message()
    context = error.ctx if isinstance(error, click.UsageError) else None
    # click writes the choices of a missing option on lines of their own.
    line = on_one_line(" ".join(message.split()))
    line = NO_NUMBER.sub(lambda kind: "is not a whole number" if kind[1] == "integer" else "is not a number", line)
    line = line if line.endswith((".", "?", ")", "]")) and not line.startswith("Got unexpected") else f"{line}."
    return f"{line} See {context.command_path if context else name} --help."


def _typed_command(command: click.Command, name: str, arguments: Sequence[str]) -> str:
    """Return the name of a command, with that of its command that was typed: click names none for an option without its value."""
    inner = command.commands if isinstance(command, click.Group) else {}
    return f"{name} {arguments[0]}" if arguments and arguments[0] in inner else name


def set_threads(arguments: Sequence[str]) -> None:
    """Set the threads of numerical libraries, before they are imported: those of --threads, else one per core, at most 8.

    Threads that wait for each other make small products many times slower on a machine of many busy cores. The number does
    not depend on how busy the machine is: sums would be rounded in another order, and files differ from run to run.
    """
    stated = [value for flag, value in pairwise([*arguments, ""]) if flag == "--threads"]
    stated += [text.removeprefix("--threads=") for text in arguments if text.startswith("--threads=")]
    count = (
        stated[-1]
        if stated and stated[-1].isdecimal() and int(stated[-1])
        else str(min(usable_cores(), MAX_DEFAULT_THREADS))
    )
    variables = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")
    if stated or not any(name in os.environ for name in variables):  # one alone is the user's, or that of torchrun
        os.environ.update(dict.fromkeys(variables, count))


def usable_cores() -> int:
    """Return how many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _check_arguments(arguments: Sequence[str]) -> None:
    """Stop where an argument is not UTF-8: no file that is written could name it.

    Raises:
        UsageError: it is not.
    """
    for argument in arguments:
        if any("\ud800" <= character <= "\udfff" for character in argument):
            raise UsageError(f"expected arguments in UTF-8, found {argument!r}. Rename the file.")


def _interrupt(number: int, _frame: Any) -> None:
    _signals.append(number)
    raise KeyboardInterrupt


def _exit_interrupted(name: str) -> NoReturn:
    click.echo(f"{name}: interrupted; no incomplete output is left", err=True)
    sys.exit(130)


class CommaList(click.ParamType):
    """A list typed as names, or numbers, separated by commas."""

    name = "list"

    def __init__(self, numbers: bool = False) -> None:
        self.numbers = numbers

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[Any, ...]:
        return (
            tuple(value) if isinstance(value, list | tuple) else self.split(value, param.opts[0] if param else "list")
        )

    def split(self, text: str, option: str) -> tuple[Any, ...]:
        """Return the parts of a text.

        Raises:
            UsageError: a part is empty, or is not a number where numbers are expected; the message names the option.
        """
        parts = tuple(part.strip() for part in text.split(","))
        kind = "numbers" if self.numbers else "names"
        try:
            if "" not in parts:
                return tuple(map(float, parts)) if self.numbers else parts
        except ValueError:
            pass
        raise UsageError(f"{option} expects {kind} separated by commas, found {text!r}.")


NAMES, NUMBERS = CommaList(), CommaList(numbers=True)


def set_verbosity(verbose: bool, quiet: bool) -> None:
    """Show library logs and what each phase took on stderr with -v, and progress without -q until the command ends."""
    context = click.get_current_context()
    if isinstance(context.obj, dict):
        context.obj[VERBOSE] = verbose
    phases = Phases(not quiet, verbose and not quiet)
    context.call_on_close(phases.end)
    context.with_resource(shown_by(silent if quiet else phases.counted, phases.begin))
    logging.basicConfig(level=logging.INFO if verbose else logging.WARNING, format="%(name)s: %(message)s")


def _note_verbose(context: click.Context, _parameter: click.Parameter, verbose: bool) -> None:
    if isinstance(context.obj, dict):
        context.obj[VERBOSE] = verbose


def verbose_option(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add -v to a command that logs nothing: it prints the whole of an error."""
    text = "Print the whole of an error, not its first line."
    add = click.option("-v", "--verbose", is_flag=True, expose_value=False, callback=_note_verbose, help=text)
    return add(command)


def common_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add --json, -q and -v."""
    command = click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")(command)
    command = click.option("-q", "--quiet", is_flag=True, help="Show no progress and no notes.")(command)
    return click.option(
        "-v",
        "--verbose",
        is_flag=True,
        help="Show log messages, the whole of an error, and what each phase took.",
    )(command)
