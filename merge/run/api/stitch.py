"""The Python API of stitching: `stitch`, which runs the code of `stitch-models`."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from merge.disk.workspace import Workspace
from merge.run.api.inputs import open_models, text_path
from merge.text.source import TextSource

if TYPE_CHECKING:
    from merge.checkpoints.live import ModelLike
    from merge.run.results import EditedModel
    from merge.text.memory import TextLike


def stitch(
    a: ModelLike,
    b: ModelLike,
    *,
    at: tuple[int, int],
    map: str = "affine",
    text: TextLike | None = None,
    text_column: Sequence[str] | None = None,
    samples: int = 512,
    seed: int = 0,
    rank: int | None = None,
    ridge: float | None = None,
    match_tokens: str = "same",
    refine: str = "none",
    steps: int = 100,
    rate: float = 1e-3,
    label_column: str | None = None,
    output: str | os.PathLike[str] | None = None,
    force: bool = False,
) -> EditedModel:
    """Stitch the bottom layers of one model to the top layers of another, with a fitted map between: `stitch-models`.

    Args:
        a, b: the bottom model, whose embeddings and tokenizer the result has, and the top one, whose class and head it has.
        at: how many layers of a are kept, and the first layer of b that follows, counted from 0.
        map: identity, scale, permutation, orthogonal, low-rank (of `rank`), affine, or affine+norm.
        text: what the map is fitted on; `text_column`, `samples` and `seed` say how it is drawn.
        ridge: pull of an affine or low-rank fit towards the best rotation; chosen on held-out text when None.
        match_tokens: "same" tokens in both models, or those of two tokenizers by the "offsets" of their characters.
        refine: none, feature (b's state), kl (b's outputs) or task (the classes in `label_column` of the text), by Adam.
        steps, rate: of the refinement.
        output, force: as in `merge.merge`.
    Returns:
        The stitched model: `.model` (loaded), `.report`, `.save(folder)`.
    Raises:
        UsageError, MismatchError: no standard checkpoint can hold the stitch; the message says why.
        CalibrationError: the text is too short for the map; the message says how much is needed.
    Source: Bansal et al. 2021, arXiv:2106.07682.

    Example:
        >>> same = merge.stitch("a/", "a/", at=(1, 1), map="identity")
        >>> same.model.config.num_hidden_layers
        2
        >>> sentences = ["the doctor saw a lawyer .", "a lawyer helped .", "the doctor helped ."] * 4
        >>> merge.stitch("a/", "b/", at=(1, 1), map="permutation", text=sentences).model.config.num_hidden_layers
        2
    """
    from merge.layers.stitching.kinds import StitchSettings
    from merge.layers.stitching.stitch import stitch_models
    from merge.run.results import EditedModel

    workspace = Workspace()
    folder = workspace.folder
    source = TextSource(
        None if text is None else text_path(text, folder / "text"),
        None if text_column is None else tuple(text_column),
        samples,
        seed,
    )
    settings = StitchSettings(
        (int(at[0]), int(at[1])), map, source, rank, ridge, refine, steps, rate, match_tokens, label_column
    )
    bottom, top = open_models([a, b], folder)
    target = folder / "stitched" if output is None else Path(output).expanduser()
    return EditedModel(target, workspace, stitch_models(bottom, top, settings, target, force))
