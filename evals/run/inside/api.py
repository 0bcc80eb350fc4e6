"""The Python API of what is inside models: `features` and `similarity`."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evals.run.arguments import open_all, shared_options
from evals.run.inside.results import Inside
from merge.disk.workspace import Workspace
from merge.text.source import TextSource

if TYPE_CHECKING:
    from evals.tasks.task import EvalTask
    from merge.checkpoints.live import ModelLike
    from merge.text.memory import RowsLike, TextLike


def features(
    a: ModelLike,
    b: ModelLike,
    *,
    text: TextLike | None = None,
    samples: int = 512,
    task: str | None = None,
    data: RowsLike | None = None,
    lam: float | Sequence[float] = 0.5,
    sites: Sequence[str] = (),
    llfc_only: bool = False,
    align: str | Mapping[str, Any] = "none",
    labels: Sequence[str] | None = None,
    limit: int | None = None,
    max_length: int | None = None,
    seed: int = 0,
    output: str | os.PathLike[str] | None = None,
    force: bool = False,
    device: str = "cpu",
    cache: bool = True,
) -> Inside:
    """Ask whether two models are linear in their features, layer by layer: `evaluate-models features`.

    Args:
        a, b: the endpoints; lam = 0 is a.
        text: a file, a Hub data set or sentences, of which `samples` are drawn; the package's own text when None. It is the
            calibration text of an alignment too.
        task, data: measure on the rows of a task instead, and their loss too.
        lam: one or several.
        sites: names ("layer 3 output") or kinds ("ffn hidden") of sites; those of every sublayer when empty.
        llfc_only: leave out additivity and commutativity, about half of the time.
        align: an alignment that is measured beside the models as they are; as in `merge.merge`.
        labels, limit, max_length, seed, output, force, device, cache: as in `score`.
    Returns:
        `.record["curves"][0]["connectivity"]`, `["additivity"]` and `["commutativity"]`; `.verdict`, `.plot()`.
    Raises:
        MismatchError: the two models do not fit one another.
        UsageError: there is no such site, or lam is not between 0 and 1.
    Source: Zhou et al. 2023, arXiv:2307.08286.

    Example:
        >>> measured = evals.features("a/", "b/", text=["the doctor saw a lawyer .", "a lawyer helped ."] * 2)
        >>> measured.record["curves"][0]["connectivity"][-1]["site"]
        'logits'
    """
    from evals.inside.pair_pass import FeaturePlan
    from evals.run.inside.features import measure_features
    from evals.run.inside.texts import FeatureTexts, check_one_source
    from merge.recipe.recipe import make_align_entry

    check_one_source(task, text, align != "none")
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
    entry: dict[str, Any] = {"by": align} if isinstance(align, str) else dict(align)
    source = _text(text, samples, seed, workspace)
    if source.source is not None and align != "none":  # the calibration text of an alignment too, as in the command
        entry = {"text": source.source, "samples": samples, **entry}
    settings = make_align_entry(entry)
    first, second = (model.encoder for model in open_all([a, b], workspace.folder))
    lams = (float(lam),) if isinstance(lam, int | float) else tuple(map(float, lam))
    on = FeatureTexts(_task(task), source)
    record = measure_features((first, second), on, settings, FeaturePlan(lams, tuple(sites), llfc_only), shared)
    return Inside((record,), Path(str(shared.output)), workspace)


def similarity(
    a: ModelLike,
    b: ModelLike,
    *,
    text: TextLike | None = None,
    samples: int = 512,
    task: str | None = None,
    data: RowsLike | None = None,
    rows: str = "texts",
    sites: Sequence[str] = (),
    measures: Sequence[str] = (),
    max_rows: int = 4096,
    limit: int | None = None,
    max_length: int | None = None,
    seed: int = 0,
    output: str | os.PathLike[str] | None = None,
    force: bool = False,
    device: str = "cpu",
    cache: bool = True,
) -> Inside:
    """Measure how alike two models represent the same texts, every layer against every layer: `evaluate-models similarity`.

    Args:
        a, b: of any families, widths and depths.
        text, samples, task, data: as in `features`; labels are not read.
        rows: "texts" (a row is the mean over the tokens of a text), or "tokens".
        sites: names or kinds of sites; the embeddings and every layer when empty.
        measures: some of cka, debiased cka, procrustes, permutation, svcca and neighbours; all when empty.
        max_rows: rows that are compared at most.
        limit, max_length, seed, output, force, device, cache: as in `score`.
    Returns:
        `.record["matrices"]["cka"]`, a list for each site of a; `.record["pairs"]` with standard errors and chance; `.plot()`.
    Raises:
        UsageError: a site or measure is unknown; by token the models read other tokens; there are too few texts.
    Source: Kornblith et al. 2019, arXiv:1905.00414.

    Example:
        >>> measured = evals.similarity("a/", "a/", text=["the doctor saw .", "a lawyer .", "who helped ?", "near a river"] * 3)
        >>> round(measured.record["matrices"]["cka"][2][2], 6)
        1.0
    """
    from evals.run.inside.similarity import MEASURE_NAMES, SimilarityPlan, measure_similarity
    from evals.run.inside.texts import FeatureTexts, check_one_source

    check_one_source(task, text, False)
    workspace = Workspace()
    shared = shared_options(
        workspace,
        data,
        None,
        output,
        limit=limit,
        max_length=max_length,
        seed=seed,
        force=force,
        device=device,
        no_cache=not cache,
    )
    first, second = (model.encoder for model in open_all([a, b], workspace.folder))
    plan = SimilarityPlan(rows, tuple(sites), tuple(measures) or MEASURE_NAMES, max_rows)
    on = FeatureTexts(_task(task), _text(text, samples, seed, workspace))
    return Inside((measure_similarity((first, second), on, plan, shared),), Path(str(shared.output)), workspace)


def _task(name: str | None) -> EvalTask | None:
    from evals.tasks import find_task

    return None if name is None else find_task(name)


def _text(text: TextLike | None, samples: int, seed: int, workspace: Workspace) -> TextSource:
    """Return the sample of a text; sentences in memory are written to the workspace."""
    from merge.text.memory import text_file

    source = None if text is None else text_file(text, workspace.folder)
    return TextSource(source, samples=samples, seed=seed)
