"""Prune the vocabulary: the tokens of a text stay, with their rows of every tensor that has one a token.

The written model gives the same outputs for those texts, which is proved: the new tokenizer makes the same tokens of every
one of them, and hidden states are equal bit for bit on a sample.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from merge.checkpoints.checkpoint import Checkpoint
from merge.checkpoints.config_file import AFTER_PADDING
from merge.checkpoints.sentence_transformers import pipeline_kind
from merge.checkpoints.structure import structure_of
from merge.checkpoints.tokenizers.files import FILES, tokenizer_names
from merge.checkpoints.tokenizers.tokenizer import Tokenizer, load, read_tokenizer
from merge.checkpoints.tokenizers.write import file_texts
from merge.disk.documents import read_object
from merge.errors import CheckpointError, UsageError
from merge.layers.pruning.token_proof import Trim, same_on_text, token_ids
from merge.layers.pruning.tokens import Kept, kept_tokens, trimmed, unspellable
from merge.layers.pruning.write import Pruned, PruneReport, check_input, of_its_class, write_pruned
from merge.text.calibration import read_calibration
from merge.text.source import TextSource

if TYPE_CHECKING:
    from torch import Tensor

# Logits over the vocabulary come of a matrix product of another size, which may be rounded otherwise.
BOUND = 1e-5
GENERAL, GENERATION = "config_sentence_transformers.json", "generation_config.json"
SENTENCE_SETTINGS = "sentence_bert_config.json"
# Lists of ids in generation_config.json: those of tokens that are gone have no effect and are left out.
SUPPRESSED = ("suppress_tokens", "begin_suppress_tokens")
# Entries whose ids are part of a rule, and cannot be left out one by one.
RULES = ("bad_words_ids", "force_words_ids", "forced_decoder_ids", "sequence_bias", "constraints")
# Modules of sentence-transformers with an entry for each token.
PER_TOKEN = ("WordWeights", "BoW", "StaticEmbedding", "SparseStaticEmbedding")


def prune_embeddings(
    checkpoint: Checkpoint,
    source: TextSource,
    output: Path,
    allow_unknown: bool = False,
    force: bool = False,
    dry_run: bool = False,
) -> PruneReport:
    """Write a checkpoint with the tokens of a text alone; with `dry_run` only return the report.

    Args:
        source: the text, which is read whole: `samples` does not count.
        allow_unknown: whether words of other texts may become unknown, where their characters have no token of their own.
    Raises:
        MergeError: a subclass for every error in text, input or output; no incomplete output is left.
    """
    checkpoint = of_its_class(checkpoint)
    check_input(checkpoint)
    part, config = _vocabulary_part(checkpoint)
    tokenizer = _read(checkpoint)
    text = read_calibration(replace(source, samples=sys.maxsize), matching=False)
    texts = _as_read(checkpoint, text.samples)
    named = _config_ids(checkpoint, config)
    used = _ids(load(checkpoint.folder), texts)
    size = int(config["vocab_size"])
    if beyond := [i for i in used if i >= size]:
        raise CheckpointError(
            f"{checkpoint.source}: its tokenizer gives the id {beyond[0]}, but there are {size} embeddings. Put the tokenizer "
            "that it was trained with into its folder."
        )
    kept = kept_tokens(tokenizer, used | named, _low_ids(checkpoint, config), allow_unknown)
    kept = replace(kept, tokens=frozenset(t for t in kept.tokens if tokenizer.tokens[t] < size))
    new, rows = trimmed(tokenizer, kept.tokens)
    trim = Trim(tokenizer, new, [*rows, *sorted(i for i in named - set(rows) if i < size)], texts)
    if len(trim.rows) == size:
        spelled = kept.reasons.get("the only ones with a character", 0)
        advice = f" {spelled:,} stay as they alone have a character; --allow-unknown drops them." if spelled else ""
        raise UsageError(
            f"{checkpoint.source}: the text uses all {size:,} tokens, or they have to stay: nothing is trimmed.{advice}"
        )
    notes = [note for note in text.notes if "left out" in note or note.startswith("no columns")]
    lost = [token for token in unspellable(tokenizer) if token not in new.tokens] if allow_unknown else []
    if lost:
        notes.append(
            f"{len(lost):,} tokens are gone that had a character which no token of one character has, such as {lost[0]!r}: "
            "other texts with them are read as unknown"
        )
    pruned = _pruned(checkpoint, part, trim, kept, text.source, tuple(notes))
    return write_pruned(pruned, output, same_on_text(checkpoint, trim, pruned.config), BOUND, force, dry_run)


def _vocabulary_part(checkpoint: Checkpoint) -> tuple[str, Mapping[str, Any]]:
    """Return the part of the config with the size of the vocabulary: its key ("" for the whole), and its entries.

    Raises:
        UsageError: the model has no vocabulary, or something else of it has one entry for each token.
    """
    config = checkpoint.config
    modules = [module.kind for module in checkpoint.modules or () if module.kind in PER_TOKEN]
    if modules or pipeline_kind(checkpoint) == "SparseEncoder":
        raise UsageError(
            f"{checkpoint.source}: {modules[0] if modules else 'a sparse encoder'} has an entry for each token in its outputs or "
            "weights, so the vocabulary cannot be trimmed without changing them."
        )
    for key in ("", "text_config"):
        part = config.get(key) if key else config
        if isinstance(part, Mapping) and isinstance(part.get("vocab_size"), int) and checkpoint.has_tokenizer:
            return key, part
    raise UsageError(
        f"{checkpoint.source} ({checkpoint.model_type}) has no "
        + ("vocabulary to trim." if checkpoint.has_tokenizer else "tokenizer, so there are no tokens to choose from.")
    )


def _read(checkpoint: Checkpoint) -> Tokenizer:
    tokenizer = read_tokenizer(checkpoint.folder)
    if tokenizer is None:
        raise CheckpointError(
            f"{checkpoint.source}: its tokenizer does not run on the tokenizers library and cannot be trimmed. Save it with "
            "AutoTokenizer.from_pretrained(...).save_pretrained(...), which writes tokenizer.json."
        )
    return tokenizer


def _as_read(checkpoint: Checkpoint, samples: Sequence[tuple[str, ...]]) -> list[tuple[str, ...]]:
    """Return the texts as the model reads them: sentence-transformers put prompts before them, and may lower their case."""
    texts, folder = list(samples), checkpoint.folder
    general = read_object(folder / GENERAL, CheckpointError) if (folder / GENERAL).is_file() else {}
    prompts = general.get("prompts") or {}
    texts += [(prompt + first, *rest) for prompt in prompts.values() if prompt for first, *rest in samples]
    settings = (
        read_object(folder / SENTENCE_SETTINGS, CheckpointError) if (folder / SENTENCE_SETTINGS).is_file() else {}
    )
    return [tuple(part.lower() for part in text) for text in texts] if settings.get("do_lower_case") else texts


def _ids(tokenizer: Any, texts: Sequence[tuple[str, ...]]) -> set[int]:
    """Return the ids of all tokens of the texts, special ones included."""
    return {i for ids in token_ids(tokenizer, texts) for i in ids}


def _config_ids(checkpoint: Checkpoint, part: Mapping[str, Any]) -> set[int]:
    """Return the ids of tokens that the configs name; they stay."""
    ids: set[int] = set()
    for config in (checkpoint.config, part, _generation(checkpoint)):
        for key, value in config.items():
            if key.endswith("_token_id"):
                ids |= {i for i in (value if isinstance(value, list) else [value]) if isinstance(i, int) and i >= 0}
    return ids


def _generation(checkpoint: Checkpoint) -> dict[str, Any]:
    """Return generation_config.json, or nothing.

    Raises:
        UsageError: it holds rules on tokens.
    """
    path = checkpoint.folder / GENERATION
    if GENERATION not in checkpoint.side_files:
        return {}
    config = read_object(path, CheckpointError)
    if rules := [key for key in RULES if config.get(key)]:
        raise UsageError(f"{path} has {rules[0]}, a rule on tokens that may go. Take it out of the file first.")
    return config


def _low_ids(checkpoint: Checkpoint, part: Mapping[str, Any]) -> int:
    """Return a number: tokens with smaller ids keep their ids, as the model's code or positions depend on them."""
    if checkpoint.model_type in AFTER_PADDING:  # positions are counted from the padding token's id
        return int(part.get("pad_token_id") or 0)
    return 3 if checkpoint.model_type.startswith("clip") else 0  # CLIP reads an end token of 2 as "the largest id"


