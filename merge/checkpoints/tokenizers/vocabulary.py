"""Vocabulary: one vocabulary for models with different ones, and each model's embedding rows in its order.

The result has the vocabulary of one model, or the union of all. A token is a row; rows without a token (a vocab_size
padded beyond the tokenizer, ids with gaps) are matched by their position. In a union the tokens of the first model keep
their ids, new tokens of the later models follow in their order, and may take ids of the first model's padding.
"""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from merge.checkpoints.tokenizers.files import FILES, tokenizer_names
from merge.checkpoints.tokenizers.tokenizer import Tokenizer
from merge.checkpoints.tokenizers.union import check_written, setting_differences, unite
from merge.checkpoints.tokenizers.write import file_texts
from merge.errors import MismatchError

if TYPE_CHECKING:
    from jaxtyping import Int
    from torch import Tensor

# The settings that decide how a token is spelled: how it writes a space, or the inside of a word.
SPELLING = ("model.type", "model.continuing_subword_prefix", "model.end_of_word_suffix")
ALPHABETS = ("ByteLevel", "Metaspace")


@dataclass(frozen=True, eq=False)
class VocabularyPlan:
    """The vocabulary of the result, and the rows that each model has for it.

    Attributes:
        tokenizer: the tokenizer of the result.
        parents: the tokenizers of the models.
        chosen: the model whose settings, and vocabulary unless it is a union, the result has; the first for a union.
        size: rows of the result's embedding tables.
        rows: for each model, its row for each row of the result; -1 where it has none.
        extra_special: special tokens without a role that the chosen model does not list.
        notes: how many tokens come from which model.
    """

    tokenizer: Tokenizer
    parents: tuple[Tokenizer, ...]
    chosen: int
    size: int
    rows: tuple[Int[Tensor, " size"], ...]
    extra_special: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def tokens(self) -> Mapping[str, int]:
        """Token -> id of the result."""
        return self.tokenizer.tokens

    @property
    def rewritten(self) -> bool:
        """Whether the tokenizer of the result is not that of the chosen model."""
        return self.tokenizer.stored != self.parents[self.chosen].stored


def plan_vocabulary(
    tokenizers: Sequence[Tokenizer | None], sources: Sequence[str], sizes: Sequence[int], wanted: Literal["union"] | int
) -> VocabularyPlan:
    """Return the vocabulary of the result and the rows that each model gives to it.

    Where tokenizers and sizes are the same the plan is the identity, without notes.

    Args:
        sources: the models' names, for messages.
        sizes: rows of the models' embedding tables (vocab_size), which may exceed the tokenizer's tokens.
        wanted: "union", or the index of the model whose vocabulary the result has.
    Raises:
        MismatchError: a model has no tokenizer or too few rows for it, or the vocabularies cannot be brought together.
    """
    import torch

    readable = [tokenizer for tokenizer in tokenizers if tokenizer is not None]
    if len(readable) < len(tokenizers):
        without = ", ".join(s for s, t in zip(sources, tokenizers, strict=True) if t is None)
        raise MismatchError(
            f"no tokenizer in {without}: without one its embedding rows have no names to be matched by."
        )
    chosen = 0 if wanted == "union" else wanted
    if all(t.stored == readable[0].stored for t in readable) and len(set(sizes)) == 1:
        identity = torch.arange(sizes[0])
        return VocabularyPlan(readable[chosen], tuple(readable), chosen, sizes[0], (identity,) * len(readable))
    for tokenizer, source, size in zip(readable, sources, sizes, strict=True):
        _check_rows(tokenizer, source, size)
    notes: list[str] = []
    extra: tuple[str, ...] = ()
    result, size = readable[chosen], sizes[chosen]
    if wanted == "union":
        if any(t.stored != result.stored for t in readable):
            result, extra = unite(readable, sources)
        size = max(size, len(result.tokens))
    else:
        notes += _checked_against(readable, sources, chosen)
    rows = tuple(torch.tensor(_rows(result, size, t, n)) for t, n in zip(readable, sizes, strict=True))
    notes += _notes(result, readable, sources) + _padding_notes(result, size, readable, sources, sizes)
    return VocabularyPlan(result, tuple(readable), chosen, size, rows, extra, tuple(notes))


