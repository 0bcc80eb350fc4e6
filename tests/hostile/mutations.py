"""Mutations of files: bytes, values of JSON and YAML, headers of safetensors, pickles, and what is no file at all."""

from __future__ import annotations

import io
import json
import os
import random
import struct
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

DEEP = 3000
VALUES: tuple[Any, ...] = (
    None, True, False, [], {}, "", "x", "x" * 5000, 0, -1, 1, 2, 7, 10**4, 10**9, 10**30, 2**63, 2**64, 1.0, 1.5, -0.0, 1e308,
    float("nan"), float("inf"), "\0", "a\0b", "\ud800", "é\u2028", "../../etc/passwd", "/dev/zero", [None], [[]], [1, "a"],
    {"a": 1}, {"": None}, {"0": "x"}, ["a", "a"], "NaN", "1", "true", "[PAD]", "\x1b[31mred", "a\nb",
)  # fmt: skip


class Verbatim:
    """A JSON text in the place of a value."""

    def __init__(self, text: str) -> None:
        self.text = text


TEXTS = (
    Verbatim("[" * DEEP + "]" * DEEP),
    Verbatim('{"a":' * DEEP + "1" + "}" * DEEP),
    Verbatim("9" * 5000),
    Verbatim("1e999"),
    Verbatim('"\\ud800"'),
    Verbatim('"\\u0000"'),
    Verbatim("[" * 200 + "]" * 200),
)


# Where a command expects a number, a few of them, or layers.
NUMBERS = (
    "-1", "0", "1", "2", "7", "1e308", "1e-320", "nan", "inf", "-inf", "10000000000", "1" + "0" * 30, "9" * 5000, "", " ", "x",
    "0-99999999999", "5-2", "0,0", "1,0", "0:0", "0:1", "1:1", "0:99999999999", "-1:0", "a:b", "0.5", "1.5", "é", "\u0661", "0x1",
)  # fmt: skip


def mutated_bytes(data: bytes, chance: random.Random) -> bytes:
    """Return bytes with one fault that disks, networks and editors make."""
    at = chance.randrange(len(data) + 1)
    end = min(len(data), at + chance.choice((1, 2, 8, 64, 1000)))
    kind = chance.randrange(12)
    if kind == 0:
        return data[:at]
    if kind == 1:
        return data[:at] + data[end:]
    if kind == 2:
        return data[:at] + chance.randbytes(end - at) + data[end:]
    if kind == 3:
        return data[:at] + data[at:end] * 3 + data[end:]
    if kind == 4:
        return b""
    if kind == 5:
        return chance.randbytes(chance.choice((1, 8, 100, 4000)))
    if kind == 6:
        return b"\xef\xbb\xbf" + data
    if kind == 7:
        return data.decode("utf-8", "replace").encode(chance.choice(("utf-16", "utf-32", "utf-16-le")))
    if kind == 8:
        return data[:at] + b"\0" + data[at:]
    if kind == 9:
        return data.replace(b"\n", b"\r\n") if chance.random() < 0.5 else data.replace(b"\n", b"\r")
    if kind == 10:
        return data + chance.randbytes(20)
    return bytes(b ^ (1 << chance.randrange(8)) if k == at else b for k, b in enumerate(data))


def mutated_value(value: Any, chance: random.Random) -> Any:
    """Return a JSON value with one or two of its parts changed."""
    value = json.loads(json.dumps(value))
    for _ in range(chance.choice((1, 1, 1, 2))):
        value = _changed(value, chance)
    return value


def _changed(value: Any, chance: random.Random, depth: int = 0) -> Any:
    inside = isinstance(value, dict | list) and value and chance.random() < (0.97 if depth == 0 else 0.7)
    if not inside:
        return chance.choice(TEXTS) if chance.random() < 0.12 else chance.choice(VALUES)
    keys = list(value) if isinstance(value, dict) else list(range(len(value)))
    key = chance.choice(keys)
    kind = chance.random()
    if isinstance(value, dict):
        if kind < 0.12:
            return {k: v for k, v in value.items() if k != key}
        if kind < 0.2:
            return {
                (chance.choice(("", "\0", "\ud800", "x" * 300, f"{k} ")) if k == key else k): v
                for k, v in value.items()
            }
        return {k: _changed(v, chance, depth + 1) if k == key else v for k, v in value.items()}
    if kind < 0.12:
        return value[:key] + value[key + 1 :]
    if kind < 0.2:
        return [*value, value[key]]
    return [_changed(v, chance, depth + 1) if k == key else v for k, v in enumerate(value)]


