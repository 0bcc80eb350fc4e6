"""Which axes move is chosen without labels: the candidate whose midpoint is nearest to what the endpoints say together.

Each candidate alignment is scored on calibration text by the mean KL divergence from the ensemble of the two endpoints
(the average of their probabilities) to the model half way between them; of masked language models at masked words, see
`merge.alignment.masking`. Models without a task head are scored by 1 - cosine between the midpoint's last hidden states
and the mean of the endpoints'. Smaller is better, and moving nothing is always a candidate.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from merge.alignment.common_start import CommonStart
from merge.alignment.masking import as_used
from merge.alignment.pair import Alignment, Batch, Matcher, Pair, as_transform, in_dtype
from merge.inputs import attended
from merge.model import set_weights
from merge.permutation import Permutation, identity
from merge.spec import parse
from merge.transform import Transform, apply_transform, apply_transform_axes

# Outputs that are hidden states or embeddings.
FEATURES = ("last_hidden_state", "text_embeds", "image_embeds")

SCORES = {
    "kl": "KL from ensemble to midpoint",
    "mse": "squared error to the endpoints' mean",
    "cosine": "1 - cosine to the endpoints' mean",
}

# The last word of a kind (text_residual is CLIP's) that says it is of the stream between the layers, or inside one.
STREAM = frozenset({"residual", "embedding"})
INSIDE = frozenset({"heads", "ffn", "talking"})

# Scores that differ by less are the same: rounding of float32 models. The first of them is kept, which moves least.
ROUNDING = 1e-6
# What the endpoints say is remembered up to so many bytes; beyond, they are run again for every candidate.
REMEMBERED = 1 << 29
# On fewer texts, or where both endpoints together give one class to more than this share of them, scores say little.
ENOUGH_TEXTS, ONE_SIDED = 256, 0.9


@dataclass(frozen=True)
class Candidate:
    """One alignment over some kinds of axes, how it was found, and how far its midpoint is from the ensemble.

    Attributes:
        by, basis: the matcher, and what it moved inside heads; None where nothing was matched or nothing was asked.
        rotated: of models whose norms are folded, the residual stream turned.
    """

    alignment: Alignment
    score: float | None
    by: str | None = None
    basis: str | None = None
    rotated: bool = False

    @property
    def name(self) -> str:
        kinds = self.alignment.kinds
        return (
            ", ".join(f"rotated {kind}" if self.rotated and kind in streams(kinds) else kind for kind in kinds)
            or "nothing"
        )


@dataclass(frozen=True)
class Choice:
    """The candidates as scored, and the one that is kept.

    Attributes:
        score: what was measured, None if nothing was.
        notes: what is to be said of the choice.
        start: whether both models come of one start, where that was looked at.
    """

    candidates: tuple[Candidate, ...]
    kept: Candidate
    score: str | None
    notes: tuple[str, ...] = ()
    start: CommonStart | None = None

    @property
    def common(self) -> bool:
        """Whether nothing moves because both models come of one start."""
        return self.start is not None and self.start.common

    def table(self) -> list[tuple[str, ...]]:
        """Return what was measured as rows of text, a header first; what is the same for all candidates is left out."""
        rows = [("axes that move", "matched by", "inside heads", self.score or "")]
        rows += [(c.name, c.by or "", c.basis or "", f"{c.score:.4f}") for c in self.candidates]
        told = [k for k, column in enumerate(zip(*rows[1:], strict=True)) if k in (0, 3) or len({*column} - {""}) > 1]
        return [tuple(row[k] for k in told) for row in rows]


def fixed(alignment: Alignment, by: str) -> Choice:
    """Return the choice that is none: one alignment, not scored."""
    only = Candidate(alignment, None, by)
    return Choice((only,), only, None)


def nothing(pair: Pair) -> Candidate:
    """Return the candidate that moves nothing."""
    return Candidate(Alignment(identity(pair.spec, pair.shapes), (), ()), None)


def choose(pair: Pair, matchers: Mapping[str, Matcher], axes: frozenset[str] | None) -> Choice:
    """Return the best alignment over `axes` by any of the matchers; when axes is None, over the best choice of them.

    Without batches nothing can be scored: all axes move, by the first matcher. Nor is a single alignment scored.
    """
    everything = frozenset(pair.kinds())
    first = next(iter(matchers))
    if not pair.batches or (axes is not None and len(matchers) == 1):
        return fixed(matchers[first](everything if axes is None else axes), first)
    wanted = sets_of_axes(pair) if axes is None else (axes,)
    found = [Candidate(matcher(kinds), None, by) for by, matcher in matchers.items() for kinds in wanted]
    pair = as_used(pair)
    ends = Ends(pair)
    scored, kind = scores([nothing(pair), *found], pair, ends)
    return Choice(scored, best(scored), SCORES[kind], ends.notes())


def sets_of_axes(pair: Pair) -> tuple[frozenset[str], ...]:
    """Return the kinds of axes that candidates move, from little to much.

    What only the task head reads (the pooler, which fine-tunes of one start take apart while everything below stays in
    one basis); that with heads and feed-forward units; everything.
    """
    everything = frozenset(pair.kinds())
    outside = everything - streams(everything)
    wanted = (head_kinds(everything), outside, everything)
    return tuple(kinds for kinds in dict.fromkeys(wanted) if kinds)


def streams(kinds: Collection[str]) -> frozenset[str]:
    """Return the kinds of axes that are streams between the layers."""
    return frozenset(kind for kind in kinds if _word(kind) in STREAM)


def head_kinds(kinds: Collection[str]) -> frozenset[str]:
    """Return the kinds of axes that are neither streams nor inside layers: what the task head reads."""
    return frozenset(kind for kind in kinds if _word(kind) not in STREAM | INSIDE)


def _word(kind: str) -> str:
    return kind.rsplit("_", 1)[-1]


def best(candidates: Sequence[Candidate]) -> Candidate:
    """Return the candidate with the lowest score; of those that differ by rounding, the first."""
    values = [candidate.score for candidate in candidates if candidate.score is not None]
    return next(c for c in candidates if c.score is not None and c.score <= min(values) + ROUNDING)


class Ends:
    """What the two models of a pair say to its batches: run once, and again only where it is too much to remember."""

    def __init__(self, pair: Pair) -> None:
        self.pair, self.models = pair, (pair.model(pair.a), pair.model(pair.b))
        self._remembered: dict[int, tuple[dict[str, Tensor], dict[str, Tensor]]] = {}
        self._bytes = 0
        self._classes: dict[int, Tensor] = {}

    def __call__(self, k: int) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Return the outputs of a and of b for batch k."""
        if k in self._remembered:
            return self._remembered[k]
        batch = in_dtype(self.pair.batches[k], torch.float32)
        a, b = (say(self.pair, model(**batch)) for model in self.models)
        if list(a) == ["logits"] and a["logits"].ndim == 2 and a["logits"].shape[1] > 1:
            self._classes[k] = (a["logits"].softmax(-1) + b["logits"].softmax(-1)).argmax(-1)
        self._bytes += sum(out.nbytes for said in (a, b) for out in said.values())
        if self._bytes <= REMEMBERED:
            self._remembered[k] = a, b
        return a, b

    def notes(self) -> tuple[str, ...]:
        """Return what is to be said of the texts, once all have been read: too few, or nearly all of one class."""
        texts = sum(len(next(iter(batch.values()))) for batch in self.pair.batches)
        notes = []
        if texts < ENOUGH_TEXTS:
            notes.append(
                f"the choice of axes rests on {texts} texts only; with {ENOUGH_TEXTS} or more it is surer (--text)"
            )
        if self._classes:
            counts = torch.cat(list(self._classes.values())).bincount()
            share, at = float(counts.max() / counts.sum()), int(counts.argmax())
            if share > ONE_SIDED:
                name = (self.pair.config.get("id2label") or {}).get(str(at), f"LABEL_{at}")
                notes.append(
                    f"the calibration text is one-sided: both models together call {share:.0%} of it {name!r}, so that the "
                    "choice of axes may not hold elsewhere. Give a random sample of all classes (--text)"
                )
        return tuple(notes)


