"""Writing: the streamed file is a safetensors file like any other, and the output is there whole or not at all."""

from __future__ import annotations

import errno
import json
import os
import stat
import struct
import subprocess
import sys
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

import merge.checkpoints.weights.write
import merge.disk.staging
from merge.checkpoints.weights.write import WeightFile, write_weights
from merge.disk.staging import MARKER, check_output, copy_side_files, staged, write_json
from merge.errors import OutputError

MIXED = {
    "half": torch.tensor([1.5, -2.0, 3.0], dtype=torch.bfloat16),
    "flags": torch.tensor([True, False, True]),
    "double": torch.tensor([[1.0], [2.0]], dtype=torch.float64),
    "bytes": torch.tensor([1, 255, 3], dtype=torch.uint8),
    "scalar": torch.tensor(2.5),
    "empty": torch.zeros(0, 4, dtype=torch.float16),
    "long": torch.tensor([-1, 2**40]),
    "fp16": torch.tensor([0.1], dtype=torch.float16),
    "short": torch.tensor([[3, -4]], dtype=torch.int16),
    "ünïcode \"name\"": torch.ones(1),
    "transposed": torch.arange(6.0).reshape(2, 3).T,
}  # fmt: skip


def layout(tensors: dict[str, Tensor]) -> dict[str, tuple[torch.dtype, tuple[int, ...]]]:
    return {name: (tensor.dtype, tuple(tensor.shape)) for name, tensor in tensors.items()}


def same(read: dict[str, Tensor], expected: dict[str, Tensor]) -> bool:
    return read.keys() == expected.keys() and all(
        read[n].dtype == expected[n].dtype and read[n].shape == expected[n].shape and torch.equal(read[n], expected[n])
        for n in read
    )


def header(path: Path) -> tuple[dict[str, Any], int]:
    raw = path.read_bytes()
    length = struct.unpack("<Q", raw[:8])[0]
    return json.loads(raw[8 : 8 + length]), 8 + length


def test_the_streamed_file_holds_what_save_file_would(tmp_path: Path) -> None:
    """For every dtype and form a checkpoint may hold, read back by safetensors itself."""
    total = write_weights(tmp_path, layout(MIXED), MIXED.__getitem__).bytes
    written = tmp_path / "model.safetensors"
    save_file({n: t.contiguous() for n, t in MIXED.items()}, tmp_path / "theirs.safetensors", {"format": "pt"})
    assert same(load_file(written), load_file(tmp_path / "theirs.safetensors"))
    assert written.stat().st_size - header(written)[1] == total == sum(t.nbytes for t in MIXED.values())
    with safe_open(written, framework="pt") as file:
        assert file.metadata() == {"format": "pt"}
    assert not (tmp_path / "model.safetensors.index.json").exists()


def test_every_tensor_starts_at_a_multiple_of_its_item(tmp_path: Path) -> None:
    """Readers that map the file need it; three booleans before a float would break it."""
    write_weights(tmp_path, layout(MIXED), MIXED.__getitem__)
    entries, start = header(tmp_path / "model.safetensors")
    entries.pop("__metadata__")
    assert start % 8 == 0
    assert all((start + entry["data_offsets"][0]) % MIXED[name].dtype.itemsize == 0 for name, entry in entries.items())
    ends = sorted(tuple(entry["data_offsets"]) for entry in entries.values())
    assert all(left[1] == right[0] for left, right in pairwise(ends))


def test_one_tensor_is_asked_for_at_a_time_and_once(tmp_path: Path) -> None:
    asked: list[str] = []

    def tensor_of(name: str) -> Tensor:
        asked.append(name)
        return MIXED[name]

    write_weights(tmp_path, layout(MIXED), tensor_of)
    assert sorted(asked) == sorted(MIXED)


