"""Gauges: which weights of a family can change without the function changing; one entry for each family.

Post-LN and pre-LN encoders with absolute positions share most of them. A family that is not listed has none that is
known to be exact: rotary and relative positions make the key bias count, gated convolutions and mixed heads the value
bias.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

__all__ = ["GAUGES", "Gauges"]


@dataclass(frozen=True)
class Gauges:
    """Modules, by the end of their path, and what their outputs cannot show.

    Attributes:
        keys: their bias adds the same to every score of a query, which softmax cancels.
        values: module of the values -> module that reads what the heads gather. The weights of attention sum to one, so
            that a bias of the values is a bias behind that module.
        writers: their outputs reach nothing but LayerNorms (which subtract the mean over units): the mean cannot show.
        tables: embedding tables of which the same holds; word embeddings only where no decoder reads them.
        norms: norm -> the modules beside it that are all that reads it; what a gain scales they can scale themselves.
        last: the norm at the end of the stream, read by the task head.
    """

    keys: tuple[str, ...] = ()
    values: Mapping[str, str] = field(default_factory=dict)
    writers: tuple[str, ...] = ()
    tables: tuple[str, ...] = ()
    norms: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    last: str | None = None


_TABLES = ("embeddings.word_embeddings", "embeddings.position_embeddings", "embeddings.token_type_embeddings")
_READERS = ("attention.self.query", "attention.self.key", "attention.self.value")

BERT = Gauges(
    keys=("attention.self.key",),
    values={"attention.self.value": "attention.output.dense"},
    writers=("attention.output.dense", "output.dense"),
    tables=_TABLES,
)
ALBERT = Gauges(
    keys=("attention.key",),
    values={"attention.value": "attention.dense"},
    writers=("attention.dense", "ffn_output"),
    tables=_TABLES,
)
DISTILBERT = Gauges(
    keys=("attention.k_lin",),
    values={"attention.v_lin": "attention.out_lin"},
    writers=("attention.out_lin", "ffn.lin2"),
    tables=_TABLES[:2],
)
MPNET = Gauges(
    keys=("attention.attn.k",),
    values={"attention.attn.v": "attention.attn.o"},
    writers=("attention.attn.o", "output.dense"),
    tables=_TABLES[:2],
)
MEGATRON_BERT = replace(BERT, norms={"attention.ln": _READERS, "ln": ("intermediate.dense",)}, last="encoder.ln")
XLM_ROBERTA_XL = replace(
    BERT,
    norms={"attention.self_attn_layer_norm": _READERS, "LayerNorm": ("intermediate.dense",)},
    last="encoder.LayerNorm",
)
GPT2 = Gauges(
    keys=("attn.c_attn",),
    values={"attn.c_attn": "attn.c_proj"},
    writers=("attn.c_proj", "mlp.c_proj"),
    tables=("wte", "wpe"),
    norms={"ln_1": ("attn.c_attn",), "ln_2": ("mlp.c_fc",)},
    last="ln_f",
)
VIT = Gauges(
    keys=("attention.attention.key", "attention.k_proj"),
    values={
        "attention.attention.value": "attention.output.dense",
        "attention.v_proj": "attention.o_proj",
    },
    writers=("attention.output.dense", "output.dense", "attention.o_proj", "mlp.fc2"),
    norms={
        "layernorm_before": (
            "attention.attention.query",
            "attention.attention.key",
            "attention.attention.value",
            "attention.q_proj",
            "attention.k_proj",
            "attention.v_proj",
        ),
        "layernorm_after": ("intermediate.dense", "mlp.fc1"),
    },
    last="layernorm",
)
# The image encoder shows its stream as it is, so that what is written there can be seen.
CLIP = Gauges(keys=("self_attn.k_proj",), values={"self_attn.v_proj": "self_attn.out_proj"})
LLAMA = Gauges(
    norms={
        "input_layernorm": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
        "post_attention_layernorm": ("mlp.gate_proj", "mlp.up_proj"),
    },
    last="norm",
)

GAUGES: dict[str, Gauges] = {
    "albert": ALBERT,
    "bert": BERT,
    "camembert": BERT,
    "clip": CLIP,
    "data2vec-text": BERT,
    "deit": VIT,
    "distilbert": DISTILBERT,
    "electra": BERT,
    "ernie": BERT,
    "gpt2": GPT2,
    "layoutlm": BERT,
    "llama": LLAMA,
    "megatron-bert": MEGATRON_BERT,
    "mistral": LLAMA,
    "mpnet": MPNET,
    "qwen2": LLAMA,
    "qwen3": LLAMA,
    "roberta": BERT,
    "roberta-prelayernorm": BERT,
    "vit": VIT,
    "xlm-roberta": BERT,
    "xlm-roberta-xl": XLM_ROBERTA_XL,
}
