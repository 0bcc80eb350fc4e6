"""The rows of activations at sites: one for each token that is not padding, or for each text, seen in one forward pass."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from evals.inside.sites import Site
from merge.checkpoints.hooks import token_mask, token_rows, watching
from merge.errors import UsageError

if TYPE_CHECKING:
    from torch import Tensor

    from merge.checkpoints.inputs import Batch


@dataclass(frozen=True)
class Rows:
    """The activations of one batch at a site, padding left out.

    Attributes:
        values: (rows, units), on the model's device.
        texts: for each row, the number of its text in the batch.
        pooled: whether there is one row a text, and not one a token.
    """

    values: Tensor
    texts: Tensor
    pooled: bool


def see_sites(model: Any, batch: Batch, sites: Iterable[Site], see: Any) -> Any:
    """Run one batch and call `see(site, rows)` at every site, in the order of the forward pass; return the model's output.

    Rows are the model's own memory where no padding is cut out: copy what is kept.

    Args:
        sites: of `sites_of`; several may share a module.
        see: takes (Site, Rows).
    Raises:
        UsageError: the batch has no attention mask; the model's code runs a module without calling it, past all hooks.
    """
    import torch

    batch = {name: tensor.to(model.device) for name, tensor in batch.items()}
    mask = token_mask(batch)
    if mask is None:
        raise UsageError("sites are rows of texts: the batch has no attention mask.")
    texts, each = mask.nonzero()[:, 0], torch.arange(len(mask), device=mask.device)
    at: dict[str, dict[int, list[Site]]] = {}
    unseen = {site.name: site for site in sites}
    for site in unseen.values():
        at.setdefault(site.address, {}).setdefault(site.run, []).append(site)
    runs = dict.fromkeys(at, 0)

    def show(site: Site, activation: Tensor, order: str = "") -> None:
        unseen.pop(site.name, None)
        pooled = activation.ndim == 2 and len(activation) == len(mask)
        see(site, Rows(token_rows(activation, mask, order), each if pooled else texts, pooled))

    def watch(address: str, activation: Tensor) -> None:
        run, runs[address] = runs[address], runs[address] + 1
        order = address.split(":")[2] if address.count(":") > 1 else ""
        for site in at[address].get(run, ()):
            show(site, activation, order)

    with torch.inference_mode(), watching(model, [address for address in at if address], watch):
        output = model(**batch)
    for site in at.get("", {}).get(0, ()):
        show(site, output.logits)
    for site in unseen.values():
        raise UsageError(
            f"the site {site.name!r} of {type(model).__name__} cannot be read: its code does not call the module "
            f"{site.module}, where the activation is. Name other sites."
        )
    return output