def _check_rows(tokenizer: Tokenizer, source: str, size: int) -> None:
    beyond = [token for token, i in tokenizer.tokens.items() if i >= size]
    if beyond:
        raise MismatchError(
            f"{source} has {size} embedding rows, but {len(beyond)} tokens of its tokenizer have ids beyond them, "
            f"such as {beyond[0]!r}. Resize its embeddings (resize_token_embeddings), or mend its tokenizer."
        )


def _checked_against(tokenizers: Sequence[Tokenizer], sources: Sequence[str], chosen: int) -> list[str]:
    """Return notes on settings that differ from the chosen model's.

    Raises:
        MismatchError: they spell tokens in different ways.
    """
    notes = []
    for k, other in enumerate(tokenizers):
        settings = tokenizers[chosen].settings
        differences = setting_differences(settings, other.settings, sources[chosen], sources[k])
        spelling = [
            sentence
            for name, sentence in differences.items()
            if name in SPELLING or settings.get(name) in ALPHABETS or other.settings.get(name) in ALPHABETS
        ]
        if spelling:
            raise MismatchError(
                f"tokenizers differ in how tokens are spelled: {'; '.join(spelling[:3])}. "
                "Equal tokens would not mean the same; such models cannot be brought into one vocabulary."
            )
        notes += [
            f"tokenizers differ: {sentence}; the result does as {sources[chosen]}" for sentence in differences.values()
        ]
        if other.kind == "BPE" and other.merges != tokenizers[chosen].merges:
            notes.append(f"{sources[k]} merges characters otherwise; the result does as {sources[chosen]}")
    return notes


def _rows(result: Tokenizer, size: int, model: Tokenizer, model_size: int) -> list[int]:
    """Return the model's row for each row of the result: of the same token, or at the same position if no token has it."""
    named = {i: token for token, i in result.tokens.items()}
    taken = set(model.tokens.values())
    return [
        model.tokens.get(named[i], -1) if i in named else (i if i < model_size and i not in taken else -1)
        for i in range(size)
    ]


def _notes(result: Tokenizer, tokenizers: Sequence[Tokenizer], sources: Sequence[str]) -> list[str]:
    """Return notes on how many tokens come from some of the models alone, and how many are left out."""
    holders: Counter[tuple[str, ...]] = Counter()
    example: dict[tuple[str, ...], str] = {}
    for token in result.tokens:
        having = tuple(s for s, t in zip(sources, tokenizers, strict=True) if token in t.tokens)
        holders[having] += 1
        example.setdefault(having, token)
    notes = [
        f"{n} of {len(result.tokens)} tokens come from {' and '.join(having)} alone, such as {example[having]!r}"
        for having, n in holders.items()
        if len(having) < len(sources)
    ]
    for source, tokenizer in zip(sources, tokenizers, strict=True):
        if left := [token for token in tokenizer.tokens if token not in result.tokens]:
            notes.append(f"{len(left)} tokens of {source} are left out, such as {left[0]!r}")
    return notes


def _padding_notes(
    result: Tokenizer, size: int, tokenizers: Sequence[Tokenizer], sources: Sequence[str], sizes: Sequence[int]
) -> list[str]:
    """Return notes on how many rows without a token each model loses, to new tokens or to a shorter table."""
    free = set(range(size)) - set(result.tokens.values())
    lost = [len(set(range(n)) - set(t.tokens.values()) - free) for t, n in zip(tokenizers, sizes, strict=True)]
    return [
        f"{n} rows of {source} that no token names are left out" for n, source in zip(lost, sources, strict=True) if n
    ]


def config_changes(plan: VocabularyPlan, config: Mapping[str, Any], model: int) -> dict[str, Any]:
    """Return the config.json entries that change under the plan: vocab_size, and pad_token_id and other ids of tokens.

    Args:
        model: index of the model that the config belongs to.
    Raises:
        MismatchError: the config names a row that the result does not have.
    """
    new_row = {row: i for i, row in enumerate(plan.rows[model].tolist()) if row >= 0}
    changes: dict[str, Any] = {"vocab_size": plan.size}
    for key, value in config.items():
        if not key.endswith("_token_id") or value is None:
            continue
        ids = value if isinstance(value, list) else [value]
        if missing := [i for i in ids if i not in new_row]:
            raise MismatchError(f"config.json has {key} {missing[0]}, a token that the result's vocabulary lacks.")
        changes[key] = [new_row[i] for i in ids] if isinstance(value, list) else new_row[value]
    return changes


