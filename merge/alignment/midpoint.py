"""KL divergence from the endpoints' ensemble to a model between them, on text without labels.

At lam, b's part, it is the mean of KL(p || q): p = (1 - lam) p_a + lam p_b is the ensemble of the predictions of the
two endpoints a and b, q the prediction of the model with weights (1 - lam) a + lam b. For masked language models, the
mean is over masked words (`merge.alignment.masking`). Models without a task head are measured by 1 - cosine between the
last hidden states of the model between and the same mean of the endpoints'. Smaller is better.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from merge.alignment.pair import Alignment, Pair, as_transform, in_dtype
from merge.checkpoints.hooks import token_mask, token_rows
from merge.checkpoints.transformers_model import set_weights
from merge.progress import begin_phase, track
from merge.symmetry.permutation import Permutation, identity
from merge.symmetry.spec import parse
from merge.symmetry.transform import Transform, apply_transform, apply_transform_axes

# Outputs that are hidden states or embeddings, compared by cosine.
FEATURES = ("last_hidden_state", "text_embeds", "image_embeds")

SCORES = {
    "kl": "KL from ensemble to midpoint",
    "mse": "squared error to the endpoints' mean",
    "cosine": "1 - cosine to the endpoints' mean",
}

# b's share in the models between the endpoints where a line is measured.
ALONG = (0.25, 0.5, 0.75)

# The outputs of the endpoints are kept up to so many bytes; beyond, the endpoints are run again for every candidate.
MAX_KEPT_BYTES = 1 << 29
# With fewer texts, or if the ensemble gives one class to more than this share of them, the user is told that the scores
# are uncertain.
MIN_TEXTS, MAX_CLASS_SHARE = 256, 0.9
# So too where the share of a class in the text is less by this than the mean probability that the models give it.
MAX_PRIOR_DIFFERENCE = 0.15


class EndpointOutputs:
    """The outputs of both models of a pair on its batches: computed once, and again only if too large to keep."""

    def __init__(self, pair: Pair) -> None:
        self.pair = pair
        self._kept: dict[int, tuple[dict[str, Tensor], dict[str, Tensor]]] = {}
        self._bytes = 0
        self._shares: dict[int, Tensor] = {}

    @cached_property
    def models(self) -> tuple[Any, Any]:
        """Both models; built when an output is first asked for."""
        return self.pair.model(self.pair.a, copied=False), self.pair.model(self.pair.b, copied=False)

    def __call__(self, k: int) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Return the outputs of a and of b for batch k."""
        if k in self._kept:
            return self._kept[k]
        batch = in_dtype(self.pair.batches[k], torch.float32)
        a, b = (outputs_of(self.pair, model(**batch)) for model in self.models)
        if list(a) == ["logits"] and a["logits"].ndim == 2 and a["logits"].shape[1] > 1:
            self._shares[k] = (a["logits"].softmax(-1) + b["logits"].softmax(-1)) / 2
        self._bytes += sum(out.nbytes for outputs in (a, b) for out in outputs.values())
        if self._bytes <= MAX_KEPT_BYTES:
            self._kept[k] = a, b
        return a, b

    def notes(self, texts: int) -> tuple[str, ...]:
        """Return notes for the user on the texts, once all outputs are computed: too few, nearly all of one class, or with the
        classes in other shares than the models expect.

        Args:
            texts: how many the user gave; the outputs may be those of a part.
        """
        notes = []
        if texts < MIN_TEXTS:
            notes.append(
                f"the choice of axes rests on {texts} texts only; with {MIN_TEXTS} or more it is surer (--text)"
            )
        if self._shares:
            ensemble = torch.cat(list(self._shares.values()))
            counts = ensemble.argmax(-1).bincount()
            share, label = float(counts.max() / counts.sum()), int(counts.argmax())
            if share > MAX_CLASS_SHARE:
                notes.append(
                    f"the calibration text is one-sided: both models together call {share:.0%} of it {self._name(label)!r}, so "
                    "that the choice of axes may not hold elsewhere. Give a random sample of all classes (--text)"
                )
            notes += self._prior_note(ensemble.mean(0).tolist())
        return tuple(notes)

    def _name(self, label: int) -> str:
        return str((self.pair.config.get("id2label") or {}).get(str(label), f"LABEL_{label}"))

    def _prior_note(self, expected: Sequence[float]) -> list[str]:
        """Return a note where the text has the classes in other shares than the models expect; none without its labels."""
        names = [self._name(label) for label in range(len(expected))]
        class_of = {name.casefold(): k for k, name in enumerate(names)} | {str(k): k for k in range(len(names))}
        actual = [0.0] * len(names)
        for value, share in self.pair.text.class_shares.items():
            if (k := class_of.get(value.casefold())) is None:
                return []  # the text names its classes otherwise
            actual[k] += share
        differences = [mean - share for mean, share in zip(expected, actual, strict=True)]
        most = max(range(len(names)), key=lambda k: differences[k])
        if not any(actual) or differences[most] <= MAX_PRIOR_DIFFERENCE:
            return []
        return [
            f"both models together expect {expected[most]:.0%} {names[most]!r}, and the labels of the calibration text say "
            f"{actual[most]:.0%}: on such text a merge that is as sure as they are may have a higher loss than one that is not "
            "aligned, and be more often right. Go by the accuracy and by the calibrated barrier (evaluate-models barrier)"
        ]


