"""Documents: the one place that reads JSON and the YAML header of a model card; files, depth, text and types are checked.

Only regular files are read, of a bounded size. What comes back is nested at most MAX_DEPTH deep and holds no half of a
surrogate pair, which no file can hold again, and no NUL where names are expected. A value of the wrong type is an error that
names file and key.
"""

from __future__ import annotations

import json
import math
import os
import re
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from merge.disk.yaml_text import YamlFault, parse_yaml
from merge.errors import MergeError, brief, first_line

MAX_DEPTH = 64  # of nested lists and mappings
MAX_BYTES = 1 << 30  # a tokenizer.json of half a million tokens has some 60 MB
KINDS: dict[str, tuple[type, ...]] = {
    "text": (str,),
    "a number": (int, float),
    "a whole number": (int,),
    "true or false": (bool,),
    "a list": (list,),
    "keys and values": (dict,),
    "text or keys and values": (str, dict),
    "text or a list": (str, list),
    "a list or keys and values": (list, dict),
    "a whole number or a list": (int, list),
}
# What git leaves in the place of a large file until git-lfs fetches it.
LFS_POINTER = "version https://git-lfs.github.com/spec/"
NOT_FETCHED = (
    "is a Git LFS pointer, and not the file itself. Fetch it: git lfs pull, or download the model with hf download."
)
_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")
_HEADER = re.compile(r"---[ \t]*\r?\n(.*?)\r?\n---", re.DOTALL)
_FILE_KINDS = {
    stat.S_IFIFO: "a pipe",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFSOCK: "a socket",
    stat.S_IFDIR: "a folder",
}


class NoRegularFile(OSError):
    """A path names something that exists and is no file: a pipe, a device, a folder."""


def check_regular(path: Path | str) -> os.stat_result:
    """Stop where a path names no regular file: a pipe would be waited for, a device need not end.

    Raises:
        OSError: it does not exist, or is no regular file; the message says what it is.
    """
    status = os.stat(path)  # noqa: PTH116 - path may be text
    if not stat.S_ISREG(status.st_mode):
        kind = _FILE_KINDS.get(stat.S_IFMT(status.st_mode), "no regular file")
        raise NoRegularFile(f"expected a file, found {kind}")
    return status


def read_text(path: Path, error: type[MergeError], name: str | None = None) -> str:
    """Return the text of a regular file in UTF-8.

    Args:
        name: of the file in messages; its path when None.
    Raises:
        MergeError: of the class `error`: the file cannot be read, is too large, or is not UTF-8.
    """
    name = name or str(path)
    try:
        size = check_regular(path).st_size
        if size > MAX_BYTES:
            raise error(f"{name} cannot be read: it has {size:,} bytes, more than the {MAX_BYTES:,} of any such file.")
        text = path.read_bytes().decode("utf-8")
        if text.startswith(LFS_POINTER):
            raise error(f"{name} {NOT_FETCHED}")
        return text
    except (OSError, ValueError) as fault:
        reason = (fault.strerror if isinstance(fault, OSError) else None) or first_line(fault)
        raise error(f"{name} cannot be read: {reason}") from fault


def parse_json(text: str | bytes, name: str, error: type[MergeError], nul: bool = False) -> Any:
    """Return the value of a JSON text.

    Args:
        name: of the text in messages.
        nul: whether NUL may be a character of its texts, as of a tokenizer's vocabulary.
    Raises:
        MergeError: of the class `error`: it is no JSON, is nested too deeply, or holds text that no file can hold.
    """
    try:
        if isinstance(text, bytes):  # json.loads would take UTF-16 as well
            text = text.decode("utf-8")
        value = json.loads(text)
    except RecursionError:
        raise error(f"{name} cannot be read: it is malformed: nested more than {MAX_DEPTH} deep.") from None
    except ValueError as fault:
        raise error(f"{name} cannot be read: it is malformed: {first_line(fault)}") from fault
    _check_depth(value, name, error)
    if _SURROGATE.search(text) and any("\ud800" <= c <= "\udfff" for each in _texts(value) for c in each):
        raise error(f"{name} cannot be read: it holds half of a surrogate pair (\\ud800 to \\udfff), which is no text.")
    if not nul and "\\u0000" in text and any("\0" in each for each in _texts(value)):
        raise error(f"{name} cannot be read: one of its texts holds the character NUL (\\u0000).")
    return value


