"""Paired comparison of two models on the same rows: the difference of a score, its interval, and McNemar's test.

The models are compared row by row, from the predictions in the results folder: rows that both predict right, or both
wrong, do not distinguish them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evals.heuristics.scores import HANS_LO
from evals.results.predictions import PredictionTable, has_predictions, read_predictions_table
from evals.results.store import record_labels
from evals.scores.intervals import Interval, McNemar, mcnemar, paired_difference
from merge.errors import TaskError, UsageError, nearest

if TYPE_CHECKING:
    from numpy.typing import NDArray

SEED = 0


@dataclass(frozen=True)
class Comparison:
    """One score of two models on the same rows.

    Attributes:
        a, b: labels of the models.
        difference: score of a minus that of b.
        interval: of the difference, by paired bootstrap.
        test: McNemar's; None for a regression task, where no row is right or wrong.
    """

    a: str
    b: str
    task: str
    split: str
    data: str
    n: int
    score: str
    difference: float
    interval: Interval
    test: McNemar | None

    def to_json(self) -> dict[str, Any]:
        """Return the comparison as plain dicts."""
        return asdict(self)


def compare_models(folder: Path | str, task: str, against: str | None = None) -> list[Comparison]:
    """Return a comparison for every score and every pair of models that were scored on the same rows of a task.

    Args:
        folder: of results.json and the predictions.
        against: name of a model that every other model is compared with, as b; None for all pairs.
    Raises:
        TaskError: fewer than two models were scored on the same rows, or predictions are missing.
        UsageError: no model has the name `against`.
    """
    from evals.results.store import load_results

    records = [record for record in load_results(folder) if record["kind"] == "scores"]
    of_task = [record for record in records if record["task"] == task]
    if not records:
        raise UsageError(
            f"{folder} holds no scores. Score models with -o {folder} first; the folder is that of results.json."
        )
    if not of_task:
        raise UsageError(f"{folder} has no scores on {task!r}.{nearest(task, {record['task'] for record in records})}")
    if lacking := [record for record in of_task if not has_predictions(folder, record)]:
        names_lacking = ", ".join(dict.fromkeys(record["model"]["name"] for record in lacking))
        raise TaskError(
            f"{folder} has no predictions, only scores, of {names_lacking}. Score them on {task} again, with -o {folder} "
            "and --force."
        )
    names = [record["model"]["name"] for record in of_task]
    if against is not None and against not in names:
        raise UsageError(f"{folder} has no scores of a model {against!r} on {task}.{nearest(against, names)}")
    comparisons = [each for group in by_rows(of_task) for each in compare_records(folder, group, against)]
    if not comparisons:
        together = "" if against is None else f" with {against}"
        raise TaskError(
            f"{folder}: no two models were scored{together} on the same rows of {task}; score another with -o {folder}."
        )
    return comparisons


def uncompared(folder: Path | str, task: str, comparisons: Sequence[Comparison]) -> list[str]:
    """Return a note for each of the models on a task that is in no comparison, as it was scored on other rows than the rest."""
    from evals.results.store import load_results

    named = {name for each in comparisons for name in (each.a, each.b)}
    records = [record for record in load_results(folder) if record["kind"] == "scores" and record["task"] == task]
    return [
        f"{label} was scored on other rows ({record['data']}), and is not compared"
        for group in by_rows(records)
        for label, record in zip(record_labels(group), group, strict=True)
        if label not in named
    ]


def by_rows(records: Sequence[Mapping[str, Any]]) -> list[list[Mapping[str, Any]]]:
    """Return scores records in groups of one task and the same rows."""
    groups: dict[tuple[Any, ...], list[Mapping[str, Any]]] = {}
    for record in records:
        groups.setdefault((record["task"], record.get("rows")), []).append(record)
    return list(groups.values())


def compare_records(
    folder: Path | str, records: Sequence[Mapping[str, Any]], against: str | None = None, first_only: bool = False
) -> list[Comparison]:
    """Return the comparisons of scores records on the same rows, in their order, as `compare_models` does.

    Args:
        first_only: compare the first record with every other one, and no other pairs.
    """
    labels = record_labels(records)
    predictions = [_predictions(folder, record) for record in records]
    pairs = list(combinations(range(len(records)), 2))
    if first_only:
        pairs = [(i, j) for i, j in pairs if i == 0]
    if against is not None:
        named = [i for i, record in enumerate(records) if record["model"]["name"] == against]
        pairs = [(i, j) for j in named for i in range(len(records)) if i not in named]
    return [
        comparison
        for i, j in pairs
        for comparison in _compare((labels[i], labels[j]), records[i], (predictions[i], predictions[j]))
    ]


def _predictions(folder: Path | str, record: Mapping[str, Any]) -> PredictionTable:
    """Return the predictions of a record; a file with those of another record, or of other rows, is an error."""
    path = Path(folder) / record["predictions"]
    table = read_predictions_table(path)
    if (table.key, table.rows) != (record["key"], record.get("rows")):
        raise TaskError(
            f"{path} holds the predictions of another record ({table.key}, rows {table.rows[:8]}). Delete it and score "
            f"{record['model']['name']} again with --force."
        )
    if len(table.ids) != record["n"]:
        raise TaskError(
            f"{path}: expected the predictions of {record['n']:,} rows, found {len(table.ids):,}. Delete it and score "
            f"{record['model']['name']} again with --force."
        )
    return table


def _compare(
    names: tuple[str, str], record: Mapping[str, Any], tables: tuple[PredictionTable, PredictionTable]
) -> Iterator[Comparison]:
    """Yield a comparison for every score of predicted classes or numbers; the loss, which needs logits, is omitted."""
    import numpy as np

    from evals.scores.weighted import WEIGHTED

    task, split, data = (str(record[name]) for name in ("task", "split", "data"))
    for name in record["scores"]:
        if name not in WEIGHTED and name != "hans_lo":
            continue
        score = WEIGHTED["accuracy" if name == "hans_lo" else name]
        kept = lexical_overlap(tables[0]) if name == "hans_lo" else slice(None)
        gold, a, b = tables[0].gold[kept], tables[0].predicted[kept], tables[1].predicted[kept]
        weights = np.ones((1, len(gold)), dtype=np.int64)
        difference = float((score(gold, a, weights) - score(gold, b, weights))[0])
        interval = paired_difference(score, gold, a, b, np.random.default_rng(SEED))
        test = mcnemar(gold == a, gold == b) if tables[0].labels else None
        yield Comparison(*names, task, split, data, len(gold), name, difference, interval, test)


def lexical_overlap(table: PredictionTable) -> NDArray[Any]:
    """Return which rows are in the HANS-LO cell (lexical overlap without entailment), shape (rows,)."""
    import numpy as np

    heuristic, label = HANS_LO
    return (np.array(table.heuristics) == heuristic) & (table.gold == table.labels.index(label))
