"""Statistics of every model of a merge: read from its file, or measured on its text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from merge.checkpoints.checkpoint import Checkpoint
from merge.errors import UsageError
from merge.run.report import Report
from merge.text.calibrated import Calibrated, calibrate
from merge.text.source import TextSource

if TYPE_CHECKING:
    from merge.methods.statistics.record import Statistics


def with_statistics(report: Report) -> Report:
    """Return the report with the statistics that the methods need, in the reference's basis.

    A model's own text or file goes before the files for all models, these before the text for all models.

    Raises:
        UsageError: a model has neither text nor file, or a file belongs to no model.
        StatisticsError: a file cannot be read, or was measured of another model.
    """
    kinds = sorted({job.method.statistics for job in report.plan.schedule.jobs if job.method.statistics is not None})
    if not kinds:
        return report
    from merge.methods.statistics.permute import move_statistics

    rebased, notes = report.rebased, list(report.notes)
    statistics: dict[str, list[Statistics]] = {}
    for kind in kinds:
        from_files = _of_files(report, kind)
        measured = _measured(report, kind, from_files, notes)
        statistics[kind] = []
        for k, transform in enumerate(rebased.transforms):
            record = measured[k]
            if transform is not None and (spec := rebased.spec_of(k)) is not None:
                record = move_statistics(spec, transform, record)
            statistics[kind].append(record)
    return replace(report, statistics=statistics, notes=tuple(dict.fromkeys(notes)))


def _of_files(report: Report, kind: str) -> dict[int, Statistics]:
    """Return the statistics that files hold, by the number of their model."""
    from merge.methods.statistics.record import StatisticsError, read_statistics

    records: dict[int, Statistics] = {}
    for number, entry in enumerate(report.recipe.models):
        if entry.statistics is not None and entry.statistics.file is not None:
            path = Path(entry.statistics.file).expanduser()
            records[number] = read_statistics(path, kind, _as_given(report, number, path))
    for name in report.recipe.statistics.files:
        path = Path(name).expanduser()
        record = read_statistics(path, kind)
        owners = [k for k, model in enumerate(report.inputs.models) if model.content_hash == record.model]
        if not owners:
            sources = ", ".join(model.source for model in report.inputs.models)
            raise StatisticsError(
                f"{path} was measured of a model with content {record.model[:12]} ({record.architecture}), which is none of "
                f"{sources}. Measure it again: merge-models statistics MODEL --kind {kind}."
            )
        for number in owners:
            if number in records:
                source = report.inputs.models[number].source
                raise UsageError(f"{path} and another file or text both hold {kind} statistics of {source}. Give one.")
            records[number] = read_statistics(path, kind, _as_given(report, number, path))
    return records


def _as_given(report: Report, number: int, path: Path) -> Checkpoint:
    """Return a model that a file of statistics may belong to.

    Raises:
        StatisticsError: the alignment rewrites the model before it is merged.
    """
    from merge.methods.statistics.record import StatisticsError

    if report.models[number].content_hash != report.inputs.models[number].content_hash:
        raise StatisticsError(
            f"{path} does not fit: the alignment rewrites {report.models[number].source} before the merge. Give its text "
            "instead, or merge with --align none."
        )
    return report.models[number].encoder


def _measured(
    report: Report, kind: str, from_files: Mapping[int, Statistics], notes: list[str]
) -> Sequence[Statistics]:
    """Return the statistics of every model: from files, else measured on its own text, else on the text for all."""
    from merge.methods.statistics.measure import statistics_for

    recipe, records, shared = report.recipe, [], []
    calibrated: dict[tuple[TextSource, Path], Calibrated] = {}
    for number, (entry, checkpoint) in enumerate(zip(recipe.models, report.models, strict=True)):
        if number in from_files:
            records.append(from_files[number])
            continue
        if entry.statistics is not None:
            source = recipe.statistics.text_source_of(entry.statistics, recipe.seed)
        elif recipe.statistics.text is not None:
            source = recipe.statistics.text_source(recipe.seed)
            shared.append(checkpoint.source)
        else:
            raise UsageError(
                f"no file holds {kind} statistics of {checkpoint.source}, and it has no text to measure them on. Give "
                f"--statistics {entry.model}=FILE (statistics: beside the model)."
            )
        owner = checkpoint if checkpoint.has_tokenizer else report.models[0]
        if (source, owner.folder) not in calibrated:
            calibrated[source, owner.folder] = calibrate(source, owner, needed=True, matching=False)
        text = calibrated[source, owner.folder]
        notes += text.notes
        records.append(statistics_for(checkpoint.encoder, kind, text.batches, text=str(text.source), seed=recipe.seed))
    if len(shared) > 1:
        notes.append(
            f"{' and '.join(shared)} were measured on one text, {recipe.statistics.text}. The method is meant for each model's "
            "own task: --statistics MODEL=FILE"
        )
    return records
