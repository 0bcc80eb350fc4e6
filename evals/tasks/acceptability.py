"""CoLA in domain and out of domain: sentences from the sources of the training set, and from other sources.

GLUE's development set has both, the 527 in domain first.

Source: Warstadt et al. 2019, arXiv:1805.12471.
"""

from __future__ import annotations

from dataclasses import replace

from evals.tasks.glue import COLA_TABLE
from evals.tasks.table import Part, make_task

# Rows of the development set, and of its first part.
WHOLE, IN_DOMAIN = 1043, 527

COLA_IN_DOMAIN = make_task(
    replace(
        COLA_TABLE,
        name="cola_in_domain",
        part=Part(0, IN_DOMAIN, WHOLE),
        part_files=("validation_in_domain.jsonl", "in_domain_dev.tsv"),
    ),
    "cola",
)
COLA_OUT_OF_DOMAIN = make_task(
    replace(
        COLA_TABLE,
        name="cola_out_of_domain",
        part=Part(IN_DOMAIN, WHOLE, WHOLE),
        part_files=("validation_out_of_domain.jsonl", "out_of_domain_dev.tsv"),
    ),
    "cola",
)
