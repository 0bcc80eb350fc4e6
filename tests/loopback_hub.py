"""A small Hugging Face Hub on 127.0.0.1: enough of the protocol to push a model to it and read it back.

It keeps real state (repositories, branches, commits, files), so what a test reads is what a client sent. Both ways of
sending large files work: LFS, whose bytes come here, and xet, whose client writes them to `cas_dir` by itself because
this server names a `local://` store. Names and shapes follow what huggingface_hub 2 sends; nothing here imports it.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from urllib.parse import parse_qsl, unquote, urlsplit

OWNER_TOKEN = "hf_owner"
GUEST_TOKEN = "hf_guest"
ACCOUNTS = {OWNER_TOKEN: "me", GUEST_TOKEN: "guest"}
LARGE = (".safetensors", ".bin", ".h5", ".onnx", ".msgpack")


@dataclass(frozen=True)
class StoredFile:
    """One file of a commit: a small one by value, a large one by its sha256 alone."""

    etag: str
    size: int
    data: bytes | None = None

    @property
    def large(self) -> bool:
        return self.data is None


@dataclass(frozen=True)
class Commit:
    """One commit: its id, the branch it went to, its message and all files after it."""

    oid: str
    branch: str
    summary: str
    files: Mapping[str, StoredFile]


@dataclass
class Repo:
    """A model repository. `gated` shows its page to everybody and its files to nobody."""

    repo_id: str
    private: bool
    gated: bool = False
    commits: list[Commit] = field(default_factory=list)
    branches: dict[str, str] = field(default_factory=dict)

    def commit(self, branch: str, summary: str, files: Mapping[str, StoredFile]) -> Commit:
        """Add a commit on top of `branch`."""
        text = json.dumps([len(self.commits), branch, summary, {name: file.etag for name, file in files.items()}])
        made = Commit(hashlib.sha1(text.encode()).hexdigest(), branch, summary, dict(files))
        self.commits.append(made)
        self.branches[branch] = made.oid
        return made

    def at(self, revision: str) -> Commit:
        """Return the commit that a branch or commit id names."""
        oid = self.branches.get(revision, revision)
        for commit in self.commits:
            if commit.oid == oid:
                return commit
        raise Refusal(404, f"Invalid rev id: {revision}", "RevisionNotFound")


class Refusal(Exception):
    """An answer that is an error, as the Hub words it: status, message and the X-Error-Code that clients look for."""

    def __init__(self, status: int, message: str, code: str = "") -> None:
        super().__init__(message)
        self.status, self.message, self.code = status, message, code


@dataclass(frozen=True)
class Request:
    """What a client asked: the named parts of the path, the query, the body, and whose token it carried."""

    method: str
    path: str
    parts: Mapping[str, str]
    query: Mapping[str, str]
    body: bytes
    user: str | None
    base: str

    def json(self) -> dict:
        return json.loads(self.body or b"{}")


@dataclass(frozen=True)
class Reply:
    """What goes back: JSON if `body` is no bytes."""

    body: bytes | dict | list
    headers: Mapping[str, str] = field(default_factory=dict)
    status: int = 200


class LoopbackHub:
    """The server, for use in a `with` block.

    Attributes:
        url: give it to clients as HF_ENDPOINT.
        repos: repositories by id; tests may look into them and add to them.
        log: every request as 'METHOD /path?query', in order.
        refuse: Refusals by part of a path: a request whose path holds the part gets the Refusal.
        xet_hashes: xet hash by sha256. The real Hub learns it from the store; here the test tells it (`learn_xet`).
    """

    def __init__(self, cas_dir: Path) -> None:
        self.cas_dir = cas_dir
        self.repos: dict[str, Repo] = {}
        self.log: list[str] = []
        self.refuse: dict[str, Refusal] = {}
        self.xet_hashes: dict[str, str] = {}
        self.lfs: dict[str, bytes] = {}
        self.lock = threading.Lock()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler_of(self))
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> LoopbackHub:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def add(self, repo_id: str, *, private: bool = False, gated: bool = False) -> Repo:
        """Make a repository with the empty first commit that the Hub gives it."""
        repo = self.repos[repo_id] = Repo(repo_id, private, gated)
        repo.commit("main", "initial commit", {})
        return repo

    def learn_xet(self, path: Path) -> None:
        """Note the xet hash of a file that a client will send through xet."""
        import hf_xet  # type: ignore[import-untyped]

        self.xet_hashes[hashlib.sha256(path.read_bytes()).hexdigest()] = hf_xet.hash_files([str(path)])[0].hash

    def answer(self, request: Request, token: str | None) -> Reply:
        """Find the route, check the token and answer."""
        for part, refusal in self.refuse.items():
            if part in request.path:
                raise refusal
        if token is not None and token not in ACCOUNTS:
            raise Refusal(401, "Invalid credentials in Authorization header")
        for methods, pattern, respond in ROUTES:
            match = pattern.fullmatch(request.path)
            if match and request.method in methods.split():
                parts = {name: unquote(value) for name, value in match.groupdict().items() if value is not None}
                with self.lock:
                    return respond(self, Request(**{**vars(request), "parts": parts}))
        raise Refusal(404, f"no route {request.method} {request.path}")


def readable(hub: LoopbackHub, request: Request) -> Repo:
    """Return the repository asked for; one that may not be seen is as good as missing."""
    repo = hub.repos.get(request.parts["repo"])
    if repo is None or (repo.private and not _owns(request.user, repo.repo_id)):
        raise Refusal(404 if request.user else 401, "Repository not found", "RepoNotFound")
    return repo


def writable(hub: LoopbackHub, request: Request) -> Repo:
    """Return the repository asked for if the account may write to it; anybody may open a pull request."""
    repo = readable(hub, request)
    if request.user is None:
        # Clients take every 401 about a repository for a missing one, but only over https; over http the code does it.
        raise Refusal(401, "Invalid username or password.", "RepoNotFound")
    proposes = request.query.get("create_pr") == "1" or request.parts.get("rev", "").startswith("refs/pr/")
    if not proposes and not _owns(request.user, repo.repo_id):
        raise Refusal(403, f"You do not have write access to {repo.repo_id}")
    return repo


def _owns(user: str | None, repo_id: str) -> bool:
    return user is not None and repo_id.split("/")[0] == user


def create_repo(hub: LoopbackHub, request: Request) -> Reply:
    asked = request.json()
    repo_id = f"{asked['organization'] or request.user}/{asked['name']}"
    if request.user is None:
        raise Refusal(401, "Invalid username or password.")
    if not _owns(request.user, repo_id):
        raise Refusal(403, f"You don't have the rights to create a model under the namespace {asked['organization']!r}")
    reply = {"url": f"{request.base}/{repo_id}", "id": repo_id}
    if repo_id in hub.repos:
        return Reply({**reply, "error": "You already created this model repo"}, status=409)
    hub.add(repo_id, private=asked.get("visibility") == "private")
    return Reply(reply)


def validate_card(hub: LoopbackHub, request: Request) -> Reply:
    if "license: bogus" not in request.json()["content"]:
        return Reply({"errors": [], "warnings": []})
    return Reply({"errors": [{"message": '"license" must be one of [apache-2.0, mit]'}], "warnings": []}, status=400)


def check_read(hub: LoopbackHub, request: Request) -> Reply:
    readable(hub, request)
    return Reply({})


def check_write(hub: LoopbackHub, request: Request) -> Reply:
    writable(hub, request)
    return Reply({})


def model_info(hub: LoopbackHub, request: Request) -> Reply:
    repo = readable(hub, request)
    commit = repo.at(request.parts.get("rev", "main"))
    names = [{"rfilename": name} for name in sorted(commit.files)]
    return Reply({"id": repo.repo_id, "sha": commit.oid, "private": repo.private, "tags": [], "siblings": names})


def create_branch(hub: LoopbackHub, request: Request) -> Reply:
    repo = writable(hub, request)
    if request.parts["rev"] in repo.branches:
        raise Refusal(409, "Reference already exists")
    repo.branches[request.parts["rev"]] = repo.at(request.json().get("startingPoint", "main")).oid
    return Reply({})


def preupload(hub: LoopbackHub, request: Request) -> Reply:
    """Say of each file how it is to be sent, and what the repository holds under its name."""
    now = writable(hub, request).at(request.parts["rev"]).files
    return Reply(
        {
            "files": [
                {
                    "path": file["path"],
                    "uploadMode": "lfs" if file["path"].endswith(LARGE) else "regular",
                    "shouldIgnore": False,
                    "oid": now[file["path"]].etag if file["path"] in now else None,
                }
                for file in request.json()["files"]
            ]
        }
    )


def xet_write_token(hub: LoopbackHub, request: Request) -> Reply:
    writable(hub, request)
    return _xet_token(hub)


def xet_read_token(hub: LoopbackHub, request: Request) -> Reply:
    readable(hub, request)
    return _xet_token(hub)


def _xet_token(hub: LoopbackHub) -> Reply:
    """Send the client to a store on disk; hf_xet reads the body, huggingface_hub the headers."""
    store, until = f"local://{hub.cas_dir}", int(time.time()) + 3600
    headers = {"X-Xet-Cas-Url": store, "X-Xet-Access-Token": "x", "X-Xet-Token-Expiration": str(until)}
    return Reply({"accessToken": "x", "exp": until, "casUrl": store}, headers)


def lfs_batch(hub: LoopbackHub, request: Request) -> Reply:
    readable(hub, request)
    if request.user is None:  # any account: the bytes of a pull request come this way too
        raise Refusal(401, "Invalid username or password.")
    objects = []
    for asked in request.json()["objects"]:
        href = f"{request.base}/lfs/{asked['oid']}"
        upload = {"upload": {"href": href, "header": {}}, "verify": {"href": f"{href}/verify"}}
        objects.append({**asked, **({} if asked["oid"] in hub.lfs else {"actions": upload})})
    return Reply({"transfer": "basic", "objects": objects}, {"Content-Type": "application/vnd.git-lfs+json"})


def lfs_put(hub: LoopbackHub, request: Request) -> Reply:
    if hashlib.sha256(request.body).hexdigest() != request.parts["oid"]:
        raise Refusal(400, "the bytes do not have the sha256 of their name")
    hub.lfs[request.parts["oid"]] = request.body
    return Reply(b"")


def lfs_verify(hub: LoopbackHub, request: Request) -> Reply:
    if request.parts["oid"] not in hub.lfs:
        raise Refusal(404, "no such object")
    return Reply({})


def commit(hub: LoopbackHub, request: Request) -> Reply:
    """Apply the lines of an ndjson commit: a header, then one line a file."""
    repo, branch = writable(hub, request), request.parts["rev"]
    files, summary = dict(repo.at(branch).files), ""
    for line in request.body.splitlines():
        action = json.loads(line)
        kind, value = action["key"], action["value"]
        if kind == "header":
            summary = value["summary"]
        elif kind == "file":
            data = base64.b64decode(value["content"])
            etag = hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()  # git's own name for the bytes
            files[value["path"]] = StoredFile(etag, len(data), data)
        elif kind == "lfsFile":
            files[value["path"]] = StoredFile(value["oid"], value["size"])
        else:
            raise Refusal(400, f"this server knows no {kind}")
    if request.query.get("create_pr") == "1":
        return Reply(_committed(request, repo, repo.commit(_open_pull_request(repo), summary, files)))
    return Reply(_committed(request, repo, repo.commit(branch, summary, files)))


def _committed(request: Request, repo: Repo, made: Commit) -> dict:
    reply = {"commitUrl": f"{request.base}/{repo.repo_id}/commit/{made.oid}", "commitOid": made.oid}
    if made.branch.startswith("refs/pr/"):
        reply["pullRequestUrl"] = f"{request.base}/{repo.repo_id}/discussions/{made.branch.rsplit('/', 1)[1]}"
    return reply


def _open_pull_request(repo: Repo) -> str:
    branch = f"refs/pr/{1 + sum(name.startswith('refs/pr/') for name in repo.branches)}"
    repo.branches[branch] = repo.branches["main"]
    return branch


def open_discussion(hub: LoopbackHub, request: Request) -> Reply:
    """Open a pull request by itself, as the xet client does before it commits to refs/pr/N."""
    repo = readable(hub, request)
    number = int(_open_pull_request(repo).rsplit("/", 1)[1])
    return Reply({"num": number, "url": f"{request.base}/{repo.repo_id}/discussions/{number}", "pullRequest": True})


def show_discussion(hub: LoopbackHub, request: Request) -> Reply:
    repo = readable(hub, request)
    return Reply(
        {
            "num": int(request.parts["number"]),
            "title": "",
            "status": "draft",
            "author": {"name": "me"},
            "isPullRequest": True,
            "createdAt": "2026-01-01T00:00:00.000Z",
            "repo": {"name": repo.repo_id, "type": "model"},
            "events": [],
            "filesWithConflicts": [],
            "changes": {"base": "refs/heads/main"},
            "diff": "",
        }
    )


def tree(hub: LoopbackHub, request: Request) -> Reply:
    entries = []
    for name, file in sorted(readable(hub, request).at(request.parts["rev"]).files.items()):
        entry: dict = {"type": "file", "path": name, "size": file.size, "oid": file.etag}
        if file.large:
            entry["lfs"] = {"oid": file.etag, "size": file.size, "pointerSize": 134}
        if file.large and file.etag in hub.xet_hashes and file.etag not in hub.lfs:
            entry["xetHash"] = hub.xet_hashes[file.etag]
        entries.append(entry)
    return Reply(entries)


def resolve(hub: LoopbackHub, request: Request) -> Reply:
    """Send a file, or tell where its bytes are: here (small ones and LFS) or in the xet store."""
    repo = readable(hub, request)
    if repo.gated:
        raise Refusal(403, f"Access to model {repo.repo_id} is restricted", "GatedRepo")
    found = repo.at(request.parts["rev"])
    file = found.files.get(request.parts["path"])
    if file is None:
        raise Refusal(404, "Entry not found", "EntryNotFound")
    headers = {"X-Repo-Commit": found.oid, "ETag": f'"{file.etag}"', "Content-Type": "application/octet-stream"}
    if file.large:
        headers |= {"X-Linked-Etag": f'"{file.etag}"', "X-Linked-Size": str(file.size)}
    if not file.large or file.etag in hub.lfs:
        return Reply(file.data if file.data is not None else hub.lfs[file.etag], headers)
    if request.method == "GET" or file.etag not in hub.xet_hashes:
        raise Refusal(404, "these bytes are in the xet store", "EntryNotFound")
    route = f"{request.base}/api/models/{repo.repo_id}/xet-read-token/{found.oid}"
    return Reply(b"", {**headers, "X-Xet-Hash": hub.xet_hashes[file.etag], "X-Xet-Refresh-Route": route})


def _route(methods: str, template: str, respond: Callable[[LoopbackHub, Request], Reply]) -> Route:
    names = {"repo": "[^/]+/[^/]+", "path": ".+", "oid": "[0-9a-f]{64}"}
    pattern = re.sub(r"{(\w+)}", lambda name: f"(?P<{name[1]}>{names.get(name[1], '[^/]+')})", template)
    return methods, re.compile(pattern), respond


Route = tuple[str, re.Pattern[str], Callable[[LoopbackHub, Request], Reply]]
ROUTES: tuple[Route, ...] = (
    _route("POST", "/api/repos/create", create_repo),
    _route("POST", "/api/validate-yaml", validate_card),
    _route("GET", "/api/models/{repo}", model_info),
    _route("GET", "/api/models/{repo}/revision/{rev}", model_info),
    _route("GET", "/api/models/{repo}/auth-check", check_read),
    _route("GET", "/api/models/{repo}/auth-check/write", check_write),
    _route("POST", "/api/models/{repo}/branch/{rev}", create_branch),
    _route("POST", "/api/models/{repo}/preupload/{rev}", preupload),
    _route("GET", "/api/models/{repo}/xet-write-token/{rev}", xet_write_token),
    _route("GET", "/api/models/{repo}/xet-read-token/{rev}", xet_read_token),
    _route("POST", "/api/models/{repo}/commit/{rev}", commit),
    _route("POST", "/api/models/{repo}/discussions", open_discussion),
    _route("GET", "/api/models/{repo}/discussions/{number}", show_discussion),
    _route("GET", "/api/models/{repo}/tree/{rev}", tree),
    _route("POST", "/{repo}\\.git/info/lfs/objects/batch", lfs_batch),
    _route("PUT", "/lfs/{oid}", lfs_put),
    _route("POST", "/lfs/{oid}/verify", lfs_verify),
    _route("GET HEAD", "/{repo}/resolve/{rev}/{path}", resolve),
)


def _handler_of(hub: LoopbackHub) -> type[BaseHTTPRequestHandler]:
    """Return the class that http.server wants, bound to one hub."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, format: str, *args: object) -> None:
            """Stay silent: `hub.log` holds the requests."""

        def respond(self) -> None:
            url, body = urlsplit(self.path), _read_body(self)
            hub.log.append(f"{self.command} {self.path}")
            token = (self.headers.get("Authorization") or "").removeprefix("Bearer ") or None
            base, query = f"http://{self.headers['Host']}", dict(parse_qsl(url.query))
            user = ACCOUNTS.get(token) if token else None
            try:
                reply = hub.answer(Request(self.command, url.path, {}, query, body, user, base), token)
            except Refusal as refusal:
                headers = {"X-Error-Message": refusal.message}
                if refusal.code:
                    headers["X-Error-Code"] = refusal.code
                reply = Reply({"error": refusal.message}, headers, refusal.status)
            _send(self, reply)

        do_GET = do_HEAD = do_POST = do_PUT = respond

    return Handler


def _read_body(handler: BaseHTTPRequestHandler) -> bytes:
    if handler.headers.get("Transfer-Encoding") != "chunked":
        return handler.rfile.read(int(handler.headers.get("Content-Length") or 0))
    body = b""
    while size := int(handler.rfile.readline(), 16):
        body += handler.rfile.read(size)
        handler.rfile.readline()
    handler.rfile.readline()
    return body


def _send(handler: BaseHTTPRequestHandler, reply: Reply) -> None:
    body = reply.body if isinstance(reply.body, bytes) else json.dumps(reply.body).encode()
    headers = {"Content-Type": "application/json", "Content-Length": str(len(body)), **reply.headers}
    handler.send_response(reply.status)
    for name, value in headers.items():
        handler.send_header(name, value)
    handler.end_headers()
    if handler.command != "HEAD":
        handler.wfile.write(body)
