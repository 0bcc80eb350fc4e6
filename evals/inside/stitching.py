"""Stitching penalties at every depth: what B scores when its upper layers read mapped states of A, beside controls.

    penalty      score of B - score of the stitch
    identity     the same without a map: high where both models share a basis
    mean only    every token gets the mean state: what a stitch scores that passes nothing on
    random A     the states of an A with random weights: what the map and B's upper layers make of the words alone
    reversed     B below, A above, against the score of A

No stitch is written: hooks run A inside B (`merge.layers.stitching.live`), so any map between any two widths is measured.
Maps are fitted from sums over one pass of a text; those of all depths come from the same sums.

Sources: Bansal et al. 2021, arXiv:2106.07682 (penalty, connectivity); Hernandez et al. 2023, arXiv:2303.11277 (why controls);
Kornblith et al. 2019, arXiv:1905.00414, equation 5 (linear CKA).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

import torch

from evals.inside.state_sums import NO_NORMS, Cut, StateSums
from merge.layers.activations import LiveLayers, live_layers
from merge.layers.repair.ridge import NormalEquations
from merge.layers.stitching.kinds import check_kind
from merge.layers.stitching.live import Halves, stitched
from merge.layers.stitching.maps import Norm, StateMap, fit_map, identity_map, mean_map
from merge.layers.stitching.norms import rotation_before_norm
from merge.progress import shown_by, silent, track

if TYPE_CHECKING:
    from merge.checkpoints.inputs import Batch

RIDGE = 1e-2
CONTROLS = ("identity", "mean only", "random A", "reversed")


@dataclass(frozen=True)
class StitchPlan:
    """What is measured of two models.

    Attributes:
        kind: family of the map; a key of `merge.layers.stitching.kinds.MAPS`.
        ridge: pull of its fit towards the best rotation, as a share of the mean variance.
        rank: of a low-rank map.
        all_pairs: whether every cut of A is stitched to every cut of B, and not only cuts of the same depth.
        line: whether barrier and LLFC of the same two models are measured beside it.
    """

    kind: str = "affine"
    ridge: float = RIDGE
    rank: int | None = None
    all_pairs: bool = False
    line: bool = True

    def __post_init__(self) -> None:
        check_kind(self.kind)


@dataclass(frozen=True)
class Side:
    """One of the two models, live.

    Attributes:
        score: scores the model as it runs now: name of the score -> value, the main one first.
        norms: cut -> the norm that writes that state; without entry where none does.
    """

    live: LiveLayers
    score: Callable[[], dict[str, float]]
    norms: Mapping[int, Norm]


@dataclass(frozen=True)
class CutScores:
    """What was measured where A is cut at `at[0]` and B at `at[1]`.

    Attributes:
        cka: linear CKA of the two states.
        explained: R2 of the map on the text that it was fitted on; None for the identity.
        scores: "stitched" or a control -> the scores of that model; without a control that does not exist.
        penalties: the same -> main score of the top model - that of the stitch.
    """

    at: Cut
    cka: float
    explained: float | None
    scores: Mapping[str, Mapping[str, float]]
    penalties: Mapping[str, float]

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "at": list(self.at)}


@dataclass(frozen=True)
class Stitches:
    """All that was measured.

    Attributes:
        ends: "a", "b" -> their own scores.
        cuts: of the same depth, from the bottom up.
        matrix: penalty of every pair of cuts, a row for each cut of A; None where only cuts of one depth were asked for.
        cka: linear CKA of the same pairs, as the matrix.
        tokens: of the text that maps were fitted on.
    """

    ends: Mapping[str, Mapping[str, float]]
    cuts: tuple[CutScores, ...]
    matrix: tuple[tuple[float, ...], ...] | None
    cka: tuple[tuple[float, ...], ...] | None
    tokens: int


def depth_cuts(a: int, b: int) -> tuple[Cut, ...]:
    """Return every cut of B with the cut of A at the same depth, for models of so many layers.

    >>> depth_cuts(2, 4)
    ((0, 0), (0, 1), (1, 2), (2, 3), (2, 4))
    """
    return tuple((round(m * a / b) if b else 0, m) for m in range(b + 1))


def fitted(sums: StateSums, at: Cut, plan: StitchPlan, reverse: bool = False) -> StateMap:
    """Return the map of the plan; affine+norm is fitted before the norm that writes the state, where one does."""
    equations, norm = sums.before_norm(at, reverse)
    none = NormalEquations(len(equations.xx) - 1, equations.xy.shape[1])
    if norm is None:
        kind = "affine" if plan.kind == "affine+norm" else plan.kind
        return fit_map(kind, equations, none, (plan.ridge,), plan.rank)
    made = fit_map(plan.kind, equations, none, (plan.ridge,), start=rotation_before_norm(equations, norm))
    return replace(made, norm=norm)


def _sums(plan: StitchPlan, cuts: Iterable[Cut], *norms: Mapping[int, Norm]) -> StateSums:
    """Return empty sums; the norms of both models' states count for a map that ends in one."""
    a, b = norms if plan.kind == "affine+norm" else NO_NORMS
    return StateSums(cuts, (a, b))


