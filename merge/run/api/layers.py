"""The Python API of layers: `edit` and `compare_layers`, which run the code of `edit-layers`."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from merge.checkpoints.checkpoint import Checkpoint
from merge.checkpoints.live import listed_models
from merge.disk.workspace import Workspace
from merge.run.api.inputs import drop_settings, layer_plan, open_models, text_path
from merge.text.source import TextSource

if TYPE_CHECKING:
    from merge.checkpoints.live import ModelLike
    from merge.layers.compare import Comparison
    from merge.layers.strategies.choose import DropSettings
    from merge.run.results import EditedModel
    from merge.text.memory import TextLike

EXAMPLE = "merge.edit('a/', drop='9-11')"


def edit(
    model: ModelLike | Sequence[ModelLike],
    layers: str | None = None,
    *,
    drop: str | None = None,
    strategy: str | None = None,
    count: int | None = None,
    protect: str | None = None,
    score: str | Callable[[Any], float] = "cosine",
    beam: int | None = None,
    text: TextLike | None = None,
    text_column: Sequence[str] | None = None,
    samples: int = 512,
    seed: int = 0,
    stack: str = "",
    align: str | Mapping[str, Any] = "none",
    repair: str = "none",
    ridge: float | None = None,
    heal_steps: int = 0,
    heal_rate: float = 2e-4,
    output: str | os.PathLike[str] | None = None,
    force: bool = False,
) -> EditedModel:
    """Keep, reorder, repeat, splice, merge or drop layers, and repair what is missing: `edit-layers`.

    Args:
        model: a model, or several, which a plan names A, B, ...
        layers: the layers of the result in order, counted from 0, such as "0-5" or "0-7,4-11"; or a plan, such as
            "A[0-3], B[4,5]", "A0, mean(A1, A2), A3", "A[0-1], affine(A2->A5), A5".
        drop: the layers to leave out, such as "9-11,3".
        strategy: which layers to drop, with `count`: top, block-influence, greedy, ... (`edit-layers drop --help`).
        protect: layers that no strategy drops.
        score: of the candidates of a search: cosine, rsa or kl to the full model, or a function of a live model, larger is
            better; `beam` is how many candidates beam keeps.
        text: what is measured, fitted and healed on; `text_column`, `samples` and `seed` say how it is drawn.
        stack: text or vision, encoder or decoder, where a model has both.
        align: how several models are aligned to the first before their layers are taken, as in `merge.merge`.
        repair: none, seam, affine or auto; ridge: of its fits, chosen on held-out text when None.
        heal_steps, heal_rate: of distillation from the full model afterwards.
        output, force: as in `merge.merge`.
    Returns:
        The edited model: `.model` (loaded), `.report`, `.save(folder)`.
    Raises:
        UsageError: the layers do not exist, or not exactly one of layers, drop and strategy is given.
    Source: Sajjad et al. 2023, arXiv:2004.03844, section 3 (strategies).

    Example:
        >>> half = merge.edit("a/", "0")
        >>> half.model.config.num_hidden_layers
        1
        >>> spliced = merge.edit(["a/", "b/"], "A0, mean(A1, B1)")
        >>> spliced.model.config.num_hidden_layers
        2
    """
    from merge.layers.edit import edit_layers
    from merge.layers.repair.repair import RepairSettings
    from merge.recipe.recipe import make_align_entry
    from merge.run.results import EditedModel

    workspace = Workspace()
    folder = workspace.folder
    checkpoints = open_models(listed_models(model, EXAMPLE), folder)
    target = folder / "edited" if output is None else Path(output).expanduser()
    source = TextSource(
        None if text is None else text_path(text, folder / "text"),
        None if text_column is None else tuple(text_column),
        samples,
        seed,
    )
    settings = drop_settings(checkpoints[0], strategy, count, source, stack, protect, score, beam)
    plan, importance = layer_plan(checkpoints, (layers, drop, strategy), settings)
    entry = {"by": align} if isinstance(align, str) else dict(align)
    has_text = text is not None and entry.get("by") != "none"
    aligned = make_align_entry({"text": source.source, **entry} if has_text else entry)
    repaired = RepairSettings(repair, source, ridge, heal_steps, heal_rate)
    report = edit_layers(checkpoints, plan, target, force, importance=importance, repair=repaired, align=aligned)
    return EditedModel(target, workspace, report)


def compare_layers(
    model: ModelLike | Sequence[ModelLike],
    plans: Sequence[str] = (),
    *,
    strategies: Sequence[str] = (),
    counts: Sequence[int] = (),
    protect: str | None = None,
    score: str | Callable[[Any], float] = "cosine",
    text: TextLike | None = None,
    samples: int = 512,
    seed: int = 0,
    stack: str = "",
    repair: str = "none",
    ridge: float | None = None,
    heal_steps: int = 0,
) -> Comparison:
    """Compare plans and strategies: layers, parameters, speed, score, % of full and above the floor: `edit-layers compare`.

    Args:
        model: a model, or several, which plans name A, B, ...
        plans: as `edit` takes them.
        strategies, counts: every strategy for every number of layers to drop.
        score: cosine, rsa or kl to the full model, or a function of a live model, larger is better.
        repair, ridge, heal_steps: with a repair or healing, every plan is shown plain and with it.
        protect, text, samples, seed, stack: as in `edit`.
    Returns:
        The table: `.rows`, `.to_json()`, `.to_csv()`, `.plot()`; print it.
    Raises:
        UsageError: there is nothing to compare.

    Example:
        >>> sentences = ["the doctor saw a lawyer .", "a lawyer helped .", "the doctor helped ."]
        >>> table = merge.compare_layers("a/", ["A0"], text=sentences)
        >>> [row.label for row in table.rows]
        ['full model', 'A0', 'no layer']
    """
    from merge.layers.compare import compare_plans, entries_of
    from merge.layers.edit import opened_whole
    from merge.layers.plans.text import model_letter
    from merge.layers.repair.repair import RepairSettings

    workspace = Workspace()
    folder = workspace.folder
    checkpoints = opened_whole(open_models(listed_models(model, EXAMPLE), folder))
    source = TextSource(None if text is None else text_path(text, folder / "text"), None, samples, seed)
    names = [model_letter(number) for number in range(len(checkpoints))]
    chosen = [(label, layer_plan(checkpoints, (label, None, None), _drop(checkpoints[0], stack))[0]) for label in plans]
    for strategy in strategies:
        for count in counts:
            settings = drop_settings(checkpoints[0], strategy, count, source, stack, protect, score, None)
            chosen.append((f"{strategy} {count}", layer_plan(checkpoints[:1], (None, None, strategy), settings)[0]))
    entries = entries_of(chosen, RepairSettings(repair, source, ridge, heal_steps))
    scored = None if isinstance(score, str) else (lambda assembly: float(score(assembly.build())))
    measure = score if isinstance(score, str) else "cosine"
    return compare_plans(checkpoints, names, entries, source, measure, scored, "score", stack)


def _drop(checkpoint: Checkpoint, stack: str) -> DropSettings:
    """Return the settings of an edit that drops by no strategy."""
    return drop_settings(checkpoint, None, None, TextSource(), stack, None, "cosine", None)
