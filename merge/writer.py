"""Writing a checkpoint: streamed, checked by reloading, and in place whole or not at all."""

from __future__ import annotations

import contextlib
import errno
import glob
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from merge.errors import OutputError
from merge.model import first_line, loading_faults, model_class, quiet

if TYPE_CHECKING:
    import torch
    from torch import Tensor

MAX_SHARD_SIZE = "50GB"
MARKER = "merging"


def check_output(output: Path, force: bool, inputs: list[Path]) -> None:
    """Stop before any work when the output folder must not be written.

    Raises:
        OutputError: it exists (without force), is no checkpoint of which force may replace, or is one of the inputs.
    """
    target = output.resolve()
    for folder in inputs:
        source = folder.resolve()
        if target == source or target in source.parents:
            raise OutputError(f"output {output} is, or holds, the input {folder}. Choose another -o.")
    if output.is_symlink() or (output.exists() and not output.is_dir()):
        raise OutputError(f"output {output} exists and is not a folder. Choose another -o.")
    parent = next(folder for folder in target.parents if folder.exists())
    if not parent.is_dir() or not os.access(parent, os.W_OK | os.X_OK):
        raise OutputError(f"output {output} cannot be made: {parent} is not a folder that can be written to.")
    if not output.exists():
        return
    if not force:
        raise OutputError(f"output {output} exists. Choose another -o, or --force to replace it.")
    if any(output.iterdir()) and not (output / "config.json").is_file():
        raise OutputError(f"output {output} holds no checkpoint (no config.json); --force replaces only checkpoints.")


@contextlib.contextmanager
def staged(output: Path) -> Iterator[Path]:
    """Yield a temporary folder beside the output that becomes the output if the block succeeds.

    On any error, Ctrl-C included, the temporary folder is removed (so are parents made for it) and what was there
    before stays. Folders left by killed runs are removed first.

    Raises:
        OutputError: the disk is full or the place cannot be written.
    """
    target = output.resolve()
    parent, made = target.parent, [folder for folder in target.parents if not folder.exists()]
    temporary = parent / f".{target.name}.{MARKER}-{os.getpid()}"
    try:
        parent.mkdir(parents=True, exist_ok=True)
        _remove_leftovers(target)
        temporary.mkdir()
        yield temporary
        _sync(temporary)
        _replace(temporary, target)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise OutputError(f"no space left on the disk of {parent}; nothing was written.") from error
        raise OutputError(f"{output} cannot be written: {first_line(error)}") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        for folder in made:
            with contextlib.suppress(OSError):  # not empty: it holds the output
                folder.rmdir()


def _remove_leftovers(target: Path) -> None:
    """Remove what runs that no longer live left beside the target.

    What a killed run had moved aside (-old) is the user's: it goes only if the target, its replacement, is in place.
    """
    for left in target.parent.glob(f".{glob.escape(target.name)}.{MARKER}-*"):
        pid, old = left.name.removesuffix("-old").rsplit("-", 1)[1], left.name.endswith("-old")
        if pid.isdigit() and not _alive(int(pid)) and (target.exists() or not old):
            shutil.rmtree(left, ignore_errors=True)


def _alive(pid: int) -> bool:
    """Say whether another process has this id; a folder under our own id is of an earlier one, as in containers."""
    if pid == os.getpid():
        return False
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True
    return True


def _sync(folder: Path) -> None:
    for path in [*folder.rglob("*"), folder]:
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _replace(temporary: Path, output: Path) -> None:
    """Rename into place; an existing folder is moved aside first and comes back if that fails or is interrupted."""
    if not output.exists():
        temporary.rename(output)
        return
    aside = temporary.with_name(temporary.name + "-old")
    try:
        output.rename(aside)
        temporary.rename(output)
    except BaseException:
        if not output.exists():
            aside.rename(output)
        raise
    shutil.rmtree(aside, ignore_errors=True)


