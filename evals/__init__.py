"""Measure merged models: scores on GLUE and HANS, loss barriers, paired comparisons.

    import evals

    evals.score(["merged/", "a/", "b/"], "mnli", data="validation_matched.jsonl")

Public names: `score`, `hans`, `barrier`, `line`, `basins`, `plane`, `monotonic`, `curve`, `simplex`, `features`,
`similarity`, `lesion`, `linearity`, `stitch`, `average_loss`, `compare`. They are imported when they are used, so that
`import evals` is instant. Everything else is private and may change.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from evals.paths.averages import average_loss
    from evals.run.api import barrier, compare, hans, line, score
    from evals.run.api_basins import basins
    from evals.run.inside.api import features, similarity
    from evals.run.inside.api_stitch import stitch
    from evals.run.inside.studies import lesion, linearity
    from evals.run.surface.api import curve, monotonic, plane, simplex

__all__ = [
    "average_loss",
    "barrier",
    "basins",
    "compare",
    "curve",
    "features",
    "hans",
    "lesion",
    "line",
    "linearity",
    "monotonic",
    "plane",
    "score",
    "similarity",
    "simplex",
    "stitch",
]
# Public name -> its module, where that is not evals.run.api.
_MODULES = {
    "average_loss": "evals.paths.averages",
    "basins": "evals.run.api_basins",
    "features": "evals.run.inside.api",
    "similarity": "evals.run.inside.api",
    **dict.fromkeys(("curve", "monotonic", "plane", "simplex"), "evals.run.surface.api"),
    **dict.fromkeys(("lesion", "linearity"), "evals.run.inside.studies"),
    "stitch": "evals.run.inside.api_stitch",
}


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used (PEP 562)."""
    if name not in __all__:
        raise AttributeError(f"module 'evals' has no attribute {name!r}. Public names: {', '.join(__all__)}.")
    from merge.run.api.arguments import checked

    function = checked(getattr(importlib.import_module(_MODULES.get(name, "evals.run.api")), name))
    globals()[name] = function
    return function


def __dir__() -> list[str]:
    return sorted(__all__)
