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
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from merge.layers.activations import LiveLayers, live_layers, see_states
from merge.layers.repair.ridge import NormalEquations
from merge.layers.stitching.kinds import check_kind
from merge.layers.stitching.live import Halves, stitched
from merge.layers.stitching.maps import Norm, StateMap, fit_map, identity_map, mean_map
from merge.layers.stitching.norms import divisor
from merge.progress import shown_by, silent, track

if TYPE_CHECKING:
    from merge.checkpoints.inputs import Batch

Cut = tuple[int, int]
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


class StateSums:
    """Sums over the tokens of a text, of the states of two models: all that maps and CKA are made of."""

    def __init__(self, cuts: Iterable[Cut]) -> None:
        self.cuts = tuple(dict.fromkeys(cuts))
        self.rows = 0
        self.aa: dict[int, Tensor] = {}
        self.bb: dict[int, Tensor] = {}
        self.ab: dict[Cut, Tensor] = {}

    def read(self, a: LiveLayers, b: LiveLayers, batches: Sequence[Batch], label: str = "reading states") -> StateSums:
        """Add the states of batches that both models read, each with a constant 1 as its last unit."""
        for batch in track(list(batches), label):
            x, y = (_states(live, batch, {cut[side] for cut in self.cuts}) for side, live in enumerate((a, b)))
            self.rows += len(next(iter(x.values())))
            for grams, states in ((self.aa, x), (self.bb, y)):
                for cut, rows in states.items():
                    grams[cut] = grams.get(cut, 0.0) + rows.T @ rows
            for k, m in self.cuts:
                self.ab[k, m] = self.ab.get((k, m), 0.0) + x[k].T @ y[m]
        return self

    def equations(self, at: Cut, reverse: bool = False) -> NormalEquations:
        """Return the sums for a map from the state of A to that of B, or the reverse."""
        (k, m), cross = at, self.ab[at]
        xx, yy, xy = (self.bb[m], self.aa[k], cross.T) if reverse else (self.aa[k], self.bb[m], cross)
        made = NormalEquations(len(xx) - 1, len(yy) - 1)
        made.xx, made.xy, made.y = xx, xy[:, :-1].contiguous(), yy[-1, :-1]
        made.yy, made.rows = float(yy.diagonal()[:-1].sum()), self.rows
        return made

    def cka(self, at: Cut) -> float:
        """Return |cov(x, y)|^2 / (|cov(x, x)| |cov(y, y)|), Frobenius norms; 0 where a state does not vary."""
        xx, yy, xy = self.aa[at[0]], self.bb[at[1]], self.ab[at]
        cross, left, right = (_centred(gram, self.rows).norm() for gram in (xy, xx, yy))
        return float(cross**2 / (left * right)) if left * right > 0 else 0.0


def _centred(gram: Tensor, rows: int) -> Tensor:
    """Return sums of products about the means, from sums whose last row and column are those of a constant."""
    return gram[:-1, :-1] - torch.outer(gram[:-1, -1], gram[-1, :-1]) / rows


def _states(live: LiveLayers, batch: Batch, cuts: set[int]) -> dict[int, Tensor]:
    states: dict[int, Tensor] = {}

    def keep(cut: int, rows: Tensor) -> None:
        states[cut] = torch.cat([rows.double(), torch.ones(len(rows), 1, dtype=torch.float64)], 1)

    see_states(live, batch, cuts, keep)
    return states


def depth_cuts(a: int, b: int) -> tuple[Cut, ...]:
    """Return every cut of B with the cut of A at the same depth, for models of so many layers.

    >>> depth_cuts(2, 4)
    ((0, 0), (0, 1), (1, 2), (2, 3), (2, 4))
    """
    return tuple((round(m * a / b) if b else 0, m) for m in range(b + 1))


def fitted(equations: NormalEquations, plan: StitchPlan, norm: Norm | None) -> StateMap:
    """Return the map of the plan; affine+norm is fitted before the norm that wrote the state, where one did."""
    none = NormalEquations(len(equations.xx) - 1, equations.xy.shape[1])
    if plan.kind != "affine+norm" or norm is None:
        kind = "affine" if plan.kind == "affine+norm" else plan.kind
        return fit_map(kind, equations, none, (plan.ridge,), plan.rank)
    before = _before_norm(equations, norm)
    made = fit_map("affine+norm", before, none, (plan.ridge,))
    return StateMap(made.kind, made.weight, made.constant, norm, made.tokens, made.explained, made.ridge)


def _before_norm(e: NormalEquations, norm: Norm) -> NormalEquations:
    """Return the sums with (y - bias) / gain in place of y."""
    gain, bias = divisor(norm.gain).double(), norm.bias.double()
    made = NormalEquations(len(e.xx) - 1, e.xy.shape[1])
    made.xx, made.rows = e.xx, e.rows
    made.xy = (e.xy - torch.outer(e.xx[:, -1], bias)) / gain
    made.y = (e.y - e.rows * bias) / gain
    # The sum of squares decides R2 alone; it is that of the mean over units, which the norm fixes to one each.
    made.yy = float(e.rows * len(gain))
    return made


def measure_stitches(a: Side, b: Side, random_a: LiveLayers, batches: Sequence[Batch], plan: StitchPlan) -> Stitches:
    """Return the penalties of two models at every depth, with controls, and of all pairs of cuts where asked.

    Args:
        random_a: A with random weights.
        batches: the text that maps are fitted on, as both models read it.
    """
    depth = depth_cuts(a.live.total, b.live.total)
    every = [(k, m) for k in range(a.live.total + 1) for m in range(b.live.total + 1)] if plan.all_pairs else []
    sums = StateSums([*depth, *every]).read(a.live, b.live, batches)
    blank = StateSums(depth).read(random_a, b.live, batches, "reading states of random weights")
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
                mapping = fitted(sums.equations(at), plan, b.norms.get(at[1]))
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
    equations, back = sums.equations(at), sums.equations(at, reverse=True)
    mapping = fitted(equations, plan, b.norms.get(at[1]))
    scores = {"stitched": _score(a.live, b, at, mapping)}
    if len(equations.xx) - 1 == equations.xy.shape[1]:
        scores["identity"] = _score(a.live, b, at, identity_map(len(equations.xx) - 1, equations.xy.shape[1]))
    scores["mean only"] = _score(a.live, b, at, mean_map(equations))
    scores["random A"] = _score(random_a, b, at, fitted(blank.equations(at), plan, b.norms.get(at[1])))
    scores["reversed"] = _score(b.live, a, (at[1], at[0]), fitted(back, plan, a.norms.get(at[0])))
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
    sums = StateSums(inner).read(a.live, b.live, batches)
    ends = a.score(), b.score()
    penalties = []
    for at in inner:
        up = fitted(sums.equations(at), plan, b.norms.get(at[1]))
        down = fitted(sums.equations(at, reverse=True), plan, a.norms.get(at[0]))
        penalties.append(_penalty(ends[1], _score(a.live, b, at, up)))
        penalties.append(_penalty(ends[0], _score(b.live, a, (at[1], at[0]), down)))
    return sum(max(penalty, 0.0) for penalty in penalties) / len(penalties)
