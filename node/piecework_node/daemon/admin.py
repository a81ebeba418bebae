"""The operator's port on loopback: metrics, health, status, and the commands settle and drain.

Every user of the machine may read. The commands need the token from a file that only the operator
can read. A Host header that is not ours is refused, so that no web page can reach us through a
rebound name.
"""

from __future__ import annotations

import hmac
import secrets
import socket
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final, Protocol

from aiohttp import web
from yarl import URL

from piecework.base.connections import Refused
from piecework.base.errors import PieceworkError
from piecework.base.files import write_private
from piecework.base.hosts import is_unspecified
from piecework.base.http import HttpError, HttpLimits, HttpReader, HttpStatus
from piecework.base.http_server import HttpServer, http_limits
from piecework.base.jsons import loads
from piecework.base.text import is_text, one_line
from piecework_node.console import page
from piecework_node.console.model import Snapshot
from piecework_node.daemon.changing import ChangeReport
from piecework_node.errors import AdminError, KeyFileError
from piecework_node.jobs.own_test import OwnTests

TOKEN_FILE: Final = "admin.token"  # noqa: S105  a name, not a token
MIN_TOKEN_CHARACTERS: Final = 32
"""A shorter one was cut off, or made by somebody else. An empty one would let everybody in."""
ADDRESS_FILE: Final = "admin.json"
TOKEN_HEADER: Final = "X-Piecework-Token"  # noqa: S105
MAX_BODY_BYTES: Final = 64 * 1024
"""A change of the longest settings fits."""
MAX_CONNECTIONS: Final = 128
CONNECTIONS_PER_ADDRESS: Final = 32
"""For a few scrapers and commands at once."""
LONGEST_PAUSE_S: Final = 30 * 24 * 3600
ASK_LIMITS: Final = HttpLimits(total_s=10.0, connect_s=5.0, max_bytes=4 * 2**20)
READER_COOKIE: Final = "piecework_console"
_PRIVATE: Final = {
    "Cache-Control": "no-store",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}
_LOCAL_NAMES: Final = frozenset({"127.0.0.1", "localhost", "[::1]"})

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Operations(Protocol):
    """What the operator can see and do (`daemon.Daemon`)."""

    @property
    def ready(self) -> bool: ...

    async def status(self) -> dict[str, Any]: ...

    async def console(self) -> Snapshot: ...

    async def evidence(self, asked: bytes) -> dict[str, Any]: ...

    def metrics(self) -> bytes: ...

    def settle(self) -> None: ...

    def drain(self) -> None: ...

    @property
    def cards(self) -> tuple[str, ...]:
        """The names of the worker's cards."""
        ...

    def pause(self, seconds: float | None, card: str | None) -> None: ...

    def resume(self, card: str | None) -> tuple[str, ...]: ...

    async def change(self, texts: Mapping[str, str], unset: Sequence[str]) -> ChangeReport:
        """Change settings of the home. A `PieceworkError` says why nothing was changed."""
        ...

    @property
    def own_tests(self) -> OwnTests:
        """The owner's own test jobs."""
        ...

    def connection_refused(self, why: Refused) -> None: ...


