"""Downloads and pushes against a Hub that runs here: what is pushed is what can be read back, and every refusal is one line."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import warm

from merge.checkpoints.hub.download import files_to_download, looks_like_hub_id
from merge.errors import HubError, UsageError
from merge.publish.push import plan_push, push
from tests.loopback_hub import GUEST_TOKEN, OWNER_TOKEN, LoopbackHub, Refusal, StoredFile

ROOT = Path(__file__).parents[4]
CARD = "---\nlicense: apache-2.0\nlibrary_name: transformers\ntags: [merge]\n---\n\n# A tiny merged model\n"
TRANSPORTS = [
    pytest.param(
        "xet",
        marks=[
            pytest.mark.slow,
            pytest.mark.skipif(importlib.util.find_spec("hf_xet") is None, reason="hf_xet is not installed"),
        ],
    ),
    "lfs",
]

# huggingface_hub reads HF_ENDPOINT and its kin when it is imported, so whatever speaks to the Hub runs in a process of
# its own. It takes a list of [verb, arguments] and gives a list of answers: one process makes many checks.
SPEAKER = """
import json, logging, sys
from dataclasses import asdict
from pathlib import Path
from merge.errors import MergeError
from merge.checkpoints.hub.download import download
from merge.publish.push import plan_push, push

logging.basicConfig(level=logging.DEBUG)  # whatever is logged must not hold a token

def plan_and_push(folder, repo_id, private=None, **settings):
    return push(plan_push(Path(folder), repo_id, private), message="Push a merged model", **settings)

def plan(folder, repo_id, private=None):
    return asdict(plan_push(Path(folder), repo_id, private))

verbs = {"push": plan_and_push, "plan": plan, "download": lambda **asked: asdict(download(**asked))}
answers = []
for verb, asked in json.load(sys.stdin):
    try:
        answers.append({"value": verbs[verb](**asked)})
    except MergeError as error:
        answers.append({"error": type(error).__name__, "text": str(error)})
print(json.dumps(answers, default=str))
"""

READER = """
import hashlib, json, sys
from transformers import BertForSequenceClassification

digests = {}
for repo_id in json.load(sys.stdin):
    model = BertForSequenceClassification.from_pretrained(repo_id)
    state = model.state_dict().items()
    digests[repo_id] = {name: hashlib.sha256(value.numpy().tobytes()).hexdigest() for name, value in state}
