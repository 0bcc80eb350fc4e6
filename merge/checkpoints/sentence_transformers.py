"""Sentence-transformers folders: whether the pipelines of models agree, and the axes of their modules' tensors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

from merge.checkpoints.checkpoint import Checkpoint
from merge.checkpoints.config_file import check_length, position_limit
from merge.checkpoints.modules import LISTING, Module, activation_name, is_module_tensor
from merge.disk.documents import read_object
from merge.errors import CheckpointError, SpecError

GENERAL = "config_sentence_transformers.json"
PIPELINE_FILES = (LISTING, GENERAL, "sentence_bert_config.json")
CROSS_ENCODER = "CrossEncoder"
# The similarity of embeddings where none is stated, by the class that saved the folder.
SIMILARITIES = {"SentenceTransformer": "cosine", "SparseEncoder": "dot"}
RECORDS = ("__version__",)  # of the libraries that wrote the folder
# Entries of sentence_bert_config.json that change no output: where the tokenizer came from, how batches are laid out.
UNREAD = ("tokenizer_name_or_path", "unpad_inputs")
# Written by some versions alone; where one of two models lacks them, the library works them out from the model itself.
STATED_BY_SOME = ("transformer_task", "modality_config", "module_output_name", "model_type")
UNBOUNDED = 10**6  # tokens; tokenizers without a limit state a larger number
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
    """Return name -> value of every setting that can decide an output of the pipeline; None where there is no pipeline.

    All entries of its files count, known or not, but for versions. A setting of a module is named by the module's index and
    kind; one that is not stated has its default. The layouts of all versions state one pipeline alike.
    """
    kind = pipeline_kind(checkpoint)
    if kind is None:
        return None
    modules = checkpoint.modules or (Module("Transformer", "", {}),)
    general = _optional(checkpoint.folder / GENERAL)
    facts: dict[str, Any] = {"model_type": kind if kind == CROSS_ENCODER else general.get("model_type")}
    facts |= {"modules": ", ".join(module.kind for module in modules)}
    facts |= {
        f"{index} {module.kind} {key}": value
        for index, module in enumerate(modules)
        for key, value in module.settings.items()
    }
    prompts = general.get("prompts")
    facts["prompts"] = {k: text for k, text in prompts.items() if text} if isinstance(prompts, dict) else prompts or {}
    if kind in SIMILARITIES:
        facts["similarity_fn_name"] = general.get("similarity_fn_name") or SIMILARITIES[kind]
    facts |= {key: value for key, value in general.items() if key not in (*RECORDS, *facts)}
    facts |= _reading_facts(checkpoint)
    if kind == CROSS_ENCODER:
        facts["activation_fn"] = _activation(checkpoint)
    return {key: value for key, value in facts.items() if value is not None}


def pipeline_kind(checkpoint: Checkpoint) -> str | None:
    """Return the class of sentence-transformers that the folder was saved by; None for a folder of transformers alone."""
    config, modules = checkpoint.config, checkpoint.modules
    stated = _optional(checkpoint.folder / GENERAL).get("model_type")
    if stated:
        return str(stated)
    if isinstance(config.get("sentence_transformers"), dict) or config.get("sbert_ce_default_activation_function"):
        return CROSS_ENCODER  # until version 4 its settings stood in config.json alone
    if modules is None:
        return None
    return (
        "SparseEncoder"
        if any(module.kind.startswith(("Splade", "Sparse")) for module in modules)
        else "SentenceTransformer"
    )


def _reading_facts(checkpoint: Checkpoint) -> dict[str, Any]:
    """Return how texts are read: what the first module's file states, and the longest text, which moved to the tokenizer.

    Where neither states it, the library reads as many tokens as the model has positions.
    """
    files = [path for path in sorted(checkpoint.folder.glob("sentence_*_config.json")) if path.is_file()]
    facts = {key: value for path in files for key, value in _optional(path).items() if key not in UNREAD}
    check_length(
        facts.get("max_seq_length"), "max_seq_length", f"{checkpoint.source}: {files[0].name if files else ''}"
    )
    if facts.get("do_lower_case") is False:
        del facts["do_lower_case"]
    if facts.get("max_seq_length") is None:
        length = _optional(checkpoint.folder / "tokenizer_config.json").get("model_max_length")
        facts["max_seq_length"] = length if isinstance(length, int) and length < UNBOUNDED else None
    limits = (facts["max_seq_length"], position_limit(checkpoint.config))
    return facts | {"max_seq_length": min((limit for limit in limits if isinstance(limit, int)), default=None)}


def _optional(path: Path) -> dict[str, Any]:
    return read_object(path, CheckpointError, SETTING_KINDS) if path.is_file() else {}


def _activation(checkpoint: Checkpoint) -> str:
    """Return the activation on a cross-encoder's scores, which each version wrote elsewhere; the library's default."""
    config = checkpoint.config
    inside = config.get("sentence_transformers")
    stated = (
        (inside.get("activation_fn") if isinstance(inside, dict) else None)
        or config.get("sbert_ce_default_activation_function")
        or _optional(checkpoint.folder / GENERAL).get("activation_fn")
    )
    names = checkpoint.structure.settings.get("id2label") or {}
    return activation_name(stated or ("Sigmoid" if len(names) == 1 else "Identity"))


def differing_facts(a: Checkpoint, b: Checkpoint) -> list[str]:
    """Return the settings that differ, each with both values; nothing where one of the two has no pipeline."""
    left, right = (_facts_beside(model, other) for model, other in ((a, b), (b, a)))
    if left is None or right is None:
        return []
    differences = []
    for key in dict.fromkeys([*left, *right]):
        optional = key in STATED_BY_SOME and not (key in left and key in right)
        if not optional and left.get(key) != right.get(key):
            differences.append(f"{key} is {left.get(key)!r} in {a.source}, {right.get(key)!r} in {b.source}")
    return differences


def _facts_beside(checkpoint: Checkpoint, other: Checkpoint) -> dict[str, Any] | None:
    """Return the facts of a model; a plain classifier beside a cross-encoder is one too, with the library's defaults."""
    facts = pipeline_facts(checkpoint)
    plain = facts is None and checkpoint.architecture == other.architecture
    if not plain or pipeline_kind(other) != CROSS_ENCODER:
        return facts
    return {
        "model_type": CROSS_ENCODER,
        "modules": "Transformer",
        "prompts": {},
        "activation_fn": _activation(checkpoint),
        **{key: value for key, value in _reading_facts(checkpoint).items() if value is not None},
    }


