"""Lesions of one model: its record, from a task or from text without labels."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from evals.run.inside.subject import Asked, Subject, open_subject
from evals.run.inside.texts import versions
from evals.run.options import EvalOptions, reuse_result, stored_results

if TYPE_CHECKING:
    from evals.surgery.lesion import LesionSettings
    from evals.surgery.measure import Study
    from merge.checkpoints.checkpoint import Checkpoint

KIND = "lesion"
UNEQUAL = (
    "edited models with cached prefixes differ from full runs by up to {:.2g}: this device or this model does not compute the "
    "same numbers twice"
)


def measure_lesions(
    checkpoint: Checkpoint, asked: Asked, settings: LesionSettings, options: EvalOptions
) -> dict[str, Any]:
    """Return the lesion record of a model; it is read from the results folder where it is there.

    Raises:
        UsageError: the layers cannot be edited one by one, or a layer, order or part does not fit the model.
        TaskError, CalibrationError: rows cannot be read, or the model has no tokenizer.
    """
    from evals.results.measure import named, record_key
    from evals.results.store import add_result
    from evals.surgery.lesion import lesion_variants
    from evals.surgery.measure import measure_variants

    begun, stored = time.monotonic(), stored_results(options)
    subject = open_subject(checkpoint, asked, options, "a lesion study")
    variants, more = lesion_variants(subject.model, settings)
    facts = (subject.setting["task"], subject.setting["rows"], checkpoint.content_hash, asked.stack, asked.score)
    key = record_key(KIND, *facts, vars(settings), options.max_length, options.labels)
    names = {"models": [named(checkpoint)], "data": subject.setting["data"]}
    if (record := reuse_result(stored, key, names, options.output)) is not None:
        return record
    study = measure_variants(subject.model, variants, subject.encoded, subject.judge)
    paths, path_notes = _paths(subject, settings)
    record = {
        "kind": KIND,
        "key": key,
        **subject.setting,
        "models": names["models"],
        **study_fields(subject, study),
        "paths": paths,
        "notes": list(dict.fromkeys([*subject.notes, *more, *path_notes, *check_notes(study)])),
        "versions": versions(),
        "seconds": time.monotonic() - begun,
    }
    if options.output:
        add_result(options.output, record)
    return record


def study_fields(subject: Subject, study: Study) -> dict[str, Any]:
    """Return the fields of a record that every study of edited models has."""
    words, floor = study.floor
    model = subject.model
    return {
        "layers": model.total,
        "stack": model.live.path,
        "norms": None if model.kind is None else "last" if model.kind.norm_last else "first",
        "scores": list(subject.judge.names),
        "compared": subject.judge.compared,
        "whole": study.whole,
        "floor": {"name": words, "scores": floor},
        "variants": [result.to_json() for result in study.results],
        "cost": study.cost_json(),
    }


def check_notes(study: Study) -> list[str]:
    """Return a note where cached prefixes did not give the bits of full runs."""
    return [UNEQUAL.format(study.check.largest)] if study.check.largest else []


def _paths(subject: Subject, settings: LesionSettings) -> tuple[dict[str, Any] | None, list[str]]:
    """Return the paths of a model by their length, with their gradients; None where they were not asked for."""
    from evals.surgery.lesion import path_batch
    from evals.surgery.measure import on_device
    from evals.surgery.paths import kind_words, measure_paths
    from evals.surgery.variants import PATHS

    model = subject.model
    if PATHS not in settings.parts or model.kind is None:
        return None, []
    number, batch = path_batch(subject.encoded.batches, settings.path_texts)
    objective, words = subject.objective(number, settings.seed)
    measured = measure_paths(model, [(on_device(batch, model), objective)], words, settings.paths, settings.seed)
    return measured.to_json(), [kind_words(model.kind)]