class AdminServer:
    """The aiohttp application and its life."""

    def __init__(self, operations: Operations, token: str, extra_host: str = "") -> None:
        self._operations, self._token = operations, token
        self._hosts = _LOCAL_NAMES | ({extra_host} if extra_host else set())
        self._server = HttpServer(
            self.application(),
            http_limits(MAX_CONNECTIONS, CONNECTIONS_PER_ADDRESS),
            on_refused=operations.connection_refused,
        )

    def application(self) -> web.Application:
        """The routes."""
        app = web.Application(client_max_size=MAX_BODY_BYTES, middlewares=[self._guard()])
        app.add_routes(
            [
                web.get("/metrics", self._metrics),
                web.get("/health", self._health),
                web.get("/ready", self._ready),
                web.get("/status", self._status),
                web.get("/console", self._console),
                web.get("/console/data", self._console_data),
                web.get("/console/live.js", self._console_script),
                web.post("/evidence", self._evidence),
                web.post("/settle", self._settle),
                web.post("/drain", self._drain),
                web.post("/pause", self._pause),
                web.post("/resume", self._resume),
                web.post("/settings", self._change),
                web.get("/test", self._shown_test),
                web.post("/test", self._start_test),
                web.post("/test/stop", self._stop_test),
            ]
        )
        return app

    async def start_on(self, sockets: Sequence[socket.socket]) -> int:
        """Accept on bound sockets, and return the port."""
        return await self._server.start_on(sockets)

    async def stop(self) -> None:
        """Close the port."""
        await self._server.stop()

    def _guard(self) -> Any:
        @web.middleware
        async def guard(request: web.Request, handler: Handler) -> web.StreamResponse:
            if (
                request.host.rpartition(":")[0] not in self._hosts
                and request.host not in self._hosts
            ):
                return _error(403, "host", "ask for this port by its own address")
            if request.method != "GET" and not self._authorized(request):
                return _error(401, "token", f"send the token of {TOKEN_FILE} as {TOKEN_HEADER}")
            return await handler(request)

        return guard

    def _authorized(self, request: web.Request) -> bool:
        return _same(request.headers.get(TOKEN_HEADER, ""), self._token)

    def _reads_console(self, request: web.Request) -> bool:
        """Whether a request may read the console. The key for that opens nothing else."""
        given = request.cookies.get(READER_COOKIE, "")
        return _same(given, console_key(self._token)) or self._authorized(request)

    async def _console(self, request: web.Request) -> web.StreamResponse:
        key = request.query.get("key", "")
        if _same(key, console_key(self._token)):
            # The key leaves the address bar at once. A page elsewhere that links here with another
            # one must not replace the owner's.
            moved = web.Response(status=303, headers={"Location": "/console"})
            moved.set_cookie(READER_COOKIE, key, path="/console", httponly=True, samesite="Strict")
            return moved
        if not self._reads_console(request):
            text = "Run `piecework worker top --web` and open the address that it prints.\n"
            return web.Response(status=401, text=text)
        return web.Response(
            text=page.render(await self._operations.console()),
            content_type="text/html",
            headers={**_PRIVATE, "Content-Security-Policy": page.CONTENT_SECURITY_POLICY},
        )

    async def _console_data(self, request: web.Request) -> web.StreamResponse:
        if not self._reads_console(request):
            return _error(401, "token", f"send the token of {TOKEN_FILE} as {TOKEN_HEADER}")
        shown = await self._operations.console()
        return web.json_response(shown.to_json(), headers=_PRIVATE)

    async def _console_script(self, _: web.Request) -> web.Response:
        return web.Response(text=page.SCRIPT, content_type="text/javascript", headers=_PRIVATE)

    async def _metrics(self, _: web.Request) -> web.Response:
        return web.Response(
            body=self._operations.metrics(), content_type="text/plain", charset="utf-8"
        )

    async def _health(self, _: web.Request) -> web.Response:
        return web.json_response({"alive": True})

    async def _ready(self, _: web.Request) -> web.Response:
        ready = self._operations.ready
        return web.json_response({"ready": ready}, status=200 if ready else 503)

    async def _status(self, _: web.Request) -> web.Response:
        return web.json_response(await self._operations.status())

    async def _evidence(self, request: web.Request) -> web.Response:
        """It may hold a prompt, so it needs the token."""
        try:
            shown = await self._operations.evidence(await request.read())
        except ValueError:
            return _error(400, "evidence", "the question is not one that this version knows")
        except PieceworkError as error:
            return _error(404, "evidence", str(error))
        return web.json_response(shown, headers=_PRIVATE)

    async def _settle(self, _: web.Request) -> web.Response:
        self._operations.settle()
        return web.json_response({"settling": True}, status=202)

    async def _drain(self, _: web.Request) -> web.Response:
        self._operations.drain()
        return web.json_response({"draining": True}, status=202)

    async def _pause(self, request: web.Request) -> web.Response:
        body = await request.read()
        try:
            seconds = _seconds(body)
        except ValueError:
            return _error(400, "seconds", f"seconds is a whole number up to {LONGEST_PAUSE_S}")
        try:
            card = self._card(body)
        except ValueError as error:
            return _error(400, "card", str(error))
        self._operations.pause(seconds, card)
        return web.json_response({"paused": True, "seconds": seconds}, status=202)

    async def _resume(self, request: web.Request) -> web.Response:
        try:
            card = self._card(await request.read())
        except ValueError as error:
            return _error(400, "card", str(error))
        left = self._operations.resume(card)
        return web.json_response({"paused": bool(left), "causes": left}, status=202)

    def _card(self, body: bytes) -> str | None:
        """Which card is meant. None: all of them. Raises `ValueError` if there is no such card."""
        asked = loads(body) if body else {}
        card = asked.get("card") if isinstance(asked, dict) else body
        if card is not None and card not in self._operations.cards:
            raise ValueError(f"the cards are {', '.join(self._operations.cards)}")
        return card

    async def _start_test(self, request: web.Request) -> web.StreamResponse:
        try:
            prompt, max_tokens = _test_job(await request.read())
        except ValueError as error:
            return _error(400, "test", str(error))
        try:
            test = await self._operations.own_tests.start(prompt, max_tokens)
        except PieceworkError as error:
            return _error(409, "test", str(error))
        return web.json_response(asdict(test), status=202, headers=_PRIVATE)

    async def _shown_test(self, request: web.Request) -> web.StreamResponse:
        """It has a prompt and an answer, so it needs the token."""
        if not self._authorized(request):
            return _error(401, "token", f"send the token of {TOKEN_FILE} as {TOKEN_HEADER}")
        test = self._operations.own_tests.last
        if test is None:
            return _error(404, "test", "there was no test job since the start")
        return web.json_response(asdict(test), headers=_PRIVATE)

    async def _stop_test(self, _: web.Request) -> web.StreamResponse:
        self._operations.own_tests.stop()
        return web.json_response({"stopping": True}, status=202)

    async def _change(self, request: web.Request) -> web.StreamResponse:
        try:
            texts, unset = _changes(await request.read())
        except ValueError:
            return _error(400, "settings", "a change is {set: {name: text}, unset: [name]}")
        try:
            report = await self._operations.change(texts, unset)
        except PieceworkError as error:
            return _error(409, "settings", str(error))
        return web.json_response(report.to_json())


