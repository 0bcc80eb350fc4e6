"""Local paths in the files of a merged folder: replaced by names before a push, so that none leaves the machine."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from merge.disk.documents import check_kinds, checked_object, parse_json, read_json
from merge.errors import HubError
from merge.publish.card import MANIFESTS

TEXT_SUFFIXES = (".json", ".md", ".yaml", ".yml", ".txt", ".jinja", ".py")
# A vocabulary holds words, not paths, and may be large.
MAX_TEXT_BYTES = 4_000_000
# Files that merge-models wrote: they name paths as they were given. Others hold words too (a tokenizer's, class names), of
# which one may read like a relative path.
WRITTEN = (*MANIFESTS, "README.md", "recipe.yaml")
# A path of at least two parts inside a sentence or a command, from the root or the home folder.
INNER_PATH = re.compile(r"(?<![\w.:/~\\-])(?:~|/[\w.+@~-]+)(?:/[\w.+@~-]+)+")


def public_files(folder: Path, repo_id: str) -> dict[str, bytes]:
    """Return the files of a merged folder that a push rewrites, by name: the card loads `repo_id`, and paths are names.

    Every local path that the manifest holds (of models, texts, outputs) is replaced by its last component, by more
    components where two paths would get one name: in the files that merge-models wrote, and in all other text files where
    it begins at the root or the home folder. The manifest gets the hashes of the rewritten files.

    Raises:
        HubError: a text file still holds a path below the home folder or the current one, or the manifest is malformed.
    """
    manifest = _manifest(folder)
    names = _short_names(_local_paths(manifest)) if manifest else {}
    whole = {path: name for path, name in names.items() if _is_whole(path)}
    texts = dict(_texts(folder))
    rewritten = {}
    for name, text in texts.items():
        public = _replace(text, names if name in WRITTEN else whole)
        if name == "README.md" and manifest:
            public = _with_repo_id(public, {str(manifest.get("name")), folder.resolve().name}, repo_id)
        if public != text:
            rewritten[name] = public.encode()
    _check(folder, {**texts, **{name: data.decode() for name, data in rewritten.items()}})
    return _with_new_hashes(rewritten, texts)


def _manifest(folder: Path) -> dict[str, Any] | None:
    path = next((folder / name for name in MANIFESTS if (folder / name).is_file()), None)
    if path is None:
        return None
    content = read_json(path, HubError)
    if not isinstance(content, dict) or not isinstance(content.get("files"), dict):
        return None
    check_kinds(content, str(path), HubError, {"models": "a list", "base": "keys and values"})
    for model in _inputs(content):
        name = f"{path}: an input"
        if checked_object(model, name, HubError, {"source": "text", "commit": "text"}).get("source") is None:
            raise HubError(f"{name} has no source. Was the file edited? Merge again, or delete it.")
    return content


def _inputs(manifest: Mapping[str, Any]) -> list[Any]:
    return [*(manifest.get("models") or ()), *([manifest["base"]] if manifest.get("base") else [])]


def _texts(folder: Path) -> Iterator[tuple[str, str]]:
    for path in sorted(folder.rglob("*")):
        if path.suffix in TEXT_SUFFIXES and path.is_file() and path.stat().st_size <= MAX_TEXT_BYTES:
            try:
                yield path.relative_to(folder).as_posix(), path.read_bytes().decode()
            except UnicodeDecodeError:
                continue


def _local_paths(manifest: Mapping[str, Any]) -> set[str]:
    """Return the strings of the manifest that are paths with a folder; a bare name says nothing of the machine."""
    inputs = _inputs(manifest)
    hub_ids = {each["source"] for each in inputs if each.get("commit")}
    sources = {each["source"] for each in inputs}
    rest = {key: value for key, value in manifest.items() if key != "files"}
    strings = {text for text in _strings(rest) if "/" in text or "\\" in text} - hub_ids
    paths = {text for text in strings if "\n" not in text and (text in sources or _is_local(text))}
    without = dict.fromkeys(paths, "")
    return paths | {found for text in strings - paths for found in INNER_PATH.findall(_replace(text, without))}


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for key, each in value.items():
            yield from _strings(key)
            yield from _strings(each)
    elif isinstance(value, list):
        for each in value:
            yield from _strings(each)


def _is_local(text: str) -> bool:
    """Return whether a text is a path, and not a sentence that begins with one: a path with blanks is one that exists."""
    try:
        begins = Path(text).is_absolute() or text.startswith(("~", "./", "../"))
        return (begins and not re.search(r"\s", text)) or Path(text).expanduser().exists()
    except (OSError, ValueError, RuntimeError):  # too long for a path, with a NUL, or of a user who is not known
        return False


def _is_whole(path: str) -> bool:
    """Return whether a path begins at the root or the home folder, and has a folder below it."""
    return (Path(path).is_absolute() or path.startswith("~/")) and len(Path(path).parents) > 1


def _short_names(paths: set[str]) -> dict[str, str]:
    """Return a name for each path: its last components, as few as tell different folders apart."""
    parts = {path: Path(path.rstrip("/\\")).expanduser().absolute().parts for path in paths}
    names = {}
    for path, own in parts.items():
        others = [other for other in parts.values() if other != own]
        count = next(k for k in range(1, len(own) + 1) if not any(o[-k:] == own[-k:] for o in others))
        names[path] = "/".join(own[-count:]).lstrip("/")
    return names


def _replace(text: str, names: Mapping[str, str]) -> str:
    """Return a text with a name for each path, in every form that a path has in prose, JSON and YAML, which folds lines."""
    for path in sorted(names, key=len, reverse=True):
        escaped = (json.dumps(path)[1:-1], json.dumps(path, ensure_ascii=False)[1:-1], path.replace("'", "''"))
        for form in dict.fromkeys((path, *escaped)):
            words = r"\s+".join(map(re.escape, form.split(" ")))
            text = re.sub(rf"(?<![\w./~\\-]){words}(?![\w-])", lambda _, path=path: names[path], text)  # type: ignore[misc]
    return text


def _with_repo_id(card: str, names: set[str], repo_id: str) -> str:
    """Return a card whose code loads the repository: whatever class loads it, and whatever the folder was called."""
    names |= {title[1] for title in [re.search(r"^# (.+)$", card, re.MULTILINE)] if title}
    for name in names:
        line = rf"^(model = [\w.]+\(){re.escape(repr(name))}\)$"
        card = re.sub(line, lambda found: f"{found[1]}{repo_id!r})", card, flags=re.MULTILINE)
    return card


def _with_new_hashes(rewritten: Mapping[str, bytes], texts: Mapping[str, str]) -> dict[str, bytes]:
    """Return the files with the manifest last, which states the hashes of the others as they are pushed."""
    manifest = next((name for name in MANIFESTS if name in texts), None)
    others = {name: data for name, data in rewritten.items() if name != manifest}
    if manifest is None or not rewritten:
        return others
    content = parse_json(rewritten.get(manifest, texts[manifest].encode()), manifest, HubError)
    content["files"] |= {
        name: hashlib.sha256(data).hexdigest() for name, data in others.items() if name in content["files"]
    }
    return {**others, manifest: (json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode()}


def _check(folder: Path, texts: Mapping[str, str]) -> None:
    roots = {str(root).rstrip("/\\") for root in (Path.home(), Path.cwd())} - {""}
    for name, text in texts.items():
        for root in roots:
            if hit := re.search(rf"(?<![\w.-]){re.escape(root)}[/\\][^\s\"'`,;)]*", text):
                raise HubError(
                    f"cannot push {folder}: {name} holds a path of this machine, {hit[0]!r}. "
                    "Remove it from the file and push again."
                )
