"""Sentence-transformers folders: a pipeline of modules behind the encoder, some of them with weights of their own.

`modules.json` lists the modules in their order; each has a folder. A module's weights become tensors of the checkpoint
beside the encoder's, named by folder and name ("2_Dense/linear.weight"), and are merged and written like them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any

from merge.checkpoints.checkpoint import Checkpoint
from merge.checkpoints.side_files import WEIGHT_ENDINGS
from merge.checkpoints.weights.read import read_headers
from merge.errors import CheckpointError, SpecError, first_line

LISTING = "modules.json"
PIPELINE_FILES = (LISTING, "config_sentence_transformers.json", "sentence_bert_config.json")
# What Pooling's settings were called before they became one, pooling_mode.
POOLING_MODES = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}
# Modules with a weight for each layer of the encoder.
READS_LAYERS = ("WeightedLayerPooling",)
# Settings that say what is so anyway.
DEFAULTS = {
    "module_input_name": "sentence_embedding",
    "module_output_name": "sentence_embedding",
    "include_prompt": True,
    "bias": True,
    "use_residual": False,
}


@dataclass(frozen=True)
class Module:
    """One module of the pipeline.

    Attributes:
        kind: its class, without the package that changes from version to version.
        path: its folder, "" for the encoder's, which is the checkpoint's own.
        settings: its config.json.
    """

    kind: str
    path: str
    settings: Mapping[str, Any]


def read_modules(folder: Path) -> tuple[Module, ...] | None:
    """Return the modules of a folder in their order; None where it is no sentence-transformers folder.

    Raises:
        CheckpointError: modules.json is malformed, or names a folder outside its own.
    """
    if not (folder / LISTING).is_file():
        return None
    listed = _read_json(folder / LISTING)
    try:
        ordered = sorted(listed, key=lambda entry: entry["idx"])
        found = [(str(entry["type"]).rsplit(".", 1)[-1], str(entry["path"])) for entry in ordered]
    except (KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(
            f"{folder / LISTING} is malformed: expected a list of modules with idx, path and type."
        ) from error
    for kind, path in found:
        if PurePosixPath(path).is_absolute() or ".." in PurePosixPath(path).parts:
            raise CheckpointError(f"{folder / LISTING}: module {kind} lies outside the folder, in {path}.")
    return tuple(Module(kind, path, _settings(kind, folder / path / "config.json", path)) for kind, path in found)


def _settings(kind: str, path: Path, place: str) -> dict[str, Any]:
    """Return what a module's config.json states, in today's words and without defaults; the encoder's is not meant."""
    if not place or not path.is_file():
        return {}
    stated = _read_json(path)
    if not isinstance(stated, dict):
        raise CheckpointError(f"{path} is malformed: expected keys and values.")
    if kind == "Pooling":
        modes = stated.get("pooling_mode") or [m for key, m in POOLING_MODES.items() if stated.get(key)] or ["mean"]
        size = stated.get("embedding_dimension", stated.get("word_embedding_dimension"))
        others = {k: v for k, v in stated.items() if k == "include_prompt"}
        stated = {
            "pooling_mode": "+".join([modes] if isinstance(modes, str) else sorted(modes)),
            "embedding_dimension": size,
        } | others
    if "activation_function" in stated:
        stated["activation_function"] = str(stated["activation_function"]).rsplit(".", 1)[-1]
    return {key: value for key, value in stated.items() if key not in DEFAULTS or DEFAULTS[key] != value}


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError, RecursionError) as error:
        raise CheckpointError(f"{path} cannot be read: {first_line(error)}") from error


def is_module_tensor(name: str) -> bool:
    """Tell whether a canonical name is that of a module's tensor: "2_Dense/linear.weight"."""
    return "/" in name


