"""How linear the components of one model are, and whether its layers commute: its record."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from evals.run.inside.lesion import check_notes, study_fields
from evals.run.inside.subject import Asked, Subject, open_subject
from evals.run.inside.texts import versions
from evals.run.options import EvalOptions, read_rows, reuse_result, stored_results
from merge.errors import UsageError

if TYPE_CHECKING:
    from pathlib import Path

    from evals.surgery.linear import Fits
    from evals.surgery.linearity import LinearitySettings
    from evals.surgery.tuning import Training
    from merge.checkpoints.checkpoint import Checkpoint

KIND = "linearity"
FEW = (
    "the fit has {tokens:,} tokens for {width:,} unknowns an output; with under 10 tokens an unknown the held-out figures call "
    "components less linear than they are"
)
STEPS = "maps were trained for {steps:,} steps; the closed form needs none, and has the least squared error there is"


def measure_linearity(
    checkpoint: Checkpoint, asked: Asked, settings: LinearitySettings, options: EvalOptions, train: Path | None = None
) -> dict[str, Any]:
    """Return the linearity record of a model; it is read from the results folder where it is there.

    Args:
        train: rows of the task on which models with frozen, removed and replaced components are trained; none are when None.
    Raises:
        UsageError: the layers cannot be edited, a name is unknown, or rows to train on come without a task of classes.
        TaskError, CalibrationError: rows cannot be read, the model has no tokenizer, or the text is too short for a fit.
    """
    from evals.results.measure import named, record_key
    from evals.results.store import add_result
    from evals.surgery.linearity import check_settings, linearity_variants
    from evals.surgery.measure import measure_variants

    begun, stored = time.monotonic(), stored_results(options)
    check_settings(settings)
    check_trained(asked, train)
    check_sublayers(checkpoint, asked.stack)
    subject = open_subject(checkpoint, asked, options, "a linearity study")
    training = _training(subject, train, settings, options)
    facts = (subject.setting["task"], subject.setting["rows"], checkpoint.content_hash, asked.stack, asked.score)
    tuned = None if training is None else training.rows.rows.hash
    key = record_key(KIND, *facts, vars(settings), options.max_length, options.labels, tuned)
    names = {"models": [named(checkpoint)], "data": subject.setting["data"]}
    if (record := reuse_result(stored, key, names, options.output)) is not None:
        return record
    fits, notes = _fits(subject, settings)
    variants, more = linearity_variants(subject.model, settings, fits.maps if fits else {})
    study = measure_variants(subject.model, variants, subject.encoded, subject.judge)
    record = {
        "kind": KIND,
        "key": key,
        **subject.setting,
        "models": names["models"],
        **study_fields(subject, study),
        "fit": settings.fit,
        **_fit_fields(fits),
        "tuned": _tuned(subject, training, fits) if training and fits else [],
        "notes": list(dict.fromkeys([*subject.notes, *notes, *more, *check_notes(study)])),
        "versions": versions(),
        "seconds": time.monotonic() - begun,
    }
    if options.output:
        add_result(options.output, record)
    return record


def check_sublayers(checkpoint: Checkpoint, stack: str) -> None:
    """Stop where the sublayers of a model's layers are not known, or there are more than two.

    Raises:
        UsageError: gives the reason.
    """
    from merge.layers.parts import parts_of

    if parts_of(checkpoint.config, stack).cross is not None:
        raise UsageError(
            f"layers of a {checkpoint.model_type} decoder read an encoder between its two sublayers: linear maps of "
            "these are not fitted. Use --stack encoder, or evaluate-models lesion."
        )


def check_trained(asked: Asked, train: Path | None) -> None:
    """Stop where there are rows to train on, and no task of classes.

    Raises:
        UsageError: says what to give.
    """
    if train is not None and asked.task is None:
        raise UsageError("--train holds rows of a task to train on: give --task too.")
    if train is not None and asked.task is not None and asked.task.regression:
        raise UsageError(f"--train needs a task of classes; {asked.task.name} asks for a number. Leave --train out.")


def _fits(subject: Subject, settings: LinearitySettings) -> tuple[Fits | None, list[str]]:
    """Return the maps of all components, and notes; none where neither they nor replaced components are asked for."""
    from evals.surgery.linear import fit_components
    from evals.surgery.linearity import CLOSED, COMPONENTS, REPLACED

    if not {COMPONENTS, REPLACED} & set(settings.parts):
        return None, []
    loss = None if settings.fit == CLOSED else settings.fit
    fits = fit_components(subject.model, subject.encoded.batches, loss, settings.rounds, settings.seed)
    width = next(iter(fits.maps.values())).weight.shape[0]
    notes = []
    if loss is None and fits.tokens < 10 * width:
        notes.append(FEW.format(tokens=fits.tokens, width=width + 1))
    if loss is not None:
        notes.append(STEPS.format(steps=settings.rounds * len(subject.encoded.batches)))
    return fits, notes


def _fit_fields(fits: Fits | None) -> dict[str, Any]:
    from evals.surgery.linear import linearity_json

    if fits is None:
        return {"components": [], "tokens": None, "held_out": None}
    return {"components": linearity_json(fits), "tokens": fits.tokens, "held_out": fits.held_out}


def _training(
    subject: Subject, train: Path | None, settings: LinearitySettings, options: EvalOptions
) -> Training | None:
    """Return the rows that models are trained on, in batches of one length; None where none are asked for."""
    from evals.predict.tokens import tokenise_rows
    from evals.surgery.tuning import Training
    from evals.tasks.label_names import MatchedTask
    from merge.checkpoints.inputs import batch_tokens

    if train is None:
        return None
    matched = subject.matched
    assert matched is not None
    assert matched.model is not None
    rows = read_rows(matched.task, replace(options, data=train, limit=None))
    tokens = tokenise_rows(matched.model, rows, not options.no_cache, options.max_length)
    encoded = batch_tokens(tokens, 10**9, 0)  # one batch a length: parts of it need no padding
    on = MatchedTask(matched.task, rows, matched.columns, matched.model)
    return Training(on, encoded, settings.tune_rounds, settings.tune_rate, settings.seed)


def _tuned(subject: Subject, training: Training, fits: Fits) -> list[dict[str, Any]]:
    """Return the scores of models that were trained with frozen, removed and replaced components, from the same weights each."""
    import torch

    from evals.surgery.measure import measure_variants
    from evals.surgery.tuning import train, tunings

    model, results = subject.model, []
    start = {name: tensor.clone() for name, tensor in model.model.state_dict().items()}
    for tuning in tunings(model.total, fits.maps):
        loss = train(model, tuning, training)
        study = measure_variants(model, [tuning.variant], subject.encoded, subject.judge)
        results.append({**study.results[0].to_json(), "training_loss": loss})
        with torch.no_grad():
            model.model.load_state_dict(start)
    for each in results:  # the change is that from the model that learned as a whole
        del each["change"], each["standard_error"]
    return results
