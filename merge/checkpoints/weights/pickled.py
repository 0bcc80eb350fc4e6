"""Read .bin files: weights-only pickles, whose tensors are no larger than what the file holds."""

from __future__ import annotations

import mmap
import pickle
import re
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from merge.errors import CheckpointError, brief, first_line, some

if TYPE_CHECKING:
    from torch import Tensor

MAX_EXPANDED_BYTES = 1 << 26  # of a tensor of a pickle whose entries share their bytes
# Bytes of an entry by the name of its storage; one byte where it is not among them.
ENTRY_BYTES = {"DoubleStorage": 8, "LongStorage": 8, "ComplexFloatStorage": 8, "ComplexDoubleStorage": 16} | {
    "FloatStorage": 4, "IntStorage": 4, "HalfStorage": 2, "BFloat16Storage": 2, "ShortStorage": 2,
}  # fmt: skip


def load_pickle(path: Path) -> dict[str, Tensor]:
    """Return the tensors of a .bin, loaded with weights_only: tensors, never code.

    Raises:
        CheckpointError: it cannot be read, holds something else than dense tensors, or states more bytes than it holds.
    """
    import torch

    try:
        # Files from before torch 1.6 are no zip archives, and those cannot be mapped.
        archive = zipfile.is_zipfile(path)
        if not archive:
            _check_size(path)
        loaded = torch.load(path, map_location="cpu", weights_only=True, mmap=archive)
    except CheckpointError:
        raise
    # Where a pickle is broken decides which error the reader raises.
    except Exception as error:
        raise CheckpointError(
            f"{path}: cannot be read as a weights-only PyTorch file ({type(error).__name__}: {_sentence(error)}). "
            "Save it again with save_pretrained, which writes safetensors."
        ) from error
    if not isinstance(loaded, dict) or not all(
        isinstance(name, str) and isinstance(value, torch.Tensor) for name, value in loaded.items()
    ):
        raise CheckpointError(
            f"{path}: expected a mapping of names to tensors, as save_pretrained wrote{_found_instead(loaded)}."
        )
    return {name: _dense(value, f"{path}: {brief(name)}") for name, value in loaded.items()}


def _found_instead(loaded: Any) -> str:
    """Return what a file holds that is no mapping of names to tensors, and which entry of it is one."""
    import torch

    if not isinstance(loaded, dict):
        return f", found a {type(loaded).__name__}"
    inner = [
        key for key, value in loaded.items()
        if isinstance(value, dict) and value and all(isinstance(part, torch.Tensor) for part in value.values())
    ]  # fmt: skip
    advice = f". Save its entry {brief(str(inner[0]))} alone" if inner else ""
    return f", found {some([brief(str(key)) for key in loaded])}{advice}"


def _dense(tensor: Tensor, name: str) -> Tensor:
    """Return a tensor of a pickle without its gradient's history, after checking that its entries are in the file."""
    import torch

    kind = (
        "has no data (device meta)" if tensor.is_meta
        else f"is sparse ({tensor.layout})" if tensor.layout != torch.strided
        else "is quantized" if tensor.is_quantized
        else "is nested" if tensor.is_nested
        else ""
    )  # fmt: skip
    if kind:
        raise CheckpointError(
            f"{name} {kind}, which no safetensors file holds. Save dense tensors with save_pretrained."
        )
    size = tensor.untyped_storage().nbytes()
    if tensor.numel() * tensor.element_size() > max(size, MAX_EXPANDED_BYTES):
        raise CheckpointError(
            f"{name} of shape {tuple(tensor.shape)} has only {size} bytes in the file. Is it expanded?"
        )
    return tensor.detach().resolve_conj().resolve_neg()


def _sentence(error: BaseException) -> str:
    """Return the reason that torch.load gives, without its advice to turn the check off."""
    unsupported = re.search(r"Unsupported (.*?)( was not|$)", str(error), re.MULTILINE)
    return f"it holds {unsupported[1]}" if unsupported else first_line(error).split(". ")[0]


def _check_size(path: Path) -> None:
    """Stop where a .bin from before torch 1.6 is broken, or states larger storages than it holds: torch allocates them unseen.

    Such a file is five pickles (a magic number, a version, facts on the system, the tensors, the keys of their storages) and
    the storages. A tensor names its storage by ("storage", type, key, device, entries, ...).
    """
    storages: dict[str, int] = {}
    size = path.stat().st_size
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        for _ in range(4):
            _Storages(content, storages).load()
    if sum(storages.values()) > size:
        raise CheckpointError(
            f"{path}: its tensors are {sum(storages.values()):,} bytes, and the file holds {size:,}. Truncated or "
            "corrupted? Copy it again."
        )


class _Anything(dict[Any, Any]):
    """Stands in for every object of a pickle: it can be called, filled and given a state, and does nothing."""

    def __init__(self, *_: Any) -> None:
        super().__init__()

    def __call__(self, *_: Any) -> _Anything:
        return self

    def __setstate__(self, _: Any) -> None:
        return


class _Storages(pickle._Unpickler):
    """Reads a pickle without loading anything that it names; notes the bytes of each storage by its key.

    The reader of Python, not that in C, which allocates as many places as the pickle states.
    """

    # No file of torch holds this: it would allocate before it reads.
    dispatch: ClassVar[dict[int, Any]] = {
        code: load for code, load in pickle._Unpickler.dispatch.items() if code != pickle.BYTEARRAY8[0]
    }

    def __init__(self, stream: mmap.mmap, storages: dict[str, int]) -> None:
        super().__init__(stream, encoding="utf-8")
        self._storages = storages

    def find_class(self, module: str, name: str) -> Any:
        return name if name.endswith("Storage") else _Anything()

    def persistent_load(self, pid: Any) -> Any:
        _, kind, key, _, entries, *_ = pid
        self._storages[str(key)] = int(entries) * ENTRY_BYTES.get(str(kind), 1)
        return _Anything()
