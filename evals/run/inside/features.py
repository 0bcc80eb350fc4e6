"""Measure feature connectivity of two models, as they are and aligned: LLFC, weak additivity, commutativity."""

from __future__ import annotations

import tempfile
import time
from dataclasses import asdict, astuple, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evals.run.barrier import check_pair
from evals.run.inside.texts import FeatureTexts, Measured, check_reads_text, listed, measured_rows, versions
from evals.run.options import EvalOptions, reuse_result, stored_results
from merge.errors import UsageError

if TYPE_CHECKING:
    from evals.inside.pair_pass import FeaturePlan, PairFeatures
    from merge.alignment.settings import AlignEntry
    from merge.checkpoints.checkpoint import Checkpoint

    Pair = tuple[Checkpoint, Checkpoint]

KIND = "features"
NAIVE = "as they are"


def checked_lams(lams: tuple[float, ...]) -> tuple[float, ...]:
    """Return the lam of the interpolated models, each once, in their order.

    Raises:
        UsageError: there is none, or one is not between 0 and 1.
    """
    if not lams or any(not 0 <= lam <= 1 for lam in lams):
        raise UsageError(f"lam is between 0 (A) and 1 (B), found {', '.join(f'{lam:g}' for lam in lams) or 'none'}.")
    return tuple(dict.fromkeys(lams))


def measure_features(
    pair: Pair, on: FeatureTexts, settings: AlignEntry, plan: FeaturePlan, options: EvalOptions
) -> dict[str, Any]:
    """Return the features record of two models: as they are and, if an alignment is asked for, aligned.

    Args:
        pair: as encoders; lam = 0 is the first.
    Raises:
        MismatchError: the two models do not fit one another.
        UsageError: there is no such site; lam is not between 0 and 1; there are too few texts.
        TaskError, CalibrationError: rows cannot be read, or a model has no tokenizer.
    """
    from evals.inside.texts import tokens_of
    from evals.paths.barrier import alignment_facts
    from evals.results.measure import named, record_key
    from evals.results.store import add_result

    begun = time.monotonic()
    plan = replace(plan, lams=checked_lams(plan.lams))
    for checkpoint in pair:
        check_reads_text(checkpoint)
    heads, notes = check_pair(pair, options)
    stored = stored_results(options)
    measured = measured_rows(on.task, on.text, options)
    tokens = tokens_of(pair[0], measured.rows, options.max_length, not options.no_cache)
    hashes = [checkpoint.content_hash for checkpoint in pair]
    facts = (hashes, measured.setting()["task"], measured.rows.hash, alignment_facts(settings, options.seed))
    key = record_key(KIND, *facts, *astuple(plan), options.max_length, options.labels)
    names = {"models": [named(checkpoint) for checkpoint in pair], "data": measured.rows.data}
    if (record := reuse_result(stored, key, names, options.output)) is not None:
        return record
    curves, alignment, more = _curves(pair, heads, settings, measured, tokens, plan, options)
    record = {
        "kind": KIND,
        "key": key,
        **measured.setting(),
        "models": names["models"],
        "lam": list(plan.lams),
        "curves": curves,
        "alignment": alignment,
        "notes": list(dict.fromkeys([*measured.notes, *notes, *more])),
        "versions": versions(),
        "seconds": time.monotonic() - begun,
    }
    if options.output:
        add_result(options.output, record)
    return record


def _curves(
    pair: Pair,
    heads: Any,
    settings: AlignEntry,
    measured: Measured,
    tokens: Any,
    plan: FeaturePlan,
    options: EvalOptions,
) -> tuple[list[dict[str, Any]], dict[str, Any] | None, list[str]]:
    """Return what was measured of the models as they are, then aligned; what alignment did; notes."""
    from evals.inside.pair_pass import measure_pair_features
    from evals.paths.pair_lines import endpoints
    from evals.predict.predictor import build_written
    from merge.alignment.rewrite import rewritten
    from merge.run.plan.heads import plan_heads
    from merge.run.rebase import rebase
    from merge.symmetry.transform import Transform

    curves: list[dict[str, Any]] = []
    notes: list[str] = []
    with rewritten(settings, heads.given, Path(tempfile.gettempdir()) / KIND) as ready:
        rebased = rebase(settings, plan_heads(None, ready.models), options.seed)
        labels = None if rebased.labels[1] is None else Transform(rebased.labels[1], {})
        cases: list[tuple[str, tuple[Checkpoint, ...], tuple[Transform | None, ...]]] = [(NAIVE, pair, (None, labels))]
        if rebased.aligned:
            name = f"aligned ({rebased.aligned[0].by}; {rebased.aligned[0].choice.kept.name})"
            cases.append((name, ready.models.models, rebased.transforms))
        for name, models, transforms in cases:
            a, b = endpoints(models, rebased, transforms)
            model = build_written(models[0]).to(options.device)
            features = measure_pair_features(model, (a, b), tokens, plan)
            curves.append({"name": name, **_to_json(features), "loss": _losses(features, measured, pair[0], options)})
            notes += features.notes
    notes += [*ready.notes, *rebased.notes, *_cut(features, measured)]
    return curves, rebased.aligned[0].to_json() if rebased.aligned else None, notes


def _to_json(features: PairFeatures) -> dict[str, Any]:
    parts = {name: [listed(asdict(each)) for each in getattr(features, name)] for name in PARTS}
    return {**parts, "texts": features.texts, "tokens": features.tokens, "activation bytes": features.batch_bytes}


PARTS = ("connectivity", "additivity", "commutativity")


def _cut(features: PairFeatures, measured: Measured) -> list[str]:
    if not features.cut:
        return []
    return [f"only the start was read of texts longer than the model takes: {features.cut:,} of {len(measured.rows):,}"]


def _losses(
    features: PairFeatures, measured: Measured, like: Checkpoint, options: EvalOptions
) -> dict[str, Any] | None:
    """Return loss and accuracy of A, B and each lam, and the height of each loss over the line; None without labels."""
    if measured.task is None or not features.logits or measured.task.regression:
        return None
    import torch

    from evals.predict.logits import match_labels
    from evals.results.measure import judge

    columns = match_labels(measured.task, like, options.labels)
    gold = torch.tensor(measured.rows.gold)
    losses, accuracies = {}, {}
    for name, logits in features.logits.items():
        loss, predicted = judge(logits, columns, measured.task, measured.rows, like)
        losses[name], accuracies[name] = float(loss.mean()), float((predicted == gold).double().mean())
    heights = {
        name: loss - ((1 - float(name)) * losses["a"] + float(name) * losses["b"])
        for name, loss in losses.items()
        if name not in ("a", "b")
    }
    return {"loss": losses, "accuracy": accuracies, "height": heights}
