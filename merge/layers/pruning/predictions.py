"""Predictions of a model as rows, and how far two models' predictions are apart, without labels.

A row is one prediction: a text's, or a token's where there is one a token. Rows of logits are compared by the KL
divergence from the full model; hidden states, embeddings and regressions by half the squared distance, which is the KL
divergence of normal distributions of variance one around them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from merge.checkpoints.hooks import one_logit_a_token, token_mask, token_rows

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor

# Outputs of models without a task head; those of a model that has one are its logits.
FEATURES = ("last_hidden_state", "text_embeds", "image_embeds")


@dataclass(frozen=True, eq=False)
class Predictions:
    """Rows of one output.

    Attributes:
        rows: (predictions, classes or units), float32.
        classes: whether a row holds the logits of classes of which one is right.
    """

    rows: Float[Tensor, "predictions n"]
    classes: bool


def predictions(
    outputs: Mapping[str, Any], batch: Mapping[str, Tensor], config: Mapping[str, Any]
) -> list[Predictions]:
    """Return the predictions of a model on a batch, without those at padding."""
    shown = [name for name in FEATURES if name in outputs]
    names = shown or [name for name in outputs if name.endswith("logits")]
    several = config.get("problem_type") == "multi_label_classification"
    mask = token_mask(batch)
    by_output = []
    for name in names:
        value = outputs[name].float()
        if one_logit_a_token(value, str(next(iter(config.get("architectures") or ()), ""))):
            value = value[..., None]
        rows = value if value.ndim < 3 else token_rows(value, mask)
        by_output.append(Predictions(rows, not shown and not several and rows.shape[-1] > 1))
    return by_output


def divergence(full: Sequence[Predictions], other: Sequence[Predictions]) -> tuple[float, int]:
    """Return the divergence of all rows of a batch from the full model's, summed, and the number of rows."""
    total = 0.0
    for one, two in zip(full, other, strict=True):
        if one.classes:
            log_p, log_q = one.rows.double().log_softmax(-1), two.rows.double().log_softmax(-1)
            total += float((log_p.exp() * (log_p - log_q)).sum())
        else:
            total += 0.5 * float((one.rows - two.rows).double().square().sum())
    return total, sum(len(one.rows) for one in full)


def curvature_probe(predicted: Sequence[Predictions], generator: Any) -> Tensor:
    """Return a random number whose gradient g has E[g g^T] = the second derivative of the divergence, summed over rows.

    For logits with probabilities p that is J^T (diag(p) - p p^T) J, and diag(p) - p p^T = B B^T with B = diag(sqrt(p)) -
    p sqrt(p)^T; for hidden states J^T J. The number is <B e, logits> (or <e, states>) for random signs e.
    """
    import torch

    total = torch.zeros(())
    for one in predicted:
        signs = torch.randint(2, one.rows.shape, generator=generator).to(one.rows.dtype) * 2 - 1
        if one.classes:
            p = one.rows.detach().softmax(-1)
            signs = p.sqrt() * signs
            signs = signs - p * signs.sum(-1, keepdim=True)
        total = total + (signs * one.rows).sum()
    return total