def score(
    moves: Sequence[Permutation | Transform | Alignment],
    pair: Pair,
    ends: EndpointOutputs | None = None,
    lam: float = 0.5,
) -> tuple[list[float], str]:
    """Return the divergence at lam for each candidate alignment of b, and its kind (a key of SCORES).

    One model between the endpoints is in memory at a time. An alignment may transform a as well, but no axis of an
    output.

    Args:
        moves: the candidates.
        ends: the outputs of the endpoints, if computed already: of this pair, or of one with the same functions.
        lam: b's part of the model between, from 0 to 1.
    """
    ends = ends or EndpointOutputs(pair)
    lines = {name: parse(line) for name, line in pair.spec.outputs.items()}
    begin_phase("choosing which axes move")
    model, scores, kind = pair.model(pair.a), [], "kl"
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
                between_outputs = outputs_of(pair, model(**in_dtype(batch, torch.float32)))
                value, rows, kind = divergence(a, b, between_outputs, scored_tokens(pair, k), lam)
                total, count = total + float(value), count + rows
            scores.append(total / count)
    return scores, kind


def _between(pair: Pair, t: Transform, reference_maps: Mapping[str, Tensor], lam: float) -> dict[str, Tensor]:
    """Return the weights (1 - lam) a + lam b after the transforms."""
    moved, a = apply_transform(pair.spec, t, pair.b), pair.a
    if reference_maps:
        a = apply_transform(pair.spec, Transform(identity(pair.spec, pair.shapes), reference_maps), a)
    return {
        name: (1 - lam) * tensor.float() + lam * moved[name].float() if tensor.is_floating_point() else tensor
        for name, tensor in a.items()
    }


def outputs_of(pair: Pair, output: Any) -> dict[str, Tensor]:
    """Return the outputs of a model that the spec names, in float32; some are given only where their inputs are."""
    return {name: output[name].float() for name in pair.spec.outputs if name in output}


def divergence(
    a: Mapping[str, Tensor],
    b: Mapping[str, Tensor],
    between: Mapping[str, Tensor],
    tokens: Tensor | None,
    lam: float = 0.5,
) -> tuple[Tensor, int, str]:
    """Return (summed divergence, number of rows, kind) of one batch; several logits of one model are added up.

    A model that returns hidden states or embeddings is measured by those, not by logits.

    Args:
        a, b, between: outputs of the endpoints and of the model between, by name.
        tokens: boolean mask of the tokens that are compared, shape (texts, length); None for all.
        lam: b's part in the mean of the endpoints.
    """
    shown = [name for name in FEATURES if name in a]
    if shown:
        a_rows, b_rows, rows = (torch.cat([_rows(x[name], tokens) for name in shown]) for x in (a, b, between))
        cosine = torch.cosine_similarity(rows, torch.lerp(a_rows, b_rows, lam), dim=-1)
        return (1 - cosine).sum(), len(cosine), "cosine"
    total, count, kind = torch.zeros(()), 0, "kl"
    for name in a:
        logits = [_rows(x[name], tokens) for x in (a, b, between)]
        count = len(logits[0])
        if logits[0].shape[-1] == 1:  # a regression
            total = total + (torch.lerp(logits[0], logits[1], lam) - logits[2]).square().sum()
            kind = "mse"
        else:
            log_parts = torch.tensor([1 - lam, lam]).log()
            ends = [x.log_softmax(-1) + part for x, part in zip(logits[:2], log_parts, strict=True)]
            ensemble = torch.stack(ends).logsumexp(0)
            total = total + (ensemble.exp() * (ensemble - logits[2].log_softmax(-1))).sum()
    return total, count, kind


def scored_tokens(pair: Pair, k: int) -> Tensor | None:
    """Return which tokens of batch k are compared: masked words, or all tokens but padding; None for images."""
    if pair.text.scored:
        return pair.text.scored[k]
    return token_mask(pair.batches[k])


def _rows(output: Tensor, tokens: Tensor | None) -> Tensor:
    """Return an output as rows: one for each token that is compared, for each patch of an image, or for each text."""
    return output if output.ndim < 3 else token_rows(output, tokens)
