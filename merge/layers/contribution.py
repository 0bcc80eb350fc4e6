"""How much each layer of a model changes what it is given: the measure behind the `contribution` strategy.

A layer whose output points where its input pointed has done little, and is the first to be dropped.

Source: Sajjad et al. 2023, arXiv:2004.03844, section 3 (contribution-based dropping): the cosine similarity of the
sentence token's representation before and after each layer, averaged over texts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from merge.errors import CalibrationError, UsageError
from merge.layers.stacks import layer_count, stack_of
from merge.progress import track

if TYPE_CHECKING:
    from torch import Tensor

    from merge.checkpoints.checkpoint import Checkpoint
    from merge.checkpoints.inputs import Batch


@dataclass(frozen=True)
class Contribution:
    """What was measured, and on what.

    Attributes:
        scores: for each layer 1 - the mean cosine of its input and output; 0 where a layer changes no direction.
        text: what texts they are a mean over.
        notes: on the text, and on which token stands for it.
    """

    scores: tuple[float, ...]
    text: str
    notes: tuple[str, ...]


def measure_contribution(
    checkpoint: Checkpoint,
    text: str | None = None,
    columns: tuple[str, ...] | None = None,
    samples: int = 512,
    seed: int = 0,
    stack: str = "",
) -> Contribution:
    """Return the contribution of every layer of a checkpoint on calibration text, run in float32.

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
            f"{checkpoint.source} has no tokenizer to read text with, which contribution needs. Choose another --strategy."
        )
    read = read_calibration(text, columns, samples, seed)
    tokenizer = load_tokenizer(checkpoint.folder)
    batches, cut = tokenise(tokenizer, read.samples, checkpoint.config)
    tensors = {checkpoint.written_name(name): checkpoint.tensor(name) for name in checkpoint.tensors}
    model = build(checkpoint.config, tensors, torch.float32)
    token = tokenizer.cls_token_id
    note = () if token is not None else ("no sentence token in this tokenizer: the last token of a text stands for it",)
    scores = layer_scores(model, batches, token, stack)
    return Contribution(tuple(scores), read.source, (*read.notes, *cut, *note))


def layer_scores(model: Any, batches: Sequence[Batch], token: int | None, stack: str = "") -> list[float]:
    """Return for each layer 1 - mean over texts of cos(input, output) at the sentence token.

    Args:
        model: in evaluation mode.
        token: id of the sentence token, whose first occurrence is read; the last attended token if None.
    Raises:
        CalibrationError: a text holds no sentence token.
    """
    import torch

    family, config = model.config.model_type, model.config.to_dict()
    layers = model.base_model.get_submodule(stack_of(family, stack).paths[0])
    total = layer_count(config, stack)
    met: list[tuple[Tensor, Tensor]] = []

    def keep(_module: Any, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        given, made = args[0] if args else kwargs["hidden_states"], output[0] if isinstance(output, tuple) else output
        # XLNet alone has the position before the text.
        met.append((given.transpose(0, 1), made.transpose(0, 1)) if family == "xlnet" else (given, made))

    sums, texts = torch.zeros(total, dtype=torch.float64), 0
    hooks = [layer.register_forward_hook(keep, with_kwargs=True) for layer in layers]
    try:
        for batch in track(batches, "measuring layers"):
            met.clear()
            with torch.inference_mode():
                model(**batch)
            rows, places = _sentence_tokens(batch, token)
            # Layers run in order, those of ALBERT that share a group as well.
            assert len(met) == total, f"{len(met)} layers ran of {total}"
            for layer, (given, made) in enumerate(met):
                pair = given[rows, places].double(), made[rows, places].double()
                sums[layer] += torch.nn.functional.cosine_similarity(*pair, dim=-1).sum()
            texts += len(rows)
    finally:
        for hook in hooks:
            hook.remove()
    return [1.0 - float(value) / texts for value in sums]


def _check_reads_text(checkpoint: Checkpoint, stack: str) -> None:
    from merge.checkpoints.transformers_model import meta_model

    stack_of(checkpoint.model_type, stack)
    model = meta_model(checkpoint.config)
    if model.config.is_encoder_decoder or model.main_input_name != "input_ids" or "vision_config" in checkpoint.config:
        raise UsageError(
            f"{checkpoint.source} is a {type(model).__name__}: contribution is measured on models of one text input. "
            "Choose another --strategy."
        )


def _sentence_tokens(batch: Batch, token: int | None) -> tuple[Tensor, Tensor]:
    """Return (rows, places) of the token that stands for each text."""
    import torch

    from merge.checkpoints.inputs import attended

    ids, mask = batch["input_ids"], attended(batch)
    ids = ids.reshape(-1, ids.shape[-1])
    rows = torch.arange(len(ids))
    if token is None:
        places = mask.shape[1] - 1 - mask.flip(1).int().argmax(1)
        return rows, places
    hits = (ids == token) & mask
    if not bool(hits.any(1).all()):
        raise CalibrationError(f"the sentence token (id {token}) is missing in a text: the tokenizer does not add it.")
    return rows, hits.int().argmax(1)
