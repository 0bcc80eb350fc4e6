"""The schedule of a merge: the method, its settings and the source tensors of each tensor of the result."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any

from merge.checkpoints.checkpoint import Checkpoint
from merge.errors import MismatchError, RecipeError, some
from merge.layers.plans.numbers import parse_layers
from merge.layers.plans.plan import LayerPlan, PlannedTensors, plan_notes, planned_tensors
from merge.layers.stacks import before_layers, layer_count, layer_of
from merge.methods import Method, make_method
from merge.methods.label_average import LabelAverage
from merge.methods.linear import Linear
from merge.methods.statistics.orientation import transposed_weights
from merge.recipe.entries import Override, Slice
from merge.recipe.gradient import AFTER, BEFORE, positions, value_at
from merge.recipe.recipe import Recipe, merged_settings, model_weights
from merge.run.engine.job import Job
from merge.run.plan.heads import HeadPlan, Output


@dataclass(frozen=True)
class Schedule:
    """The jobs of a merge.

    Attributes:
        jobs: one for each tensor of the result, in the reference's order.
        plan: the layers of the result, None where they are the reference's.
        notes: the tensors that were left out or merged by another rule.
    """

    jobs: tuple[Job, ...]
    plan: LayerPlan | None
    notes: tuple[str, ...] = ()

    @property
    def arithmetic(self) -> bool:
        """Whether every tensor's method takes numpy arrays, and so needs no torch."""
        return all(method.takes_numpy for method in {job.method for job in self.jobs})


def make_schedule(recipe: Recipe, heads: HeadPlan, output: int = 0) -> Schedule:
    """Return the schedule of one output, from headers alone.

    Args:
        output: its number in the plan of the heads; all policies but keep-all have one output.

    Raises:
        RecipeError: an override matches no tensor.
        UsageError: layers that do not exist, a gradient over an architecture whose layers are not known.
        MismatchError: the base lacks tensors and the recipe has no rule for them, or layers do not fit together.
    """
    models, made = heads.given.models, heads.outputs[output]
    plan = _layer_plan(recipe, models)
    planned = (
        PlannedTensors(made.sources, ())
        if plan is None
        else planned_tensors([m.config for m in models], [m.shapes for m in models], plan)
    )
    base = (heads.given if heads.whole else heads.merged).base
    maker = _Maker(recipe, models, base, plan, made)
    _check_overrides(recipe, [models[0].written_name(name) for name in planned.sources if name not in made.copied])
    jobs = tuple(maker.job(name, sources) for name, sources in planned.sources.items())
    if maker.lacking and recipe.base_lacks is None:
        raise MismatchError(
            f"base {base.source if base else ''} lacks {some(maker.lacking)}. Say what becomes of them: "
            "--base-lacks average, or reference."
        )
    notes = (
        [f"not in the base, by base_lacks: {recipe.base_lacks}: {', '.join(maker.lacking)}"] if maker.lacking else []
    )
    if plan is not None:
        notes += plan_notes([m.config for m in models], plan)
        notes += _left_out(models, planned.left_out)
    return Schedule(jobs, plan, tuple(notes))


def _left_out(models: Sequence[Checkpoint], left_out: Sequence[tuple[int, str]]) -> list[str]:
    """Return a note for each model that has tensors in no slice of the result."""
    names: dict[int, list[str]] = {}
    for model, name in left_out:
        names.setdefault(model, []).append(name)
    return [
        f"{models[model].source}: {len(unused)} tensors are in no slice of the result, {unused[0]} among them"
        for model, unused in names.items()
    ]


def _layer_plan(recipe: Recipe, models: Sequence[Checkpoint]) -> LayerPlan | None:
    if recipe.slices is None:
        return None
    totals = [layer_count(model.config) for model in models]
    numbers = {entry.model: k for k, entry in enumerate(recipe.models)}
    slices = []
    for part in recipe.slices:
        if part.sources is None:
            slices.append([(k, parse_layers(str(part.layers), totals[k])) for k in range(len(models))])
        else:
            named = [(numbers[source.model], source.layers) for source in part.sources]
            slices.append([(k, parse_layers(layers, totals[k])) for k, layers in named])
    return LayerPlan.from_slices(slices)


def _check_overrides(recipe: Recipe, names: Sequence[str]) -> None:
    inner = [override for part in recipe.slices or () for override in part.overrides]
    for override in (*recipe.overrides, *inner):
        for pattern in override.tensors:
            if not any(fnmatchcase(name, pattern) for name in names):
                close = difflib.get_close_matches(pattern, names, n=1, cutoff=0.0)
                raise RecipeError(
                    f"overrides: no tensor is named {pattern!r}. The nearest is {close[0]!r}; "
                    "patterns match whole names: *attention*."
                )


