"""Evaluation tasks, one table each; TASKS lists them.

The tables are Python and not files such as users write (`task_file`): they have twice as many fields, share label names
with one another, are checked by mypy, and listing them parses no YAML.
"""

from __future__ import annotations

from pathlib import Path

from evals.tasks.acceptability import COLA_IN_DOMAIN, COLA_OUT_OF_DOMAIN
from evals.tasks.adversarial import ADVGLUE
from evals.tasks.glue import COLA, MNLI, MNLI_MISMATCHED, MRPC, QNLI, QQP, RTE, SST2, WNLI
from evals.tasks.hans import HANS
from evals.tasks.nli import BREAKING_NLI, LINGNLI, SICK, SNLI, TAXINLI, XNLI
from evals.tasks.paraphrase import PAWS_QQP, PAWS_WIKI
from evals.tasks.sts import STSB
from evals.tasks.task import EvalTask
from merge.errors import UsageError, nearest

_GLUE = (COLA, SST2, MRPC, QQP, STSB, MNLI, MNLI_MISMATCHED, QNLI, RTE, WNLI)
_MORE = (
    HANS,
    PAWS_QQP,
    PAWS_WIKI,
    COLA_IN_DOMAIN,
    COLA_OUT_OF_DOMAIN,
    SNLI,
    SICK,
    XNLI,
    BREAKING_NLI,
    LINGNLI,
    TAXINLI,
)

GLUE: dict[str, EvalTask] = {task.name: task for task in _GLUE}
TASKS: dict[str, EvalTask] = {task.name: task for task in (*_GLUE, *_MORE, *ADVGLUE)}

# Names of the same data set on the Hub, in GLUE's own files and in transformers -> our name.
ALIASES = {
    "mnli_matched": "mnli", "mnli-m": "mnli", "mnli-matched": "mnli", "mnli_mismatched_validation": "mnli_mismatched",
    "mnli-mm": "mnli_mismatched", "mnli-mismatched": "mnli_mismatched", "multi_nli": "mnli", "multinli": "mnli",
    "sst-2": "sst2", "sts-b": "stsb", "sts_b": "stsb", "paws": "paws_wiki", "paws-qqp": "paws_qqp",
}  # fmt: skip

TASK_FILE = (".yaml", ".yml")


def find_task(name: str) -> EvalTask:
    """Return the task of that name; a name that ends in .yaml or .yml is a task file.

    Raises:
        UsageError: there is no such task (the nearest is named), or the file does not describe one.
    """
    if name.lower().endswith(TASK_FILE):
        from evals.tasks.task_file import read_task

        return read_task(Path(name), reserved=TASKS)
    name = ALIASES.get(name.lower(), name)
    if name not in TASKS:
        raise UsageError(f"unknown task {name!r}.{nearest(name, TASKS)} A task of your own is a file: TASK.yaml.")
    return TASKS[name]
