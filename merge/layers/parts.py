"""The parts of a layer that repairs rewrite: its output projections and the norms after them, by family.

Paths are below the layer, as modules and canonical tensor names have them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from merge.errors import UsageError, nearest
from merge.layers.plans.making import NORM, SUBLAYERS, Making


@dataclass(frozen=True)
class Parts:
    """The parts of one layer.

    Attributes:
        mix: output projection of attention; a bare parameter where the family has no module for it.
        down: output projection of the feed-forward part.
        up: its input projection; None where it is gated, so that no single projection is its input.
        mix_norm, norm: the norms after attention and after the whole layer, where norms come last; else None.
        cross: output projection of attention to an encoder; None without.
        sandwich: whether the feed-forward output passes a norm of its own before it is added to the stream.
    """

    mix: str
    down: str
    up: str | None = None
    mix_norm: str | None = None
    norm: str | None = None
    cross: str | None = None
    sandwich: bool = False

    @property
    def norm_last(self) -> bool:
        """Whether the layer ends in a norm (post-LN), so that a layer that writes nothing is not the identity."""
        return self.norm is not None

    def writer(self, sublayer: str) -> str | None:
        """Return the projection by which a sublayer writes into the stream; None without that sublayer."""
        return {"attention": self.mix, "cross": self.cross, "ffn": self.down}[sublayer]


BERT = Parts(
    "attention.output.dense", "output.dense", "intermediate.dense", "attention.output.LayerNorm", "output.LayerNorm"
)
LLAMA = Parts("self_attn.o_proj", "mlp.down_proj")
GEMMA = Parts("self_attn.o_proj", "mlp.down_proj", sandwich=True)
FC = Parts("self_attn.out_proj", "fc2", "fc1", "self_attn_layer_norm", "final_layer_norm")
CLIP = Parts("self_attn.out_proj", "mlp.fc2", "mlp.fc1")
VIT = Parts("attention.o_proj", "mlp.fc2", "mlp.fc1")

PARTS: dict[tuple[str, str], Parts] = {
    **{
        (family, ""): BERT
        for family in (
            "bert", "camembert", "data2vec-text", "deberta", "deberta-v2", "electra", "ernie", "roberta", "roformer",
            "xlm-roberta",
        )
    },
    ("albert", ""): Parts(
        "albert_layers.0.attention.dense",
        "albert_layers.0.ffn_output",
        "albert_layers.0.ffn",
        "albert_layers.0.attention.LayerNorm",
        "albert_layers.0.full_layer_layer_norm",
    ),
    ("bart", "encoder"): FC,
    ("bart", "decoder"): Parts(
        "self_attn.out_proj", "fc2", "fc1", "self_attn_layer_norm", "final_layer_norm", "encoder_attn.out_proj"
    ),
    ("clip", "text"): CLIP,
    ("clip", "vision"): CLIP,
    ("deit", ""): VIT,
    ("distilbert", ""): Parts("attention.out_lin", "ffn.lin2", "ffn.lin1", "sa_layer_norm", "output_layer_norm"),
    ("gemma2", ""): GEMMA,
    ("gemma3_text", ""): GEMMA,
    ("gpt2", ""): Parts("attn.c_proj", "mlp.c_proj", "mlp.c_fc"),
    ("gpt_neox", ""): Parts("attention.dense", "mlp.dense_4h_to_h", "mlp.dense_h_to_4h"),
    ("llama", ""): LLAMA,
    ("megatron-bert", ""): Parts("attention.output.dense", "output.dense", "intermediate.dense"),
    ("mistral", ""): LLAMA,
    ("modernbert", ""): Parts("attn.Wo", "mlp.Wo"),
    ("mpnet", ""): Parts("attention.attn.o", "output.dense", "intermediate.dense", "attention.LayerNorm", "output.LayerNorm"),
    ("opt", ""): Parts("self_attn.out_proj", "fc2", "fc1"),
    ("qwen2", ""): LLAMA,
    ("qwen3", ""): LLAMA,
    ("smollm3", ""): LLAMA,
    ("t5", "encoder"): Parts("layer.0.SelfAttention.o", "layer.1.DenseReluDense.wo"),
    ("t5", "decoder"): Parts(
        "layer.0.SelfAttention.o", "layer.2.DenseReluDense.wo", cross="layer.1.EncDecAttention.o"
    ),
    ("vit", ""): VIT,
    ("xlnet", ""): Parts("rel_attn.o", "ff.layer_2", "ff.layer_1", "rel_attn.layer_norm", "ff.layer_norm"),
}  # fmt: skip

STREAM_WIDTHS = ("hidden_size", "dim", "d_model", "n_embd")  # config keys of the number of units of the stream


def parts_of(config: Mapping[str, Any], stack: str = "") -> Parts:
    """Return the parts of the layers of a model.

    Raises:
        UsageError: the family is not in the table, or this model of it has layers of another form.
    """
    family = str(config["model_type"])
    if (family, stack) not in PARTS:
        known = nearest(family, {name for name, _ in PARTS})
        raise UsageError(
            f"layers of {family!r} models can be copied and merged, not zeroed, fitted or repaired.{known}"
        )
    if family == "albert" and int(config.get("inner_group_num") or 1) > 1:
        raise UsageError(
            "albert with inner_group_num > 1 has several layers in one; they are not zeroed, fitted or repaired."
        )
    if family == "opt" and not config.get("do_layer_norm_before", True):
        return FC
    return PARTS[family, stack]


def zeroed(name: str, parts: Parts, removed: Sequence[str]) -> bool:
    """Return whether a tensor of a layer, by its name below the layer, is zero where these sublayers write nothing."""
    paths = [path for sublayer in removed if (path := parts.writer(sublayer)) is not None]
    return any(name == path or name.startswith(f"{path}.") for path in paths)


def check_without(making: Making, config: Mapping[str, Any], stack: str) -> None:
    """Stop where a standard checkpoint cannot hold a layer without these sublayers.

    Raises:
        UsageError: the layers have no such sublayer, or a norm follows it that every layer of the family runs.
    """
    parts, family = parts_of(config, stack), str(config["model_type"])
    if lacking := [name for name in making.without if name in SUBLAYERS and parts.writer(name) is None]:
        raise UsageError(f"{family}: {stack or 'its'} layers have no sublayer {lacking[0]!r}.")
    if NORM in making.without and parts.norm_last:
        kept = "".join(f"-{name}" for name in making.removed)
        raise UsageError(
            f"{family} norms what it reads plus what a sublayer writes, and no checkpoint of {family} can leave that norm out. "
            f"Leave -norm out of the plan (A[3]{kept}), which keeps it."
        )
