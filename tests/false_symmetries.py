"""False symmetries: claims about families, each close to a true one, that the battery of the groups must see fail."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import torch
from architecture_case import Case
from random_transforms import random_transform

from merge.symmetry.permutation import identity
from merge.symmetry.spec import PermutationSpec
from merge.symmetry.transform import Transform, axis_sizes, restrict_transform


@dataclass(frozen=True)
class Wrong:
    """A claim that is false: a table with other lines or groups, on some kinds of axes.

    Attributes:
        claim: what is claimed to keep the function.
        case: the model.
        kinds: axes, without the number of their layer, on which an element acts.
        lines: (pattern of a tensor's name, pattern in its line, its replacement).
        groups: kind of axis -> a group that does not act there.
        sizes: number of blocks of axes that the table does not have.
        maps: only maps act, and no unit is permuted.
        folded: on the model with all gains one.
    """

    claim: str
    case: str
    kinds: tuple[str, ...]
    lines: tuple[tuple[str, str, str], ...] = ()
    groups: Mapping[str, str] = field(default_factory=dict)
    sizes: Mapping[str, int] = field(default_factory=dict)
    maps: bool = False
    folded: bool = False

    def element(self, case: Case) -> tuple[PermutationSpec, Transform]:
        """Return the wrong table, and a random element of its wrong group."""
        lines, changed = dict(case.spec.lines), 0
        for tensor, pattern, replacement in self.lines:
            for name in case.tensors:
                if re.search(tensor, name) and re.search(pattern, lines[name]):
                    lines[name], changed = re.sub(pattern, replacement, lines[name]), changed + 1
        assert bool(changed) == bool(self.lines)
        groups, sizes = {**case.spec.groups, **self.groups}, {**case.spec.sizes, **self.sizes}
        spec = replace(case.spec, lines=lines, groups=groups, sizes=sizes)
        t = random_transform(spec, case.shapes, torch.Generator().manual_seed(1))
        axes = [axis for axis in axis_sizes(spec, case.shapes) if axis.rstrip("0123456789") in self.kinds]
        t = restrict_transform(t, axes)
        if self.maps:
            t = Transform(identity(spec, case.shapes), t.maps)
        assert axes
        assert not t.is_identity
        return spec, t


BERT, MASKED = "BertForSequenceClassification", "BertForMaskedLM"
DISTILBERT, ELECTRA, MPNET = (f"{stem}ForSequenceClassification" for stem in ("DistilBert", "Electra", "MPNet"))
DEBERTA, DEBERTA_V2, XLNET = (f"{stem}ForSequenceClassification" for stem in ("Deberta", "DebertaV2", "XLNet"))
LLAMA, MODERNBERT, ROFORMER = (f"{stem}ForSequenceClassification" for stem in ("Llama", "ModernBert", "RoFormer"))
CAUSAL, QWEN, GPT2, VIT = "LlamaForCausalLM", "Qwen3ForCausalLM", "gpt2 untied", "ViTForImageClassification"
WRONG = (
    Wrong(
        "heads of V and O permuted, those of Q and K not",
        BERT,
        ("heads",),
        ((r"query|key", r"\(heads\d qk\d'?\)", "-"),),
    ),
    Wrong(
        "heads of Q and K permuted, those of V and O not",
        BERT,
        ("heads",),
        ((r"value|attention\.output", r"\(heads\d v\d\)'?", "-"),),
    ),
    Wrong(
        "units of Q and K permuted across heads",
        BERT,
        ("qk",),
        ((r"query|key", r"\(heads\d (qk\d'?)\)", r"\1"),),
        {"qk": "permutation"},
    ),
    Wrong(
        "units of V and O permuted across heads",
        BERT,
        ("v",),
        ((r"", r"\(heads\d (v\d)\)'?", r"\1"),),
        {"v": "permutation"},
    ),
    Wrong("K mapped by G, not by its inverse transpose", BERT, ("qk",), ((r"key", r"qk(\d)'", r"qk\1"),), maps=True),
    Wrong(
        "O mapped by G, not by its inverse transpose",
        BERT,
        ("v",),
        ((r"output\.dense", r"v(\d)\)'", r"v\1)"),),
        maps=True,
    ),
    Wrong(
        "Q and K mapped by two different maps",
        BERT,
        ("qk", "other"),
        ((r"key", r"qk(\d)'", r"other\1'"),),
        {"other": "linear"},
    ),
    Wrong("scales under GELU", BERT, ("ffn",), (), {"ffn": "positive"}, maps=True),
    Wrong("signs under GELU", BERT, ("ffn",), (), {"ffn": "signed"}, maps=True),
    Wrong("rotation under GELU", BERT, ("ffn",), (), {"ffn": "orthogonal"}, maps=True),
    Wrong("scales under tanh", BERT, ("pooler",), (), {"pooler": "positive"}, maps=True),
    Wrong("a sign for each unit of a post-LN stream", BERT, ("residual",), (), {"residual": "signed"}, maps=True),
    Wrong("scales of a post-LN stream", BERT, ("residual",), (), {"residual": "positive"}, maps=True),
    Wrong(
        "rotation of a post-LN stream",
        BERT,
        ("residual",),
        ((r"", "residual=", "-"),),
        {"residual": "orthogonal_one"},
        maps=True,
    ),
    Wrong(
        "the sign of the stream applied to its gains too",
        BERT,
        ("residual",),
        ((r"", "residual=", "residual"),),
        maps=True,
    ),
    Wrong("gains of the norms not permuted with the stream", BERT, ("residual",), ((r"", "residual=", "-"),)),
    Wrong(
        "another order of the stream in layer 1", BERT, ("residual", "stream"), ((r"layer\.1", "residual", "stream"),)
    ),
    Wrong(
        "the hidden layer of the MLM head not permuted with the tied embeddings",
        MASKED,
        ("residual",),
        ((r"transform", r"residual(?!')=?", "-"),),
    ),
    Wrong(
        "the sign of the stream before the GELU of the MLM head",
        MASKED,
        ("residual",),
        ((r"transform\.dense", "residual=", "residual"), (r"transform\.LayerNorm\.weight", "residual", "residual=")),
        maps=True,
    ),
    Wrong(
        "scales before the GELU of an untied MLM head, not on the norm after it",
        "bert untied",
        ("transform",),
        ((r"", "transform=", "transform"),),
        maps=True,
    ),
    Wrong("negative scales under ReLU", DISTILBERT, ("pre_classifier",), (), {"pre_classifier": "real"}, maps=True),
    Wrong(
        "a sign for each unit of normalised embeddings", ELECTRA, ("embedding",), (), {"embedding": "signed"}, maps=True
    ),
    Wrong(
        "MPNet's heads permuted, its table of position biases not",
        MPNET,
        ("heads",),
        ((r"relative_attention_bias", "heads", "-"),),
    ),
    Wrong(
        "query heads permuted across key/value heads",
        LLAMA,
        ("free",),
        ((r"[qo]_proj", r"\(heads(\d) queries\d (-turn\d|v\d)\)'?", r"(free\1 -)"),),
        {},
        {"free0": 12, "free1": 12},
    ),
    Wrong(
        "key/value heads permuted without their query heads",
        LLAMA,
        ("heads",),
        ((r"[qo]_proj", r"\(heads\d queries\d (-turn\d|v\d)\)'?", "-"),),
    ),
    Wrong("units permuted inside rotary heads", LLAMA, ("turn",), ((r"", "-turn", "turn"),), {"turn": "permutation"}),
    Wrong("every invertible map inside rotary heads", LLAMA, ("turn",), (), {"turn": "linear"}, maps=True),
    Wrong(
        "rotary pairs (2i, 2i + 1) where the model pairs (i, i + n/2)",
        LLAMA,
        ("turn",),
        (),
        {"turn": "rotary_adjacent"},
        maps=True,
    ),
    Wrong(
        "rotary pairs (i, i + n/2) where the model pairs (2i, 2i + 1)",
        ROFORMER,
        ("turn",),
        (),
        {"turn": "rotary"},
        maps=True,
    ),
    Wrong("every invertible map on rotary values", "roformer rotary values", ("v",), (), {"v": "linear"}, maps=True),
    Wrong("complex numbers after a norm of Q and K", QWEN, ("turn",), (), {"turn": "rotary"}, maps=True),
    Wrong("a sign for each unit of rotary Q and K", QWEN, ("turn",), (), {"turn": "signed"}, maps=True),
    Wrong("scales on the gate too", LLAMA, ("ffn",), ((r"gate_proj", "ffn(\\d)=", r"ffn\1"),), maps=True),
    Wrong(
        "ModernBERT's gate scaled instead of what it multiplies",
        MODERNBERT,
        ("ffn",),
        ((r"Wi", r"\[ffn(\d)= \| ffn\d\]", r"[ffn\1 | ffn\1=]"),),
        maps=True,
    ),
    Wrong(
        "rotation of an RMSNorm stream with gains",
        LLAMA,
        ("residual",),
        ((r"", "residual=", "-"),),
        {"residual": "orthogonal"},
        maps=True,
    ),
    Wrong("scales of a folded stream", CAUSAL, ("residual",), (), {"residual": "positive"}, maps=True, folded=True),
    Wrong(
        "rotation that moves the ones vector, under the LayerNorm of GPT-2",
        GPT2,
        ("residual",),
        (),
        {"residual": "orthogonal"},
        maps=True,
        folded=True,
    ),
    Wrong(
        "rotation that moves the ones vector, under the LayerNorm of ViT",
        VIT,
        ("residual",),
        (),
        {"residual": "orthogonal"},
        maps=True,
        folded=True,
    ),
    Wrong(
        "rotation of GPT-2 with gains",
        GPT2,
        ("residual",),
        ((r"", "residual=", "-"),),
        {"residual": "orthogonal_one"},
        maps=True,
    ),
    Wrong(
        "DeBERTa's relative embeddings not permuted with the stream",
        DEBERTA_V2,
        ("residual",),
        ((r"rel_embeddings", "residual", "-"),),
    ),
    Wrong(
        "DeBERTa's key bias not permuted with the heads",
        DEBERTA_V2,
        ("heads",),
        ((r"key_proj\.bias", r"\(heads\d qk\d'\)", "-"),),
    ),
    Wrong(
        "DeBERTa's position keys not permuted with queries and keys",
        DEBERTA,
        ("qk",),
        ((r"pos_proj", r"\(heads\d qk\d'\)", "-"),),
    ),
    Wrong(
        "talking heads not permuted with the heads",
        "deberta talking",
        ("heads",),
        ((r"head_\w+_proj", r"heads\d'?", "-"),),
    ),
    Wrong(
        "XLNet's table of sines permuted with the stream",
        XLNET,
        ("residual",),
        ((r"rel_attn\.r$", r"^-", "residual'"),),
    ),
    Wrong(
        "XLNet's segment embeddings not permuted with queries and keys",
        XLNET,
        ("qk",),
        ((r"seg_embed", r"\{heads\d qk\d\}'", "- -"),),
    ),
    Wrong(
        "scales on the axis that texts and images are projected to",
        "CLIPModel",
        ("projection",),
        (),
        {"projection": "positive"},
        maps=True,
    ),
    Wrong(
        "the class token without the sign of the image stream",
        "CLIPForImageClassification",
        ("vision_residual",),
        ((r"class_embedding", "vision_residual", "-"),),
        maps=True,
    ),
)
