"""Which weights of a checkpoint are stored as (inputs, outputs), the transpose of what torch's Linear stores."""

from __future__ import annotations

from merge.checkpoints.checkpoint import Checkpoint
from merge.checkpoints.transformers_model import meta_model


def transposed_weights(checkpoint: Checkpoint) -> frozenset[str]:
    """Return the canonical names of weights stored as (inputs, outputs), as transformers' Conv1D does (GPT-2).

    The architecture decides, not the shape: a square weight may be either. transformers is asked only where a shape
    says that the family has such layers at all.
    """
    if not _has_transposed(checkpoint):
        return frozenset()
    from transformers.pytorch_utils import Conv1D

    canonical = {checkpoint.written_name(name): name for name in checkpoint.tensors}
    modules = meta_model(checkpoint.config).named_modules()
    names = {f"{path}.weight" for path, module in modules if isinstance(module, Conv1D)}
    return frozenset(canonical[name] for name in names if name in canonical)


def _has_transposed(checkpoint: Checkpoint) -> bool:
    """Return whether a weight has one bias for each of its columns instead of its rows, as Conv1D has.

    Every family with Conv1D has such a weight that is not square: the one of queries, keys and values together.
    """
    shapes = checkpoint.shapes
    for name, shape in shapes.items():
        if name.endswith(".weight") and len(shape) == 2 and shape[0] != shape[1]:
            bias = shapes.get(f"{name.removesuffix('weight')}bias")
            if bias == (shape[1],):
                return True
    return False
