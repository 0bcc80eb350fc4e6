"""Every merge that mergekit has too gives mergekit's numbers; skipped where mergekit is not installed."""

from __future__ import annotations

import dataclasses
import zlib
from typing import Any

import pytest
import torch
from contracts.test_methods import CASES
from formulas.case import Case, Peer
from torch import Tensor

pytest.importorskip("mergekit", reason="mergekit is not installed")

from mergekit.merge_methods.api import merge_tensors
from mergekit.merge_methods.registry import registered_methods

PEERS = {name: case for name, case in CASES.items() if case.peer is not None}
SHAPES = [(), (11,), (7, 5), (2, 3, 4)]
# mergekit is told to compute in float32 where we do: left alone it computes several methods in the stored type. What is
# then rounded to the stored type may fall on either side of a tie, so the bound is one unit in the last place. In float64
# mergekit adds 1e-8 to lengths (multislerp) and takes angles below 1e-9 for none (karcher); in float32 both sum norms in
# another order.
BOUNDS = {torch.float64: 2e-8, torch.float32: 1e-5, torch.bfloat16: 2**-7, torch.float16: 2**-10}

# What mergekit registers and no case is compared with, and why.
NOT_COMPARED: dict[str, str] = {}
# Cases that rightly give other numbers for a tensor without axes, and why.
KEEPS_ONE = "a fraction of one entry is that entry; mergekit rounds it down to none"
OTHER_SCALAR = {
    "breadcrumbs half": KEEPS_ONE,
    "breadcrumbs of five": KEEPS_ONE,
    "sce of five": KEEPS_ONE,
    "karcher of five": "numbers of both signs have no mean direction: ours averages them, mergekit takes the majority's sign",
}


def drawn(case: Case, shape: tuple[int, ...], dtype: torch.dtype) -> tuple[list[Tensor], list[Tensor | None]]:
    """Return a tensor of every model, and the bases to try: none, one, or both where it is optional.

    In the two-byte types values lie on a grid of 1/64 and no two entries of a model are equally far from the base: of
    entries that tie, mergekit's trimming keeps whichever its sort puts first, ours keeps all.
    """
    generator = torch.Generator().manual_seed(zlib.crc32(repr(shape).encode()))
    *tensors, base = (torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(case.models + 1))
    if dtype.itemsize == 2:
        base, size = base.mul(20).round() / 64, base.numel()
        steps = [(1 + torch.randperm(size, generator=generator)).reshape(shape) / 64 for _ in tensors]
        tensors = [base + step * tensor.sign() for step, tensor in zip(steps, tensors, strict=True)]
    tensors, base = [tensor.to(dtype) for tensor in tensors], base.to(dtype)
    bases: dict[str, list[Tensor | None]] = {"none": [None], "required": [base], "optional": [None, base]}
    return tensors, bases[case.kind.base]


def working(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


def ours(case: Case, tensors: list[Tensor], base: Tensor | None) -> Tensor:
    """Merge as the engine does: in float32 or float64, one cast at the end."""
    dtype = tensors[0].dtype
    wide = [tensor.to(working(dtype)) for tensor in tensors]
    context = case.context(tuple(base.shape if base is not None else tensors[0].shape), dtype=working(dtype))
    return case.make()(wide, None if base is None else base.to(working(dtype)), context).to(dtype)


def theirs(peer: Peer, tensors: list[Tensor], base: Tensor | None) -> Tensor:
    """Merge with mergekit; where it calls the first of two models the base (slerp, nearswap) and we do not, so it is."""
    dtype, given = tensors[0].dtype, [tensor.clone() for tensor in tensors]
    method = next(method for method in registered_methods() if method.spec.name == peer.method)
    first_is_base = base is None and method.spec.contract.base.value == "required"
    if base is not None:
        given.insert(0, base.clone())
    parameters: dict[str, Any] = dict(peer.parameters)
    for key in {key for model in peer.per_model for key in model}:
        parameters[key] = [model[key] for model in peer.per_model]
    return merge_tensors(
        given,
        method,
        parameters=parameters,
        base_index=0 if base is not None or first_is_base else None,
        dtype=working(dtype),
        out_dtype=dtype,
    )


def apart(a: Tensor, b: Tensor, dtype: torch.dtype) -> bool:
    """Say whether two results differ by more than the bound of the stored type."""
    bound = BOUNDS[dtype]
    return not torch.allclose(a.double(), b.double(), rtol=bound, atol=bound if dtype.itemsize > 2 else 1e-5)


def peer_of(case: Case) -> Peer:
    assert case.peer is not None
    return case.peer


@pytest.mark.parametrize("dtype", BOUNDS, ids=str)
@pytest.mark.parametrize("name", PEERS)
def test_the_same_merge_gives_the_same_numbers(name: str, dtype: torch.dtype) -> None:
    """On every shape, but for numbers where mergekit is declared to differ."""
    case = PEERS[name]
    for shape in (shape for shape in SHAPES if shape != () or name not in OTHER_SCALAR):
        tensors, bases = drawn(case, shape, dtype)
        for base in bases:
            mine, peers = ours(case, tensors, base), theirs(peer_of(case), tensors, base)
            assert (mine.dtype, mine.shape) == (peers.dtype, peers.shape)
            assert not apart(mine, peers, dtype), (shape, mine, peers)


@pytest.mark.parametrize("name", OTHER_SCALAR)
def test_what_is_said_to_differ_for_a_number_does(name: str) -> None:
    """An exception that is no longer one must go."""
    case = PEERS[name]
    tensors, (base,) = drawn(case, (), torch.float64)
    assert apart(ours(case, tensors, base), theirs(peer_of(case), tensors, base), torch.float64)


def changed(peer: Peer) -> Peer | None:
    """Return the peer with one number or flag of its settings changed, or None where it has none that matters."""
    if peer.per_model:
        key, value = next(iter(peer.per_model[0].items()))
        return dataclasses.replace(peer, per_model=({**peer.per_model[0], key: value / 2 + 0.1}, *peer.per_model[1:]))
    for key, value in peer.parameters.items():
        if key in ("tol", "max_iter"):  # how the answer is searched for
            continue
        other = (not value) if isinstance(value, bool) else value / 2 + 0.1
        return dataclasses.replace(peer, parameters={**peer.parameters, key: other})
    return None


@pytest.mark.parametrize("name", PEERS)
def test_another_setting_gives_other_numbers(name: str) -> None:
    """The negative control of the comparison; a method without settings is given another model instead."""
    case = PEERS[name]
    tensors, bases = drawn(case, (7, 5), torch.float32)
    other, given = changed(peer_of(case)), [tensor.clone() for tensor in tensors]
    if other is None:
        other, given[0] = peer_of(case), tensors[0] * 1.1
    for base in bases:
        assert apart(ours(case, tensors, base), theirs(other, given, base), torch.float32)


def test_every_method_of_mergekit_is_compared_or_said_not_to_be() -> None:
    """A method that mergekit has and no case names is a gap that nobody decided on."""
    compared = {peer_of(case).method for case in PEERS.values()}
    registered = {method.spec.name for method in registered_methods()}
    assert compared | set(NOT_COMPARED) == registered
    assert not compared & set(NOT_COMPARED)
