"""Measure the loss on the plane through three models, through a training run, or through the most distant models of a zoo."""

from __future__ import annotations

import itertools
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evals.run.line import TaskData
from evals.run.options import EvalOptions, has_beside, reuse_result, stored_results
from evals.run.surface.models import (
    Asked,
    asked_models,
    expanded,
    facts,
    is_run,
    numbered_checkpoints,
    prepared,
    run_checkpoints,
)
from merge.errors import OutputError, UsageError, first_line

if TYPE_CHECKING:
    import numpy as np

    from evals.paths.surface.plane import Plane
    from evals.paths.surface.points import Value
    from merge.alignment.settings import AlignEntry
    from merge.checkpoints.checkpoint import Checkpoint

# How the plane of a training run is spanned.
SPANS = ("average", "pca")


@dataclass(frozen=True)
class PlanePlan:
    """What is measured on a plane.

    Attributes:
        points: along each side of the even grid.
        levels: how often its cells are halved where the log loss bends; 0 for the even grid alone.
        span: of more than three models: their first, last and average, or their first two principal components.
    """

    points: int = 7
    levels: int = 1
    span: str = "average"


def plane_sources(sources: Sequence[str]) -> tuple[list[str], bool]:
    """Return the models of a plane, every training run replaced by its checkpoints, and whether there was a run.

    One folder alone spans no plane, so it is a run if it has checkpoints, whether the final model is beside them or not.

    Raises:
        UsageError: a folder is neither a checkpoint nor a run.
    """
    if len(sources) == 1 and numbered_checkpoints(sources[0]):
        return run_checkpoints(sources[0]), True
    return expanded(sources), any(map(is_run, sources))


def check_count(count: int, of_run: bool) -> None:
    """Stop where models are not three, and not the checkpoints of a run either.

    Raises:
        UsageError: says how many there are.
    """
    if count < 3:
        raise UsageError(
            f"a plane takes three models, found {count}{' checkpoints of the run' if of_run else ''}. Example: evaluate-models "
            "plane a/ b/ c/ --task mnli"
        )
    if count > 3 and not of_run:
        raise UsageError(
            f"a plane takes three models, found {count}. The folder of a training run may have more checkpoints, and "
            "--basins REPORT picks three of many."
        )


def most_distant(folder: Path, models: Sequence[Checkpoint]) -> list[Checkpoint]:
    """Return the three models of a sweep whose three distances have the largest sum, the two farthest first.

    The distance is the summary by which the sweep's models were clustered, of its last line (the aligned one, if there is one).

    Args:
        folder: of basins.json.
        models: among which they are looked up by their content.
    Raises:
        TaskError: basins.json is not a record of a sweep.
        UsageError: there is none, it measured too few pairs, or a model of it is not among those given.
    """
    from evals.results.store import BASINS, load_basins

    record = load_basins(folder)
    if record is None:
        raise UsageError(f"{folder} has no {BASINS}; expected the folder that `evaluate-models basins -o` wrote.")
    summary = record["analyses"][-1]["settings"]["summary"] if record.get("analyses") else "distance"
    values = record["lines"][-1]["summaries"][summary]["value"]
    apart = {frozenset(pair): value or 0.0 for pair, value in zip(record["pairs"], values, strict=True)}
    triples = []
    for triple in itertools.combinations(range(len(record["models"])), 3):
        sides = [frozenset(pair) for pair in itertools.combinations(triple, 2)]
        if all(side in apart for side in sides):
            triples.append((sum(apart[side] for side in sides), triple))
    if not triples:
        raise UsageError(
            f"{folder}: a plane takes three models of which all pairs are measured, found {len(record['models'])} models."
        )
    a, b, c = max(triples, key=lambda each: each[0])[1]
    order = max(((a, b, c), (a, c, b), (b, c, a)), key=lambda each: apart[frozenset(each[:2])])
    by_hash = {model.content_hash: model for model in models}
    wanted = [record["models"][k] for k in order]
    if absent := [model["name"] for model in wanted if model["hash"] not in by_hash]:
        raise UsageError(
            f"{absent[0]} is one of the three most distant models of {folder}, and not among the {len(models)} models given. "
            "Name the models of the sweep: evaluate-models plane zoo/* --basins report --task mnli"
        )
    return [by_hash[model["hash"]] for model in wanted]


def measure_plane(
    models: Sequence[Checkpoint], data: TaskData, settings: AlignEntry, plan: PlanePlan, options: EvalOptions
) -> dict[str, Any]:
    """Return the plane record of three models, or of the checkpoints of a run.

    Raises:
        UsageError: the models are on one line, or two of them are the same.
        MismatchError: they do not fit one another.
        TaskError: the task does not fit them.
    """
    from evals.paths.surface.points import point_store
    from evals.results.measure import named, record_key, setting
    from evals.results.store import add_result

    begun, stored = time.monotonic(), stored_results(options)
    asked = asked_models(models, [data], options)
    decided = facts(asked, settings, options)
    key = record_key("plane", *decided, plan.points, plan.levels, plan.span if len(models) > 3 else None)
    matched = asked.sets[0]
    names = {"models": [named(model) for model in asked.models], "data": matched.rows.data, "split": matched.rows.split}
    record = reuse_result(stored, key, names, options.output)
    if record is not None and has_beside(options.output, record.get("arrays")):
        return record
    with (
        point_store(options.output, record_key("points", *decided), options.force) as store,
        prepared(asked, settings, options) as ready,
    ):
        measured = _measured(asked, ready, plan, store)
    record = setting("plane", key, matched.task, matched.rows) | names | measured
    record["notes"] = [*asked.notes, *ready.notes, *measured["notes"]]
    arrays = f"plane-{matched.task.name}-{key.rsplit('-', 1)[-1][:8]}.npz"
    record |= {"seconds": time.monotonic() - begun, "arrays": arrays if options.output else None}
    if ready.alignment:
        record["alignment"] = list(ready.alignment)
    if options.output:
        add_result(options.output, record)
        _write_arrays(record, options.output / arrays)
    return record


