"""The divergence of a model between two others from their ensemble, on one batch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from merge.alignment.pair import Pair
from merge.checkpoints.hooks import one_logit_a_token, token_mask, token_rows

# Outputs that are hidden states or embeddings, compared by cosine.
FEATURES = ("last_hidden_state", "text_embeds", "image_embeds")
# Outputs that choose one token of a text. A token that is padding has no part in the choice.
SPANS = ("start_logits", "end_logits")
IMPOSSIBLE = -1e9  # a logit whose probability is 0 in float32, and whose logarithm is finite


@dataclass(frozen=True)
class Divergence:
    """The divergence of one candidate on some text.

    Attributes:
        by_text: of each text, summed over its rows; None where rows are not told apart by text.
        total: of all of them.
        rows: how many rows were compared.
    """

    by_text: Float[Tensor, " texts"] | None
    total: float
    rows: int

    @property
    def mean(self) -> float:
        return self.total / self.rows

    def __add__(self, other: Divergence) -> Divergence:
        both = None if self.by_text is None or other.by_text is None else torch.cat([self.by_text, other.by_text])
        return Divergence(both, self.total + other.total, self.rows + other.rows)


def outputs_of(pair: Pair, output: Any) -> dict[str, Tensor]:
    """Return the outputs of a model that the spec names, in float32; some are given only where their inputs are.

    A discriminator (ElectraForPreTraining) has one logit x for each token, shape (texts, length): the class "replaced"
    against "as it was". It is returned as the two logits (0, x), whose softmax is the sigmoid of x.
    """
    outputs = {name: output[name].float() for name in pair.spec.outputs if name in output}
    architecture = str(next(iter(pair.config.get("architectures") or ()), ""))
    if "logits" in outputs and one_logit_a_token(outputs["logits"], architecture):
        x = outputs["logits"]
        outputs["logits"] = torch.stack([torch.zeros_like(x), x], -1)
    return outputs


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
    outputs, kind = _row_divergences(a, b, between, tokens, lam)
    return sum((rows.sum() for rows in outputs), torch.zeros(())), len(outputs[-1]), kind


def divergence_by_text(
    a: Mapping[str, Tensor], b: Mapping[str, Tensor], between: Mapping[str, Tensor], tokens: Tensor | None, lam: float
) -> tuple[Divergence, str]:
    """Return the divergence of one batch, by text too, as `divergence`."""
    outputs, kind = _row_divergences(a, b, between, tokens, lam)
    texts, separate = len(next(iter(between.values()))), True
    by_text = torch.zeros(texts, dtype=torch.float64)
    for rows in outputs:
        if len(rows) == texts:
            by_text += rows.double()
        elif tokens is not None and tokens.ndim == 2 and len(tokens) == texts and len(rows) == int(tokens.sum()):
            by_text.index_add_(0, tokens.nonzero()[:, 0], rows.double())
        else:
            separate = False
    total = sum(float(rows.sum()) for rows in outputs)
    return Divergence(by_text if separate else None, total, len(outputs[-1])), kind


def _row_divergences(
    a: Mapping[str, Tensor], b: Mapping[str, Tensor], between: Mapping[str, Tensor], tokens: Tensor | None, lam: float
) -> tuple[list[Float[Tensor, " rows"]], str]:
    """Return the divergences of the rows of each output, and their kind; features of several outputs are rows alike."""
    shown = [name for name in FEATURES if name in a]
    if shown:
        a_rows, b_rows, rows = (torch.cat([_rows(x[name], tokens) for name in shown]) for x in (a, b, between))
        return [1 - torch.cosine_similarity(rows, torch.lerp(a_rows, b_rows, lam), dim=-1)], "cosine"
    outputs, kind = [], "kl"
    for name in a:
        logits = [_rows(_without_padding(name, x[name], tokens), tokens) for x in (a, b, between)]
        if logits[0].shape[-1] == 1:  # a regression
            outputs.append((torch.lerp(logits[0], logits[1], lam) - logits[2]).square().flatten(1).sum(1))
            kind = "mse"
        else:
            log_parts = torch.tensor([1 - lam, lam]).log()
            ends = [x.log_softmax(-1) + part for x, part in zip(logits[:2], log_parts, strict=True)]
            ensemble = torch.stack(ends).logsumexp(0)
            outputs.append((ensemble.exp() * (ensemble - logits[2].log_softmax(-1))).flatten(1).sum(1))
    return outputs, kind


def _without_padding(name: str, output: Tensor, tokens: Tensor | None) -> Tensor:
    """Return the logits of a choice among the tokens of a text, with no probability for padding."""
    if name not in SPANS or tokens is None or tokens.shape != output.shape:
        return output
    return output.masked_fill(~tokens.to(output.device), IMPOSSIBLE)


def scored_tokens(pair: Pair, k: int) -> Tensor | None:
    """Return which tokens of batch k are compared: masked words, or all tokens but padding; None for images."""
    if pair.text.scored:
        return pair.text.scored[k]
    return token_mask(pair.batches[k])


def _rows(output: Tensor, tokens: Tensor | None) -> Tensor:
    """Return an output as rows: one for each token that is compared, for each patch of an image, or for each text."""
    return output if output.ndim < 3 else token_rows(output, tokens)