def _test_job(body: bytes) -> tuple[str, int | None]:
    """Prompt and token limit of a test job. Raises `ValueError` with what is wrong."""
    try:
        asked = loads(body)
    except ValueError:
        asked = None
    if not isinstance(asked, dict) or not asked.keys() <= {"prompt", "max_tokens"}:
        raise ValueError("a test job is {prompt: text, max_tokens: number}")
    prompt, most = asked.get("prompt"), asked.get("max_tokens")
    if not isinstance(prompt, str) or not prompt.strip() or not is_text(prompt):
        raise ValueError("prompt is a text that is not empty")
    if most is not None and (not isinstance(most, int) or isinstance(most, bool) or most < 1):
        raise ValueError("max_tokens is a whole number from 1 on")
    return prompt, most


def _changes(body: bytes) -> tuple[dict[str, str], list[str]]:
    """New values of settings, and names of those to take out. Raises `ValueError` for others."""
    asked = loads(body)
    if not isinstance(asked, dict) or not asked.keys() <= {"set", "unset"}:
        raise ValueError("not a change")
    texts, unset = asked.get("set", {}), asked.get("unset", [])
    if not isinstance(texts, dict) or not isinstance(unset, list):
        raise ValueError("not a change")
    if not all(isinstance(word, str) for word in (*texts.values(), *unset)):
        raise ValueError("not texts")
    return texts, unset


