"""Reload check: load a written checkpoint as its users will, and run it once."""

from __future__ import annotations

import inspect
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from merge.checkpoints.structure import transformers_build
from merge.checkpoints.transformers_model import loading, loading_faults, model_class, model_config, quiet
from merge.checkpoints.weights.read import read_headers
from merge.disk.cache import cache_key, read_cached, write_cached
from merge.errors import CheckpointError, MergeError, OutputError, first_line, one_line

if TYPE_CHECKING:
    from torch import Tensor

FORMAT = 3
# The note on a base model whose file has no pooler, from which its last hidden state does not depend.
WITHOUT_POOLER = "reloading says, of the reference too"
DEFAULT_IMAGE_SIZE = 64  # for convolutions, whose configs state none
# CANINE hashes its characters; FSMT reads and writes different languages.
VOCABULARIES = ("vocab_size", "src_vocab_size", "num_hash_buckets")
TEXT_FACTS = ("model_type", "type_vocab_size", "max_position_embeddings", "n_positions", "pad_token_id")


def reload_check(
    folder: Path,
    config: Mapping[str, Any],
    tolerated: Path,
    always: bool = True,
    extra: Collection[str] = (),
) -> tuple[str, ...]:
    """Load the written folder with from_pretrained, run it once, and return notes.

    The result of loading follows from the config, the names, shapes and dtypes of the tensors, and transformers: it is cached,
    and a combination that was loaded before is loaded again only if `always`. A base model may lack its pooler, if the
    reference does, and hold the tensors of `extra`, which its class does not have; a model that does not run on made-up
    inputs, as the reference does not, is a note. All other faults are errors, whatever the reference has.

    Raises:
        OutputError: a key is missing, unexpected or of another shape, or an output is not finite.
    """
    try:
        headers = read_headers(folder, str(folder))  # of the files on the disk
    except CheckpointError as error:
        raise OutputError(f"the merged checkpoint does not reload: {error} Nothing was written.") from error
    layout = sorted((t.stored_name, t.shape, t.dtype) for t in headers.values())
    key = cache_key(FORMAT, transformers_build(), config, layout, sorted(extra))
    cached = None if always else read_cached("reloads", key)
    if cached is not None:
        return tuple(cached)
    notes = _load_and_run(folder, config, tolerated, frozenset(extra))
    write_cached("reloads", key, notes)
    return notes


def _load_and_run(folder: Path, config: Mapping[str, Any], tolerated: Path, extra: frozenset[str]) -> tuple[str, ...]:
    import torch

    model, info = _load(folder, config)
    info = {**info, "unexpected_keys": set(info["unexpected_keys"]) - extra}
    poolers = _absent_pooler(model, info["missing_keys"])
    if poolers and poolers <= set(_load(tolerated, config, own_config=False)[1]["missing_keys"]):
        info["missing_keys"] = set(info["missing_keys"]) - poolers
    else:
        poolers = set()
    if faults := loading_faults(info):
        raise OutputError(f"the merged checkpoint does not reload: {'; '.join(faults)}. Nothing was written.")
    notes = (f"{WITHOUT_POOLER}: missing {', '.join(sorted(poolers))}",) if poolers else ()
    name, batch = type(model).__name__, trial_batch(model)
    if model.main_input_name not in batch:
        return (*notes, f"{name} was loaded but not run: it reads {model.main_input_name}, which cannot be made up")
    outputs, failure = _run(model, batch)
    if failure and not _run(_load(tolerated, config, own_config=False)[0], batch)[1]:
        raise OutputError(f"the merged {name} does not run on random inputs: {failure}. Nothing was written.")
    if failure:
        return (*notes, f"{name} was loaded but not run: on random inputs it, and the reference too, says: {failure}")
    for output, value in outputs.items():
        if isinstance(value, torch.Tensor) and not torch.isfinite(value).all():
            raise OutputError(
                f"the merged model's {output} holds NaN or infinity on random inputs. Nothing was written."
            )
    return notes


def _absent_pooler(model: Any, missing: Collection[str]) -> set[str]:
    """Return the missing weights of a base model's pooler, without which its last hidden state is what it is."""
    return {name for name in missing if "pooler." in name} if model.base_model is model else set()


