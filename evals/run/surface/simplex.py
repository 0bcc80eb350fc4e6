"""Grow simplexes of low loss from trained models, and average the predictions of points drawn from them."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from evals.run.line import TaskData
from evals.run.options import EvalOptions, has_beside, reuse_result, stored_results
from evals.run.surface.checkpoints import read_point, write_point
from evals.run.surface.ensembles import ensemble_rows
from evals.run.surface.learning import Learning, check_trainable, training_rows
from evals.run.surface.models import Asked, asked_models, facts, prepared
from merge.errors import UsageError

if TYPE_CHECKING:
    from torch import Tensor

    from evals.paths.surface.training import Material
    from evals.run.surface.models import Prepared
    from evals.tasks.label_names import MatchedTask
    from merge.checkpoints.checkpoint import Checkpoint

    Weights = Mapping[str, Tensor]

KIND_NAMES = ("espro", "spro")


@dataclass(frozen=True)
class SimplexPlan:
    """What simplexes are grown, and how they are measured.

    Attributes:
        kind: "espro" grows a simplex from each model, "spro" vertices that join all models.
        vertices: that are grown; for each model, or for all of them.
        samples: points drawn from each simplex, on which its loss is measured and whose predictions are averaged.
        tolerance: how far over the loss of its model a simplex counts as low.
        strength: lambda of the volume in the training loss.
    """

    kind: str = "espro"
    vertices: int = 2
    samples: int = 5
    tolerance: float = 0.05
    strength: float = 1e-3


@dataclass
class _Simplex:
    """One growing simplex: its vertices, and what was measured as it grew."""

    name: str
    vertices: list[Weights] = field(repr=False)
    grown: list[dict[str, Any]] = field(default_factory=list)


def measure_simplex(
    models: Sequence[Checkpoint],
    against: Sequence[Checkpoint],
    data: Sequence[TaskData],
    plan: SimplexPlan,
    learning: Learning,
    options: EvalOptions,
) -> dict[str, Any]:
    """Return the simplex record of one model or several.

    With an output the vertices are written as checkpoints, and an interrupted training goes on where it stopped.

    Args:
        against: further models of the deep ensemble that the simplexes are compared with.
        data: the data sets; points are trained for the task of the first.
    Raises:
        UsageError: there are no rows to train on, or an option does not fit.
        MismatchError: the models do not fit one another.
        TaskError: a task does not fit them, or asks for a number.
    """
    from evals.results.measure import named, record_key, setting
    from evals.results.store import add_result
    from merge.recipe.recipe import make_align_entry

    begun, stored = time.monotonic(), stored_results(options)
    asked = asked_models([*models, *against], data, options)
    if any(matched.task.regression for matched in asked.sets):
        raise UsageError("simplexes average the probabilities of classes; name tasks with classes.")
    if plan.kind == "spro" and len(models) < 2:
        raise UsageError("--kind spro joins several models; of one model grow a simplex with --kind espro.")
    material, notes = training_rows(asked, data[0].task, learning, options)
    settings = make_align_entry({"by": "none"})
    decided = [facts(asked, settings, options, at) for at in range(len(data))]
    trained = [*learning.facts(material, options.seed), plan.kind, plan.strength, len(models)]
    key = record_key("simplex", *decided, *trained, plan.vertices, plan.samples, plan.tolerance)
    matched = asked.sets[0]
    names = {"models": [named(model) for model in asked.models], "data": matched.rows.data, "split": matched.rows.split}
    record = reuse_result(stored, key, names, options.output)
    if record is not None and has_beside(options.output, record.get("checkpoints")):
        return record
    made = record_key("vertices", *decided[0][2:], matched.task.name, *trained)
    folder = f"simplex-{matched.task.name}-{made.rsplit('-', 1)[-1][:8]}"
    record = setting("simplex", key, matched.task, matched.rows) | names
    record |= {
        "train": {
            "data": material.rows.data,
            "rows": len(material.rows),
            "steps": learning.steps,
            "rate": learning.rate,
        },
        "plan": {"kind": plan.kind, "samples": plan.samples, "tolerance": plan.tolerance, "strength": plan.strength},
        "checkpoints": folder if options.output else None,
    }
    with prepared(asked, settings, options) as ready:
        check_trainable(ready)
        grower = _Grower(asked, ready, material, plan, learning, options, made, folder, len(models))
        simplexes = grower.run()
        ensembles = ensemble_rows(asked, ready, [each.vertices for each in simplexes], plan.samples, options.seed)
    record |= {
        "simplexes": [_summary(each, plan) for each in simplexes],
        "ensembles": ensembles,
        "training_seconds": grower.seconds,
        "notes": list(dict.fromkeys([*asked.notes, *notes, *ready.notes])),
        "seconds": time.monotonic() - begun,
    }
    if options.output:
        add_result(options.output, record)
    return record


def _summary(simplex: _Simplex, plan: SimplexPlan) -> dict[str, Any]:
    from evals.paths.surface.simplex import low_loss_dimension

    bound = simplex.grown[0]["largest"] + plan.tolerance
    dimension = low_loss_dimension([each["largest"] for each in simplex.grown], bound)
    return {"name": simplex.name, "bound": bound, "low_loss_dimension": dimension, "dimensions": simplex.grown}


@dataclass
class _Grower:
    """Grows the simplexes of one record."""

    asked: Asked
    ready: Prepared
    material: MatchedTask
    plan: SimplexPlan
    learning: Learning
    options: EvalOptions
    key: str
    checkpoints: str
    count: int
    seconds: float = 0.0

    def run(self) -> list[_Simplex]:
        """Return the grown simplexes."""
        from evals.clusters.sweep.names import short_names
        from evals.paths.surface.training import training_material

        cache = not self.options.no_cache
        texts = training_material(self.material, self.ready.checkpoint, cache, self.options.max_length)
        names = short_names(self.asked.models)[: self.count]
        simplexes = [_Simplex(name, [self.ready.weights[k]]) for k, name in enumerate(names)]
        for simplex in simplexes:
            self._measure(simplex)
        for number in range(1, self.plan.vertices + 1):
            for name, group in self._groups(simplexes):
                vertex = self._vertex(f"{name}-vertex{number}", group, texts, number)
                for simplex in group:
                    simplex.vertices.append(vertex)
                    self._measure(simplex)
        return simplexes

    def _groups(self, simplexes: list[_Simplex]) -> Iterator[tuple[str, list[_Simplex]]]:
        """Yield the simplexes that a new vertex belongs to, with a name for it."""
        if self.plan.kind == "spro":
            yield "shared", simplexes
            return
        for simplex in simplexes:
            yield simplex.name.replace("/", "-"), [simplex]

    def _vertex(self, name: str, group: list[_Simplex], texts: Material, number: int) -> Weights:
        """Return a new vertex: trained, or read where an earlier run has written it."""
        from evals.paths.surface.points import FOLDER
        from evals.paths.surface.simplex import VolumePenalty, drawn_weights
        from evals.paths.surface.training import Training, train_points
        from evals.paths.surface.weights import combine
        from evals.results.measure import record_key

        output, key = self.options.output, record_key("vertex", self.key, name)
        folder = None if output is None else output / self.checkpoints / name
        if folder is not None and not self.options.force and (found := read_point(folder, key)) is not None:
            self.seconds += found[1]["cpu_seconds"]
            return found[0]
        fixed: list[Weights] = list({id(v): v for simplex in group for v in simplex.vertices}.values())
        places = [[next(k for k, v in enumerate(fixed) if v is own) for own in simplex.vertices] for simplex in group]

        def draw(numbers: random.Random) -> list[float]:
            own = numbers.choice(places)
            drawn = drawn_weights(len(own) + 1, numbers)
            coefficients = [0.0] * (len(fixed) + 1)
            for place, weight in zip([*own, len(fixed)], drawn, strict=True):
                coefficients[place] = weight
            return coefficients

        kept = None if output is None else output / FOLDER / f"{key}.safetensors"
        if kept is not None and self.options.force:
            kept.unlink(missing_ok=True)
        begun, learning = time.process_time(), self.learning
        squares = tuple(_squares(simplex.vertices) for simplex in group)
        trained = train_points(
            self.ready.predictor.model,
            fixed,
            [combine(fixed, [1 / len(fixed)] * len(fixed))],
            draw,
            texts,
            Training(learning.steps, learning.rate, learning.rows_a_step, self.options.seed + number),
            kept,
            VolumePenalty(tuple(tuple(each.vertices) for each in group), squares, self.plan.strength),
            f"growing {name}",
        )
        seconds = time.process_time() - begun
        self.seconds += seconds
        if folder is not None:
            write_point(folder, self.ready.checkpoint, trained.points[0], {"key": key, "cpu_seconds": seconds})
        if kept is not None:
            kept.unlink(missing_ok=True)
        return trained.points[0]

    def _measure(self, simplex: _Simplex) -> None:
        """Measure the losses of points of a simplex as it is now: vertices, centre and drawn points."""
        from evals.paths.surface.points import PointStore, measure_points
        from evals.paths.surface.simplex import regular_share, volume
        from evals.paths.surface.weights import combine

        count = len(simplex.vertices)
        corners = [[float(k == m) for k in range(count)] for m in range(count)]
        inside = [] if count == 1 else [[1 / count] * count, *drawn_points(count, self.plan.samples, self.options.seed)]
        values = measure_points(
            [*corners, *inside],
            lambda at: combine(simplex.vertices, at),
            self.ready.predictor,
            self.ready.encoded[:1],
            PointStore(None),
            f"simplex of {simplex.name}, dimension {count - 1}",
        )
        losses = [value[0].loss for value in values]
        squares = _squares(simplex.vertices)
        simplex.grown.append(
            {
                "dimension": count - 1,
                "volume": volume(squares),
                "regular_share": regular_share(squares),
                "side": float(squares.max().sqrt()),
                "vertex_loss": losses[count - 1],
                "centre_loss": losses[count] if inside else losses[0],
                "drawn": losses[count + 1 :],
                "largest": max(losses),
            }
        )


def drawn_points(count: int, samples: int, seed: int) -> list[list[float]]:
    """Return points drawn evenly from a simplex, the same ones for a seed."""
    from evals.paths.surface.simplex import drawn_weights

    numbers = random.Random(f"points-{seed}-{count}")
    return [drawn_weights(count, numbers) for _ in range(samples)]


def _squares(vertices: Sequence[Weights]) -> Tensor:
    import torch

    from evals.paths.surface.weights import distances, gram

    return torch.from_numpy(distances(gram(vertices)) ** 2)