def _pruned(checkpoint: Checkpoint, part: str, trim: Trim, kept: Kept, source: str, notes: tuple[str, ...]) -> Pruned:
    """Return what is written: rows, configs and tokenizer files, and how they are reported."""
    config = _remapped(checkpoint.config, trim, part)
    shapes, changes = _rows(checkpoint, config, trim)
    files = {name: text.encode() for name, text in file_texts(trim.new, checkpoint.folder).items()}
    if generation := _generation(checkpoint):
        mapped = _with_new_ids(generation, trim)
        files[GENERATION] = (json.dumps(mapped, indent=2, ensure_ascii=False) + "\n").encode()
    old_files = [name for name in tokenizer_names(checkpoint.folder) if name not in FILES]
    size = int((checkpoint.config[part] if part else checkpoint.config)["vocab_size"])
    gone = size - len(trim.rows)
    without = size - len({i for i in trim.old.tokens.values() if i < size})
    reasons = ", ".join(f"{count:,} {why}" for why, count in kept.reasons.items())
    lines = [f"{gone:,} of {size:,} tokens removed: {len(trim.rows):,} stay ({reasons})", f"tokens of {source}"]
    if without:
        lines.append(f"{without:,} of the embedding rows had no token")
    if trim.old.kind == "WordLevel":
        notes = (
            *notes,
            "this tokenizer knows whole words alone: every word that is not in the text is now unknown to it",
        )
    if old_files:
        notes = (
            *notes,
            f"{', '.join(old_files)} cannot be trimmed and would contradict tokenizer.json, which is enough",
        )
    return Pruned(
        checkpoint=checkpoint,
        command="prune-embeddings",
        config=config,
        changes=changes,
        shapes=shapes,
        facts={
            "kind": "tokens",
            "text": source,
            "vocab_size_before": size,
            "vocab_size": len(trim.rows),
            "kept": dict(kept.reasons),
            "tensors": sorted(shapes),
        },
        lines=tuple(lines),
        notes=notes,
        files=files,
        left_out=tuple(name for name in old_files if name in checkpoint.side_files),
    )


