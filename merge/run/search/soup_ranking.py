"""The soup that a sweep over pairs ranks first: read from the basins.json of evaluate-models, without running a model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field, ValidationError

from merge.checkpoints.checkpoint import Checkpoint
from merge.disk.checksums import NOT_AS_WRITTEN, without_checksum
from merge.disk.documents import read_json, shown
from merge.errors import MergeError, one_line, some

NAIVE = "naive"  # the lines between models as they are
MAX_FAULTS = 3  # that a message lists


class RankingError(MergeError):
    """A file of basins cannot be read, or ranks no soup of these models."""


class _Model(BaseModel):
    name: str
    hash: str


class _Predicted(BaseModel):
    models: list[Annotated[int, Field(ge=0)]] = Field(min_length=1)
    loss: Annotated[float, Field(allow_inf_nan=False)]


class _Measured(BaseModel):
    models: list[Annotated[int, Field(ge=0)]] = Field(min_length=1)
    measured: Annotated[float, Field(allow_inf_nan=False)]


class _Verification(BaseModel):
    subsets: list[_Measured]


class _Ranking(BaseModel):
    subsets: list[_Predicted]
    losses: list[Annotated[float, Field(allow_inf_nan=False)]]
    weights: list[Annotated[float, Field(gt=0, allow_inf_nan=False)]]


class _Analysis(BaseModel):
    line: str
    ranking: _Ranking
    verification: _Verification | None = None


class _Basins(BaseModel):
    kind: Literal["basins"]
    task: str
    data: str
    models: list[_Model] = Field(min_length=2)
    analyses: list[_Analysis] = Field(min_length=1)


@dataclass(frozen=True)
class Soup:
    """A soup and where its loss is from.

    Attributes:
        weights: one a model, 0 for those that are left out.
        note: a sentence for the report.
    """

    weights: tuple[float, ...]
    note: str


def ranked_soup(path: Path, models: Sequence[Checkpoint], aligned: bool) -> Soup:
    """Return the soup with the lowest loss in a ranking: measured where averages were measured, else predicted.

    Models are identified by their content. A model alone is a soup as well; of the ranked subsets those count whose members are
    all among the models.

    Args:
        path: basins.json.
        aligned: whether the models are aligned before they are merged: then the ranking is that of the aligned lines.
    Raises:
        RankingError: the file cannot be read, is not as it was written or ranks nothing, has no such lines, or lacks a model.
    """
    record = _read(path)
    analysis = _analysis(path, record, aligned)
    places = _places(path, record, models)
    here = {at: k for k, at in enumerate(places)}
    source, averages = _averages(analysis)
    known = [(members, loss) for members, loss in averages if len(members) > 1 and here.keys() >= set(members)]
    if not known:
        raise RankingError(
            f"{path}: none of its {len(averages)} ranked averages is of these models alone. Sweep over these models."
        )
    alone = [((at,), analysis.ranking.losses[at]) for at in places]
    members, loss = min((*known, *alone), key=lambda entry: (entry[1], len(entry[0])))
    names = " + ".join(models[here[at]].source for at in members)
    kind = source if len(members) > 1 else "measured"
    weights = tuple(analysis.ranking.weights[at] if at in members else 0.0 for at in places)
    text = f"the soup is {names}, with a {kind} loss of {loss:.6g} on {record.task} ({record.data}), from {path}"
    return Soup(weights, f"greedy_soup: {text}")


def _read(path: Path) -> _Basins:
    document = read_json(path, RankingError)
    if isinstance(document, dict) and isinstance(document.get("results"), list):
        raise RankingError(
            f"{path} holds scores and no ranking. Give the basins.json of evaluate-models basins, or a scorer and a metric too."
        )
    if not isinstance(document, dict) or document.get("kind") != "basins":
        raise RankingError(
            f"{path} is not the basins.json of evaluate-models: expected kind basins, found {shown(document)}."
        )
    whole = without_checksum(document)
    if whole is None:
        raise RankingError(
            f"{path} is not used: {NOT_AS_WRITTEN}. Run evaluate-models basins with -o {path.parent} again: the pairs that are "
            "there are not measured again."
        )
    try:
        record = _Basins.model_validate(whole)
    except ValidationError as error:
        faults = [f"{'.'.join(map(str, each['loc']))}: {one_line(each['msg'])}" for each in error.errors()]
        raise RankingError(
            f"{path} is malformed, evaluate-models did not write it so: {some(faults, MAX_FAULTS, '; ')}."
        ) from None
    _check_indices(path, record)
    return record


def _check_indices(path: Path, record: _Basins) -> None:
    """Stop where a ranking is of other models than the file has."""
    count = len(record.models)
    for analysis in record.analyses:
        subsets: list[_Predicted | _Measured] = [*analysis.ranking.subsets]
        subsets += analysis.verification.subsets if analysis.verification else []
        beyond = [member for each in subsets for member in each.models if member >= count]
        lengths = {len(analysis.ranking.losses), len(analysis.ranking.weights)}
        if beyond or lengths != {count}:
            raise RankingError(
                f"{path} is malformed: the ranking of its {analysis.line} lines is not of its {count} models."
            )


def _analysis(path: Path, record: _Basins, aligned: bool) -> _Analysis:
    lines = [each for each in record.analyses if (each.line != NAIVE) == aligned]
    if not lines:
        kind, advice = ("aligned", "Sweep with --align") if aligned else (NAIVE, "Sweep")
        raise RankingError(
            f"{path} has no {kind} lines, and this merge needs them. {advice}, or merge as the file was measured."
        )
    return lines[-1]


def _places(path: Path, record: _Basins, models: Sequence[Checkpoint]) -> list[int]:
    """Return which model of the record each model is, by content."""
    at = {model.hash: k for k, model in enumerate(record.models)}
    if missing := [model.source for model in models if model.content_hash not in at]:
        listed = some([model.name for model in record.models])
        raise RankingError(
            f"{path} has no model with the content of {some(missing)}; it has {listed}. Sweep over these models."
        )
    places = [at[model.content_hash] for model in models]
    if len(set(places)) < len(places):
        raise RankingError(
            f"{path}: two of these models are one by content, and count once in its ranking. Give each once."
        )
    return places


def _averages(analysis: _Analysis) -> tuple[str, list[tuple[tuple[int, ...], float]]]:
    """Return how the losses of averages are known, and (models, loss) of each."""
    verification: Any = analysis.verification
    if verification is not None and verification.subsets:
        return "measured", [(tuple(each.models), each.measured) for each in verification.subsets]
    return "predicted", [(tuple(each.models), each.loss) for each in analysis.ranking.subsets]
