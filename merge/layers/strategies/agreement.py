"""Scores that need no labels: how far an edited model agrees with the model it was made of, on text.

    cosine   mean cosine of a text's embedding (the mean of its last states) in both models
    rsa      correlation of the cosines of all pairs of texts in both models (representational similarity analysis)
    kl       - KL(full | edited) of the logits, mean over texts or tokens: 0 for equal models

Source: Kriegeskorte et al. 2008, doi:10.3389/neuro.06.004.2008 (RSA); here the rank correlation of the upper triangles.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from merge.checkpoints.hooks import one_logit_a_token, token_mask
from merge.errors import CheckpointError, UsageError, nearest
from merge.layers.activations import LiveLayers, live_layers, states_of
from merge.layers.repair.heal import mean_states

if TYPE_CHECKING:
    from merge.checkpoints.inputs import Batch

MEASURES = ("cosine", "rsa", "kl")
# Pairs of more texts than this are not all compared.
MOST_TEXTS = 2000
# Cosines of vectors that are one but for the rounding of float32 (1e-7) differ by less than this.
LEAST_SPREAD = 1e-12


@dataclass(frozen=True)
class Outputs:
    """What a model gives for every text.

    Attributes:
        embeddings: (texts, units), the mean of each text's last states.
        logits: log probabilities as rows, one for each text or token; None without a head that gives several.
        seconds: of the forward passes.
    """

    embeddings: Tensor
    logits: Tensor | None
    seconds: float


def outputs_of(model: Any, batches: Sequence[Batch], stack: str = "") -> Outputs:
    """Return the outputs of a live model on every text, in the order of the batches."""
    from merge.checkpoints.hooks import watching

    live = live_layers(model, stack)
    embeddings, logits, seconds = [], [], 0.0
    for batch in batches:
        mask, last = token_mask(batch), list[Tensor]()
        sites = [f"{live.path}.{live.names[-1]}:out"]

        def keep(_site: str, activation: Tensor, last: list[Tensor] = last) -> None:
            last.append(activation)

        begun = time.perf_counter()
        with torch.inference_mode(), watching(model.base_model, sites, keep):
            result = model(**batch)
        seconds += time.perf_counter() - begun
        states = last[-1].transpose(0, 1) if live.order == "time" else last[-1]
        embeddings.append(mean_states(states, mask).clone())
        rows = result.get("logits")
        if rows is not None and rows.shape[-1] > 1 and not one_logit_a_token(rows, type(model).__name__):
            rows = rows[mask] if mask is not None and rows.ndim == 3 and rows.shape[:2] == mask.shape else rows
            logits.append(rows.flatten(0, -2).float().log_softmax(-1))
    return Outputs(torch.cat(embeddings), torch.cat(logits) if logits else None, seconds)


def floor_embeddings(live: LiveLayers, batches: Sequence[Batch]) -> Tensor:
    """Return the embeddings of a model without its layers: the mean of the states that its first layer reads."""
    embeddings = []
    for batch in batches:
        mask = token_mask(batch)
        rows = states_of(live, batch, [0])[0]
        if mask is None:
            embeddings.append(rows.reshape(len(next(iter(batch.values()))), -1, rows.shape[-1]).mean(1))
            continue
        texts = mask.sum(1).tolist()
        embeddings.append(torch.stack([part.mean(0) for part in rows.split(texts)]))
    return torch.cat(embeddings)


def agreement(full: Outputs, edited: Outputs, measure: str) -> float:
    """Return a label-free score of an edited model; larger is better.

    Raises:
        UsageError: the measure is unknown, or asks for logits that the model does not have.
        CheckpointError: the whole model gives no numbers.
    """
    whole = full.logits if measure == "kl" else full.embeddings
    if whole is not None and bool(torch.isnan(whole).any() | torch.isinf(full.embeddings).any()):
        raise CheckpointError(
            "the whole model's outputs are NaN or infinite on this text, so that nothing can be compared with it: its numbers "
            "overflow when it runs. Use another checkpoint."
        )
    if measure == "cosine":
        return float(torch.cosine_similarity(full.embeddings.double(), edited.embeddings.double()).mean())
    if measure == "rsa":
        return representational_similarity(full.embeddings, edited.embeddings)
    if measure != "kl":
        raise UsageError(f"unknown label-free score {measure!r}.{nearest(measure, MEASURES)}")
    if full.logits is None or edited.logits is None:
        raise UsageError(
            "kl compares the logits of classes or tokens, which this model does not have. Use cosine or rsa."
        )
    gap = torch.nn.functional.kl_div(edited.logits, full.logits, log_target=True, reduction="batchmean")
    return -float(gap)


def representational_similarity(a: Tensor, b: Tensor) -> float:
    """Return the rank correlation over pairs of texts of their cosines in two models; 0 where either has none to rank.

    Of more than MOST_TEXTS texts the first are compared.
    """
    import numpy as np
    from scipy.stats import spearmanr

    cosines = []
    for embeddings in (a, b):
        unit = torch.nn.functional.normalize(embeddings[:MOST_TEXTS].double(), dim=1)
        square = unit @ unit.T
        upper = torch.triu_indices(len(square), len(square), 1)
        cosines.append(square[upper[0], upper[1]].numpy())
    if len(cosines[0]) < 2:
        raise UsageError("rsa compares pairs of texts, and needs at least 3. Give more text, or use cosine.")
    if any(np.ptp(values) < LEAST_SPREAD for values in cosines):
        return 0.0
    return float(spearmanr(*cosines).statistic)
