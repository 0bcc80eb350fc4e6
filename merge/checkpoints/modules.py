"""Modules of a sentence-transformers folder: its pipeline as modules.json lists it, and the weights of each module.

`modules.json` lists the modules in their order; each has a folder. A module's weights become tensors of the checkpoint
beside the encoder's, named by folder and name ("2_Dense/linear.weight"), and are merged and written like them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any

from merge.checkpoints.side_files import WEIGHT_ENDINGS
from merge.checkpoints.weights.read import StoredTensor, read_headers
from merge.disk.documents import read_json, read_object
from merge.errors import CheckpointError

LISTING = "modules.json"
# The names that Pooling's settings had before they became one, pooling_mode.
POOLING_MODES = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}
RENAMED = {"word_embedding_dimension": "embedding_dimension", "in_word_embedding_dimension": "in_embedding_dimension"}
# Modules whose size is that of what they read, whether it is stated or not.
SIZED_BY_INPUT = ("SpladePooling",)
# Settings that mean the same whether they are written out or left out.
DEFAULTS = {
    "module_input_name": "sentence_embedding",
    "include_prompt": True,
    "bias": True,
    "use_residual": False,
}


SETTING_KINDS = {"pooling_mode": "text or a list", "include_prompt": "true or false", "use_residual": "true or false"}


@dataclass(frozen=True)
class Module:
    """One module of the pipeline.

    Attributes:
        kind: its class, without the package, whose name changes from version to version.
        path: its folder; "" for the encoder's, which is the checkpoint's.
        settings: its config.json, under today's names and without defaults; then its further files.
    """

    kind: str
    path: str
    settings: Mapping[str, Any]


def is_module_tensor(name: str) -> bool:
    """Return whether a canonical name is that of a module's tensor: "2_Dense/linear.weight"."""
    return "/" in name


def read_modules(folder: Path) -> tuple[Module, ...] | None:
    """Return the modules of a folder in their order; None where it is no sentence-transformers folder.

    Raises:
        CheckpointError: modules.json is malformed, or names a folder outside its own.
    """
    if not (folder / LISTING).is_file():
        return None
    listed = read_json(folder / LISTING, CheckpointError)
    try:
        ordered = sorted(listed, key=lambda entry: entry["idx"])
        modules = [(str(entry["type"]).rsplit(".", 1)[-1], str(entry["path"])) for entry in ordered]
    except (KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(
            f"{folder / LISTING} is malformed: expected a list of modules with idx, path and type."
        ) from error
    for kind, path in modules:
        if PurePosixPath(path).is_absolute() or ".." in PurePosixPath(path).parts:
            raise CheckpointError(f"{folder / LISTING}: module {kind} lies outside the folder, in {path}.")
    return tuple(
        Module(
            kind,
            path,
            _settings(kind, path, folder / path / "config.json") | (_more_settings(folder / path) if path else {}),
        )
        for kind, path in modules
    )


def _settings(kind: str, folder: str, config: Path) -> dict[str, Any]:
    """Return a module's config.json under today's names and without defaults; the encoder's config is not read."""
    if not folder or not config.is_file():
        return {}
    settings = read_object(config, CheckpointError, SETTING_KINDS)
    for old, today in RENAMED.items():
        if old in settings:
            settings.setdefault(today, settings.pop(old))
    if kind == "Pooling":
        modes = settings.get("pooling_mode") or [m for key, m in POOLING_MODES.items() if settings.get(key)] or ["mean"]
        settings = {key: value for key, value in settings.items() if key not in POOLING_MODES}
        settings["pooling_mode"] = "+".join([modes] if isinstance(modes, str) else sorted(modes))
    if kind in SIZED_BY_INPUT:
        settings.pop("embedding_dimension", None)
    if "activation_function" in settings:
        settings["activation_function"] = activation_name(settings["activation_function"])
    if settings.get("module_output_name") == settings.get("module_input_name", "sentence_embedding"):
        settings.pop("module_output_name", None)  # it writes what it reads
    return {key: value for key, value in settings.items() if value is not None and DEFAULTS.get(key, ...) != value}


def _more_settings(folder: Path) -> dict[str, Any]:
    """Return the settings in a module's further files, named by their files: those of its tokenizer, its word weights."""
    files = [*folder.glob("*_config.json"), *folder.glob("idf.json")] if folder.is_dir() else []
    return {
        f"{path.stem} {key}": value
        for path in sorted(files)
        for key, value in read_object(path, CheckpointError).items()
    }


def activation_name(stated: Any) -> str:
    """Return the name of an activation: torch's without its module, which changed from version to version."""
    name = str(stated)
    return name.rsplit(".", 1)[-1] if name.startswith("torch.") else name


def module_tensors(
    folder: Path, source: str, modules: Sequence[Module], files: Sequence[str]
) -> dict[str, StoredTensor]:
    """Return "folder/name" -> where it is stored, for every tensor of the modules.

    Args:
        source: the checkpoint as the user named it, for messages.
        files: relative paths of the checkpoint's files, its encoder's weights left out.
    Raises:
        CheckpointError: a weight file cannot be read, or a module keeps its weights in folders inside its own.
    """
    tensors = {}
    for module in modules:
        weights = [name for name in files if name.startswith(f"{module.path}/") and name.endswith(WEIGHT_ENDINGS)]
        if not module.path or not weights:
            continue
        if all("/" in name.removeprefix(f"{module.path}/") for name in weights):
            raise CheckpointError(
                f"{source}/{module.path}: a {module.kind} that keeps its weights in folders ({weights[0]}) can be neither "
                "merged nor edited."
            )
        for name, stored in read_headers(folder / module.path, f"{source}/{module.path}").items():
            tensors[f"{module.path}/{name}"] = replace(stored, file=f"{module.path}/{stored.file}")
    return tensors