def test_large_models_are_sharded_with_an_index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the rules and names of save_pretrained; the index places every tensor in the file that holds it."""
    monkeypatch.setattr(merge.checkpoints.weights.write, "MAX_SHARD_SIZE", 1000)
    tensors = {f"t{k}": torch.full((100,), float(k)) for k in range(5)} | {"small": torch.ones(2)}
    total = write_weights(tmp_path, layout(tensors), tensors.__getitem__).bytes
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text(encoding="utf-8"))
    files = sorted(path.name for path in tmp_path.glob("*.safetensors"))
    assert files == [f"model-0000{k}-of-00003.safetensors" for k in (1, 2, 3)]
    assert index["metadata"] == {"total_parameters": 502, "total_size": 2008}
    assert total == 2008
    read = {file: load_file(tmp_path / file) for file in files}
    assert {name: file for file in files for name in read[file]} == index["weight_map"]
    assert same({name: tensor for part in read.values() for name, tensor in part.items()}, tensors)


@pytest.mark.parametrize("wrong", [torch.ones(3), torch.ones(2, dtype=torch.float64), torch.ones(2, 1)])
def test_a_tensor_that_is_not_as_planned_is_an_error(wrong: Tensor, tmp_path: Path) -> None:
    """The header is written first, so a surprise would make every later tensor unreadable."""
    with pytest.raises(OutputError, match="a came out as"):
        write_weights(tmp_path, {"a": (torch.float32, (2,))}, lambda name: wrong)


def names(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*"))


def write_and_raise(output: Path, fault: BaseException) -> None:
    with staged(output) as folder:
        (folder / "new").write_text("new", encoding="utf-8")
        raise fault


def test_a_block_that_succeeds_becomes_the_output(tmp_path: Path) -> None:
    output = tmp_path / "deep" / "out"
    with staged(output) as folder:
        (folder / "x").write_text("1", encoding="utf-8")
        assert not output.exists()
        assert folder.parent == output.parent
    assert names(tmp_path) == ["deep", "deep/out", "deep/out/x"]


@pytest.mark.parametrize("fault", [ValueError("x"), KeyboardInterrupt(), OSError(errno.EIO, "x"), SystemExit(3)])
def test_a_block_that_fails_leaves_nothing(fault: BaseException, tmp_path: Path) -> None:
    """Not even the parents that were made for the output."""
    with pytest.raises(OutputError if isinstance(fault, OSError) else type(fault)):
        write_and_raise(tmp_path / "deep" / "er" / "out", fault)
    assert names(tmp_path) == []


def existing(folder: Path) -> Path:
    folder.mkdir()
    (folder / "config.json").write_text("{}", encoding="utf-8")
    (folder / "old").write_text("old", encoding="utf-8")
    return folder


def test_an_existing_folder_is_replaced_whole(tmp_path: Path) -> None:
    output = existing(tmp_path / "out")
    with staged(output) as folder:
        (folder / "new").write_text("new", encoding="utf-8")
        assert names(output) == ["config.json", "old"]
    assert names(tmp_path) == ["out", "out/new"]


def test_an_existing_folder_stays_whole_if_the_block_fails(tmp_path: Path) -> None:
    output = existing(tmp_path / "out")
    with pytest.raises(KeyboardInterrupt):
        write_and_raise(output, KeyboardInterrupt())
    assert names(tmp_path) == ["out", "out/config.json", "out/old"]


@pytest.mark.parametrize("fault", [OSError(errno.EIO, "x"), KeyboardInterrupt()])
@pytest.mark.parametrize("before", [True, False])
def test_an_existing_folder_comes_back_if_the_rename_fails(
    fault: BaseException, before: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The moment between the two renames, when the old folder is aside and the new one not yet there."""
    output, rename = existing(tmp_path / "out"), Path.rename

    def failing(self: Path, target: Path) -> Path:
        if before and self.name.endswith(str(os.getpid())):
            raise fault
        moved = rename(self, target)
        if not before and self == output:
            raise fault
        return moved

    monkeypatch.setattr(Path, "rename", failing)
    with pytest.raises((OutputError, KeyboardInterrupt)), staged(output) as folder:
        (folder / "new").write_text("new", encoding="utf-8")
    assert names(tmp_path) == ["out", "out/config.json", "out/old"]


@pytest.fixture
def dead_pid() -> int:
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    return child.pid


@pytest.fixture
def live_pid() -> Iterator[int]:
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    yield child.pid
    child.communicate(b"\n")


def test_leftovers_of_dead_runs_are_removed_and_those_of_live_ones_are_not(
    tmp_path: Path, dead_pid: int, live_pid: int
) -> None:
    """Nor those of other outputs: `[out]` is a name here, not a pattern."""
    kept = [
        f".[out].{MARKER}-{live_pid}",
        f".o.{MARKER}-{dead_pid}",
        f".[out].{MARKER}-notes",
        f".[out].{MARKER}-{dead_pid}-old",
    ]
    for name in [*kept, f".[out].{MARKER}-{dead_pid}", f".[out].{MARKER}-{os.getpid()}", f".[out].{MARKER}-{10**30}"]:
        (tmp_path / name).mkdir()
    with pytest.raises(ValueError, match="stop"), staged(tmp_path / "[out]"):
        raise ValueError("stop")
    assert sorted(names(tmp_path)) == sorted(kept)