def with_modules(checkpoint: Checkpoint) -> Checkpoint:
    """Return the checkpoint with the tensors of its modules beside its own.

    Raises:
        CheckpointError: the modules cannot be read, or one keeps its weights where they are not known to lie.
    """
    found, files = dict(checkpoint.tensors), set()
    for module in read_modules(checkpoint.folder) or ():
        if not module.path:
            continue
        inside = [
            name
            for name in (*checkpoint.left_behind, *checkpoint.side_files)
            if name.startswith(f"{module.path}/") and name.endswith(WEIGHT_ENDINGS)
        ]
        if not inside:
            continue
        where = f"{checkpoint.source}/{module.path}"
        if all("/" in name.removeprefix(f"{module.path}/") for name in inside):
            raise CheckpointError(
                f"{where}: a {module.kind} that keeps its weights in folders ({inside[0]}) can be neither merged nor edited."
            )
        for name, stored in read_headers(checkpoint.folder / module.path, where).items():
            found[f"{module.path}/{name}"] = replace(stored, file=f"{module.path}/{stored.file}")
            files.add(f"{module.path}/{stored.file}")
    left = tuple(name for name in checkpoint.left_behind if name not in files)
    return replace(checkpoint, tensors=found, left_behind=left) if files else checkpoint


def check_edited(checkpoint: Checkpoint) -> None:
    """Stop where a module of the pipeline reads the encoder's layers by their places, which an edit changes.

    Raises:
        CheckpointError: the modules hold a WeightedLayerPooling.
    """
    for module in read_modules(checkpoint.folder) or ():
        if module.kind in READS_LAYERS:
            raise CheckpointError(
                f"{checkpoint.source}/{module.path}: {module.kind} has a weight for each layer's place, and would weigh "
                f"other layers after an edit. Take it out of {LISTING}, or edit the encoder alone."
            )


def without_modules(checkpoint: Checkpoint) -> Checkpoint:
    """Return the checkpoint as transformers knows it."""
    kept = {name: stored for name, stored in checkpoint.tensors.items() if not is_module_tensor(name)}
    return checkpoint if len(kept) == len(checkpoint.tensors) else replace(checkpoint, tensors=kept)


def pipeline_files(checkpoint: Checkpoint) -> tuple[str, ...]:
    """Return the side files that make a folder a sentence-transformers one."""
    folders = tuple(f"{module.path}/" for module in read_modules(checkpoint.folder) or () if module.path)
    return tuple(
        name for name in checkpoint.side_files if name in PIPELINE_FILES or (folders and name.startswith(folders))
    )


def pipeline_facts(checkpoint: Checkpoint) -> dict[str, Any] | None:
    """Return what decides the outputs beside the weights, by name; None for what is no sentence-transformers folder.

    A setting of a module is named by the module's place and kind. What is not stated is the default.
    """
    modules = read_modules(checkpoint.folder)
    activation = _activation(checkpoint)
    if modules is None and activation is None:
        return None
    facts: dict[str, Any] = {}
    if modules is not None:
        facts["modules"] = ", ".join(module.kind for module in modules)
        facts |= {
            f"{place} {module.kind} {key}": value
            for place, module in enumerate(modules)
            for key, value in module.settings.items()
        }
    general = _optional(checkpoint.folder / "config_sentence_transformers.json")
    facts["prompts"] = {name: text for name, text in (general.get("prompts") or {}).items() if text}
    facts["default_prompt_name"] = general.get("default_prompt_name")
    facts["similarity_fn_name"] = general.get("similarity_fn_name") or "cosine"
    reading = _optional(checkpoint.folder / "sentence_bert_config.json")
    facts |= {key: reading[key] for key in ("max_seq_length", "do_lower_case") if reading.get(key) is not None}
    return facts | ({} if activation is None else {"activation_fn": activation})


def _optional(path: Path) -> dict[str, Any]:
    found = _read_json(path) if path.is_file() else {}
    if not isinstance(found, dict):
        raise CheckpointError(f"{path} is malformed: expected keys and values.")
    return found


