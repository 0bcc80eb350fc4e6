"""Class names and their aliases: natural language inference, paraphrase, acceptability; integer orders as on the Hub."""

from __future__ import annotations

NLI_LABELS = ("entailment", "neutral", "contradiction")

# Three-way NLI labels on a task of entailment alone.
COARSE_NLI = {"entailment": "entailment", "neutral": "not_entailment", "contradiction": "not_entailment"}

ENTAILMENT_ALIASES = {"entail": "entailment", "entails": "entailment", "entailed": "entailment"}

NLI_ALIASES = {
    **ENTAILMENT_ALIASES,
    "contradict": "contradiction",
    "contradicts": "contradiction",
    "contradictory": "contradiction",
}

ACCEPTABILITY = ("unacceptable", "acceptable")
ACCEPTABILITY_ALIASES = {
    "ungrammatical": "unacceptable",
    "not_acceptable": "unacceptable",
    "not_grammatical": "unacceptable",
    "grammatical": "acceptable",
}

_PARAPHRASE = ("equivalent", "duplicate", "paraphrase")


def paraphrase_labels(word: str) -> tuple[str, str]:
    """Return the two classes of a paraphrase task with a word for paraphrases."""
    return (f"not_{word}", word)


def paraphrase_aliases(word: str) -> dict[str, str]:
    """Return the names of the two classes in other tasks: equivalent, duplicate and paraphrase are one class."""
    others = [other for other in _PARAPHRASE if other != word]
    return {f"not_{other}": f"not_{word}" for other in others} | dict.fromkeys(others, word)
