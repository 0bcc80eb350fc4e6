"""The options that evaluations share, and results that are reused."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from merge.disk.staging import NOT_STDOUT
from merge.errors import OutputError

if TYPE_CHECKING:
    from evals.tasks.task import EvalTask, Rows

LIBRARIES = ("torch", "transformers")
OTHER_VERSIONS = "a result of the folder, computed with {}: --force computes it again"

# What models compute in.
DTYPES = ("float32", "bfloat16", "float16")


@dataclass(frozen=True)
class EvalOptions:
    """The shared options; one that a command does not have keeps its default.

    Attributes:
        data: file or folder of rows; None for the task's own source.
        labels: class names of every model in the order of its logits; None for those of its config.
        limit: how many rows are drawn at random; None for all.
        seed: of the draw, of generated rows and of the bootstrap.
        output: the results folder; None to store nothing.
        force: compute what the results folder already holds.
        dtype: one of DTYPES.
        max_length: tokens of a row that are read at most; None for each model's own limit.
        table: one of TABLES.
        detail: print HANS by subcase and template too.
    """

    data: Path | None = None
    labels: tuple[str, ...] | None = None
    limit: int | None = None
    seed: int = 0
    output: Path | None = None
    force: bool = False
    device: str = "cpu"
    no_cache: bool = False
    dtype: str = "float32"
    max_length: int | None = None
    table: str = "plain"
    as_json: bool = False
    detail: bool = False
    quiet: bool = False


def read_rows(task: EvalTask, options: EvalOptions) -> Rows:
    """Return the rows of a task that the options select."""
    return task.read(options.data, options.seed).sample(options.limit, options.seed)


def stored_results(options: EvalOptions) -> list[dict[str, Any]]:
    """Return the records of the results folder that need not be computed again: none with --force.

    Raises:
        OutputError: results cannot be written to the folder; nothing has been computed yet.
    """
    from evals.results.store import load_results

    if not options.output:
        return []
    _check_folder(options.output)
    records = load_results(
        options.output, warn=True
    )  # with --force too: a malformed store stops the command before it computes
    return [] if options.force else records


def _check_folder(output: Path) -> None:
    """Stop where results cannot be written to a folder, or would be among the files that the manifest of a model states."""
    from merge.publish.card import MANIFESTS

    if str(output) == "-":
        raise OutputError(NOT_STDOUT.format(output))
    existing = next(path for path in (output.absolute(), *output.absolute().parents) if path.exists())
    if not existing.is_dir() or not os.access(existing, os.W_OK | os.X_OK):
        raise OutputError(f"output {output} cannot be written: {existing} is not a folder that can be written to.")
    target = output.resolve()
    made = [folder for folder in (target, *target.parents) if any((folder / name).is_file() for name in MANIFESTS)]
    if made:
        raise OutputError(
            f"output {output} lies in the folder of a model that merge-models made, {made[0]}: verify would find files that its "
            f"manifest does not state, and a push would upload them. Choose another -o, such as {made[0]}-report."
        )


def reuse_result(
    records: Sequence[dict[str, Any]], key: str, names: Mapping[str, Any], output: Path | None
) -> dict[str, Any] | None:
    """Return the record with a key, or None; its names of models and data become those of this run, in the store too.

    A note that is not stored says where other versions of libraries computed it.
    """
    from evals.results.store import add_result, find

    record = find(records, key)
    if record is None:
        return None
    renamed = {**record, **names}
    if output and renamed != record:
        add_result(output, renamed)
    if other := _other_versions(record):
        renamed["notes"] = [*(record.get("notes") or ()), OTHER_VERSIONS.format(other)]
    return renamed


def _other_versions(record: Mapping[str, Any]) -> str:
    """Return the libraries of a record whose versions are not those that are installed, with both versions; "" for none."""
    from merge.disk.versions import installed_version

    held = record.get("versions")
    found = {name: held.get(name) for name in LIBRARIES} if isinstance(held, Mapping) else {}
    return ", ".join(
        f"{name} {version} (installed is {installed_version(name)})"
        for name, version in found.items()
        if version and version != installed_version(name)
    )


def has_beside(output: Path | None, name: Any) -> bool:
    """Return whether what a stored record names is in the results folder; a record that was damaged names nothing."""
    return output is None or (isinstance(name, str) and (output / name).exists())