def scores(candidates: Sequence[Candidate], pair: Pair, ends: Ends) -> tuple[tuple[Candidate, ...], str]:
    """Return the candidates with their scores, and which score it is (a key of SCORES)."""
    values, kind = score([candidate.alignment for candidate in candidates], pair, ends)
    return tuple(replace(c, score=value) for c, value in zip(candidates, values, strict=True)), kind


def score(
    moves: Sequence[Permutation | Transform | Alignment], pair: Pair, ends: Ends | None = None
) -> tuple[list[float], str]:
    """Return the midpoint divergence of each way to move b, and which one it is (a key of SCORES).

    One midpoint model is alive at a time. An alignment may move a as well, though no axis that an output shows.

    Args:
        ends: of this pair, or of one with the same functions, where they have been asked already.
    """
    ends = ends or Ends(pair)
    lines = {name: parse(line) for name, line in pair.spec.outputs.items()}
    model, found, kind = pair.model(pair.a), [], "kl"
    with torch.inference_mode():
        for move in pair.progress(moves, "choosing which axes move"):
            transform, maps = (
                (move.transform, move.reference_maps) if isinstance(move, Alignment) else (as_transform(move), {})
            )
            middle = _midpoint(pair, transform, maps)
            set_weights(model, {pair.written_name(name): tensor for name, tensor in middle.items()})
            total, count = 0.0, 0
            for k, batch in enumerate(pair.batches):
                a, b = ends(k)
                b = {name: apply_transform_axes(lines[name], transform, value) for name, value in b.items()}
                between = say(pair, model(**in_dtype(batch, torch.float32)))
                value, rows, kind = divergence(a, b, between, counted(pair, k))
                total, count = total + float(value), count + rows
            found.append(total / count)
    return found, kind


