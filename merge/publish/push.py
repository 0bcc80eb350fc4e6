"""Push a model folder to the Hub."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from merge.checkpoints.hub.download import SAFETENSORS, check_id, matches_any
from merge.checkpoints.hub.errors import hub_errors
from merge.disk.documents import check_header, read_text
from merge.disk.yaml_text import YamlFault
from merge.errors import HubError, UsageError, one_line
from merge.publish.card import models_inside
from merge.publish.private_paths import public_files

if TYPE_CHECKING:
    from huggingface_hub import HfApi


# upload_folder starts a second commit after this many files; a model folder holds a few dozen.
FILES_IN_ONE_COMMIT = 250


@dataclass(frozen=True)
class PushPlan:
    """Everything a push will do, before the first request: `--dry-run` shows it and `push` carries it out.

    Attributes:
        private: None leaves the visibility to the account's default, or to the repository if it exists.
        files: (path, bytes) of every file, as pushed.
        rewritten: the files that are pushed in another form than they have in the folder, see `public_files`.
        card: the text of README.md, as pushed.
    """

    folder: Path
    repo_id: str
    private: bool | None
    files: tuple[tuple[str, int], ...]
    rewritten: Mapping[str, bytes]
    card: str

    @property
    def visibility(self) -> str:
        """The visibility in words."""
        if self.private is None:
            return "as the account's default"
        return "private" if self.private else "public"


def plan_push(folder: Path, repo_id: str, private: bool | None) -> PushPlan:
    """Check a folder and return the plan of its push; nothing is sent.

    Args:
        folder: it must hold config.json, README.md (the card) and model*.safetensors; all its files are pushed.
        repo_id: `org/name`.
        private: True, False, or None for the account's default.
    Raises:
        UsageError: there is no such folder.
        HubError: bad id, the folder is not a model that can be pushed (every fault is listed), or a file holds a path of
            this machine.
    """
    check_id(repo_id)
    if not folder.is_dir():
        raise UsageError(f"cannot push {folder}: there is no such folder")
    files = _files(folder)
    names = [name for name, _ in files]
    faults = [f"it has no {name}" for name in ("config.json", "README.md") if name not in names]
    if not any("/" not in name and matches_any(name, (SAFETENSORS,)) for name in names):
        faults.append(f"it has no {SAFETENSORS}")
    if len(files) > FILES_IN_ONE_COMMIT:
        faults.append(f"it holds {len(files)} files, more than the {FILES_IN_ONE_COMMIT} of one commit")
    if faults:
        advice = models_inside(folder) or " Is this the folder of a merged model?"
        raise HubError(f"cannot push {folder}: {'; '.join(faults)}.{advice}")
    rewritten = public_files(folder, repo_id)
    sizes = tuple((name, len(rewritten[name]) if name in rewritten else size) for name, size in files)
    return PushPlan(folder, repo_id, private, sizes, rewritten, card=_read_card(folder, rewritten.get("README.md")))


def push(plan: PushPlan, *, message: str, revision: str | None = None) -> str:
    """Push the planned folder in one commit and return its URL.

    The token (HF_TOKEN or the stored login), the repository's visibility and the card are checked before any upload.

    Args:
        plan: from `plan_push`; the folder must not have changed since.
        message: first line of the commit.
        revision: branch to commit to, created if missing (or refs/pr/N); the default branch if None.
    Raises:
        UsageError: the message is empty.
        HubError: the Hub refused the push, or cannot be reached.
    """
    if not message.strip():
        raise UsageError("a commit needs a message")
    action = f"push {plan.folder} to {plan.repo_id}"
    if plan_push(plan.folder, plan.repo_id, plan.private) != plan:
        raise HubError(f"cannot {action}: the folder has changed since the push was planned; plan it again")
    with hub_errors(action, writing=True), tempfile.TemporaryDirectory(prefix="merge-models-push-") as staged:
        from huggingface_hub import HfApi

        api = HfApi()
        _prepare_repository(api, plan, action, revision)
        _stage(plan, Path(staged))
        commit = api.upload_folder(
            repo_id=plan.repo_id,
            folder_path=staged,
            commit_message=message,
            revision=revision,
        )
    return str(commit.commit_url)


def _prepare_repository(api: HfApi, plan: PushPlan, action: str, revision: str | None) -> None:
    """Create the repository and the branch if they are missing, and check that this push may go there.

    create_repo goes first: it fails at once when the Hub cannot be reached, where upload_folder would try for 23 s.
    """
    api.create_repo(plan.repo_id, private=plan.private, exist_ok=True)
    # create_repo accepts any token, even none, when the repository exists and is public.
    api.auth_check(plan.repo_id, write=True)
    private = api.model_info(plan.repo_id).private
    if plan.private is not None and private is not plan.private:
        raise HubError(
            f"cannot {action} as {plan.visibility}: the repository is {'private' if private else 'public'}; "
            "push to another id, or change the repository's visibility in its settings on the Hub"
        )
    if revision is not None and not revision.startswith("refs/"):
        api.create_branch(plan.repo_id, branch=revision, exist_ok=True)


def _stage(plan: PushPlan, target: Path) -> None:
    """Make a folder of the files as pushed: the rewritten ones, and links to the others (copies where links are not allowed)."""
    for name, _ in plan.files:
        path, source = target / name, (plan.folder / name).resolve()
        path.parent.mkdir(parents=True, exist_ok=True)
        if name in plan.rewritten:
            path.write_bytes(plan.rewritten[name])
            continue
        try:
            path.symlink_to(source)
        except OSError:
            shutil.copyfile(source, path)


def _files(folder: Path) -> tuple[tuple[str, int], ...]:
    """Return (path, bytes) of every file that upload_folder uploads: all except git's and the Hub client's own."""
    files = []
    for path in folder.glob("**/*"):
        name = path.relative_to(folder).as_posix()
        if path.is_file() and "/.git/" not in f"/{name}/" and "/.cache/huggingface/" not in f"/{name}/":
            files.append((name, path.stat().st_size))
    return tuple(sorted(files))


def _read_card(folder: Path, rewritten: bytes | None) -> str:
    """Return the card's text as pushed, after parsing its header as the Hub does."""
    import yaml
    from huggingface_hub import ModelCard

    path = folder / "README.md"
    card = (read_text(path, HubError) if rewritten is None else rewritten.decode()).replace("\r\n", "\n")
    try:
        check_header(card)
        ModelCard(card)
    except (ValueError, yaml.YAMLError, YamlFault) as error:
        raise HubError(f"cannot push {folder}: the YAML header of README.md is invalid: {one_line(error)}") from error
    return card
