"""The stitching distance of every pair of a sweep: measured once, one file a pair beside the records of the sweep."""

from __future__ import annotations

import json
import logging
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evals.run.options import EvalOptions
from evals.run.sweep import Swept
from merge.disk.checksums import NOT_AS_WRITTEN, with_checksum, without_checksum
from merge.disk.documents import read_json
from merge.errors import OutputError, first_line
from merge.progress import shown_by, silent, track

if TYPE_CHECKING:
    from evals.clusters.pair_losses import Pair
    from evals.run.inside.texts import Measured
    from evals.tasks.task import EvalTask
    from merge.text.source import TextSource

FOLDER = "stitching"


def read_fit(text: TextSource, seed: int) -> Measured:
    """Return the texts that maps are fitted on.

    Raises:
        CalibrationError, UsageError: they cannot be read, or are fewer than two.
    """
    from evals.run.inside.texts import measured_rows

    return measured_rows(None, text, EvalOptions(seed=seed))


def with_stitching(swept: Swept, task: EvalTask, options: EvalOptions, fit: Measured) -> Swept:
    """Return a sweep with the stitching distance of every pair; alignment does not change it, so all lines have the same.

    Maps are affine.

    Args:
        options: `output` names the folder of the sweep, where distances are kept.
        fit: what maps are fitted on.
    Raises:
        CalibrationError: the text is too short for the maps.
        OutputError: the folder is not writable.
    """
    from evals.inside.stitching import StitchPlan
    from evals.results.measure import record_key
    from evals.run.inside.stitch import fit_notes
    from evals.run.inside.texts import Measured

    sweep, plan = swept.sweep, StitchPlan()
    measured = Measured(sweep.rows, task, ())
    folder = Path(str(options.output)) / "sweep" / FOLDER
    distances: dict[Pair, float] = {}
    for pair in track(list(swept.pairs), "stitching pairs"):
        hashes = sorted(sweep.models[k].hash for k in pair)
        key = record_key(
            FOLDER, hashes, task.name, sweep.rows.hash, fit.rows.hash, sweep.max_length, plan.kind, plan.ridge
        )
        path = folder / f"{key}.json"
        stored = None if options.force else _stored(path)
        if stored is None:
            with shown_by(silent):
                stored = _measured(swept, pair, fit, measured, options)
            _write(path, {"models": hashes, "task": task.name, "distance": stored})
        distances[pair] = stored
    losses = tuple(replace(each, stitching=distances) for each in swept.losses)
    note = f"stitching: affine maps fitted on {fit.rows.data}; mean penalty over the cuts inside, both directions"
    return replace(swept, losses=losses, notes=(*swept.notes, note, *fit_notes(fit, measured)))


def _measured(swept: Swept, pair: Pair, fit: Measured, measured: Measured, options: EvalOptions) -> float:
    from evals.inside.stitching import StitchPlan, stitching_distance
    from evals.inside.texts import tokens_of, unpadded_batches
    from evals.predict.embeddings import with_modules
    from evals.predict.predictor import make_predictor
    from evals.run.inside.stitch import side_of
    from merge.checkpoints.open import open_encoder

    models = [with_modules(open_encoder(str(swept.sweep.models[k].folder))) for k in pair]
    sides = [
        side_of(model, make_predictor(model, device=options.device, max_length=options.max_length), measured, options)
        for model in models
    ]
    batches = unpadded_batches(tokens_of(models[0], fit.rows, options.max_length)).batches
    return stitching_distance(sides[0], sides[1], batches, StitchPlan())


def _stored(path: Path) -> float | None:
    """Return a distance that was measured before; None where there is none that is as it was written: it is measured again."""
    if not path.is_file():
        return None
    try:
        whole = without_checksum(read_json(path, OutputError))
    except OutputError:
        whole = None
    if whole is None:
        logging.getLogger(__name__).warning("%s is not used, and measured again: %s.", path, NOT_AS_WRITTEN)
        return None
    return float(whole["distance"])


def _write(path: Path, record: dict[str, Any]) -> None:
    from merge.disk.atomic import write_atomic

    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, json.dumps(with_checksum(record), sort_keys=True) + "\n")
    except OSError as error:
        raise OutputError(f"{path} cannot be written: {first_line(error)}") from error
