"""Table of the layer lists (stacks) of each architecture: the names of their tensors and config keys.

A tensor of a checkpoint belongs to a layer, or acts before or after the layers. The name alone does not tell which: in
`transformer.layer.3.ff.layer_1.weight` of XLNet and `encoder.block.3.layer.0.` of T5 only the first number is a layer. So
the table lists every model_type; tests compare it with the modules that transformers builds.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from merge.errors import UsageError, nearest


@dataclass(frozen=True)
class Stack:
    """One list of layers of an architecture.

    Attributes:
        paths: path of the layers below the base model in checkpoints: `encoder.layer` for `encoder.layer.3.`; two where
            transformers writes either.
        count: config key of their number; `text_config.num_hidden_layers` is inside text_config.
        aliases: other config keys of the number, which older configs hold too.
        name: its name in a plan; empty if the architecture has only one list.
        before: prefixes of tensors that act before the layers; all other tensors outside the layers act after them.
        first: suffixes of tensors that belong to the first index, whichever layer is there.
        lacks: a part that only the first layer lacks, so that layer 0 must be first and only there.
    """

    paths: tuple[str, ...]
    count: str = "num_hidden_layers"
    name: str = ""
    aliases: tuple[str, ...] = ()
    before: tuple[str, ...] = ("embeddings.",)
    first: tuple[str, ...] = ()
    lacks: str | None = None


@dataclass(frozen=True)
class Family:
    """The lists of layers of one model_type, and the name prefix of its base model."""

    base: str
    stacks: tuple[Stack, ...]


def _one(base: str, path: str, *before: str, **more: Any) -> Family:
    return Family(base, (Stack(tuple(path.split()), before=before or ("embeddings.",), **more),))


def _llama() -> Family:
    return _one("model", "layers", "embed_tokens.")


ALIAS = ("num_hidden_layers",)
T5_BIAS = ("layer.0.SelfAttention.relative_attention_bias.weight",)
DEBERTA = ("embeddings.", "encoder.rel_embeddings.", "encoder.LayerNorm.", "encoder.conv.")

# transformers renamed the module of ViT and DeiT: files have the old or the new path.
FAMILIES: dict[str, Family] = {
    "albert": _one("albert", "encoder.albert_layer_groups", "embeddings.", "encoder.embedding_hidden_mapping_in."),
    "bart": Family(
        "model",
        (
            Stack(("encoder.layers",), "encoder_layers", "encoder", ALIAS),
            Stack(("decoder.layers",), "decoder_layers", "decoder"),
        ),
    ),
    "bert": _one("bert", "encoder.layer"),
    "camembert": _one("roberta", "encoder.layer"),
    "clip": Family(
        "clip",
        (
            Stack(("text_model.encoder.layers",), "text_config.num_hidden_layers", "text"),
            Stack(("vision_model.encoder.layers",), "vision_config.num_hidden_layers", "vision"),
        ),
    ),
    "data2vec-text": _one("data2vec_text", "encoder.layer"),
    "deberta": _one("deberta", "encoder.layer", *DEBERTA),
    "deberta-v2": _one("deberta", "encoder.layer", *DEBERTA),
    "deit": _one("deit", "encoder.layer layers"),
    "distilbert": _one("distilbert", "transformer.layer", count="n_layers", aliases=ALIAS),
    "electra": _one("electra", "encoder.layer", "embeddings.", "embeddings_project."),
    "ernie": _one("ernie", "encoder.layer"),
    "gemma2": _llama(),
    "gemma3_text": _llama(),
    "gpt2": _one("transformer", "h", "wte.", "wpe.", count="n_layer", aliases=ALIAS),
    "gpt_neox": _one("gpt_neox", "layers", "embed_in."),
    "llama": _llama(),
    "megatron-bert": _one("bert", "encoder.layer"),
    "mistral": _llama(),
    "modernbert": _one("model", "layers", lacks="attn_norm"),
    "mpnet": _one("mpnet", "encoder.layer", "embeddings.", "encoder.relative_attention_bias."),
    "opt": _one("model", "decoder.layers", "decoder.embed_tokens.", "decoder.embed_positions.", "decoder.project_in."),
    "qwen2": _llama(),
    "qwen3": _llama(),
    "roberta": _one("roberta", "encoder.layer"),
    "roformer": _one("roformer", "encoder.layer", "embeddings.", "embeddings_project.", "encoder.embed_positions."),
    "smollm3": _llama(),
    "t5": Family(
        "transformer",
        (
            Stack(("encoder.block",), "num_layers", "encoder", ALIAS, first=T5_BIAS),
            Stack(("decoder.block",), "num_decoder_layers", "decoder", first=T5_BIAS),
        ),
    ),
    "vit": _one("vit", "encoder.layer layers"),
    "xlm-roberta": _one("roberta", "encoder.layer"),
    "xlnet": _one("transformer", "layer", "word_embedding.", "mask_emb", count="n_layer", aliases=ALIAS),
}


def stack_of(model_type: str, name: str = "") -> Stack:
    """Return a list of layers of an architecture by name.

    Raises:
        UsageError: the family is not in the table, has no such list, or has several and no name was given.
    """
    if model_type not in FAMILIES:
        raise UsageError(
            f"layers of {model_type!r} models cannot be edited: the architecture is not in the table of layers."
            f"{nearest(model_type, FAMILIES)}"
        )
    stacks = {stack.name: stack for stack in FAMILIES[model_type].stacks}
    if name in stacks:
        return stacks[name]
    if not name:
        raise UsageError(f"a {model_type} model has {len(stacks)} lists of layers. Give one: {' or '.join(stacks)}.")
    if "" in stacks:
        raise UsageError(f"a {model_type} model has only one list of layers, not {name!r}. Leave the stack out.")
    raise UsageError(f"a {model_type} model has no list of layers named {name!r}.{nearest(name, stacks)}")


def layer_of(name: str, model_type: str, stack: str = "") -> tuple[str, int, str] | None:
    """Return a canonical tensor name as (prefix, index of the layer, suffix), or None for a tensor outside the layers.

    `prefix + str(index) + suffix` is the name. Tensors that belong to the first index instead of a layer (T5's table of
    relative positions) count as outside.

    Raises:
        UsageError: as `stack_of`.
    """
    chosen = stack_of(model_type, stack)
    base, paths = re.escape(FAMILIES[model_type].base), "|".join(map(re.escape, chosen.paths))
    match = re.match(rf"((?:{base}\.)?(?:{paths})\.)(\d+)(\.(.+))$", name)
    if match is None or match[4] in chosen.first:
        return None
    return match[1], int(match[2]), match[3]


def before_layers(name: str, model_type: str, stack: str = "") -> bool:
    """Return whether a tensor outside the layers acts before them, as embeddings do."""
    chosen = stack_of(model_type, stack)
    return name.removeprefix(f"{FAMILIES[model_type].base}.").startswith(chosen.before)


def layer_count(config: Mapping[str, Any], stack: str = "") -> int:
    """Return the number of layers in a config, or the family's default if it has none.

    Raises:
        UsageError: as `stack_of`.
        CheckpointError: transformers cannot read the config.
    """
    *outer, key = stack_of(str(config.get("model_type")), stack).count.split(".")
    inner: Any = config
    for part in outer:
        inner = inner.get(part) or {}
    if inner.get(key) is not None:
        return int(inner[key])
    from merge.checkpoints.transformers_model import model_config

    value: Any = model_config(config)  # the default of the family
    for part in (*outer, key):
        value = getattr(value, part)
    return int(value)
