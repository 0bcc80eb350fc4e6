"""Activation matching: units that respond alike to the same text are the same unit.

Maximises the sum over matched units of their Pearson correlation on calibration text, exactly, axis by axis (an
activation does not depend on how the other axes are ordered, so no sweeps are needed). Cross-moments are streamed:
one batch of activations is alive at a time. Padding is masked out.

Source: Li et al. 2016, arXiv:1511.07543; Ainsworth et al. 2023, arXiv:2209.04836, section 3.1.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from merge.alignment.assignment import match_axis, match_heads
from merge.alignment.pair import Alignment, Batch, Matcher, Pair, check_kinds
from merge.errors import AlignmentError
from merge.inputs import attended
from merge.permutation import Permutation, identity

# A unit whose variance is below this share of the average varies by rounding only; it correlates with nothing.
DEAD = 1e-10


class Moments:
    """Running cross-moments of two activations, float32 products summed in float64, about the first batch's mean."""

    def __init__(self) -> None:
        self.count = 0

    def add(self, a: Float[Tensor, "rows m"], b: Float[Tensor, "rows n"]) -> None:
        """Take in one batch of rows; row i of a and of b belong to the same token."""
        if self.count == 0:
            self.shift = (a.mean(0), b.mean(0))
            self.sums = [torch.zeros(x.shape[1], dtype=torch.float64) for x in (a, b)]
            self.squares = [torch.zeros(x.shape[1], dtype=torch.float64) for x in (a, b)]
            self.cross = torch.zeros(a.shape[1], b.shape[1], dtype=torch.float64)
        a, b = a - self.shift[0], b - self.shift[1]
        for k, x in enumerate((a, b)):
            self.sums[k] += x.double().sum(0)
            self.squares[k] += x.double().square().sum(0)
        self.cross += a.T @ b
        self.count += len(a)

    def correlation(self) -> Float[Tensor, "m n"]:
        """Return Pearson correlations, float64; 0 for a unit that never varies."""
        means = [s / self.count for s in self.sums]
        spread = [(q / self.count - m.square()).clamp_min(0) for q, m in zip(self.squares, means, strict=True)]
        factor = [torch.where(v > DEAD * v.mean(), v, torch.inf).rsqrt() for v in spread]
        covariance = self.cross / self.count - means[0][:, None] * means[1]
        return covariance * factor[0][:, None] * factor[1]


def match_activations(pair: Pair) -> Matcher:
    """Return the matcher that aligns b to a by how their units respond to the pair's batches.

    Raises:
        AlignmentError: there are no batches: activations need text and a tokenizer.
    """
    if not pair.batches:
        raise AlignmentError("activation matching needs calibration text and a tokenizer. Use --align weights without.")
    correlations = {axis: _mean_correlation(sites) for axis, sites in _collect(pair).items()}

    def match(kinds: frozenset[str]) -> Alignment:
        check_kinds(pair, kinds)
        return _solve(pair, correlations, kinds)

    return match


def _mean_correlation(sites: list[Moments]) -> Tensor:
    return torch.stack([site.correlation() for site in sites]).mean(0)


def _collect(pair: Pair) -> dict[str, list[Moments]]:
    """Run both models over the batches and return the cross-moments of every tap, by axis."""
    models = [pair.model(pair.a), pair.model(pair.b)]
    taps = {axis: sites for axis, sites in pair.spec.taps.items() if axis in pair.movable}
    moments = {site: Moments() for sites in taps.values() for site in sites}
    with _record(models[0], moments) as seen_a, _record(models[1], moments) as seen_b, torch.inference_mode():
        for batch in pair.progress(pair.batches, "comparing activations"):
            for model in models:
                model(**batch)
            for site, sums in moments.items():
                sums.add(_rows(seen_a[site], batch), _rows(seen_b[site], batch))
    return {axis: [moments[site] for site in sites] for axis, sites in taps.items()}


def _rows(activation: Tensor, batch: Batch) -> Tensor:
    """Return activations as (rows, units): tokens that are not padding, or one row a text for pooled activations."""
    return activation[attended(batch)] if activation.ndim == 3 else activation


@contextmanager
def _record(model: Any, sites: Mapping[str, object]) -> Iterator[dict[str, Tensor]]:
    """Yield a dict that holds, after each forward pass, the activation at every `module:in` or `module:out` site."""
    seen: dict[str, Tensor] = {}
    modules = dict(model.named_modules())
    handles = []
    for site in sites:
        path, side = site.rsplit(":", 1)
        module = modules[path if path in modules else path.removeprefix(f"{model.base_model_prefix}.")]

        def keep_in(_module: Any, inputs: tuple[Tensor, ...], site: str = site) -> None:
            seen[site] = inputs[0]

        def keep_out(_module: Any, _inputs: Any, output: Any, site: str = site) -> None:
            seen[site] = output[0] if isinstance(output, tuple) else output

        handles.append(
            module.register_forward_pre_hook(keep_in) if side == "in" else module.register_forward_hook(keep_out)
        )
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def _solve(pair: Pair, correlations: Mapping[str, Tensor], kinds: frozenset[str]) -> Alignment:
    """Match every axis of these kinds on its correlations; the objective is the mean correlation of matched units."""
    still = identity(pair.spec, pair.shapes)
    movable, outer = pair.axes_of(kinds), still.outer
    indices = dict(still.indices)
    for axis in movable:
        if axis in outer or axis in outer.values():
            continue
        indices[axis] = match_axis(_gain(correlations, axis))
    for heads in dict.fromkeys(outer[axis] for axis in movable if axis in outer):
        inner = [axis for axis in outer if outer[axis] == heads]
        count, gains = still.indices[heads].numel(), []
        for axis in inner:
            gain = _gain(correlations, axis)
            gains.append(gain.reshape(count, -1, count, len(gain) // count))
        indices[heads], orders = match_heads(gains)
        indices |= dict(zip(inner, orders, strict=True))
    found = Permutation(indices, outer)
    values = [_matched(pair, correlations, movable, p) for p in (still, found)]
    return Alignment(found, tuple(k for k in pair.kinds() if k in kinds), tuple(values))


def _gain(correlations: Mapping[str, Tensor], axis: str) -> Tensor:
    if axis not in correlations:
        raise AlignmentError(f'the spec names no activation for axis "{axis}"; it cannot be matched by activations.')
    return correlations[axis]


def _matched(pair: Pair, correlations: Mapping[str, Tensor], movable: Sequence[str], p: Permutation) -> float:
    """Return the mean correlation over all units of the movable axes as p matches them."""
    total, units = 0.0, 0
    for axis in movable:
        if axis not in correlations:
            continue
        index = p.indices[axis]
        if axis in p.outer:
            index = (p.indices[p.outer[axis]][:, None] * index.shape[1] + index).reshape(-1)
        total += float(correlations[axis].gather(1, index[:, None]).sum())
        units += len(index)
    return total / max(units, 1)
