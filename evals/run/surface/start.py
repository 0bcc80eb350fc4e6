"""The weights that a fine-tune started from: a checkpoint of its class, or the pretrained model and a new head."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from merge.errors import MismatchError, UsageError, some

if TYPE_CHECKING:
    from torch import Tensor

    from merge.checkpoints.checkpoint import Checkpoint

HEAD_DRAWN = "the head's start: drawn as transformers draws a new head, after torch.manual_seed({}) ({})"
HEAD_UNKNOWN = (
    "the head's start is unknown: {} has none ({}). The head of each later model is kept along its line; --head-seed draws "
    "one"
)


@dataclass(frozen=True)
class Start:
    """The weights that training started from.

    Attributes:
        weights: by canonical name; without those of a head whose start is unknown.
        head: how its head started, in words.
        unknown: names of the tensors whose start is unknown.
        notes: for the user.
    """

    weights: Mapping[str, Tensor]
    head: str
    unknown: frozenset[str] = frozenset()
    notes: tuple[str, ...] = ()


def read_start(init: Checkpoint, final: Checkpoint, head_seed: int | None) -> Start:
    """Return the weights that a fine-tune started from: a checkpoint of its class, or the pretrained model and a new head.

    Raises:
        MismatchError: the start is of another family or size.
        UsageError: a head seed is given, and the start has a head.
    """
    from merge.checkpoints.checkpoint import finite

    shared = init.tensors.keys() & final.tensors.keys()
    wrong = [
        f"{name} is {init.tensors[name].shape}, not {final.tensors[name].shape}"
        for name in sorted(shared)
        if init.tensors[name].shape != final.tensors[name].shape
    ]
    missing = frozenset(final.tensors.keys() - shared)
    inside = {name for name in missing if name.startswith(f"{final.structure.prefix}.") and "pooler" not in name}
    if init.model_type != final.model_type or wrong or inside:
        faults = wrong or [f"it has no {name}" for name in sorted(inside)] or [f"it is a {init.architecture}"]
        raise MismatchError(
            f"{init.source} is not what {final.source} ({final.architecture}) was trained from: {some(faults, separator='; ')}."
        )
    left = sorted(init.tensors.keys() - shared)
    notes = (f"{init.source}: {some(left)} are no part of {final.source}, and are left out",) if left else ()
    weights = {name: finite(init, name) for name in sorted(shared)}
    if not missing:
        if head_seed is not None:
            raise UsageError(f"--head-seed draws a head, and {init.source} has its own. Leave --head-seed out.")
        return Start(weights, f"the head's start: that of {init.source}", notes=notes)
    names = some(sorted(missing))
    if head_seed is None:
        return Start(weights, HEAD_UNKNOWN.format(init.source, names), missing, notes)
    drawn = _drawn_head(init, final, head_seed)
    return Start(
        {**weights, **{name: drawn[final.written_name(name)] for name in missing}},
        HEAD_DRAWN.format(head_seed, names),
        notes=notes,
    )


def _drawn_head(init: Checkpoint, final: Checkpoint, seed: int) -> dict[str, Tensor]:
    """Return the state of the final model's class as `from_pretrained` makes it of the start, after setting torch's seed."""
    import torch

    from merge.checkpoints.transformers_model import model_class, model_config, quiet

    state = torch.get_rng_state()
    try:
        torch.manual_seed(seed)
        with quiet():
            model = model_class(final.config).from_pretrained(str(init.folder), config=model_config(final.config))
    finally:
        torch.set_rng_state(state)
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}
