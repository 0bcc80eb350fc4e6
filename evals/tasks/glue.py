"""GLUE tasks: rows from the Hub, from GLUE's own folders (.tsv) or from jsonl, csv and parquet files.

Source: Wang et al. 2019, arXiv:1804.07461. Label order as in GLUE on the Hub; development sets, because test labels
are not public. STS-B is in sts.py.
"""

from __future__ import annotations

from evals.tasks.labels import (
    ACCEPTABILITY,
    ACCEPTABILITY_ALIASES,
    COARSE_NLI,
    ENTAILMENT_ALIASES,
    NLI_ALIASES,
    NLI_LABELS,
    paraphrase_aliases,
    paraphrase_labels,
)
from evals.tasks.table import TaskTable, make_task

HUB = "nyu-mll/glue"
DEV = ("validation.jsonl", "dev.tsv")
PAIR = (("sentence1", "#1 String"), ("sentence2", "#2 String"))
TWO_WAY = ("entailment", "not_entailment")

COLA_TABLE = TaskTable(
    name="cola",
    labels=ACCEPTABILITY,
    columns=(("sentence",),),
    label_columns=("label",),
    files=DEV,
    split="validation",
    source=f"{HUB}:cola/validation",
    folders=("CoLA",),
    aliases=ACCEPTABILITY_ALIASES,
    header=("source", "label", "author_mark", "sentence"),
)
SST2_TABLE = TaskTable(
    name="sst2",
    labels=("negative", "positive"),
    columns=(("sentence",),),
    label_columns=("label",),
    files=DEV,
    split="validation",
    source=f"{HUB}:sst2/validation",
    folders=("SST-2",),
)
MRPC_TABLE = TaskTable(
    name="mrpc",
    labels=paraphrase_labels("equivalent"),
    columns=PAIR,
    label_columns=("Quality", "label"),
    files=DEV,
    split="validation",
    source=f"{HUB}:mrpc/validation",
    folders=("MRPC",),
    aliases=paraphrase_aliases("equivalent"),
)
QQP_TABLE = TaskTable(
    name="qqp",
    labels=paraphrase_labels("duplicate"),
    columns=(("question1",), ("question2",)),
    label_columns=("is_duplicate", "label"),
    files=DEV,
    split="validation",
    source=f"{HUB}:qqp/validation",
    folders=("QQP",),
    aliases=paraphrase_aliases("duplicate"),
    keeps_quotes=True,
)
MNLI_TABLE = TaskTable(
    name="mnli",
    labels=NLI_LABELS,
    columns=(("premise", "sentence1"), ("hypothesis", "sentence2")),
    label_columns=("gold_label", "label"),
    files=("validation_matched.jsonl", "dev_matched.tsv"),
    split="validation_matched",
    source=f"{HUB}:mnli/validation_matched",
    folders=("MNLI",),
    aliases=NLI_ALIASES,
    unlabelled=("-",),  # MultiNLI's own files mark a row without an agreed label so; GLUE leaves such rows out
)
MNLI_MISMATCHED_TABLE = TaskTable(
    name="mnli_mismatched",
    labels=NLI_LABELS,
    columns=MNLI_TABLE.columns,
    label_columns=MNLI_TABLE.label_columns,
    files=("validation_mismatched.jsonl", "dev_mismatched.tsv"),
    split="validation_mismatched",
    source=f"{HUB}:mnli/validation_mismatched",
    folders=("MNLI",),
    aliases=NLI_ALIASES,
    unlabelled=("-",),
)
# Does a sentence answer a question? The classes have the names of NLI, but NLI models are not trained on questions, so
# three-way labels are not folded.
QNLI_TABLE = TaskTable(
    name="qnli",
    labels=TWO_WAY,
    columns=(("question",), ("sentence",)),
    label_columns=("label",),
    files=DEV,
    split="validation",
    source=f"{HUB}:qnli/validation",
    folders=("QNLI",),
    aliases=ENTAILMENT_ALIASES,
)
RTE_TABLE = TaskTable(
    name="rte",
    labels=TWO_WAY,
    columns=PAIR,
    label_columns=("label",),
    files=DEV,
    split="validation",
    source=f"{HUB}:rte/validation",
    folders=("RTE",),
    coarse=COARSE_NLI,
    aliases=NLI_ALIASES,
    keeps_quotes=True,
)
WNLI_TABLE = TaskTable(
    name="wnli",
    labels=TWO_WAY[::-1],
    columns=PAIR,
    label_columns=("label",),
    files=DEV,
    split="validation",
    source=f"{HUB}:wnli/validation",
    folders=("WNLI",),
    coarse=COARSE_NLI,
    aliases=NLI_ALIASES,
)

COLA = make_task(COLA_TABLE, "cola")
SST2 = make_task(SST2_TABLE, "sst2")
MRPC = make_task(MRPC_TABLE, "mrpc")
QQP = make_task(QQP_TABLE, "qqp")
MNLI = make_task(MNLI_TABLE, "mnli_matched")
MNLI_MISMATCHED = make_task(MNLI_MISMATCHED_TABLE, "mnli_mismatched")
QNLI = make_task(QNLI_TABLE, "qnli")
RTE = make_task(RTE_TABLE, "rte")
WNLI = make_task(WNLI_TABLE, "wnli")