def _remapped(config: Mapping[str, Any], trim: Trim, part: str) -> dict[str, Any]:
    """Return config.json with the new size of the vocabulary and the new ids of tokens."""
    changed = _with_new_ids(config, trim)
    if part:
        return {**changed, part: {**_with_new_ids(config[part], trim), "vocab_size": len(trim.rows)}}
    return {**changed, "vocab_size": len(trim.rows)}


def _with_new_ids(config: Mapping[str, Any], trim: Trim) -> dict[str, Any]:
    """Return the entries with the ids of tokens renumbered; ids of no row (-1, or beyond the table) stay what they are."""
    new, changed = trim.new_ids, dict(config)
    for key, value in config.items():
        if key.endswith("_token_id") and value is not None:
            changed[key] = [new.get(i, i) for i in value] if isinstance(value, list) else new.get(value, value)
        if key in SUPPRESSED and isinstance(value, list):
            changed[key] = [new[i] for i in value if i in new]
    return changed


def _rows(
    checkpoint: Checkpoint, config: Mapping[str, Any], trim: Trim
) -> tuple[dict[str, tuple[int, ...]], dict[str, Callable[[Tensor], Tensor]]]:
    """Return the shapes of all tensors with a row a token, and what gathers their rows.

    They are those whose shapes change when transformers builds the model of the new config.

    Raises:
        CheckpointError: the shape of a tensor changes in another way.
    """
    import torch

    encoder, rows = checkpoint.encoder, torch.tensor(trim.rows)
    expected = structure_of(config).shapes
    shapes: dict[str, tuple[int, ...]] = {}
    changes: dict[str, Callable[[Tensor], Tensor]] = {}
    for name, old in encoder.shapes.items():
        new = expected.get(encoder.written_name(name), old)
        dims = [d for d in range(len(old)) if old[d] != new[d]] if len(new) == len(old) else [0, 0]
        if not dims:
            continue
        if len(dims) > 1 or new[dims[0]] != len(rows) or old[dims[0]] <= int(rows.max()):
            raise CheckpointError(
                f"{checkpoint.source}: {name} has shape {old}, and {new} with the smaller vocabulary; expected one dimension of "
                "the number of tokens."
            )
        shapes[name], changes[name] = new, _gathering(dims[0], rows)
    return shapes, changes


def _gathering(dim: int, rows: Tensor) -> Callable[[Tensor], Tensor]:
    return lambda tensor: tensor.index_select(dim, rows)
