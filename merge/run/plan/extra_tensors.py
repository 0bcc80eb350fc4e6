"""Extra tensors: those of a file that its class does not have, such as the pooler beside a masked language model.

transformers ignores them when it loads the class, but another class may read them (BertModel the pooler of bert-base-uncased).
"""

from __future__ import annotations

from collections.abc import Sequence, Set

from merge.checkpoints.checkpoint import Checkpoint
from merge.checkpoints.model_set import ModelSet
from merge.checkpoints.names.canonical import expected_names
from merge.checkpoints.structure import structure_of
from merge.checkpoints.weights.read import StoredTensor
from merge.errors import UsageError, some
from merge.methods import METHODS, WEIGHED
from merge.recipe.entries import Override, Slice
from merge.recipe.recipe import Recipe, merged_settings

WITHOUT_HEADS = ("drop", "reference")  # policies of heads by which base models are merged alone


def settle_extra_tensors(recipe: Recipe, given: ModelSet) -> tuple[ModelSet, tuple[str, ...]]:
    """Return the models with the extra tensors that are merged, and notes on these and on those that are left out.

    By default those that all models have alike are merged where nothing else has to know them: no alignment, no statistics.
    The base keeps those that a model has, of which task vectors may be taken.

    Raises:
        UsageError: the recipe keeps extra tensors, and an alignment would move units that they may read.
    """
    models = given.models
    rule, extra = recipe.extra_tensors, [model.extra for model in models]
    of_base = [_of_base_class(model, recipe.heads, model.extra.keys()) for model in models]
    if rule == "keep" and recipe.align.moves and any(extra):
        first = next(model for model in models if model.extra)
        raise UsageError(
            f"extra_tensors: keep cannot be combined with an alignment: {some(list(first.extra))} of {first.source} are not "
            f"tensors of {first.architecture}, so which of their axes move with it is not known. Use --extra-tensors drop."
        )
    if rule == "keep":
        kept = tuple(model.with_extra() for model in models)
    else:
        shared = _shared(recipe, given) if rule is None and not _is_measured(recipe) else frozenset()
        kept = tuple(model.with_extra(shared | names) for model, names in zip(models, of_base, strict=True))
    settled = [
        (model, frozenset(model.extra) - names, whole.tensors.keys())
        for model, whole, names in zip(models, kept, of_base, strict=True)
    ]
    # Where base models are merged alone, what is carried goes with the head, whose own notes say what becomes of it.
    carried = [] if recipe.heads in WITHOUT_HEADS else _notes(settled, carried=True)
    notes = [*carried, *_notes(settled, carried=False)]
    base = None if given.base is None else given.base.with_extra(frozenset().union(*(m.tensors for m in kept)))
    return ModelSet(kept, base), tuple(notes)


def _is_measured(recipe: Recipe) -> bool:
    """Return whether models are run, with the tensors of their class alone."""
    parts: tuple[Override | Slice, ...] = (*recipe.overrides, *(recipe.slices or ()))
    used = {recipe.method, *(merged_settings(recipe, part)[0] for part in parts)}
    return recipe.align.moves or any(METHODS[name].statistics is not None or name in WEIGHED for name in used)


def droppable_tensors(recipe: Recipe, models: Sequence[Checkpoint]) -> frozenset[str]:
    """Return the extra tensors among those that are merged which `extra_tensors: drop` would leave out."""
    names: frozenset[str] = frozenset()
    for model in models:
        carried = model.encoder.tensors.keys() - expected_names(model.structure)
        names |= carried - _of_base_class(model, recipe.heads, carried)
    return names


def _of_base_class(model: Checkpoint, heads: str | None, names: Set[str]) -> frozenset[str]:
    """Return those of a model's extra tensors that the base model has, where base models are merged alone: its pooler."""
    if heads not in WITHOUT_HEADS or not names:
        return frozenset()
    structure = structure_of({**model.config, "architectures": [model.structure.base_architecture]})
    return frozenset(expected_names(structure) & names)


def _shared(recipe: Recipe, given: ModelSet) -> frozenset[str]:
    """Return the extra tensors that all models have alike, and the base in no other shape."""
    first, *others = given.models
    base = {} if given.base is None else {**given.base.extra, **given.base.tensors}

    def alike(tensor: StoredTensor, other: StoredTensor) -> bool:
        cast = recipe.out_dtype is not None and not (tensor.is_integer or other.is_integer)
        return tensor.shape == other.shape and (cast or tensor.result_dtype == other.result_dtype)

    return frozenset(
        name
        for name, tensor in first.extra.items()
        if all(name in m.extra and alike(tensor, m.extra[name]) for m in others)
        and (name not in base or base[name].shape == tensor.shape)
    )


def _notes(settled: Sequence[tuple[Checkpoint, Set[str], Set[str]]], carried: bool) -> list[str]:
    """Return a note for each set of tensors that are carried, or left out, and the models that hold it.

    Args:
        settled: for each model its extra tensors, and the names of all tensors that are merged.
    """
    holders: dict[tuple[str, tuple[str, ...]], list[str]] = {}
    for model, extra, merged in settled:
        names = tuple(name for name in model.extra if name in extra and (name in merged) is carried)
        if names:
            holders.setdefault((model.architecture, names), []).append(model.source)
    outcome = (
        "merged along with the rest (--extra-tensors drop leaves them out)"
        if carried
        else "left out, as transformers does"
    )
    return [
        f"{', '.join(dict.fromkeys(sources))}: {some(list(names))} {'is no tensor' if len(names) == 1 else 'are no tensors'} "
        f"of {architecture}: {outcome}"
        for (architecture, names), sources in holders.items()
    ]
