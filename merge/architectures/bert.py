"""BERT: the axes of every tensor.

Post-LN, so one permutation of the residual stream for the whole model (LayerNorm gains sit in the stream). Q and K
share their inner order, V and the output projection theirs; a head moves as one block of all four. The key bias adds
a constant to every score of a query, which softmax cancels: its order can never show in the outputs.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from merge.errors import SpecError, nearest
from merge.spec import PermutationSpec

EMBEDDINGS = {
    "bert.embeddings.word_embeddings.weight": "- residual",
    "bert.embeddings.position_embeddings.weight": "- residual",
    "bert.embeddings.token_type_embeddings.weight": "- residual",
    "bert.embeddings.LayerNorm.weight": "residual",
    "bert.embeddings.LayerNorm.bias": "residual",
}

LAYER = {
    "attention.self.query.weight": "(heads{i} qk{i}) residual'",
    "attention.self.query.bias": "(heads{i} qk{i})",
    "attention.self.key.weight": "(heads{i} qk{i}') residual'",
    "attention.self.key.bias": "(heads{i} qk{i}')",
    "attention.self.value.weight": "(heads{i} v{i}) residual'",
    "attention.self.value.bias": "(heads{i} v{i})",
    "attention.output.dense.weight": "residual (heads{i} v{i})'",
    "attention.output.dense.bias": "residual",
    "attention.output.LayerNorm.weight": "residual",
    "attention.output.LayerNorm.bias": "residual",
    "intermediate.dense.weight": "ffn{i} residual'",
    "intermediate.dense.bias": "ffn{i}",
    "output.dense.weight": "residual ffn{i}'",
    "output.dense.bias": "residual",
    "output.LayerNorm.weight": "residual",
    "output.LayerNorm.bias": "residual",
}

LAYER_TAPS = {
    "qk{i}": ("attention.self.query:out", "attention.self.key:out"),
    "v{i}": ("attention.output.dense:in",),
    "ffn{i}": ("output.dense:in",),
}

POOLER = {"bert.pooler.dense.weight": "pooler residual'", "bert.pooler.dense.bias": "pooler"}
NEXT_SENTENCE = {"cls.seq_relationship.weight": "- pooler'", "cls.seq_relationship.bias": "-"}
MLM_TIED = {
    # The decoder is the word embedding table, so the head's hidden axis is the residual stream itself.
    "cls.predictions.transform.dense.weight": "residual residual'",
    "cls.predictions.transform.dense.bias": "residual",
    "cls.predictions.transform.LayerNorm.weight": "residual",
    "cls.predictions.transform.LayerNorm.bias": "residual",
    "cls.predictions.bias": "-",
}
MLM_UNTIED = {
    "cls.predictions.transform.dense.weight": "transform residual'",
    "cls.predictions.transform.dense.bias": "transform",
    "cls.predictions.transform.LayerNorm.weight": "transform",
    "cls.predictions.transform.LayerNorm.bias": "transform",
    "cls.predictions.bias": "-",
    "cls.predictions.decoder.weight": "- transform'",
    "cls.predictions.decoder.bias": "-",
}

MLM_TAP = "cls.predictions.transform.LayerNorm:out"

# Task head -> (its tensors, its outputs). MLM tensors depend on tying and are added below.
HEADS: dict[str, tuple[dict[str, str], dict[str, str]]] = {
    "BertModel": ({}, {"last_hidden_state": "- - residual", "pooler_output": "- pooler"}),
    "BertForSequenceClassification": (
        {"classifier.weight": "labels pooler'", "classifier.bias": "labels"},
        {"logits": "- labels"},
    ),
    "BertForTokenClassification": (
        {"classifier.weight": "labels residual'", "classifier.bias": "labels"},
        {"logits": "- - labels"},
    ),
    "BertForMultipleChoice": (
        {"classifier.weight": "- pooler'", "classifier.bias": "-"},
        {"logits": "- -"},
    ),
    "BertForQuestionAnswering": (
        {"qa_outputs.weight": "- residual'", "qa_outputs.bias": "-"},
        {"start_logits": "- -", "end_logits": "- -"},
    ),
    "BertForNextSentencePrediction": (NEXT_SENTENCE, {"logits": "- -"}),
    "BertForMaskedLM": ({}, {"logits": "- - -"}),
    "BertForPreTraining": (NEXT_SENTENCE, {"prediction_logits": "- - -", "seq_relationship_logits": "- -"}),
}


def bert(config: Mapping[str, Any]) -> PermutationSpec:
    """Return the spec of a BERT with any of its task heads.

    Source: the exact symmetries of post-LN encoders; Ainsworth et al. 2023, arXiv:2209.04836, appendix A for the form.

    Raises:
        SpecError: the architecture is not one of HEADS.
    """
    architecture = str((config.get("architectures") or ["?"])[0])
    if architecture not in HEADS:
        raise SpecError(f"the bert table has no task head {architecture!r}.{nearest(architecture, HEADS)}")
    layers = range(int(config["num_hidden_layers"]))
    head, outputs = HEADS[architecture]
    lines = dict(EMBEDDINGS)
    taps: dict[str, tuple[str, ...]] = {}
    norms = ["bert.embeddings.LayerNorm:out"]
    for i in layers:
        path = f"bert.encoder.layer.{i}"
        lines |= {f"{path}.{name}": line.format(i=i) for name, line in LAYER.items()}
        taps |= {axis.format(i=i): tuple(f"{path}.{s}" for s in sites) for axis, sites in LAYER_TAPS.items()}
        norms += [f"{path}.attention.output.LayerNorm:out", f"{path}.output.LayerNorm:out"]
    lines |= POOLER | head
    taps["pooler"] = ("bert.pooler.activation:out",)
    if architecture in ("BertForMaskedLM", "BertForPreTraining"):
        tied = config.get("tie_word_embeddings", True)
        lines |= MLM_TIED if tied else MLM_UNTIED
        if tied:
            norms.append(MLM_TAP)
        else:
            taps["transform"] = (MLM_TAP,)
    return PermutationSpec(
        family="bert",
        lines=lines,
        sizes={f"heads{i}": int(config["num_attention_heads"]) for i in layers},
        taps={"residual": tuple(norms), **taps},
        outputs=outputs,
        named=frozenset({"labels"}),
    )