def test_what_was_moved_aside_goes_only_once_it_is_replaced(tmp_path: Path, dead_pid: int) -> None:
    """A run killed between the two renames leaves the user's old folder aside: it is the only copy."""
    aside = tmp_path / f".out.{MARKER}-{dead_pid}-old"
    existing(aside)
    with staged(tmp_path / "out") as folder:
        (folder / "x").write_text("1", encoding="utf-8")
        assert aside.exists()
    with staged(tmp_path / "out"):
        assert not aside.exists()


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_is_one_line(code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(file: WeightFile, data: memoryview, offset: int) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(WeightFile, "write", full)
    said = r"^no space left on the disk of .*; nothing was written\.$"
    with pytest.raises(OutputError, match=said), staged(tmp_path / "out") as folder:
        write_weights(folder, layout(MIXED), MIXED.__getitem__)
    assert names(tmp_path) == []


def test_files_have_the_modes_that_the_umask_gives(tmp_path: Path) -> None:
    """A temporary file of mode 0600 renamed into place could not be read by a colleague."""
    (tmp_path / "source").write_text("x", encoding="utf-8")
    (tmp_path / "source").chmod(0o600)
    old = os.umask(0o022)
    try:
        with staged(tmp_path / "out") as folder:
            write_weights(folder, layout(MIXED), MIXED.__getitem__)
            write_json(folder / "config.json", {})
            copy_side_files(tmp_path, ("source",), folder)
    finally:
        os.umask(old)
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "out").iterdir()}
    assert modes == {"model.safetensors": 0o644, "config.json": 0o644, "source": 0o644}
    assert stat.S_IMODE((tmp_path / "out").stat().st_mode) == 0o755


def test_side_files_keep_their_folders(tmp_path: Path) -> None:
    (tmp_path / "a" / "1_Pooling").mkdir(parents=True)
    (tmp_path / "a" / "1_Pooling" / "config.json").write_text("é", encoding="utf-8")
    copy_side_files(tmp_path / "a", ("1_Pooling/config.json",), tmp_path / "b")
    assert (tmp_path / "b" / "1_Pooling" / "config.json").read_text(encoding="utf-8") == "é"


def test_an_output_that_must_not_be_written_is_refused_before_any_work(tmp_path: Path) -> None:
    """Every refusal names the folder; force replaces checkpoints and empty folders, and nothing else."""
    model, foreign = existing(tmp_path / "model"), tmp_path / "foreign"
    foreign.mkdir()
    check_output(foreign, True, [])
    (foreign / "thesis.tex").write_text("x", encoding="utf-8")
    (tmp_path / "link").symlink_to(model)
    for output, force, expected in [
        (model, False, "exists. Choose another -o, or --force"),
        (foreign, True, "holds no checkpoint"),
        (tmp_path / "link", True, "exists and is not a folder"),
        (model / "config.json", True, "exists and is not a folder"),
        (model / "config.json" / "out", False, "is not a folder that can be written to"),
        (Path("/proc/out"), False, ""),
    ]:
        if str(output) == "/proc/out" and os.access("/proc", os.W_OK):
            continue  # as root nothing says no until the folder is made
        with pytest.raises(OutputError, match=expected):
            check_output(output, force, [])
    check_output(model, True, [tmp_path / "other"])
    check_output(tmp_path / "new" / "er", False, [model])
    assert names(model) == ["config.json", "old"]


def test_an_output_named_as_stdout_is_refused() -> None:
    """The control: a folder of that name elsewhere is one."""
    with pytest.raises(OutputError, match="no folder is written to stdout"):
        check_output(Path("-"), False, [])
    check_output(Path.cwd() / "-", False, [])


def test_an_output_that_is_or_holds_an_input_is_refused(tmp_path: Path) -> None:
    """Even by another name, and even with force: the input would be gone before it is read."""
    model = existing(tmp_path / "model")
    (tmp_path / "link").symlink_to(model)
    for output in (model, tmp_path, model / ".." / "model"):
        with pytest.raises(OutputError, match="is, or holds, the input"):
            check_output(output, True, [model])
    with pytest.raises(OutputError, match="is, or holds, the input"):
        check_output(model, True, [tmp_path / "link"])


def test_an_output_inside_the_folder_of_a_model_is_refused(tmp_path: Path) -> None:
    """By any name: the model's folder would hold another model. A folder beside it, which the line names, is the control."""
    model = existing(tmp_path / "model")
    (tmp_path / "link").symlink_to(model)
    for output in (model / "out", tmp_path / "link" / "x" / "out", model / ".." / "model" / "out"):
        with pytest.raises(OutputError, match=rf"lies in the folder of the model .*such as {tmp_path}/model-out\.$"):
            check_output(output, True, [tmp_path / "other", model])
    check_output(tmp_path / "model-out", False, [model])
