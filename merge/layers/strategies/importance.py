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
from merge.errors import CalibrationError, UsageError
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
    """The importance of every layer of a model.

    Attributes:
        scores: for each layer 1 - the mean cosine of its input and output; 0 for a layer that changes no direction.
        text: the texts that the mean is over, in words.
        notes: for the user, on the text and on the token that represents it.
    """

    scores: tuple[float, ...]
    text: str
    notes: tuple[str, ...]


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

    _check_reads_text(checkpoint, stack)
    if not checkpoint.has_tokenizer:
        raise CalibrationError(
            f"{checkpoint.source} has no tokenizer, which --strategy contribution needs to read text. Choose another --strategy."
        )
    calibration = read_calibration(source)
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


def _check_reads_text(checkpoint: Checkpoint, stack: str) -> None:
    from merge.checkpoints.transformers_model import meta_model

    stack_of(checkpoint.model_type, stack)
    model = meta_model(checkpoint.config)
    if model.config.is_encoder_decoder or model.main_input_name != "input_ids" or "vision_config" in checkpoint.config:
        raise UsageError(
            f"{checkpoint.source} is a {type(model).__name__}: --strategy contribution works for models with one text "
            "input. Choose another --strategy."
        )


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