def _activation(checkpoint: Checkpoint) -> str | None:
    """Return what a cross-encoder puts on its logits, which every version wrote elsewhere; None if it is none."""
    config = checkpoint.config
    stated = (
        (config.get("sentence_transformers") or {}).get("activation_fn")
        or config.get("sbert_ce_default_activation_function")
        or _optional(checkpoint.folder / "config_sentence_transformers.json").get("activation_fn")
    )
    return None if stated is None else str(stated).rsplit(".", 1)[-1]


# Said by older versions alone; a folder that does not say it takes it from its tokenizer.
READING = ("max_seq_length", "do_lower_case")


def differing_facts(a: Checkpoint, b: Checkpoint) -> list[str]:
    """Return what of the two pipelines differs, each with both values; nothing where one of them is no such folder."""
    left, right = pipeline_facts(a), pipeline_facts(b)
    if left is None or right is None:
        return []
    said = []
    for key in dict.fromkeys([*left, *right]):
        unsaid = key in READING and not (key in left and key in right)
        if not unsaid and left.get(key) != right.get(key):
            said.append(f"{key} is {left.get(key)!r} in {a.source}, {right.get(key)!r} in {b.source}")
    return said


def compare_pipelines(models: Sequence[Checkpoint], policy: str | None) -> tuple[list[str], list[str]]:
    """Return (notes, faults) on pipelines that differ: a note where the policy for heads takes the first model's."""
    if policy in ("drop", "keep-all"):
        return [], []
    notes, faults, first = lacking_notes(models), list[str](), models[0]
    for other in models[1:]:
        differing = "; ".join(differing_facts(first, other))
        if differing and policy == "reference":
            notes.append(f"sentence-transformers folders differ, and that of {first.source} is kept: {differing}")
        elif differing:
            faults.append(
                f"sentence-transformers folders differ: {differing}. Their embeddings are not made alike; "
                f"--heads reference keeps what {first.source} does."
            )
    return notes, faults


def lacking_notes(models: Sequence[Checkpoint]) -> list[str]:
    """Return a note where some of the models are sentence-transformers folders and others are not."""
    modules = [read_modules(model.folder) is not None for model in models]
    if all(modules) or not any(modules):
        return []
    without = ", ".join(dict.fromkeys(m.source for m, listed in zip(models, modules, strict=True) if not listed))
    if modules[0]:
        return [f"no modules.json in {without}: pooling and prompts are those of {models[0].source}"]
    having = ", ".join(dict.fromkeys(m.source for m, listed in zip(models, modules, strict=True) if listed))
    return [f"no modules.json in {without}: the result has none either, though {having} has one"]


def module_lines(checkpoint: Checkpoint) -> dict[str, str]:
    """Return a line of named axes for every tensor of the modules: what stands behind the encoder reads its residual axis.

    Raises:
        SpecError: a module with weights is none whose axes are known.
    """
    lines: dict[str, str] = {}
    axis = "residual"  # of what the next module reads
    for module in read_modules(checkpoint.folder) or ():
        own = [name for name in checkpoint.tensors if name.startswith(f"{module.path}/") and module.path]
        if module.kind == "Pooling" and "+" in module.settings.get("pooling_mode", ""):
            axis = "?"  # the axis several times over, one after the other
        if not own:
            continue
        square = module.settings.get("in_features") == module.settings.get("out_features")
        adds = module.settings.get("use_residual") and square
        if module.kind not in ("Dense", "LayerNorm") or (axis != "-" and (axis == "?" or adds)):
            raise SpecError(
                f"{checkpoint.source}: the axes of {module.path} ({module.kind}) are not known well enough to align it. "
                "Merge without alignment: --align none."
            )
        for name in own:
            bias_or_norm = module.kind == "LayerNorm" or name.endswith("bias")
            read = f"{axis}'" if axis != "-" else axis
            lines[name] = (axis if module.kind == "LayerNorm" else "-") if bias_or_norm else f"- {read}"
        axis = axis if module.kind == "LayerNorm" else "-"
    return lines
