"""Which axes move is chosen without labels: the candidate whose midpoint is nearest to what the endpoints say together.

Each candidate alignment is scored on calibration text by the mean KL divergence from the ensemble of the two endpoints
(the average of their probabilities) to the model half way between them. Models without a task head are scored by
1 - cosine between the midpoint's last hidden states and the mean of the endpoints'. Smaller is better, and moving
nothing is always a candidate.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from merge.alignment.pair import Alignment, Batch, Matcher, Pair, as_transform, in_dtype
from merge.inputs import attended
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


@dataclass(frozen=True)
class Candidate:
    """One alignment over some kinds of axes, the matcher that found it, and how far its midpoint is from the ensemble."""

    alignment: Alignment
    score: float | None
    by: str | None = None

    @property
    def name(self) -> str:
        return ", ".join(self.alignment.kinds) or "nothing"


@dataclass(frozen=True)
class Choice:
    """The candidates as scored, and the one that is kept; `score` names what was measured, None if nothing was."""

    candidates: tuple[Candidate, ...]
    kept: Candidate
    score: str | None


def fixed(alignment: Alignment, by: str) -> Choice:
    """Return the choice that is none: one alignment, not scored."""
    only = Candidate(alignment, None, by)
    return Choice((only,), only, None)


def choose(pair: Pair, matchers: Mapping[str, Matcher], axes: frozenset[str] | None) -> Choice:
    """Return the best alignment over `axes` by any of the matchers; when axes is None, over the best choice of them.

    Candidates, from little to much: nothing; what only the task head reads (the pooler, which fine-tunes of one start
    take apart while everything below stays in one basis); that with heads and feed-forward units; everything.

    Without batches nothing can be scored: all axes move, by the first matcher. Nor is a single alignment scored.
    """
    everything = frozenset(pair.kinds())
    first = next(iter(matchers))
    if not pair.batches or (axes is not None and len(matchers) == 1):
        return fixed(matchers[first](everything if axes is None else axes), first)
    nothing = Candidate(Alignment(identity(pair.spec, pair.shapes), (), ()), None)
    inside = frozenset(k for k in everything if _word(k) in INSIDE)
    outside = everything - streams(everything)
    wanted = [outside - inside, outside, everything] if axes is None else [axes]
    found = [nothing]
    for by, matcher in matchers.items():
        found += [Candidate(matcher(kinds), None, by) for kinds in dict.fromkeys(wanted) if kinds]
    values, kind = score([candidate.alignment for candidate in found], pair)
    candidates = tuple(replace(candidate, score=value) for candidate, value in zip(found, values, strict=True))
    return Choice(candidates, min(candidates, key=lambda c: c.score or 0.0), SCORES[kind])


def streams(kinds: frozenset[str]) -> frozenset[str]:
    """Return the kinds of axes that are streams between the layers."""
    return frozenset(kind for kind in kinds if _word(kind) in STREAM)


def _word(kind: str) -> str:
    return kind.rsplit("_", 1)[-1]


def score(moves: Sequence[Permutation | Transform | Alignment], pair: Pair) -> tuple[list[float], str]:
    """Return the midpoint divergence of each way to move b, and which one it is (a key of SCORES).

    Runs the endpoints once and one midpoint model for each of them, batch by batch. An alignment may move a as well,
    though no axis that an output shows.
    """
    transforms = [moved.transform if isinstance(moved, Alignment) else as_transform(moved) for moved in moves]
    references = [moved.reference_maps if isinstance(moved, Alignment) else {} for moved in moves]
    endpoints = pair.model(pair.a), pair.model(pair.b)
    midpoints = [pair.model(_midpoint(pair, *both)) for both in zip(transforms, references, strict=True)]
    totals, count, kind = [0.0] * len(transforms), 0, "kl"
    with torch.inference_mode():
        for batch in pair.progress(pair.batches, "choosing which axes move"):
            out_a, out_b = (say(pair, model(**in_dtype(batch, torch.float32))) for model in endpoints)
            rows = 0
            for k, (t, model) in enumerate(zip(transforms, midpoints, strict=True)):
                moved = {
                    name: apply_transform_axes(parse(pair.spec.outputs[name]), t, value)
                    for name, value in out_b.items()
                }
                value, rows, kind = divergence(out_a, moved, say(pair, model(**in_dtype(batch, torch.float32))), batch)
                totals[k] += float(value)
            count += rows
    return [total / count for total in totals], kind


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
    a: Mapping[str, Tensor], b: Mapping[str, Tensor], middle: Mapping[str, Tensor], batch: Batch
) -> tuple[Tensor, int, str]:
    """Return (summed divergence, rows, kind) of one batch; several logits of one model are added up.

    A model that has hidden states or embeddings to show is measured by those, not by logits.
    """
    shown = [name for name in FEATURES if name in a]
    if shown:
        one, other, between = (torch.cat([_tokens(x[name], batch) for name in shown]) for x in (a, b, middle))
        cosine = torch.cosine_similarity(between, (one + other) / 2, dim=-1)
        return (1 - cosine).sum(), len(cosine), "cosine"
    total, rows, kind = torch.zeros(()), 0, "kl"
    for name in a:
        logits = [_tokens(x[name], batch) for x in (a, b, middle)]
        rows = len(logits[0])
        if logits[0].shape[-1] == 1:
            total = total + ((logits[0] + logits[1]) / 2 - logits[2]).square().sum()
            kind = "mse"
        else:
            ensemble = torch.stack([x.log_softmax(-1) for x in logits[:2]]).logsumexp(0) - torch.log(torch.tensor(2.0))
            total = total + (ensemble.exp() * (ensemble - logits[2].log_softmax(-1))).sum()
    return total, rows, kind


def _tokens(output: Tensor, batch: Batch) -> Tensor:
    """Return an output as rows: tokens that are not padding; patches of images, which have none."""
    if output.ndim < 3:
        return output
    return output[attended(batch)] if "attention_mask" in batch else output.flatten(0, 1)
