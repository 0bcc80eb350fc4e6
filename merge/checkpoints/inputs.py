"""Model inputs: texts tokenised and batched by length, or random tokens where there is no tokenizer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from merge.checkpoints.config_file import position_limit
from merge.checkpoints.tokenizers.files import check_listed_ids, listed_words
from merge.checkpoints.tokenizers.tokenizer import reading_texts, without_dropout
from merge.disk.documents import read_object
from merge.errors import CalibrationError, first_line

MAX_LENGTH = 128
# Config keys of a decoder's first token, and classes of encoder-decoders whose decoder reads a text.
BEGINNINGS, DECODING = ("decoder_start_token_id", "pad_token_id"), ("ForConditionalGeneration", "Model")
# Small batches stay in the cache of a CPU core: measured best between 1,024 and 4,096 tokens.
BATCH_TOKENS = 2048

Batch = Mapping[str, Tensor]


def load_tokenizer(folder: Path) -> Any:
    """Return the tokenizer of a checkpoint folder.

    Raises:
        CalibrationError: transformers cannot load it, or loads a class that ignores the file with the words.
    """
    config = read_object(folder / "config.json", CalibrationError) if (folder / "config.json").is_file() else {}
    if config.get("model_type") == "mlp":
        from merge.checkpoints.mlp import NumberReader

        return NumberReader(int(config["input_size"]))
    from transformers import AutoTokenizer

    check_listed_ids(folder)
    try:
        tokenizer = AutoTokenizer.from_pretrained(str(folder))
    # The tokenizers library raises plain Exceptions for files it cannot read.
    except Exception as error:
        raise CalibrationError(f"{folder}: the tokenizer cannot be loaded: {first_line(error)}") from error
    words = listed_words(folder)
    if len(tokenizer) < words / 2:
        raise CalibrationError(
            f"{folder}: transformers ({type(tokenizer).__name__}) reads {len(tokenizer)} tokens, and not the {words} of its "
            "vocabulary file. Is the tokenizer_class the one this file is for?"
        )
    return without_dropout(tokenizer)


@dataclass(frozen=True)
class Tokens:
    """Tokens of texts, in the order of the texts and without padding.

    Attributes:
        fields: input name (`input_ids`, `token_type_ids`, ...) -> its values for all texts, one text after another.
        lengths: tokens of each text.
        pad: the token that fills shorter texts up.
        cut: how many texts are longer than the model takes, and truncated.
        pad_left: whether the padding is before a text and not after it.
    """

    fields: Mapping[str, Tensor]
    lengths: tuple[int, ...]
    pad: int
    cut: int
    pad_left: bool = False


@dataclass(frozen=True)
class Encoded:
    """Batches of texts.

    Attributes:
        batches: input tensors; texts of similar length together, a bounded number of tokens a batch.
        rows: for each batch, the indices of its texts.
        cut: how many texts are longer than the model takes, and truncated.
        notes: for the user, on how texts share batches.
    """

    batches: tuple[Batch, ...]
    rows: tuple[tuple[int, ...], ...]
    cut: int
    notes: tuple[str, ...] = ()


def encode(tokenizer: Any, texts: Sequence[tuple[str, ...]], longest: int) -> Encoded:
    """Tokenise texts or pairs once, sort them by length and batch them; pairs get their own token types.

    They are padded on the side of the tokenizer's class: XLNet's head reads the last token. A tokenizer that was only set to
    pad on the left, as for generation, is padded on the right, where models with absolute positions are used to it.
    """
    left = type(tokenizer).padding_side == "left"
    return batch_tokens(replace(read_tokens(tokenizer, texts, longest), pad_left=left), BATCH_TOKENS)


def read_tokens(tokenizer: Any, texts: Sequence[tuple[str, ...]], longest: int) -> Tokens:
    """Return the tokens of texts or pairs; longer ones than `longest` are truncated by the tokenizer.

    Raises:
        CalibrationError: the tokenizer does not.
    """
    first = [text[0] for text in texts]
    second = [text[1] for text in texts] if len(texts[0]) == 2 else None
    source = getattr(tokenizer, "name_or_path", "the model")
    with reading_texts(source):
        full = dict(tokenizer(first, second, verbose=False))
    long = [k for k, ids in enumerate(full["input_ids"]) if len(ids) > longest]
    if long:
        pairs = None if second is None else [second[k] for k in long]
        with reading_texts(source):
            short = tokenizer([first[k] for k in long], pairs, truncation=True, max_length=longest)
        for name, values in short.items():
            for k, kept in zip(long, values, strict=True):
                full[name][k] = kept
        _check_cut(source, max(len(full["input_ids"][k]) for k in long), longest)
    return Tokens(
        fields={name: torch.tensor([v for text in values for v in text]) for name, values in full.items()},
        lengths=tuple(len(ids) for ids in full["input_ids"]),
        pad=tokenizer.pad_token_id or 0,
        cut=len(long),
        pad_left=tokenizer.padding_side == "left",
    )


def _check_cut(source: str, found: int, longest: int) -> None:
    """Stop where a tokenizer left a text whole, as it does where its special tokens alone are more than it may keep.

    Raises:
        CalibrationError: gives both numbers of tokens.
    """
    if found > longest:
        raise CalibrationError(
            f"{source}: its tokenizer does not cut texts to {longest} token{'s' * (longest != 1)}: it gave {found}. Special "
            "tokens are part of each text; take more tokens."
        )


def batch_tokens(tokens: Tokens, budget: int, even: float = 1.0) -> Encoded:
    """Sort texts by length and batch them: at most `budget` tokens a batch, padding included, or a single text.

    Args:
        budget: 0 for a batch of its own for every text.
        even: a batch that is full to this share of the budget ends where the next text is longer, and so needs less padding;
            0 for batches of one length, without padding.
    """
    lengths = tokens.lengths
    order = sorted(range(len(lengths)), key=lambda i: (lengths[i], i))
    texts = {name: values.split(lengths) for name, values in tokens.fields.items()}
    batches, rows, start = [], [], 0
    while start < len(order):
        end = start + 1
        while end < len(order) and lengths[order[end]] * (end - start + 1) <= budget:
            width = lengths[order[end - 1]]
            if lengths[order[end]] > width and width * (end - start) >= even * budget:
                break
            end += 1
        chosen = tuple(order[start:end])
        batches.append({name: _padded(name, [all_[i] for i in chosen], tokens) for name, all_ in texts.items()})
        rows.append(chosen)
        start = end
    return Encoded(tuple(batches), tuple(rows), tokens.cut)


def _padded(name: str, texts: list[Tensor], tokens: Tokens) -> Tensor:
    """Return one input of a batch, padded on the tokens' side: ids with the pad token, masks and token types with 0."""
    filling = tokens.pad if name == "input_ids" else 0
    side = "left" if tokens.pad_left else "right"
    return torch.nn.utils.rnn.pad_sequence(texts, batch_first=True, padding_value=filling, padding_side=side)


