"""Tiny models of every BERT-like family with a permutation table, one config for each of its task heads.

A family's first case stands for it where one head is enough. INERT names, with a reason, what an order cannot show of.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor

from merge.checkpoints.inputs import random_inputs
from merge.checkpoints.structure import Structure, structure_of

# All different, so that no two axes can be mixed up; heads of 6 units, so that blocks and units differ too.
SIZES: dict[str, Any] = {
    "vocab_size": 18,
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 40,
    "max_position_embeddings": 32,
    "type_vocab_size": 2,
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
    "pad_token_id": 1,
    "bos_token_id": 0,
    "eos_token_id": 2,
}
DISTILBERT: dict[str, Any] = {
    "vocab_size": 18,
    "dim": 24,
    "n_layers": 2,
    "n_heads": 4,
    "hidden_dim": 40,
    "max_position_embeddings": 32,
    "dropout": 0.0,
    "attention_dropout": 0.0,
    "qa_dropout": 0.0,
    "seq_classif_dropout": 0.0,
    "pad_token_id": 0,
}
NARROW = SIZES | {"embedding_size": 10}
GROUPS = NARROW | {"num_hidden_layers": 4, "num_hidden_groups": 2, "inner_group_num": 1}
ONE_GROUP = NARROW | {"num_hidden_layers": 3, "num_hidden_groups": 1, "inner_group_num": 2}
LABELS = {"id2label": {"0": "entailment", "1": "neutral", "2": "contradiction"}}
LABELS |= {"label2id": {name: int(i) for i, name in LABELS["id2label"].items()}}
UNTIED = {"tie_word_embeddings": False}
DECODER = {"is_decoder": True, "use_cache": False}

CLASSIFIERS = ("ForSequenceClassification", "ForTokenClassification")
COMMON = (*CLASSIFIERS, "Model", "ForQuestionAnswering", "ForMaskedLM")
ROBERTA = (*COMMON, "ForMultipleChoice", "ForCausalLM")
BERT = (*ROBERTA, "ForNextSentencePrediction", "ForPreTraining")

# Families that differ in kind. What costs a tenth of a CPU second and more a family is quick on these, and in `make check`
# on every one: norms after and before, shared layers, fused and transposed and grouped projections, rotary and relative
# positions, images, two towers.
UNLIKE = (
    "bert", "albert", "mpnet", "xlm-roberta-xl", "gpt2", "llama", "modernbert", "deberta-v2", "xlnet", "vit", "clip",
)  # fmt: skip

# Model type -> what its class names begin with, their ends, its sizes.
FAMILIES: dict[str, tuple[str, tuple[str, ...], dict[str, Any]]] = {
    "bert": ("Bert", tuple("LMHeadModel" if end == "ForCausalLM" else end for end in BERT), SIZES),
    "ernie": ("Ernie", BERT, SIZES | {"use_task_id": True, "task_type_vocab_size": 3}),
    "layoutlm": ("LayoutLM", COMMON, SIZES | {"max_2d_position_embeddings": 30}),
    "roberta": ("Roberta", ROBERTA, SIZES),
    "xlm-roberta": ("XLMRoberta", ROBERTA, SIZES),
    "camembert": ("Camembert", ROBERTA, SIZES),
    "data2vec-text": ("Data2VecText", ROBERTA, SIZES),
    "electra": ("Electra", (*ROBERTA, "ForPreTraining"), NARROW),
    "mpnet": ("MPNet", (*COMMON, "ForMultipleChoice"), SIZES),
    "distilbert": ("DistilBert", (*COMMON, "ForMultipleChoice"), DISTILBERT),
    "albert": ("Albert", (*COMMON, "ForMultipleChoice", "ForPreTraining"), GROUPS),
    "megatron-bert": ("MegatronBert", BERT, SIZES),
    "roberta-prelayernorm": ("RobertaPreLayerNorm", ROBERTA, SIZES),
    "xlm-roberta-xl": ("XLMRobertaXL", ROBERTA, SIZES),
}


def family_case(model_type: str, end: str, **changes: Any) -> dict[str, Any]:
    """Return the config.json of a tiny model, with all that a table reads."""
    stem, _, sizes = FAMILIES[model_type]
    if end.endswith(CLASSIFIERS):
        changes = {**LABELS, **changes}
    if end in ("ForCausalLM", "LMHeadModel"):
        changes = {**DECODER, **changes}
    return {"model_type": model_type, "architectures": [stem + end], **sizes, **changes}


# What a config changes about the table beyond its head.
VARIANTS: dict[str, dict[str, Any]] = {
    f"{model_type} untied": family_case(model_type, "ForMaskedLM", **UNTIED) for model_type in FAMILIES
} | {
    "electra as wide as its layers": family_case("electra", "ForMaskedLM", embedding_size=24),
    "electra without summary": family_case("electra", "ForMultipleChoice", summary_use_proj=False),
    "ernie without tasks": family_case("ernie", "Model", use_task_id=False),
    "albert in one group": family_case("albert", "ForSequenceClassification", **ONE_GROUP),
    "albert as wide as its layers": family_case("albert", "ForMaskedLM", embedding_size=24),
    "bert untied pretraining": family_case("bert", "ForPreTraining", **UNTIED),
}
CASES: dict[str, dict[str, Any]] = {
    f"{stem}{end}": family_case(model_type, end) for model_type, (stem, ends, _) in FAMILIES.items() for end in ends
} | VARIANTS

# What cannot show in the outputs when its order is wrong: model type -> pattern of `tensor line`, the line as it is with
# one axis fixed -> reason.
SOFTMAX = "softmax cancels what a key bias adds to all scores of a query"
INERT: dict[str, dict[str, str]] = {model_type: {r"attention\.self\.key\.bias": SOFTMAX} for model_type in FAMILIES} | {
    "mpnet": {r"attention\.attn\.k\.bias": SOFTMAX},
    "distilbert": {r"attention\.k_lin\.bias": SOFTMAX},
    "albert": {r"attention\.key\.bias": SOFTMAX},
}
# The same for single classes.
UNREAD = dict.fromkeys(
    (r"pooler\.dense\.weight", r"pooler\.dense\.bias"), "LayoutLM keeps a pooler that this head does not read"
)
INERT |= {f"LayoutLM{end}": UNREAD for end in ("ForMaskedLM", "ForTokenClassification", "ForQuestionAnswering")}


def canonical_tensors(config: Mapping[str, Any], seed: int, dtype: torch.dtype = torch.float64) -> dict[str, Tensor]:
    """Return every stored tensor by its canonical name: gains 1 + .3 N, all others .3 N."""
    structure = structure_of(config)
    generator = torch.Generator().manual_seed(seed)
    out = {}
    for name, shape in structure.shapes.items():
        if name in structure.ties:
            continue
        drawn = 0.3 * torch.randn(shape, generator=generator, dtype=torch.float64)
        gain = len(shape) == 1 and name.endswith(".weight")
        out[canonical_name(structure, name)] = (drawn + (1.0 if gain else 0.0)).to(dtype)
    return out


def canonical_name(structure: Structure, name: str) -> str:
    """Return the name with the prefix of the base model, which transformers leaves out where there is no head."""
    return name if _writes_prefix(structure) else f"{structure.prefix}.{name}"


def written_name(structure: Structure, name: str) -> str:
    """Return the name as transformers writes it."""
    return name if _writes_prefix(structure) else name.removeprefix(f"{structure.prefix}.")


def _writes_prefix(structure: Structure) -> bool:
    return not structure.prefix or any(name.startswith(f"{structure.prefix}.") for name in structure.shapes)


def joined(batches: Sequence[Mapping[str, Tensor]], count: int = 4) -> tuple[dict[str, Tensor], ...]:
    """Return the same texts in fewer batches: a tiny model takes as long for four texts as for forty."""
    return tuple({name: torch.cat([b[name] for b in batches[k::count]]) for name in batches[0]} for k in range(count))


@cache
def _extra(model_type: str, shape: tuple[int, ...], batch: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(batch)
    if model_type == "ernie":  # whose model lays choices end to end itself, but not their tasks
        return {"task_type_ids": torch.randint(3, (4, shape[-1]), generator=generator)}
    if model_type == "layoutlm":  # left, upper, right, lower: the second corner is not before the first
        corner, size = (torch.randint(15, (*shape, 2), generator=generator) for _ in range(2))
        return {"bbox": torch.cat([corner, corner + size], -1)}
    return {}


def inputs(config: Mapping[str, Any], seed: int = 0) -> tuple[dict[str, Tensor], ...]:
    """Return random batches with everything the family reads: padding, segments, and its own tasks or boxes."""
    batches = random_inputs(config, seed)
    return tuple(
        {**batch, **_extra(config["model_type"], tuple(batch["input_ids"].shape), k)} for k, batch in enumerate(batches)
    )
