"""The permutation tables, one file for each family; ARCHITECTURES lists them by model type.

A model type without a table gets one that is derived from a run of the model and proved (`derive`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from merge.errors import SpecError, nearest
from merge.symmetry.architectures.albert import albert
from merge.symmetry.architectures.bert import bert, ernie
from merge.symmetry.architectures.clip import clip
from merge.symmetry.architectures.deberta import deberta
from merge.symmetry.architectures.deberta_v2 import deberta_v2
from merge.symmetry.architectures.distilbert import distilbert
from merge.symmetry.architectures.electra import electra
from merge.symmetry.architectures.gpt2 import gpt2
from merge.symmetry.architectures.layoutlm import layoutlm
from merge.symmetry.architectures.llama import llama
from merge.symmetry.architectures.mlp import mlp
from merge.symmetry.architectures.modernbert import modernbert
from merge.symmetry.architectures.mpnet import mpnet
from merge.symmetry.architectures.nomic_bert import nomic_bert
from merge.symmetry.architectures.pre_layer_norm import megatron_bert, roberta_prelayernorm, xlm_roberta_xl
from merge.symmetry.architectures.roberta import roberta
from merge.symmetry.architectures.roformer import roformer
from merge.symmetry.architectures.vit import vit
from merge.symmetry.architectures.xlnet import xlnet
from merge.symmetry.spec import PermutationSpec

if TYPE_CHECKING:
    from merge.symmetry.architectures.derive.derive import Derived

ARCHITECTURES: dict[str, Callable[[Mapping[str, Any]], PermutationSpec]] = {
    "albert": albert,
    "beit": vit,
    "bert": bert,
    "camembert": roberta,
    "clip": clip,
    "clip_text_model": clip,
    "clip_vision_model": clip,
    "data2vec-text": roberta,
    "deberta": deberta,
    "deberta-v2": deberta_v2,
    "deit": vit,
    "distilbert": distilbert,
    "electra": electra,
    "ernie": ernie,
    "gpt2": gpt2,
    "layoutlm": layoutlm,
    "llama": llama,
    "megatron-bert": megatron_bert,
    "mistral": llama,
    "mlp": mlp,
    "modernbert": modernbert,
    "mpnet": mpnet,
    "nomic_bert": nomic_bert,
    "qwen2": llama,
    "qwen3": llama,
    "roberta": roberta,
    "roberta-prelayernorm": roberta_prelayernorm,
    "roformer": roformer,
    "vit": vit,
    "xlm-roberta": roberta,
    "xlm-roberta-xl": xlm_roberta_xl,
    "xlnet": xlnet,
}


def spec_for(config: Mapping[str, Any]) -> PermutationSpec:
    """Return the permutation spec of a config: from its family's table, or derived from a run of the model and proved.

    Raises:
        SpecError: transformers does not have the model type, its table has no such task head, or no spec could be
            derived.
    """
    model_type = str(config.get("model_type"))
    if model_type in ARCHITECTURES:
        return ARCHITECTURES[model_type](config)
    return _derived(config).spec


def spec_note(config: Mapping[str, Any]) -> str | None:
    """Return a note for the user on a spec that was derived; None where a table gives it."""
    return None if str(config.get("model_type")) in ARCHITECTURES else _derived(config).note


def _derived(config: Mapping[str, Any]) -> Derived:
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    from merge.symmetry.architectures.derive.derive import derive

    model_type = str(config.get("model_type"))
    if model_type not in CONFIG_MAPPING:
        raise SpecError(
            f"no permutation table for model type {model_type!r}.{nearest(model_type, ARCHITECTURES)} "
            "Merge without alignment: --align none."
        )
    return derive(config)
