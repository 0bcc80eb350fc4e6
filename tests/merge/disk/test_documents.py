"""Documents: one place reads JSON and YAML, and bounds depth, size, text and types before anything is made of them."""

from __future__ import annotations

import ast
import json
import os
import time
from pathlib import Path
from typing import Any

import pytest

from merge.disk.documents import (
    MAX_DEPTH,
    check_regular,
    front_matter,
    parse_json,
    read_json,
    read_object,
    read_text,
)
from merge.disk.yaml_text import MAX_NODES, YamlFault, parse_yaml
from merge.errors import CheckpointError, TaskError

ROOT = Path(__file__).parents[3]
# Module -> the one library whose texts it may parse.
READERS = {"merge/disk/documents.py": {"json"}, "merge/disk/yaml_text.py": {"yaml"}}
PARSERS = {
    "json": {"load", "loads", "JSONDecoder"},
    "yaml": {"load", "load_all", "safe_load", "safe_load_all", "full_load", "unsafe_load", "compose", "parse", "scan"},
}


def raw_reads(source: str) -> set[str]:
    """Return the libraries whose parsers a source names, in an attribute or an import."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            found |= {node.value.id} if node.attr in PARSERS.get(node.value.id, ()) else set()
        elif isinstance(node, ast.ImportFrom) and node.module in PARSERS:
            found |= {node.module} if {alias.name for alias in node.names} & PARSERS[node.module] else set()
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names if alias.name in PARSERS and alias.asname}
    return found


def test_no_other_module_touches_raw_json_or_yaml() -> None:
    """What is checked at one place is checked everywhere; a second place would be the one without the check."""
    sources = {p.relative_to(ROOT).as_posix(): p for top in ("merge", "evals") for p in (ROOT / top).rglob("*.py")}
    assert len(sources) > 200
    texts = {name: path.read_text(encoding="utf-8") for name, path in sources.items()}
    reads = {name: raw_reads(text) if any(each in text for each in PARSERS) else set() for name, text in texts.items()}
    assert {name: found for name, found in reads.items() if found - READERS.get(name, set())} == {}
    assert {name: reads[name] & READERS[name] for name in READERS if reads[name] & READERS[name]} == {
        "merge/disk/documents.py": {"json"}
    }


@pytest.mark.parametrize(
    "source",
    ["import json\njson.loads('1')", "from json import load", "import json as j", "import yaml\nyaml.safe_load('')",
     "def f():\n    import yaml\n    return yaml.compose"],
)  # fmt: skip
def test_a_second_reader_is_caught(source: str) -> None:
    assert raw_reads(source) != set()
    assert raw_reads("import json, yaml\njson.dumps(1)\nyaml.safe_dump(1)") == set()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (b"", "it is malformed: Expecting value"),
        (b"\xff\xfe{\0}\0", "it is malformed: 'utf-8' codec"),
        (b'\xef\xbb\xbf{"a": 1}', "it is malformed: Unexpected UTF-8 BOM"),
        (json.dumps({"a": 1}).encode("utf-16"), "it is malformed"),
        (b"[" * 100_000 + b"]" * 100_000, f"nested more than {MAX_DEPTH} deep"),
        (b"[" * 100_000, "it is malformed"),
        (b"[" * 70 + b"]" * 70, f"nested more than {MAX_DEPTH} deep"),
        (b'{"a":' * 70 + b"1" + b"}" * 70, f"nested more than {MAX_DEPTH} deep"),
        (b'{"a": "\\ud83d"}', "half of a surrogate pair"),
        (b'{"\\uDE00": 1}', "half of a surrogate pair"),
        (b'[["a\\u0000"]]', "the character NUL"),
        (b"9" * 5000, "it is malformed"),
    ],
)
def test_what_is_no_json_that_can_be_used_is_one_line(text: bytes, words: str) -> None:
    with pytest.raises(TaskError, match=words) as caught:
        parse_json(text, "data x.json", TaskError)
    assert str(caught.value).startswith("data x.json cannot be read: ")
    assert "\n" not in str(caught.value)


def test_what_json_may_hold_is_read() -> None:
    """The control: whole surrogate pairs, NUL where it is asked for, escapes of escapes, depth up to the bound."""
    assert parse_json('"\\ud83d\\ude00"', "x", TaskError) == "😀"
    assert parse_json('"\\\\ud800"', "x", TaskError) == "\\ud800"
    assert parse_json('"\\u0000"', "x", TaskError, nul=True) == "\0"
    assert parse_json('"\\\\u0000"', "x", TaskError) == "\\u0000"
    deep = "[" * MAX_DEPTH + "]" * MAX_DEPTH
    assert json.dumps(parse_json(deep, "x", TaskError)) == deep
    assert parse_json(b"[Infinity, 1e400]", "x", TaskError) == [float("inf")] * 2


@pytest.mark.parametrize(
    ("value", "kind", "words"),
    [
        ([], "text", r"config.json: a: expected text, found a list \(\[\]\)"),
        (1, "keys and values", "a: expected keys and values, found 1"),
        ("x", "keys and values", 'a: expected keys and values, found "x"'),
        (True, "a whole number", "a: expected a whole number, found true"),
        (1.5, "a whole number", "a: expected a whole number, found 1.5"),
        (0, "true or false", "a: expected true or false, found 0"),
        ({"b": 1}, "a list", "a: expected a list, found keys and values"),
    ],
)
def test_a_value_of_another_type_names_file_and_key(value: Any, kind: str, words: str, tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_text(json.dumps({"a": value}), encoding="utf-8")
    with pytest.raises(CheckpointError, match=words):
        read_object(path, CheckpointError, {"a": kind})
    path.write_text('{"a": null}', encoding="utf-8")
    assert read_object(path, CheckpointError, {"a": kind, "b": kind}) == {"a": None}


def test_only_regular_files_are_read(tmp_path: Path) -> None:
    """A pipe would be waited for, and a device need not end."""
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "zero").symlink_to("/dev/zero")
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "folder").mkdir()
    begun = time.process_time()
    for name, words in (("pipe", "found a pipe"), ("zero", "found a device"), ("folder", "found a folder"),
                        ("loop", "Too many levels"), ("none", "No such file")):  # fmt: skip
        with pytest.raises(TaskError, match=words):
            read_text(tmp_path / name, TaskError)
        with pytest.raises(TaskError, match=words):
            read_json(tmp_path / name, TaskError)
        assert front_matter(tmp_path / name) == {}
    assert time.process_time() - begun < 5
    (tmp_path / "text").write_text("x", encoding="utf-8")
    assert check_regular(tmp_path / "text").st_size == 1


BILLION = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{name}: &{name} [{', '.join([f'*{before}'] * 9)}]\n" for before, name in zip("abcdefgh", "bcdefghi", strict=True)
)
MERGED = "a: &a {k: 1}\n" + "".join(
    f"{name}: &{name} {{<<: [{', '.join([f'*{before}'] * 9)}]}}\n"
    for before, name in zip("abcdefgh", "bcdefghi", strict=True)
)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (BILLION, f"more than {MAX_NODES:,} values"),
        (MERGED, f"more than {MAX_NODES:,} values"),
        ("a: &x [*x]", "an alias of itself"),
        ("a: &x {b: {c: *x}}", "an alias of itself"),
        ("a: " + "[" * 70 + "]" * 70, "nested more than"),
        ("a: " + "[" * 5000, "nested more than"),
        ("- " * 5000, "nested more than"),
        ('a: "\\0"', "NUL"),
        ('a: "\\ud800"', "surrogate"),
        ("a: \0", "is not allowed"),
        ("a: !!int x", "does not fit"),
        ("a: !!python/object/apply:os.system [id]", "could not determine a constructor"),
        ("a: 1\na: 2", "given twice"),
        ("a: " + "9" * 5000, "does not fit"),
    ],
)
def test_yaml_is_bounded_before_values_are_built(text: str, words: str) -> None:
    begun = time.process_time()
    with pytest.raises(YamlFault, match=words):
        parse_yaml(text)
    assert time.process_time() - begun < 5


def test_aliases_within_the_bound_are_read() -> None:
    """The control."""
    assert parse_yaml("a: &x {b: [1, 2]}\nc: *x\nd: {<<: *x, e: 1e-3}")[0] == {
        "a": {"b": [1, 2]}, "c": {"b": [1, 2]}, "d": {"b": [1, 2], "e": 0.001}
    }  # fmt: skip
