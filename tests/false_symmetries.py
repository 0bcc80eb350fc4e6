"""What is no symmetry: false claims about families, each near a true one, for the battery of the groups to see fail."""

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
        says: what is done.
        case: to which model.
        kinds: axes without their layer's number that move.
        lines: (pattern of a tensor's name, pattern in its line, what stands there instead).
        groups: kind -> the group that does not act there.
        sizes: blocks of axes that the table does not have.
        maps: no unit changes its place.
        folded: on the model whose gains are one.
    """

    says: str
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
        for tensor, found, instead in self.lines:
            for name in case.tensors:
                if re.search(tensor, name) and re.search(found, lines[name]):
                    lines[name], changed = re.sub(found, instead, lines[name]), changed + 1
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
    Wrong("heads of V and O only", BERT, ("heads",), ((r"query|key", r"\(heads\d qk\d'?\)", "-"),)),
    Wrong("heads of Q and K only", BERT, ("heads",), ((r"value|attention\.output", r"\(heads\d v\d\)'?", "-"),)),
    Wrong(
        "rows of Q and K across heads",
        BERT,
        ("qk",),
        ((r"query|key", r"\(heads\d (qk\d'?)\)", r"\1"),),
        {"qk": "permutation"},
    ),
    Wrong("rows of V and O across heads", BERT, ("v",), ((r"", r"\(heads\d (v\d)\)'?", r"\1"),), {"v": "permutation"}),
    Wrong("K by G, not by its inverse transpose", BERT, ("qk",), ((r"key", r"qk(\d)'", r"qk\1"),), maps=True),
    Wrong("O by G, not by its inverse transpose", BERT, ("v",), ((r"output\.dense", r"v(\d)\)'", r"v\1)"),), maps=True),
    Wrong("Q and K of two bases", BERT, ("qk", "other"), ((r"key", r"qk(\d)'", r"other\1'"),), {"other": "linear"}),
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
    Wrong("the sign of the stream on its gains too", BERT, ("residual",), ((r"", "residual=", "residual"),), maps=True),
    Wrong("gains left where they are", BERT, ("residual",), ((r"", "residual=", "-"),)),
    Wrong(
        "another order of the stream in layer 1", BERT, ("residual", "stream"), ((r"layer\.1", "residual", "stream"),)
    ),
    Wrong("the MLM transform left", MASKED, ("residual",), ((r"transform", r"residual(?!')=?", "-"),)),
    Wrong(
        "the sign of the stream in front of the MLM transform's GELU",
        MASKED,
        ("residual",),
        ((r"transform\.dense", "residual=", "residual"), (r"transform\.LayerNorm\.weight", "residual", "residual=")),
        maps=True,
    ),
    Wrong(
        "scales of an untied MLM transform in front of its norm",
        "bert untied",
        ("transform",),
        ((r"", "transform=", "transform"),),
        maps=True,
    ),
    Wrong("negative scales under ReLU", DISTILBERT, ("pre_classifier",), (), {"pre_classifier": "real"}, maps=True),
    Wrong("a sign for each unit of normed embeddings", ELECTRA, ("embedding",), (), {"embedding": "signed"}, maps=True),
    Wrong(
        "another order of MPNet's heads than its table's",
        MPNET,
        ("heads",),
        ((r"relative_attention_bias", "heads", "-"),),
    ),
    Wrong(
        "query heads across groups",
        LLAMA,
        ("free",),
        ((r"[qo]_proj", r"\(heads(\d) queries\d (-turn\d|v\d)\)'?", r"(free\1 -)"),),
        {},
        {"free0": 12, "free1": 12},
    ),
    Wrong(
        "key/value heads without their queries",
        LLAMA,
        ("heads",),
        ((r"[qo]_proj", r"\(heads\d queries\d (-turn\d|v\d)\)'?", "-"),),
    ),
    Wrong("an order inside rotary heads", LLAMA, ("turn",), ((r"", "-turn", "turn"),), {"turn": "permutation"}),
    Wrong("every map inside rotary heads", LLAMA, ("turn",), (), {"turn": "linear"}, maps=True),
    Wrong("rotary pairs side by side, not halves", LLAMA, ("turn",), (), {"turn": "rotary_adjacent"}, maps=True),
    Wrong("rotary pairs in halves, not side by side", ROFORMER, ("turn",), (), {"turn": "rotary"}, maps=True),
    Wrong("every map on rotary values", "roformer rotary values", ("v",), (), {"v": "linear"}, maps=True),
    Wrong("complex numbers behind a norm of Q and K", QWEN, ("turn",), (), {"turn": "rotary"}, maps=True),
    Wrong("a sign for each unit of rotary Q and K", QWEN, ("turn",), (), {"turn": "signed"}, maps=True),
    Wrong("scales on the gate too", LLAMA, ("ffn",), ((r"gate_proj", "ffn(\\d)=", r"ffn\1"),), maps=True),
    Wrong(
        "ModernBERT's gate taken for what it gates",
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
        "rotation that moves the ones vector, under LayerNorm",
        GPT2,
        ("residual",),
        (),
        {"residual": "orthogonal"},
        maps=True,
        folded=True,
    ),
    Wrong(
        "rotation that moves the ones vector, of patches",
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
    Wrong("DeBERTa's relative embeddings left", DEBERTA_V2, ("residual",), ((r"rel_embeddings", "residual", "-"),)),
    Wrong("DeBERTa's key bias left", DEBERTA_V2, ("heads",), ((r"key_proj\.bias", r"\(heads\d qk\d'\)", "-"),)),
    Wrong("DeBERTa's position keys left", DEBERTA, ("qk",), ((r"pos_proj", r"\(heads\d qk\d'\)", "-"),)),
    Wrong(
        "talking heads that do not move along", "deberta talking", ("heads",), ((r"head_\w+_proj", r"heads\d'?", "-"),)
    ),
    Wrong("XLNet's sines moved with the stream", XLNET, ("residual",), ((r"rel_attn\.r$", r"^-", "residual'"),)),
    Wrong("XLNet's segments left", XLNET, ("qk",), ((r"seg_embed", r"\{heads\d qk\d\}'", "- -"),)),
    Wrong(
        "scales where texts and images meet", "CLIPModel", ("projection",), (), {"projection": "positive"}, maps=True
    ),
    Wrong(
        "the class token left when the images' stream turns",
        "CLIPForImageClassification",
        ("vision_residual",),
        ((r"class_embedding", "vision_residual", "-"),),
        maps=True,
    ),
)
