"""Weights of other kinds than whole float models: adapters, quantized weights, and pointers to files that are not there."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from merge.checkpoints.weights.read import StoredTensor
from merge.disk.documents import read_object
from merge.errors import CheckpointError, some

ADAPTER = "adapter_config.json"
ADAPTER_FILES = (ADAPTER, "adapter_model.safetensors", "adapter_model.bin", "pytorch_adapter.bin")
ADAPTER_TENSOR = re.compile(
    r"\.(lora_(A|B|embedding_A|embedding_B|magnitude_vector)|base_layer|original_module|modules_to_save|ia3_l|hada_w\d_a|"
    r"vera_lambda_b|oft_r|boft_R)\b|^(base_model\.model|prompt_encoder)\."
)
# Entries of config.json that state how weights were quantized.
QUANTIZATION = ("quantization_config", "compression_config", "quantization")
PACKED_TENSOR = re.compile(
    r"\.(qweight|qzeros|scales|g_idx|SCB|weight_format|absmax|quant_map|nested_absmax|nested_quant_map|weight_scale(_inv)?|"
    r"input_scale|weight_packed|weight_shape|weight_zero_point|weight_global_scale|codebooks|codes)$|quant_state\.|"
    r"(blocks|scales)$"
)
PACKED_DTYPES = ("I8", "U8", "I16", "I32", "F8_E4M3", "F8_E5M2", "F8_E8M0", "F4")
WEIGHT = re.compile(r"(weight|kernel|proj|blocks)$")


def check_adapter(folder: Path, source: str) -> None:
    """Stop where a folder holds an adapter: alone it is no model, and beside weights it changes what is loaded.

    Raises:
        CheckpointError: it does; says how to fold the adapter into the weights.
    """
    if not (folder / ADAPTER).is_file():
        return
    stated = read_object(folder / ADAPTER, CheckpointError, name=f"{source}: {ADAPTER}")
    kind, base = stated.get("peft_type"), stated.get("base_model_name_or_path") or "its model"
    if not kind:
        raise CheckpointError(
            f"{source} holds an adapter of another library than peft ({ADAPTER} names no peft_type), whose layers no class of "
            "transformers has. Give a whole model; where its weights are in this folder too, take the adapter's files away."
        )
    fold = f"PeftModel.from_pretrained(model, {source!r}).merge_and_unload().save_pretrained('folded')"
    files = [name for name in ADAPTER_FILES if (folder / name).is_file()]
    if not _has_weights(folder):
        raise CheckpointError(
            f"{source} is a {kind} adapter alone ({ADAPTER}), not a whole model. Fold it into its model first, with peft: "
            f"model = AutoModel...from_pretrained({str(base)!r}); {fold}; then merge folded/."
        )
    raise CheckpointError(
        f"{source} holds a {kind} adapter ({some(files)}) beside its weights: transformers adds it where peft is installed, and "
        "leaves it out where it is not. To fold it in, move the adapter's files into a folder of their own, then with peft: "
        f"PeftModel.from_pretrained(model, FOLDER).merge_and_unload().save_pretrained('folded'), where model is {source}. To "
        "merge the weights without it, take the files away."
    )


def _has_weights(folder: Path) -> bool:
    names = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")
    return (folder / "config.json").is_file() and any((folder / name).is_file() for name in names)


def check_no_adapter_tensors(names: Iterable[str], source: str) -> None:
    """Stop where weights were saved with an adapter inside, under the names of peft's layers.

    Raises:
        CheckpointError: they were.
    """
    inside = [name for name in names if ADAPTER_TENSOR.search(name)]
    if inside:
        raise CheckpointError(
            f"{source}: its weights hold {len(inside)} tensors of an adapter or its wrapped layers ({some(inside, 2)}). Save the "
            "model again with the adapter folded in: model.merge_and_unload().save_pretrained(...), of peft."
        )


def without_quantization(
    config: Mapping[str, Any], stored: Mapping[str, StoredTensor], source: str
) -> tuple[dict[str, Any], list[str]]:
    """Return the config without what it states of a quantization that its weights do not have, and a note on that.

    Raises:
        CheckpointError: the weights are quantized.
    """
    stated = [key for key in QUANTIZATION if config.get(key) is not None]
    inner = {
        name: [key for key in QUANTIZATION if part.get(key) is not None]
        for name, part in config.items()
        if isinstance(part, dict) and name.endswith("_config")
    }
    packed = [
        name
        for name, tensor in stored.items()
        if PACKED_TENSOR.search(name) or (tensor.dtype in PACKED_DTYPES and WEIGHT.search(name))
    ]
    settings = config.get(stated[0]) if stated else {}
    method = settings.get("quant_method") if isinstance(settings, dict) else None
    if packed:
        kinds = sorted({stored[name].dtype for name in packed})
        raise CheckpointError(
            f"{source} is quantized{f' ({method})' if method else ''}: {len(packed)} tensors hold packed numbers or their "
            f"scales ({some(packed, 2)}; {', '.join(kinds)}). Only float weights can be merged: load it with transformers, call "
            "model.dequantize() and save it, or take the model that it was made from."
        )
    named = [*stated, *(f"{name}.{key}" for name, keys in inner.items() for key in keys)]
    if not named:
        return dict(config), []
    plain = {
        name: {k: v for k, v in part.items() if k not in QUANTIZATION} if inner.get(name) else part
        for name, part in config.items()
        if name not in QUANTIZATION
    }
    dtypes = sorted({tensor.dtype for tensor in stored.values() if not tensor.is_integer})
    return plain, [
        f"{source}: {', '.join(named)} in config.json describes none of its weights, which are {', '.join(dtypes)}; left out"
    ]
