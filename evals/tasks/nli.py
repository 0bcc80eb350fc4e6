"""Natural language inference beyond GLUE: SNLI, SICK, XNLI, Breaking NLI, LingNLI, TaxiNLI.

Test sets, where their labels are public.

Sources: Bowman et al. 2015, arXiv:1508.05326; Marelli et al. 2014 (SemEval-2014 task 1); Conneau et al. 2018,
arXiv:1809.05053; Glockner et al. 2018, arXiv:1805.02266; Parrish et al. 2021, arXiv:2104.07179; Joshi et al. 2020,
arXiv:2009.14505.
"""

from __future__ import annotations

from evals.tasks.labels import NLI_ALIASES, NLI_LABELS
from evals.tasks.table import TaskTable, make_task

COLUMNS = (("premise", "sentence1", "sentence_A", "prem"), ("hypothesis", "sentence2", "sentence_B", "hyp"))
LABELS = ("gold_label", "label", "entailment_judgment", "entailment_label")

SNLI = make_task(
    TaskTable(
        name="snli",
        labels=NLI_LABELS,
        columns=COLUMNS,
        label_columns=LABELS,
        files=("snli_1.0_test.jsonl", "snli_1.0_test.txt", "test.jsonl"),
        split="test",
        source="stanfordnlp/snli:plain_text/test",
        aliases=NLI_ALIASES,
        unlabelled=("-", "-1"),
    ),
    "mnli",
)
SICK = make_task(
    TaskTable(
        name="sick",
        labels=NLI_LABELS,
        columns=COLUMNS,
        label_columns=LABELS,
        files=("SICK_test_annotated.txt", "test.jsonl"),
        split="test",
        source=None,
        aliases=NLI_ALIASES,
    ),
    "mnli",
)
XNLI = make_task(
    TaskTable(
        name="xnli",
        labels=NLI_LABELS,
        columns=COLUMNS,
        label_columns=LABELS,
        files=("xnli.test.tsv", "test.jsonl"),
        split="test",
        source="facebook/xnli:en/test",
        aliases=NLI_ALIASES,
        only=("language", "en"),
    ),
    "mnli",
)
BREAKING_NLI = make_task(
    TaskTable(
        name="breaking_nli",
        labels=NLI_LABELS,
        columns=COLUMNS,
        label_columns=LABELS,
        files=("data.jsonl", "test.jsonl"),
        split="test",
        source=None,
        aliases=NLI_ALIASES,
    ),
    "mnli",
)
LINGNLI = make_task(
    TaskTable(
        name="lingnli",
        labels=NLI_LABELS,
        columns=COLUMNS,
        label_columns=LABELS,
        files=("validation.jsonl",),
        split="validation",
        source=None,
        aliases=NLI_ALIASES,
    ),
    "mnli",
)
TAXINLI = make_task(
    TaskTable(
        name="taxinli",
        labels=NLI_LABELS,
        columns=COLUMNS,
        label_columns=LABELS,
        files=("taxinli10k.tsv",),
        split="all",
        source=None,
        aliases=NLI_ALIASES,
    ),
    "mnli",
)
