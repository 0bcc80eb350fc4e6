"""Structure: names, shapes, ties and defaults of the model that transformers builds from a config.json.

They follow from the config and the version of transformers alone. Importing transformers' model code takes longer than
merging a BERT, so the structure of a config is cached.
"""

from __future__ import annotations

import importlib.util
import os
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any

from merge.disk.cache import cache_key, read_cached, write_cached
from merge.disk.documents import as_json
from merge.disk.versions import installed_version

FORMAT = 2
MAX_STRUCTURES = 256
# Cache folder and key -> structure that this process has read; where there are too many, they are read again.
STRUCTURES: dict[tuple[str, str], Structure] = {}


@dataclass(frozen=True)
class Structure:
    """The model that transformers builds from a config, without its weights.

    Attributes:
        key: a hash of the config and the version of transformers; equal keys, equal structures.
        prefix: of the base model's names in a model with a head, such as "bert".
        shapes: every tensor of the model -> its shape, in transformers' order; a tied tensor under each of its names.
        ties: tied tensor -> the one it is a copy of.
        config: config.json, complete with the family's own defaults.
        settings: every config entry as transformers reads it.
        known: the config entries that transformers knows for this family.
        vocabulary: tensors that hold one row per token.
        runs_on_text: whether it runs on input_ids alone.
        base_architecture: the class of the base model inside it; its own class where it is one.
        required: the tensors that a file must hold, as from_pretrained draws random numbers in their place.
    """

    key: str
    prefix: str
    shapes: Mapping[str, tuple[int, ...]]
    ties: Mapping[str, str]
    config: Mapping[str, Any]
    settings: Mapping[str, Any]
    known: tuple[str, ...]
    vocabulary: tuple[str, ...]
    runs_on_text: bool
    base_architecture: str
    required: tuple[str, ...]

    @property
    def architecture(self) -> str:
        return str(self.config["architectures"][0])

    @cached_property
    def writes_prefix(self) -> bool:
        """Whether transformers writes these names with the prefix; it does not for the base model alone."""
        return not self.prefix or any(name.startswith(f"{self.prefix}.") for name in self.shapes)

    @property
    def label_names(self) -> tuple[str, ...]:
        """The class names in the order of the logits, LABEL_0, LABEL_1, ... where the config names none for a place."""
        stated = {int(key): str(name) for key, name in self.settings["id2label"].items()}
        return tuple(stated.get(place, f"LABEL_{place}") for place in range(len(stated)))


def structure_of(config: Mapping[str, Any], tensors: int | None = None) -> Structure:
    """Return the structure of a config, from the cache where it is there.

    Args:
        tensors: the number that its weights hold, which bounds the modules that are built.
    Raises:
        CheckpointError: the config names no class, or none that can be built from it.
    """
    key = cache_key(FORMAT, transformers_build(), config)
    held_under = os.environ.get("MERGE_MODELS_CACHE", ""), key
    if (known := STRUCTURES.get(held_under)) is not None:
        return known
    fields = read_cached("structures", key)
    if fields is None:
        # Through JSON in both cases, so that a cached structure equals a new one.
        fields = as_json(asdict(_ask_transformers(key, config, tensors)))
        write_cached("structures", key, fields)
    shapes = {name: tuple(shape) for name, shape in fields["shapes"].items()}
    listed = {key: tuple(fields[key]) for key in ("known", "vocabulary", "required")}
    if len(STRUCTURES) >= MAX_STRUCTURES:
        STRUCTURES.clear()
    structure = STRUCTURES[held_under] = Structure(**{**fields, "shapes": shapes, **listed})
    return structure


@cache
def transformers_build() -> str:
    """Return the version of transformers and the time its files were installed, on which cached structures depend."""
    spec = importlib.util.find_spec("transformers")
    origin = Path(spec.origin) if spec is not None and spec.origin else None
    stamp = origin.stat().st_mtime_ns if origin is not None and origin.is_file() else 0
    return f"{installed_version('transformers')} {stamp}"


def _ask_transformers(key: str, config: Mapping[str, Any], tensors: int | None) -> Structure:
    from merge.checkpoints.transformers_model import complete_config, meta_model, model_config

    skeleton = meta_model(config, tensors)
    settings = model_config(config)
    shapes = {str(name): tuple(tensor.shape) for name, tensor in skeleton.state_dict().items()}
    return Structure(
        key=key,
        prefix=str(skeleton.base_model_prefix),
        shapes=shapes,
        ties={str(target): str(source) for target, source in skeleton.all_tied_weights_keys.items()},
        config=complete_config(config),
        settings=settings.to_dict(),
        known=tuple(sorted(type(settings)().to_dict())),
        vocabulary=_vocabulary(skeleton, shapes),
        runs_on_text=not settings.is_encoder_decoder and skeleton.main_input_name == "input_ids",
        base_architecture=type(skeleton.base_model).__name__,
        required=_required(skeleton, shapes),
    )


def _required(skeleton: Any, shapes: Mapping[str, tuple[int, ...]]) -> tuple[str, ...]:
    """Return the parameters that are neither tied nor declared as absent from files by the class."""
    absent = tuple(skeleton._keys_to_ignore_on_load_missing or ())
    parameters = dict.fromkeys(name for name, _ in skeleton.named_parameters(remove_duplicate=False))
    return tuple(
        name
        for name in parameters
        if name in shapes
        and name not in skeleton.all_tied_weights_keys
        and not any(re.search(pattern, name) for pattern in absent)
    )


def _vocabulary(skeleton: Any, shapes: Mapping[str, tuple[int, ...]]) -> tuple[str, ...]:
    """Return the input embeddings' weight, and weight and bias of the output embeddings, by every name they have."""
    try:
        modules = [skeleton.get_input_embeddings(), skeleton.get_output_embeddings()]
    except NotImplementedError:  # a model that reads no tokens
        return ()
    wanted = {id(p) for module in modules if module is not None for p in module.parameters()}
    names = [name for name, p in skeleton.named_parameters(remove_duplicate=False) if id(p) in wanted]
    return tuple(name for name in names if name in shapes)