@dataclass
class _Maker:
    """Makes jobs; each combination of method and settings is made once and shared."""

    recipe: Recipe
    models: Sequence[Checkpoint]
    base: Checkpoint | None
    plan: LayerPlan | None
    output: Output
    lacking: list[str] = field(default_factory=list)
    _made: dict[str, Method] = field(default_factory=dict)
    _transposed: dict[int, frozenset[str]] = field(default_factory=dict)

    def job(self, name: str, sources: tuple[tuple[int, str], ...]) -> Job:
        if name in self.output.copied:
            return Job(name, self._make("linear", {}, [None]), sources)
        if name in self.output.labelled:
            return Job(name, self._by_label(name, sources), sources)
        method = self._method(name, [model for model, _ in sources])
        base = None
        if self.base is not None and method.base != "none":
            base = self._base_name(sources)
            if base not in self.base.tensors:
                self.lacking.append(name)
                base, method = None, self._instead(len(sources))
        return Job(name, method, sources, base, self._is_turned(method, *sources[0]))

    def _is_turned(self, method: Method, model: int, name: str) -> bool:
        """Return whether a method that tells rows from columns is to have this tensor turned; masks follow the rows too."""
        checkpoint = self.models[model]
        rank = len(checkpoint.tensors[name].shape)
        if rank != 2 or method.as_stored or (method.elementwise and not method.random):
            return False
        if model not in self._transposed:
            self._transposed[model] = transposed_weights(checkpoint)
        return name in self._transposed[model]

    def _by_label(self, name: str, sources: tuple[tuple[int, str], ...]) -> Method:
        """Return the average by class, with the weights of linear; other methods have no weights of an average."""
        method = self._method(name, [model for model, _ in sources])
        return LabelAverage(self.output.rows, method.weights if isinstance(method, Linear) else None)

    def _base_name(self, sources: tuple[tuple[int, str], ...]) -> str:
        names = {name for _, name in sources}
        if len(names) > 1:
            raise MismatchError(
                f"slices merge {' with '.join(sorted(names))}: which layer of the base their task vectors start from is "
                "not known. Merge equal layers, or use a method without a base."
            )
        return names.pop()

    def _instead(self, count: int) -> Method:
        """Return the method for tensors that the base lacks."""
        weights = (1.0,) + (0.0,) * (count - 1) if self.recipe.base_lacks == "reference" else None
        return Linear(weights=weights)

    def _method(self, name: str, models: Sequence[int]) -> Method:
        """Return the method for one tensor: the recipe's, changed by its slice and by the overrides that match it."""
        recipe, entries = self.recipe, [self.recipe.models[model] for model in models]
        slices, written = self._slice_of(name), self.models[0].written_name(name)
        overrides = [*(o for part in slices for o in part.overrides), *recipe.overrides]
        parts: list[Slice | Override] = [*slices]
        parts += [o for o in overrides if any(fnmatchcase(written, pattern) for pattern in o.tensors)]
        chosen, settings = recipe.method, dict(recipe.settings)
        weights = model_weights(entries)
        for part in parts:
            current = recipe.model_copy(update={"method": chosen, "settings": settings})
            chosen, settings = merged_settings(current, part)
            weights = model_weights(entries, part) if "weights" in part.settings else weights
        varies = len(positions([list(settings.values()), weights])) > 1
        position = self._position(name) if varies else 0.0
        return self._make(chosen, value_of(settings, position), [value_at(w, position) for w in weights])

    def _make(self, method: str, settings: Mapping[str, Any], weights: Sequence[float | None]) -> Method:
        key = repr((method, sorted(settings.items()), list(weights)))
        if key not in self._made:
            self._made[key] = make_method(method, settings, weights)
        return self._made[key]

    def _slice_of(self, name: str) -> Sequence[Slice]:
        """Return the slice of an output tensor; tensors before the layers are in the first, tensors after them in the last."""
        if self.recipe.slices is None or self.plan is None:
            return ()
        layer = self._layer(name)
        if layer is None:
            early = before_layers(name, self.models[0].model_type)
            return (self.recipe.slices[0 if early else -1],)
        for part in self.recipe.slices:
            length = len(parse_layers(part.layers if part.sources is None else part.sources[0].layers))  # type: ignore[arg-type]
            if layer < length:
                return (part,)
            layer -= length
        return ()

    def _layer(self, name: str) -> int | None:
        stack_and_layer = layer_of(name, self.models[0].model_type)
        return None if stack_and_layer is None else stack_and_layer[1]

    def _position(self, name: str) -> float:
        """Return the position of a tensor between the first layer (0) and the last (1), or BEFORE or AFTER them."""
        layer = self._layer(name)
        if layer is None:
            return BEFORE if before_layers(name, self.models[0].model_type) else AFTER
        count = (
            len(self.plan.layers)
            if self.plan is not None
            else 1 + max(number for number in map(self._layer, self.models[0].tensors) if number is not None)
        )
        return layer / max(count - 1, 1)


def value_of(settings: Mapping[str, Any], position: float) -> dict[str, Any]:
    """Return every setting at a position between the first layer and the last."""
    return {key: value_at(value, position) for key, value in settings.items()}
