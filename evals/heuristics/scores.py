"""HANS scores: accuracy by heuristic and gold label, by subcase and by template, as the authors' scorer computes it.

The published ids are ex0 to ex29999 in a fixed order, so with `gold_by_position` a published prediction file is scored
without its sentences.

Source: github.com/tommccoy1/hans, evaluate_heur_output.py.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from evals.heuristics.grammar import LABELS, SUBCASES, HansPair
from merge.disk.atomic import write_atomic
from merge.errors import TaskError, UsageError

K = TypeVar("K", bound=Hashable)

# The cell that distinguishes models that generalise: (heuristic, gold label).
HANS_LO = ("lexical_overlap", "non-entailment")
PREDICTION_HEADER = "pairID,gold_label"


@dataclass(frozen=True)
class HansTable:
    """Accuracies and the number of pairs of each; keys in the order of their first pair.

    `cells` has keys (heuristic, gold label). A pair with an empty template id counts everywhere but in `templates`.
    """

    accuracy: float
    cells: Mapping[tuple[str, str], float]
    subcases: Mapping[str, float]
    templates: Mapping[str, float]
    count: int
    cell_counts: Mapping[tuple[str, str], int]
    subcase_counts: Mapping[str, int]
    template_counts: Mapping[str, int]

    @property
    def hans_lo(self) -> float:
        """HANS-LO: accuracy on non-entailed pairs with lexical overlap, which distinguishes models that generalise."""
        return _cell(self, *HANS_LO)

    def to_json(self) -> dict[str, Any]:
        """Return the table as nested plain dicts, counts under "counts" in the same shape."""
        return {
            "accuracy": self.accuracy,
            "heuristics": _nest(self.cells),
            "subcases": dict(self.subcases),
            "templates": dict(self.templates),
            "counts": {
                "pairs": self.count,
                "heuristics": _nest(self.cell_counts),
                "subcases": dict(self.subcase_counts),
                "templates": dict(self.template_counts),
            },
        }

    @classmethod
    def from_json(cls, table: Mapping[str, Any]) -> HansTable:
        """Return the table from the dicts of `to_json`.

        Raises:
            TaskError: the counts are missing or malformed.
        """

        def cells(nested: Mapping[str, Mapping[str, Any]]) -> dict[tuple[str, str], Any]:
            return {(heuristic, label): value for heuristic, row in nested.items() for label, value in row.items()}

        counts = table.get("counts") or {}
        expected = {"pairs": int, "heuristics": dict, "subcases": dict, "templates": dict}
        faulty = [name for name, kind in expected.items() if not isinstance(counts.get(name), kind)]
        if faulty or not all(isinstance(row, dict) for row in counts["heuristics"].values()):
            raise TaskError(f"the HANS table has no counts ({(faulty or ['heuristics'])[0]}); score the model again.")
        return cls(
            accuracy=table["accuracy"],
            cells=cells(table["heuristics"]),
            subcases=dict(table["subcases"]),
            templates=dict(table["templates"]),
            count=counts["pairs"],
            cell_counts=cells(counts["heuristics"]),
            subcase_counts=dict(counts["subcases"]),
            template_counts=dict(counts["templates"]),
        )


# Names of the classes in prediction files, as `_normal` gives them; the authors know the first four.
NAMES = {
    "entailment": "entailment",
    **dict.fromkeys(("nonentailment", "neutral", "contradiction"), "non-entailment"),
    **dict.fromkeys(("entail", "entails", "entailed"), "entailment"),
    **dict.fromkeys(("notentailment", "contradict", "contradicts", "contradictory"), "non-entailment"),
}
_NUMBERED = re.compile(r"(?:LABEL_)?(\d+)", re.IGNORECASE)


def fold(label: str) -> str:
    """Return "entailment" for its names, "non-entailment" for those of the two other classes: the authors' two-way rule.

    The authors count whatever is not "entailment" as the other; here a label that names no class is an error.

    Raises:
        TaskError: it names no class.
    """
    if _normal(label) not in NAMES:
        raise TaskError(_unknown_labels([label]))
    return NAMES[_normal(label)]


def _normal(label: str) -> str:
    """Return a label without case, spaces around it, and what joins its words."""
    return re.sub(r"[-_ ]+", "", label.strip().casefold())


def _unknown_labels(labels: Sequence[str]) -> str:
    shown = ", ".join(map(repr, labels[:6])) + f" and {len(labels) - 6} more" * (len(labels) > 6)
    numbered = all(_NUMBERED.fullmatch(label) for label in labels)
    advice = (
        "Say what the numbers mean, from 0 on, such as --labels entailment,neutral,contradiction"
        if numbered
        else "Write these names into the file"
    )
    return f"labels {shown} name no class of HANS: entailment, non-entailment, neutral, contradiction. {advice}."


def name_predictions(predictions: Mapping[str, str], stated: Sequence[str] | None, source: str) -> dict[str, str]:
    """Return predictions with a class name for every label.

    Args:
        stated: names of the classes that the file numbers (0 or LABEL_0 on); None where it names them.
        source: of the predictions, for errors.
    Raises:
        TaskError: a label names no class, or has no name among the stated ones.
        UsageError: names are stated though the labels are names.
    """
    labels = sorted(set(predictions.values()))
    if stated is None:
        if unknown := [label for label in labels if _normal(label) not in NAMES]:
            raise TaskError(f"{source}: {_unknown_labels(unknown)}")
        return dict(predictions)
    if unknown := [name for name in stated if _normal(name) not in NAMES]:
        raise TaskError(f"--labels: {_unknown_labels(unknown)}")
    numbers = {label: _NUMBERED.fullmatch(label) for label in labels}
    if named := [label for label, number in numbers.items() if number is None]:
        raise UsageError(
            f"{source}: --labels names the classes of labels that are numbers, and this file has {named[0]!r}. Leave it out."
        )
    indices = {label: int(number[1]) for label, number in numbers.items() if number is not None}
    if beyond := [label for label, index in indices.items() if index >= len(stated)]:
        raise TaskError(f"{source}: label {beyond[0]!r} has no name in --labels, which gives {len(stated)} from 0 on.")
    return {pair_id: stated[indices[label]] for pair_id, label in predictions.items()}


def score(pairs: Sequence[HansPair], predictions: Mapping[str, str]) -> HansTable:
    """Return the accuracies of predictions (label by pair id), each folded to two labels.

    Raises:
        TaskError: pairs and predictions have different ids, an id occurs twice, or a label is unknown.
    """
    _check(pairs, predictions)
    correct = [fold(predictions[pair.pair_id]) == pair.label for pair in pairs]
    cells, cell_counts = _accuracies([(pair.heuristic, pair.label) for pair in pairs], correct)
    subcases, subcase_counts = _accuracies([pair.subcase for pair in pairs], correct)
    named = [(pair.template, hit) for pair, hit in zip(pairs, correct, strict=True) if pair.template]
    templates, template_counts = _accuracies([name for name, _ in named], [hit for _, hit in named])
    return HansTable(
        accuracy=sum(correct) / len(correct),
        cells=cells,
        subcases=subcases,
        templates=templates,
        count=len(correct),
        cell_counts=cell_counts,
        subcase_counts=subcase_counts,
        template_counts=template_counts,
    )


def official_text(table: HansTable) -> str:
    """Return the output of the authors' scorer, byte for byte: four blocks, floats unrounded, a line break at the end.

    Raises:
        TaskError: a heuristic has no pair of one gold label, where their scorer divides by zero.
    """
    heuristics = _nest(table.cells)
    entailed = {name: _cell(table, name, "entailment") for name in heuristics}
    non_entailed = {name: _cell(table, name, "non-entailment") for name in heuristics}
    blocks = {
        "Heuristic entailed results:": entailed,
        "Heuristic non-entailed results:": non_entailed,
        "Subcase results:": table.subcases,
        "Template results:": table.templates,
    }
    return "\n".join(
        "".join([f"{title}\n", *(f"{k}: {v}\n" for k, v in block.items())]) for title, block in blocks.items()
    )


def write_predictions(path: Path | str, ids: Sequence[str], labels: Sequence[str]) -> None:
    """Write predictions in the published format, whole or not at all: a header, then lines such as `ex0,entailment`.

    Raises:
        TaskError: ids and labels differ in number, an id occurs twice, an id or label is empty or contains a comma or white
            space, or the file cannot be written.
    """
    path = Path(path)
    faults = [] if len(ids) == len(labels) else [f"{len(ids)} ids but {len(labels)} labels"]
    if twice := [name for name, count in Counter(ids).items() if count > 1]:
        faults.append(f"{len(twice)} ids occur more than once, the first is {twice[0]!r}")
    if odd := [word for word in (*ids, *labels) if not word or "," in word or word.split() != [word]]:
        faults.append(f"{len(odd)} ids or labels are empty or contain a comma or white space, the first is {odd[0]!r}")
    if faults:
        raise TaskError(f"{path}: these HANS predictions cannot be written: {'; '.join(faults)}.")
    lines = [PREDICTION_HEADER, *(f"{name},{label}" for name, label in zip(ids, labels, strict=True))]
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, "".join(f"{line}\n" for line in lines))
    except OSError as error:
        raise TaskError(f"{path} cannot be written: {error.strerror or error}.") from None


def gold_by_position(count_per_subcase: int = 1000) -> list[HansPair]:
    """Return the gold of HANS by position: pair exK belongs to subcase K // count_per_subcase; sentences are empty.

    Raises:
        TaskError: the count is not a positive integer.
    """
    if type(count_per_subcase) is not int or count_per_subcase < 1:
        raise TaskError(f"HANS: count_per_subcase must be an integer of at least 1, found {count_per_subcase!r}.")
    cases = [case for case in SUBCASES for _ in range(count_per_subcase)]
    return [HansPair(f"ex{k}", "", "", case.label, case.heuristic, case.name, "") for k, case in enumerate(cases)]


def _check(pairs: Sequence[HansPair], predictions: Mapping[str, str]) -> None:
    """Raise one error that lists every fault of the ids and gold labels."""
    counts = Counter(pair.pair_id for pair in pairs)
    faults = [] if pairs else ["there are no pairs to score"]
    if twice := [name for name, count in counts.items() if count > 1]:
        faults.append(f"{len(twice)} pair ids occur more than once, the first is {twice[0]!r}")
    if unknown := [pair for pair in pairs if pair.label not in LABELS]:
        faults.append(
            f"{len(unknown)} pairs have a gold label that is neither {' nor '.join(LABELS)}, the first is "
            f"{unknown[0].pair_id!r} with {unknown[0].label!r}"
        )
    if unnamed := sorted({label for label in predictions.values() if _normal(label) not in NAMES}):
        faults.append(_unknown_labels(unnamed).rstrip("."))
    faults += _first(counts, predictions, f"of {len(counts)} pairs have no prediction")
    faults += _first(predictions, counts, f"of {len(predictions)} predictions are for ids not among the pairs")
    if faults:
        raise TaskError(f"HANS cannot be scored: {'; '.join(faults)}. Were these predictions made on these pairs?")


def _first(ids: Iterable[str], known: Collection[str], what: str) -> list[str]:
    """Return a message with the number of ids that are not in `known`, and the first of them; none where all are."""
    unknown = [name for name in ids if name not in known]
    return [f"{len(unknown)} {what}, the first is {unknown[0]!r}"] if unknown else []


def _accuracies(keys: Sequence[K], correct: Sequence[bool]) -> tuple[dict[K, float], dict[K, int]]:
    """Return the accuracy and the count of every key, in the order of their first occurrence."""
    counts = Counter(keys)
    hits = Counter(key for key, hit in zip(keys, correct, strict=True) if hit)
    return {key: hits[key] / count for key, count in counts.items()}, dict(counts)


def _cell(table: HansTable, heuristic: str, label: str) -> float:
    """Return the accuracy of a cell; a cell without pairs is an error."""
    if (heuristic, label) not in table.cells:
        raise TaskError(
            f"HANS: no pair of these {table.count} is {heuristic} with gold label {label}; score all subcases."
        )
    return table.cells[heuristic, label]


def _nest(cells: Mapping[tuple[str, str], Any]) -> dict[str, dict[str, Any]]:
    """Return {heuristic: {label: value}}, entailment first."""
    heuristics = dict.fromkeys(heuristic for heuristic, _ in cells)
    return {name: {label: cells[name, label] for label in LABELS if (name, label) in cells} for name in heuristics}
