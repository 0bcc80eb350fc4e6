"""One permutation table per architecture family; ARCHITECTURES lists them by model type."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from merge.architectures.bert import bert
from merge.errors import SpecError, nearest
from merge.spec import PermutationSpec

ARCHITECTURES: dict[str, Callable[[Mapping[str, Any]], PermutationSpec]] = {
    "bert": bert,
}


def spec_for(config: Mapping[str, Any]) -> PermutationSpec:
    """Return the permutation spec of a config.

    Raises:
        SpecError: the family or the task head has no table; names the nearest that has.
    """
    model_type = str(config.get("model_type"))
    if model_type not in ARCHITECTURES:
        raise SpecError(
            f"no permutation table for model type {model_type!r}.{nearest(model_type, ARCHITECTURES)} "
            "Merge without alignment: --align none."
        )
    return ARCHITECTURES[model_type](config)
