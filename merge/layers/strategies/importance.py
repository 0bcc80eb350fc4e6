"""Importance of each layer: how much its output differs in direction from its input. The `contribution` strategy uses it.

A layer whose output has nearly the direction of its input has done little, and is the first to be dropped.

Source: Sajjad et al. 2023, arXiv:2004.03844, section 3 (contribution-based dropping): the cosine similarity of the
sentence token's representation before and after each layer, averaged over texts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from merge.checkpoints.hooks import watching
from merge.errors import CalibrationError
from merge.layers.activations import check_reads_text
from merge.layers.stacks import layer_count, stack_of
from merge.progress import track
from merge.text.source import TextSource

if TYPE_CHECKING:
    from torch import Tensor

    from merge.checkpoints.checkpoint import Checkpoint
    from merge.checkpoints.inputs import Batch

DEFAULT_TEXT = TextSource()


@dataclass(frozen=True)
class LayerImportance:
    """What a strategy measured of the layers of a model.

    Attributes:
        scores: of each layer, or of each block by its first layer; empty for a search.
        text: the texts that the mean is over, in words.
        notes: for the user, on the text and on the token that represents it.
        strategy: which one.
        meaning: what a score is.
        candidates: of a search, the layers that each candidate keeps, and its score.
    """

    scores: tuple[float, ...]
    text: str
    notes: tuple[str, ...]
    strategy: str = "contribution"
    meaning: str = "1 - cosine of a layer's input and output"
    candidates: tuple[tuple[tuple[int, ...], float], ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Return the measurement for a manifest."""
        if self.candidates:
            tried = [{"kept": list(kept), "score": score} for kept, score in self.candidates]
            return {"strategy": self.strategy, "meaning": self.meaning, "text": self.text, "candidates": tried}
        return {
            "strategy": self.strategy,
            "meaning": self.meaning,
            "scores": self.scores,
            "text": self.text,
            "notes": self.notes,
        }


def measure_importance(checkpoint: Checkpoint, source: TextSource = DEFAULT_TEXT, stack: str = "") -> LayerImportance:
    """Return the importance of every layer of a checkpoint on calibration text, run in float32.

    Raises:
        CalibrationError: the text cannot be read, or the checkpoint has no tokenizer.
        UsageError: the layers do not read text.
    """
    import torch

    from merge.checkpoints.inputs import load_tokenizer, tokenise
    from merge.checkpoints.transformers_model import build
    from merge.text.calibration import read_calibration

    check_reads_text(checkpoint, stack, "strategy contribution")
    calibration = read_calibration(source, matching=False)
    tokenizer = load_tokenizer(checkpoint.folder)
    batches, truncated = tokenise(tokenizer, calibration.samples, checkpoint.config)
    tensors = {checkpoint.written_name(name): checkpoint.tensor(name) for name in checkpoint.tensors}
    model = build(checkpoint.config, tensors, torch.float32)
    token = tokenizer.cls_token_id
    note = () if token is not None else ("this tokenizer has no sentence token: the last token represents each text",)
    scores = layer_scores(model, batches, token, stack)
    return LayerImportance(tuple(scores), calibration.source, (*calibration.notes, *truncated, *note))


def layer_scores(model: Any, batches: Sequence[Batch], token: int | None, stack: str = "") -> list[float]:
    """Return for each layer 1 - mean over texts of cos(input, output) at the sentence token.

    Args:
        model: in evaluation mode.
        token: id of the sentence token, of which the first occurrence counts; the last attended token if None.
    Raises:
        CalibrationError: a text holds no sentence token.
    """
    import torch

    family, config = model.config.model_type, model.config.to_dict()
    path, total = stack_of(family, stack).paths[0], layer_count(config, stack)
    layers = [name for name, _ in model.base_model.get_submodule(path).named_children()]
    sites = [f"{path}.{layer}:{side}" for layer in layers for side in ("in", "out")]
    sums, texts = torch.zeros(total, dtype=torch.float64), 0
    for batch in track(batches, "measuring layers"):
        recorded: list[Tensor] = []

        def record(_site: str, activation: Tensor, recorded: list[Tensor] = recorded) -> None:
            # Only XLNet has the position axis before the batch axis.
            recorded.append(activation.transpose(0, 1) if family == "xlnet" else activation)

        with torch.inference_mode(), watching(model.base_model, sites, record):
            model(**batch)
        rows, positions = _sentence_tokens(batch, token)
        # Layers run in order, also those of ALBERT that share a group: each shows its input, then its output.
        assert len(recorded) == 2 * total, f"{len(recorded) // 2} layers ran of {total}"
        for layer, (before, after) in enumerate(zip(recorded[::2], recorded[1::2], strict=True)):
            pair = before[rows, positions].double(), after[rows, positions].double()
            sums[layer] += torch.nn.functional.cosine_similarity(*pair, dim=-1).sum()
        texts += len(rows)
    return [1.0 - float(value) / texts for value in sums]


def _sentence_tokens(batch: Batch, token: int | None) -> tuple[Tensor, Tensor]:
    """Return (rows, positions) of the token that represents each text."""
    import torch

    from merge.checkpoints.inputs import attended

    ids, mask = batch["input_ids"], attended(batch)
    ids = ids.reshape(-1, ids.shape[-1])
    rows = torch.arange(len(ids))
    if token is None:
        positions = mask.shape[1] - 1 - mask.flip(1).int().argmax(1)
        return rows, positions
    hits = (ids == token) & mask
    if not bool(hits.any(1).all()):
        raise CalibrationError(
            f"the sentence token (id {token}) is missing from a text: the tokenizer does not add it."
        )
    return rows, hits.int().argmax(1)
