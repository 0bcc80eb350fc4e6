"""config.json: read with its types checked, and its sizes compared with what the weights hold before a model is built."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from merge.checkpoints.weights.read import StoredTensor
from merge.disk.documents import check_kinds, read_object, shown
from merge.errors import CheckpointError

KINDS = {
    "model_type": "text",
    "architectures": "a list",
    "id2label": "keys and values",
    "label2id": "keys and values",
    "num_labels": "a whole number",
    "problem_type": "text",
    "dtype": "text or keys and values",
    "torch_dtype": "text or keys and values",
    "auto_map": "keys and values",
    "quantization_config": "keys and values",
    "sentence_transformers": "keys and values",
    "sentence_transformers.activation_fn": "text",
    "sbert_ce_default_activation_function": "text",
    "text_config": "keys and values",
    "vision_config": "keys and values",
    "rope_scaling": "keys and values",
    "rope_parameters": "keys and values",
    "task_specific_params": "keys and values",
    "tie_word_embeddings": "true or false",
    "vocab_size": "a whole number",
    "hidden_size": "a whole number",
    "num_hidden_layers": "a whole number",
    "num_attention_heads": "a whole number or a list",
    "intermediate_size": "a whole number or a list",
    "max_position_embeddings": "a whole number",
    "type_vocab_size": "a whole number",
    "pad_token_id": "a whole number",
}
# Entries that say how attention is computed, and implementations that torch alone has.
ATTENTION, EVERYWHERE = ("_attn_implementation", "attn_implementation"), ("eager", "sdpa")
DTYPES = ("dtype", "torch_dtype")  # of the model, or of each of its parts
NO_LIMIT = 1e9  # some programs write transformers' 10**30, which stands for no limit, as 1e+30
TOKENIZER_KINDS = {
    "model_max_length": "a number",
    "tokenizer_class": "text",
    "padding_side": "text",
    "truncation_side": "text",
    "do_lower_case": "true or false",
    "added_tokens_decoder": "keys and values",
}
LAYERS = re.compile(r"(^|_)(n_layers?|layers|\w*_layers|num_\w*(groups|blocks))$")
POSITIONS = re.compile(r"(^|_)(n_positions|max_position_embeddings|max_positions?)$")
SIZES = re.compile(r"(_size|_dim|_heads?|_embeddings|_positions?|_buckets|_labels|_channels|_head|d_model|n_embd)$")
# Families that count positions from after the padding token's id.
AFTER_PADDING = {
    "camembert", "data2vec-text", "esm", "ibert", "layoutlmv3", "lilt", "longformer", "luke", "markuplm", "mpnet", "roberta",
    "roberta-prelayernorm", "xlm-roberta", "xlm-roberta-xl", "xmod",
}  # fmt: skip
# Config keys of the number of positions, as families name it.
POSITION_KEYS = ("max_position_embeddings", "n_positions", "max_encoder_position_embeddings", "max_seq_len")
# Layers that share their weights may be more than the tensors; no family has as many as this.
MAX_SHARED_LAYERS = 64
MAX_UNNAMED_LABELS = 1024
MAX_SIZE = 1 << 31  # of an axis
MAX_POSITIONS = 1 << 24


def read_config(folder: Path, source: str) -> dict[str, Any]:
    """Return config.json of a folder.

    Raises:
        CheckpointError: there is none, it is no JSON object, names no model_type, or an entry is of the wrong type.
    """
    path = folder / "config.json"
    if not path.is_file():
        raise CheckpointError(f"{source} is not a checkpoint: it has no config.json. {_inside(folder, source)}")
    config = read_object(path, CheckpointError, name=f"{source}: config.json")
    if config.get("model_type") is None:
        of_2019 = config.get("architectures") or "num_attention_heads" in config
        advice = (
            'Add its family, such as "model_type": "bert".' if of_2019 else "This is not a transformers checkpoint."
        )
        raise CheckpointError(f"{source}: config.json names no model_type. {advice}")
    check_kinds(config, f"{source}: config.json", CheckpointError, KINDS)
    for key in DTYPES:
        for part, dtype in config[key].items() if isinstance(config.get(key), dict) else ():
            if not isinstance(dtype, str):
                raise CheckpointError(f"{source}: config.json: {key}: {part!r}: expected text, found {shown(dtype)}.")
    return config


def without_attention_kernel(config: Mapping[str, Any], source: str) -> tuple[dict[str, Any], list[str]]:
    """Return the config without a stated implementation of attention that needs a library of its own, and a note on that.

    It changes no output beyond rounding, and who loads the model may state one.
    """
    stated = [config[key] for key in ATTENTION if config.get(key) not in (None, *EVERYWHERE)]
    if not stated:
        return dict(config), []
    note = f"{source}: config.json asks for attention by {shown(stated[0])}, which not every machine has; left out"
    return {key: value for key, value in config.items() if key not in ATTENTION}, [note]


def _inside(folder: Path, source: str) -> str:
    """Say where the checkpoint is, if it is in a folder inside: a sentence-transformers encoder, or a trainer's checkpoint."""
    inside = sorted(path.parent.name for path in folder.glob("*/config.json"))
    encoders = [name for name in inside if re.fullmatch(r"\d+_[A-Za-z]*(Transformer|BERT|RoBERTa|XLNet)\w*", name)]
    if (folder / "modules.json").is_file() and encoders:
        return (
            f"Its encoder is in {encoders[0]}, as old versions of sentence-transformers saved it. Save it again with "
            f"SentenceTransformer({source!r}).save_pretrained(FOLDER), or merge the encoders alone: "
            f"{source.rstrip('/')}/{encoders[0]}."
        )
    steps = sorted(
        (name for name in inside if re.fullmatch(r"checkpoint-\d+", name)), key=lambda n: int(n.split("-")[1])
    )
    if steps:
        return f"Its checkpoints are inside; the last of them is {source.rstrip('/')}/{steps[-1]}."
    inside += sorted(path.parent.relative_to(folder).as_posix() for path in folder.glob("snapshots/*/config.json"))
    if inside:  # the last are those of a folder of the Hub's cache
        return f"Did you mean {source.rstrip('/')}/{inside[0]}?"
    return "Expected a folder as save_pretrained writes."


