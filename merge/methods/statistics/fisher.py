"""Fisher information: the sensitivity of a model's predictions to each of its parameters, without labels.

The diagonal of F = E_x E_{y ~ p(y|x)} [(d log p(y|x) / d theta)^2], with the gradient of every example squared separately.
The expectation over y depends on the head:

    ForSequenceClassification  exact over all classes; for regression y ~ N(outputs, 1), also exact
    ForTokenClassification     one y drawn per token that is not padding, log p summed over the tokens
    ForMaskedLM                15% of the words masked, one y drawn per masked position, log p summed over the positions

Draws of different tokens are independent given the text, so the sum over tokens is an unbiased estimate of the Fisher
information of the text's whole prediction.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from merge.checkpoints.checkpoint import Checkpoint
from merge.checkpoints.transformers_model import build
from merge.errors import CalibrationError, CheckpointError
from merge.methods.statistics.record import StatisticsError
from merge.progress import track
from merge.text.masking import draw_words

if TYPE_CHECKING:
    import torch
    from jaxtyping import Bool, Float
    from torch import Tensor

    from merge.checkpoints.inputs import Batch

SEQUENCE, TOKENS, MASKED = "ForSequenceClassification", "ForTokenClassification", "ForMaskedLM"
BLOCK = (
    32  # texts whose squares are summed in float32: adding to float64 each time would take longer than the gradients
)


def measure_fisher(checkpoint: Checkpoint, batches: Sequence[Batch], generator: torch.Generator) -> dict[str, Tensor]:
    """Return the diagonal Fisher information of every parameter, by canonical name, averaged over the texts.

    Runs one text at a time, as the square of a sum over a batch is not the sum of squares. Parameters that the head does
    not use have 0. Squares are summed over a few texts in the model's precision, over these sums in float64. Memory: the model,
    its gradient, and 12 bytes a parameter for the sums (BERT-base: 2.2 GB).

    Args:
        generator: draws masked positions and predictions; not used for sequence classification.
    Returns:
        Float32 tensors with the shapes of the parameters.
    Raises:
        StatisticsError: the head is not one of the three above.
        CalibrationError: a text has no word to mask.
        CheckpointError: a gradient is not finite.
    Source: Matena & Raffel 2022, arXiv:2111.09832, section 3.
    """
    import torch

    head = _head(checkpoint)
    model = load_model(checkpoint)
    parameters = canonical_parameters(model, checkpoint)
    totals = {name: torch.zeros(p.shape, dtype=torch.float64) for name, p in parameters.items()}
    block = {name: torch.zeros_like(p, requires_grad=False) for name, p in parameters.items()}
    examples = [(batch, row) for batch in batches for row in range(len(batch["input_ids"]))]
    special = _special_ids(checkpoint) if head == MASKED else None
    for number, (batch, row) in enumerate(track(examples, "measuring Fisher information"), start=1):
        inputs = one_text(batch, row)
        where = inputs["attention_mask"].bool()
        if special is not None:
            where = _places_to_mask(inputs["input_ids"], where, special, generator)
            inputs = {**inputs, "input_ids": inputs["input_ids"].masked_fill(where, special[0])}
        logits = model(**inputs).logits
        if head == SEQUENCE:
            directions = label_directions(logits.detach()[0], checkpoint.config)[:, None]
        else:
            directions = drawn_direction(logits.detach(), where, generator)[None]
        for gradients in _gradients(logits, directions, list(parameters.values())):
            for sums, gradient in zip(block.values(), gradients, strict=True):
                if gradient is not None:
                    sums.addcmul_(gradient, gradient)
        if number % BLOCK == 0 or number == len(examples):
            for name, sums in block.items():
                totals[name] += sums
                sums.zero_()
    for name, total in totals.items():
        if not torch.isfinite(total).all():
            raise CheckpointError(f"{checkpoint.source}: the gradient of {name} is not finite. This model is broken.")
    return {name: (total / len(examples)).float() for name, total in totals.items()}


def label_directions(logits: Float[Tensor, " c"], config: Mapping[str, Any]) -> Float[Tensor, "k c"]:
    """Return the directions whose squared gradients sum to the Fisher information of one text's label.

    For a regression, as transformers treats a single output, y ~ N(outputs, 1): each output separately.
    """
    import torch

    if len(logits) == 1 or config.get("problem_type") == "regression":
        return torch.eye(len(logits), dtype=logits.dtype)
    return class_directions(logits)


def class_directions(logits: Float[Tensor, " c"]) -> Float[Tensor, "k c"]:
    """Return rows d_j with sum_j (d_j . dz)^2 = sum_y p_y (d log p_y)^2 for every change dz of the logits.

    The right side is dz' (diag p - p p') dz, of rank c - 1, so that c - 1 backward passes are enough: with q = sqrt(p) and H
    the reflection that takes q to the first axis, diag p - p p' = diag q H diag(0, 1, ..., 1) H diag q.
    """
    import torch

    count = len(logits)
    root = (logits.double().log_softmax(0) / 2).exp()
    mirror = root.clone()
    mirror[0] += 1.0
    reflection = torch.eye(count, dtype=torch.float64) - 2 * torch.outer(mirror, mirror) / mirror.square().sum()
    return (reflection[1:] * root).to(logits.dtype)


def drawn_direction(
    logits: Float[Tensor, "1 t c"], where: Bool[Tensor, "1 t"], generator: torch.Generator
) -> Float[Tensor, "1 t c"]:
    """Return the gradient by the logits of sum_t log p(y_t), with one y_t drawn from the model at each position in `where`."""
    import torch

    chances = logits[where].double().softmax(-1)
    drawn = torch.multinomial(chances, 1, generator=generator)
    direction = torch.zeros_like(logits)
    direction[where] = (torch.zeros_like(chances).scatter_(-1, drawn, 1.0) - chances).to(logits.dtype)
    return direction


def _gradients(logits: Tensor, directions: Tensor, parameters: list[Tensor]) -> Iterator[Sequence[Tensor | None]]:
    """Yield the parameters' gradients along each direction of the logits."""
    import torch

    for k, direction in enumerate(directions):
        yield torch.autograd.grad(
            logits, parameters, direction, retain_graph=k + 1 < len(directions), allow_unused=True
        )


