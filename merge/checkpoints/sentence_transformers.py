"""Sentence-transformers folders: whether the pipelines of models agree, and the axes of their modules' tensors."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from merge.checkpoints.checkpoint import Checkpoint
from merge.checkpoints.modules import LISTING
from merge.disk.documents import read_object
from merge.errors import CheckpointError, SpecError

PIPELINE_FILES = (LISTING, "config_sentence_transformers.json", "sentence_bert_config.json")
SETTING_KINDS = {"prompts": "keys and values", "default_prompt_name": "text", "similarity_fn_name": "text"}
SETTING_KINDS |= {"activation_fn": "text", "max_seq_length": "a whole number", "do_lower_case": "true or false"}
# Modules with a weight for each layer of the encoder.
READS_LAYERS = ("WeightedLayerPooling",)


def check_edited(checkpoint: Checkpoint) -> None:
    """Stop where a module of the pipeline has weights for the encoder's layers by their indices, which an edit changes.

    Raises:
        CheckpointError: the modules hold a WeightedLayerPooling.
    """
    for module in checkpoint.modules or ():
        if module.kind in READS_LAYERS:
            raise CheckpointError(
                f"{checkpoint.source}/{module.path}: {module.kind} has a weight for each layer's place, and would weigh "
                f"other layers after an edit. Take it out of {LISTING}, or edit the encoder alone."
            )


def pipeline_files(checkpoint: Checkpoint) -> tuple[str, ...]:
    """Return the side files of a checkpoint that belong to its sentence-transformers pipeline."""
    folders = tuple(f"{module.path}/" for module in checkpoint.modules or () if module.path)
    return tuple(
        name for name in checkpoint.side_files if name in PIPELINE_FILES or (folders and name.startswith(folders))
    )


def pipeline_facts(checkpoint: Checkpoint) -> dict[str, Any] | None:
    """Return name -> value of the settings that decide the embeddings; None where there is no pipeline.

    A setting of a module is named by the module's index and kind; one that is not stated has its default.
    """
    modules = checkpoint.modules
    activation = _activation(checkpoint)
    if modules is None and activation is None:
        return None
    facts: dict[str, Any] = {}
    if modules is not None:
        facts["modules"] = ", ".join(module.kind for module in modules)
        facts |= {
            f"{index} {module.kind} {key}": value
            for index, module in enumerate(modules)
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
    return read_object(path, CheckpointError, SETTING_KINDS) if path.is_file() else {}


def _activation(checkpoint: Checkpoint) -> str | None:
    """Return the activation on a cross-encoder's logits, which each version wrote elsewhere; None for other models."""
    config = checkpoint.config
    stated = (
        (config.get("sentence_transformers") or {}).get("activation_fn")
        or config.get("sbert_ce_default_activation_function")
        or _optional(checkpoint.folder / "config_sentence_transformers.json").get("activation_fn")
    )
    return None if stated is None else str(stated).rsplit(".", 1)[-1]


# Written by older versions alone; without them the tokenizer decides.
TOKENIZER_SETTINGS = ("max_seq_length", "do_lower_case")


def differing_facts(a: Checkpoint, b: Checkpoint) -> list[str]:
    """Return the settings that differ, each with both values; nothing where one of the two has no pipeline."""
    left, right = pipeline_facts(a), pipeline_facts(b)
    if left is None or right is None:
        return []
    differences = []
    for key in dict.fromkeys([*left, *right]):
        optional = key in TOKENIZER_SETTINGS and not (key in left and key in right)
        if not optional and left.get(key) != right.get(key):
            differences.append(f"{key} is {left.get(key)!r} in {a.source}, {right.get(key)!r} in {b.source}")
    return differences


def compare_pipelines(models: Sequence[Checkpoint], policy: str | None) -> tuple[list[str], list[str]]:
    """Return (notes, faults) on pipelines that differ; a note where the policy for heads keeps the first model's."""
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
    modules = [model.modules is not None for model in models]
    if all(modules) or not any(modules):
        return []
    without = ", ".join(dict.fromkeys(m.source for m, listed in zip(models, modules, strict=True) if not listed))
    if modules[0]:
        return [f"no modules.json in {without}: pooling and prompts are those of {models[0].source}"]
    having = ", ".join(dict.fromkeys(m.source for m, listed in zip(models, modules, strict=True) if listed))
    return [f"no modules.json in {without}: the result has none either, though {having} has one"]


def module_lines(checkpoint: Checkpoint) -> dict[str, str]:
    """Return a line of named axes for every tensor of the modules; the first module reads the encoder's residual axis.

    Raises:
        SpecError: a module has weights whose axes are not known.
    """
    lines: dict[str, str] = {}
    axis = "residual"  # of the next module's inputs
    for module in checkpoint.modules or ():
        names = [name for name in checkpoint.tensors if name.startswith(f"{module.path}/") and module.path]
        if module.kind == "Pooling" and "+" in module.settings.get("pooling_mode", ""):
            axis = "?"  # the axis several times, one after the other
        if not names:
            continue
        square = module.settings.get("in_features") == module.settings.get("out_features")
        adds = module.settings.get("use_residual") and square
        if module.kind not in ("Dense", "LayerNorm") or (axis != "-" and (axis == "?" or adds)):
            raise SpecError(
                f"{checkpoint.source}: the axes of {module.path} ({module.kind}) are not known well enough to align it. "
                "Merge without alignment: --align none."
            )
        for name in names:
            bias_or_norm = module.kind == "LayerNorm" or name.endswith("bias")
            read = f"{axis}'" if axis != "-" else axis
            lines[name] = (axis if module.kind == "LayerNorm" else "-") if bias_or_norm else f"- {read}"
        axis = axis if module.kind == "LayerNorm" else "-"
    return lines
