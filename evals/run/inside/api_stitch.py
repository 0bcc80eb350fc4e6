"""The Python API of stitching: `evals.stitch`."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from evals.run.arguments import open_all, shared_options
from evals.run.inside.results import Inside
from merge.disk.workspace import Workspace
from merge.text.source import TextSource

if TYPE_CHECKING:
    from merge.checkpoints.live import ModelLike
    from merge.text.memory import RowsLike, TextLike


def stitch(
    a: ModelLike,
    b: ModelLike,
    *,
    task: str | None = None,
    data: RowsLike | None = None,
    text: TextLike | None = None,
    text_column: Sequence[str] | None = None,
    samples: int = 512,
    map: str = "affine",
    ridge: float = 1e-2,
    rank: int | None = None,
    all_pairs: bool = False,
    line: bool = True,
    labels: Sequence[str] | None = None,
    limit: int | None = None,
    max_length: int | None = None,
    seed: int = 0,
    output: str | os.PathLike[str] | None = None,
    force: bool = False,
    device: str = "cpu",
    cache: bool = True,
) -> Inside:
    """Measure the penalty of stitching the lower layers of a to the upper layers of b, at every depth, beside controls.

    Args:
        a, b: of one tokenizer; their widths and numbers of layers may differ.
        task, data: what is scored; without a task, agreement with b on texts that are held out of the fit.
        text: what maps are fitted on, like the rows that are scored; the package's own text when None. `text_column` (two for
            pairs) and `samples` are of it.
        map: identity, scale, permutation, orthogonal, low-rank (of `rank`), affine, or affine+norm.
        ridge: pull of an affine or low-rank fit towards the best rotation.
        all_pairs: stitch every cut of a to every cut of b too.
        line: measure barrier and LLFC of the same two models beside it.
        labels, limit, max_length, seed, output, force, device, cache: as in `score`.
    Returns:
        `.record["cuts"][2]["penalties"]["stitched"]`, `.verdict`, `.plot()`.
    Raises:
        MismatchError: the models do not read the same tokens.
        CalibrationError: the text is too short for the map.
    Source: Bansal et al. 2021, arXiv:2106.07682.

    Example:
        >>> text = ["the doctor saw a lawyer .", "a lawyer helped .", "the doctor helped the lawyer ."] * 10
        >>> measured = evals.stitch("a/", "b/", task="mnli", data=rows, text=text, line=False)
        >>> [cut["at"] for cut in measured.record["cuts"]]
        [[0, 0], [1, 1], [2, 2]]
    """
    from evals.inside.stitching import StitchPlan
    from evals.run.inside.stitch import measure_stitch
    from evals.run.inside.texts import FeatureTexts
    from evals.tasks import find_task
    from merge.text.memory import text_file

    workspace = Workspace()
    shared = shared_options(
        workspace,
        data,
        labels,
        output,
        limit=limit,
        max_length=max_length,
        seed=seed,
        force=force,
        device=device,
        no_cache=not cache,
    )
    first, second = open_all([a, b], workspace.folder)
    path = None if text is None else text_file(text, workspace.folder)
    source = TextSource(path, None if text_column is None else tuple(text_column), samples, seed)
    on = FeatureTexts(None if task is None else find_task(task), source)
    record = measure_stitch((first, second), on, StitchPlan(map, ridge, rank, all_pairs, line), shared)
    return Inside((record,), Path(str(shared.output)), workspace)
