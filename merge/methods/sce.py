"""SCE: select the entries in which the models differ most, weight models by energy, erase minority signs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from merge.methods.checks import check_flag, check_number
from merge.methods.context import EMPTY, TensorContext
from merge.methods.method import Method
from merge.methods.task_vectors import base_of, deltas, elected_sign, kept_count, sum_agreeing

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Sce(Method):
    """Return theta_0 + the mean of the t_m that agree in sign, weighted by w_m = |t_m|^2 / sum_k |t_k|^2 (per tensor).

    Select: t_m keeps the entries of task vector m with the largest variance over the models, the same entries for all: a
    fraction `select` of those with any variance, at least one, and all that tie. Calculate: the w_m, equal where every t_m
    is 0. Erase: each entry elects the sign of sum_m t_m, + where that is 0, and only models with that sign count.
    The authors' code (FuseChat, sce_merging.py) differs from their text: it selects entries for the weights w_m alone, and
    elects signs and sums over the whole task vectors. mergekit follows the text, as this does.

    Attributes:
        select: fraction of entries selected (tau of the paper, select_topk of mergekit); 1 selects all.
        normalize: divide by the sum of the weights of the agreeing models, as mergekit does; without it the weight of
            models that disagree is lost.
        exact_count: select exactly int(select * entries that vary), which may be none: of entries that tie, the ones that
            torch.topk takes, as in mergekit.
        floor: smallest energy that tells models apart: where the mean squares of all t_m add up to less, the models weigh
            alike, and a sum of weights below it counts as it. mergekit has 1e-6, and a fine-tune's task vectors are often
            smaller in every tensor: all its models then weigh alike.
    Source: Wan et al. 2024, "FuseChat: knowledge fusion of chat models", arXiv:2408.07990 (SCE).
    """

    select: float = 1.0
    normalize: bool = True
    exact_count: bool = False
    floor: float = 0.0

    name = "sce"
    base = "required"

    def __post_init__(self) -> None:
        check_number(self.name, "select", self.select, 0, 1, above=True)
        check_flag(self.name, "normalize", self.normalize)
        check_flag(self.name, "exact_count", self.exact_count)
        check_number(self.name, "floor", self.floor, low=0.0)

    @property
    def as_stored(self) -> bool:
        """Whether matrices are taken as stored: which entries of a tie come first depends on it."""
        return self.exact_count

    def __call__(self, tensors: Sequence[Tensor], base: Tensor | None = None, context: TensorContext = EMPTY) -> Tensor:
        import torch

        origin = base_of(self.name, base)
        selected: list[Tensor] = list(deltas(tensors, origin))
        if self.select < 1:
            chosen = topk_mask(selected, self.select) if self.exact_count else select_mask(tensors, self.select)
            unselected = chosen.logical_not_()
            selected = [delta.masked_fill_(unselected, 0) for delta in selected]
        weights = energy_weights(selected, self.floor)
        sign = elected_sign(selected, (1.0,) * len(selected))
        return torch.addcmul(origin, sum_agreeing(selected, weights, sign, self.normalize, self.floor), sign)


def topk_mask(task_vectors: Sequence[Tensor], select: float) -> Tensor:
    """Return the mask of int(select * entries that vary) entries, by torch's variance and topk."""
    import torch

    if not task_vectors[0].numel():
        return torch.zeros_like(task_vectors[0], dtype=torch.bool)
    variance = torch.stack(list(task_vectors)).var(dim=0, unbiased=False)
    count = int(torch.count_nonzero(variance) * select)
    mask = torch.zeros(variance.numel(), dtype=torch.bool, device=variance.device)
    mask[torch.topk(variance.reshape(-1), count).indices] = True
    return mask.reshape(variance.shape)


def select_mask(tensors: Sequence[Tensor], select: float) -> Tensor:
    """Return the mask of the entries with the largest variance over the models: a fraction `select` of those that vary."""
    import numpy as np
    import torch

    # Offsets from the first model instead of the mean are exactly 0 where all models are equal.
    offsets = [tensor - tensors[0] for tensor in tensors]
    mean, variance = torch.zeros_like(tensors[0]), torch.zeros_like(tensors[0])
    for offset in offsets:
        mean.add_(offset, alpha=1 / len(offsets))
    for offset in offsets:
        offset.sub_(mean)
        variance.addcmul_(offset, offset)
    varying = int(variance.count_nonzero())
    if varying == 0:
        return variance > 0
    first = variance.numel() - kept_count(select, varying)
    return variance >= float(np.partition(variance.flatten().cpu().numpy(), first)[first])


def energy_weights(task_vectors: Sequence[Tensor], floor: float = 0.0) -> tuple[float, ...]:
    """Return each task vector's share of the sum of all squared entries, in float64; equal shares if that sum is 0.

    Equal too where the sum of the mean squares is below the floor.
    """
    import numpy as np

    flat = [delta.flatten().cpu().numpy() for delta in task_vectors]
    # numpy's einsum, unlike torch's sums, is the same for every number of threads, and squares in float64 as it goes.
    energies = [float(np.einsum("i,i->", x, x, dtype=np.float64)) for x in flat]
    total = sum(energies)
    if total > 0 and total / len(flat[0]) >= floor:
        return tuple(energy / total for energy in energies)
    return (1 / len(flat),) * len(flat)
