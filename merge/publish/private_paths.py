"""Local paths in the files of a merged folder: replaced by names before a push, so that none leaves the machine."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from merge.disk.documents import parse_json, read_json
from merge.errors import HubError
from merge.publish.card import MANIFESTS

TEXT_SUFFIXES = (".json", ".md", ".yaml", ".yml", ".txt", ".jinja", ".py")
# A vocabulary holds words, not paths, and may be large.
MAX_TEXT_BYTES = 4_000_000


def public_files(folder: Path, repo_id: str) -> dict[str, bytes]:
    """Return the files of a merged folder that a push rewrites, by name: the card loads `repo_id`, and paths are names.

    Every local path that the manifest holds (of models, texts, outputs) is replaced by its last component in all text
    files, by more components where two paths would get one name. The manifest gets the hashes of the rewritten files.

    Raises:
        HubError: a text file still holds a path below the home folder or the current one.
    """
    manifest = _manifest(folder)
    names = _short_names(_local_paths(manifest)) if manifest else {}
    texts = dict(_texts(folder))
    rewritten = {}
    for name, text in texts.items():
        public = _replace(text, names)
        if name == "README.md" and manifest:
            public = _with_repo_id(public, str(manifest.get("name", folder.name)), repo_id)
        if public != text:
            rewritten[name] = public.encode()
    _check(folder, {**texts, **{name: data.decode() for name, data in rewritten.items()}})
    return _with_new_hashes(rewritten, texts)


def _manifest(folder: Path) -> dict[str, Any] | None:
    path = next((folder / name for name in MANIFESTS if (folder / name).is_file()), None)
    if path is None:
        return None
    content = read_json(path, HubError)
    return content if isinstance(content, dict) and isinstance(content.get("files"), dict) else None


def _texts(folder: Path) -> Iterator[tuple[str, str]]:
    for path in sorted(folder.rglob("*")):
        if path.suffix in TEXT_SUFFIXES and path.is_file() and path.stat().st_size <= MAX_TEXT_BYTES:
            try:
                yield path.relative_to(folder).as_posix(), path.read_bytes().decode()
            except UnicodeDecodeError:
                continue


def _local_paths(manifest: Mapping[str, Any]) -> set[str]:
    """Return the strings of the manifest that are paths with a folder; a bare name says nothing of the machine."""
    inputs = [*manifest.get("models", ()), *([manifest["base"]] if manifest.get("base") else [])]
    hub_ids = {each["source"] for each in inputs if each.get("commit")}
    sources = {each["source"] for each in inputs}
    rest = {key: value for key, value in manifest.items() if key != "files"}
    strings = {text for text in _strings(rest) if text and "\n" not in text and ("/" in text or "\\" in text)}
    return {text for text in strings if text not in hub_ids and (text in sources or _is_local(text))}


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
    try:
        return Path(text).is_absolute() or text.startswith(("~", "./", "../")) or Path(text).exists()
    except (OSError, ValueError):  # too long for a path, or with a NUL
        return False


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
    for path in sorted(names, key=len, reverse=True):
        for form in {path, json.dumps(path)[1:-1]}:
            text = re.sub(rf"(?<![\w./~\\-]){re.escape(form)}(?![\w-])", lambda _, path=path: names[path], text)  # type: ignore[misc]
    return text


def _with_repo_id(card: str, name: str, repo_id: str) -> str:
    return card.replace(f".from_pretrained({name!r})", f".from_pretrained({repo_id!r})")


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