def _midpoint(pair: Pair, t: Transform, reference_maps: Mapping[str, Tensor]) -> dict[str, Tensor]:
    moved, a = apply_transform(pair.spec, t, pair.b), pair.a
    if reference_maps:
        a = apply_transform(pair.spec, Transform(identity(pair.spec, pair.shapes), reference_maps), a)
    return {
        name: (tensor.float() + moved[name].float()) / 2 if tensor.is_floating_point() else tensor
        for name, tensor in a.items()
    }


def say(pair: Pair, output: Any) -> dict[str, Tensor]:
    """Return what a model gives back, by the names of the spec's outputs, in float32."""
    return {name: output[name].float() for name in pair.spec.outputs}


def divergence(
    a: Mapping[str, Tensor], b: Mapping[str, Tensor], middle: Mapping[str, Tensor], tokens: Tensor | None
) -> tuple[Tensor, int, str]:
    """Return (summed divergence, rows, kind) of one batch; several logits of one model are added up.

    A model that has hidden states or embeddings to show is measured by those, not by logits.

    Args:
        tokens: those that count, as booleans; all of them where None.
    """
    shown = [name for name in FEATURES if name in a]
    if shown:
        one, other, between = (torch.cat([_rows(x[name], tokens) for name in shown]) for x in (a, b, middle))
        cosine = torch.cosine_similarity(between, (one + other) / 2, dim=-1)
        return (1 - cosine).sum(), len(cosine), "cosine"
    total, rows, kind = torch.zeros(()), 0, "kl"
    for name in a:
        logits = [_rows(x[name], tokens) for x in (a, b, middle)]
        rows = len(logits[0])
        if logits[0].shape[-1] == 1:
            total = total + ((logits[0] + logits[1]) / 2 - logits[2]).square().sum()
            kind = "mse"
        else:
            ensemble = torch.stack([x.log_softmax(-1) for x in logits[:2]]).logsumexp(0) - torch.log(torch.tensor(2.0))
            total = total + (ensemble.exp() * (ensemble - logits[2].log_softmax(-1))).sum()
    return total, rows, kind


def counted(pair: Pair, k: int) -> Tensor | None:
    """Return which tokens of batch k count: those that are asked for, or all that are not padding; None for images."""
    if pair.asked:
        return pair.asked[k]
    return tokens_of(pair.batches[k])


def tokens_of(batch: Batch) -> Tensor | None:
    """Return which tokens of a batch are not padding; None for images, which have none."""
    return attended(batch) if "attention_mask" in batch else None


def _rows(output: Tensor, tokens: Tensor | None) -> Tensor:
    """Return an output as rows: tokens that count, all patches of images, or one row a text."""
    if output.ndim < 3:
        return output
    return output.flatten(0, 1) if tokens is None else output[tokens]
