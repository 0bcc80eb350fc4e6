"""Two models on the same rows: by how much they differ, how sure that is, and whether chance would do it.

The models are compared row by row, from the predictions beside results.json: rows that both have right or both have
wrong say nothing about which is better, and drop out.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evals.heuristics.scores import HANS_LO
from evals.results.predictions import PredictionTable, has_predictions, read_predictions_table
from evals.results.store import model_labels
from evals.scores.intervals import Interval, McNemar, mcnemar, paired_difference
from merge.errors import TaskError, UsageError, nearest

if TYPE_CHECKING:
    from numpy.typing import NDArray

SEED = 0


@dataclass(frozen=True)
class Comparison:
    """One score of two models on the same rows.

    Attributes:
        a, b: what the models are called.
        difference: score of a less that of b.
        interval: of the difference, by paired bootstrap.
        test: McNemar's, on which rows are right; None for a regression task, where none are.
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
    """Return every pair of models that a results folder has scored on the same rows of a task, each with every score.

    Args:
        folder: holds results.json and the predictions.
        against: name of one model: compare the others with it alone, as a with it as b.
    Raises:
        TaskError: fewer than two models were scored on the same rows, or predictions are missing.
        UsageError: no model is called `against`.
    """
    from evals.results.store import load_results

    records = [record for record in load_results(folder) if record["kind"] == "scores"]
    about = [record for record in records if record["task"] == task]
    if not about:
        raise UsageError(f"{folder} has no scores on {task!r}.{nearest(task, {record['task'] for record in records})}")
    if lacking := [record for record in about if not has_predictions(folder, record)]:
        said = ", ".join(dict.fromkeys(record["model"]["name"] for record in lacking))
        raise TaskError(
            f"{folder} holds scores without the predictions they were made of: {said}. Score them on {task} again, "
            "with the same folder and --force."
        )
    names = [record["model"]["name"] for record in about]
    if against is not None and against not in names:
        raise UsageError(f"no model of {folder} was scored on {task} as {against!r}.{nearest(against, names)}")
    found = [one for group in alike(about) for one in compare_records(folder, group, against)]
    if not found:
        with_it = "" if against is None else f" with {against}"
        raise TaskError(
            f"{folder}: no two models were scored{with_it} on the same rows of {task}; score another with -o."
        )
    return found


def alike(records: Sequence[Mapping[str, Any]]) -> list[list[Mapping[str, Any]]]:
    """Return the scores records in groups of one task and the same rows."""
    groups: dict[tuple[Any, ...], list[Mapping[str, Any]]] = {}
    for record in records:
        groups.setdefault((record["task"], record.get("rows")), []).append(record)
    return list(groups.values())


def compare_records(
    folder: Path | str, records: Sequence[Mapping[str, Any]], against: str | None = None, first_only: bool = False
) -> list[Comparison]:
    """Return the comparisons of scores records on the same rows, in their order; see `compare_models`.

    Args:
        first_only: compare the first record with every other one, and these not with one another.
    """
    labels = model_labels([record["model"] for record in records])
    held = [_predictions(folder, record) for record in records]
    pairs = list(combinations(range(len(records)), 2))
    if first_only:
        pairs = [(i, j) for i, j in pairs if i == 0]
    if against is not None:
        named = [at for at, record in enumerate(records) if record["model"]["name"] == against]
        pairs = [(at, it) for it in named for at in range(len(records)) if at not in named]
    return [one for i, j in pairs for one in _compare((labels[i], labels[j]), records[i], (held[i], held[j]))]


def _predictions(folder: Path | str, record: Mapping[str, Any]) -> PredictionTable:
    """Return the predictions of a record; those of another record under its name are an error."""
    path = Path(folder) / record["predictions"]
    table = read_predictions_table(path)
    if (table.key, table.rows) != (record["key"], record["rows"]):
        raise TaskError(
            f"{path} holds the predictions of another record ({table.key}, rows {table.rows[:8]}). Delete it and score "
            f"{record['model']['name']} again with --force."
        )
    return table


def _compare(
    names: tuple[str, str], record: Mapping[str, Any], tables: tuple[PredictionTable, PredictionTable]
) -> Iterator[Comparison]:
    """Yield one comparison for every score that predictions decide; the loss needs more and is left out."""
    import numpy as np

    from evals.scores.weighted import WEIGHTED

    task, split, data = (str(record[name]) for name in ("task", "split", "data"))
    for name in record["scores"]:
        if name not in WEIGHTED and name != "hans_lo":
            continue
        score = WEIGHTED["accuracy" if name == "hans_lo" else name]
        kept = lexical_overlap(tables[0]) if name == "hans_lo" else slice(None)
        gold, a, b = tables[0].gold[kept], tables[0].predicted[kept], tables[1].predicted[kept]
        once = np.ones((1, len(gold)), dtype=np.int64)
        difference = float((score(gold, a, once) - score(gold, b, once))[0])
        interval = paired_difference(score, gold, a, b, np.random.default_rng(SEED))
        test = mcnemar(gold == a, gold == b) if tables[0].labels else None
        yield Comparison(*names, task, split, data, len(gold), name, difference, interval, test)


def lexical_overlap(table: PredictionTable) -> NDArray[Any]:
    """Return which rows are of the HANS-LO cell: lexical overlap without entailment."""
    import numpy as np

    heuristic, label = HANS_LO
    return (np.array(table.heuristics) == heuristic) & (table.gold == table.labels.index(label))
