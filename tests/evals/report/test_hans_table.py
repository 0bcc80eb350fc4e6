"""The HANS table of a terminal fits into 80 columns; Markdown and CSV name their columns in full."""

from __future__ import annotations

from evals.report.table_text import plain_table
from evals.report.tables import SHORT_NAMES, hans_rows


def test_the_table_of_a_terminal_fits_and_every_short_name_is_explained() -> None:
    cells = {"entailment": 0.98765, "non-entailment": 0.00012}
    heuristics = dict.fromkeys(("lexical_overlap", "subsequence", "constituent"), cells)
    model = {"name": "runs/nli-merged-3", "hash": "0"}
    record = {"model": model, "hans": {"accuracy": 0.5, "heuristics": heuristics}}
    header, row = plain_table(hans_rows([record], short=True)).splitlines()
    assert max(len(header), len(row)) <= 80
    assert header.split()[2:] == ["lex", "ent", "sub", "ent", "con", "ent", "lex", "non", "sub", "non", "con", "non"]
    assert all(f"{word}" in SHORT_NAMES for word in header.split()[2:])
    assert row.split()[-1] == "1.2e-04"
    assert len(plain_table(hans_rows([record])).splitlines()[0]) > 80
