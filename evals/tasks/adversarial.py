"""AdvGLUE: development rows of six GLUE tasks, rewritten to mislead models; one dev.json has them all.

Source: Wang et al. 2021, arXiv:2111.02840.
"""

from __future__ import annotations

from dataclasses import replace

from evals.tasks import glue
from evals.tasks.table import TaskTable, make_task
from evals.tasks.task import EvalTask

HUB = "AI-Secure/adv_glue"


def _adversarial(table: TaskTable, part: str, config: str, member: str, metric: str) -> EvalTask:
    """Return the adversarial part of a GLUE task.

    Args:
        part: of the task's name, advglue_PART, and of its file, PART.jsonl.
        config: of the data set on the Hub.
        member: the key of its list in dev.json.
    """
    adversarial = replace(
        table,
        name=f"advglue_{part}",
        files=("dev.json", f"{part}.jsonl"),
        split="validation",
        source=f"{HUB}:{config}/validation",
        folders=("advglue",),
        member=member,
    )
    return make_task(adversarial, metric)


ADVGLUE = (
    _adversarial(glue.SST2_TABLE, "sst2", "adv_sst2", "sst2", "sst2"),
    _adversarial(glue.QQP_TABLE, "qqp", "adv_qqp", "qqp", "qqp"),
    _adversarial(glue.MNLI_TABLE, "mnli", "adv_mnli", "mnli", "mnli"),
    _adversarial(glue.MNLI_MISMATCHED_TABLE, "mnli_mm", "adv_mnli_mismatched", "mnli-mm", "mnli"),
    _adversarial(glue.QNLI_TABLE, "qnli", "adv_qnli", "qnli", "qnli"),
    _adversarial(glue.RTE_TABLE, "rte", "adv_rte", "rte", "rte"),
)
