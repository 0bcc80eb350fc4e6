"""STS-B: the semantic similarity of two sentences, a number from 0 to 5.

Source: Cer et al. 2017, arXiv:1708.00055; the development set as in GLUE.
"""

from __future__ import annotations

from evals.tasks.glue import DEV, HUB
from evals.tasks.table import TaskTable, make_task

STSB = make_task(
    TaskTable(
        name="stsb",
        labels=(),
        columns=(("sentence1",), ("sentence2",)),
        label_columns=("score", "label"),
        files=DEV,
        split="validation",
        source=f"{HUB}:stsb/validation",
        folders=("STS-B",),
        scale=(0.0, 5.0),
    ),
    "stsb",
)