print(json.dumps(digests))
"""


@dataclass(frozen=True)
class Speaker:
    """Runs `SPEAKER` as a user of one Hub with one token."""

    home: Path
    endpoint: str
    token: str = OWNER_TOKEN
    xet: bool = False
    offline: bool = False

    def __call__(self, *jobs: tuple[str, dict[str, Any]]) -> list[Any]:
        """Return the answers; a refusal comes back as its text."""
        answers = json.loads(self.run(SPEAKER, json.dumps(jobs)))
        assert len(answers) == len(jobs)
        for answer in answers:
            if "error" in answer:
                assert answer["error"] == "HubError", answer
                assert "\n" not in answer["text"]
        return [answer.get("value", answer.get("text")) for answer in answers]

    def run(self, program: str, given: str) -> str:
        """Return what a program printed; it sees none of this process's Hub settings, and must not tell the token."""
        env = {
            "PATH": os.environ["PATH"],
            "HOME": str(self.home),
            "PYTHONPATH": str(ROOT),
            "HF_HOME": str(self.home / "hf"),
            "HF_ENDPOINT": self.endpoint,
            "HF_TOKEN": self.token,
            "HF_HUB_DISABLE_XET": "0" if self.xet else "1",
            "HF_HUB_OFFLINE": "1" if self.offline else "0",
        }
        # The one warning let through is the Hub client's own, about how it hands LFS files to its HTTP client.
        strict = ["-W", "error", "-W", "ignore:Use 'content=:DeprecationWarning"]
        command = [sys.executable, *strict, "-c", program]
        self.home.mkdir(exist_ok=True)
        done = warm.run(command, input=given, env=env, cwd=self.home)
        assert done.returncode == 0, done.stderr
        assert not any(token in done.stdout + done.stderr for token in (OWNER_TOKEN, GUEST_TOKEN, "hf_wrong"))
        return done.stdout.splitlines()[-1]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a tiny BERT classifier with a card, as a merge would write it."""
    import torch
    from transformers import BertConfig, BertForSequenceClassification

    folder = tmp_path_factory.mktemp("model") / "merged"
    torch.manual_seed(0)
    sizes = {"vocab_size": 40, "hidden_size": 16, "intermediate_size": 32, "max_position_embeddings": 12}
    config = BertConfig(**sizes, num_hidden_layers=2, num_attention_heads=2, num_labels=3)
    BertForSequenceClassification(config).save_pretrained(folder)
    (folder / "README.md").write_text(CARD, encoding="utf-8")
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text('{"pooling_mode_mean_tokens": true}', encoding="utf-8")
    return folder


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[LoopbackHub]:
    """Run a Hub with nothing in it."""
    with LoopbackHub(tmp_path / "cas") as running:
        yield running


@pytest.fixture
def speak(hub: LoopbackHub, tmp_path: Path) -> Speaker:
    """Speak to the Hub as the owner of me/*, over LFS, with a cache of one's own."""
    return Speaker(tmp_path, hub.url)


@pytest.fixture
def closed_port() -> str:
    """Return the address of a server that is not there."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{taken.getsockname()[1]}"


def copy_of(checkpoint: Path, tmp_path: Path, **files: str) -> Path:
    """Copy the checkpoint and write the given files into it ('README' is README.md)."""
    folder = tmp_path / "copy"
    shutil.copytree(checkpoint, folder)
    for name, text in files.items():
        (folder / f"{name}.md").write_text(text, encoding="utf-8")
    return folder


def digests(folder: Path) -> dict[str, str]:
    """Return the sha256 of every file below a folder, links followed."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


# --- without a Hub ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        *("org/name", "O-r.g_1/Na.me-2", "_a/_b", "a/b", "a" * 96 + "/" + "b" * 96, "a" * 97 + "/b", "a/" + "b" * 97),
        *("-org/name", "org/name-", "org/.name", "org./name", "org/na--me", "org/na..me", "org/name.git", "org/näme"),
        *("org/na me", "org/name\n", "a/b/c", "datasets/a/b", "org//name", "org/", "/name", "", "org\\name"),
        *("./name", "../name", "~/name", "~me/name", "/abs/name", "./a/b", "name/", "org/name/", "C:/name"),
    ],
)
def test_a_hub_id_is_what_the_hub_client_accepts_with_a_namespace(text: str) -> None:
    """The rule is written out here to spare an import; huggingface_hub's own validator is the reference for it."""
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

    try:
        validate_repo_id(text)
        valid = "/" in text
    except HFValidationError:
        valid = False
    assert looks_like_hub_id(text) is valid


def test_a_plain_name_is_no_hub_id() -> None:
    """`bert` is more likely a folder that was misspelt than one of the few models without a namespace."""
    assert not looks_like_hub_id("bert")


def test_asking_for_a_hub_id_imports_no_hub_client() -> None:
    """Commands look at ids before anything heavy is loaded, so the module itself must stay light."""
    program = (
        "import sys, merge.checkpoints.hub.download; "
        "merge.checkpoints.hub.download.looks_like_hub_id('a/b'); print('huggingface_hub' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


REPOSITORY = {
    "config.json": True,
    "model.safetensors": True,
    "tokenizer.json": True,
    "vocab.txt": True,
    "sentencepiece.bpe.model": True,
    "README.md": True,
    "1_Pooling/config.json": True,
    "2_Dense/pytorch_model.bin": True,  # this folder has no safetensors
    "pytorch_model.bin": False,
    "training_args.bin": False,
    "optimizer.pt": False,
    "tf_model.h5": False,
    "flax_model.msgpack": False,
    "rust_model.ot": False,
    "onnx/config.json": False,
    "onnx/model.onnx": False,
    "openvino/openvino_model.bin": False,
    "coreml/model.mlpackage/weights.json": False,
    "checkpoint-500/model.safetensors": False,
    ".gitattributes": False,
}


def test_only_the_files_of_a_pytorch_checkpoint_are_downloaded() -> None:
    """A repository may hold the model in six formats; one of them is needed, safetensors if it is there."""
    assert files_to_download(REPOSITORY) == tuple(name for name, wanted in REPOSITORY.items() if wanted)


def test_pickles_are_downloaded_when_there_are_no_safetensors() -> None:
    """An old repository has only pytorch_model.bin, possibly in shards; other .bin files are still no weights."""
    shards = ["pytorch_model-00001-of-00002.bin", "pytorch_model-00002-of-00002.bin", "pytorch_model.bin.index.json"]
    names = [*shards, "permutation.safetensors", "training_args.bin"]
    assert files_to_download(names) == (*shards, "permutation.safetensors")


@pytest.mark.parametrize(
    ("private", "words"), [(True, "private"), (False, "public"), (None, "as the account's default")]
)
def test_a_plan_tells_every_file_its_size_and_the_visibility(
    checkpoint: Path, private: bool | None, words: str
) -> None:
    """A dry run shows what a push would do: all files of the folder, whoever wrote them."""
    plan = plan_push(checkpoint, "me/merged", private)
    sizes = {name: (checkpoint / name).stat().st_size for name in digests(checkpoint)}
    assert dict(plan.files) == sizes
    assert len(plan.files) == len(sizes) == 4
    assert plan.card == CARD
    assert plan.visibility == words


def test_a_plan_leaves_out_what_the_upload_leaves_out(checkpoint: Path, tmp_path: Path) -> None:
    """upload_folder passes over git's and the Hub client's own folders, wherever they are."""
    folder = copy_of(checkpoint, tmp_path)
    for name in (".git/config", "sub/.git/config", ".cache/huggingface/trees.json"):
        (folder / name).parent.mkdir(parents=True)
        (folder / name).write_text("x", encoding="utf-8")
    assert plan_push(folder, "me/merged", None).files == plan_push(checkpoint, "me/merged", None).files


def test_a_plan_lists_every_fault_of_the_folder_at_once(tmp_path: Path) -> None:
    """permutation.safetensors lies in every merged folder and is no model; so do weights in a folder below."""
    (tmp_path / "sub").mkdir()
    for name in ("permutation.safetensors", "sub/model.safetensors"):
        (tmp_path / name).write_bytes(b"")
    with pytest.raises(HubError, match=r"no config\.json; it has no README\.md; it has no model\*\.safetensors"):
        plan_push(tmp_path, "me/merged", None)


@pytest.mark.parametrize("header", ["license: [mit", "- just\n- a list", "tags: a: b"])
def test_a_card_whose_header_is_no_yaml_record_is_refused(checkpoint: Path, tmp_path: Path, header: str) -> None:
    """The Hub would refuse it too, but only after the repository has been made."""
    folder = copy_of(checkpoint, tmp_path, README=f"---\n{header}\n---\n")
    with pytest.raises(HubError, match=r"the YAML header of README\.md is invalid: [^\n]+$"):
        plan_push(folder, "me/merged", None)


def test_a_plan_refuses_a_bad_id_a_missing_folder_and_far_too_many_files(checkpoint: Path, tmp_path: Path) -> None:
    """A folder of hundreds of files is a wrong folder, and would not go up in one commit."""
    with pytest.raises(HubError, match="'merged' is not a Hub id: write org/name"):
        plan_push(checkpoint, "merged", None)
    with pytest.raises(UsageError, match="there is no such folder"):
        plan_push(tmp_path / "nowhere", "me/merged", None)
    folder = copy_of(checkpoint, tmp_path, **{f"note{number}": "" for number in range(246)})
    assert len(plan_push(folder, "me/merged", None).files) == 250
    (folder / "one-more.txt").write_text("", encoding="utf-8")
    with pytest.raises(HubError, match="it holds 251 files, more than the 250 of one commit"):
        plan_push(folder, "me/merged", None)


def test_a_push_without_a_message_is_a_usage_error(checkpoint: Path) -> None:
    """It is refused before anything is sent."""
    with pytest.raises(UsageError, match="a commit needs a message"):
        push(plan_push(checkpoint, "me/merged", None), message=" ")


def test_a_folder_that_changed_since_it_was_planned_is_not_pushed(checkpoint: Path, tmp_path: Path) -> None:
    """What was shown is what is pushed, or nothing is."""
    folder = copy_of(checkpoint, tmp_path)
    plan = plan_push(folder, "me/merged", None)
    (folder / "late.txt").write_text("x", encoding="utf-8")
    with pytest.raises(HubError, match="the folder has changed since the push was planned"):
        push(plan, message="m")


# --- against a Hub ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_a_push_is_one_commit_of_exactly_the_planned_files(
    hub: LoopbackHub, checkpoint: Path, tmp_path: Path, transport: str
) -> None:
    """A reader never sees half a model: the repository goes from empty to whole, and pushing again adds no commit."""
    speak = Speaker(tmp_path, hub.url, xet=transport == "xet")
    asked = {"folder": str(checkpoint), "repo_id": "me/merged", "private": True}
    url, again = speak(("push", asked), ("push", asked))
    repo = hub.repos["me/merged"]
    assert [commit.summary for commit in repo.commits] == ["initial commit", "Push a merged model"]
    assert url == again == f"{hub.url}/me/merged/commit/{repo.commits[-1].oid}"
    files = repo.commits[-1].files
    assert tuple((name, files[name].size) for name in sorted(files)) == plan_push(checkpoint, "me/merged", True).files
    assert [name for name, file in files.items() if file.large] == ["model.safetensors"]
    # The transports are told apart by their requests, so neither test can pass by way of the other.
    assert any("xet-write-token" in line for line in hub.log) is (transport == "xet")
    assert any(line.startswith("PUT /lfs/") for line in hub.log) is (transport == "lfs")


def test_a_dry_run_sends_nothing(hub: LoopbackHub, speak: Speaker, checkpoint: Path) -> None:
    """`plan_push` is what --dry-run calls; the same arguments given to push are seen by the Hub."""
    asked = {"folder": str(checkpoint), "repo_id": "me/merged", "private": True}
    (plan,) = speak(("plan", asked))
    assert plan["files"] == [list(file) for file in plan_push(checkpoint, "me/merged", True).files]
    assert hub.log == []
    speak(("push", asked))
    assert hub.log != []


@pytest.mark.slow
def test_the_repository_is_as_private_as_was_asked(hub: LoopbackHub, speak: Speaker, checkpoint: Path) -> None:
    """A model must not become public by a flag lost on the way; None leaves it to the account, which is public here."""
    wanted = {"me/hidden": True, "me/shown": False, "me/default": None}
    speak(*[("push", {"folder": str(checkpoint), "repo_id": name, "private": asked}) for name, asked in wanted.items()])
    assert {name: repo.private for name, repo in hub.repos.items()} == {
        "me/hidden": True,
        "me/shown": False,
        "me/default": False,
    }


@pytest.mark.slow
def test_a_pushed_model_loads_from_the_hub_bit_for_bit(hub: LoopbackHub, checkpoint: Path, tmp_path: Path) -> None:
    """from_pretrained(repo_id) gives back every tensor that went up, by either transport, from a private repository.

    The two models differ in one number of one tensor, so the comparison is known to see so small a change.
    """
    from safetensors.numpy import load_file, save_file

    other = copy_of(checkpoint, tmp_path)
    changed = load_file(other / "model.safetensors")
    changed["classifier.bias"][0] += 2**-20
    save_file(changed, other / "model.safetensors", metadata={"format": "pt"})
    folders = {"me/by-lfs": checkpoint}
    if importlib.util.find_spec("hf_xet") is not None:
        folders["me/by-xet"] = other
        hub.learn_xet(other / "model.safetensors")
    for repo_id, folder in folders.items():
        speak = Speaker(tmp_path, hub.url, xet=repo_id == "me/by-xet")
        speak(("push", {"folder": str(folder), "repo_id": repo_id, "private": True}))
    loaded = json.loads(Speaker(tmp_path / "reader", hub.url, xet=True).run(READER, json.dumps(list(folders))))
    for repo_id, folder in folders.items():
        sent = load_file(folder / "model.safetensors")
        assert loaded[repo_id] == {name: hashlib.sha256(value.tobytes()).hexdigest() for name, value in sent.items()}
    if "me/by-xet" in loaded:
        differs = [name for name in loaded["me/by-lfs"] if loaded["me/by-lfs"][name] != loaded["me/by-xet"][name]]
        assert differs == ["classifier.bias"]
        assert any("xet-read-token" in line for line in hub.log)


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_a_download_is_pinned_to_its_commit(hub: LoopbackHub, checkpoint: Path, tmp_path: Path, transport: str) -> None:
    """A manifest records the commit, so that commit must give the same files when the branch has moved on."""
    if transport == "xet":
        hub.learn_xet(checkpoint / "model.safetensors")
    speak = Speaker(tmp_path, hub.url, xet=transport == "xet")
    later = copy_of(checkpoint, tmp_path, README=CARD + "\nPushed again.\n")
    _, first, _, second = speak(
        ("push", {"folder": str(checkpoint), "repo_id": "me/merged"}),
        ("download", {"repo_id": "me/merged"}),
        ("push", {"folder": str(later), "repo_id": "me/merged"}),
        ("download", {"repo_id": "me/merged"}),
    )
    (old,) = speak(("download", {"repo_id": "me/merged", "revision": first["commit"]}))
    _, before, after = (commit.oid for commit in hub.repos["me/merged"].commits)
    assert [first["commit"], second["commit"], old["commit"]] == [before, after, before]
    assert digests(Path(first["folder"])) == digests(Path(old["folder"])) == digests(checkpoint)
    assert digests(Path(second["folder"])) == digests(later) != digests(checkpoint)


def test_a_download_takes_no_other_format(hub: LoopbackHub, speak: Speaker, checkpoint: Path, tmp_path: Path) -> None:
    """Bytes that no merge reads are not even asked for, and a name with a bracket is taken as it is written."""
    folder = copy_of(checkpoint, tmp_path, **{"notes [draft]": "x"})
    (folder / "onnx").mkdir()
    for name in ("pytorch_model.bin", "tf_model.h5", "onnx/model.onnx"):
        (folder / name).write_bytes(name.encode())
    _, taken = speak(("push", {"folder": str(folder), "repo_id": "me/many"}), ("download", {"repo_id": "me/many"}))
    assert digests(Path(taken["folder"])).keys() == {*digests(checkpoint), "notes [draft].md"}
    assert not any(name in line for line in hub.log for name in ("/resolve/main/tf", "model.onnx", "pytorch_model.bin"))


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_a_push_to_a_branch_leaves_the_main_branch_alone(
    hub: LoopbackHub, checkpoint: Path, tmp_path: Path, transport: str
) -> None:
    """A branch is created when it is missing; a guest cannot push to any."""
    hub.add("me/merged")
    owner = Speaker(tmp_path, hub.url, xet=transport == "xet")
    guest = Speaker(tmp_path, hub.url, xet=transport == "xet", token=GUEST_TOKEN)
    asked = {"folder": str(checkpoint), "repo_id": "me/merged"}
    owner(("push", {**asked, "revision": "trial"}), ("push", {**asked, "revision": "trial"}))
    (refused,) = guest(("push", asked))
    assert "the Hub answered 403 (You do not have write access to me/merged)" in refused
    repo = hub.repos["me/merged"]
    assert [commit.branch for commit in repo.commits] == ["main", "trial"]
    assert repo.at("main").files == {}
    assert repo.at("trial").files != {}


def test_what_cannot_be_downloaded_says_why(hub: LoopbackHub, speak: Speaker) -> None:
    """Each refusal is one line that says what was asked, what happened and what to do."""
    config = StoredFile("e" * 40, 2, b"{}")
    hub.add("you/secret", private=True)
    hub.add("you/gated", gated=True).commit("main", "model", {"config.json": config, "model.safetensors": config})
    hub.add("me/keras").commit("main", "model", {"config.json": config, "tf_model.h5": config})
    hub.refuse["/models/me/broken"] = Refusal(500, "Internal Error")
    asked = {
        "me/missing": "cannot download me/missing: no such repository, or a private one; check the id, or set HF_TOKEN",
        "you/secret": "cannot download you/secret: no such repository, or a private one; check the id, or set HF_TOKEN",
        "you/gated": "cannot download you/gated: the repository is gated; ask for access on its page, then",
        "me/keras": "it holds no model*.safetensors and no pytorch_model*.bin, but: config.json, tf_model.h5",
        "me/broken": "the Hub answered 500 (Internal Error); the Hub is in trouble: try again later",
        "no id": "'no id' is not a Hub id: write org/name",
    }
    revision = ("download", {"repo_id": "me/keras", "revision": "v9"})
    *answers, no_revision = speak(*[("download", {"repo_id": repo_id}) for repo_id in asked], revision)
    for expected, answer in zip(asked.values(), answers, strict=True):
        assert expected in answer
    assert "cannot download me/keras at v9: the repository has no such revision; give one of its" in no_revision


def test_what_cannot_be_pushed_says_why_before_any_file_goes_up(
    hub: LoopbackHub, speak: Speaker, checkpoint: Path, tmp_path: Path
) -> None:
    """A private model must not land in a public repository, nor a public one where nobody will find it."""
    hub.add("me/public")
    hub.add("me/private", private=True)
    hub.refuse["/models/me/limited/auth-check"] = Refusal(429, "Too many requests")
    folder, bogus = str(checkpoint), copy_of(checkpoint, tmp_path, README=CARD.replace("apache-2.0", "bogus"))
    answers = speak(
        ("push", {"folder": folder, "repo_id": "me/public", "private": True}),
        ("push", {"folder": folder, "repo_id": "me/private", "private": False}),
        ("push", {"folder": folder, "repo_id": "you/model"}),
        ("push", {"folder": folder, "repo_id": "me/limited"}),
        ("push", {"folder": str(bogus), "repo_id": "me/bogus"}),
        ("push", {"folder": folder, "repo_id": "merged"}),
    )
    expected = [
        f"cannot push {folder} to me/public as private: the repository is public; push to another id, or change",
        f"cannot push {folder} to me/private as public: the repository is private; push to another id, or change",
        "the Hub answered 403 (You don't have the rights to create a model under the namespace 'you'); set HF_TOKEN to",
        "the Hub answered 429 (Too many requests); wait a few minutes and run it again",
        'README.md. - "license" must be one of [apache-2.0, mit]; mend the header of README.md and push again',
        "'merged' is not a Hub id",
    ]
    for part, answer in zip(expected, answers, strict=True):
        assert part in answer
    assert not any("preupload" in line or line.startswith("PUT") for line in hub.log)
    assert [len(repo.commits) for repo in hub.repos.values()] == [1, 1, 1, 1]


def test_a_repository_that_changes_meanwhile_is_named_as_the_cause(
    hub: LoopbackHub, speak: Speaker, checkpoint: Path
) -> None:
    """These come after the bytes went up: nothing is committed, and running it again is the cure."""
    hub.refuse["/me/busy/commit"] = Refusal(409, "Another commit is in progress")
    hub.refuse["/me/late/commit"] = Refusal(412, "A commit has happened since")
    busy, late = speak(*[("push", {"folder": str(checkpoint), "repo_id": name}) for name in ("me/busy", "me/late")])
    assert "answered 409 (Another commit is in progress); something else is changing the repository: run it" in busy
    assert "answered 412 (A commit has happened since); someone committed meanwhile: run it again" in late
    assert [len(repo.commits) for repo in hub.repos.values()] == [1, 1]


def test_an_upload_that_breaks_off_names_the_cause(hub: LoopbackHub, speak: Speaker, checkpoint: Path) -> None:
    """The Hub client wraps it as 'Error while uploading', which tells a user nothing."""
    hub.refuse["/lfs/" + digests(checkpoint)["model.safetensors"]] = Refusal(403, "Storage quota exceeded")
    (answer,) = speak(("push", {"folder": str(checkpoint), "repo_id": "me/merged"}))
    assert "the Hub answered 403 (Storage quota exceeded)" in answer
    assert len(hub.repos["me/merged"].commits) == 1


@pytest.mark.parametrize("token", ["hf_wrong", ""])
def test_a_token_that_is_wrong_or_missing_is_noticed_before_any_file_goes_up(
    hub: LoopbackHub, checkpoint: Path, tmp_path: Path, token: str
) -> None:
    """create_repo is content with no token when the repository exists and is public, so that case is tried too."""
    hub.add("me/public")
    hub.add("me/private", private=True)
    speak = Speaker(tmp_path, hub.url, token=token)
    *pushes, download = speak(
        ("push", {"folder": str(checkpoint), "repo_id": "me/new"}),
        ("push", {"folder": str(checkpoint), "repo_id": "me/public"}),
        ("download", {"repo_id": "me/private"}),
    )
    for answer in pushes:
        assert "the Hub answered 401" in answer
        assert "set HF_TOKEN to a valid token or run `hf auth login`" in answer
    assert "run `hf auth login`" in download
    assert hub.repos.keys() == {"me/public", "me/private"}
    assert not any("preupload" in line for line in hub.log)


def test_without_a_network_it_says_so_at_once(
    hub: LoopbackHub, checkpoint: Path, tmp_path: Path, closed_port: str
) -> None:
    """An upload alone would try for 23 s; and a cached copy, perhaps an old one, is not passed off as the answer."""
    asked = {"folder": str(checkpoint), "repo_id": "me/merged"}
    _, found = Speaker(tmp_path, hub.url)(("push", asked), ("download", {"repo_id": "me/merged"}))
    assert Path(found["folder"]).is_dir()
    start = time.monotonic()
    push_answer, download_answer = Speaker(tmp_path, closed_port)(
        ("push", asked), ("download", {"repo_id": "me/merged"})
    )
    assert time.monotonic() - start < 15
    for answer in (push_answer, download_answer):
        assert f"no network: {closed_port} cannot be reached (" in answer
        assert "check the connection, or set HF_ENDPOINT to another Hub" in answer
    assert download_answer.endswith(", or give a local folder")
    assert "local folder" not in push_answer


def test_offline_mode_gives_the_cached_copy_and_nothing_else(
    hub: LoopbackHub, checkpoint: Path, tmp_path: Path
) -> None:
    """HF_HUB_OFFLINE is how a user says that the cache is good enough; not one request is sent."""
    asked = {"folder": str(checkpoint), "repo_id": "me/merged"}
    _, online = Speaker(tmp_path, hub.url)(("push", asked), ("download", {"repo_id": "me/merged"}))
    requests = len(hub.log)
    cached, by_commit, uncached, pushed = Speaker(tmp_path, hub.url, offline=True)(
        ("download", {"repo_id": "me/merged"}),
        ("download", {"repo_id": "me/merged", "revision": online["commit"]}),
        ("download", {"repo_id": "me/other"}),
        ("push", asked),
    )
    assert cached == by_commit == online
    assert uncached == (
        "cannot download me/other: offline mode is on and the cache has no copy; "
        "unset HF_HUB_OFFLINE and TRANSFORMERS_OFFLINE, or give a local folder"
    )
    assert pushed.endswith("to me/merged: offline mode is on; unset HF_HUB_OFFLINE and TRANSFORMERS_OFFLINE")
    assert len(hub.log) == requests
