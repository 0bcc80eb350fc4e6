"""Which of many models are linearly connected: the sweep over their pairs, its record, and what is concluded from it."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evals.run.basins_plan import BasinsPlan
from evals.run.options import EvalOptions
from evals.run.sweep import Swept, sweep_models
from merge.disk.workspace import Workspace
from merge.errors import OutputError, first_line

if TYPE_CHECKING:
    from evals.clusters.findings import Analysis, AnalysisSettings
    from evals.clusters.pair_losses import PairLosses
    from evals.clusters.sweep.cost import Cost
    from evals.tasks.task import EvalTask
    from merge.alignment.settings import AlignEntry
    from merge.checkpoints.checkpoint import Checkpoint

PAIRS = "basins-pairs.csv"


def measure_basins(
    checkpoints: Sequence[Checkpoint],
    task: EvalTask,
    settings: AlignEntry,
    plan: BasinsPlan,
    options: EvalOptions,
    tell: Callable[[str], None],
) -> tuple[dict[str, Any], tuple[PairLosses, ...]] | Cost:
    """Return the record of a sweep over many models and the losses of its lines; the cost alone for a dry run.

    Args:
        checkpoints: two or more, as encoders or with their modules.
        settings: of the alignment that is measured beside the naive lines.
        options: without an output, what is measured is in a temporary folder until the end.
        tell: is called with each line of the estimate before the work begins.
    Losses and scores are written as they are measured, basins.json and the table of pairs at the end.

    Raises:
        UsageError, MismatchError, TaskError, MergeError: as `sweep_models`.
    """
    workspace = None if options.output else Workspace()
    stored = options if workspace is None else replace(options, output=workspace.folder)
    asked = analysis_settings(plan, stored.seed, len(checkpoints))
    from evals.clusters.distances import STITCHING
    from evals.run.inside.stitch_distance import read_fit, with_stitching

    stitching = asked.summary == STITCHING  # its text is read before hours are spent on the lines
    fit = read_fit(plan.text or settings.text_source(stored.seed), stored.seed) if stitching else None
    swept = sweep_models(checkpoints, task, settings, plan, stored, tell)
    if not isinstance(swept, Swept):
        return swept
    if fit is not None:
        swept = with_stitching(swept, task, stored, fit)
    analyses = [_analysis(swept, at, asked, plan) for at in range(len(swept.losses))]
    record = basins_record(swept) | {"analyses": [analysis.to_json() for analysis in analyses]}
    record["notes"] += [note for analysis in analyses for note in analysis.notes]
    if options.output:
        write_basins(record, options.output)
    return record, swept.losses


def analysis_settings(plan: BasinsPlan, seed: int, models: int) -> AnalysisSettings:
    """Return the settings of the analysis, with names as its tables have them, before anything is measured.

    Args:
        models: how many there are at most.
    Raises:
        UsageError: a name is unknown (the nearest is named), or a number does not fit.
    """
    from evals.clusters.findings import AnalysisSettings
    from evals.clusters.number import check_number

    settings = AnalysisSettings(**plan.analysis, seed=seed)
    check_number(settings.number, models)
    return replace(settings, best=max(settings.best, plan.verify)).check_names()


def _analysis(swept: Swept, at: int, settings: AnalysisSettings, plan: BasinsPlan) -> Analysis:
    """Return what one line of a sweep says of the models, its best averages measured if that is asked for."""
    from evals.clusters.analysis import analyse, verified
    from evals.run.sweep import measure_averages

    losses = swept.losses[at]
    analysis = analyse(losses, swept.diagnostics, settings)
    ranked = [each.models for each in analysis.ranking.subsets[: plan.verify] if len(each.models) > 1]
    # The average of all is what nobody would have to rank for.
    if plan.verify and losses.complete:
        ranked.append(tuple(range(len(losses.models))))
    wanted = list(dict.fromkeys([*ranked, *(tuple(sorted(models)) for models in plan.averages)]))
    return verified(analysis, losses, measure_averages(swept, at, wanted, plan)) if wanted else analysis


def basins_record(swept: Swept) -> dict[str, Any]:
    """Return what basins.json holds: the models and their scores, and of every line its curves and their summaries."""
    from evals.results.measure import record_key, setting

    sweep = swept.sweep
    keys = [sweep.pair_key(line, pair) for line in sweep.lines for pair in swept.pairs]
    key = record_key("basins", sweep.hashes, keys, sorted(swept.diagnostics))
    return setting("basins", key, sweep.task, sweep.rows) | {
        "models": [{"name": model.name, "hash": model.hash} for model in sweep.models],
        "loss": swept.losses[0].ends.mean(1, dtype="float64").tolist(),
        "accuracy": _accuracies(swept.losses[0]),
        "diagnostics": swept.diagnostics,
        "pairs": [list(pair) for pair in swept.pairs],
        "lam": list(swept.losses[0].lam),
        "lines": [_line(losses) for losses in swept.losses],
        "cost": swept.cost.to_json(),
        "notes": list(swept.notes),
        "seconds": swept.seconds,
    }


def _accuracies(losses: PairLosses) -> list[float] | None:
    return None if losses.ends_correct is None else losses.ends_correct.mean(1).tolist()


def _line(losses: PairLosses) -> dict[str, Any]:
    """Return the mean loss at every lam of every pair, and the summaries of these curves."""
    from evals.paths.summaries import SOURCES, summarise

    curves, accuracies, summaries = [], [], []
    for pair in losses.pairs:
        curve, correct = losses.curve(*pair), losses.correct(*pair)
        curves.append(curve.mean(1, dtype="float64").tolist())
        accuracies.append(None if correct is None else correct.mean(1).tolist())
        summaries.append({each.name: each for each in summarise(losses.lam, curve, correct, losses.distance[pair])})
    names = [name for name in SOURCES if name in summaries[0]]
    return {
        "name": losses.name,
        "curves": curves,
        "accuracy": None if None in accuracies else accuracies,
        "summaries": {
            name: {
                "value": [of_pair[name].value for of_pair in summaries],
                "standard_error": [of_pair[name].standard_error for of_pair in summaries],
                "source": SOURCES[name],
            }
            for name in names
        }
        | _stitching(losses),
    }


def _stitching(losses: PairLosses) -> dict[str, Any]:
    """Return the summary of stitching penalties, where they were measured."""
    from evals.clusters.distances import STITCHING, STITCHING_SOURCE

    if losses.stitching is None:
        return {}
    values = [losses.stitching[pair] for pair in losses.pairs]
    return {STITCHING: {"value": values, "standard_error": [None] * len(values), "source": STITCHING_SOURCE}}


def write_basins(record: dict[str, Any], folder: Path) -> list[Path]:
    """Write basins.json and the table of all pairs, and return their paths.

    Raises:
        OutputError: the folder is not writable.
    """
    from evals.report.basins_tables import pair_rows
    from evals.report.table_text import csv_table
    from evals.results.json_text import json_text
    from evals.results.store import BASINS
    from merge.disk.atomic import write_atomic
    from merge.disk.checksums import with_checksum
    from merge.disk.documents import parse_json

    made = [folder / BASINS, folder / PAIRS]
    try:
        # As JSON gives it back, whose checksum is stored with it.
        whole = parse_json(json_text(record, indent=None), BASINS, OutputError)
        write_atomic(made[0], json.dumps(with_checksum(whole)) + "\n")
        write_atomic(made[1], csv_table(pair_rows(record)))
    except OSError as error:
        raise OutputError(f"{folder} cannot be written: {first_line(error)}") from error
    return made


def illustrate_basins(record: dict[str, Any], folder: Path) -> list[Path]:
    """Write the pictures, their tables and the page of a folder with basins.json, and return their paths.

    Raises:
        OutputError: the folder is not writable.
    """
    from evals.report.basins.section import write_basins_report
    from evals.report.page import write_page

    try:
        return [*write_basins_report(record, record["analyses"], folder), write_page(folder)]
    except OSError as error:
        raise OutputError(f"{folder} cannot be written: {first_line(error)}") from error
