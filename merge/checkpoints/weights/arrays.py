"""Arrays: the few operations that the engine needs, on torch tensors and on numpy arrays.

Importing torch takes longer than averaging two BERTs, so runs whose methods take numpy arrays use numpy. Both kinds give the
same bytes.
"""

from __future__ import annotations

import gc
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

from merge.checkpoints.weights.read import StoredTensor, nbytes, torch_letters
from merge.errors import UsageError, brief, first_line

if TYPE_CHECKING:
    import torch
    from numpy.typing import NDArray
    from torch import Tensor

Array: TypeAlias = Any  # a tensor or a numpy array; one run has one kind

DTYPES = {
    "F64": "float64",
    "F32": "float32",
    "F16": "float16",
    "BF16": "bfloat16",
}  # safetensors' letters -> torch's name
ITEM_SIZES = {"float64": 8, "float32": 4, "float16": 2, "bfloat16": 2}
# The exponent bits of 16-bit floats: all of them are set in infinities and NaN alone.
EXPONENT_BITS = {"F16": 0x7C00, "BF16": 0x7F80}
# Bytes of float16, read and written; beyond, torch's faster casts make up for its import.
MAX_FLOAT16_BYTES = 1 << 30


class Arrays(Protocol):
    """The operations on one kind of arrays; dtypes in safetensors' letters (F32, BF16, I64)."""

    def dtype(self, array: Array) -> str:
        """Return the array's dtype."""
        ...

    def widen(self, array: Array, dtype: str) -> Array:
        """Return the array in the dtype of the arithmetic (F32, F64), where the arithmetic is done."""
        ...

    def cast(self, array: Array, dtype: str) -> Array:
        """Return the array in the dtype that is written, in main memory; rounded to nearest, ties to even."""
        ...

    def is_finite(self, array: Array) -> bool:
        """Return whether a floating-point array holds neither NaN nor infinity."""
        ...

    def equal(self, a: Array, b: Array) -> bool:
        """Return whether two arrays have the same dtype, shape and values."""
        ...

    def raw(self, array: Array) -> memoryview:
        """Return the bytes of an array in main memory."""
        ...

    def working(self) -> AbstractContextManager[None]:
        """Return the context that merges run in."""
        ...


@dataclass(frozen=True)
class TorchArrays:
    """Operations on torch tensors.

    Attributes:
        device: where the arithmetic is done.
    """

    device: str = "cpu"

    def dtype(self, array: Tensor) -> str:
        return torch_letters()[array.dtype]

    def widen(self, array: Tensor, dtype: str) -> Tensor:
        return array.to(self.device, torch_dtype(dtype))

    def cast(self, array: Tensor, dtype: str) -> Tensor:
        return array.cpu().to(torch_dtype(dtype))

    def is_finite(self, array: Tensor) -> bool:
        import torch

        # Minimum and maximum are NaN where any entry is, and an infinity is one of them.
        return not array.numel() or all(bool(torch.isfinite(end)) for end in torch.aminmax(array))

    def equal(self, a: Tensor, b: Tensor) -> bool:
        import torch

        return a.dtype == b.dtype and torch.equal(a, b)

    def raw(self, array: Tensor) -> memoryview:
        import torch

        return memoryview(array.detach().contiguous().reshape(-1).view(torch.uint8).numpy())  # type: ignore[arg-type]

    @contextmanager
    def working(self) -> Iterator[None]:
        """Run every torch operation in the thread that calls it: threads over tensors use the cores better."""
        import torch

        before = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            yield
        finally:
            torch.set_num_threads(before)


@dataclass(frozen=True)
class NumpyArrays:
    """Operations on numpy arrays. Numpy has no bfloat16: its void dtype of two bytes (V2) represents it."""

    def dtype(self, array: NDArray[Any]) -> str:
        kind, size = array.dtype.kind, 8 * array.dtype.itemsize
        return {"V": "BF16", "b": "BOOL"}.get(kind) or f"{kind.upper()}{size}"

    def widen(self, array: NDArray[Any], dtype: str) -> NDArray[Any]:
        if self.dtype(array) == "BF16":
            bits = array.view("<u2").astype("<u4")
            bits <<= 16
            array = bits.view("<f4")
        return array.astype("<f8" if dtype == "F64" else "<f4", copy=False)

    def cast(self, array: NDArray[Any], dtype: str) -> NDArray[Any]:
        if self.dtype(array) == dtype:
            return array
        if dtype not in EXPONENT_BITS:
            return self.widen(array, dtype)
        single = array.astype("<f4", copy=False)  # float64 too, as torch does
        return single.astype("<f2") if dtype == "F16" else _to_bfloat16(single)

    def is_finite(self, array: NDArray[Any]) -> bool:
        import numpy as np

        exponent = EXPONENT_BITS.get(self.dtype(array))
        if exponent is None:
            return bool(np.isfinite(array).all())
        return bool((array.view("<u2") & 0x7FFF).max(initial=0) < exponent)

    def equal(self, a: NDArray[Any], b: NDArray[Any]) -> bool:
        import numpy as np

        return a.dtype == b.dtype and np.array_equal(a, b)

    def raw(self, array: NDArray[Any]) -> memoryview:
        import numpy as np

        return memoryview(np.ascontiguousarray(array).reshape(-1).view(np.uint8))  # type: ignore[arg-type]

    def working(self) -> AbstractContextManager[None]:
        """Silence warnings of overflow: results are checked, and that error names the tensor."""
        import numpy as np

        return np.errstate(all="ignore")


def _to_bfloat16(single: NDArray[Any]) -> NDArray[Any]:
    """Return finite float32 numbers as bfloat16, their upper halves; rounded to nearest, ties to even."""
    bits = single.view("<u4")
    half = bits >> 16
    half &= 1
    half += 0x7FFF
    half += bits
    half >>= 16
    return half.astype("<u2").view("V2")


TORCH = TorchArrays()
NUMPY = NumpyArrays()


def torch_dtype(letters: str) -> torch.dtype:
    """Return torch's dtype of safetensors' letters."""
    from safetensors.torch import _TYPES

    dtype: torch.dtype = _TYPES[letters]
    return dtype


def fits_numpy(read: Iterable[StoredTensor], written: Iterable[tuple[str, tuple[int, ...]]]) -> bool:
    """Return whether numpy can read and write these tensors, no slower than torch with its import."""
    stored = list(read)
    if any(tensor.offset is None for tensor in stored):
        return False
    layout = [*((tensor.dtype, tensor.shape) for tensor in stored), *written]
    return sum(nbytes(dtype, shape) for dtype, shape in layout if dtype == "F16") <= MAX_FLOAT16_BYTES


def import_torch() -> None:
    """Import torch without garbage collection, which would look through half a million objects that all stay."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        import torch  # noqa: F401
    finally:
        if was_enabled:
            gc.enable()


def check_device(device: str) -> None:
    """Stop unless torch can compute on this device.

    Raises:
        UsageError: it cannot.
    """
    if device == "cpu":
        return
    import torch

    try:
        torch.zeros(1, device=device).add_(1).cpu()
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise UsageError(f"--device {device} cannot be used: {brief(first_line(error), 200)}") from error