def check_tokenizer_config(folder: Path, source: str) -> None:
    """Stop where an entry of tokenizer_config.json that decides how texts are read is of the wrong type, or no length.

    Raises:
        CheckpointError: it is, or the file is no JSON object.
    """
    path = folder / "tokenizer_config.json"
    if path.exists():
        name = f"{source}: tokenizer_config.json"
        longest = read_object(path, CheckpointError, TOKENIZER_KINDS, name, nul=True).get("model_max_length")
        if isinstance(longest, float) and longest < NO_LIMIT:
            raise CheckpointError(f"{name}: model_max_length: expected a whole number, found {longest}.")
        check_length(longest, "model_max_length", name)


def check_length(longest: float | None, key: str, name: str) -> None:
    """Stop where a file says that texts have no token, or fewer.

    Args:
        longest: how many tokens of a text are read; None for as many as there are.
        key, name: of the entry and of the file, for the message.
    Raises:
        CheckpointError: it does.
    """
    if longest is not None and longest < 1:
        raise CheckpointError(f"{name}: {key}: expected the tokens of the longest text, 1 or more, found {longest}.")


def check_sizes(config: Mapping[str, Any], stored: Mapping[str, StoredTensor], source: str) -> None:
    """Stop where config.json states more layers, labels or positions than the weights can hold.

    transformers would build them all, one by one, before anything could be compared.

    Raises:
        CheckpointError: it does; names the entry and what the weights hold.
    """
    layers = max(len(stored), MAX_SHARED_LAYERS)
    labels = max([MAX_UNNAMED_LABELS, *(size for tensor in stored.values() for size in tensor.shape)])
    tables = [
        t.shape[0]
        for name, t in stored.items()
        if name.endswith(("position_embeddings.weight", "wpe.weight")) and t.shape
    ]
    for key, value in _whole_numbers(config):
        name = key.rpartition(".")[2]
        if LAYERS.search(name) and value > layers:
            limit = f"the weights hold {len(stored)} tensors"
        elif name == "num_labels" and value > labels:
            limit = f"no tensor of the weights has more than {labels} rows"
        elif POSITIONS.search(name) and value > max([MAX_POSITIONS if not tables else 1 << 16, *tables]):
            limit = f"the table of positions has {max(tables)} rows" if tables else "no model reads texts as long"
        elif SIZES.search(name) and value > MAX_SIZE:
            limit = "no tensor has an axis as long"
        else:
            continue
        raise CheckpointError(
            f"{source}: config.json: {key}: found {_short(value)}, but {limit}. Correct config.json, or copy it again."
        )


def _short(value: int) -> str:
    return str(value) if value < 10**15 else f"{value:.3g}" if value < 10**300 else "a number of over 300 digits"


def _whole_numbers(config: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, int]]:
    """Yield dotted key -> value of every whole number of a config and the configs inside it."""
    for key, value in config.items():
        if isinstance(value, Mapping):
            yield from _whole_numbers(value, f"{prefix}{key}.")
        elif isinstance(value, int) and not isinstance(value, bool):
            yield f"{prefix}{key}", value


def position_limit(config: Mapping[str, Any]) -> int | None:
    """Return how many positions a model has; None where its config sets no limit."""
    count = next((config[key] for key in POSITION_KEYS if isinstance(config.get(key), int) and config[key] > 0), None)
    if count is None:
        return None
    # RoBERTa and its relatives count positions from after the padding token's id, which is always 1 in MPNet's code.
    pad = 1 if config.get("model_type") == "mpnet" else int(config.get("pad_token_id") or 0)
    unused = pad + 1 if config.get("model_type") in AFTER_PADDING else 0
    return max(int(count) - unused, 1)
