"""PAWS: pairs of sentences with the same words in another order, a diagnostic data set of paraphrase.

Source: Zhang et al. 2019, arXiv:1904.01130. PAWS-QQP is made from Quora's questions, whose terms do not allow it on the Hub.
"""

from __future__ import annotations

from evals.tasks.labels import paraphrase_aliases, paraphrase_labels
from evals.tasks.table import TaskTable, make_task
from evals.tasks.task import EvalTask


def _paws(name: str, split: str, source: str | None) -> EvalTask:
    """Return one of the two data sets, scored as QQP is."""
    table = TaskTable(
        name=name,
        labels=paraphrase_labels("paraphrase"),
        columns=(("sentence1",), ("sentence2",)),
        label_columns=("label",),
        files=(f"{split}.tsv", f"{split}.jsonl"),
        split=split,
        source=source,
        aliases=paraphrase_aliases("paraphrase"),
    )
    return make_task(table, "qqp")


PAWS_QQP = _paws("paws_qqp", "dev_and_test", None)
PAWS_WIKI = _paws("paws_wiki", "test", "google-research-datasets/paws:labeled_final/test")
