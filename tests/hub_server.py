"""A Hugging Face hub on this machine, over HTTP, as far as a push and a download need it.

    with HubServer() as hub:
        hub.url, hub.token          # for HF_ENDPOINT and HF_TOKEN
        hub.files("me/thing")       # what the main branch holds, by path
        hub.fail("/commit/", 500)   # the next request to such an address fails

Repositories have branches, tags, pull requests and commits of whole trees. Large files go through the LFS protocol
(batch, PUT, verify); a commit that names an object which never arrived is refused, as the real hub does.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Callable
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from tests.hub_store import Failure, Repo, front_matter, git_oid, metadata_errors
from tests.local_server import LocalServer

_MODEL = r"/api/models/(?P<repo>[\w.-]+/[\w.-]+)"


class HubServer(LocalServer):
    """The server; a context manager. ``lfs_from`` is the size in bytes from which files go through LFS."""

    def __init__(self, lfs_from: int = 10**9) -> None:
        self.token, self.lfs_from = "hf_" + "T0kEn" * 7, lfs_from
        self.who: dict[str, Any] = {
            "name": "me",
            "orgs": [{"name": "ours"}],
            "auth": {"accessToken": {"role": "write"}},
        }
        self.repos: dict[str, Repo] = {}
        self.objects: dict[str, bytes] = {}
        self.requests: list[str] = []
        self.failures: list[Failure] = []
        self.large: set[str] = set()  # digests of what is stored as LFS
        hub = self

        class Bound(_Handler):
            server_hub = hub

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Bound)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"

    def files(self, repo: str, revision: str = "main") -> dict[str, bytes]:
        found = self.repos[repo]
        return found.commits[found.find(revision) or ""]

    def fail(self, where: str, status: int, *, times: int = 100, message: str = "", skip: int = 0) -> None:
        """Status 0: no answer within the client's patience; -1: the line is dropped."""
        self.failures.append(Failure(where, status, times, message, skip))

    def count(self, where: str) -> int:
        return sum(where in line for line in self.requests)


