"""The Python API: one function for each command, which runs the same code.

Models are folders, Hub ids, open checkpoints (`merge.load`) or live models of transformers and sentence-transformers,
mixed as they come. Models in memory are never changed, and nothing is written but to a workspace that goes away with
the result, unless `output` names a folder.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from merge.checkpoints.checkpoint import Checkpoint
from merge.checkpoints.open import open_checkpoint
from merge.disk.workspace import Workspace
from merge.errors import UsageError
from merge.run.api.inputs import (
    averaged_run,
    open_models,
    own_statistics,
    recipe_like,
    recipe_of,
    revisions_of,
    several_models,
    statistics_entry,
    text_path,
    with_output,
)

if TYPE_CHECKING:
    from merge.checkpoints.live import ModelLike
    from merge.recipe.recipe import Recipe
    from merge.run.results import AlignedModel, MergedModel, WrittenModel
    from merge.text.memory import TextLike

ALIGNED_FILE = "transform.safetensors"


def load(model: str | os.PathLike[str], revision: str | None = None) -> Checkpoint:
    """Open a checkpoint folder or Hub id by its headers; weights are read when they are asked for.

    Args:
        revision: branch, tag or commit of a Hub id.
    Returns:
        The checkpoint: its config, names, shapes and, by `tensor(name)`, memory-mapped weights.
    Raises:
        CheckpointError: the path is missing, is no checkpoint, or holds something that cannot be read.
        HubError: a Hub id that cannot be fetched.

    Example:
        >>> checkpoint = merge.load("a/")
        >>> checkpoint.architecture
        'BertForSequenceClassification'
        >>> checkpoint.shapes["bert.pooler.dense.weight"]
        (24, 24)
    """
    return open_checkpoint(os.fspath(model), revision)


def merge(
    models: Sequence[ModelLike] | None = None,
    *,
    method: str = "linear",
    weights: Sequence[float] | None = None,
    last: int | None = None,
    ema: float | None = None,
    base: ModelLike | None = None,
    align: str | Mapping[str, Any] = "none",
    text: TextLike | None = None,
    heads: str | None = None,
    config: str | None = None,
    tokenizer: str | None = None,
    base_lacks: str | None = None,
    extra_tensors: str | None = None,
    statistics: str | Mapping[str, Any] | Sequence[Any] | None = None,
    dtype: str | None = None,
    out_dtype: str | None = None,
    seed: int = 0,
    revision: str | Sequence[str] | None = None,
    recipe: Recipe | str | os.PathLike[str] | None = None,
    output: str | os.PathLike[str] | None = None,
    force: bool = False,
    threads: int | None = None,
    device: str = "cpu",
    **settings: Any,
) -> MergedModel:
    """Align models to the first, prove that each alignment keeps its model's function, and merge them: `merge-models`.

    Args:
        models: two or more (one for `passthrough`); the first is the reference.
        method: how to merge: linear, slerp, task_arithmetic, ties, ... (`merge-models --help` lists them).
        weights: one a model.
        last, ema: average the last so many checkpoints of a training run, or with the weights of a moving average of that
            decay; models are then checkpoint-* folders, or the run's.
        base: the model that the others were fine-tuned from, for methods of task vectors.
        align: none, auto, weights, activations, ...; or the recipe's `align` entry, as {"by": "weights", "restarts": 3}.
        text: calibration text of the alignment: a file, a Hub data set id, sentences or pairs of sentences.
        heads: average, reference, drop or keep-all; labels must be equal when None.
        config: reference keeps the first model's settings (pooling, prompts, ...); all must agree when None.
        tokenizer: whose vocabulary the result has: reference, base, union or a model; all must agree when None.
        base_lacks, extra_tensors: average or reference, for tensors that the base lacks; keep or drop, for a file's others.
        statistics: a list with each model's text or statistics file, or for all {"text": ..., "samples": 512}.
        dtype, out_dtype, seed, revision: of the arithmetic, what is written, everything random, Hub ids (one or one each).
        recipe: a recipe or its file, in place of all of the above.
        output, force: a folder to write, as `-o` does, and whether to replace it if it is a checkpoint; else a workspace.
        threads, device: how it is carried out; neither changes the method.
        settings: of the method, such as density=0.2.
    Returns:
        The merged model: `.model` (loaded), `.report`, `.save(folder)`, `.push(repo_id)`, `.plot()`.
    Raises:
        MergeError: a child of it for every fault of input or output; nothing is left half written.

    Example:
        >>> merged = merge.merge([model, "b/"], method="slerp", align="weights", lam=0.3)
        >>> type(merged.model).__name__
        'BertForSequenceClassification'
        >>> merged.save("merged/").name
        'merged'
    """
    from merge.checkpoints.live import open_model
    from merge.checkpoints.model_set import ModelSet
    from merge.run.options import RunOptions
    from merge.run.results import MergedModel
    from merge.run.run import run

    workspace = Workspace()
    folder = workspace.folder
    if recipe is not None:
        if models is not None or settings:
            raise UsageError("recipe holds the whole run; give it alone, or models and settings without it.")
        record, inputs = with_output(recipe_like(recipe), output, folder), None
    else:
        if last is not None or ema is not None:
            models, weights = averaged_run(models or (), method, weights, last, ema)
        models = several_models(models)
        revisions = revisions_of(models, revision)
        opened_base = None if base is None else open_model(base, folder / "base", is_base=True)
        inputs = ModelSet(open_models(models, folder, revisions), opened_base)
        entry = {"by": align} if isinstance(align, str) else dict(align)
        record = recipe_of(
            inputs,
            revisions,
            method=method,
            align=entry if text is None else {**entry, "text": text_path(text, folder / "align")},
            settings=settings if weights is None else {**settings, "weights": list(weights)},
            statistics=statistics_entry(statistics, folder / "statistics"),
            own_statistics=own_statistics(statistics, len(inputs.models), folder / "statistics"),
            heads=heads,
            config=config,
            tokenizer=tokenizer,
            base_lacks=base_lacks,
            extra_tensors=extra_tensors,
            dtype=dtype,
            out_dtype=out_dtype,
            seed=seed,
            output=str(folder / "merged" if output is None else output),
        )
    report = run(record, force, options=RunOptions(threads, device), models=inputs)
    return MergedModel(Path(record.output).expanduser(), workspace, report)


def align(
    model: ModelLike,
    *,
    to: ModelLike,
    by: str = "auto",
    text: TextLike | None = None,
    heads: str | None = None,
    seed: int = 0,
    device: str = "cpu",
    **settings: Any,
) -> AlignedModel:
    """Put the units of a model into the order of another's, and prove that its function is unchanged.

    Args:
        model: the model to align.
        to: the reference, of the same architecture and sizes.
        by: auto, weights, activations, ...
        text: calibration text: a file, a Hub data set id, sentences or pairs of sentences.
        heads: reference or drop where the two models have other heads.
        seed: of everything random.
        device: where models run, such as cuda.
        settings: further keys of the recipe's `align` entry, such as restarts=3 or axes=["ffn"].
    Returns:
        The aligned model: `.model` (loaded), `.transform`, `.proof`, `.quality`, `.save(folder)`.
    Raises:
        MismatchError: the two models do not fit one another.
        AlignmentError: no alignment was found, or the aligned model is not the model it was.
    Source: Ainsworth et al. 2023, arXiv:2209.04836; Entezari et al. 2022, arXiv:2110.06296.

    Example:
        >>> aligned = merge.align("b/", to="a/", by="weights")
        >>> aligned.proof.error < aligned.proof.bound
        True
        >>> sorted(aligned.transform.permutation.indices)[:3]
        ['ffn0', 'ffn1', 'heads0']
    """
    from merge.alignment.applied import keeps_canonical
    from merge.checkpoints.model_set import ModelSet
    from merge.run.options import RunOptions
    from merge.run.results import AlignedModel
    from merge.run.run import run
    from merge.symmetry.transform_files import save_transform

    if settings.get("both"):
        raise UsageError("both moves the reference too; align moves one model. Use merge.merge(..., align={...}).")
    if by == "none":
        raise UsageError("by='none' aligns nothing. Choose auto, weights, activations, ...")
    workspace = Workspace()
    folder = workspace.folder
    reference, moving = open_models([to, model], folder)
    entry = (
        {"by": by, **settings} if text is None else {"by": by, "text": text_path(text, folder / "align"), **settings}
    )
    inputs, options = ModelSet((reference, moving), None), RunOptions(device=device)
    record = recipe_of(inputs, align=entry, heads=heads, seed=seed, output=str(folder / "unused"))
    aligned = run(record, dry_run=True, options=options, models=inputs).rebased.aligned[0]
    file = folder / ALIGNED_FILE
    save_transform(aligned.spec, aligned.transform, file, canonical=keeps_canonical(record.align))
    alone = ModelSet((moving,), None)
    entry, output = {"apply": [str(file)]}, folder / "aligned"
    run(recipe_of(alone, method="passthrough", align=entry, output=str(output)), options=options, models=alone)
    return AlignedModel(output, workspace, aligned)


def push(
    model: WrittenModel | str | os.PathLike[str],
    repo_id: str,
    *,
    private: bool | None = None,
    revision: str | None = None,
) -> str:
    """Push a model folder, or the result of another function, to the Hub in one commit: `merge-models push`.

    Args:
        model: a folder that holds config.json, README.md and safetensors, or a result of merge, align or edit.
        repo_id: `org/name`.
        private: the visibility of a new repository; the account's default when None.
        revision: the branch to commit to; the default branch when None.
    Returns:
        The URL of the commit.
    Raises:
        HubError: the folder cannot be pushed, the Hub refused, or it cannot be reached.

    Example:
        >>> merge.push("merged/", "me/my-merge", private=True)  # doctest: +SKIP
        'https://huggingface.co/me/my-merge/commit/...'
    """
    from merge.publish.push import plan_push, push
    from merge.run.results import WrittenModel

    folder = model.folder if isinstance(model, WrittenModel) else Path(model).expanduser()
    message = "Upload merge made with merge-models"
    return push(plan_push(folder, repo_id, private), message=message, revision=revision)
