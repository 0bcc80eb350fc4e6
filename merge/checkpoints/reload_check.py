"""Reload check: a written checkpoint is loaded as its users will load it, and run once."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from merge.checkpoints.structure import transformers_build
from merge.checkpoints.transformers_model import loading_faults, model_class, quiet
from merge.checkpoints.weights.read import read_headers
from merge.disk.cache import cache_key, read_cached, write_cached
from merge.errors import CheckpointError, OutputError, first_line, one_line

if TYPE_CHECKING:
    from torch import Tensor

FORMAT = 2
ANY_SIZE = 64  # of images, for convolutions, which take them of any
# CANINE hashes its characters; FSMT reads and writes different languages.
VOCABULARIES = ("vocab_size", "src_vocab_size", "num_hash_buckets")
TEXT_FACTS = ("model_type", "type_vocab_size", "max_position_embeddings", "n_positions", "pad_token_id")


def reload_check(folder: Path, config: Mapping[str, Any], tolerated: Path, always: bool = True) -> tuple[str, ...]:
    """Load the written folder with from_pretrained, run it once, and return notes.

    What loading says follows from the config, the names, shapes and dtypes of the tensors, and transformers: where this
    very combination was loaded before, it is known, and is loaded again only if `always`. Faults the reference itself
    has when it is loaded (a head its class does not know) or run (inputs that cannot be made up) are notes, not errors.

    Raises:
        OutputError: a key is missing, unexpected or of another shape, or an output is not finite.
    """
    try:
        headers = read_headers(folder, str(folder))  # of the files as they were written
    except CheckpointError as error:
        raise OutputError(f"the merged checkpoint does not reload: {error} Nothing was written.") from error
    layout = sorted((t.stored_name, t.shape, t.dtype) for t in headers.values())
    key = cache_key(FORMAT, transformers_build(), config, layout)
    known = None if always else read_cached("reloads", key)
    if known is not None:
        return tuple(known)
    notes = _load_and_run(folder, config, tolerated)
    write_cached("reloads", key, notes)
    return notes


def _load_and_run(folder: Path, config: Mapping[str, Any], tolerated: Path) -> tuple[str, ...]:
    import torch

    model, faults = _load(folder, config)
    if faults:
        known = _load(tolerated, config)[1]
        fresh = [fault for fault in faults if fault not in known]
        if fresh:
            raise OutputError(f"the merged checkpoint does not reload: {'; '.join(fresh)}. Nothing was written.")
    notes = tuple(f"reloading says, of the reference too: {fault}" for fault in faults)
    name, batch = type(model).__name__, trial_batch(model)
    if model.main_input_name not in batch:
        return (*notes, f"{name} was loaded but not run: it reads {model.main_input_name}, which cannot be made up")
    outputs, failure = _run(model, batch)
    if failure and not _run(_load(tolerated, config)[0], batch)[1]:
        raise OutputError(f"the merged {name} does not run on random inputs: {failure}. Nothing was written.")
    if failure:
        return (*notes, f"{name} was loaded but not run: on random inputs it, and the reference too, says: {failure}")
    for output, value in outputs.items():
        if isinstance(value, torch.Tensor) and not torch.isfinite(value).all():
            raise OutputError(
                f"the merged model's {output} holds NaN or infinity on random inputs. Nothing was written."
            )
    return notes


def _run(model: Any, batch: Mapping[str, Tensor]) -> tuple[Mapping[str, Any], str]:
    """Return what a model says in float32, or why it says nothing."""
    import torch

    model.config.return_dict = True
    try:
        with torch.inference_mode(), quiet():
            return model.float().eval()(**batch), ""
    # Model code refuses its inputs in its own words.
    except (ValueError, TypeError, LookupError, RuntimeError, AttributeError, AssertionError) as error:
        return {}, f"{type(error).__name__}: {one_line(error)}"


def trial_batch(model: Any) -> dict[str, Tensor]:
    """Return two random inputs of everything a model reads: tokens, one text padded, images, a decoder's tokens.

    Only what its forward method takes and its config tells the size of; so a model of sound has none.
    """
    from merge.checkpoints.inputs import random_inputs

    takes = inspect.signature(model.forward).parameters
    whole = model.config.to_dict()
    text, vision, decoder = (
        {**whole, **next((whole[key] for key in keys if isinstance(whole.get(key), dict)), {})}
        for keys in (("text_config", "encoder"), ("vision_config", "image_config", "encoder"), ("decoder",))
    )
    found: dict[str, Tensor] = {}
    if "input_ids" in takes and _first(text, VOCABULARIES):
        found |= _texts(text, type(model).__name__)
    if "pixel_values" in takes:
        size = _first(vision, ("image_size", "input_size"), ANY_SIZE)
        found |= random_inputs({"image_size": size, "num_channels": _first(vision, ("num_channels",), 3)})[0]
    if "decoder_input_ids" in takes and _first(decoder, VOCABULARIES):
        found = _with_decoder(found, decoder, whole.get("decoder_start_token_id"))
    return {name: tensor[:2] for name, tensor in found.items() if name in takes}


def _texts(config: Mapping[str, Any], architecture: str) -> dict[str, Tensor]:
    from merge.checkpoints.inputs import random_inputs

    told = {key: config[key] for key in TEXT_FACTS if config.get(key) is not None}
    stated = {**told, "vocab_size": _first(config, VOCABULARIES), "architectures": [architecture]}
    return dict(random_inputs(stated)[0])


def _with_decoder(found: Mapping[str, Tensor], config: Mapping[str, Any], start: int | None) -> dict[str, Tensor]:
    """Return the inputs with the decoder's: its start token and then the text itself, each of which ends once.

    BART's classifier reads the place where a text ends, and refuses texts that end more often than others.
    """
    import torch

    vocabulary, end = _first(config, VOCABULARIES), config.get("eos_token_id")
    ids = found["input_ids"] if "input_ids" in found else _texts(config, "")["input_ids"]
    if isinstance(end, int) and "attention_mask" in found and end < vocabulary:
        ids = torch.where(ids == end, (end + 1) % vocabulary, ids)
        ids = ids.scatter(-1, found["attention_mask"].sum(-1, keepdim=True) - 1, end)
        found = {**found, "input_ids": ids}
    if start is None:
        start = _first(config, ("bos_token_id", "pad_token_id"), 0)
    begin = torch.full_like(ids[..., :1], start)
    return {**found, "decoder_input_ids": torch.cat([begin, ids[..., :-1]], -1) % vocabulary}


def _first(config: Mapping[str, Any], keys: Sequence[str], default: Any = None) -> Any:
    """Return what a config says under the first of these keys that it has."""
    return next((config[key] for key in keys if config.get(key) is not None), default)


def _load(folder: Path, config: Mapping[str, Any]) -> tuple[Any, list[str]]:
    from safetensors import SafetensorError

    with quiet():
        try:
            model, info = model_class(config).from_pretrained(
                str(folder), output_loading_info=True, local_files_only=True, ignore_mismatched_sizes=True
            )
        except (OSError, ValueError, RuntimeError, KeyError, SafetensorError) as error:
            raise OutputError(
                f"the merged checkpoint does not reload: {first_line(error)}. Nothing was written."
            ) from error
    return model, loading_faults(info)