def write_weights(
    folder: Path, layout: Mapping[str, tuple[torch.dtype, tuple[int, ...]]], tensor_of: Callable[[str], Tensor]
) -> int:
    """Stream tensors into safetensors files by save_pretrained's shard rules; return the bytes of all tensors.

    Args:
        layout: written name -> (dtype, shape), in the order of the file.
        tensor_of: returns the tensor of a written name; one is alive at a time.
    Raises:
        OutputError: a tensor is not what the layout promised.
    """
    import torch
    from huggingface_hub import split_torch_state_dict_into_shards

    empty = {name: torch.empty(shape, dtype=dtype, device="meta") for name, (dtype, shape) in layout.items()}
    plan = split_torch_state_dict_into_shards(empty, max_shard_size=MAX_SHARD_SIZE)
    for file, names in plan.filename_to_tensors.items():
        _write_safetensors(folder / file, {name: layout[name] for name in names}, tensor_of)
    total = sum(tensor.nbytes for tensor in empty.values())
    if plan.is_sharded:
        metadata = {"total_parameters": sum(t.numel() for t in empty.values()), "total_size": total}
        index = {"metadata": metadata, "weight_map": plan.tensor_to_filename}
        write_json(folder / "model.safetensors.index.json", index)
    return total


def _write_safetensors(
    path: Path, layout: Mapping[str, tuple[torch.dtype, tuple[int, ...]]], tensor_of: Callable[[str], Tensor]
) -> None:
    """Write header, then tensors one by one: u64 header length, JSON padded to 8 bytes, data without holes.

    Wider dtypes go first, as safetensors orders them, so that every tensor starts at a multiple of its item's size.
    """
    from safetensors.torch import _TYPES

    layout = dict(sorted(layout.items(), key=lambda item: -item[1][0].itemsize))
    letters = {dtype: name for name, dtype in _TYPES.items()}
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    at = 0
    for name, (dtype, shape) in layout.items():
        size = dtype.itemsize
        for n in shape:
            size *= n
        header[name] = {"dtype": letters[dtype], "shape": list(shape), "data_offsets": [at, at + size]}
        at += size
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name, (dtype, shape) in layout.items():
            tensor = tensor_of(name)
            if tensor.dtype != dtype or tuple(tensor.shape) != shape:
                raise OutputError(f"{name} came out as {tensor.dtype} {tuple(tensor.shape)}, planned {dtype} {shape}.")
            file.write(memoryview(_bytes(tensor)))


def _bytes(tensor: Tensor) -> Any:
    import torch

    return tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy()


def write_json(path: Path, value: Any) -> None:
    """Write JSON as transformers does: two spaces, a final newline."""
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def copy_side_files(source: Path, names: tuple[str, ...], folder: Path) -> None:
    """Copy side files with their folders."""
    for name in names:
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source / name, target)


def reload_check(folder: Path, config: Mapping[str, Any], tolerated: Path) -> tuple[str, ...]:
    """Load the written folder with from_pretrained, run it once, and return notes.

    Faults the reference itself has when it is loaded (a head its class does not know) are notes, not errors.

    Raises:
        OutputError: a key is missing, unexpected or of another shape, or an output is not finite.
    """
    import torch

    from merge.inputs import random_inputs

    model, faults = _load(folder, config)
    if faults:
        known = _load(tolerated, config)[1]
        fresh = [fault for fault in faults if fault not in known]
        if fresh:
            raise OutputError(f"the merged checkpoint does not reload: {'; '.join(fresh)}. Nothing was written.")
    notes = tuple(f"reloading says, of the reference too: {fault}" for fault in faults)
    if model.config.is_encoder_decoder or model.main_input_name != "input_ids":
        return (*notes, f"{type(model).__name__} was loaded but not run: only models of one text input are")
    model = model.float().eval()
    with torch.inference_mode():
        for batch in random_inputs(config)[:1]:
            for name, value in model(**batch).items():
                if isinstance(value, torch.Tensor) and not torch.isfinite(value).all():
                    raise OutputError(
                        f"the merged model's {name} holds NaN or infinity on random tokens. Nothing was written."
                    )
    return notes


def _load(folder: Path, config: Mapping[str, Any]) -> tuple[Any, list[str]]:
    from safetensors import SafetensorError

    with quiet():
        try:
            model, info = model_class(config).from_pretrained(
                str(folder), output_loading_info=True, local_files_only=True, ignore_mismatched_sizes=True
            )
        except (OSError, ValueError, RuntimeError, KeyError, SafetensorError) as error:
            raise OutputError(
                f"the merged checkpoint does not reload: {first_line(error)}. Nothing was written."
            ) from error
    return model, loading_faults(info)
