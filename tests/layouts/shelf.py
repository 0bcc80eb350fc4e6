"""Layouts: tiny models written the way real repositories are, each as a pair of two seeds.

An entry states the class that the weights are of, how their names, files and tokenizer differ from what save_pretrained
writes today, and which commands refuse it with which words; what it does not state is right as it is.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from layouts.parts import (
    ROWS,
    Tensors,
    beside,
    both_files,
    byte_level_bpe,
    gamma_beta,
    halved,
    no_tokenizer,
    pickle,
    pickle_shards,
    pipeline,
    prefixed,
    safetensors,
    sentencepiece,
    shards,
    trainer_state,
    twin,
    vocab_and_merges,
    vocab_txt,
    vocab_txt_cased,
    with_positions,
    with_tensors,
    within,
    without,
    wordpiece,
    wordpiece_4,
    write_json,
)  # fmt: skip
from tiny import random_tensors

SIZES = {
    "vocab_size": ROWS,
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 40,
    "max_position_embeddings": 32,
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
}
ROBERTA = {**SIZES, "max_position_embeddings": 40, "type_vocab_size": 1, "pad_token_id": 1}
DISTILBERT = {
    "vocab_size": ROWS, "dim": 24, "n_layers": 2, "n_heads": 4, "hidden_dim": 40, "max_position_embeddings": 32,
    "dropout": 0.0, "attention_dropout": 0.0,
}  # fmt: skip
DEBERTA = {
    **SIZES, "type_vocab_size": 0, "relative_attention": True, "pos_att_type": ["p2c", "c2p"], "position_buckets": 8,
    "norm_rel_ebd": "layer_norm", "share_att_key": True, "position_biased_input": False,
}  # fmt: skip
TWO = {"id2label": {"0": "negative", "1": "positive"}, "label2id": {"negative": 0, "positive": 1}}
ONE = {"id2label": {"0": "LABEL_0"}, "label2id": {"LABEL_0": 0}}
POOLER = {"pooler__dense__weight": (24, 24), "pooler__dense__bias": (24,)}
NSP = {"cls__seq_relationship__weight": (2, 24), "cls__seq_relationship__bias": (2,)}


def of(model_type: str, architecture: str, sizes: Mapping[str, Any] = SIZES, **more: Any) -> dict[str, Any]:
    return {"architectures": [architecture], "model_type": model_type, **sizes, **more}


BERT, BERT_MLM, BERT_CLASSES = (
    of("bert", "BertModel"),
    of("bert", "BertForMaskedLM"),
    of("bert", "BertForSequenceClassification", **TWO),
)
MPNET = of("mpnet", "MPNetModel", {k: v for k, v in ROBERTA.items() if k != "type_vocab_size"})

ALL = ("merge", "weights", "activations", "drop", "score", "push")
STUDIES = (
    "barrier", "line", "basins", "plane", "curve", "simplex", "monotonic", "features", "similarity", "lesion", "linearity",
    "stitch", "stitch-models", "apply", "prune-heads", "prune-neurons", "prune-embeddings",
)  # fmt: skip


@dataclass(frozen=True)
class Layout:
    """A layout.

    Attributes:
        like: the repositories that have it.
        true: config.json of the class that the weights are of.
        names: what was done to the names and numbers that transformers writes today.
        store: how the weights are held.
        tokenizer: its files.
        config: changes of config.json; None takes a key out.
        beside: other files.
        refused: command -> words of the line that refuses it, by a pattern.
        notes: words that a merge says of it.
    """

    like: str
    true: Mapping[str, Any]
    names: tuple[Callable[[Tensors], Tensors], ...] = ()
    store: Callable[[Path, Tensors], None] = safetensors
    tokenizer: Callable[[Path], Any] = wordpiece
    config: Mapping[str, Any] = field(default_factory=dict)
    beside: tuple[Callable[[Path], None], ...] = ()
    refused: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def tensors(self, seed: int) -> Tensors:
        """Return the model's own weights by the names that transformers writes."""
        return random_tensors(self.true, seed, torch.float32)

    def write(self, folder: Path, seed: int) -> Path:
        """Write the folder of one model."""
        folder.mkdir(parents=True)
        tensors = self.tensors(seed)
        for change in self.names:
            tensors = change(tensors)
        config = {k: v for k, v in {**self.true, **self.config}.items() if v is not None}
        (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
        self.store(folder, tensors)
        self.tokenizer(folder)
        for write in self.beside:
            write(folder)
        return folder


def everything(line: str) -> dict[str, str]:
    return dict.fromkeys(ALL, line)


BARE = ("weights are those of its base model alone",)
EXTRA = ("are no tensors of",)
WRAPPED = ("were saved through a wrapper",)
XLMR = of("xlm-roberta", "XLMRobertaModel", ROBERTA)

ENCODERS = {
    "bert-base-uncased": Layout(
        "bert-base-uncased, -cased, -multilingual",
        BERT_MLM,
        (gamma_beta, with_tensors(**{f"bert__{n}": s for n, s in POOLER.items()}, **NSP),
         twin("cls.predictions.decoder.weight", "bert.embeddings.word_embeddings.weight")),
        tokenizer=wordpiece_4,
        config={"torch_dtype": "float32", "transformers_version": "4.6.0.dev0", "gradient_checkpointing": False},
        notes=(*EXTRA, "gamma and beta"),
    ),
    "distilbert-base-uncased": Layout(
        "distilbert-base-uncased, -cased",
        of("distilbert", "DistilBertForMaskedLM", DISTILBERT),
        (twin("vocab_projector.weight", "distilbert.embeddings.word_embeddings.weight"),),
        tokenizer=wordpiece_4,
        config={"tie_weights_": True, "sinusoidal_pos_embds": False},
    ),
    "roberta-base": Layout(
        "roberta-base, distilroberta-base",
        of("roberta", "RobertaForMaskedLM", ROBERTA),
        (with_tensors(**{f"roberta__{n}": s for n, s in POOLER.items()}),
         with_positions("roberta.embeddings.position_ids", 40)),
        tokenizer=byte_level_bpe,
        notes=EXTRA,
    ),
    "codebert-base": Layout(
        "microsoft/codebert-base", of("roberta", "RobertaModel", ROBERTA), store=pickle, tokenizer=vocab_and_merges,
        config={"output_past": True},
    ),
    "xlm-roberta-base": Layout(
        "xlm-roberta-base",
        of("xlm-roberta", "XLMRobertaForMaskedLM", ROBERTA),
        (with_tensors(**{f"roberta__{n}": s for n, s in POOLER.items()}),),
        tokenizer=sentencepiece("sentencepiece.bpe.model"),
        notes=EXTRA,
    ),
    "camembert-base": Layout(
        "camembert-base", of("camembert", "CamembertForMaskedLM", ROBERTA), store=pickle,
        tokenizer=sentencepiece("sentencepiece.bpe.model"),
    ),
    "albert-base-v2": Layout(
        "albert-base-v2",
        of("albert", "AlbertForMaskedLM", SIZES, embedding_size=12, num_hidden_groups=1, inner_group_num=1),
        (with_tensors(albert__pooler__weight=(24, 24), albert__pooler__bias=(24,)),),
        tokenizer=sentencepiece("spiece.model", "[CLS]", "[SEP]", "[MASK]"),
        notes=EXTRA,
    ),
    "deberta-v3-base": Layout(
        "microsoft/deberta-v3-base, -small, mdeberta-v3-base",
        of("deberta-v2", "DebertaV2Model", DEBERTA),
        (prefixed("deberta."),
         with_tensors(lm_predictions__lm_head__bias=(ROWS,), mask_predictions__dense__weight=(24, 24))),
        pickle,
        sentencepiece("spm.model", "[CLS]", "[SEP]"),
        {"architectures": None},
        (beside(tokenizer_config__json={"do_lower_case": False, "vocab_type": "spm"}),),
        notes=("names no class", "are no tensors of DebertaV2Model"),
    ),
    "electra-base-discriminator": Layout(
        "google/electra-base-discriminator", of("electra", "ElectraForPreTraining", SIZES, embedding_size=12),
        (with_positions("electra.embeddings.position_ids", 32),), pickle, vocab_txt,
    ),
    "ModernBERT-base": Layout(
        "answerdotai/ModernBERT-base",
        of("modernbert", "ModernBertForMaskedLM", SIZES, local_attention=6, global_attn_every_n_layers=2,
           pad_token_id=0, cls_token_id=2, sep_token_id=3),
        tokenizer=wordpiece,
    ),
    "bert-tiny": Layout(
        "prajjwal1/bert-tiny, google/bert_uncased_L-2_H-128_A-2", BERT, (prefixed("bert."), with_tensors(**NSP)), pickle,
        vocab_txt, {"architectures": None}, notes=("names no class", "are no tensors of BertModel"),
    ),
}  # fmt: skip

SENTENCES = {
    "all-MiniLM-L6-v2": Layout(
        "all-MiniLM-L6-v2, e5-base-v2, bge-base-en-v1.5", BERT, (with_positions("embeddings.position_ids", 32),),
        both_files, wordpiece_4, {"transformers_version": "4.8.2"}, (pipeline("Pooling", "Normalize", version="2.0.0"),),
    ),
    "all-mpnet-base-v2": Layout(
        "all-mpnet-base-v2, multi-qa-mpnet-base-dot-v1, paraphrase-mpnet-base-v2", MPNET, tokenizer=vocab_txt,
        config={"architectures": ["MPNetForMaskedLM"]}, beside=(pipeline("Pooling", "Normalize"),), notes=BARE,
    ),
    "all-distilroberta-v1": Layout(
        "all-distilroberta-v1", of("roberta", "RobertaModel", ROBERTA), store=pickle, tokenizer=byte_level_bpe,
        config={"architectures": ["RobertaForMaskedLM"]}, beside=(pipeline("Pooling", "Normalize"),), notes=BARE,
    ),
    "multilingual-e5-base": Layout(
        "intfloat/multilingual-e5-base, bge-m3", XLMR, tokenizer=sentencepiece("sentencepiece.bpe.model"),
        beside=(pipeline("Pooling", "Normalize", version="2.4.0.dev0"),),
    ),
    "paraphrase-multilingual-MiniLM": Layout(
        "paraphrase-multilingual-MiniLM-L12-v2: a BERT that reads XLM-R's tokens", BERT,
        tokenizer=sentencepiece("sentencepiece.bpe.model"), beside=(pipeline("Pooling"),
        beside(tokenizer_config__json={"tokenizer_class": "XLMRobertaTokenizer"})),
    ),
    "gte-base": Layout(
        "thenlper/gte-base, gte-small: half precision", BERT, (halved,), safetensors, wordpiece_4,
        {"torch_dtype": "float16"}, (pipeline("Pooling", "Normalize"),),
    ),
    "LaBSE": Layout(
        "LaBSE, clip-ViT-B-32-multilingual: a Dense module", BERT, store=pickle,
        beside=(pipeline("Pooling", "Dense", "Normalize"),),
    ),
    "contriever": Layout(
        "facebook/contriever: a class of its authors' code", BERT, store=pickle, tokenizer=wordpiece_4,
        config={"architectures": ["Contriever"]}, notes=("names Contriever, which transformers does not have",),
    ),
    "msmarco-distilbert": Layout(
        "msmarco-distilbert-base-tas-b, multi-qa-distilbert-cos-v1", of("distilbert", "DistilBertModel", DISTILBERT),
        config={"architectures": ["DistilBertForMaskedLM"]}, store=pickle, beside=(pipeline("Pooling", mode="cls"),),
        notes=BARE,
    ),
    "without a pooler": Layout(
        "sentence models saved by AutoModel without a pooler", BERT, (without("pooler"),),
        beside=(pipeline("Pooling"),), notes=("missing pooler",),
    ),
    "sentence-transformers 6": Layout(
        "all models saved by sentence-transformers 6", BERT,
        beside=(lambda folder: _st6(folder),), config={"dtype": "float32", "transformers_version": "5.23.0"},
    ),
    "PyLate": Layout(
        "answerai-colbert-small-v1, GTE-ModernColBERT", BERT,
        beside=(pipeline("Dense", query_prefix="[Q] ", document_prefix="[D] ", query_length=32, document_length=300,
                         do_query_expansion=True, skiplist_words=["."], similarity_fn_name="MaxSim"),),
    ),
    "SPLADE": Layout(
        "naver/splade-cocondenser-ensembledistil", BERT_MLM, store=pickle, tokenizer=wordpiece_4,
        config={"transformers_version": "4.5.1"},
    ),
    "SetFit": Layout(
        "SetFit/*: a scikit-learn head beside the encoder", MPNET, tokenizer=vocab_txt,
        beside=(pipeline("Pooling"), beside(config_setfit__json={"labels": ["no", "yes"]}, model_head__pkl=b"\x80")),
    ),
    "cross-encoder, old": Layout(
        "cross-encoder/ms-marco-MiniLM-L6-v2", of("bert", "BertForSequenceClassification", **ONE), store=pickle,
        tokenizer=wordpiece_4,
        config={"sbert_ce_default_activation_function": "torch.nn.modules.linear.Identity"},
    ),
    "cross-encoder, new": Layout(
        "cross-encoder/*, saved by sentence-transformers 4", of("bert", "BertForSequenceClassification", **ONE),
        config={"sentence_transformers": {"activation_fn": "torch.nn.modules.activation.Sigmoid", "version": "4.0.1"}},
    ),
}  # fmt: skip


def _st6(folder: Path) -> None:
    kinds = [("Transformer", ""), ("Pooling", "1_Pooling"), ("Normalize", "2_Normalize")]
    modules = [
        {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.base.modules.{kind.lower()}.{kind}"}
        for i, (kind, path) in enumerate(kinds)
    ]
    write_json(folder / "modules.json", modules)
    pooling = {"embedding_dimension": 24, "pooling_mode": "mean", "include_prompt": True}
    write_json(folder / "1_Pooling" / "config.json", pooling)
    general = {"model_type": "SentenceTransformer", "prompts": {"query": "", "document": ""}}
    write_json(folder / "config_sentence_transformers.json", general | {"similarity_fn_name": "cosine"})


FILES = {
    "DistributedDataParallel": Layout("fast-bert#18", BERT_CLASSES, (prefixed("module."),), pickle, notes=WRAPPED),
    "torch.compile": Layout("nanoGPT#325", BERT_CLASSES, (prefixed("_orig_mod."),), notes=WRAPPED),
    "DDP of torch.compile": Layout(
        "pytorch#94575", BERT_CLASSES, (prefixed("module._orig_mod."),), shards, notes=WRAPPED
    ),
    "torch.compile of DDP": Layout("the other order", BERT_MLM, (prefixed("_orig_mod.module."),), notes=WRAPPED),
    "compiled layers": Layout("regional compilation", BERT, (within("encoder.layer.0.", "_orig_mod"),), notes=WRAPPED),
    "FSDP and activation checkpointing": Layout(
        "FSDP, fairscale", BERT_CLASSES,
        (within("encoder.layer.1.", "_checkpoint_wrapped_module"), prefixed("_fsdp_wrapped_module.")), notes=WRAPPED,
    ),
    "Lightning": Layout("LightningModule with self.model", BERT_CLASSES, (prefixed("model."),), pickle,
                        notes=("begin with model., which",)),
    "DDP around SentenceTransformer": Layout(
        "a SentenceTransformer's state_dict", BERT, (prefixed("module.0.auto_model."),), pickle, notes=WRAPPED
    ),
    "two encoders in one file": Layout(
        "a bi-encoder's state_dict", BERT,
        (lambda t: prefixed("query_encoder.")(t) | prefixed("doc_encoder.")(t),), pickle,
        refused=everything("holds 2 models, under 'query_encoder.', 'doc_encoder.'"),
    ),
    "half of the head": Layout(
        "an interrupted conversion", of("roberta", "RobertaForSequenceClassification", ROBERTA, **TWO),
        (without("classifier.out_proj"),), tokenizer=byte_level_bpe,
        refused=everything("classifier.out_proj"),
    ),
    "half of the encoder": Layout(
        "an interrupted conversion", BERT_CLASSES, (without("layer.1."),),
        refused=everything("encoder.layer.1"),
    ),
    "loss and CRF beside the head": Layout(
        "transformers#12426, peft#1574", of("bert", "BertForTokenClassification", **TWO),
        (with_tensors(crf__transitions=(2, 2), loss_fct__weight=(2,)),), notes=EXTRA,
    ),
    "shards": Layout("models of several files", BERT_CLASSES, (), shards),
    "shards of .bin": Layout("models of several files, before 2023", BERT_CLASSES, (gamma_beta,), pickle_shards),
    "Trainer checkpoint": Layout(
        "checkpoint-500", BERT_CLASSES, config={"problem_type": "single_label_classification"}, beside=(trainer_state,),
        notes=("not copied from",),
    ),
    "config of transformers 2": Layout(
        "models of 2019: no model_type", BERT_CLASSES, store=pickle, tokenizer=vocab_txt_cased,
        config={"model_type": None, "output_past": True, "num_labels": 2, "pruned_heads": {}},
        refused=everything("names no model_type"),
    ),
    "config of transformers 3": Layout(
        "models of 2020", BERT_CLASSES, store=pickle, tokenizer=vocab_txt,
        config={"output_past": True, "pooler_fc_size": 768, "directionality": "bidi"},
    ),
    "ColBERT of its authors": Layout(
        "colbert-ir/colbertv2.0", BERT, (prefixed("bert."), with_tensors(linear__weight=(16, 24))),
        config={"architectures": ["HF_ColBERT"]}, refused=everything("no model class 'HF_ColBERT'"),
    ),
    "no tokenizer": Layout("weights alone", BERT_CLASSES, tokenizer=no_tokenizer,
                           refused={"activations": "has no tokenizer", "score": "has no tokenizer"}),
    "tokenizer of DistilBERT says BERT": Layout(
        "DistilBERT with BertTokenizer: segments it does not read",
        of("distilbert", "DistilBertForSequenceClassification", DISTILBERT, seq_classif_dropout=0.0, **TWO),
        tokenizer=vocab_txt, beside=(beside(tokenizer_config__json={"tokenizer_class": "BertTokenizer"}),),
    ),
}  # fmt: skip

LAYOUTS: dict[str, Layout] = {**ENCODERS, **SENTENCES, **FILES}
