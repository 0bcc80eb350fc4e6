"""Models that live in memory: written to a workspace and opened as checkpoints; the models themselves are not changed."""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias, TypeGuard, Union

from merge.checkpoints.checkpoint import Checkpoint
from merge.checkpoints.open import open_base, open_checkpoint
from merge.checkpoints.tokenizers.files import tokenizer_names
from merge.errors import CheckpointError, UsageError

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

# A folder or Hub id, an open checkpoint, a model in memory, or a model with the tokenizer that its text is read with.
ModelLike: TypeAlias = Union[
    "str | os.PathLike[str] | Checkpoint | PreTrainedModel | SentenceTransformer",
    "tuple[PreTrainedModel, PreTrainedTokenizerBase]",
]


def open_model(
    model: ModelLike, workspace: Path, number: int = 1, revision: str | None = None, is_base: bool = False
) -> Checkpoint:
    """Return a model as a checkpoint; one that lives in memory is first written to `workspace`.

    Args:
        number: of the model among those of one call; a model in memory is named by its class and this number.
        revision: of a Hub id.
        is_base: whether it is the base of a merge, which need not name its class.
    Raises:
        UsageError: it is none of `ModelLike`, or a revision is given for what is not a Hub id.
        CheckpointError: the model cannot be written, or is no checkpoint that can be read.
    """
    if isinstance(model, str | os.PathLike):
        return (open_base if is_base else open_checkpoint)(os.fspath(model), revision)
    if revision is not None:
        raise UsageError(f"revision {revision!r} belongs to a Hub id; model {number} is a {type(model).__name__}.")
    if isinstance(model, Checkpoint):
        return model
    network, tokenizer = model if _is_pair(model) else (model, None)
    if not is_in_memory(network):
        raise UsageError(
            f"model {number} is a {type(network).__module__}.{type(network).__name__}; expected a folder, a Hub id, a "
            "PreTrainedModel, a (PreTrainedModel, tokenizer) pair or a SentenceTransformer. Adapters: merge them into "
            "their model first (model.merge_and_unload())."
        )
    folder = workspace / f"{type(network).__name__}-{number}"
    with _configs_kept(network):
        _write(network, tokenizer, folder, number)
    origin = _origin(network) if tokenizer is None else None
    names = [name for name in tokenizer_names(origin) if not (folder / name).exists()] if origin else []
    for name in names:
        shutil.copyfile(Path(str(origin)) / name, folder / name)
    notes = (f"{folder.name}: its tokenizer is that of {origin}, which the model was loaded from",) if names else ()
    opened = open_checkpoint(str(folder))
    return replace(opened, source=folder.name, notes=(*opened.notes, *notes))


def listed_models(models: Any, example: str) -> list[Any]:
    """Return one model, or several, as a list.

    Args:
        example: a call that is right, for the error.
    Raises:
        UsageError: there is none, or they come as a mapping, whose values would be lost.
    """
    if isinstance(models, Mapping):
        raise UsageError(f"expected a list of models, found a {type(models).__name__}. Example: {example}")
    several = isinstance(models, Iterable) and not isinstance(models, str | os.PathLike) and not is_in_memory(models)
    listed = list(models) if several else [models]
    if not listed:
        raise UsageError(f"no models given. Example: {example}")
    return listed


def is_in_memory(model: Any) -> bool:
    """Tell whether a model is a live one of transformers or sentence-transformers, with or without its tokenizer."""
    return (
        _is_pair(model)
        or _is_a(model, "transformers", "PreTrainedModel")
        or _is_a(model, "sentence_transformers", "SentenceTransformer")
    )


def _is_pair(model: Any) -> TypeGuard[tuple[PreTrainedModel, PreTrainedTokenizerBase]]:
    """Tell whether this is a model with its tokenizer; two models in a tuple are two models."""
    return (
        isinstance(model, tuple)
        and len(model) == 2
        and _is_a(model[0], "transformers", "PreTrainedModel")
        and _is_a(model[1], "transformers", "PreTrainedTokenizerBase")
    )


def _is_a(model: Any, library: str, name: str) -> bool:
    """Tell whether a model is of a class of a library, which is not imported for it: a live model has imported it."""
    return library in sys.modules and isinstance(model, getattr(sys.modules[library], name))


def _write(network: Any, tokenizer: Any, folder: Path, number: int) -> None:
    """Write one live model as its own library does, but quietly."""
    from merge.checkpoints.transformers_model import quiet

    try:
        with quiet():
            if _is_a(network, "sentence_transformers", "SentenceTransformer"):
                network.save(str(folder), create_model_card=False)
            else:
                network.save_pretrained(folder)
            if tokenizer is not None:
                tokenizer.save_pretrained(folder)
    except (OSError, RuntimeError, NotImplementedError) as error:
        raise CheckpointError(f"model {number}, a {type(network).__name__}, cannot be written: {error}") from error


def _origin(network: Any) -> Path | None:
    """Return the local folder that a model was loaded from, where it still is one."""
    name = getattr(network, "name_or_path", None)
    return Path(name) if isinstance(name, str) and name and Path(name).is_dir() else None


@contextlib.contextmanager
def _configs_kept(network: Any) -> Iterator[None]:
    """Restore every config of a model afterwards: `save_pretrained` notes the dtype and the class in it."""
    attributes = (getattr(module, "config", None) for module in network.modules())
    configs = {id(config): config for config in attributes if _is_a(config, "transformers", "PreTrainedConfig")}
    before = [(config, dict(vars(config))) for config in configs.values()]
    try:
        yield
    finally:
        for config, values in before:
            vars(config).clear()
            vars(config).update(values)
