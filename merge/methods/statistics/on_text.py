"""Statistics of a model on a text as people give it: read, drawn and tokenised."""

from __future__ import annotations

from pathlib import Path

from merge.checkpoints.checkpoint import Checkpoint
from merge.disk.staging import check_outside
from merge.errors import CalibrationError, OutputError
from merge.methods.statistics.measure import measure
from merge.methods.statistics.record import Statistics
from merge.text.source import TextSource


def measure_on_text(checkpoint: Checkpoint, kind: str, source: TextSource) -> tuple[Statistics, tuple[str, ...]]:
    """Return the statistics of a model on a text, and notes for the user.

    Args:
        kind: fisher or gram.
    Raises:
        CalibrationError: the model has no tokenizer, or the text cannot be read.
        UsageError, StatisticsError: as `measure`.
    """
    from merge.checkpoints.inputs import load_tokenizer, tokenise
    from merge.text.calibration import read_calibration

    if not checkpoint.has_tokenizer:
        raise CalibrationError(f"{checkpoint.source} has no tokenizer. Add its tokenizer files to its folder.")
    calibration = read_calibration(source, matching=False)
    batches, truncated = tokenise(load_tokenizer(checkpoint.folder), calibration.samples, checkpoint.config)
    statistics = measure(checkpoint, kind, batches, calibration.source, source.seed)
    return statistics, (*calibration.notes, *truncated)


def check_output(path: Path, force: bool, model: Path | None = None) -> None:
    """Stop where a file would be replaced unasked, before anything is measured.

    Args:
        model: the folder of the model, once it is known.
    Raises:
        OutputError: its name does not end in .safetensors, by which a merge knows statistics from text; it exists and `force`
            is not set; a folder has its name; or it would be a file of the model.
    """
    if path.suffix != ".safetensors":
        raise OutputError(f"output {path}: expected a name that ends in .safetensors.")
    check_outside(path, () if model is None else (model,))
    if path.is_dir() or (path.exists() and not force):
        raise OutputError(f"output {path} exists. Choose another -o, or --force to replace a file.")