def _measured(asked: Asked, ready: Any, plan: PlanePlan, store: Any) -> dict[str, Any]:
    """Return the fields of the record that are of the plane itself."""
    from evals.clusters.sweep.names import short_names
    from evals.paths.surface.plane import lattice_around, measure_lattice
    from evals.paths.surface.points import measure_points, score_name
    from evals.paths.surface.weights import combine, gram

    products = gram(ready.weights)
    plane, axes, notes = _spanned(asked, products, plan)
    count = len(asked.models)
    single = [[float(k == m) for k in range(count)] for m in range(count)]
    marks = [*zip(short_names(asked.models), single, strict=True), ("average", [1 / count] * count)]
    places = [_without_rounding(plane.place(coefficients), products) for _, coefficients in marks]
    lattice = lattice_around([place[:2] for place in places], plan.points, plan.levels)

    def measure(points: list[Sequence[float]]) -> list[Value]:
        at = measure_points(points, lambda c: combine(ready.weights, c), ready.predictor, ready.encoded, store, "plane")
        return [values[0] for values in at]

    marked = measure([coefficients for _, coefficients in marks])
    loss = measure_lattice(
        lattice, lambda at: [v.loss for v in measure([plane.coefficients(*lattice.place(*ij)) for ij in at])]
    )
    cells = sorted(loss, key=lambda ij: (ij[1], ij[0]))
    values = measure([plane.coefficients(*lattice.place(*ij)) for ij in cells])
    return {
        "axes": axes,
        "score": score_name(values[0].scores),
        "marks": [
            {"name": name, "x": x, "y": y, "off": off, **_numbers(value)}
            for (name, _), (x, y, off), value in zip(marks, places, marked, strict=True)
        ],
        "origin": plane.origin.tolist(),
        "u": plane.u.tolist(),
        "v": plane.v.tolist(),
        "low": list(lattice.low),
        "high": list(lattice.high),
        "side": [(plan.points - 1) * lattice.step, lattice.step],
        "points": [[*ij, *lattice.place(*ij), *_numbers(v).values()] for ij, v in zip(cells, values, strict=True)],
        "notes": notes,
    }


def _without_rounding(place: tuple[float, float, float], products: np.ndarray) -> tuple[float, float, float]:
    """Return a place with 0 for what is rounding of float64, which sums over millions of products have."""
    least = 1e-9 * float(products.diagonal().max()) ** 0.5
    x, y, off = (0.0 if abs(value) < least else value for value in place)
    return x, y, off if off > 1e-6 * float(products.diagonal().max()) ** 0.5 else 0.0


def _spanned(asked: Asked, products: np.ndarray, plan: PlanePlan) -> tuple[Plane, str, list[str]]:
    """Return the plane, what spans it in words, and notes."""
    from evals.clusters.sweep.names import short_names
    from evals.paths.surface.plane import principal_plane, span

    count, names = len(asked.models), short_names(asked.models)
    if count == 3:
        points = [[float(k == m) for k in range(3)] for m in range(3)]
        return span(points, names, products), f"through {names[0]}, {names[1]} and {names[2]}", []
    if plan.span == "pca":
        plane, shares = principal_plane(products)
        axes = f"through the average of {count} checkpoints, along their first two principal components"
        return (
            plane,
            axes,
            [f"the two components have {shares[0]:.0%} and {shares[1]:.0%} of the checkpoints' variance"],
        )
    ends = [[1.0, *[0.0] * (count - 1)], [*[0.0] * (count - 1), 1.0], [1 / count] * count]
    ends_names = [names[0], names[-1], f"the average of {count} checkpoints"]
    axes = f"through {ends_names[0]}, {ends_names[1]} and {ends_names[2]}"
    note = (
        "the checkpoints between the first and the last are off the plane: they are drawn where they are nearest to it"
    )
    return span(ends, ends_names, products), axes, [note]


def _numbers(value: Value) -> dict[str, float | None]:
    """Return loss, standard error and the first score of a point."""
    return {"loss": value.loss, "standard_error": value.standard_error, "score": next(iter(value.scores.values()))}


def _write_arrays(record: dict[str, Any], path: Path) -> None:
    """Write the arrays of a plane as npz: a point each, and the marked models.

    Raises:
        OutputError: the folder is not writable.
    """
    import numpy as np

    from merge.disk.atomic import replacing

    columns = np.array([[np.nan if n is None else n for n in point] for point in record["points"]], dtype=np.float64)
    marks = [[mark[name] for name in ("x", "y", "off", "loss")] for mark in record["marks"]]
    try:
        with replacing(path) as temporary, temporary.open("wb") as file:
            np.savez(
                file,
                **dict(zip(("column", "row", "x", "y", "loss", "standard_error", "score"), columns.T, strict=True)),
                names=np.array([mark["name"] for mark in record["marks"]]),
                marks=np.array(marks, dtype=np.float64),
                origin=np.array(record["origin"]),
                u=np.array(record["u"]),
                v=np.array(record["v"]),
            )
    except OSError as error:
        raise OutputError(f"{path} cannot be written: {first_line(error)}") from error
