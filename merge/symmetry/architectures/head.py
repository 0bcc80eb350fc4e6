"""Task heads: the lines of notation that each adds to an encoder, and the heads that families share.

A line may name two axes that depend on the config. `{words}` is the axis of the word embedding table: the residual
stream, or an axis of its own where the table is narrower and projected. `{decoded}` is the axis that the vocabulary
decoder reads: `{words}` where the decoder is tied to the word embeddings, else `transform`, an axis of the head alone.

The hidden layer of a language model's head is activation, then LayerNorm, then decoder. Its dense weight is only
permuted (`{decoded}=`) because the activation follows; signs and scales go into the gain and bias of the norm instead.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Head:
    """The tensors, outputs and activations of a task head.

    Attributes:
        lines: tensor -> notation; a tensor that a tied model does not store is listed all the same.
        outputs: output name of the model -> notation.
        taps: axis -> sites of its activations; those at LayerNorms follow from the lines.
        groups: kind of axis -> group, for the head's own axes.
    """

    lines: Mapping[str, str] = field(default_factory=dict)
    outputs: Mapping[str, str] = field(default_factory=dict)
    taps: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    groups: Mapping[str, str] = field(default_factory=dict)


def both(first: Head, second: Head, outputs: Mapping[str, str]) -> Head:
    """Return a head of two parts, as pre-training has, with these outputs."""
    return Head(
        {**first.lines, **second.lines}, outputs, {**first.taps, **second.taps}, {**first.groups, **second.groups}
    )


LOGITS = {"logits": "- - -"}
SPANS = {"start_logits": "- -", "end_logits": "- -"}

BASE = Head(outputs={"last_hidden_state": "- - residual", "pooler_output": "- pooler"})
BASE_WITHOUT_POOLER = Head(outputs={"last_hidden_state": "- - residual"})

SEQUENCE_CLASSIFICATION = Head(
    {"classifier.weight": "labels pooler'", "classifier.bias": "labels"},
    {"logits": "- labels"},
)
# RoBERTa's classifier has a hidden layer on the first token, in place of a pooler.
DENSE_SEQUENCE_CLASSIFICATION = Head(
    {
        "classifier.dense.weight": "classifier residual'",
        "classifier.dense.bias": "classifier",
        "classifier.out_proj.weight": "labels classifier'",
        "classifier.out_proj.bias": "labels",
    },
    {"logits": "- labels"},
    {"classifier": ("classifier.out_proj:in",)},
    {"classifier": "signed"},
)
TOKEN_CLASSIFICATION = Head(
    {"classifier.weight": "labels residual'", "classifier.bias": "labels"},
    {"logits": "- - labels"},
)
MULTIPLE_CHOICE = Head({"classifier.weight": "- pooler'", "classifier.bias": "-"}, {"logits": "- -"})
QUESTION_ANSWERING = Head({"qa_outputs.weight": "- residual'", "qa_outputs.bias": "-"}, SPANS)
NEXT_SENTENCE = Head({"cls.seq_relationship.weight": "- pooler'", "cls.seq_relationship.bias": "-"}, {"logits": "- -"})

# BERT's language model. `cls.predictions.bias` is the decoder's bias where tied; otherwise decoder.bias is, and it is
# unused.
BERT_LANGUAGE_MODEL = Head(
    {
        "cls.predictions.transform.dense.weight": "{decoded}= residual'",
        "cls.predictions.transform.dense.bias": "{decoded}=",
        "cls.predictions.transform.LayerNorm.weight": "{decoded}",
        "cls.predictions.transform.LayerNorm.bias": "{decoded}",
        "cls.predictions.bias": "-",
        "cls.predictions.decoder.weight": "- {decoded}'",
        "cls.predictions.decoder.bias": "-",
    },
    LOGITS,
)
ROBERTA_LANGUAGE_MODEL = Head(
    {
        "lm_head.dense.weight": "{decoded}= residual'",
        "lm_head.dense.bias": "{decoded}=",
        "lm_head.layer_norm.weight": "{decoded}",
        "lm_head.layer_norm.bias": "{decoded}",
        "lm_head.bias": "-",
        "lm_head.decoder.weight": "- {decoded}'",
        "lm_head.decoder.bias": "-",
    },
    LOGITS,
)

# End of the class name (BertModel, BertForMaskedLM) -> head.
ROBERTA_HEADS = {
    "Model": BASE,
    "ForSequenceClassification": DENSE_SEQUENCE_CLASSIFICATION,
    "ForTokenClassification": TOKEN_CLASSIFICATION,
    "ForMultipleChoice": MULTIPLE_CHOICE,
    "ForQuestionAnswering": QUESTION_ANSWERING,
    "ForMaskedLM": ROBERTA_LANGUAGE_MODEL,
    "ForCausalLM": ROBERTA_LANGUAGE_MODEL,
}
BERT_HEADS = {
    "Model": BASE,
    "ForSequenceClassification": SEQUENCE_CLASSIFICATION,
    "ForTokenClassification": TOKEN_CLASSIFICATION,
    "ForMultipleChoice": MULTIPLE_CHOICE,
    "ForQuestionAnswering": QUESTION_ANSWERING,
    "ForNextSentencePrediction": NEXT_SENTENCE,
    "ForMaskedLM": BERT_LANGUAGE_MODEL,
    "ForCausalLM": BERT_LANGUAGE_MODEL,
    "ForPreTraining": both(
        BERT_LANGUAGE_MODEL, NEXT_SENTENCE, {"prediction_logits": "- - -", "seq_relationship_logits": "- -"}
    ),
}