def json_text(value: Any) -> str:
    """Return JSON, with verbatim texts in their places and halves of surrogate pairs as escapes."""
    held: list[str] = []

    def plain(part: Any) -> str:
        held.append(part.text)
        return f"@@{len(held) - 1}@@"

    text = json.dumps(value, default=plain, indent=1)
    for k, each in enumerate(held):
        text = text.replace(f'"@@{k}@@"', each)
    return text


def mutated_json(data: bytes, chance: random.Random) -> bytes:
    """Return a JSON file with its values or its bytes changed."""
    if chance.random() < 0.2:
        return mutated_bytes(data, chance)
    return json_text(mutated_value(json.loads(data), chance)).encode("utf-8", "surrogatepass")


def unchanged(data: bytes, chance: random.Random) -> bytes:
    """Return the file as it is, where a command's own words are what is changed."""
    return data


PLAN_PIECES = (
    "A[0]", "A0", "B[0]", "C0", "A[0]*3", "A[0]*99999999999", "mean(A0, B0)", "mean(0.7*A0, 0.3*B0)", "mean(A0)", "mean()",
    "mean(nan*A0, inf*B0)", "laco(A[0-0])", "laco(A0, B0)", "zero(A[0])", "A[0]-attention", "A[0]-x", "affine(A0->A1)",
    "affine(A0->B1)", "affine(A1->A0)", "merge(A0, B0)", "A[0-99999999999]", "A[5-2]", "A[", "]", "A", "->", "*", "é", "\x1b[31m",
    "zero(mean(A0, B0))", "A[0]-attention-ffn", "A[0,0]", "A" + "9" * 5000, "1e999*A0", "-1*A0", "\0", "(" * 3000, "\n", ",",
)  # fmt: skip


def mutated_plan(data: bytes, chance: random.Random) -> bytes:
    """Return the text of a plan with a part changed, or its bytes."""
    if chance.random() < 0.3:
        return mutated_bytes(data, chance)
    parts = data.decode().strip().split(", ")
    for _ in range(chance.choice((1, 1, 2))):
        parts[chance.randrange(len(parts))] = chance.choice(PLAN_PIECES)
    return ", ".join(parts[chance.randrange(len(parts)) :]).encode()


def mutated_lines(data: bytes, chance: random.Random) -> bytes:
    """Return JSON lines with one row changed."""
    lines = data.split(b"\n")
    at = chance.randrange(max(1, len(lines) - 1))
    if chance.random() < 0.3 or not lines[at]:
        return mutated_bytes(data, chance)
    lines[at] = (
        json_text(mutated_value(json.loads(lines[at]), chance)).replace("\n", " ").encode("utf-8", "surrogatepass")
    )
    return b"\n".join(lines)


BOMB = "bomb: [&a [x, x, x], &b [*a, *a, *a], &c [*b, *b, *b]" + "".join(
    f", &{chr(100 + k)} [{', '.join([f'*{chr(99 + k)}'] * 9)}]" for k in range(12)
)
SNIPPETS = (
    BOMB + "]",
    "loop: &x [*x]",
    "loop: &x {a: *x}",
    "number: !!int x",
    "object: !!python/object/apply:os.system [true]",
    "deep: " + "[" * 400 + "]" * 400,
    "deep: " + "{a: " * 200 + "1" + "}" * 200,
    '"\\0": 1',
    '"\\ud800": 1',
    "? [a, b]\n: 1",
    "merge: &m {a: 1}\n<<: [*m, *m]",
    "\tx: 1",
    "x: 1: 2",
    "--- \nx: 1\n--- \ny: 2",
    "%YAML 9.9\n---\nx: 1",
    "date: 2020-99-99",
    "big: " + "9" * 5000,
)


def mutated_yaml(data: bytes, chance: random.Random) -> bytes:
    """Return a YAML file with its values, its bytes or its syntax changed."""
    kind = chance.random()
    if kind < 0.15:
        return mutated_bytes(data, chance)
    if kind < 0.4:
        lines = data.decode().split("\n")
        lines.insert(chance.randrange(len(lines) + 1), chance.choice(SNIPPETS))
        return "\n".join(lines).encode("utf-8", "surrogatepass")
    import yaml

    value = mutated_value(yaml.safe_load(data), chance)
    return json_text(value).encode("utf-8", "surrogatepass")  # JSON is YAML


def mutated_yaml_text(data: bytes, chance: random.Random) -> bytes:
    """Return a file with a YAML header, or all of YAML, with lines added or its bytes changed."""
    if chance.random() < 0.4:
        return mutated_bytes(data, chance)
    lines = data.decode().split("\n")
    lines.insert(chance.randrange(min(len(lines), 8) + 1), chance.choice(SNIPPETS))
    return "\n".join(lines).encode("utf-8", "surrogatepass")


