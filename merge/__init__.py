"""Align, merge and take apart Hugging Face transformer models.

    import merge

    merged = merge.merge(["a/", "b/"], align="weights")     # folders, Hub ids or live models, mixed
    merged.save("merged/")

Public names: `merge`, `align`, `edit`, `compare_layers`, `stitch`, `prune_heads`, `prune_neurons`, `prune_embeddings`,
`load`, `push`, `card`, `verify`, `statistics`, `MergeError`, `__version__`. They are imported when they are used, so that
`import merge` is instant. Everything else is private and may change.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from merge.errors import MergeError
    from merge.run.api.files import card, statistics, verify
    from merge.run.api.layers import compare_layers, edit
    from merge.run.api.models import align, load, merge, push
    from merge.run.api.pruning import prune_embeddings, prune_heads, prune_neurons
    from merge.run.api.stitch import stitch

__version__ = "0.1.0"

__all__ = [
    "MergeError",
    "__version__",
    "align",
    "card",
    "compare_layers",
    "edit",
    "load",
    "merge",
    "prune_embeddings",
    "prune_heads",
    "prune_neurons",
    "push",
    "statistics",
    "stitch",
    "verify",
]

_HOMES = {
    "MergeError": "merge.errors",
    **dict.fromkeys(("align", "load", "merge", "push"), "merge.run.api.models"),
    **dict.fromkeys(("card", "statistics", "verify"), "merge.run.api.files"),
    **dict.fromkeys(("compare_layers", "edit"), "merge.run.api.layers"),
    "stitch": "merge.run.api.stitch",
    **dict.fromkeys(("prune_embeddings", "prune_heads", "prune_neurons"), "merge.run.api.pruning"),
}


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used (PEP 562)."""
    if name not in _HOMES:
        raise AttributeError(f"module 'merge' has no attribute {name!r}. Public names: {', '.join(__all__)}.")
    public = getattr(importlib.import_module(_HOMES[name]), name)
    if isinstance(public, type):
        return public
    from merge.run.api.arguments import checked

    globals()[name] = function = checked(public)
    return function


def __dir__() -> list[str]:
    return sorted(__all__)
