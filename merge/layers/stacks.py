"""Where the layers of each architecture lie: the table behind every layer plan.

A checkpoint's tensors belong to a layer, or stand before the layers, or after them. Which, no name says by itself: the
first number in `transformer.layer.3.ff.layer_1.weight` is a layer of XLNet, in `encoder.block.3.layer.0.` of T5 the
first is and the second is not. So it is stated here, once for each model_type, and tested against what transformers builds.
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
        paths: where the layers lie below the base model, as checkpoints name it: `encoder.layer` for `encoder.layer.3.`;
            two where transformers writes either.
        count: the config key of their number; `text_config.num_hidden_layers` is inside text_config.
        aliases: other keys that transformers reads the number from, and older configs hold beside the first.
        name: what a plan calls it; empty where an architecture has only one.
        before: beginnings of the names of tensors that act before the layers; what is neither these nor a layer's
            acts after them.
        first: parts that only the first place has, whichever layer stands there.
        lacks: a part that the first layer, and no other, lacks, so that no other layer can be first and it nowhere else.
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
    """The lists of layers of one model_type, and how names of its base model begin."""

    base: str
    stacks: tuple[Stack, ...]


def _one(base: str, path: str, *before: str, **more: Any) -> Family:
    return Family(base, (Stack(tuple(path.split()), before=before or ("embeddings.",), **more),))


def _llama() -> Family:
    return _one("model", "layers", "embed_tokens.")


ALIAS = ("num_hidden_layers",)
T5_BIAS = ("layer.0.SelfAttention.relative_attention_bias.weight",)
DEBERTA = ("embeddings.", "encoder.rel_embeddings.", "encoder.LayerNorm.", "encoder.conv.")

# The module of ViT and DeiT was renamed: files hold the old path, or the new one if the model was made from such names.
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
    """Return the list of layers that a plan is about.

    Raises:
        UsageError: the family is not in the table, has no such list, or has several and none was named.
    """
    if model_type not in FAMILIES:
        raise UsageError(
            f"where the layers of a {model_type!r} model lie is not known, so they cannot be planned."
            f"{nearest(model_type, FAMILIES)}"
        )
    stacks = {stack.name: stack for stack in FAMILIES[model_type].stacks}
    if name in stacks:
        return stacks[name]
    if not name:
        raise UsageError(f"a {model_type} model has {len(stacks)} lists of layers: say which, {' or '.join(stacks)}.")
    if "" in stacks:
        raise UsageError(f"a {model_type} model has one list of layers, and none called {name!r}. Name no stack.")
    raise UsageError(f"a {model_type} model has no list of layers {name!r}.{nearest(name, stacks)}")


def layer_of(name: str, model_type: str, stack: str = "") -> tuple[str, int, str] | None:
    """Return a canonical tensor name as (what stands before the layer's index, the index, what follows), or None.

    None says that the tensor is not of a layer of this list. `prefix + str(index) + suffix` is the name again. What
    belongs to the first place and not to a layer (T5's table of relative positions) is None too.

    Raises:
        UsageError: as `stack_of`.
    """
    listed = stack_of(model_type, stack)
    base, paths = re.escape(FAMILIES[model_type].base), "|".join(map(re.escape, listed.paths))
    found = re.match(rf"((?:{base}\.)?(?:{paths})\.)(\d+)(\.(.+))$", name)
    if found is None or found[4] in listed.first:
        return None
    return found[1], int(found[2]), found[3]


def before_layers(name: str, model_type: str, stack: str = "") -> bool:
    """Say whether a tensor that is no layer's acts before the layers: embeddings and what they need."""
    listed = stack_of(model_type, stack)
    return name.removeprefix(f"{FAMILIES[model_type].base}.").startswith(listed.before)


def layer_count(config: Mapping[str, Any], stack: str = "") -> int:
    """Return how many layers a config states, the family's default where it states none.

    Raises:
        UsageError: as `stack_of`.
        CheckpointError: the config is not one transformers understands.
    """
    *outer, key = stack_of(str(config.get("model_type")), stack).count.split(".")
    inner: Any = config
    for part in outer:
        inner = inner.get(part) or {}
    if inner.get(key) is not None:
        return int(inner[key])
    from merge.checkpoints.transformers_model import model_config

    value: Any = model_config(config)  # what the family has where nothing is stated
    for part in (*outer, key):
        value = getattr(value, part)
    return int(value)