class _Handler(BaseHTTPRequestHandler):
    server_hub: HubServer
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # else every answer waits for the client's delayed acknowledgement
    wbufsize = -1

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def do_GET(self) -> None:
        self._serve()

    do_POST = do_PUT = do_HEAD = do_GET

    def _serve(self) -> None:
        hub, self.body = self.server_hub, self._read()
        parts = urlsplit(self.path)
        self.query, path = parse_qs(parts.query), unquote(parts.path)
        hub.requests.append(f"{self.command} {self.path}")
        for failure in hub.failures:
            if failure.where in self.path and failure.times > 0:
                if failure.skip > 0:
                    failure.skip -= 1
                    continue
                failure.times -= 1
                return self._break(failure)
        for method, pattern, answer in _ROUTES:
            found = re.fullmatch(pattern, path)
            if found and self.command in method.split("|"):
                return answer(self, **found.groupdict())
        return self._json(404, {"error": "no such page"})

    def _read(self) -> bytes:
        if self.headers.get("Transfer-Encoding") == "chunked":
            parts = []
            while size := int(self.rfile.readline(), 16):
                parts.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(parts)
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def _break(self, failure: Failure) -> None:
        if failure.status > 0:
            return self._json(failure.status, {"error": failure.message} if failure.message else {})
        if failure.status == 0:
            self.connection.settimeout(300)
            with suppress(OSError):
                self.connection.recv(1)  # until the client hangs up
        self.close_connection = True
        self.connection.close()
        return None

    def _json(self, status: int, value: Any, headers: dict[str, str] | None = None) -> None:
        self._bytes(
            status, json.dumps(value).encode(), {"Content-Type": "application/json", **(headers or {})}
        )

    def _bytes(self, status: int, content: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(content)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)
        self.wfile.flush()

    def _known(self) -> bool:
        if self.headers.get("Authorization") == f"Bearer {self.server_hub.token}":
            return True
        self._json(401, {"error": "Invalid username or password."})
        return False

    def _repo(self, repo: str) -> Repo | None:
        """A repository that the caller may see; otherwise the answer is given."""
        found = self.server_hub.repos.get(repo)
        hidden = found is not None and found.private and self.headers.get("Authorization") is None
        if found is None or hidden:
            self._json(
                401 if hidden else 404, {"error": "Repository not found"}, {"X-Error-Code": "RepoNotFound"}
            )
            return None
        return found

    # ---------------------------------------------------------------- answers

    def whoami(self) -> None:
        if self._known():
            self._json(200, self.server_hub.who)

    def validate(self) -> None:
        wrong = metadata_errors(json.loads(self.body)["content"])
        errors = [{"message": text} for text in wrong]
        self._json(400 if wrong else 200, {"errors": errors, "warnings": []})

    def create(self) -> None:
        if not self._known():
            return
        asked = json.loads(self.body)
        name = f"{asked['organization']}/{asked['name']}"
        if name in self.server_hub.repos:
            return self._json(409, {"error": "You already created this model repo"})
        repo = self.server_hub.repos[name] = Repo(private=asked.get("visibility") == "private")
        repo.commit({".gitattributes": b"*.safetensors filter=lfs\n"}, "main")
        return self._json(200, {"url": f"{self.server_hub.url}/{name}"})

    def info(self, repo: str, revision: str = "main") -> None:
        found = self._repo(repo)
        if found is None:
            return
        oid = found.find(revision)
        if oid is None:
            return self._json(404, {"error": "Invalid rev id"}, {"X-Error-Code": "RevisionNotFound"})
        files = found.commits[oid]
        card = front_matter(files["README.md"].decode()) if "README.md" in files else None
        about = {
            "id": repo,
            "modelId": repo,
            "sha": oid,
            "private": found.private,
            "tags": [],
            "downloads": 0,
            "likes": 0,
        }
        return self._json(
            200, {**about, "cardData": card, "siblings": [{"rfilename": path} for path in files]}
        )

    def refs(self, repo: str) -> None:
        if found := self._repo(repo):
            kinds = {"branches": ("heads", found.branches), "tags": ("tags", found.tags)}
            self._json(200, {"converts": []} | {
                kind: [{"name": n, "ref": f"refs/{place}/{n}", "targetCommit": c} for n, c in held.items()]
                for kind, (place, held) in kinds.items()
            })  # fmt: skip

    def branch(self, repo: str, name: str) -> None:
        if self._known() and (found := self._repo(repo)):
            if name in found.branches:
                return self._json(409, {"error": "Reference already exists"})
            found.branches[name] = found.branches["main"]
            self._json(200, {})
        return None

    def tag(self, repo: str, revision: str) -> None:
        if self._known() and (found := self._repo(repo)):
            name = json.loads(self.body)["tag"]
            if name in found.tags:
                return self._json(409, {"error": "Tag reference exists already"})
            found.tags[name] = found.find(revision) or ""
            self._json(200, {})
        return None

    def tree(self, repo: str, revision: str, below: str) -> None:
        if found := self._repo(repo):
            files = found.commits[found.find(revision) or ""].items()
            listed = [self._entry(path, content) for path, content in files if path.startswith(below)]
            if not listed:
                return self._json(404, {"error": "no such folder"}, {"X-Error-Code": "EntryNotFound"})
            self._json(200, listed)
        return None

    def _entry(self, path: str, content: bytes) -> dict[str, Any]:
        entry: dict[str, Any] = {"type": "file", "path": path, "size": len(content), "oid": git_oid(content)}
        digest = hashlib.sha256(content).hexdigest()
        if digest in self.server_hub.large:
            entry["lfs"] = {"oid": digest, "size": len(content), "pointerSize": 130}
        return entry

    def preupload(self, repo: str, revision: str) -> None:
        if not self._known() or not (found := self._repo(repo)):
            return
        held = found.commits[found.find(revision) or ""]
        answers = []
        for file in json.loads(self.body)["files"]:
            large = file["size"] >= self.server_hub.lfs_from
            answer = {
                "path": file["path"],
                "uploadMode": "lfs" if large else "regular",
                "shouldIgnore": False,
            }
            if file["path"] in held:
                content = held[file["path"]]
                answer["oid"] = hashlib.sha256(content).hexdigest() if large else git_oid(content)
            answers.append(answer)
        self._json(200, {"files": answers})

    def lfs_batch(self, repo: str) -> None:
        if not self._known():
            return
        objects = []
        for wanted in json.loads(self.body)["objects"]:
            entry = {"oid": wanted["oid"], "size": wanted["size"]}
            if wanted["oid"] not in self.server_hub.objects:
                entry["actions"] = {
                    "upload": {"href": f"{self.server_hub.url}/storage/{wanted['oid']}"},
                    "verify": {"href": f"{self.server_hub.url}/verify"},
                }
            objects.append(entry)
        self._json(200, {"transfer": "basic", "objects": objects})

    def store(self, oid: str) -> None:
        if hashlib.sha256(self.body).hexdigest() != oid:
            return self._json(400, {"error": "checksum"})
        self.server_hub.objects[oid] = self.body
        return self._json(200, {})

    def verify(self) -> None:
        self._json(200 if json.loads(self.body)["oid"] in self.server_hub.objects else 404, {})

    def commit(self, repo: str, revision: str) -> None:
        if not self._known() or not (found := self._repo(repo)):
            return
        files = dict(found.commits[found.find(revision) or ""])
        for line in self.body.splitlines():
            entry = json.loads(line)
            value = entry["value"]
            match entry["key"]:
                case "file":
                    files[value["path"]] = base64.b64decode(value["content"])
                case "lfsFile":
                    if value["oid"] not in self.server_hub.objects:
                        return self._json(400, {"error": f"object {value['oid']} never arrived"})
                    files[value["path"]] = self.server_hub.objects[value["oid"]]
                    self.server_hub.large.add(value["oid"])
                case "deletedFile":
                    del files[value["path"]]
        answer: dict[str, Any] = {"pullRequestUrl": None}
        if "create_pr" in self.query:
            found.pulls += 1
            revision = f"refs/pr/{found.pulls}"
            answer["pullRequestUrl"] = f"{self.server_hub.url}/{repo}/discussions/{found.pulls}"
        oid = found.commit(files, revision)
        return self._json(
            200, {**answer, "commitOid": oid, "commitUrl": f"{self.server_hub.url}/{repo}/commit/{oid}"}
        )

    def resolve(self, repo: str, revision: str, path: str) -> None:
        if not (found := self._repo(repo)):
            return
        oid = found.find(revision)
        content = found.commits[oid].get(path) if oid else None
        if oid is None or content is None:
            return self._json(404, {"error": "Entry not found"}, {"X-Error-Code": "EntryNotFound"})
        entry = self._entry(path, content)
        etag = entry["lfs"]["oid"] if "lfs" in entry else entry["oid"]
        headers = {"ETag": f'"{etag}"', "X-Repo-Commit": oid, "Content-Type": "application/octet-stream"}
        return self._bytes(200, content, headers)


