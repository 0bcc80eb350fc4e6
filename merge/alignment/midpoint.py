"""Agreement: how far a model between two others is from what the two say together, on text without labels.

At lam, of b's part, that is the mean KL divergence from the ensemble (1 - lam) p_a + lam p_b of what the ends say to what
the model (1 - lam) a + lam b says; of masked language models at masked words, see `merge.alignment.masking`. Models without
a task head are measured by 1 - cosine between its last hidden states and the same mean of the ends'. Smaller is better.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from merge.alignment.pair import Alignment, Pair, as_transform, in_dtype
from merge.checkpoints.hooks import token_mask, token_rows
from merge.checkpoints.transformers_model import set_weights
from merge.progress import track
from merge.symmetry.permutation import Permutation, identity
from merge.symmetry.spec import parse
from merge.symmetry.transform import Transform, apply_transform, apply_transform_axes

# Outputs that are hidden states or embeddings.
FEATURES = ("last_hidden_state", "text_embeds", "image_embeds")

SCORES = {
    "kl": "KL from ensemble to midpoint",
    "mse": "squared error to the endpoints' mean",
    "cosine": "1 - cosine to the endpoints' mean",
}

# What the endpoints say is remembered up to so many bytes; beyond, they are run again for every candidate.
REMEMBERED = 1 << 29
# On fewer texts, or where both endpoints together give one class to more than this share of them, scores say little.
ENOUGH_TEXTS, ONE_SIDED = 256, 0.9


class EndpointOutputs:
    """What the two models of a pair say to its batches: run once, and again only where it is too much to remember."""

    def __init__(self, pair: Pair) -> None:
        self.pair, self.models = pair, tuple(pair.model(side, copied=False) for side in (pair.a, pair.b))
        self._remembered: dict[int, tuple[dict[str, Tensor], dict[str, Tensor]]] = {}
        self._bytes = 0
        self._classes: dict[int, Tensor] = {}

    def __call__(self, k: int) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Return the outputs of a and of b for batch k."""
        if k in self._remembered:
            return self._remembered[k]
        batch = in_dtype(self.pair.batches[k], torch.float32)
        a, b = (outputs_of(self.pair, model(**batch)) for model in self.models)
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


def score(
    moves: Sequence[Permutation | Transform | Alignment],
    pair: Pair,
    ends: EndpointOutputs | None = None,
    lam: float = 0.5,
) -> tuple[list[float], str]:
    """Return the divergence at lam of each way to move b, and which one it is (a key of SCORES).

    One model between the ends is alive at a time. An alignment may move a as well, though no axis that an output shows.

    Args:
        ends: of this pair, or of one with the same functions, where they have been asked already.
        lam: b's part of the model, from 0 to 1.
    """
    ends = ends or EndpointOutputs(pair)
    lines = {name: parse(line) for name, line in pair.spec.outputs.items()}
    model, found, kind = pair.model(pair.a), [], "kl"
    with torch.inference_mode():
        for move in track(moves, "choosing which axes move"):
            transform, maps = (
                (move.transform, move.reference_maps) if isinstance(move, Alignment) else (as_transform(move), {})
            )
            between = _between(pair, transform, maps, lam)
            set_weights(model, {pair.written_name(name): tensor for name, tensor in between.items()})
            total, count = 0.0, 0
            for k, batch in enumerate(pair.batches):
                a, b = ends(k)
                b = {name: apply_transform_axes(lines[name], transform, value) for name, value in b.items()}
                said = outputs_of(pair, model(**in_dtype(batch, torch.float32)))
                value, rows, kind = divergence(a, b, said, scored_tokens(pair, k), lam)
                total, count = total + float(value), count + rows
            found.append(total / count)
    return found, kind


def _between(pair: Pair, t: Transform, reference_maps: Mapping[str, Tensor], lam: float) -> dict[str, Tensor]:
    moved, a = apply_transform(pair.spec, t, pair.b), pair.a
    if reference_maps:
        a = apply_transform(pair.spec, Transform(identity(pair.spec, pair.shapes), reference_maps), a)
    return {
        name: (1 - lam) * tensor.float() + lam * moved[name].float() if tensor.is_floating_point() else tensor
        for name, tensor in a.items()
    }


def outputs_of(pair: Pair, output: Any) -> dict[str, Tensor]:
    """Return what a model gives back, by the names of the spec's outputs, in float32."""
    return {name: output[name].float() for name in pair.spec.outputs}


def divergence(
    a: Mapping[str, Tensor],
    b: Mapping[str, Tensor],
    between: Mapping[str, Tensor],
    tokens: Tensor | None,
    lam: float = 0.5,
) -> tuple[Tensor, int, str]:
    """Return (summed divergence, rows, kind) of one batch; several logits of one model are added up.

    A model that has hidden states or embeddings to show is measured by those, not by logits.

    Args:
        tokens: those that count, as booleans; all of them where None.
        lam: b's part in the mean of the ends.
    """
    shown = [name for name in FEATURES if name in a]
    if shown:
        one, other, found = (torch.cat([_rows(x[name], tokens) for name in shown]) for x in (a, b, between))
        cosine = torch.cosine_similarity(found, torch.lerp(one, other, lam), dim=-1)
        return (1 - cosine).sum(), len(cosine), "cosine"
    total, rows, kind = torch.zeros(()), 0, "kl"
    for name in a:
        logits = [_rows(x[name], tokens) for x in (a, b, between)]
        rows = len(logits[0])
        if logits[0].shape[-1] == 1:
            total = total + (torch.lerp(logits[0], logits[1], lam) - logits[2]).square().sum()
            kind = "mse"
        else:
            parts = torch.tensor([1 - lam, lam]).log()
            ensemble = torch.stack([x.log_softmax(-1) + part for x, part in zip(logits[:2], parts, strict=True)])
            ensemble = ensemble.logsumexp(0)
            total = total + (ensemble.exp() * (ensemble - logits[2].log_softmax(-1))).sum()
    return total, rows, kind


def scored_tokens(pair: Pair, k: int) -> Tensor | None:
    """Return which tokens of batch k count: those that are asked for, or all that are not padding; None for images."""
    if pair.text.scored:
        return pair.text.scored[k]
    return token_mask(pair.batches[k])


def _rows(output: Tensor, tokens: Tensor | None) -> Tensor:
    """Return an output as rows: tokens that count, all patches of images, or one row a text."""
    return output if output.ndim < 3 else token_rows(output, tokens)
