"""The Python API of what runs leave and read: `verify`, `card` and `statistics`, the commands of merge-models by these names."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from merge.disk.workspace import Workspace
from merge.run.api.inputs import open_models, text_path
from merge.text.source import TextSource

if TYPE_CHECKING:
    from merge.checkpoints.live import ModelLike
    from merge.methods.statistics.record import Statistics
    from merge.run.verify import Verification
    from merge.text.memory import TextLike


def verify(folder: str | os.PathLike[str]) -> Verification:
    """Compare the files of a written folder, and the inputs it was made of, with its manifest: `merge-models verify`.

    Args:
        folder: written by `merge-models`, `edit-layers` or `stitch-models`, or by `.save(folder)` of their functions.
    Returns:
        `.holds`; `.files` and `.inputs`, by name: "same", "changed", "missing", ...
    Raises:
        CheckpointError: the folder has no manifest.

    Example:
        >>> folder = merge.merge(["a/", "b/"]).save("verified/")
        >>> merge.verify(folder).holds
        True
        >>> _ = (folder / "config.json").write_text("{}")
        >>> merge.verify(folder).files["config.json"]
        'changed'
    """
    from merge.run.verify import verify as verified

    return verified(Path(folder).expanduser())


def card(folder: str | os.PathLike[str], results: str | os.PathLike[str]) -> int:
    """Write evaluation results into the model card of a merged or edited folder: `merge-models card`.

    Args:
        folder: written by a merge, an edit, a stitch or a pruning; its manifest takes the hash of the new card.
        results: the results.json of an evaluation, or the folder that holds it.
    Returns:
        How many results the card shows: those of the model and of its inputs.
    Raises:
        CheckpointError: the folder has no manifest, or no result is of its model.
        OutputError: the folder cannot be written.

    Example:
        >>> folder = merge.merge(["a/", "b/"]).save("scored/")
        >>> scores = evals.score(folder, "mnli", data=rows, output="report-of-scored")
        >>> merge.card(folder, "report-of-scored")
        1
    """
    from merge.publish.card_results import add_results

    path = Path(results).expanduser()
    return add_results(Path(folder).expanduser(), path / "results.json" if path.is_dir() else path)


def statistics(
    model: ModelLike,
    kind: str,
    *,
    text: TextLike | None = None,
    text_column: Sequence[str] | None = None,
    samples: int = 512,
    seed: int = 0,
    revision: str | None = None,
    output: str | os.PathLike[str] | None = None,
    force: bool = False,
) -> Statistics:
    """Measure what data-based methods read of a model, on text without labels: `merge-models statistics`.

    Args:
        kind: fisher (for `fisher`) or gram (for `regmean`).
        text: a file, a Hub data set or sentences, of which `samples` are drawn with `seed`; the package's own when None.
        text_column: its column; two for text pairs; found by name when None.
        revision: of a Hub id.
        output: a .safetensors file to write, which `statistics=` of `merge.merge` takes; `force` replaces a file.
    Returns:
        `.tensors`: canonical name -> float32, of the tensor's shape (fisher) or (d_in, d_in) (gram); `.texts`, `.mean`.
    Raises:
        CalibrationError: the model has no tokenizer, or there is no text.
        StatisticsError: the kind is not defined for this architecture.
        OutputError: the file exists, or cannot be written.
    Source: Matena and Raffel 2022, arXiv:2111.09832 (fisher); Jin et al. 2023, arXiv:2212.09849 (gram).

    Example:
        >>> measured = merge.statistics("a/", "gram", text=["the doctor saw a lawyer ."] * 20)
        >>> measured.texts
        20
    """
    from merge.methods.statistics.on_text import check_output, measure_on_text
    from merge.methods.statistics.record import write_statistics

    path = None if output is None else Path(output).expanduser()
    if path is not None:
        check_output(path, force)
    workspace = Workspace()
    (checkpoint,) = open_models([model], workspace.folder, [revision])
    if path is not None:
        check_output(path, force, checkpoint.folder)
    source = None if text is None else text_path(text, workspace.folder / "text")
    columns = None if text_column is None else tuple(text_column)
    measured, notes = measure_on_text(checkpoint.encoder, kind, TextSource(source, columns, samples, seed))
    for note in notes:
        logging.getLogger(__name__).warning(note)
    if path is not None:
        write_statistics(path, measured)
    return measured