def tokenise(
    tokenizer: Any, samples: Sequence[tuple[str, ...]], config: Mapping[str, Any]
) -> tuple[tuple[Batch, ...], tuple[str, ...]]:
    """Return calibration batches for a model, and a note if texts were cut.

    Args:
        samples: (text,) or (text, text_pair).
        config: of the model; bounds the length and says whether it takes choices.
    """
    longest = min(MAX_LENGTH, positions(config))
    encoded = encode(tokenizer, samples, longest)
    note = (
        f"{encoded.cut} of {len(samples)} calibration texts are longer than {longest} tokens; only their start is read"
    )
    check_ids(encoded.batches, config)
    return tuple(_for_head(batch, config) for batch in encoded.batches), (note,) if encoded.cut else ()


def check_ids(batches: Sequence[Batch], config: Mapping[str, Any]) -> None:
    """Stop at a token or a segment that the model has no embedding for.

    Raises:
        CalibrationError: the tokenizer has more tokens or segments than the embedding tables have rows.
    """
    size = (config.get("text_config") or config).get("vocab_size")
    most = max((int(batch["input_ids"].max()) for batch in batches), default=0)
    if size is not None and most >= size:
        raise CalibrationError(
            f"the tokenizer gives a token the id {most}, and the model has {size} embeddings (vocab_size). Put the tokenizer "
            "that it was trained with into its folder."
        )
    segments = max((int(batch["token_type_ids"].max()) for batch in batches if "token_type_ids" in batch), default=0)
    if fault := segment_fault(config, segments):
        raise CalibrationError(fault)