_ROUTES: list[tuple[str, str, Callable[..., None]]] = [
    ("GET", "/api/whoami-v2", _Handler.whoami),
    ("POST", "/api/validate-yaml", _Handler.validate),
    ("POST", "/api/repos/create", _Handler.create),
    ("GET", _MODEL, _Handler.info),
    ("GET", _MODEL + "/revision/(?P<revision>.+)", _Handler.info),
    ("GET", _MODEL + "/refs", _Handler.refs),
    ("POST", _MODEL + "/branch/(?P<name>.+)", _Handler.branch),
    ("POST", _MODEL + "/tag/(?P<revision>.+)", _Handler.tag),
    ("GET", _MODEL + "/tree/(?P<revision>[^/]+)/?(?P<below>.*)", _Handler.tree),
    ("POST", _MODEL + "/preupload/(?P<revision>.+)", _Handler.preupload),
    ("POST", _MODEL + "/commit/(?P<revision>.+)", _Handler.commit),
    ("POST", r"/(?P<repo>[\w.-]+/[\w.-]+)\.git/info/lfs/objects/batch", _Handler.lfs_batch),
    ("PUT", r"/storage/(?P<oid>\w+)", _Handler.store),
    ("POST", "/verify", _Handler.verify),
    ("GET|HEAD", r"/(?P<repo>[\w.-]+/[\w.-]+)/resolve/(?P<revision>[^/]+)/(?P<path>.+)", _Handler.resolve),
]
