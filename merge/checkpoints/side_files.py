"""Side files: the files of a checkpoint's folder that belong to the model and are copied with the weights.

They are a list: tokenizer, processor, generation, chat templates, sentence-transformers modules, licences, and the code
that the config names. Everything else is left behind: weights of other formats, scores, logs, data, training state.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath
from typing import Any

from merge.disk.documents import read_json
from merge.errors import CheckpointError

WEIGHT_ENDINGS = (
    ".safetensors",
    ".safetensors.index.json",
    ".bin",
    ".bin.index.json",
    ".h5",
    ".msgpack",
    ".onnx",
    ".ot",
)
TOKENIZER = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "vocab.txt", "vocab.json",
    "vocab.bpe", "encoder.json", "merges.txt", "bpe.codes", "dict.txt", "*.spm", "*.tiktoken", "tiktoken.model",
    "spiece.model", "spm*.model", "*bpe.model", "sentencepiece*.model", "tokenizer*.model", "prophetnet.tokenizer",
    "vocab-src.json", "vocab-tgt.json", "target_vocab.json", "word_shape.json", "word_pronunciation.json",
    "entity_vocab.json", "byte_maps.json", "normalizer.json", "emoji.json", "tekken.json", "unigram.json",
)  # fmt: skip
PROCESSOR = (
    "preprocessor_config.json", "processor_config.json", "video_preprocessor_config.json", "image_processor_config.json",
    "feature_extractor_config.json", "audio_tokenizer_config.json",
)  # fmt: skip
GENERATION = ("generation_config.json", "chat_template.jinja", "chat_template.json")
IN_FOLDERS = ("custom_generate/*.py", "additional_chat_templates/*.jinja")
PIPELINE = ("modules.json", "config_sentence_transformers.json", "sentence_*_config.json", "config_setfit.json")
# In the folder of a module: its settings, the words that it weighs, and the tokenizer of one that reads text itself.
MODULE = ("*config.json", "idf.json", *TOKENIZER)
MODULE_FOLDER = re.compile(r"\d+_\w+")
LICENCES = (
    "licen[sc]e*",
    "*[-_]licen[sc]e*",
    "notice*",
    "copying*",
    "copyright*",
    "third*part*notice*",
    "*use_policy*",
)
LICENCE_ENDINGS = ("", ".txt", ".md", ".rst", ".html", ".pdf")
# The files that name code of the folder, in auto_map.
NAMES_CODE = ("config.json", "tokenizer_config.json", *PROCESSOR)
RELATIVE_IMPORT = re.compile(r"^\s*from\s+\.(\w+)\s+import\b", re.MULTILINE)


def side_files(folder: Path, weights: set[str]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return (files to copy, files left behind); hidden files, config.json, card and weights that are read are in neither."""
    side: list[str] = []
    left: list[str] = []
    listed = _listed_modules(folder)
    modules = {path for _, path in listed if path}
    code = _code(folder, [kind for kind, _ in listed])
    for path in sorted(folder.rglob("*")):
        relative = path.relative_to(folder)
        name = relative.as_posix()
        hidden = any(part.startswith(".") for part in relative.parts)
        if not path.is_file() or hidden or name in ("config.json", "README.md") or name in weights:
            continue
        if name.endswith(".index.json") and name.removesuffix(".index.json") not in weights:
            continue  # of the shards that are read: a new one is written
        (side if name in code or _belongs(name, modules) else left).append(name)
    return tuple(side), tuple(left)


def _belongs(name: str, modules: set[str]) -> bool:
    """Return whether a file, by its path, is one of a model's own."""
    path = PurePosixPath(name)
    inside = [str(parent) for parent in path.parents if str(parent) != "."]
    if any(parent in modules or MODULE_FOLDER.fullmatch(parent) for parent in inside):
        return _matches(path.name, MODULE)
    if inside:
        return inside[-1].casefold() in ("licenses", "licences") or _matches(name, IN_FOLDERS)
    return _matches(name, (*TOKENIZER, *PROCESSOR, *GENERATION, *PIPELINE)) or _is_licence(name)


def _is_licence(name: str) -> bool:
    lower = name.casefold()
    plain = "." not in lower or lower.endswith(LICENCE_ENDINGS[1:])
    return plain and _matches(lower, LICENCES)


def _matches(name: str, patterns: Iterable[str]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def _listed_modules(folder: Path) -> list[tuple[str, str]]:
    """Return (class, folder) of each module in modules.json; nothing where it is malformed, which `read_modules` says."""
    listed = _read(folder / "modules.json")
    entries = listed if isinstance(listed, list) else []
    return [
        (str(entry.get("type", "")), str(entry.get("path", "")).strip("/"))
        for entry in entries
        if isinstance(entry, dict)
    ]


def _code(folder: Path, module_kinds: Iterable[str]) -> set[str]:
    """Return the Python files that configs and modules.json name by their classes, and what those import beside them."""
    named = [name for file in NAMES_CODE for name in _auto_map(_read(folder / file))]
    waiting = [f"{name.split('.')[0]}.py" for name in [*named, *module_kinds] if "--" not in name]
    code: set[str] = set()
    while waiting:
        file = waiting.pop()
        if file in code or "/" in file or not (folder / file).is_file():
            continue
        code.add(file)
        text = (folder / file).read_text(encoding="utf-8", errors="replace")
        waiting += [f"{name}.py" for name in RELATIVE_IMPORT.findall(text)]
    return code


def _auto_map(config: Any) -> Iterator[str]:
    classes = config.get("auto_map") if isinstance(config, dict) else None
    for value in classes.values() if isinstance(classes, dict) else ():
        yield from (str(name) for name in (value if isinstance(value, list) else [value]) if name)


def _read(path: Path) -> Any:
    """Return the content of a JSON file; None where it cannot be read, which whoever needs it says."""
    try:
        return read_json(path, CheckpointError) if path.is_file() else None
    except CheckpointError:
        return None
