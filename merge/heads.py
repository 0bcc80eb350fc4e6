"""Task heads: class labels are matched by their names, never by their position."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from merge.errors import MismatchError

_GENERIC = re.compile(r"LABEL_\d+")


def label_names(config: Mapping[str, Any], count: int) -> tuple[str, ...]:
    """Return the class names in the order of the logits; LABEL_0, LABEL_1, ... where the config names none."""
    stated = config.get("id2label")
    if not stated:
        return tuple(f"LABEL_{i}" for i in range(count))
    return tuple(str(stated[key]) for key in sorted(stated, key=int))


def class_names(config: Mapping[str, Any], architecture: str) -> tuple[str, ...] | None:
    """Return the class names as transformers takes them from the config; None for an architecture without classes."""
    if not architecture.endswith(("ForSequenceClassification", "ForTokenClassification")):
        return None
    from merge.model import model_config

    stated = model_config(config).id2label
    return tuple(str(stated[key]) for key in sorted(stated))


def is_generic(names: tuple[str, ...]) -> bool:
    """Tell whether these are transformers' placeholder names, which say nothing about the classes."""
    return any(_GENERIC.fullmatch(name) for name in names)


def label_order(reference: tuple[str, ...], other: tuple[str, ...], source: str, other_source: str) -> tuple[int, ...]:
    """Return p such that class i of the reference is class p[i] of the other model.

    Names are compared without regard to case.

    Raises:
        MismatchError: the sets of names differ, or a name stands twice; lists both.
    """
    wanted, found = ([name.strip().casefold() for name in names] for names in (reference, other))
    for names, where in ((wanted, source), (found, other_source)):
        if len(set(names)) != len(names):
            raise MismatchError(f"{where}: a label stands twice in id2label: {', '.join(names)}.")
    if set(wanted) != set(found):
        raise MismatchError(
            f"label sets differ: {source} has {', '.join(reference)}; {other_source} has {', '.join(other)}. "
            "Classes are matched by name; set id2label in config.json of both to the same names."
        )
    return tuple(found.index(name) for name in wanted)
