"""Read a model hub that speaks the Hugging Face API over HTTP: a revision, its files, their bytes.

The hub lists a large file (Git LFS) with the SHA-256 of its content, and a small one with its Git
blob id. It answers a download with a redirect. For large files that leads to a signed address of a
storage host, which expires. The token goes to the hub itself and to no other host. Redirects never
lead from https to http. Proxies of the environment are used (HTTP_PROXY, HTTPS_PROXY, NO_PROXY).

Source of the interface: the client library huggingface_hub 2.4. docs/adr/0006-our-own-hub-client.md
says why this module does not use that library.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import urllib.request
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import Any, Final, Self
from urllib.parse import quote

import aiohttp
from yarl import URL

from piecework.base import jsons
from piecework.base.hosts import LOOPBACK
from piecework.base.http import HttpError, Proxies, proxy_for
from piecework.base.text import one_line
from piecework_node.errors import ConfigError, HubError, HubRefusal
from piecework_node.models.name import (
    DEFAULT_REVISION,
    GIT_ID,
    SHA256,
    HubFile,
    ModelName,
    is_commit,
)
from piecework_node.models.retries import OnWait, Retries, RetryableError, RetryPolicy, Sleep

MAX_ANSWER_BYTES: Final = 8 * 2**20
"""Of the API. A page of 1,000 files is 300 kB."""
MAX_LISTING_PAGES: Final = 16
"""Of the top folder of one repository. A page has up to 1,000 entries."""
MAX_LISTED_ENTRIES: Final = 10_000
"""Folders included. More than twice the files that a checkpoint may have."""
MAX_REDIRECTS: Final = 5
"""The hub needs one, a mirror in front of it or a renamed repository another."""
MAX_URL_CHARS: Final = 4096
"""Signed storage addresses have some 1,500."""
MAX_LISTED_BYTES: Final = 2**50
"""Of one file: a petabyte. `pull` decides how large a checkpoint may be."""
MAX_TOKEN_CHARS: Final = 512
"""Tokens of the public hub have 37. Those of other hubs may be signed and longer."""
SHOWN_CHARS: Final = 160
"""Of what comes from a server, in an error."""
READ_BUFFER_BYTES: Final = 2**20
"""Large buffers save wake-ups at a gigabit a second. A handful of connections hold one each."""
_REDIRECTS: Final = frozenset({301, 302, 303, 307, 308})
_PASSING: Final = frozenset({408, 425, 429})
"""Besides 5xx: answers that the same request may not meet again."""
_TOKEN: Final = re.compile(rf"[A-Za-z0-9._~+/-]{{1,{MAX_TOKEN_CHARS}}}=*")
_CONTENT_RANGE: Final = re.compile(r"bytes (\d{1,18})-(\d{1,18})/(\d{1,18})")
_RATE_LIMIT: Final = re.compile(r"\br=0;t=(\d{1,9})\b")


@dataclass(frozen=True, slots=True)
class Body:
    """The bytes of a file from `offset` on. A server without ranges starts at 0."""

    offset: int
    chunks: AsyncIterator[bytes]


class Hub:
    """One hub. Made by `connect`; every method raises `HubError` or `HubRefusal`."""

    def __init__(
        self,
        http: aiohttp.ClientSession,
        endpoint: URL,
        token: str,
        *,
        policy: RetryPolicy,
        sleep: Sleep,
        on_wait: OnWait,
        proxies: Proxies,
    ) -> None:
        self._http, self._endpoint, self._token = http, endpoint, token
        self._proxies = proxies
        self.policy, self.sleep, self.on_wait = policy, sleep, on_wait

    @property
    def address(self) -> str:
        """Where it is."""
        return str(self._endpoint)

    @classmethod
    @contextlib.asynccontextmanager
    async def connect(
        cls,
        endpoint: str,
        token: str = "",
        *,
        on_wait: OnWait,
        policy: RetryPolicy | None = None,
        sleep: Sleep = asyncio.sleep,
        proxies: Proxies = urllib.request.getproxies,
    ) -> AsyncIterator[Self]:
        """Return a hub at `endpoint`. Nothing is sent yet.

        Raises:
            ConfigError: the endpoint or the token is malformed.
        """
        policy = policy or RetryPolicy()
        url = parse_endpoint(endpoint)
        if token:
            _check_token(token, url)
        timeout = aiohttp.ClientTimeout(
            total=None, sock_connect=policy.connect_s, sock_read=policy.read_s
        )
        async with aiohttp.ClientSession(
            timeout=timeout,
            cookie_jar=aiohttp.DummyCookieJar(),
            read_bufsize=READ_BUFFER_BYTES,
            headers={"User-Agent": "piecework", "Accept-Encoding": "identity"},
        ) as http:
            yield cls(
                http, url, token, policy=policy, sleep=sleep, on_wait=on_wait, proxies=proxies
            )

    async def commit(self, model: ModelName) -> str:
        """Return the commit that the model's revision stands for now."""
        revision = model.revision or DEFAULT_REVISION
        url = self._url("api", "models", model.owner, model.name, "revision", revision)
        answer, _ = await self._ask(model.at(revision), url)
        commit = answer.get("sha") if isinstance(answer, dict) else None
        if not isinstance(commit, str) or not is_commit(commit):
            raise HubError(f"{self._endpoint}: names no commit for {model.repository}@{revision}")
        if is_commit(revision) and commit != revision:
            raise HubError(f"{self._endpoint}: answers commit {revision} with another, {commit}")
        return commit

    async def files(self, model: ModelName, commit: str) -> tuple[HubFile, ...]:
        """Return the files at the top of the repository at that commit, by name."""
        url = self._url("api", "models", model.owner, model.name, "tree", commit)
        entries: list[Any] = []
        query: Mapping[str, str] = {"recursive": "false"}
        for _ in range(MAX_LISTING_PAGES):
            answer, following = await self._ask(model.at(commit), url.with_query(query))
            if not isinstance(answer, list):
                raise HubError(f"{self._endpoint}: the file list of {model} is malformed")
            entries += answer
            if following is None:
                return _listing(entries)
            query = following
        raise HubError(
            f"{self._endpoint}: the file list of {model} has more than {MAX_LISTING_PAGES} pages"
        )

    @contextlib.asynccontextmanager
    async def open(
        self, model: ModelName, commit: str, file: HubFile, offset: int
    ) -> AsyncIterator[Body]:
        """Open the bytes of a file from `offset` on.

        Raises:
            RetryableError: asking again may help. It may also come while the bytes are read.
        """
        url = self._url(model.owner, model.name, "resolve", commit, file.name)
        headers = {"Range": f"bytes={offset}-"} if offset else {}
        watch = _same_file(commit, file)
        async with self._get(model.at(commit), url, headers, watch) as response:
            yield Body(_first_byte(response, file, offset), response.content.iter_any())

    # --- one request

    async def _ask(self, model: ModelName, url: URL) -> tuple[Any, Mapping[str, str] | None]:
        """The JSON of an answer of the API, and the query of its next page if there is one."""

        async def once() -> tuple[Any, Mapping[str, str] | None]:
            try:
                async with (
                    asyncio.timeout(self.policy.answer_s),
                    self._get(model, url, {"Accept": "application/json"}) as response,
                ):
                    body = await _bounded(response)
            except TimeoutError:
                raise RetryableError(f"{url.host} does not answer in time") from None
            try:
                following = response.links.get("next")
                # Only the query: whatever host the link names, the same address is asked again.
                return jsons.loads(body), URL(following["url"]).query if following else None
            except ValueError as error:
                raise HubError(
                    f"{self._endpoint} is not a model hub: its answer is not JSON ({error})"
                ) from None

        return await Retries(str(model), self.policy, self.sleep, self.on_wait).run(once)

    @contextlib.asynccontextmanager
    async def _get(
        self,
        model: ModelName,
        url: URL,
        headers: Mapping[str, str],
        watch: Callable[[Mapping[str, str]], None] | None = None,
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        """The last answer to a GET, redirects followed; `watch` sees the headers of the hub's own
        answers."""
        try:
            for _ in range(MAX_REDIRECTS + 1):
                at_hub = url.origin() == self._endpoint.origin()
                secret = (
                    {"Authorization": f"Bearer {self._token}"} if at_hub and self._token else {}
                )
                async with self._http.get(
                    url,
                    headers={**headers, **secret},
                    allow_redirects=False,
                    proxy=self._proxy_for(url),
                ) as response:
                    if at_hub and watch and response.status < 400:
                        watch(response.headers)
                    if response.status in _REDIRECTS:
                        url = redirect_target(url, response.headers.get("Location", ""))
                        continue
                    self._judge(model, response, at_hub)
                    yield response
                    return
            raise HubError(f"{self._endpoint}: more than {MAX_REDIRECTS} redirects")
        except aiohttp.ClientSSLError as error:
            raise HubError(
                f"{url.host} has another certificate than it should, or no TLS: {_words(error)}"
            ) from None
        except aiohttp.ClientConnectorError as error:
            number = error.os_error.errno or 0  # negative: the resolver's own numbers and words
            why = (
                os.strerror(number)
                if number > 0
                else error.os_error.strerror or type(error).__name__
            )
            raise RetryableError(f"cannot connect to {url.host}:{url.port}: {why}") from error
        except (aiohttp.ClientError, ConnectionError, TimeoutError) as error:
            raise RetryableError(f"{url.host}: {_words(error)}") from error

    def _proxy_for(self, url: URL) -> str | None:
        try:
            return proxy_for(str(url), self._proxies)
        except HttpError as error:
            raise HubError(str(error)) from None

    def _judge(self, model: ModelName, response: aiohttp.ClientResponse, at_hub: bool) -> None:
        """Pass 200 and 206 in plain bytes. Raise what every other answer means."""
        status, headers, host = response.status, response.headers, response.url.host
        if status in {200, 206}:
            if headers.get("Content-Encoding", "identity") != "identity":
                raise HubError(f"{host} compresses what it was asked to send plain")
            return
        if status == 416:
            raise RetryableError(f"{host} has no such range", from_start=True)
        if status in _PASSING or status >= 500:
            raise RetryableError(f"{host} answered {status}", after_s=_asked_pause_s(headers))
        if not at_hub:
            # An address that the hub signed expires; the next attempt asks the hub for a new one.
            raise RetryableError(f"{host} answered {status}")
        if status in {401, 403}:
            raise HubRefusal(self._no_access(model, status, headers.get("X-Error-Code", "")))
        if status == 404:
            raise HubRefusal(_not_found(model, headers.get("X-Error-Code", ""), self._endpoint))
        raise HubError(f"{host} answered {status}")

    def _no_access(self, model: ModelName, status: int, code: str) -> str:
        page = f"{self._endpoint}/{model.repository}"
        if not self._token:
            return (
                f"{model.repository} is gated, private, or does not exist. Accept its terms at "
                f"{page}, make "
                "a token with read access in your settings there, set HF_TOKEN to it, and run "
                "this again."
            )
        if code == "GatedRepo":
            return (
                f"the account of your HF_TOKEN has no access to {model.repository} yet. Accept "
                "its terms at "
                f"{page} (some owners approve by hand), and run the command again."
            )
        if status == 401:
            return (
                "the hub does not accept your HF_TOKEN: mistyped, expired or revoked. "
                "Make a new one there."
            )
        return (
            f"your HF_TOKEN may not read {model.repository}. A fine-grained token needs read "
            "access to gated "
            f"repositories, and the terms at {page} must be accepted."
        )

    def _url(self, *parts: str) -> URL:
        path = "/".join(quote(part, safe="") for part in parts)
        return URL(f"{str(self._endpoint).rstrip('/')}/{path}", encoded=True)


def parse_endpoint(text: str) -> URL:
    """Return the address of a hub.

    Raises:
        ConfigError: the text is not such an address.
    """
    try:
        url = URL(text)
        good = (
            url.origin().scheme in {"http", "https"}
            and bool(url.host)
            and len(text) <= MAX_URL_CHARS
        )
    except ValueError:
        good = False
    if not good or url.user or url.password or url.query_string or url.fragment:
        raise ConfigError("the hub's address is https://host or https://host/path")
    return url


def _check_token(token: str, endpoint: URL) -> None:
    """A bearer token (RFC 6750, 2.1) that does not travel in the clear. Never shows it."""
    if not _TOKEN.fullmatch(token):
        raise ConfigError(
            f"HF_TOKEN is malformed: expected at most {MAX_TOKEN_CHARS} characters from "
            "A-Z a-z 0-9 . _ ~ + / -"
        )
    if endpoint.scheme == "http" and endpoint.host not in LOOPBACK:
        raise ConfigError(
            f"HF_TOKEN would travel unencrypted to {endpoint}. Unset it, or use https"
        )


def _words(error: Exception) -> str:
    """What a library says of a failure, in one short line, without its address."""
    text = error.message if isinstance(error, aiohttp.ClientResponseError) else str(error)
    return one_line(text, SHOWN_CHARS) or type(error).__name__


def redirect_target(url: URL, location: str) -> URL:
    """Return where a redirect leads, as it was signed, without normalizing it.

    Raises:
        HubError: the redirect leads where nobody should follow.
    """
    try:
        if not location or len(location) > MAX_URL_CHARS:
            raise ValueError("no address, or one too long")
        target = url.join(URL(location, encoded=True))
        allowed = {"https"} if url.scheme == "https" else {"http", "https"}
        if target.scheme not in allowed or not target.host or target.user is not None:
            raise ValueError(f"to {target.scheme or 'nowhere'}")
        target.origin()  # a ValueError if host or port is malformed
    except ValueError as error:
        raise HubError(f"{url.host} redirects where nobody should follow ({error})") from None
    return target


def _same_file(commit: str, file: HubFile) -> Callable[[Mapping[str, str]], None]:
    """Compare what the hub says of a download with what it listed. Storage has its own ETags."""

    def watch(headers: Mapping[str, str]) -> None:
        said = {
            "commit": (headers.get("X-Repo-Commit"), commit),
            "digest": (_hub_digest(headers), file.digest),
            "size": (headers.get("X-Linked-Size"), str(file.size_bytes)),
        }
        for what, (now, listed) in said.items():
            if now is not None and now != listed:
                raise HubError(f"{file.name}: the hub lists {what} {listed} and now says another")

    return watch


def _hub_digest(headers: Mapping[str, str]) -> str | None:
    """X-Linked-Etag, or an ETag in the form of a hub's digest. A proxy may have its own ETags."""
    linked = headers.get("X-Linked-Etag")
    tag = (linked or headers.get("ETag", "")).removeprefix("W/").strip('"')
    is_digest = SHA256.fullmatch(tag) or GIT_ID.fullmatch(tag)
    return tag if linked is not None or is_digest else None


def _first_byte(response: aiohttp.ClientResponse, file: HubFile, offset: int) -> int:
    """Return the offset at which a body begins.

    Raises:
        RetryableError: the body cannot be the rest of the file from there on.
    """
    if response.status == 200:
        offset = 0
    else:
        found = _CONTENT_RANGE.fullmatch(response.headers.get("Content-Range", ""))
        wanted = (offset, file.size_bytes - 1, file.size_bytes)
        if found is None or tuple(map(int, found.groups())) != wanted:
            raise RetryableError(
                f"{response.url.host} sends another range than was asked for", from_start=True
            )
    announced, wanted_bytes = response.content_length, file.size_bytes - offset
    if announced is not None and announced != wanted_bytes:
        raise RetryableError(
            f"{response.url.host} announces {announced} bytes where {wanted_bytes} are listed"
        )
    return offset


def _asked_pause_s(headers: Mapping[str, str]) -> float | None:
    """Seconds that a server asks to wait: Retry-After (RFC 9110, 10.2.3), or the end of the window
    in which nothing is left (RateLimit, draft-ietf-httpapi-ratelimit-headers-09, which the hub
    sends).
    """
    text = headers.get("Retry-After", "").strip()
    if text.isdecimal() and len(text) < 10:
        return float(text)
    if text and "Date" in headers:
        # Compare with the server's own clock. Ours may be wrong.
        with contextlib.suppress(ValueError, TypeError):
            until, now = parsedate_to_datetime(text), parsedate_to_datetime(headers["Date"])
            return max((until - now).total_seconds(), 0.0)
    limited = _RATE_LIMIT.search(headers.get("RateLimit", "").replace(" ", ""))
    return float(limited[1]) if limited else None


def _not_found(model: ModelName, code: str, endpoint: URL) -> str:
    if code == "RevisionNotFound":
        return f"{model.repository} has no commit, tag or branch {model.revision}"
    if code == "EntryNotFound":
        return f"a file that {endpoint} lists in {model} is not there"
    return f"there is no model {model.repository} at {endpoint}, or it is private"


async def _bounded(response: aiohttp.ClientResponse) -> bytes:
    body = bytearray()
    async for chunk in response.content.iter_any():
        body += chunk
        if len(body) > MAX_ANSWER_BYTES:
            raise HubError(f"{response.url.host} answers with more than {MAX_ANSWER_BYTES} bytes")
    return bytes(body)


# --- the list of files


def _listing(entries: list[Any]) -> tuple[HubFile, ...]:
    """Return what a hub lists. Refuse a name that could leave the folder it is written to."""
    if len(entries) > MAX_LISTED_ENTRIES:
        raise HubError(
            f"the hub lists {len(entries)} files, at most {MAX_LISTED_ENTRIES} are accepted"
        )
    files: dict[str, HubFile] = {}
    for entry in entries:
        if not isinstance(entry, dict) or not isinstance(entry.get("path"), str):
            raise HubError("the hub lists something without a name")
        if entry.get("type") != "file":
            continue  # folders are not part of a checkpoint
        name = entry["path"]
        if (
            not name
            or name.startswith("..")
            or any(c in "/\\" or not c.isprintable() for c in name)
        ):
            raise HubError(
                f"the hub lists a file whose name leads elsewhere: {name[:SHOWN_CHARS]!r}"
            )
        if name in files:
            raise HubError(f"the hub lists {name!r} twice")
        files[name] = _file(name, entry)
    return tuple(files[name] for name in sorted(files))


def _file(name: str, entry: Mapping[str, Any]) -> HubFile:
    size, digest, form = entry.get("size"), entry.get("oid"), GIT_ID
    large = entry.get("lfs")
    if large is not None:
        # The entry's own oid is then the pointer's, which nobody downloads.
        size, digest = (
            (large.get("size"), large.get("oid")) if isinstance(large, dict) else (None, None)
        )
        form = SHA256
    if not isinstance(size, int) or isinstance(size, bool) or not 0 <= size < MAX_LISTED_BYTES:
        raise HubError(f"the hub lists {name} without a size")
    if not isinstance(digest, str) or not form.fullmatch(digest):
        raise HubError(f"the hub lists {name} without a digest")
    return HubFile(name, size, digest)
