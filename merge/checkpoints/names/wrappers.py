"""Wrappers: parts of tensor names that the training program added, and that transformers does not know.

DistributedDataParallel names its model `module`, torch.compile `_orig_mod`, FSDP and activation checkpointing have names of
their own; a file that was saved through them has these parts in every name, one inside another, in front or within. A class
that holds the model as an attribute (`auto_model.`, `model.`, `0.auto_model.`) puts its own parts in front.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping

WRAPPERS = frozenset(
    {
        "module", "_orig_mod", "_fsdp_wrapped_module", "_fpw_module", "_checkpoint_wrapped_module", "_forward_module",
        "_flat_param", "_ddp_params_and_buffers_to_ignore",
    }
)  # fmt: skip
OUTER_PARTS = 3  # in front of all names: `0.auto_model.`, `model.encoder.bert_model.`


def without_wrappers(name: str) -> str:
    """Return a name without the parts that wrappers add: `module._orig_mod.bert.pooler.dense.bias` as BERT has it."""
    parts = [part for part in name.split(".") if part not in WRAPPERS]
    return ".".join(parts) or name


def outer_prefixes(names: Iterable[str]) -> list[str]:
    """Return what may stand in front of the names of a model: their first part, first two, first three."""
    beginnings: dict[str, None] = {}
    for name in names:
        parts = name.split(".")
        for count in range(1, min(OUTER_PARTS, len(parts) - 1) + 1):
            beginnings[".".join(parts[:count]) + "."] = None
    return list(beginnings)


def completing_prefixes(lacking: Collection[str], targets: Mapping[str, Mapping[str, str]]) -> list[str]:
    """Return the prefixes without which the names have all that is lacking; several where a file holds several models.

    Args:
        lacking: the tensors of the base model that no name of the file means.
        targets: prefix -> name -> what it means without the prefix.
    """
    complete = [p for p, meant in targets.items() if lacking and set(lacking) <= set(meant.values())]
    # `model.` and `model.bert.` both lead to the base model; the shorter one leads to the head too.
    return [p for p in complete if not any(p != other and p.startswith(other) for other in complete)]