def compare_pipelines(
    models: Sequence[Checkpoint], policy: str | None, keep_first: bool = False
) -> tuple[list[str], list[str]]:
    """Return (notes, faults) on pipelines that differ; notes where the first model's is kept.

    Args:
        policy: for heads; `reference` keeps the first model's modules, and with them what they do.
        keep_first: whether the first model's settings are kept though heads and modules are merged.
    """
    if policy in ("drop", "keep-all"):
        return [], []
    notes, faults, first = lacking_notes(models), list[str](), models[0]
    for other in models[1:]:
        differing = "; ".join(differing_facts(first, other))
        if differing and (policy == "reference" or keep_first):
            notes.append(f"sentence-transformers folders differ, and that of {first.source} is kept: {differing}")
        elif differing:
            faults.append(
                f"sentence-transformers folders differ: {differing}. Their outputs are not made alike; "
                f"{_advice(first, other)}"
            )
    return notes, faults


def _advice(first: Checkpoint, other: Checkpoint) -> str:
    """Say which option keeps the first model's settings without leaving out weights that both models have."""
    modules = [{name for name in model.tensors if is_module_tensor(name)} for model in (first, other)]
    if modules[0] == modules[1]:
        return f"--config reference keeps the settings of {first.source}, and merges all weights."
    return f"--heads reference keeps the modules of {first.source}, and leaves those of {other.source} out."


def lacking_notes(models: Sequence[Checkpoint]) -> list[str]:
    """Return a note where some of the models are sentence-transformers folders and others are not."""
    having = [m.modules is not None and pipeline_kind(m) != CROSS_ENCODER for m in models]
    if all(having) or not any(having):
        return []
    without = ", ".join(dict.fromkeys(m.source for m, listed in zip(models, having, strict=True) if not listed))
    if having[0]:
        return [f"no modules.json in {without}: pooling and prompts are those of {models[0].source}"]
    owners = ", ".join(dict.fromkeys(m.source for m, listed in zip(models, having, strict=True) if listed))
    return [f"no modules.json in {without}: the result has none either, though {owners} has one"]


def module_lines(checkpoint: Checkpoint, outputs: Mapping[str, str] = MappingProxyType({})) -> dict[str, str]:
    """Return a line of named axes for every tensor of the modules; the first module reads the encoder's residual axis.

    Args:
        outputs: folder of a dense layer -> the axis of its outputs, where they may move.
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
        written = axis if module.kind == "LayerNorm" else outputs.get(module.path, "-")
        for name in names:
            vector = module.kind == "LayerNorm" or name.endswith("bias")
            lines[name] = written if vector else f"{written} {axis}" + ("'" if axis != "-" else "")
        axis = written
    return lines