def _seconds(body: bytes) -> int | None:
    """How long a pause is asked for. None: until it is lifted. Raises `ValueError` for others."""
    asked = loads(body) if body else {}
    seconds = asked.get("seconds") if isinstance(asked, dict) else body
    if seconds is None:
        return None
    if not isinstance(seconds, int) or isinstance(seconds, bool):
        raise ValueError("not a whole number")
    if not 0 < seconds <= LONGEST_PAUSE_S:
        raise ValueError("out of bounds")
    return seconds


def _same(given: str, secret: str) -> bool:
    """Compare without telling by the time how much is right. Nothing is like an empty secret."""
    # Bytes of a header that are not text come as surrogates.
    known = hmac.compare_digest(given.encode(errors="surrogatepass"), secret.encode())
    return known and bool(secret)


def _error(status: int, code: str, message: str) -> web.Response:
    return web.json_response({"error": {"code": code, "message": message}}, status=status)


def console_key(token: str) -> str:
    """Derive the key that reads the console from the token, which also presses the buttons."""
    return hmac.new(token.encode(), b"piecework console", "sha256").hexdigest()


def admin_token(home: Path) -> str:
    """Return the home's token. Make one if there is none.

    Raises:
        KeyFileError: the file cannot be read, or holds no token.
        FileError: the file cannot be written.
    """
    path = home / TOKEN_FILE
    try:
        token = path.read_text(encoding="ascii").strip()
    except FileNotFoundError:
        token = secrets.token_urlsafe(32)
        write_private(path, token.encode())
    except (OSError, UnicodeError) as error:
        why = getattr(error, "strerror", None) or "it is not a token"
        raise KeyFileError(f"cannot read {path}: {why}") from None
    if len(token) < MIN_TOKEN_CHARACTERS:
        raise KeyFileError(f"{path} holds no token. Delete it, and the next start makes one")
    return token


def console_url(home: Path) -> str:
    """Return the address of the console of the worker of a home, with the key that reads it.

    It is for this machine. A port that listens everywhere, as in a container, is asked on loopback.

    Raises:
        AdminError: no worker runs there.
    """
    return f"{_url(home)}/console?key={console_key(admin_token(home))}"


def _url(home: Path) -> str:
    try:
        address = loads((home / ADDRESS_FILE).read_bytes())
        host = str(address["host"])
        if is_unspecified(host):
            host = "::1" if ":" in host else "127.0.0.1"
        return str(URL.build(scheme="http", host=host, port=int(address["port"])))
    except (OSError, ValueError, KeyError, TypeError):
        raise AdminError(
            f"no worker runs in {home}. Start it with `piecework worker start`."
        ) from None


async def ask_daemon(
    home: Path, method: str, path: str, body: bytes = b"", *, limits: HttpLimits = ASK_LIMITS
) -> dict[str, Any]:
    """Ask the daemon of a home. `body` is JSON for a command that takes options.

    Raises:
        AdminError: nobody answers, or the daemon refuses. The text says what to do.
    """
    base = _url(home)
    url = base + path
    try:
        # The daemon runs on this machine, whatever it binds to. A proxy must not see the token.
        async with HttpReader(limits, proxies=dict) as http:
            headers = {TOKEN_HEADER: admin_token(home)}
            if method == "GET":
                answer = loads(await http.get(url, headers=headers))
            else:
                answer = loads(await http.post(url, body, headers=headers))
        if not isinstance(answer, dict):
            raise ValueError("not an object")
    except HttpStatus as status:
        raise AdminError(f"the worker refuses: {_reason(status)}") from None
    except (HttpError, ValueError):
        raise AdminError(
            f"the worker of {home} does not answer at {base}. Is it running?"
        ) from None
    return answer


def _reason(answer: HttpStatus) -> str:
    """What the daemon says of its refusal."""
    try:
        return one_line(str(loads(answer.body)["error"]["message"]), 300)
    except (ValueError, KeyError, TypeError):
        return f"HTTP {answer.status}"
