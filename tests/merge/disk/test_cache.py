"""What the cache gives back is what was put there, or nothing."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from captured_log import CapturedLog

from merge.disk.cache import (
    cache_folder,
    cache_key,
    read_cached,
    read_cached_tensors,
    write_cached,
    write_cached_tensors,
)

TENSORS = {"ids": torch.arange(12, dtype=torch.int32).reshape(3, 4), "cut": torch.tensor(2), "none": torch.zeros(0)}


@pytest.fixture(autouse=True)
def own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MERGE_MODELS_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_tensors_come_back_with_dtype_and_shape_and_nothing_else() -> None:
    assert read_cached_tensors("made", "k") is None
    write_cached_tensors("made", "k", TENSORS)
    found = read_cached_tensors("made", "k")
    assert found is not None
    assert found.keys() == TENSORS.keys()
    for name, tensor in TENSORS.items():
        assert found[name].dtype == tensor.dtype
        assert torch.equal(found[name], tensor)
    assert read_cached_tensors("made", "other") is None
    assert [path.name for path in (cache_folder() / "made").iterdir()] == ["k.safetensors"]


@pytest.mark.parametrize("fault", ["one bit of a value", "half of it", "nothing", "no checksum"])
def test_a_file_that_changed_is_not_trusted_and_said(fault: str, captured_log: CapturedLog) -> None:
    """A flipped bit leaves a valid file, which only the checksum tells apart; written again it is read again."""
    from safetensors.torch import save

    write_cached_tensors("made", "k", TENSORS)
    path = cache_folder() / "made" / "k.safetensors"
    data = path.read_bytes()
    at = data.index(bytes(TENSORS["ids"].numpy().tobytes()))
    flipped = data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]
    broken = {
        "one bit of a value": flipped,
        "half of it": data[: len(data) // 2],
        "nothing": b"",
        "no checksum": save(TENSORS),
    }
    path.write_bytes(broken[fault])
    with captured_log.at_level(logging.WARNING):
        assert read_cached_tensors("made", "k") is None
    assert captured_log.messages == [f"{path} is not what was written there; it is not used, and made again."]
    write_cached_tensors("made", "k", TENSORS)
    assert read_cached_tensors("made", "k") is not None


def test_a_cache_that_cannot_be_written_costs_nothing_but_time(own_folder: Path) -> None:
    own_folder.write_text("a file where the folder should be")
    write_cached_tensors("made", "k", TENSORS)
    write_cached("made", "k", [1])
    assert read_cached_tensors("made", "k") is None
    assert read_cached("made", "k") is None


def test_values_come_back() -> None:
    write_cached("made", "k", {"a": [1, "é"]})
    assert read_cached("made", "k") == {"a": [1, "é"]}
    (cache_folder() / "made" / "k.json").write_text("{")
    assert read_cached("made", "k") is None


@pytest.mark.parametrize("value", [0.25, True, ["a"], {"b": {"a": 1}, "a": None}])
def test_a_value_that_was_changed_since_it_was_written_is_not_read(value: Any) -> None:
    """A score or a hash that differs in one letter is as plausible as the one that was written."""
    write_cached("made", "k", value)
    assert read_cached("made", "k") == value
    path = cache_folder() / "made" / "k.json"
    whole = json.loads(path.read_text())
    for changed in ({**whole, "value": 0.26}, {"value": value}, value):
        path.write_text(json.dumps(changed))
        assert read_cached("made", "k") is None


def test_keys_are_equal_for_equal_parts_alone() -> None:
    """The order of a dict's keys is no part of a config; every other change of a part is."""
    key = cache_key(1, {"a": 1, "b": [2]}, "x")
    assert key == cache_key(1, {"b": [2], "a": 1}, "x")
    others = [
        cache_key(2, {"a": 1, "b": [2]}, "x"),
        cache_key(1, {"a": 1, "b": [3]}, "x"),
        cache_key(1, {"a": 1, "b": [2]}, "x", None),
        cache_key(1, {"a": 1, "b": [2], "c": None}, "x"),
        cache_key(1, {"a": "1", "b": [2]}, "x"),
        cache_key([1, {"a": 1, "b": [2]}, "x"]),
    ]
    assert len({key, *others}) == 7
