"""Measure stitching penalties of two models at every depth, beside the barrier and the LLFC of the same two."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from evals.run.inside.texts import FeatureTexts, Measured, measured_rows, versions
from evals.run.options import EvalOptions, reuse_result, stored_results
from merge.errors import MergeError, MismatchError, UsageError

if TYPE_CHECKING:
    from evals.inside.stitching import Side, Stitches, StitchPlan
    from evals.predict.predictor import Predictor
    from evals.tasks.task import EvalTask
    from merge.checkpoints.checkpoint import Checkpoint

    Pair = tuple[Checkpoint, Checkpoint]

KIND = "stitch"
HELD_OUT = 5  # without a task one text in so many is measured, and not fitted on


def measure_stitch(pair: Pair, on: FeatureTexts, plan: StitchPlan, options: EvalOptions) -> dict[str, Any]:
    """Return the stitch record of two models.

    Args:
        pair: A, whose layers are below, and B.
        on: the task whose rows are scored, else what is left of the text; maps are fitted on the text.
    Raises:
        MismatchError: the two models do not read the same tokens.
        UsageError: a family has several lists of layers; a map does not fit the widths.
        TaskError, CalibrationError: rows or text cannot be read, or the text is too short for the map.
    """
    from evals.predict.embeddings import with_modules
    from evals.results.measure import named, record_key
    from evals.results.store import add_result

    begun = time.monotonic()
    pair = with_modules(pair[0]), with_modules(pair[1])
    check_tokens_alike(pair)
    stored = stored_results(options)
    fit, measured = _texts(on, options)
    hashes = [checkpoint.content_hash for checkpoint in pair]
    facts = (measured.setting()["task"], measured.rows.hash, fit.rows.hash, options.max_length, options.labels)
    key = record_key(KIND, hashes, facts, plan.kind, plan.ridge, plan.rank, plan.all_pairs, plan.line, options.seed)
    names = {"models": [named(checkpoint) for checkpoint in pair], "data": measured.rows.data}
    if (record := reuse_result(stored, key, names, options.output)) is not None:
        return record
    stitches = stitch_pair(pair, fit, measured, plan, options)
    beside, more = _line(pair, on, measured, options) if plan.line else ({}, [])
    record = {
        "kind": KIND,
        "key": key,
        **measured.setting(),
        "models": names["models"],
        "map": plan.kind,
        "fit": {"text": fit.rows.data, "texts": len(fit.rows), "tokens": stitches.tokens, "ridge": plan.ridge},
        "ends": {name: dict(scores) for name, scores in stitches.ends.items()},
        "cuts": [cut.to_json() for cut in stitches.cuts],
        "matrix": None if stitches.matrix is None else [list(row) for row in stitches.matrix],
        "cka": None if stitches.cka is None else [list(row) for row in stitches.cka],
        **beside,
        "notes": list(dict.fromkeys([*fit.notes, *measured.notes, *fit_notes(fit, measured), *more])),
        "versions": versions(),
        "seconds": time.monotonic() - begun,
    }
    if options.output:
        add_result(options.output, record)
    return record


def fit_notes(fit: Measured, measured: Measured) -> list[str]:
    """Return a note where pairs are scored and maps fitted on single texts."""
    pairs, single = (max(map(len, each.rows.texts)) for each in (measured, fit))
    if pairs <= single:
        return []
    return [
        f"rows of {measured.setting()['task']} are pairs, and maps are fitted on single texts ({fit.rows.data}), whose states "
        "differ: give --text with --text-column A,B for pairs like them"
    ]


def check_tokens_alike(pair: Pair) -> None:
    """Stop where two models do not read the same tokens.

    Raises:
        MismatchError: how their tokenizers differ.
    """
    from merge.checkpoints.tokenizers.comparison import compare_tokenizers, tokenizer_of

    tokenizers = [tokenizer_of(each.source, each.folder, each.config) for each in pair]
    if tokenizers[0] is not None and tokenizers[1] is not None:
        faults, _ = compare_tokenizers(tokenizers[0], tokenizers[1])
        if faults:
            why = faults[0].split(" Choose one")[0].split(" Rows of")[0]
            raise MismatchError(
                f"B's layers read A's states token by token, so both models must read the same tokens: {why} stitch-models fits "
                "a map between models of two tokenizers, whose tokens it matches by characters."
            )


def _texts(on: FeatureTexts, options: EvalOptions) -> tuple[Measured, Measured]:
    """Return what maps are fitted on, and what is measured: rows of the task, or texts that are held out of the fit."""
    text = measured_rows(None, on.text, EvalOptions(seed=options.seed))
    if on.task is not None:
        return text, measured_rows(on.task, on.text, options)
    if options.data is not None:
        raise UsageError("--data holds the rows of a task: give --task too, or --text FILE for texts without labels.")
    if options.labels is not None or options.limit is not None:
        raise UsageError("--labels and --limit are of the rows of a task: give --task too, or --samples for texts.")
    if len(text.rows) < 2 * HELD_OUT:
        raise UsageError(
            f"{text.rows.data}: without a task, one text in {HELD_OUT} is measured and the others are fitted on, which takes "
            f"{2 * HELD_OUT} texts or more; found {len(text.rows)}."
        )
    numbers = range(len(text.rows))
    held = [k for k in numbers if k % HELD_OUT == HELD_OUT - 1]
    parts = [
        Measured(text.rows.chosen(kept, how), None, text.notes)
        for kept, how in (
            ([k for k in numbers if k not in set(held)], "less those that are measured"),
            (held, "held out of the fit"),
        )
    ]
    return parts[0], parts[1]


def stitch_pair(pair: Pair, fit: Measured, measured: Measured, plan: StitchPlan, options: EvalOptions) -> Stitches:
    """Return all penalties of two models."""
    from evals.inside.stitching import measure_stitches, random_like
    from evals.inside.texts import tokens_of, unpadded_batches
    from evals.predict.predictor import make_predictor

    predictors = [
        make_predictor(model, device=options.device, cache=not options.no_cache, max_length=options.max_length)
        for model in pair
    ]
    sides = [side_of(model, predictor, measured, options) for model, predictor in zip(pair, predictors, strict=True)]
    tokens = tokens_of(pair[0], fit.rows, options.max_length, not options.no_cache)
    batches = unpadded_batches(tokens).batches
    blank = random_like(pair[0].encoder.config, options.seed)
    return measure_stitches(sides[0], sides[1], blank, batches, plan)


def side_of(model: Checkpoint, predictor: Predictor, measured: Measured, options: EvalOptions) -> Side:
    """Return a model with what scores it and the norms of its states."""
    from evals.inside.stitching import Side
    from merge.layers.activations import live_layers
    from merge.layers.stitching.norms import norm_of_state

    live = live_layers(predictor.model)
    norms = {}
    for cut in range(live.total + 1):
        try:
            norm = norm_of_state(model, cut, live)
        except MergeError:  # a family whose parts are in no table
            norm = None
        if norm is not None:
            norms[cut] = norm
    score = _task_score if measured.task is not None else _agreement
    return Side(live, score(model, predictor, measured, options), norms)


def _task_score(
    model: Checkpoint, predictor: Predictor, measured: Measured, options: EvalOptions
) -> Callable[[], dict[str, float]]:
    """Return what scores the model on the rows of a task, as it runs."""
    from evals.predict.logits import check_finite, match_labels
    from evals.results.measure import judge
    from evals.scores.glue import task_scores

    task: EvalTask | None = measured.task
    assert task is not None
    columns, encoded = match_labels(task, model, options.labels), predictor.encode(measured.rows)

    def score() -> dict[str, float]:
        logits = predictor.logits(encoded)
        check_finite(logits, f"{model.source}, whole or with layers of the other")
        loss, predicted = judge(logits, columns, task, measured.rows, model)
        return {**task_scores(task.metric, predicted.tolist(), measured.rows.gold), "loss": float(loss.mean())}

    return score


def _agreement(
    model: Checkpoint, predictor: Predictor, measured: Measured, options: EvalOptions
) -> Callable[[], dict[str, float]]:
    """Return what compares the model, as it runs, with itself as it is: cosine of text embeddings, KL of logits."""
    from evals.inside.texts import tokens_of, unpadded_batches
    from merge.layers.strategies.agreement import agreement, outputs_of

    tokens = tokens_of(model, measured.rows, options.max_length, not options.no_cache)
    batches = unpadded_batches(tokens).batches
    network = predictor.model if not predictor.embeds else predictor.model.encoder
    own = outputs_of(network, batches)

    def score() -> dict[str, float]:
        now = outputs_of(network, batches)
        kl = {} if own.logits is None else {"KL": -agreement(own, now, "kl")}
        return {"cosine": agreement(own, now, "cosine"), **kl}

    return score


def _line(pair: Pair, on: FeatureTexts, measured: Measured, options: EvalOptions) -> tuple[dict[str, Any], list[str]]:
    """Return barrier and LLFC of the same two models, and a note where one cannot be measured."""
    from dataclasses import replace

    from evals.inside.pair_pass import FeaturePlan
    from evals.run.barrier import measure_barrier
    from evals.run.inside.features import measure_features
    from merge.recipe.recipe import make_align_entry

    unaligned, alone = make_align_entry({}), replace(options, output=None)
    beside: dict[str, Any] = {}
    notes: list[str] = []
    try:
        if measured.task is not None:
            record = measure_barrier((pair[0].encoder, pair[1].encoder), measured.task, unaligned, 11, alone)
            beside["barrier"] = {
                name: record["curves"][0][name] for name in ("barrier", "barrier_lam", "standard_error", "lam", "loss")
            }
        sites = FeaturePlan(sites=("embeddings", "output"), llfc_only=True)
        record = measure_features((pair[0].encoder, pair[1].encoder), on, unaligned, sites, alone)
        beside["llfc"] = [
            {
                "site": site["site"],
                "distance": site["at"][0]["distance"]["whole"],
                "baseline": site["baseline"]["whole"],
            }
            for site in record["curves"][0]["connectivity"]
        ]
    except MergeError as error:
        notes.append(
            f"no barrier and no LLFC beside it, as the weights of the two models have no line between them: {error}"
        )
    return beside, notes
