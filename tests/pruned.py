"""Where heads and neurons are in the modules of each family, by hand, and models whose units are multiplied by zero.

Nothing here knows of permutation tables: the paths are those of transformers' modules, the columns of a head are
`head * size` and the next.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import families
import families_more
import torch
import transformers
from families import canonical_tensors, written_name
from tiny import save_checkpoint
from torch import Tensor

from merge.checkpoints.checkpoint import Checkpoint
from merge.checkpoints.open import open_checkpoint
from merge.checkpoints.structure import structure_of
from merge.checkpoints.transformers_model import loading

CASES = {**families.CASES, **families_more.CASES}


@dataclass(frozen=True)
class Where:
    """The modules of layer `{i}` whose inputs are the outputs of all heads, and of all neurons.

    Attributes:
        case: of tests/families*.py.
        heads, neurons: paths of the modules; no path of heads where no module reads them alone (XLNet).
        size: units of a head.
    """

    case: str
    heads: str
    neurons: str
    size: int = 6


BERT = ("encoder.layer.{i}.attention.output.dense", "encoder.layer.{i}.output.dense")


def _bert(case: str, base: str) -> Where:
    heads, neurons = (f"{base}.{path}" for path in BERT)
    return Where(case, heads, neurons)


WHERE = {
    "bert": _bert("BertForMaskedLM", "bert"),
    "roberta": _bert("RobertaForSequenceClassification", "roberta"),
    "electra": _bert("ElectraForTokenClassification", "electra"),
    "xlm-roberta-xl": _bert("XLMRobertaXLForSequenceClassification", "roberta"),
    "deberta": _bert("DebertaForSequenceClassification", "deberta"),
    "deberta-v2": _bert("DebertaV2ForSequenceClassification", "deberta"),
    "roformer": _bert("RoFormerForMaskedLM", "roformer"),
    "mpnet": Where(
        "MPNetForMaskedLM", "mpnet.encoder.layer.{i}.attention.attn.o", "mpnet.encoder.layer.{i}.output.dense"
    ),
    "distilbert": Where(
        "DistilBertForSequenceClassification",
        "distilbert.transformer.layer.{i}.attention.out_lin",
        "distilbert.transformer.layer.{i}.ffn.lin2",
    ),
    "albert": Where(
        "AlbertForSequenceClassification",
        "albert.encoder.albert_layer_groups.{i}.albert_layers.0.attention.dense",
        "albert.encoder.albert_layer_groups.{i}.albert_layers.0.ffn_output",
    ),
    "modernbert": Where("ModernBertForMaskedLM", "model.layers.{i}.attn.Wo", "model.layers.{i}.mlp.Wo"),
    "nomic_bert": Where(
        "NomicBertForMaskedLM", "nomic_bert.layers.{i}.self_attn.o_proj", "nomic_bert.layers.{i}.mlp.down_proj"
    ),
    "gpt2": Where("GPT2LMHeadModel", "transformer.h.{i}.attn.c_proj", "transformer.h.{i}.mlp.c_proj"),
    "llama": Where("LlamaForCausalLM", "model.layers.{i}.self_attn.o_proj", "model.layers.{i}.mlp.down_proj", 4),
    "qwen2": Where("Qwen2ForCausalLM", "model.layers.{i}.self_attn.o_proj", "model.layers.{i}.mlp.down_proj", 4),
    "qwen3": Where("Qwen3ForCausalLM", "model.layers.{i}.self_attn.o_proj", "model.layers.{i}.mlp.down_proj", 4),
    "mistral": Where("MistralForCausalLM", "model.layers.{i}.self_attn.o_proj", "model.layers.{i}.mlp.down_proj", 4),
    "vit": Where("ViTForImageClassification", "vit.layers.{i}.attention.o_proj", "vit.layers.{i}.mlp.fc2"),
    "xlnet": Where("XLNetLMHeadModel", "", "transformer.layer.{i}.ff.layer_2"),
}
QUICK = ("bert", "modernbert", "llama")


@cache
def _tensors(case: str) -> dict[str, Tensor]:
    structure = structure_of(CASES[case])
    drawn = canonical_tensors(CASES[case], 3, torch.float32)
    return {written_name(structure, name): tensor for name, tensor in drawn.items()}


def family_folder(kind: str, folder: Path, **changes: Any) -> Path:
    """Write the tiny model of a family, every parameter random, and return its folder."""
    tensors = None if changes else _tensors(WHERE[kind].case)
    return save_checkpoint(folder, {**CASES[WHERE[kind].case], **changes}, tensors=tensors, tokenizer=False)


def family_checkpoint(kind: str, folder: Path, **changes: Any) -> Checkpoint:
    return open_checkpoint(str(family_folder(kind, folder, **changes)))


def load(folder: Path, case: str) -> Any:
    """Return the model of a folder as its users load it: no key is missing, unexpected or of another shape."""
    with loading():
        cls = getattr(transformers, CASES[case]["architectures"][0])
        model, info = cls.from_pretrained(folder, output_loading_info=True)
    assert not any(info.values()), info
    return model.eval()


def inputs(kind: str) -> dict[str, Tensor]:
    """Return a batch: texts with padding, or images."""
    table = families if WHERE[kind].case in families.CASES else families_more
    batch = table.inputs(CASES[WHERE[kind].case])[0]
    return {name: value.float() if value.is_floating_point() else value for name, value in batch.items()}


def outputs(model: Any, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
    with torch.inference_mode():
        return {name: value for name, value in model(**batch).items() if isinstance(value, Tensor)}


def difference(one: Mapping[str, Tensor], two: Mapping[str, Tensor]) -> float:
    """Return the largest difference of any output, of which there is at least one."""
    assert one
    assert one.keys() == two.keys()
    return max(float((one[name] - two[name]).abs().max()) for name in one)


@contextmanager
def multiplied_by_zero(model: Any, kind: str, what: str, removed: Mapping[int, Sequence[int]]) -> Iterator[None]:
    """Multiply the outputs of heads or neurons by zero inside the block, by hooks on the modules that read them."""
    where = WHERE[kind]
    with ExitStack() as stack:
        for layer, units in removed.items():
            if what == "heads" and not where.heads:
                _patch_xlnet(model, layer, units, stack)
                continue
            size = where.size if what == "heads" else 1
            columns = [unit * size + k for unit in units for k in range(size)]
            module = model.get_submodule((where.heads if what == "heads" else where.neurons).format(i=layer))

            def hook(_module: Any, args: tuple[Tensor, ...], columns: list[int] = columns) -> tuple[Tensor, ...]:
                gate = torch.ones(args[0].shape[-1])
                gate[columns] = 0
                return (args[0] * gate, *args[1:])

            stack.callback(module.register_forward_pre_hook(hook).remove)
        yield


def _patch_xlnet(model: Any, layer: int, heads: Sequence[int], stack: ExitStack) -> None:
    """Multiply the output of XLNet's attention, of shape (length, texts, heads, units), by zero for some heads."""
    attention = model.transformer.layer[layer].rel_attn
    original = attention.rel_attn_core

    def core(*args: Any, **kwargs: Any) -> Tensor:
        gate = torch.ones(4)
        gate[list(heads)] = 0
        gated: Tensor = original(*args, **kwargs) * gate[None, None, :, None]
        return gated

    attention.rel_attn_core = core
    stack.callback(attention.__dict__.pop, "rel_attn_core")
