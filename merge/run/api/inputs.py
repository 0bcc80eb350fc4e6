"""What the functions of the Python API are given, as checkpoints, recipes and layer plans."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from merge.checkpoints.checkpoint import Checkpoint
from merge.checkpoints.live import listed_models
from merge.errors import UsageError
from merge.text.source import TextSource

if TYPE_CHECKING:
    from merge.checkpoints.live import ModelLike
    from merge.checkpoints.model_set import ModelSet
    from merge.layers.plans.plan import LayerPlan
    from merge.layers.strategies.choose import DropSettings
    from merge.layers.strategies.importance import LayerImportance
    from merge.recipe.recipe import Recipe
    from merge.text.memory import TextLike


def open_models(
    models: Sequence[ModelLike], workspace: Path, revisions: Sequence[str | None] | None = None
) -> tuple[Checkpoint, ...]:
    """Open every model; those in memory are written to the workspace."""
    from merge.checkpoints.live import open_model

    numbered = enumerate(zip(models, revisions or [None] * len(models), strict=True), 1)
    return tuple(open_model(model, workspace, number, revision) for number, (model, revision) in numbered)


def averaged_run(
    models: ModelLike | Sequence[ModelLike],
    method: str,
    weights: Sequence[float] | None,
    last: int | None,
    ema: float | None,
) -> tuple[tuple[str, ...], Sequence[float] | None]:
    """Return the checkpoints of a run that `last` and `ema` choose, and their weights.

    Raises:
        UsageError, CheckpointError: as `run_average`; a model is not a folder, or `ema` comes with other weights.
    """
    from merge.run.plan.training_run import run_average

    listed = [models] if isinstance(models, str | os.PathLike) else list(models)  # type: ignore[arg-type]
    folders = [os.fspath(each) for each in listed if isinstance(each, str | os.PathLike)]
    if len(folders) < len(listed):
        raise UsageError("last and ema read the checkpoint folders of a training run; models in memory have no steps.")
    if ema is not None and (weights is not None or method != "linear"):
        raise UsageError("ema sets the weights of a linear average; give it without weights and with method='linear'.")
    chosen = run_average(folders, last, ema)
    for note in chosen.notes:
        logging.getLogger(__name__).warning(note)
    return chosen.models, weights if chosen.weights is None else chosen.weights


def several_models(models: Any) -> list[ModelLike]:
    """Return the models of a merge as a list.

    Raises:
        UsageError: they are none.
    """
    example = "merge.merge(['a/', 'b/'], weights=[.3, .7], align='activations')"
    if isinstance(models, str | os.PathLike):
        raise UsageError(f"expected a list of models, found {os.fspath(models)!r}. Example: {example}")
    return listed_models(() if models is None else models, example)


def revisions_of(models: Sequence[ModelLike], revision: str | Sequence[str] | None) -> list[str | None]:
    """Return a revision for each model: the one that is given, or the one of each."""
    if isinstance(revision, str) or revision is None:
        return [revision] * len(models)
    if len(revision) != len(models):
        raise UsageError(f"{len(revision)} revisions for {len(models)} models. Give one for all, or one for each.")
    return list(revision)


def recipe_of(
    inputs: ModelSet, revisions: Sequence[str | None] = (), own_statistics: Sequence[Any] = (), **values: Any
) -> Recipe:
    """Return the record of a run over open models, which the recipe names by their sources."""
    from merge.recipe.recipe import make_recipe

    stated = zip(inputs.models, revisions or [None] * len(inputs.models), strict=True)
    own = [{"statistics": each} for each in own_statistics] or [{}] * len(inputs.models)
    record = {
        "models": [
            {"model": model.source, "revision": revision, **each}
            for (model, revision), each in zip(stated, own, strict=True)
        ],
        "base": None if inputs.base is None else {"model": inputs.base.source},
        **values,
    }
    return make_recipe({name: value for name, value in record.items() if value is not None})


def recipe_like(recipe: Recipe | str | os.PathLike[str]) -> Recipe:
    from merge.recipe.read import read_any
    from merge.recipe.recipe import Recipe

    return recipe if isinstance(recipe, Recipe) else read_any(Path(recipe))[0]


def with_output(recipe: Recipe, output: str | os.PathLike[str] | None, workspace: Path) -> Recipe:
    """Return a recipe that writes to an output folder, or to the workspace."""
    target = workspace / Path(recipe.output).name if output is None else Path(output)
    return recipe.model_copy(update={"output": str(target)})


def text_path(text: TextLike, workspace: Path) -> str:
    from merge.text.memory import text_file

    return text_file(text, workspace)


def statistics_entry(
    statistics: str | Mapping[str, Any] | Sequence[Any] | None, workspace: Path
) -> dict[str, Any] | None:
    """Return the recipe's `statistics` entry, for all models; text in memory is written to the workspace."""
    if not isinstance(statistics, Mapping):
        return None
    text = statistics.get("text")
    return {**statistics, **({} if text is None else {"text": text_path(text, workspace)})}