def measure_stitches(a: Side, b: Side, random_a: LiveLayers, batches: Sequence[Batch], plan: StitchPlan) -> Stitches:
    """Return the penalties of two models at every depth, with controls, and of all pairs of cuts where asked.

    Args:
        random_a: A with random weights.
        batches: the text that maps are fitted on, as both models read it.
    """
    depth = depth_cuts(a.live.total, b.live.total)
    every = [(k, m) for k in range(a.live.total + 1) for m in range(b.live.total + 1)] if plan.all_pairs else []
    sums = _sums(plan, [*depth, *every], a.norms, b.norms).read(a.live, b.live, batches)
    blank = _sums(plan, depth, {}, b.norms).read(random_a, b.live, batches, "reading states of random weights")
    ends = {"a": a.score(), "b": b.score()}
    cuts = []
    for at in track(list(depth), "stitching"):
        with shown_by(silent):
            cuts.append(_measured(a, b, random_a, sums, blank, at, plan, ends))
    matrix = cka = None
    if plan.all_pairs:
        measured = {cut.at: cut.penalties["stitched"] for cut in cuts}
        for at in track([cut for cut in every if cut not in measured], "stitching all pairs of cuts"):
            with shown_by(silent):
                mapping = fitted(sums, at, plan)
                measured[at] = _penalty(ends["b"], _score(a.live, b, at, mapping))
        rows, columns = range(a.live.total + 1), range(b.live.total + 1)
        matrix = tuple(tuple(measured[k, m] for m in columns) for k in rows)
        cka = tuple(tuple(sums.cka((k, m)) for m in columns) for k in rows)
    return Stitches(ends, tuple(cuts), matrix, cka, sums.rows)


def _measured(
    a: Side,
    b: Side,
    random_a: LiveLayers,
    sums: StateSums,
    blank: StateSums,
    at: Cut,
    plan: StitchPlan,
    ends: Mapping[str, Mapping[str, float]],
) -> CutScores:
    """Return the scores of one cut and its controls."""
    equations, mapping = sums.equations(at), fitted(sums, at, plan)
    scores = {"stitched": _score(a.live, b, at, mapping)}
    if len(equations.xx) - 1 == equations.xy.shape[1]:
        scores["identity"] = _score(a.live, b, at, identity_map(len(equations.xx) - 1, equations.xy.shape[1]))
    scores["mean only"] = _score(a.live, b, at, mean_map(equations))
    scores["random A"] = _score(random_a, b, at, fitted(blank, at, plan))
    scores["reversed"] = _score(b.live, a, (at[1], at[0]), fitted(sums, at, plan, reverse=True))
    penalties = {name: _penalty(ends["a" if name == "reversed" else "b"], of_name) for name, of_name in scores.items()}
    return CutScores(at, sums.cka(at), mapping.explained, scores, penalties)


def _score(bottom: LiveLayers, top: Side, at: Cut, mapping: StateMap) -> dict[str, float]:
    with stitched(Halves(bottom, top.live, at), mapping):
        return top.score()


def _penalty(own: Mapping[str, float], stitch: Mapping[str, float]) -> float:
    main = next(iter(own))
    return own[main] - stitch[main]


def random_like(config: Mapping[str, Any], seed: int) -> LiveLayers:
    """Return a model of a config with random weights, as its family begins training."""
    from merge.checkpoints.transformers_model import model_class, model_config, quiet

    with torch.random.fork_rng(devices=[]), quiet():
        torch.manual_seed(seed)
        model = model_class(config)(model_config(config))
    return live_layers(model.eval())


def stitching_distance(a: Side, b: Side, batches: Sequence[Batch], plan: StitchPlan) -> float:
    """Return the mean penalty of both directions over the cuts inside: 0 where two models are stitching-connected.

    A penalty below 0, of a stitch that scores more than the model above, counts as 0.
    """
    depth = depth_cuts(a.live.total, b.live.total)
    inner = depth[1:-1] or depth
    sums = _sums(plan, inner, a.norms, b.norms).read(a.live, b.live, batches)
    ends = a.score(), b.score()
    penalties = []
    for at in inner:
        up, down = fitted(sums, at, plan), fitted(sums, at, plan, reverse=True)
        penalties.append(_penalty(ends[1], _score(a.live, b, at, up)))
        penalties.append(_penalty(ends[0], _score(b.live, a, (at[1], at[0]), down)))
    return sum(max(penalty, 0.0) for penalty in penalties) / len(penalties)