def mutated_safetensors(data: bytes, chance: random.Random) -> bytes:
    """Return a safetensors file with its header's values, its length or its bytes changed."""
    (length,) = struct.unpack("<Q", data[:8])
    header, body = data[8 : 8 + length], data[8 + length :]
    kind = chance.random()
    if kind < 0.2:
        return mutated_bytes(data, chance)
    if kind < 0.3:
        return struct.pack("<Q", chance.choice((0, 1, length + 1, 2**40, 2**63, 2**64 - 1))) + data[8:]
    if kind < 0.4:
        header = mutated_bytes(header, chance)
    elif kind < 0.5:
        floats = chance.random() < 0.5
        header = header.replace(b"[0,", b"[0.0,", 1) if floats else b" " + header
    elif kind < 0.6:
        start = chance.randrange(max(1, len(body) - 8))
        body = body[:start] + chance.choice((b"\xff" * 8, b"\x00\x00\xc0\x7f\x00\x00\xc0\x7f")) + body[start + 8 :]
        body = body[: len(data) - 8 - length]
    else:
        header = json_text(mutated_value(json.loads(header), chance)).encode("utf-8", "surrogatepass")
    return struct.pack("<Q", len(header)) + header + body


def mutated_pickle(data: bytes, chance: random.Random) -> bytes:
    """Return a .bin with its bytes changed, or with tensors in it that no safetensors file holds."""
    import torch

    if chance.random() < 0.3:
        return mutated_bytes(data, chance)
    state = dict(torch.load(io.BytesIO(data), weights_only=True))
    name = chance.choice(list(state))
    tensor = state[name]
    kind = chance.randrange(14)
    changes: tuple[Callable[[], Any], ...] = (
        lambda: tensor.to("meta"),
        lambda: tensor.to_sparse(),
        lambda: tensor.clone().requires_grad_(),
        lambda: torch.nn.Parameter(tensor),
        lambda: {"tensor": tensor},
        lambda: tensor.tolist(),
        lambda: 5,
        lambda: tensor.new_zeros(1).expand(10**4, 10**5),
        lambda: tensor.to(torch.complex64),
        lambda: tensor.to(torch.int8),
        lambda: torch.quantize_per_tensor(tensor.float(), 0.1, 0, torch.qint8),
        lambda: tensor.new_zeros(0),
        lambda: tensor.half() * float("nan"),
        lambda: tensor.t() if tensor.ndim == 2 else tensor[None],
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        state[name] = changes[kind]()
    if chance.random() < 0.1:
        state[chance.choice(("", "a\0b", "x" * 1000, "../x"))] = state.pop(name)
    whole: Any = (
        state if chance.random() < 0.9 else chance.choice(([state], {"state_dict": state}, tensor, {1: tensor}))
    )
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.save(whole, buffer, _use_new_zipfile_serialization=chance.random() < 0.7)
    return buffer.getvalue()


def mutated_parquet(data: bytes, chance: random.Random) -> bytes:
    """Return a parquet file with its bytes, its metadata or its columns changed."""
    import pyarrow
    import pyarrow.parquet

    if chance.random() < 0.3:
        return mutated_bytes(data, chance)
    table = pyarrow.parquet.read_table(io.BytesIO(data))
    metadata = dict(table.schema.metadata or {})
    kind = chance.randrange(5)
    if kind < 3:
        key = chance.choice([*metadata, b"huggingface"])
        held = json.loads(
            metadata.get(key, b'{"info": {"features": {"text": {"_type": "ClassLabel", "names": ["a"]}}}}')
        )
        metadata[key] = json_text(mutated_value(held, chance)).encode("utf-8", "surrogatepass")
        table = table.replace_schema_metadata(metadata)
    elif kind == 3:
        table = table.drop_columns([chance.choice(table.column_names)])
    else:
        name = chance.choice(table.column_names)
        values: list[Any] = [chance.choice((None, 1, -5, 10**6)) for _ in range(table.num_rows)]
        if chance.random() < 0.5:
            values = [chance.choice(("a", "", None, "é")) for _ in range(table.num_rows)]
        table = table.set_column(table.column_names.index(name), name, pyarrow.array(values)).replace_schema_metadata(
            metadata
        )
    buffer = io.BytesIO()
    pyarrow.parquet.write_table(table, buffer)
    return buffer.getvalue()


def no_file(path: Path, chance: random.Random) -> None:
    """Put something in the place of a file that is none."""
    kind = chance.randrange(6)
    path.unlink()
    if kind == 0:
        os.mkfifo(path)
    elif kind == 1:
        path.mkdir()
    elif kind == 2:
        path.symlink_to("/dev/zero")
    elif kind == 3:
        path.symlink_to(path.name)
    elif kind == 4:
        path.symlink_to("nowhere")
