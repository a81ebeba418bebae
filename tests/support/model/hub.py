"""A model hub on loopback: its API, its downloads, and the storage host behind them on another
port.

Answers as the public hub does: revisions and paged listings as JSON; small files by a relative
redirect to a cache path, large ones by an absolute redirect to a signed address; X-Repo-Commit,
X-Linked-Etag, X-Error-Code and X-Linked-Size; ranges and ETags at the storage host. Faults are
queued per request and happen once.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import ssl
from collections import deque
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import Any, Final
from urllib.parse import quote

from aiohttp import web

from piecework_model.checkpoint.manifest import bundled_checkpoint_path

PIECE_BYTES: Final = 16 * 1024
TOKEN: Final = "hf_AllowedToken"
STRANGER: Final = "hf_TokenOfAnAccountWithoutAccess"
# Characters that a client must hand on as they are: a signature covers the bytes of the address.
SIGNATURE: Final = "X-Signature=a%2Bb%2Fc%3D&Expires=99"


# --- faults


@dataclass(frozen=True, slots=True)
class Status:
    """Another status."""

    code: int
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class HubAnswer:
    """This body, whatever was asked for."""

    body: bytes
    headers: Mapping[str, str] = field(default_factory=dict)
    code: int = 200


@dataclass(frozen=True, slots=True)
class Cut:
    """The connection is reset after so many bytes of the body."""

    after: int


@dataclass(frozen=True, slots=True)
class Hold:
    """After so many bytes of the body nothing comes any more, until the client leaves or `release`
    is set."""

    after: int
    release: asyncio.Event


@dataclass(frozen=True, slots=True)
class NoRanges:
    """Range is ignored: 200 and everything."""


@dataclass(frozen=True, slots=True)
class Short:
    """The body is announced and sent so many bytes shorter."""

    by: int


@dataclass(frozen=True, slots=True)
class Unannounced:
    """No Content-Length, and the body ends so many bytes early (late if negative), cleanly."""

    by: int = 0


@dataclass(frozen=True, slots=True)
class Damaged:
    """One byte of the file is another."""

    at: int


@dataclass(frozen=True, slots=True)
class WrongRange:
    """206 that starts so many bytes earlier than asked for."""

    by: int


@dataclass(frozen=True, slots=True)
class Redirect:
    """To somewhere else."""

    location: str


Fault = (
    Status
    | HubAnswer
    | Cut
    | Hold
    | NoRanges
    | Short
    | Unannounced
    | Damaged
    | WrongRange
    | Redirect
)


# --- what is served


def git_blob_id(data: bytes) -> str:
    """As `git hash-object` computes it."""
    return hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest()


def is_large(name: str) -> bool:
    """What a .gitattributes of the hub hands to Git LFS."""
    return name.endswith((".safetensors", ".bin"))


def bundled_files() -> dict[str, bytes]:
    """The bundled checkpoint as a repository has it: without a manifest, and with files of no use
    to us."""
    folder = bundled_checkpoint_path()
    files = {p.name: p.read_bytes() for p in folder.iterdir() if p.name != "manifest.sha256"}
    extra = {".gitattributes": b"*.safetensors filter=lfs\n", "modeling.py": b"import os\n"}
    return {**files, **extra, "pytorch_model.bin": b"\x80\x04pickled"}


@dataclass(slots=True)
class Repository:
    """Commits and what points to them."""

    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    refs: dict[str, str] = field(default_factory=dict)
    gated: bool = False
    extra_entries: list[Any] = field(default_factory=list)
    """Appended to every listing."""
    listed: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Members of listed entries that are said otherwise than they are, by path."""

    def commit(self, files: Mapping[str, bytes], *refs: str) -> str:
        """A new commit, and the branches or tags that shall point to it."""
        text = json.dumps([[name, git_blob_id(data)] for name, data in sorted(files.items())])
        name = hashlib.sha1(
            f"{len(self.commits)}{text}".encode(), usedforsecurity=False
        ).hexdigest()
        self.commits[name] = dict(files)
        self.refs |= dict.fromkeys(refs, name)
        return name

    def entries(self, commit: str) -> list[Any]:
        """As the API lists the top folder."""
        found: list[Any] = [{"type": "directory", "oid": "0" * 40, "size": 0, "path": "original"}]
        for name, data in self.commits[commit].items():
            entry = {"type": "file", "oid": git_blob_id(data), "size": len(data), "path": name}
            if is_large(name):
                pointer = {
                    "oid": hashlib.sha256(data).hexdigest(),
                    "size": len(data),
                    "pointerSize": 135,
                }
                entry |= {"oid": "f" * 40, "lfs": pointer, "xetHash": "e" * 64}
            found.append(entry | self.listed.get(name, {}))
        return found + self.extra_entries


@dataclass(frozen=True, slots=True)
class SeenRequest:
    """A request as it arrived, and the bytes of body that left for it."""

    host: str
    path: str
    range: str | None
    authorization: str | None
    sent: int = 0


