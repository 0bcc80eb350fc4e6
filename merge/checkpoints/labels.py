"""Class labels of task heads, matched by their names, never by their position."""

from __future__ import annotations

import re

from merge.checkpoints.structure import Structure
from merge.errors import MismatchError

_GENERIC = re.compile(r"LABEL_\d+")


def class_names(structure: Structure) -> tuple[str, ...] | None:
    """Return the class names in the order of the logits; None for an architecture without classes."""
    if not structure.architecture.endswith(("ForSequenceClassification", "ForTokenClassification")):
        return None
    return structure.label_names


def is_generic(names: tuple[str, ...]) -> bool:
    """Return whether these are transformers' placeholder names (LABEL_0), which do not tell the classes apart."""
    return any(_GENERIC.fullmatch(name) for name in names)


def fold(names: tuple[str, ...]) -> list[str]:
    """Return names as they are compared: without regard to case and to spaces around them."""
    return [name.strip().casefold() for name in names]


def label_order(reference: tuple[str, ...], other: tuple[str, ...], source: str, other_source: str) -> tuple[int, ...]:
    """Return p such that class i of the reference is class p[i] of the other model.

    Names are compared without regard to case.

    Raises:
        MismatchError: the sets of names differ, or a name occurs twice; lists both.
    """
    ours, theirs = fold(reference), fold(other)
    for names, model in ((ours, source), (theirs, other_source)):
        if len(set(names)) != len(names):
            raise MismatchError(f"{model}: a label occurs twice in id2label: {', '.join(names)}.")
    if set(ours) != set(theirs):
        raise MismatchError(
            f"label sets differ: {source} has {', '.join(reference)}; {other_source} has {', '.join(other)}. "
            "Classes are matched by name: set id2label in config.json of both to the same names, or say what becomes of the "
            "heads: --heads average, reference, drop or keep-all."
        )
    return tuple(theirs.index(name) for name in ours)


def numbering_notes(structure: Structure, source: str) -> tuple[str, ...]:
    """Return a note where label2id numbers the same classes otherwise than id2label, whose order is that of the logits."""
    names, numbers = fold(class_names(structure) or ()), structure.config.get("label2id")
    if not isinstance(numbers, dict):
        return ()
    stated = {name.strip().casefold(): number for name, number in numbers.items()}
    if stated.keys() != set(names) or all(stated[name] == place for place, name in enumerate(names)):
        return ()
    return (f"{source}: label2id in config.json numbers the classes otherwise than id2label, which is what was read",)