def present(rows: Int[Tensor, " size"]) -> Tensor:
    """Return a bool mask, shape (size,): the rows of the result that the model has."""
    return rows >= 0


def gather(rows: Int[Tensor, " size"], tensor: Tensor) -> Tensor:
    """Return out[i] = tensor[rows[i]] along the first axis, and 0 where rows[i] is -1; the tensor itself if nothing moves.

    Raises:
        MismatchError: the tensor has fewer rows than the plan reads.
    """
    import torch

    if len(rows) and int(rows.max()) >= len(tensor):
        raise MismatchError(
            f"a tensor has {len(tensor)} rows, but the vocabulary plan reads row {int(rows.max())}. Is it one of "
            "those with a row a token?"
        )
    if len(rows) == len(tensor) and torch.equal(rows, torch.arange(len(rows))):
        return tensor
    out = tensor.new_zeros((len(rows), *tensor.shape[1:]))
    out[present(rows)] = tensor[rows[present(rows)]]
    return out


def fill_missing(rows: Sequence[Int[Tensor, " size"]], tensors: Sequence[Tensor]) -> list[Tensor]:
    """Return every model's tensor in the rows of the result; a missing row is the mean of the models that have it.

    The mean is taken in float32 (float64 where a tensor is) and cast back once. Any method can then run on equal shapes. With
    equal weights a linear merge of the filled rows is the average over the models that have the token; with other weights
    w it is not: a model without the token still adds its weight, but to the plain mean, where renormalised weights would
    give sum_have w_m x_m / sum_have w_m. For those, weight by `present` instead.

    Args:
        tensors: as the models store them, one row a token along the first axis.
    Raises:
        MismatchError: no model has a row, or a row of integers would have to be averaged.
    """
    import torch

    have = torch.stack([present(r) for r in rows])
    gathered = [gather(r, tensor) for r, tensor in zip(rows, tensors, strict=True)]
    if not have.any(0).all():
        raise MismatchError(
            f"row {int((~have.any(0)).nonzero()[0])} of the result's vocabulary is in none of the models."
        )
    if have.all():
        return gathered
    if not all(tensor.is_floating_point() for tensor in tensors):
        raise MismatchError("a tensor of integers with a row a token cannot be filled where a model lacks the token.")
    widest = torch.float64 if any(t.dtype == torch.float64 for t in tensors) else torch.float32
    holes = ~have.all(0)  # few rows: the others are not touched
    total = torch.zeros((int(holes.sum()), *tensors[0].shape[1:]), dtype=widest)
    for tensor in gathered:
        total += tensor[holes].to(widest)  # zero where it is missing
    mean = total / have[:, holes].sum(0).reshape(-1, *(1,) * (tensors[0].dim() - 1))
    out = []
    for mask, tensor in zip(have, gathered, strict=True):
        if mask.all():
            out.append(tensor)
            continue
        filled = tensor.clone()
        filled[~mask] = mean[~mask[holes]].to(tensor.dtype)
        out.append(filled)
    return out


def write_tokenizer(plan: VocabularyPlan, source: Path, output: Path) -> list[str]:
    """Write the tokenizer's files into `output` and return their names.

    A tokenizer that is one model's own is copied byte for byte, with a tokenizer.json if there was none; a union is written
    anew and nothing of it stays if `check_written` refuses it.

    Args:
        source: the folder of the chosen model.
    Raises:
        OutputError: what was written does not load as planned.
    """
    parent = plan.parents[plan.chosen]
    copied = {name: (source / name).read_bytes() for name in tokenizer_names(source)}
    if not plan.rewritten and "tokenizer.json" in copied:
        texts = copied
    else:
        made = {k: v.encode() for k, v in file_texts(plan.tokenizer, source, plan.extra_special).items()}
        kept = {k: v for k, v in copied.items() if not (plan.rewritten and k in FILES)}  # such as a sentencepiece model
        texts = made | kept
        with tempfile.TemporaryDirectory() as trial:
            # Beside the tokenizer's files transformers reads model_type from config.json.
            config = (
                {"config.json": (source / "config.json").read_bytes()} if (source / "config.json").is_file() else {}
            )
            for name, text in (config | texts).items():
                (Path(trial) / name).write_bytes(text)
            check_written(Path(trial), plan.tokenizer, parent, plan.parents if plan.rewritten else ())
    for name, text in texts.items():
        (output / name).write_bytes(text)
    return sorted(texts)
