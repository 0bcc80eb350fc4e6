"""Natural language inference beyond GLUE: SNLI, SICK, XNLI, Breaking NLI, LingNLI, TaxiNLI.

Test sets, where their labels are public.

Sources: Bowman et al. 2015, arXiv:1508.05326; Marelli et al. 2014 (SemEval-2014 task 1); Conneau et al. 2018,
arXiv:1809.05053; Glockner et al. 2018, arXiv:1805.02266; Parrish et al. 2021, arXiv:2104.07179; Joshi et al. 2020,
arXiv:2009.14505.
"""

from __future__ import annotations

from evals.tasks.labels import NLI_ALIASES, NLI_LABELS
from evals.tasks.table import TaskTable, make_task
from evals.tasks.task import EvalTask

COLUMNS = (("premise", "sentence1", "sentence_A", "prem"), ("hypothesis", "sentence2", "sentence_B", "hyp"))
LABELS = ("gold_label", "label", "entailment_judgment", "entailment_label")


def _three_way(
    name: str,
    files: tuple[str, ...],
    source: str | None = None,
    split: str = "test",
    unlabelled: tuple[str, ...] = (),
    only: tuple[str, str] | None = None,
) -> EvalTask:
    """Return a task of three-way inference, scored by accuracy as MNLI is; the fields are those of TaskTable."""
    table = TaskTable(
        name=name,
        labels=NLI_LABELS,
        columns=COLUMNS,
        label_columns=LABELS,
        files=files,
        split=split,
        source=source,
        aliases=NLI_ALIASES,
        unlabelled=unlabelled,
        only=only,
    )
    return make_task(table, "mnli")


SNLI = _three_way(
    "snli",
    ("snli_1.0_test.jsonl", "snli_1.0_test.txt", "test.jsonl"),
    "stanfordnlp/snli:plain_text/test",
    unlabelled=("-", "-1"),
)
SICK = _three_way("sick", ("SICK_test_annotated.txt", "test.jsonl"))
XNLI = _three_way("xnli", ("xnli.test.tsv", "test.jsonl"), "facebook/xnli:en/test", only=("language", "en"))
BREAKING_NLI = _three_way("breaking_nli", ("data.jsonl", "test.jsonl"))
LINGNLI = _three_way("lingnli", ("validation.jsonl",), split="validation")
TAXINLI = _three_way("taxinli", ("taxinli10k.tsv",), split="all")
