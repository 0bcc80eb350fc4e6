"""PAWS: pairs of the same words in another order, the diagnostic set of paraphrase.

Source: Zhang et al. 2019, arXiv:1904.01130. PAWS-QQP is made from Quora's questions, whose terms keep it off the Hub.
"""

from __future__ import annotations

from evals.tasks.labels import paraphrase_aliases, paraphrase_labels
from evals.tasks.table import TaskTable, make_task

PAWS_QQP = make_task(
    TaskTable(
        name="paws_qqp",
        labels=paraphrase_labels("paraphrase"),
        columns=(("sentence1",), ("sentence2",)),
        label_columns=("label",),
        files=("dev_and_test.tsv", "dev_and_test.jsonl"),
        split="dev_and_test",
        source=None,
        aliases=paraphrase_aliases("paraphrase"),
    ),
    "qqp",
)
PAWS_WIKI = make_task(
    TaskTable(
        name="paws_wiki",
        labels=paraphrase_labels("paraphrase"),
        columns=(("sentence1",), ("sentence2",)),
        label_columns=("label",),
        files=("test.tsv", "test.jsonl"),
        split="test",
        source="google-research-datasets/paws:labeled_final/test",
        aliases=paraphrase_aliases("paraphrase"),
    ),
    "qqp",
)