def own_statistics(
    statistics: str | Mapping[str, Any] | Sequence[Any] | None, models: int, workspace: Path
) -> list[Any]:
    """Return the `statistics` entry of each model, if they are given one by one; text in memory is written to the workspace.

    Raises:
        UsageError: they are not one for each model.
    """
    if statistics is None or isinstance(statistics, Mapping):
        return []
    if isinstance(statistics, str) or len(statistics) != models:
        count = "one text" if isinstance(statistics, str) else f"{len(statistics)} statistics"
        raise UsageError(
            f"{count} for {models} models. Give a list with one for each, or {{'text': ...}} for one text for all."
        )
    entries: list[Any] = []
    for number, each in enumerate(statistics):
        if isinstance(each, Mapping):
            entries.append(statistics_entry(each, workspace / str(number)))
        else:
            entries.append(None if each is None else text_path(each, workspace / str(number)))
    return entries


def layer_plan(
    checkpoints: Sequence[Checkpoint],
    choice: tuple[str | None, str | None, str | None],
    settings: DropSettings,
) -> tuple[LayerPlan, LayerImportance | None]:
    """Return the plan of an edit from what was given of layers (numbers, or a plan as text), drop and strategy."""
    from merge.layers.plans.numbers import parse_layers
    from merge.layers.plans.plan import LayerPlan
    from merge.layers.plans.text import model_letter, parse_plan
    from merge.layers.stacks import layer_count
    from merge.layers.strategies.choose import drop_plan

    layers, drop, strategy = choice
    if sum(one is not None for one in choice) != 1:
        raise UsageError("give one of layers ('0-5' or a plan), drop ('9-11') and strategy ('top', with count).")
    if (strategy is None) != (settings.count == 0):
        raise UsageError("strategy and count belong together. Example: merge.edit(model, strategy='top', count=3)")
    if layers is None and len(checkpoints) > 1:
        raise UsageError(
            "drop and strategy are for one model; of several, give the layers as a plan: 'A[0-3], B[4-5]'."
        )
    total, stack = layer_count(checkpoints[0].config, settings.stack), settings.stack
    if layers is not None:
        if len(checkpoints) > 1 or re.search("[A-Za-z]", layers):
            letters = [model_letter(k) for k in range(len(checkpoints))]
            totals = [layer_count(model.config, stack) for model in checkpoints]
            return parse_plan(layers, letters, stack, totals=totals), None
        return LayerPlan.keep(parse_layers(layers, total), stack), None
    if drop is not None:
        return LayerPlan.without(parse_layers(drop, total), total, stack), None
    return drop_plan(checkpoints[0], settings)


def drop_settings(
    checkpoint: Checkpoint,
    strategy: str | None,
    count: int | None,
    text: TextSource,
    stack: str,
    protect: str | None,
    score: str | Callable[[Any], float],
    beam: int | None,
) -> DropSettings:
    """Return how layers to drop are selected; a function scores each candidate as a live model."""
    from merge.layers.assembly import assemble
    from merge.layers.plans.numbers import parse_layers
    from merge.layers.strategies.choose import DropSettings
    from merge.layers.strategies.search import BEAM

    def of_plan(plan: LayerPlan) -> float:
        assert not isinstance(score, str)
        return float(score(assemble([checkpoint.encoder], plan).build()))

    labelled = not isinstance(score, str)
    return DropSettings(
        strategy or "",
        count or 0,
        text,
        stack,
        () if protect is None else parse_layers(protect),
        of_plan if labelled else None,
        "cosine" if labelled else str(score),
        beam or BEAM,
    )
