"""Proof of a trimmed vocabulary: the same tokens of every text that it was chosen for, and the same outputs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from merge.checkpoints.checkpoint import Checkpoint, without_absent_pooler
from merge.checkpoints.tokenizers.tokenizer import Tokenizer, load, reading_texts
from merge.checkpoints.tokenizers.union import check_written
from merge.checkpoints.transformers_model import quiet
from merge.errors import OutputError
from merge.layers.pruning.proof import largest_difference, loaded
from merge.layers.pruning.running import float_model

if TYPE_CHECKING:
    from torch import Tensor

PROOF_TEXTS = 64  # that both models run on


@dataclass(frozen=True, eq=False)
class Trim:
    """The vocabulary that stays.

    Attributes:
        old, new: the tokenizers.
        rows: old id of each new one, then rows that only a config names.
        texts: that it was chosen for.
    """

    old: Tokenizer
    new: Tokenizer
    rows: Sequence[int]
    texts: Sequence[tuple[str, ...]]

    @property
    def new_ids(self) -> dict[int, int]:
        return {old: number for number, old in enumerate(self.rows)}


def same_on_text(checkpoint: Checkpoint, trim: Trim, config: Mapping[str, Any]) -> Callable[[Path], tuple[str, float]]:
    """Return the proof that a folder reads the texts as the input does and gives the same outputs for a sample of them."""

    def prove(folder: Path) -> tuple[str, float]:
        from merge.checkpoints.inputs import tokenise

        check_written(folder, trim.new, trim.old, ())
        _check_same_tokens(checkpoint, trim, load(folder))
        sample = list(trim.texts[:PROOF_TEXTS])
        batches, _ = tokenise(load(checkpoint.folder), sample, checkpoint.config)
        before, after = float_model(checkpoint), without_absent_pooler(checkpoint, loaded(folder, config))
        states, worst = True, 0.0
        for batch in batches:
            renamed = {**batch, "input_ids": _renumbered(batch["input_ids"], trim)}
            if "decoder_input_ids" in batch:
                renamed["decoder_input_ids"] = _renumbered(batch["decoder_input_ids"], trim)
            equal, error = _compare(before, after, batch, renamed, trim)
            states, worst = states and equal, max(worst, error)
        if not states:
            raise OutputError(
                f"outputs differ from those of {checkpoint.source} on the same text. Nothing was written."
            )
        what = "all outputs" if worst == 0.0 else "logits over the vocabulary (all else is equal bit for bit)"
        return f"all {len(trim.texts):,} texts have the same tokens; on {len(sample)} of them {what}", worst

    return prove


def _check_same_tokens(checkpoint: Checkpoint, trim: Trim, tokenizer: Any) -> None:
    """Stop where the written tokenizer reads a text otherwise than the input's.

    Raises:
        OutputError: it does.
    """
    new = trim.new_ids
    expected = token_ids(load(checkpoint.folder), trim.texts)
    for text, old, found in zip(trim.texts, expected, token_ids(tokenizer, trim.texts), strict=True):
        if [new.get(i) for i in old] != found:
            raise OutputError(
                f"the trimmed tokenizer reads {' '.join(text)[:60]!r} as other tokens. Nothing was written."
            )


def _renumbered(ids: Tensor, trim: Trim) -> Tensor:
    import torch

    table = torch.full((max(trim.rows) + 1,), -1)
    table[torch.tensor(trim.rows)] = torch.arange(len(trim.rows))
    renumbered: Tensor = table[ids]
    return renumbered


def _compare(
    before: Any, after: Any, batch: Mapping[str, Tensor], renamed: Mapping[str, Tensor], trim: Trim
) -> tuple[bool, float]:
    """Return whether all outputs but logits over the vocabulary are equal bit for bit, and the largest difference of any."""
    import torch

    rows, size = torch.tensor(trim.rows), before.config.get_text_config().vocab_size
    old, new = (outputs_with_states(model, inputs) for model, inputs in ((before, batch), (after, renamed)))
    over_tokens = {name for name, value in old.items() if name.endswith("logits") and value.shape[-1] == size}
    old = {name: value[..., rows] if name in over_tokens else value for name, value in old.items()}
    error = largest_difference(old, new)
    return all(torch.equal(old[name], new[name]) for name in old.keys() & new.keys() - over_tokens), error


def outputs_with_states(model: Any, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the outputs of a model that are tensors, hidden states after every layer among them."""
    import torch

    with torch.inference_mode(), quiet():
        outputs = model(**batch, output_hidden_states=True)
    states = {f"hidden state {k}": state for k, state in enumerate(outputs.get("hidden_states") or ())}
    return states | {name: value for name, value in outputs.items() if isinstance(value, torch.Tensor)}


def token_ids(tokenizer: Any, texts: Sequence[tuple[str, ...]]) -> list[list[int]]:
    """Return the ids of every text, whole, with the special tokens that the tokenizer adds."""
    columns = [list(part) for part in zip(*texts, strict=True)]
    with reading_texts(tokenizer.name_or_path):
        encoded = tokenizer(*columns, truncation=False, padding=False, verbose=False)
    ids: list[list[int]] = encoded["input_ids"]
    return ids
