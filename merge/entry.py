"""Entry points of the commands: they handle Ctrl-C during imports and check that `evals` is our package.

Another distribution on PyPI also installs a package named `evals`, which silently replaces ours. This module is the only
exception to the rule that merge never imports evals.
"""

from __future__ import annotations

import gc
import importlib.util
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

from merge.commands.imports import uncollected


def merge_models() -> None:
    """Run merge-models.

    Its threads wait for one another asleep, unless the environment has another OMP_WAIT_POLICY: those of one computation that
    wait by spinning take the processor from the threads beside them, and a fifth of the seconds of weight matching.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    _run("merge-models", _merge_main)


def edit_layers() -> None:
    """Run edit-layers."""
    _run("edit-layers", _edit_main)


def stitch_models() -> None:
    """Run stitch-models."""
    _run("stitch-models", _stitch_main)


def evaluate_models() -> None:
    """Run evaluate-models, or stop with one line if another package named evals is installed."""
    _run("evaluate-models", _evaluate_main)


def _run(command: str, load: Callable[[], Callable[[], None]]) -> None:
    """Run the main function of a command; Ctrl-C during its imports exits with 130, as it does later."""
    _open_closed_streams()
    signals: list[int] = []

    def interrupt(number: int, _frame: object) -> None:
        signals.append(number)
        raise KeyboardInterrupt

    handled = signal.getsignal(signal.SIGINT) is signal.default_int_handler  # else it is ignored, as under nohup
    if handled:
        signal.signal(signal.SIGINT, interrupt)
    try:
        with uncollected():
            main = load()
    except BaseException as error:
        if not signals and not isinstance(error, KeyboardInterrupt):
            raise
        signals.append(signal.SIGINT)
    finally:
        if handled:
            signal.signal(signal.SIGINT, signal.default_int_handler)
    if signals:  # a library may make another error of the KeyboardInterrupt, or none
        sys.stderr.write(f"{command}: interrupted; no incomplete output is left\n")
        raise SystemExit(130)
    try:
        main()
    finally:
        gc.freeze()  # the process ends: what is left need not be searched for garbage


def _open_closed_streams() -> None:
    """Open the null device in place of stdin, stdout and stderr where they are closed, as by 2>&-.

    The next file that is opened would take the number of a closed one, and be written what libraries print there.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # the lowest number that is free
    if sys.stdout is None:
        sys.stdout = open(1, "w", encoding="utf-8", closefd=False)  # noqa: SIM115 (for the whole process)
    if sys.stderr is None:
        sys.stderr = open(2, "w", encoding="utf-8", closefd=False)  # noqa: SIM115


def _merge_main() -> Callable[[], None]:
    from merge.commands.merge_models import main

    return main


def _edit_main() -> Callable[[], None]:
    from merge.commands.edit_layers import edit_main

    return edit_main


def _stitch_main() -> Callable[[], None]:
    from merge.commands.stitch_models import stitch_main

    return stitch_main


def _evaluate_main() -> Callable[[], None]:
    ours = Path(__file__).resolve().parent.parent / "evals"
    spec = importlib.util.find_spec("evals")
    # A folder without __init__.py has search locations but no origin; a module evals.py has only an origin.
    paths = [*(spec.submodule_search_locations or ()), spec.origin] if spec else []
    origin = next((Path(path).resolve() for path in paths if path), None)
    if origin != ours or importlib.util.find_spec("evals.commands.evaluate_models") is None:
        sys.stderr.write(
            f"evaluate-models: expected the package 'evals' of merge-models at {ours}, found {origin or 'none'}. If another "
            "distribution named evals is installed: pip uninstall evals, then reinstall merge-models.\n"
        )
        raise SystemExit(1)
    from evals.commands.evaluate_models import main

    return main