class FakeHub:
    """Two servers and what they know. `async with fake_hub() as hub`."""

    def __init__(self) -> None:
        self.repositories: dict[str, Repository] = {}
        self.seen: list[SeenRequest] = []
        self.page_entries = 1000
        self.url = self.storage_url = ""
        self._faults: dict[tuple[str, str], deque[Fault]] = {}

    def add(self, name: str, files: Mapping[str, bytes]) -> str:
        """A repository whose main branch has these files; returns the commit."""
        return self.repositories.setdefault(name, Repository()).commit(files, "main")

    def fail(self, host: str, what: str, *faults: Fault) -> None:
        """The next requests for `what` fail so, one after the other. `host` is "hub" or "storage";
        `what` is the name of a file, "revision" or "tree".
        """
        self._faults.setdefault((host, what), deque()).extend(faults)

    def requests(self, what: str, host: str = "storage") -> list[SeenRequest]:
        """Those for a file, or another end of a path."""
        return [seen for seen in self.seen if seen.host == host and seen.path.endswith("/" + what)]

    def sent(self, what: str) -> int:
        """Bytes of body that left the storage host for a file."""
        return sum(seen.sent for seen in self.requests(what))

    # --- the hub

    def hub(self) -> web.Application:
        """API and downloads, at the root and once more below /mirror."""
        app = self._routes()
        app.add_subapp("/mirror", self._routes())
        return app

    def _routes(self) -> web.Application:
        app = web.Application()
        app.router.add_get("/api/models/{owner}/{name}/revision/{revision:.+}", self._revision)
        app.router.add_get("/api/models/{owner}/{name}/tree/{commit}", self._tree)
        app.router.add_get("/{owner}/{name}/resolve/{commit}/{file}", self._resolve)
        app.router.add_get("/api/resolve-cache/models/{owner}/{name}/{commit}/{file}", self._small)
        return app

    async def _revision(self, request: web.Request) -> web.StreamResponse:
        self._note("hub", request)
        repository, refusal = self._find(request, metadata=True)
        if refusal is not None or repository is None:
            return refusal or web.Response(status=500)
        if failed := await self._hub_fault("revision"):
            return failed
        wanted = request.match_info["revision"]
        commit = repository.refs.get(wanted, wanted)
        if commit not in repository.commits:
            return _error(404, "RevisionNotFound", "Invalid rev id: " + wanted)
        name = f"{request.match_info['owner']}/{request.match_info['name']}"
        return web.json_response(
            {"id": name, "modelId": name, "sha": commit, "private": False, "tags": []}
        )

    async def _tree(self, request: web.Request) -> web.StreamResponse:
        self._note("hub", request)
        repository, refusal = self._find(request, metadata=True)
        if refusal is not None or repository is None:
            return refusal or web.Response(status=500)
        if failed := await self._hub_fault("tree"):
            return failed
        entries = repository.entries(request.match_info["commit"])
        start = int(request.query.get("cursor", "0"))
        end = start + self.page_entries
        headers = {}
        if end < len(entries):
            headers["Link"] = f'<{self.url}{request.path}?recursive=false&cursor={end}>; rel="next"'
        return web.json_response(entries[start:end], headers=headers)

    async def _resolve(self, request: web.Request) -> web.StreamResponse:
        self._note("hub", request)
        repository, refusal = self._find(request, metadata=False)
        if refusal is not None or repository is None:
            return refusal or web.Response(status=500)
        commit, name = request.match_info["commit"], request.match_info["file"]
        if failed := await self._hub_fault(name):
            return failed
        data = repository.commits[commit].get(name)
        if data is None:
            return _error(404, "EntryNotFound", "Entry not found")
        digest = hashlib.sha256(data).hexdigest() if is_large(name) else git_blob_id(data)
        owner, model = request.match_info["owner"], request.match_info["name"]
        location = (
            f"/api/resolve-cache/models/{owner}/{model}/{commit}/{quote(name)}?etag=%22{digest}%22"
        )
        if is_large(name):
            location = f"{self.storage_url}/{owner}/{model}/{commit}/{quote(name)}?{SIGNATURE}"
        return web.Response(
            status=302 if is_large(name) else 307,
            headers={
                "Location": location,
                "X-Repo-Commit": commit,
                "X-Linked-Etag": f'"{digest}"',
                "X-Linked-Size": str(len(data)),
            },
            text="Found. Redirecting",
        )

    async def _small(self, request: web.Request) -> web.StreamResponse:
        repository, refusal = self._find(request, metadata=False)
        if refusal is not None or repository is None:
            return refusal or web.Response(status=500)
        return await self._serve("cache", request, repository)

    async def _hub_fault(self, what: str) -> web.Response | None:
        fault = self._fault("hub", what)
        if isinstance(fault, Hold):
            await fault.release.wait()
        return _plain_fault(fault)

    def _find(
        self, request: web.Request, *, metadata: bool
    ) -> tuple[Repository | None, web.Response | None]:
        """The repository, or what the hub says instead: of a gated one everybody may know what is
        in it."""
        token = request.headers.get("Authorization", "").removeprefix("Bearer ")
        if token and token not in {TOKEN, STRANGER}:
            return None, _error(401, "", "Invalid credentials in Authorization header")
        repository = self.repositories.get(
            f"{request.match_info['owner']}/{request.match_info['name']}"
        )
        if repository is None:
            return None, _error(404 if token else 401, "RepoNotFound", "Repository not found")
        if repository.gated and not metadata and token != TOKEN:
            return None, _error(
                403 if token else 401, "GatedRepo", "Access to model is restricted."
            )
        return repository, None

    # --- the storage host

    def storage(self) -> web.Application:
        """Large files, to whoever has a signed address."""
        app = web.Application()
        app.router.add_get("/{owner}/{name}/{commit}/{file}", self._large)
        return app

    async def _large(self, request: web.Request) -> web.StreamResponse:
        if request.rel_url.raw_query_string != SIGNATURE:
            return web.Response(status=403, text="SignatureDoesNotMatch")
        name = f"{request.match_info['owner']}/{request.match_info['name']}"
        return await self._serve("storage", request, self.repositories[name])

    async def _serve(
        self, host: str, request: web.Request, repository: Repository
    ) -> web.StreamResponse:
        """The bytes of a file, by RFC 9110, 14: or as the next fault has it."""
        number = self._note(host, request)
        name = request.match_info["file"]
        data = repository.commits[request.match_info["commit"]][name]
        fault = self._fault(host, name)
        if failed := _plain_fault(fault):
            return failed
        start, wanted = 0, request.headers.get("Range")
        ranged = wanted is not None and not isinstance(fault, NoRanges)
        if ranged and wanted is not None:
            start = int(wanted.removeprefix("bytes=").removesuffix("-"))
            if start >= len(data):
                return web.Response(status=416, headers={"Content-Range": f"bytes */{len(data)}"})
        if isinstance(fault, WrongRange):
            start -= fault.by
        if isinstance(fault, Damaged):
            data = data[: fault.at] + bytes([data[fault.at] ^ 1]) + data[fault.at + 1 :]
        body = data[start:]
        headers = {"ETag": '"of-the-storage-host"', "Accept-Ranges": "bytes"}
        if host == "cache":
            # Part of the hub: it speaks of commits and digests here too.
            whole = repository.commits[request.match_info["commit"]][name]
            headers |= {
                "ETag": f'"{git_blob_id(whole)}"',
                "X-Repo-Commit": request.match_info["commit"],
            }
        if ranged:
            headers["Content-Range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
        if isinstance(fault, Short):
            body = body[: len(body) - fault.by]
        if isinstance(fault, Unannounced):
            body = body[: len(body) - fault.by] if fault.by >= 0 else body + bytes(-fault.by)
        else:
            headers["Content-Length"] = str(len(body))
        response = web.StreamResponse(status=206 if ranged else 200, headers=headers)
        await response.prepare(request)
        await self._send(request, response, body, fault, number)
        return response

    async def _send(
        self,
        request: web.Request,
        response: web.StreamResponse,
        body: bytes,
        fault: Fault | None,
        number: int,
    ) -> None:
        if request.method == "HEAD":
            return
        stop = fault.after if isinstance(fault, Cut | Hold) else len(body)
        for at in range(0, min(stop, len(body)), PIECE_BYTES):
            piece = body[at : min(at + PIECE_BYTES, stop)]
            await response.write(piece)
            self.seen[number] = replace(self.seen[number], sent=self.seen[number].sent + len(piece))
        if isinstance(fault, Hold):
            await fault.release.wait()
        if isinstance(fault, Cut | Hold) and request.transport is not None:
            request.transport.abort()

    # --- both

    def _note(self, host: str, request: web.Request) -> int:
        headers = request.headers
        self.seen.append(
            SeenRequest(host, request.path, headers.get("Range"), headers.get("Authorization"))
        )
        return len(self.seen) - 1

    def _fault(self, host: str, what: str) -> Fault | None:
        queue = self._faults.get((host, what))
        return queue.popleft() if queue else None


def _plain_fault(fault: Fault | None) -> web.Response | None:
    if isinstance(fault, Status):
        return web.Response(status=fault.code, headers=fault.headers)
    if isinstance(fault, HubAnswer):
        return web.Response(status=fault.code, body=fault.body, headers=fault.headers)
    if isinstance(fault, Redirect):
        return web.Response(status=302, headers={"Location": fault.location})
    return None


def _error(status: int, code: str, message: str) -> web.Response:
    headers = {"X-Error-Message": message} | ({"X-Error-Code": code} if code else {})
    return web.json_response({"error": message}, status=status, headers=headers)


@asynccontextmanager
async def fake_hub(tls: ssl.SSLContext | None = None) -> AsyncIterator[FakeHub]:
    """A running hub without repositories, over HTTPS if `tls` is given."""
    hub = FakeHub()
    runners = [
        web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        for app in (hub.hub(), hub.storage())
    ]
    try:
        ports = []
        for runner in runners:
            await runner.setup()
            await web.TCPSite(runner, "127.0.0.1", 0, ssl_context=tls).start()
            ports.append(runner.addresses[0][1])
        hub.url, hub.storage_url = (
            f"http{'s' if tls else ''}://127.0.0.1:{port}" for port in ports
        )
        yield hub
    finally:
        for runner in runners:
            await runner.cleanup()