def one_text(batch: Batch, row: int) -> dict[str, Tensor]:
    """Return one text of a batch as a batch of one, without its padding."""
    width = int(batch["attention_mask"][row].nonzero()[-1]) + 1
    return {name: tensor[row : row + 1, :width] for name, tensor in batch.items()}


def load_model(checkpoint: Checkpoint) -> Any:
    """Return the transformers model of a checkpoint, in float32 or, where any of its tensors is, float64.

    Raises:
        CheckpointError: a tensor holds NaN or infinity.
        StatisticsError: its input is not a single text.
    """
    import torch

    tensors = checkpoint.state_dict()
    for name, tensor in tensors.items():
        if not torch.isfinite(tensor).all():
            raise CheckpointError(
                f"{checkpoint.source}: {name} holds NaN or infinity. This model is broken; leave it out."
            )
    wide = any(tensor.dtype == torch.float64 for tensor in tensors.values())
    written = {checkpoint.written_name(name): tensor for name, tensor in tensors.items()}
    model = build(checkpoint.config, written, torch.float64 if wide else torch.float32)
    if model.config.is_encoder_decoder or model.main_input_name != "input_ids":
        raise StatisticsError(
            f"{checkpoint.source} is a {checkpoint.architecture}: statistics need a model with one text input."
        )
    return model


def canonical_parameters(model: Any, checkpoint: Checkpoint) -> dict[str, Tensor]:
    """Return the model's parameters by canonical name; tied weights are one parameter under the first name."""
    canonical = {checkpoint.written_name(name): name for name in checkpoint.tensors}
    named = dict(model.named_parameters(remove_duplicate=False))
    return {canonical[written]: parameter for written, parameter in named.items() if written in canonical}


def _head(checkpoint: Checkpoint) -> str:
    """Return the type of the model's head."""
    architecture, config = checkpoint.architecture, checkpoint.config
    head = next((h for h in (SEQUENCE, TOKENS, MASKED) if architecture.endswith(h)), None)
    if head is None:
        raise StatisticsError(
            f"the Fisher information of {checkpoint.source}, a {architecture}, is not defined here: it needs a distribution "
            f"over labels or words, as {SEQUENCE}, {TOKENS} and {MASKED} have. Save the model with its task head."
        )
    if head == SEQUENCE and config.get("problem_type") == "multi_label_classification":
        raise StatisticsError(
            f"the Fisher information of {checkpoint.source} is not defined here: with problem_type "
            "multi_label_classification its classes are no distribution. Merge it by another method."
        )
    return head


def _special_ids(checkpoint: Checkpoint) -> tuple[int, frozenset[int]]:
    """Return the id of the mask token, and the ids of tokens that frame a text and are never masked."""
    from merge.checkpoints.inputs import load_tokenizer

    tokenizer = load_tokenizer(checkpoint.folder)
    if tokenizer.mask_token_id is None:
        raise StatisticsError(f"{checkpoint.source}: its tokenizer has no mask token, so nothing can be masked.")
    frame = (tokenizer.cls_token_id, tokenizer.sep_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id)
    return int(tokenizer.mask_token_id), frozenset(int(i) for i in frame if i is not None)


def _places_to_mask(
    ids: Tensor, real: Tensor, special: tuple[int, frozenset[int]], generator: torch.Generator
) -> Tensor:
    """Return which words of one text are masked; each becomes the mask token (random words are rare in training)."""
    import torch

    words = real & ~torch.isin(ids, torch.tensor(sorted(special[1])))
    if not words.any():
        raise CalibrationError("a text holds no word that could be masked. Leave it out of the calibration text.")
    masked = torch.zeros_like(real)
    masked[draw_words(words, generator)] = True
    return masked
