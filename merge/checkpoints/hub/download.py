"""Download a checkpoint from the Hugging Face Hub.

huggingface_hub is imported inside the functions that call the Hub, so that testing whether a text is a Hub id stays fast.
Every failure is one HubError line; no message and no log line holds a token.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath

from merge.checkpoints.hub.errors import hub_errors
from merge.errors import HubError

# The Hub's own rule for a name, with the namespace obligatory; `\b` keeps '-' and '.' off both ends of a part.
HUB_ID = re.compile(r"\b[\w\-.]{1,96}\b/\b[\w\-.]{1,96}\b", re.ASCII)

# Weights, by the names that transformers gives them; permutation.safetensors, optimizer.bin and training_args.bin do not match.
SAFETENSORS = "model*.safetensors"
PICKLES = "pytorch_model*.bin"
TEXT_FILES = (
    "*.json",
    "*.txt",
    "*.md",
    "*.yaml",
    "*.yml",
    "*.jinja",
    "*.py",
    "[Ll][Ii][Cc][Ee][Nn][SsCc][Ee]*",
    "NOTICE*",
    "COPYING*",
)
VOCABULARIES = (
    "*.model",
    "*.bpe",
    "bpe.codes",
    "*.tiktoken",
    "*.spm",
    "*.tokenizer",
)  # of SentencePiece, BPE and tiktoken tokenizers
SIDE_FILES = (*TEXT_FILES, *VOCABULARIES, "permutation*.safetensors")
# Folders that hold the model once more, in another runtime's format or from an earlier step of its training.
OTHER_COPIES = ("onnx", "openvino", "coreml", "*.mlpackage", "checkpoint-*", "runs")
TIMEOUT_SECONDS = 30.0  # for the Hub's answer; its client would wait for ever


@dataclass(frozen=True)
class Snapshot:
    """A checkpoint downloaded from the Hub: its folder and its commit."""

    folder: Path
    repo_id: str
    commit: str


def looks_like_hub_id(text: str) -> bool:
    """Return whether a text is an id `org/name` by the Hub's rules; paths such as ./a, /a/b, ~/a or a/ are not."""
    if not HUB_ID.fullmatch(text):
        return False
    return "--" not in text and ".." not in text and not text.endswith(".git")


def files_to_download(names: Iterable[str]) -> tuple[str, ...]:
    """Return the files of a repository that make a PyTorch checkpoint, in the order given.

    A pickle (.bin) is taken only from a folder that has no safetensors.
    """
    paths = [PurePosixPath(name) for name in names]
    originals = [path for path in paths if not any(matches_any(part, OTHER_COPIES) for part in path.parts[:-1])]
    safe_folders = {path.parent for path in originals if matches_any(path.name, (SAFETENSORS,))}
    return tuple(
        str(path)
        for path in originals
        if matches_any(path.name, (SAFETENSORS, *SIDE_FILES))
        or (matches_any(path.name, (PICKLES,)) and path.parent not in safe_folders)
    )


def download(repo_id: str, revision: str | None = None) -> Snapshot:
    """Download a checkpoint into the Hub's cache and return its folder, pinned to a commit.

    In offline mode the cached copy is returned. Without a network the download fails even if there is a cached copy, which
    may be outdated.

    Args:
        repo_id: `org/name`.
        revision: branch, tag or commit; the default branch if None.
    Raises:
        HubError: bad id, no such repository or revision, no access, no network, no weights.
    """
    check_id(repo_id)
    asked = f"download {repo_id}" + (f" at {revision}" if revision else "")
    with hub_errors(asked, writing=False):
        from huggingface_hub import HfApi, snapshot_download
        from huggingface_hub.errors import OfflineModeIsEnabled

        try:
            info = HfApi().model_info(repo_id, revision=revision, timeout=TIMEOUT_SECONDS)
        except OfflineModeIsEnabled:
            return _cached(repo_id, revision, asked)
        names = [file.rfilename for file in info.siblings or ()]
        wanted = files_to_download(names)
        _require_weights(wanted, asked, found=names)
        # The branch, not the commit, is asked for, so that the cache learns its name and offline mode finds it again.
        folder = Path(snapshot_download(repo_id, revision=revision, allow_patterns=[_literal(name) for name in wanted]))
    if folder.name != info.sha:
        raise HubError(f"cannot {asked}: it was changed while being read ({info.sha} to {folder.name}); run it again")
    return Snapshot(folder, repo_id, folder.name)


def _cached(repo_id: str, revision: str | None, asked: str) -> Snapshot:
    """Return the copy in the cache, for offline mode."""
    from huggingface_hub import snapshot_download

    # config.json alone is required: which other files an earlier download left out cannot be known here.
    folder = Path(snapshot_download(repo_id, revision=revision, local_files_only=True, allow_patterns=["config.json"]))
    names = [path.relative_to(folder).as_posix() for path in folder.rglob("*")]
    _require_weights(names, f"{asked} (offline mode is on, this is the cached copy)", found=names)
    return Snapshot(folder, repo_id, folder.name)


def check_id(repo_id: str) -> None:
    """Raise a HubError unless `repo_id` is `org/name`."""
    if not looks_like_hub_id(repo_id):
        raise HubError(f"{repo_id!r} is not a Hub id: write org/name, in letters, digits, '-', '_' and '.'")


def _require_weights(names: Iterable[str], asked: str, *, found: list[str]) -> None:
    if not any(matches_any(PurePosixPath(name).name, (SAFETENSORS, PICKLES)) for name in names):
        if "adapter_config.json" in found:
            raise HubError(
                f"cannot {asked}: it is an adapter alone (adapter_config.json), not a whole model. Fold it into its model first, "
                "with peft: PeftModel.from_pretrained(model, ID).merge_and_unload().save_pretrained(FOLDER)."
            )
        shown = ", ".join(sorted(found)[:8]) + (", ..." if len(found) > 8 else "")
        raise HubError(f"cannot {asked}: it holds no {SAFETENSORS} and no {PICKLES}, but: {shown or 'nothing'}")


def matches_any(name: str, patterns: tuple[str, ...]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def _literal(name: str) -> str:
    """Return a pattern that matches this name alone."""
    return re.sub(r"([*?[])", r"[\1]", name)