def segment_fault(config: Mapping[str, Any], largest: int) -> str | None:
    """Return what is wrong with a segment id; None where the model has an embedding for it, or reads no segments.

    Args:
        largest: the largest id of a segment (token_type_ids) that the tokenizer gives.
    """
    size = (config.get("text_config") or config).get("type_vocab_size")
    if not isinstance(size, int) or not 0 < size <= largest:
        return None
    return (
        f"the tokenizer gives the second text of a pair the segment {largest}, and the model has {size} segment "
        f"{'embeddings' if size > 1 else 'embedding'} (type_vocab_size). Put the tokenizer that it was trained with into its "
        "folder, or give single texts."
    )


def positions(config: Mapping[str, Any]) -> int:
    """Return how many positions a model has; MAX_LENGTH where it sets no limit."""
    limit = position_limit(config)
    return MAX_LENGTH if limit is None else limit


def random_inputs(config: Mapping[str, Any], seed: int = 0) -> tuple[Batch, ...]:
    """Return four small batches of random inputs: tokens with segments and some padding, images or both, or numbers."""
    if config.get("model_type") == "mlp":
        generator = torch.Generator().manual_seed(seed)
        shape = (4, int(config["input_size"]))
        return tuple({"input_ids": torch.randn(shape, generator=generator)} for _ in range(4))
    text, vision = config.get("text_config") or config, config.get("vision_config") or config
    words = () if text is vision and "image_size" in config else _random_texts({**config, **text}, seed)
    images = _random_images(vision, seed) if "image_size" in vision else ()
    if not words or str((config.get("architectures") or [""])[0]).endswith("ForImageClassification"):
        return images
    return tuple({**batch, **(images[k] if images else {})} for k, batch in enumerate(words))


def _random_images(config: Mapping[str, Any], seed: int) -> tuple[Batch, ...]:
    generator = torch.Generator().manual_seed(seed)
    side = config["image_size"]
    height, width = side if isinstance(side, Sequence) else (side, side)
    shape = (4, int(config.get("num_channels", 3)), height, width)
    return tuple({"pixel_values": torch.randn(shape, generator=generator)} for _ in range(4))


def _random_texts(config: Mapping[str, Any], seed: int) -> tuple[Batch, ...]:
    generator = torch.Generator().manual_seed(seed)
    length = min(24, positions(config))
    batches = []
    for _ in range(4):
        shape = (4, length)
        mask = torch.ones(shape, dtype=torch.int64)
        mask[::2, length - length // 4 :] = 0
        batch = {
            "input_ids": torch.randint(int(config["vocab_size"]), shape, generator=generator),
            "attention_mask": mask,
        }
        if config.get("type_vocab_size", 0) > 0:
            batch["token_type_ids"] = torch.randint(int(config["type_vocab_size"]), shape, generator=generator)
        batches.append(_for_head(batch, config))
    return tuple(batches)


def attended(batch: Batch) -> Tensor:
    """Return which tokens are not padding, as booleans of shape (texts, length)."""
    mask = batch["attention_mask"]
    return mask.reshape(-1, mask.shape[-1]).bool()


def _for_head(batch: Batch, config: Mapping[str, Any]) -> Batch:
    """Return the batch as the head reads it.

    Multiple-choice models have an axis of choices: neighbouring texts become those of one question. The decoder of an
    encoder-decoder reads the same text, shifted by one.
    """
    architecture = str((config.get("architectures") or [""])[0])
    if (
        config.get("is_encoder_decoder")
        and architecture.endswith(DECODING)
        and not architecture.endswith("EncoderModel")
    ):
        ids, begin = batch["input_ids"], next((int(config[k]) for k in BEGINNINGS if config.get(k) is not None), 0)
        return {**batch, "decoder_input_ids": torch.cat([torch.full_like(ids[:, :1], begin), ids[:, :-1]], 1)}
    if not architecture.endswith("ForMultipleChoice"):
        return batch
    count = len(batch["input_ids"])
    choices = 2 if count % 2 == 0 else 1
    return {name: tensor.reshape(count // choices, choices, -1) for name, tensor in batch.items()}
