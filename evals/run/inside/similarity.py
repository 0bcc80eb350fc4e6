"""Measure how alike two models represent texts, layer by layer; they may differ in width, depth and family."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

from evals.run.inside.texts import FeatureTexts, check_reads_text, listed, measured_rows, versions
from evals.run.options import EvalOptions, reuse_result, stored_results
from merge.checkpoints.weights.arrays import check_device
from merge.errors import UsageError, nearest

if TYPE_CHECKING:
    from torch import Tensor

    from evals.inside.representations import Representation
    from merge.checkpoints.checkpoint import Checkpoint
    from merge.checkpoints.inputs import Tokens

    Pair = tuple[Checkpoint, Checkpoint]

KIND = "similarity"
BY = ("texts", "tokens")  # those of evals.inside.representations, here without loading torch
MEASURE_NAMES = ("cka", "debiased cka", "procrustes", "permutation", "svcca", "neighbours")
KINDS_COMPARED = ("embeddings", "output")
MAX_ROWS = 4096
FEW = "svcca of {} rows of {} units is high for any two models: read it beside its chance, or give several times more rows"


@dataclass(frozen=True)
class SimilarityPlan:
    """What is compared of two models.

    Attributes:
        by: "texts" (a row is the mean over the tokens of a text) or "tokens".
        sites: names or kinds of sites; the embeddings and the output of every layer where empty.
        measures: some of MEASURE_NAMES.
        most: rows that are compared at most; they bound the memory.
    """

    by: str = "texts"
    sites: tuple[str, ...] = ()
    measures: tuple[str, ...] = MEASURE_NAMES
    most: int = MAX_ROWS


def measure_similarity(pair: Pair, on: FeatureTexts, plan: SimilarityPlan, options: EvalOptions) -> dict[str, Any]:
    """Return the similarity record of two models.

    Raises:
        UsageError: a measure, a site or a kind of rows is unknown; by token the models split the texts into other tokens; there
            are too few texts.
        TaskError, CalibrationError: rows cannot be read, or a model has no tokenizer.
    """
    from evals.results.measure import named, record_key
    from evals.results.store import add_result

    begun = time.monotonic()
    _check(plan)
    check_device(options.device)
    for checkpoint in pair:
        check_reads_text(checkpoint)
    stored = stored_results(options)
    measured = measured_rows(on.task, on.text, options)
    if plan.by == BY[0] and len(measured.rows) > plan.most:
        measured = replace(measured, rows=measured.rows.sample(plan.most, options.seed))
    hashes = [checkpoint.content_hash for checkpoint in pair]
    facts = (hashes, measured.setting()["task"], measured.rows.hash, asdict(plan), options.max_length, options.seed)
    key = record_key(KIND, *facts)
    names = {"models": [named(checkpoint) for checkpoint in pair], "data": measured.rows.data}
    if (record := reuse_result(stored, key, names, options.output)) is not None:
        return record
    compared, notes = _compared(pair, measured.rows, plan, options)
    record = {
        "kind": KIND,
        "key": key,
        **measured.setting(),
        "models": names["models"],
        "by": plan.by,
        **compared,
        "notes": list(dict.fromkeys([*measured.notes, *notes])),
        "versions": versions(),
        "seconds": time.monotonic() - begun,
    }
    if options.output:
        add_result(options.output, record)
    return record


def _check(plan: SimilarityPlan) -> None:
    if plan.by not in BY:
        raise UsageError(f"rows are {' or '.join(BY)}, found {plan.by!r}.{nearest(plan.by, BY)}")
    if plan.most < 8:
        raise UsageError(f"at least 8 rows are compared, found a bound of {plan.most}.")
    for name in plan.measures:
        if name not in MEASURE_NAMES:
            raise UsageError(f"unknown measure {name!r}.{nearest(name, MEASURE_NAMES)}")


def _compared(pair: Pair, rows: Any, plan: SimilarityPlan, options: EvalOptions) -> tuple[dict[str, Any], list[str]]:
    """Return the fields of the record that two passes over the texts give; and notes."""
    import torch

    from evals.inside.compare import compare
    from evals.inside.representations import first_texts
    from evals.inside.texts import tokens_of

    tokens = [tokens_of(each, rows, options.max_length, not options.no_cache) for each in pair]
    notes = [_cut(each, of) for each, of in zip(tokens, pair, strict=True) if each.cut]
    same = _same(*tokens)
    if plan.by == BY[1]:
        if not same:
            raise UsageError(
                f"{pair[0].source} and {pair[1].source} split these texts into other tokens, so that rows of tokens do not "
                "belong together. Compare them by text: --rows texts (the mean over the tokens of each)."
            )
        count = len(tokens[0].lengths)
        tokens = [first_texts(each, plan.most) for each in tokens]
        if len(tokens[0].lengths) < count:
            notes.append(
                f"the tokens of {len(tokens[0].lengths):,} of {count:,} texts are compared: --max-rows {plan.most}"
            )
    elif not same:
        notes.append("the models split these texts into other tokens: a row is the mean over each one's own tokens")
    texts = torch.arange(len(tokens[0].lengths))
    if plan.by == BY[1]:
        texts = texts.repeat_interleave(torch.tensor(tokens[0].lengths))
    if len(texts) < 8 or len(tokens[0].lengths) < 4:
        raise UsageError(f"{rows.data}: too short: 4 texts and 8 rows are compared at least, found {len(texts)} rows.")
    sides = [_represented(each, of, plan, options, notes) for each, of in zip(tokens, pair, strict=True)]
    compared = compare(sides[0], sides[1], texts, plan.measures, options.seed)
    widest = max(each.values.shape[1] for side in sides for each in side)
    if "svcca" in plan.measures and len(texts) < 5 * widest:
        notes.append(FEW.format(f"{len(texts):,}", f"{widest:,}"))
    return {
        "row_count": len(texts),
        "units": {name: [each.values.shape[1] for each in side] for name, side in zip("ab", sides, strict=True)},
        "sites": {"a": list(compared.a), "b": list(compared.b)},
        "matrices": compared.matrices,
        "pairs": [listed(asdict(each)) for each in compared.pairs],
    }, notes


def _represented(
    tokens: Tokens, checkpoint: Checkpoint, plan: SimilarityPlan, options: EvalOptions, notes: list[str]
) -> list[Representation]:
    """Return the representations of one model, which is let go of before the next is built."""
    from evals.inside.representations import represent
    from evals.inside.sites import LOGITS, POOLER, sites_of
    from evals.predict.predictor import build_written

    model = build_written(checkpoint).to(options.device)
    sites = sites_of(model)
    chosen = sites.select(plan.sites or KINDS_COMPARED)
    if plan.by == BY[1] and any(site.kind in (POOLER, LOGITS) for site in chosen):
        raise UsageError("pooler and logits have a row a text: compare them by text, --rows texts.")
    notes += sites.notes
    return represent(model, tokens, chosen, plan.by, checkpoint.source)


def _same(a: Tokens, b: Tokens) -> bool:
    """Return whether two models read the same tokens; their ids may differ where their lengths agree by chance."""
    ids: tuple[Tensor, Tensor] = (a.fields["input_ids"], b.fields["input_ids"])
    return a.lengths == b.lengths and bool((ids[0] == ids[1]).all())


def _cut(tokens: Tokens, checkpoint: Checkpoint) -> str:
    return f"{checkpoint.source} reads only the start of longer texts: {tokens.cut:,} of {len(tokens.lengths):,}"