def read_json(path: Path, error: type[MergeError], name: str | None = None, nul: bool = False) -> Any:
    """Return the value of a JSON file; arguments and errors as those of `read_text` and `parse_json`."""
    return parse_json(read_text(path, error, name), name or str(path), error, nul)


def read_object(
    path: Path,
    error: type[MergeError],
    kinds: Mapping[str, str] | None = None,
    name: str | None = None,
    nul: bool = False,
) -> dict[str, Any]:
    """Return the JSON object of a file.

    Args:
        kinds: key -> kind of KINDS that its value has where it is there; null is as good as absent.
    Raises:
        MergeError: of the class `error`: as `read_json`, or it is no object, or a value is of another kind.
    """
    return checked_object(read_json(path, error, name, nul), name or str(path), error, kinds or {})


def checked_object(value: Any, name: str, error: type[MergeError], kinds: Mapping[str, str]) -> dict[str, Any]:
    """Return a value that is an object whose entries are of these kinds, as `read_object` does."""
    if not isinstance(value, dict):
        raise error(f"{name} is malformed: a JSON object was expected, found {shown(value)}.")
    check_kinds(value, name, error, kinds)
    return value


def check_kinds(entries: Mapping[str, Any], name: str, error: type[MergeError], kinds: Mapping[str, str]) -> None:
    """Stop where an entry is not of its kind; "a.b" names the entry b of the entry a; true is no number."""
    for key, kind in kinds.items():
        value: Any = entries
        for part in key.split("."):
            value = value.get(part) if isinstance(value, Mapping) else None
        allowed = KINDS[kind]
        unfit = not isinstance(value, allowed) or (isinstance(value, bool) and bool not in allowed)
        if value is not None and (unfit or (isinstance(value, float) and not math.isfinite(value))):
            raise error(f"{name}: {key}: expected {kind}, found {shown(value)}.")


def as_json(value: Any) -> Any:
    """Return a value as its JSON text gives it back: tuples as lists, keys as text."""
    return json.loads(json.dumps(value))


def front_matter(path: Path) -> dict[str, Any]:
    """Return the YAML header of a model card; nothing where there is none that can be read."""
    try:
        check_regular(path)
        value = check_header(path.read_text(encoding="utf-8", errors="replace"))
    except (OSError, YamlFault):
        return {}
    return value if isinstance(value, dict) else {}


def check_header(card: str) -> Any:
    """Return the value of a card's YAML header; None where it has none.

    Raises:
        YamlFault: it is not YAML, or is larger than what is read.
    """
    header = _HEADER.match(card)
    return parse_yaml(header[1], strict=False)[0] if header else None


def shown(value: Any) -> str:
    """Return a value for a message: its kind in words, and its text cut short."""
    if value is None:
        return "null"
    text = brief(json.dumps(value, ensure_ascii=True, default=str), 40)
    if isinstance(value, bool | str | int | float):
        return text
    return f"{'a list' if isinstance(value, list) else 'keys and values'} ({text})"


def _check_depth(value: Any, name: str, error: type[MergeError]) -> None:
    level = [value]
    for _ in range(MAX_DEPTH):
        level = (
            [
                child
                for each in level
                for child in (each.values() if isinstance(each, dict) else each)
                if isinstance(child, dict | list)
            ]
            if not isinstance(value, str | int | float | bool | None)
            else []
        )
        if not level:
            return
    raise error(f"{name} cannot be read: it is malformed: nested more than {MAX_DEPTH} deep.")


def _texts(value: Any) -> Iterator[str]:
    """Yield every text of a JSON value, keys too."""
    pending = [value]
    while pending:
        each = pending.pop()
        if isinstance(each, str):
            yield each
        elif isinstance(each, dict):
            pending += [*each, *each.values()]
        elif isinstance(each, list):
            pending += each
