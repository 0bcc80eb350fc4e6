"""The permutation table of a plain multi-layer perceptron, with or without LayerNorm.

    hidden{i}   the hidden units of layer i, one order for each layer.

Between a linear map and the next a ReLU lets positive scales through: relu(s x) = s relu(x) for s > 0. With a LayerNorm
before the activation the scale goes into its gain and bias, and the weights that the norm reads are only permuted: a scale
of one unit would change the norm's mean and variance of all.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from merge.errors import SpecError, nearest
from merge.symmetry.architectures.encoder import activation_group
from merge.symmetry.spec import PermutationSpec

ARCHITECTURE = "MLPForSequenceClassification"


def mlp(config: Mapping[str, Any]) -> PermutationSpec:
    """Return the spec of a multi-layer perceptron that classifies rows of numbers.

    Raises:
        SpecError: it has another head.
    Source: the exact symmetries of ReLU networks; Entezari et al. 2022, arXiv:2110.06296, section 2.
    """
    named = str((config.get("architectures") or ["?"])[0])
    if named != ARCHITECTURE:
        raise SpecError(f"the mlp table has no task head {named!r}.{nearest(named, [ARCHITECTURE])}")
    layers, norm = int(config["num_hidden_layers"]), bool(config["layer_norm"])
    lines: dict[str, str] = {}
    for i in range(layers):
        reads = f"hidden{i - 1}'" if i else "-"
        writes = f"hidden{i}=" if norm else f"hidden{i}"
        lines |= {f"layers.{i}.dense.weight": f"{writes} {reads}", f"layers.{i}.dense.bias": writes}
        if norm:
            lines |= {f"layers.{i}.norm.weight": f"hidden{i}", f"layers.{i}.norm.bias": f"hidden{i}"}
    lines |= {
        "classifier.weight": f"labels hidden{layers - 1}'" if layers else "labels -",
        "classifier.bias": "labels",
    }
    readers = [*(f"layers.{i}.dense" for i in range(1, layers)), "classifier"]
    return PermutationSpec(
        family="mlp",
        lines=lines,
        taps={f"hidden{i}": (f"{readers[i]}:in:all",) for i in range(layers)},
        outputs={"logits": "- labels"},
        named=frozenset({"labels"}),
        groups={"hidden": activation_group(config.get("hidden_act", "relu"))},
    )