def _run(model: Any, batch: Mapping[str, Tensor]) -> tuple[Mapping[str, Any], str]:
    """Return the outputs of a model in float32, or none and the reason why it does not run."""
    import torch

    model.config.return_dict = True
    try:
        with torch.inference_mode(), quiet():
            return model.float().eval()(**batch), ""
    # Model code raises errors of many kinds for inputs that it does not take.
    except (ValueError, TypeError, LookupError, RuntimeError, AttributeError, AssertionError) as error:
        return {}, f"{type(error).__name__}: {one_line(error)}"


def trial_batch(model: Any) -> dict[str, Tensor]:
    """Return a batch of two random examples: tokens, one text padded, images, a decoder's tokens.

    It holds what the model's forward method takes and its config gives the size of; nothing for a model of sound.
    """
    from merge.checkpoints.inputs import random_inputs

    takes = inspect.signature(model.forward).parameters
    whole = model.config.to_dict()
    text, vision, decoder = (
        {**whole, **next((whole[key] for key in keys if isinstance(whole.get(key), dict)), {})}
        for keys in (("text_config", "encoder"), ("vision_config", "image_config", "encoder"), ("decoder",))
    )
    batch: dict[str, Tensor] = {}
    if "input_ids" in takes and _first(text, VOCABULARIES):
        batch |= _texts(text, type(model).__name__)
    if "pixel_values" in takes:
        size = _first(vision, ("image_size", "input_size"), DEFAULT_IMAGE_SIZE)
        batch |= random_inputs({"image_size": size, "num_channels": _first(vision, ("num_channels",), 3)})[0]
    if "decoder_input_ids" in takes and _first(decoder, VOCABULARIES):
        batch = _with_decoder(batch, decoder, whole.get("decoder_start_token_id"))
    return {name: tensor[:2] for name, tensor in batch.items() if name in takes}


def _texts(config: Mapping[str, Any], architecture: str) -> dict[str, Tensor]:
    from merge.checkpoints.inputs import random_inputs

    facts = {key: config[key] for key in TEXT_FACTS if config.get(key) is not None}
    text_config = {**facts, "vocab_size": _first(config, VOCABULARIES), "architectures": [architecture]}
    return dict(random_inputs(text_config)[0])


def _with_decoder(batch: Mapping[str, Tensor], config: Mapping[str, Any], start: int | None) -> dict[str, Tensor]:
    """Return the batch with the decoder's inputs: its start token, then the text, with one end token in each.

    BART's classifier reads the position of the end token, and refuses texts that have different numbers of them.
    """
    import torch

    vocabulary, end = _first(config, VOCABULARIES), config.get("eos_token_id")
    ids = batch["input_ids"] if "input_ids" in batch else _texts(config, "")["input_ids"]
    if isinstance(end, int) and "attention_mask" in batch and end < vocabulary:
        ids = torch.where(ids == end, (end + 1) % vocabulary, ids)
        ids = ids.scatter(-1, batch["attention_mask"].sum(-1, keepdim=True) - 1, end)
        batch = {**batch, "input_ids": ids}
    if start is None:
        start = _first(config, ("bos_token_id", "pad_token_id"), 0)
    begin = torch.full_like(ids[..., :1], start)
    return {**batch, "decoder_input_ids": torch.cat([begin, ids[..., :-1]], -1) % vocabulary}


def _first(config: Mapping[str, Any], keys: Sequence[str], default: Any = None) -> Any:
    """Return the value of the first of these keys that a config has."""
    return next((config[key] for key in keys if config.get(key) is not None), default)


def _load(folder: Path, config: Mapping[str, Any], own_config: bool = True) -> tuple[Any, Mapping[str, Any]]:
    """Return the model of a folder and what loading it told; by the folder's config.json, or by the one that is given."""
    more = {} if own_config else {"config": model_config(config)}
    with loading():
        try:
            model, info = model_class(config).from_pretrained(
                str(folder), output_loading_info=True, local_files_only=True, ignore_mismatched_sizes=True, **more
            )
        except MergeError:
            raise
        # A model's own code raises errors of many kinds for a config that it does not take.
        except Exception as error:
            raise OutputError(
                f"the merged checkpoint does not reload: {first_line(error)}. Nothing was written."
            ) from error
    return model, info
